"""Finding the same cell twice when the pixels differ: saved again, resized, brightened, photographed again, cut elsewhere.

White cells on one stain look so much alike that a hash of the whole crop either misses a crop that was cut a little to the
side or takes different cells for one. So hashes only propose pairs, landmark by landmark, and pixels decide: the two grey
views, laid over each other where their landmarks meet, must agree in their fine structure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import dist
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from wbc_model.quality import REACH, VIEW, surroundings

DETAIL_SIGMA: Final = 4.0  # pixels of the view: coarser structure than this (stain, light, one dark blob) proves nothing
PATCH_CORRELATION: Final = 0.7  # of two landmarks' surroundings, under which their views are not laid over each other
SEARCH: Final = 3  # pixels of the view that the best fit may lie from where the landmarks meet
MIN_OVERLAP: Final = 0.33  # of the view's area that both crops must show
SMALLEST: Final = 0.5  # ratio of two crops' scales that is still tried
MIN_DISTANCE: Final = 12.0  # pixels of the view that two landmarks must lie apart to tell a scale
SCALE_BITS: Final = 5  # more that hashes may differ where two crops are of different size, and so of different scale in the view
HOPELESS: Final = 0.4  # correlation at the first meeting under which the others are not tried
MEETINGS: Final = 4  # of landmarks, the most that are tried for a pair of crops
_ROWS, _WORDS = 32, 16384  # hashes compared at a time: 4 MB, about a processor cache


@dataclass(frozen=True)
class Pair:
    """Two rows (positions in the measurements, first < second) that show the same piece of a smear. `correlation` of the fine
    structure where they overlap; `offset`: distance of the two crops' centres there, as a share of the crop's side."""

    first: int
    second: int
    correlation: float
    offset: float


def near_duplicates(measured: pd.DataFrame, max_bits: int, min_correlation: float) -> list[Pair]:
    """All pairs among the rows of `measured` (columns view, landmarks, hashes, width, height of `quality.measure`).

    `max_bits`: Hamming distance of two landmark hashes up to which the pixels of crops of one size are compared; where sizes
    differ, SCALE_BITS more. Every pair of landmarks is looked at, as 64-bit words: 10,000 crops take seconds, 100,000 minutes.
    """
    views = _Views(measured)
    pairs = []
    for (first, second), meetings in sorted(_proposals(views, max_bits).items()):
        correlation, offset = views.correlation(first, second, meetings)
        if correlation >= min_correlation:
            pairs.append(Pair(first, second, round(correlation, 3), round(offset, 3)))
    return pairs


Meeting = tuple[tuple[int, int], tuple[int, int]]  # (row, column) of a landmark in the first view and in the second


class _Views:
    """The measurements as arrays, and the fine structure of views, computed when first asked for."""

    def __init__(self, measured: pd.DataFrame) -> None:
        places = [np.frombuffer(data, np.uint8).reshape(-1, 2) for data in measured["landmarks"]]
        self.places: NDArray[np.uint8] = np.concatenate([*places, np.zeros((0, 2), np.uint8)])
        self.owner = np.repeat(np.arange(len(places)), [len(entry) for entry in places])
        self.starts = np.cumsum([0, *(len(entry) for entry in places)])
        self.hashes = np.frombuffer(b"".join(measured["hashes"]), np.uint64)
        self.views: list[bytes] = measured["view"].tolist()
        self.sizes: NDArray[np.float64] = measured[["height", "width"]].to_numpy(np.float64)
        self._details: dict[int, NDArray[np.float32]] = {}
        self.patches = np.concatenate([self._patches(row) for row in range(len(places))] or [np.zeros((0, 1), np.float16)])

    def detail(self, row: int) -> NDArray[np.float32]:
        if row not in self._details:
            view = np.frombuffer(self.views[row], np.uint8).reshape(VIEW, VIEW).astype(np.float32)
            self._details[row] = view - gaussian_filter(view, DETAIL_SIGMA)
        return self._details[row]

    def _patches(self, row: int) -> NDArray[np.float16]:
        """The normalised surroundings of a view's landmarks, float16 (n, pixels): a dot product is a correlation."""
        places = self.places[self.starts[row] : self.starts[row + 1]]
        if not len(places):
            return np.zeros((0, 4 * REACH * REACH), np.float16)
        cut = surroundings(self.detail(row), places)
        flat = cut.reshape(len(cut), -1)
        flat = flat - flat.mean(axis=1, keepdims=True)
        normalised: NDArray[np.float16] = (flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6)).astype(np.float16)
        return normalised

    def patch_correlations(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.float32]:
        """Correlations of the surroundings of pairs of landmarks, given by their numbers, float32 (n,)."""
        correlations: NDArray[np.float32] = np.einsum("np,np->n", self.patches[first], self.patches[second], dtype=np.float32)
        return correlations

    def correlation(self, first: int, second: int, meetings: list[Meeting]) -> tuple[float, float]:
        """Best correlation of the fine structure where landmarks meet, and the offset of the centres there.

        The second view is looked at as it is, at the crops' common scale where their sizes differ, and at the scale that
        the distance of two landmarks tells.
        """
        a, b = self.detail(first), self.detail(second)
        size = self.sizes[second] / self.sizes[first]
        scales = {(1.0, 1.0), (float(size[0]), float(size[1])), _told_scale(meetings)}
        best = (-1.0, 0.0)
        for down, right in sorted(scales, key=lambda scale: scale != (1.0, 1.0)):
            if min(down, right) < SMALLEST or max(down, right) > 1 / SMALLEST:
                continue
            shape = round(VIEW * down), round(VIEW * right)
            scaled = (
                b if shape == b.shape else zoom(b, (shape[0] / VIEW, shape[1] / VIEW), order=1, grid_mode=True, mode="nearest")
            )
            for here, (row, column) in meetings:
                there = round((row + 0.5) * down - 0.5), round((column + 0.5) * right - 0.5)
                best = max(best, _best_correlation(a, scaled, (here, there)))
                if best[0] < HOPELESS and size[0] == size[1] == 1:
                    return best
        return best


def _told_scale(meetings: list[Meeting]) -> tuple[float, float]:
    """How much larger the first view shows the distance of the two landmarks that lie farthest apart; 1 where too near."""
    told, farthest = 1.0, MIN_DISTANCE
    for place, (here, there) in enumerate(meetings):
        for other_here, other_there in meetings[place + 1 :]:
            distance, other_distance = dist(here, other_here), dist(there, other_there)
            if distance > farthest and other_distance > MIN_DISTANCE:
                told, farthest = distance / other_distance, distance
    return told, told


def _best_correlation(a: NDArray[np.float32], b: NDArray[np.float32], meeting: Meeting) -> tuple[float, float]:
    """Lay the landmarks over each other and climb to the best correlation near there."""
    (row, column), (other_row, other_column) = meeting
    down, right = row - other_row, column - other_column
    best = _correlation(a, b, down, right)
    for _ in range(SEARCH):
        around = [(down + y, right + x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        found, there = max((_correlation(a, b, *place), place) for place in around)
        if found <= best:
            break
        best, (down, right) = found, there
    apart = (b.shape[0] - a.shape[0]) / 2 + down, (b.shape[1] - a.shape[1]) / 2 + right
    return best, float(np.hypot(*apart)) / VIEW


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32], down: int, right: int) -> float:
    """Correlation of two views where they overlap when `b` is laid on `a` this far down and to the right; -1 where they
    hardly overlap."""
    top, bottom = max(0, down), min(a.shape[0], b.shape[0] + down)
    left, end = max(0, right), min(a.shape[1], b.shape[1] + right)
    if bottom <= top or end <= left or (bottom - top) * (end - left) < MIN_OVERLAP * VIEW * VIEW:
        return -1.0
    x = a[top:bottom, left:end].ravel()
    y = b[top - down : bottom - down, left - right : end - right].ravel()
    n = x.size
    covariance = float(x @ y) - float(x.sum()) * float(y.sum()) / n
    variances = (float(x @ x) - float(x.sum()) ** 2 / n) * (float(y @ y) - float(y.sum()) ** 2 / n)
    return covariance / variances**0.5 if variances > 1e-3 else -1.0


def _proposals(views: _Views, max_bits: int) -> dict[tuple[int, int], list[Meeting]]:
    """Pairs of crops with the landmarks that look alike, at most MEETINGS, the most alike first."""
    alike: dict[tuple[int, int], list[tuple[float, Meeting]]] = {}
    sizes = views.sizes[views.owner]
    mixed = len(np.unique(sizes, axis=0)) > 1
    for first, second, bits in _close_hashes(views.hashes, max_bits + SCALE_BITS * mixed):
        other_size = (sizes[first] != sizes[second]).any(axis=1)
        near = (bits <= max_bits) | other_size
        first, second = first[near], second[near]
        correlations = views.patch_correlations(first, second)
        chosen = (correlations >= PATCH_CORRELATION) & (views.owner[first] != views.owner[second])
        pairs = np.stack([views.owner[first], views.owner[second]], axis=1)[chosen].tolist()
        here, there = views.places[first[chosen]].tolist(), views.places[second[chosen]].tolist()
        for (a, b), correlation, (row, column), (other_row, other_column) in zip(
            pairs, correlations[chosen].tolist(), here, there, strict=True
        ):
            alike.setdefault((a, b), []).append((correlation, ((row, column), (other_row, other_column))))
    return {pair: [meeting for _, meeting in sorted(found, reverse=True)[:MEETINGS]] for pair, found in alike.items()}


def _close_hashes(hashes: NDArray[np.uint64], max_bits: int) -> Iterator[tuple[NDArray[np.intp], ...]]:
    """All pairs of positions (first < second) whose words differ in at most `max_bits` bits, with the number of bits, some
    thousands at a time."""
    for start in range(0, len(hashes), _ROWS):
        rows = hashes[start : start + _ROWS, None]
        for other in range(start, len(hashes), _WORDS):
            distances = np.bitwise_count(rows ^ hashes[None, other : other + _WORDS])
            first, second = np.nonzero(distances <= max_bits)
            bits = distances[first, second].astype(np.intp)
            first, second = first + start, second + other
            ordered = first < second
            yield first[ordered], second[ordered], bits[ordered]
