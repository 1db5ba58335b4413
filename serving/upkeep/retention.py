"""The job that deletes kept images after the time that the site states: when the service starts, and once an hour.

An image of a report is kept from the making of the report on, one of a queue from the closing of the queue on.
"""

import logging
import threading
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from serving.contract.site import KeepImages
from serving.reports.kept_images import delete_all, delete_expired, delete_of_closed_queues
from serving.reports.store import Store, reason_of
from serving.upkeep.clock import Clock

SWEEP_SECONDS: Final = 60 * 60.0

log = logging.getLogger("bentoml.wbc")  # BentoML sets up the log of what is called `bentoml`


class Retention:
    """A thread that deletes the images of reports that are older than `keep.days`, or all where the site keeps none. Images of
    queues go when these have been closed for so long. A store that cannot be written is one line in the log, and the next hour
    is another chance."""

    def __init__(self, store: Store, keep: KeepImages | None, clock: Clock) -> None:
        self._store = store
        self._keep = keep
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the deletion that it may be at."""
        self._stop.set()
        self._thread.join()

    def sweep(self) -> None:
        """Delete what is to be deleted now. Raises SQLAlchemyError."""
        if self._keep is None:
            if deleted := delete_all(self._store):
                log.warning("the images of %d reports were deleted: the site keeps none (keep_images: false)", deleted)
        elif self._keep.days is not None:
            days = self._keep.days
            if deleted := delete_expired(self._store, days, self._clock.now()):
                log.info("the images of %d reports were deleted: they were kept for %d days", deleted, days)
        self._sweep_queues()

    def _sweep_queues(self) -> None:
        days = 0 if self._keep is None else self._keep.days
        if days is not None and (deleted := delete_of_closed_queues(self._store, days, self._clock.now())):
            log.info("the images of %d queues of readers were deleted: they were kept for %d days after the last", deleted, days)

    def _run(self) -> None:
        while True:
            try:
                self.sweep()
            except SQLAlchemyError as error:
                log.error("kept images could not be deleted: %s", reason_of(error))
            if self._stop.wait(SWEEP_SECONDS):
                return
