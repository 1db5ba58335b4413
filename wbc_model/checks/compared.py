"""Which cells of a store show the same, remembered: only what is new is compared, with all that is there.

Whether two cells show the same depends on these two alone. So a pair that was found stays found, and one that was not stays none,
whatever comes to the store. What is remembered is kept under the version of the code that compares and the thresholds.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wbc_model.cells.tables import Digests, places_in
from wbc_model.checks.near_duplicates import Pair, alike, near_duplicates
from wbc_model.checks.quality import Measured, measure
from wbc_model.code_version import code_version
from wbc_model.core.files import write_atomic_by
from wbc_model.core.twins import BITS, CORRELATION


def compared(measured: Measured, cells: NDArray[np.int64], cache: Path) -> list[Pair]:
    """Near-duplicates among the cells at these positions of `measured` (ascending), as positions in `cells`, sorted; those that
    were found before are in `cache`."""
    names = measured.names if len(cells) == len(measured.names) else measured.names[cells]
    kept = cache / f"pairs-{_version()}.npz"
    known = _read(kept, names)
    if known.cells.all():
        return known.pairs
    found = alike(measured.crops(cells), BITS, CORRELATION, ~known.cells)
    pairs = sorted([*known.pairs, *found], key=lambda pair: (pair.first, pair.second))
    _keep(kept, names, pairs)
    return pairs


def _version() -> str:
    return hashlib.sha256(f"{code_version(measure)}{code_version(near_duplicates)}{BITS} {CORRELATION}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Known:
    """Which of some cells were compared with each other before, bool (n,), and the pairs among them, by their positions."""

    cells: NDArray[np.bool_]
    pairs: list[Pair]


def _read(kept: Path, names: Digests) -> _Known:
    """What is known of these cells: nothing, where they came in another order then, since a pair is found in that order."""
    known = _Known(np.zeros(len(names), bool), [])
    if not kept.is_file():
        return known
    with np.load(kept) as file:
        before, first, second, correlation, offset = (file[name] for name in ("names", *Pair.__annotations__))
    here = places_in(before, names)
    there = here >= 0
    if (np.diff(here[there]) < 0).any():
        return known
    known.cells[here[there]] = True
    both = there[first] & there[second]
    columns = (here[first][both], here[second][both], correlation[both], offset[both])
    known.pairs.extend(Pair(*row) for row in zip(*(column.tolist() for column in columns), strict=True))
    return known


def _keep(kept: Path, names: Digests, pairs: list[Pair]) -> None:
    for old in kept.parent.glob("pairs-*"):
        if old != kept:
            old.unlink()

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(
                file,
                names=names,
                first=np.array([pair.first for pair in pairs], np.int64),
                second=np.array([pair.second for pair in pairs], np.int64),
                correlation=np.array([pair.correlation for pair in pairs], np.float64),
                offset=np.array([pair.offset for pair in pairs], np.float64),
            )

    write_atomic_by(kept, write)
