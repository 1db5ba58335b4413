"""Who looks at a report now: in memory only, for as long as the page goes on saying so."""

import time
from collections.abc import Callable
from typing import Final

LASTS: Final = 45.0  # seconds; a page says it every 20


class Looking:
    """Who looks at which report. One process serves, so that its memory is enough."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._until: dict[str, dict[str, float]] = {}  # by the report, by the name

    def looks(self, report_id: str, name: str) -> None:
        """Somebody looks at a report, and is taken to for the next LASTS seconds."""
        self._forget()
        self._until.setdefault(report_id, {})[name] = self._now() + LASTS

    def left(self, report_id: str, name: str) -> None:
        """Somebody has left it."""
        self._until.get(report_id, {}).pop(name, None)

    def here(self, report_id: str) -> list[str]:
        """Who looks at it now, in the order in which they came."""
        self._forget()
        return list(self._until.get(report_id, ()))

    def _forget(self) -> None:
        now = self._now()
        kept = {report: {who: until for who, until in names.items() if until > now} for report, names in self._until.items()}
        self._until = {report: names for report, names in kept.items() if names}
