"""Reports that are open while the settings of the site change: at the start they are counted again by those that hold now.

What is signed stays as it was signed. Without this an open report would be signed with reference ranges that the laboratory has
given up. It would still be called a differential where more cells are asked for now.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from serving.contract.site import Site
from serving.reports.review import by_other_settings, follow
from serving.reports.store import Store, reason_of
from serving.reports.tables import Report
from wbc_model.core.errors import counted

PAUSE: Final = 0.02  # seconds between two reports: those who write meanwhile find the store free

_LOG: Final = logging.getLogger("bentoml.wbc")  # BentoML sets up the log of what is called `bentoml`


def follow_all(store: Store, site: Site, stopped: Callable[[], bool] = lambda: False) -> int:
    """Count each open report again that was counted by other settings, the newest first, until `stopped`.

    Returns how many came out otherwise. Raises SQLAlchemyError.
    """
    query = select(Report.id).where(*by_other_settings(site))
    with store.reading() as session:
        reports = list(session.scalars(query.order_by(Report.created_at.desc())))
    return sum(follow(store, report, site) for report in reports if not stopped())


class OpenReports:
    """A thread that lets open reports follow the settings, and then ends. Who signs one before that is told to look again.

    A store that cannot be written is one line in the log; the next start is another chance.
    """

    def __init__(self, store: Store, site: Site) -> None:
        self._store = store
        self._site = site
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="open reports", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    def close(self) -> None:
        """End the thread, after the report that it may be at."""
        self._stop.set()
        self.join()

    def _run(self) -> None:
        try:
            changed = follow_all(self._store, self._site, partial(self._stop.wait, PAUSE))
        except SQLAlchemyError as error:
            _LOG.error("open reports could not be counted again: %s", reason_of(error))
            return
        if changed:
            said = counted(changed, "open report was", "open reports were")
            _LOG.info("%s counted again: the settings of the site, or the way in which reports are counted, have changed", said)
