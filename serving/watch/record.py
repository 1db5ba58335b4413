"""Keeping what was measured of served cells, for the time that the site states. Nothing in it says whose cells they are.

A request does not wait for it: a thread writes every few seconds. What a kill takes from it is a few seconds of statistics.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import numpy as np
from sqlalchemy import delete
from sqlalchemy.exc import SQLAlchemyError

from serving.contract.schemas import ModelName
from serving.contract.site import Site
from serving.inference.classify import Seen
from serving.reports.store import Store, reason_of
from serving.reports.tables import WatchedCells

FLUSH_SECONDS: Final = 5.0
FORGET_SECONDS: Final = 60 * 60.0
MOST_WAITING: Final = 10_000  # requests, while the store cannot be written; then the oldest are given up

_LOG: Final = logging.getLogger("bentoml.wbc")  # BentoML sets up the log of what is called `bentoml`


class _Waiting(NamedTuple):
    day: str
    model_version: str
    measures: bytes
    cells: int


class Recorder:
    """A thread that writes the measures of cells into the store, and forgets those that are older than the site keeps them.

    `now` is the time to delete by (serving/upkeep/clock.py).
    """

    def __init__(self, store: Store, site: Site, now: Callable[[], datetime], every: float = FLUSH_SECONDS) -> None:
        self._store, self._site, self._now, self._every = store, site, now, every
        self._waiting: deque[_Waiting] = deque(maxlen=MOST_WAITING)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def take(self, seen: Sequence[Seen], model: ModelName) -> None:
        """Keep what was measured of one request's cells; those that were rejected have no measures."""
        rows = [one.measures for one in seen if one.measures is not None]
        if rows:
            measures = np.stack(rows).astype("<f4").tobytes()
            self._waiting.append(_Waiting(f"{datetime.now(UTC):%Y-%m-%d}", model.version, measures, len(rows)))

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._stop.set()
        self._thread.join()

    def write(self) -> None:
        """Write what waits. Raises SQLAlchemyError, and then it waits still."""
        waiting = list(self._waiting)
        if not waiting:
            return
        with self._store.writing() as session:
            session.add_all(WatchedCells(site=self._site.name, **one._asdict()) for one in waiting)
        for one in waiting:  # what came meanwhile stays, and what was given up is gone already
            if self._waiting and self._waiting[0] is one:
                self._waiting.popleft()

    def forget(self) -> int:
        """Delete what is older than the site keeps it; returns the number of requests. Raises SQLAlchemyError."""
        last = f"{self._now() - timedelta(days=self._site.watching.days):%Y-%m-%d}"
        with self._store.writing() as session:
            gone = session.execute(delete(WatchedCells).where(WatchedCells.site == self._site.name, WatchedCells.day < last))
            return int(gone.rowcount)  # type: ignore[attr-defined]  # a delete has one

    def _run(self) -> None:
        since_forgotten = FORGET_SECONDS
        while True:
            ending = self._stop.wait(self._every)
            try:
                self.write()
                if not ending and since_forgotten >= FORGET_SECONDS:
                    self.forget()
                    since_forgotten = 0.0
            except SQLAlchemyError as error:
                _LOG.error("what was measured of cells could not be kept: %s", reason_of(error))
            if ending:
                return
            since_forgotten += self._every
