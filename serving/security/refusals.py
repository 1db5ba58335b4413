"""Callers that were refused, counted by address and minute: a line for each would let anybody fill the disk."""

import threading
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any, Final

REFUSED: Final = frozenset({401, 403, 429})
ADDRESSES: Final = 256  # counted one by one in a minute; more are one
HELD: Final = 4096  # the same over all minutes that wait to be written, as while a disk is full
OTHERS: Final = "others"


class Refusals:
    """Counts; touched from several threads. With `forget` the minutes that are over are not kept for `take`."""

    def __init__(self, forget: bool = False) -> None:
        self._forget = forget
        self._lock = threading.Lock()
        self._minutes: dict[int, dict[str, Counter[int]]] = {}

    def count(self, address: str, status: int) -> int:
        """Count one refused call; returns how many there are of this address in this minute."""
        minute = int(time.time() // 60)
        with self._lock:
            if self._forget and minute not in self._minutes:
                self._minutes.clear()
            addresses = self._minutes.setdefault(minute, {})
            room = len(addresses) < ADDRESSES and sum(map(len, self._minutes.values())) < HELD
            name = address if room or address in addresses else OTHERS
            counts = addresses.setdefault(name, Counter())
            counts[status] += 1
            return counts.total()

    def take(self, everything: bool = False) -> list[dict[str, Any]]:
        """One record for each address of the minutes that are over, or of all; they are counted no longer."""
        now = int(time.time() // 60)
        with self._lock:
            over = [minute for minute in self._minutes if everything or minute != now]
            taken = [(minute, *one) for minute in sorted(over) for one in self._minutes.pop(minute).items()]
        return [
            {
                "time": datetime.fromtimestamp(60 * minute, UTC).isoformat(timespec="milliseconds"),
                "address": address,
                "refused": {str(status): number for status, number in sorted(counts.items())},
            }
            for minute, address, counts in taken
        ]
