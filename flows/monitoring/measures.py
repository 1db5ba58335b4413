"""How far the cells of a day are from others: one number a measure, and how likely chance makes it so large.

A measure's numbers are compared within each class that the model names: a ward with many lymphocytes is no drift. Each number of
a measure is tested by Kolmogorov and Smirnov, the classes themselves by chi-square. Both effects are a difference of two shares.
Cells of one request are of one smear and alike. So they count as fewer independent ones, by how alike they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wbc_model.core.classes import CLASSES
from wbc_model.core.reference import FEW, MEASURES, WIDTH

ALPHA: Final = 1e-4  # of false alarms for each site and day, over all measures: one in 27 years of a site
FLOOR: Final = 0.15  # of the cells that must lie elsewhere than usual: less is harmless, however many cells show it
NAMES: Final = tuple(MEASURES)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """Measures of cells, `rows` (N, WIDTH), and the number of the `request` (N,) that each came in."""

    rows: NDArray[np.float32]
    request: NDArray[np.int64]

    @classmethod
    def none(cls) -> "Cells":
        """No cell."""
        return cls(np.empty((0, WIDTH), np.float32), np.empty(0, np.int64))

    @classmethod
    def independent(cls, rows: NDArray[np.float32]) -> "Cells":
        """Cells of which each is its own request."""
        return cls(rows, np.arange(len(rows)))

    @classmethod
    def of_requests(cls, requests: Sequence[NDArray[np.float32]]) -> "Cells":
        """The cells of several requests."""
        numbers = np.repeat(np.arange(len(requests)), [len(rows) for rows in requests])
        return cls(np.concatenate([np.empty((0, WIDTH), np.float32), *requests]), numbers)

    def plus(self, others: "Cells") -> "Cells":
        """These and others, whose requests are others, too."""
        above = int(self.request.max(initial=-1)) + 1
        return Cells(np.concatenate([self.rows, others.rows]), np.concatenate([self.request, others.request + above]))

    def __len__(self) -> int:
        return len(self.rows)


class Compared(NamedTuple):
    """How far cells are from the usual ones in a measure.

    `effect` is the largest difference of two shares, 0 to 1. `p` is the chance of one as large, corrected for the numbers of
    the measure. `effective` is what the cells are worth as independent ones.
    """

    effect: float
    p: float
    effective: float

    @property
    def drifts(self) -> bool:
        """Whether it is too large for chance, and large enough to matter."""
        return self.p < ALPHA / len(NAMES) and self.effect >= FLOOR


def compare(measure: str, now: Cells, usual: Cells) -> Compared | None:
    """Compare cells with the usual ones; None where one of them does not have the measure."""
    if measure == "class":
        return _classes(now, usual)
    columns = range(MEASURES[measure].start, MEASURES[measure].stop)
    found = [one for column in columns if (one := _column(column, now, usual)) is not None]
    if not found:
        return None
    corrected = [one._replace(p=min(1.0, one.p * len(found))) for one in found]
    return max(corrected, key=lambda one: (one.drifts, one.effect))


def _column(column: int, now: Cells, usual: Cells) -> Compared | None:
    from scipy.stats import kstwobign

    scale = _Within.fitted(usual, column)
    (here, ours), (there, theirs) = scale.apply(now), scale.apply(usual)
    if not len(here) or not len(there):
        return None
    effect = _largest_difference(here, there)
    alike = max(_alike(here, ours), _alike(there, theirs))
    n, m = _worth(ours, alike), _worth(theirs, alike)
    return Compared(effect, float(kstwobign.sf(effect * np.sqrt(n * m / (n + m)))), n)


def _largest_difference(here: Floats, there: Floats) -> float:
    """Kolmogorov and Smirnov's statistic: the largest difference of the shares below any one value."""
    here, there = np.sort(here), np.sort(there)
    values = np.concatenate([here, there])
    below = (np.searchsorted(some, values, side="right") / len(some) for some in (here, there))
    return float(np.abs(np.subtract(*below)).max())


def _classes(now: Cells, usual: Cells) -> Compared | None:
    from scipy.stats import chi2

    if not len(now) or not len(usual):
        return None
    eye = np.eye(len(CLASSES))
    here, there = (eye[cells.rows[:, 0].astype(int)] for cells in (now, usual))
    alike = max(_alike(here, now.request), _alike(there, usual.request))
    counts = np.stack([one.mean(axis=0) * _worth(cells.request, alike) for one, cells in ((here, now), (there, usual))])
    counts = counts[:, counts.sum(axis=0) > 0]
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    p = float(chi2.sf(statistic, counts.shape[1] - 1)) if counts.shape[1] > 1 else 1.0
    return Compared(float(np.abs(here.mean(axis=0) - there.mean(axis=0)).sum() / 2), p, float(counts[0].sum()))


@dataclass(frozen=True)
class _Within:
    """Median and spread of one number within each class of the usual cells; NaN for a class that has FEW of them."""

    column: int
    median: Floats
    spread: Floats

    @classmethod
    def fitted(cls, usual: Cells, column: int) -> "_Within":
        median, spread = np.full(len(CLASSES), np.nan), np.ones(len(CLASSES))
        for index in range(len(CLASSES)):
            values = usual.rows[usual.rows[:, 0] == index, column].astype(np.float64)
            values = values[np.isfinite(values)]
            if len(values) >= FEW:
                median[index] = np.median(values)
                spread[index] = np.subtract(*np.quantile(values, [0.75, 0.25])) or 1.0
        return cls(column, median, spread)

    def apply(self, cells: Cells) -> tuple[Floats, NDArray[np.int64]]:
        """The numbers in units of their class's spread from its median, and the requests of those that have one."""
        classes = cells.rows[:, 0].astype(int)
        values = (cells.rows[:, self.column].astype(np.float64) - self.median[classes]) / self.spread[classes]
        there = ~np.isnan(values)
        return values[there], cells.request[there]


def _alike(values: NDArray[Any], request: NDArray[np.int64]) -> float:
    """How alike the cells of one request are: the intraclass correlation of ranks, or of shares (N, C); 0 where not known."""
    from scipy.stats import rankdata

    _, group = np.unique(request, return_inverse=True)
    sizes = np.bincount(group).astype(np.float64)
    count, groups = len(values), len(sizes)
    if groups < 2 or count == groups:
        return 0.0
    ranked = rankdata(values)[:, None] if values.ndim == 1 else values
    means = np.stack([np.bincount(group, column) for column in ranked.T], axis=1) / sizes[:, None]
    between = (sizes[:, None] * (means - ranked.mean(axis=0)) ** 2).sum() / (groups - 1)
    within = ((ranked - means[group]) ** 2).sum() / (count - groups)
    usual_size = (count - (sizes**2).sum() / count) / (groups - 1)
    total = between + (usual_size - 1) * within
    return float(np.clip((between - within) / total, 0, 1)) if total > 0 else 0.0


def _worth(request: NDArray[np.int64], alike: float) -> float:
    """As how many independent cells those of some requests count (Kish's design effect)."""
    sizes = np.unique(request, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() / (1 + ((sizes**2).sum() / sizes.sum() - 1) * alike))
