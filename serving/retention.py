"""The job that deletes kept images after the time that the site states: when the service starts, and once a day."""

import logging
import threading
from datetime import UTC, datetime
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from serving.kept_images import delete_expired
from serving.store import Store

DAY_SECONDS: Final = 24 * 60 * 60.0

log = logging.getLogger("bentoml.wbc")  # BentoML sets up the log of what is called `bentoml`


class Retention:
    """A thread that deletes what is older than `days`; a store that cannot be written is one line in the log, and the next day
    is another chance."""

    def __init__(self, store: Store, days: int) -> None:
        self._store = store
        self._days = days
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the deletion that it may be at."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                deleted = delete_expired(self._store, self._days, datetime.now(UTC))
            except SQLAlchemyError as error:
                log.error("kept images could not be deleted: %s", " ".join(str(getattr(error, "orig", None) or error).split()))
            else:
                if deleted:
                    log.info("the images of %d reports were deleted: they were kept for %d days", deleted, self._days)
            if self._stop.wait(DAY_SECONDS):
                return
