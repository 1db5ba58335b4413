"""The time by which things are deleted. A clock that is wrong for a while must not end what was to be kept.

The store remembers the time that was believed last. Wall time is believed if it is at most a day ahead of that time, plus what
the process has run since. Further ahead the clock may be wrong, or the service was off. It is then believed after the service
has run for a day. Meanwhile somebody can read the line in the log and put the clock right; a service that was off for weeks
goes on.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from serving.reports.store import Store
from serving.reports.tables import BelievedTime, Deed, Report

AHEAD: Final = timedelta(days=1)  # that is believed at once
WAIT: Final = timedelta(days=1)  # of running, after which what is further ahead is believed
NAME: Final = "deletion"

_LOG: Final = logging.getLogger("bentoml.wbc")


def wall_time() -> datetime:
    """What the computer's clock says."""
    return datetime.now(UTC)


class Clock:
    """The believed time of a store, for all threads of a process."""

    def __init__(
        self, store: Store, wall: Callable[[], datetime] = wall_time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._wall = wall
        self._monotonic = monotonic
        self._looked: float | None = None
        self._told = False
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """The time to delete by. Ask at least once an hour while something may be deleted. Raises SQLAlchemyError."""
        with self._lock:
            wall, look = self._wall(), self._monotonic()
            ran = timedelta(seconds=0 if self._looked is None else look - self._looked)
            with self._store.writing() as session:
                kept = session.get(BelievedTime, NAME, with_for_update=True)
                if kept is None:
                    kept = BelievedTime(name=NAME, at=_last_use(session) or wall, waited_seconds=0.0)
                    session.add(kept)
                ahead, waited = wall - kept.at - ran, timedelta(seconds=kept.waited_seconds) + ran
                believed = ahead <= AHEAD or waited >= WAIT
                kept.at = wall if believed else kept.at + ran
                kept.waited_seconds = 0.0 if believed else waited.total_seconds()
                now = kept.at
            self._looked = look
            self._tell(believed, wall, ahead)
            return now

    def _tell(self, believed: bool, wall: datetime, ahead: timedelta) -> None:
        if believed == self._told:
            said = f"the clock says {wall:%Y-%m-%d %H:%M} UTC"
            if believed:
                _LOG.warning("%s, and is believed again: what is older than it may be is deleted", said)
            else:
                _LOG.warning(
                    "%s, %d days later than when the store was used last: nothing is deleted for its age until the service has "
                    "run for %d hours; put the clock right if it is wrong",
                    said,
                    ahead.days,
                    WAIT // timedelta(hours=1),
                )
            self._told = not believed


def _last_use(session: Session) -> datetime | None:
    """When a store that remembers no time was used last; None where it is empty."""
    times = [session.scalar(select(func.max(column))) for column in (Report.changed_at, Deed.at)]
    return max((one for one in times if one is not None), default=None)
