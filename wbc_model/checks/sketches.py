"""A glance at many proposed pairs at once, before their views are laid over each other one by one.

White cells on one stain have landmarks alike by the thousand. So of each crop a sketch is made: the fine structure of its view as
SIDE x SIDE means. Where two landmarks are laid over each other, the sketches of the same cell agree. Those of other cells seldom
do. A pair whose sketches disagree, at each of its landmarks, is no pair; decision 061 has the margin.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wbc_model.core.twins import (
    DETAIL_SIGMA,
    MIN_OVERLAP,
    SCALE_BITS,
    SEARCH,
    SMALLEST,
    VIEW,
    Crops,
    blurring,
    told_scale,
)
from wbc_model.spread import threads

BLOCK: Final = 4  # pixels of the view, the side of what one mean is taken of
SIDE: Final = VIEW // BLOCK
AGREEMENT: Final = 0.7  # correlation of two sketches under which crops of one size show different cells
SCALED_AGREEMENT: Final = 0.55  # the same at another scale, which is known less exactly
DOUBT: Final = 0.5  # the same under which no other scale is tried of crops of one size
_INSIDE: Final = VIEW - BLOCK + 1  # places of a block along one side of a view
_LOOKED_THROUGH: Final = 4096  # crops that are in memory with a mean at each pixel: 60 MB
_VIEWS_AT_A_TIME: Final = 256  # that are read in one step: 15 MB
_SKETCHED: Final = 4096  # crops whose sketches are in memory
_PAIRS_AT_A_TIME: Final = 2048

Numbers = NDArray[np.int32]
Positions = NDArray[np.int64]
Floats = NDArray[np.float32]


def agreeing(crops: Crops, first: Numbers, second: Numbers, fine: NDArray[np.bool_], max_bits: int) -> NDArray[np.int64]:
    """Of pairs of landmarks, by their numbers, the pairs of crops whose sketches agree at one of them: int64 (n, 2), each once.

    `fine`, bool (n,): whether a pair is looked at through the second crop's pixels. Else it is through the first one's. It costs
    least where these are few different crops.
    """
    near, far = np.where(fine, second, first), np.where(fine, first, second)
    order = np.lexsort((crops.owner[far], crops.owner[near] // _LOOKED_THROUGH))
    near, far = near[order], far[order]
    ends = np.flatnonzero(np.diff(crops.owner[near] // _LOOKED_THROUGH)) + 1
    found = [np.zeros((0, 2), np.int64)]
    with ThreadPoolExecutor(threads()) as pool:  # one for all: what a thread freed is of use to itself only
        for here, there in zip(np.split(near, ends), np.split(far, ends), strict=True):
            kept = np.concatenate([np.zeros(0, bool), *_agree(crops, here, there, max_bits, pool)])
            owners = np.stack([crops.owner[here[kept]], crops.owner[there[kept]]], axis=1).astype(np.int64)
            found.append(np.unique(np.sort(owners, axis=1), axis=0))
    return np.unique(np.concatenate(found), axis=0)


def _agree(crops: Crops, near: Numbers, far: Numbers, max_bits: int, pool: ThreadPoolExecutor) -> Iterator[NDArray[np.bool_]]:
    """Whether the sketches agree at these pairs of landmarks, some at a time; `far` is in order of the crops."""
    if not len(near):
        return
    looked, through = np.unique(crops.owner[near], return_inverse=True)
    means = _means_at_each_pixel(crops, looked)
    sketched = np.flatnonzero(np.diff(crops.owner[far], prepend=-1))
    for start in range(0, len(sketched), _SKETCHED):
        begin = sketched[start]
        end = sketched[start + _SKETCHED] if start + _SKETCHED < len(sketched) else len(far)
        owners, place = np.unique(crops.owner[far[begin:end]], return_inverse=True)
        sketches = _sketches(crops, owners)
        parts = [slice(at, min(at + _PAIRS_AT_A_TIME, end)) for at in range(begin, end, _PAIRS_AT_A_TIME)]

        def agree(part: slice, begin: int = begin, sketches: Floats = sketches, place: Positions = place) -> NDArray[np.bool_]:
            of_far = sketches[place[part.start - begin : part.stop - begin]]
            return _agreement(crops, near[part], far[part], means, through[part], of_far, max_bits)

        yield from pool.map(agree, parts)


def _agreement(
    crops: Crops, near: Numbers, far: Numbers, means: Floats, through: NDArray[np.intp], sketches: Floats, max_bits: int
) -> NDArray[np.bool_]:
    """The same of some pairs, at the scales at which their views would be laid over each other: as they are, at that of the
    crops' sizes, and at that which the distances of landmarks tell."""
    here, there = crops.places[near].astype(np.float32), crops.places[far].astype(np.float32)

    def agree_at(scale: NDArray[np.float64], some: NDArray[np.intp]) -> Floats:
        return _correlations(means, through[some], sketches[some], here[some], there[some], scale)

    size = crops.sizes[crops.owner[far]] / crops.sizes[crops.owner[near]]
    differ = (size != 1).any(axis=1)
    as_it_is = agree_at(np.ones_like(size), np.arange(len(near)))
    agree: NDArray[np.bool_] = as_it_is >= np.where(differ, SCALED_AGREEMENT, AGREEMENT)
    tried = (size.min(axis=1) >= SMALLEST) & (size.max(axis=1) <= 1 / SMALLEST)
    scaled = np.flatnonzero(differ & ~agree & tried)
    agree[scaled] = agree_at(size[scaled], scaled) >= SCALED_AGREEMENT
    told, scale = _told_scales(crops, near, far, np.flatnonzero(~agree & (differ | (as_it_is >= DOUBT))), max_bits)
    agree[told] = agree_at(scale, told) >= SCALED_AGREEMENT
    return agree


def _told_scales(
    crops: Crops, near: Numbers, far: Numbers, some: NDArray[np.intp], max_bits: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Which of `some` of these pairs of landmarks are of crops with several, whose distances tell a scale; and it, (n, 2)."""
    pairs = np.stack([crops.owner[near[some]], crops.owner[far[some]]], axis=1)
    pair, first, second = close_landmarks(crops, pairs, max_bits)
    starts = np.searchsorted(pair, np.arange(len(pairs) + 1))
    told, scales = [], []
    for place in np.flatnonzero(np.diff(starts) > 1).tolist():
        of_pair = slice(starts[place], starts[place + 1])
        here, there = crops.places[first[of_pair]].tolist(), crops.places[second[of_pair]].tolist()
        scale = told_scale([((a[0], a[1]), (b[0], b[1])) for a, b in zip(here, there, strict=True)])
        if scale != (1.0, 1.0) and SMALLEST <= scale[0] <= 1 / SMALLEST:
            told.append(place)
            scales.append(scale)
    return some[np.array(told, np.intp)], np.array(scales, np.float64).reshape(-1, 2)


def close_landmarks(crops: Crops, pairs: NDArray[Any], max_bits: int) -> tuple[Positions, Positions, Positions]:
    """All pairs of landmarks with close hashes of these pairs of crops, (n, 2): the number of the pair, ascending, and the
    landmarks' numbers."""
    owned = (crops.starts[pairs + 1] - crops.starts[pairs]).T  # of the first crops, and of the second ones
    each = owned[0] * owned[1]
    pair = np.repeat(np.arange(len(pairs)), each)
    at = np.arange(len(pair)) - np.repeat(np.cumsum(each) - each, each)
    first = crops.starts[pairs[pair, 0]] + at // owned[1][pair]
    second = crops.starts[pairs[pair, 1]] + at % owned[1][pair]
    other_size = (crops.sizes[pairs[:, 0]] != crops.sizes[pairs[:, 1]]).any(axis=1)
    close = np.bitwise_count(crops.hashes[first] ^ crops.hashes[second]) <= max_bits + SCALE_BITS * other_size[pair]
    return pair[close], first[close], second[close]


def _correlations(
    means: Floats, through: NDArray[np.intp], sketches: Floats, here: Floats, there: Floats, scale: NDArray[np.float64]
) -> Floats:
    """Correlations of sketches (n, SIDE * SIDE) with what lies under their blocks, where landmarks meet; -1 where the crops
    hardly overlap. `scale` (n, 2): pixels of the crop that is looked through for a pixel of the sketch's, down and across."""
    middles = BLOCK * np.arange(SIDE) + (BLOCK - 1) / 2
    step = scale.astype(np.float32)[:, :, None]
    starts = here[:, :, None] + step * (middles.astype(np.float32) - there[:, :, None]) - (BLOCK - 1) / 2
    places = np.rint(starts).astype(np.int32)  # (n, 2, SIDE)
    inside = (places >= 0) & (places < _INSIDE)
    places = np.clip(places, 0, _INSIDE - 1)
    under = inside[:, 0, :, None] & inside[:, 1, None, :]
    where = (through.astype(np.int32) * _INSIDE)[:, None] + places[:, 0]
    where = where[:, :, None] * _INSIDE + places[:, 1, None, :]
    weights = under.reshape(len(under), SIDE * SIDE).astype(np.float32)
    x = means.take(where.reshape(weights.shape)) * weights
    y = sketches * weights
    n = np.maximum(weights.sum(axis=1), 1)
    of_x, of_y = x.sum(axis=1), y.sum(axis=1)
    together = np.einsum("np,np->n", x, y) - of_x * of_y / n
    apart = (np.einsum("np,np->n", x, x) - of_x**2 / n) * (np.einsum("np,np->n", y, y) - of_y**2 / n)
    correlations: Floats = together / np.sqrt(np.maximum(apart, 1e-6))
    return np.where(_overlap(here, there, scale) < MIN_OVERLAP * VIEW * VIEW, -1, correlations).astype(np.float32)


def _overlap(here: Floats, there: Floats, scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixels of the view that both crops show where landmarks meet, or at most so many where they meet nearby."""
    top = here - scale * there
    sides = np.minimum(VIEW, top + scale * VIEW) - np.maximum(0, top) + SEARCH
    overlap: NDArray[np.float64] = np.clip(sides, 0, VIEW).prod(axis=1)
    return overlap


# --- the views of many crops ---------------------------------------------------------------------------------------------


def _means(crops: Crops, rows: Numbers, of_blocks: Floats) -> Floats:
    """Means of the fine structure of these crops' views, by the matrix that takes them along a side: float32 (n, means)."""
    coarse = of_blocks @ blurring(DETAIL_SIGMA).astype(np.float32)
    means = np.empty((len(rows), len(of_blocks) ** 2), np.float32)
    for start in range(0, len(rows), _VIEWS_AT_A_TIME):
        some = slice(start, start + _VIEWS_AT_A_TIME)
        views = crops.views[rows[some]].reshape(-1, VIEW, VIEW).astype(np.float32)
        of_some = of_blocks @ (views @ of_blocks.T) - coarse @ (views @ coarse.T)
        means[some] = of_some.reshape(len(views), -1)
    return means


def _sketches(crops: Crops, rows: Numbers) -> Floats:
    """Sketches of crops, float32 (n, SIDE * SIDE)."""
    return _means(crops, rows, np.kron(np.eye(SIDE), np.full(BLOCK, 1 / BLOCK)).astype(np.float32))


def _means_at_each_pixel(crops: Crops, rows: Numbers) -> Floats:
    """The mean of each block of the crops' fine structure, wherever it begins: float32 (n * _INSIDE * _INSIDE)."""
    start, pixel = np.mgrid[:_INSIDE, :VIEW]
    every = ((pixel >= start) & (pixel < start + BLOCK)).astype(np.float32) / BLOCK
    return _means(crops, rows, every).ravel()
