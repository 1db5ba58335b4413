"""Pairs among many crops that show the same piece of a smear: every pair whose landmarks' hashes are close is looked at.

Multi-index hashing (Norouzi, Punjani, Fleet 2012): two words of 64 bits that differ in few bits differ in fewer still in one of
their parts. So each part has a table, and a word looks into its bucket there and into the buckets near it. No pair is missed, and
next to nothing is compared that is no pair.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from math import comb
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wbc_model.checks.sketches import agreeing, close_landmarks
from wbc_model.core.twins import SCALE_BITS, VIEW, Crops, meetings

WORD: Final = 64  # bits of a hash
_FEWEST: Final = 3  # parts: a table of the places of 2**22 buckets takes 16 MB, one of 2**32 would take 16 GB
_PROBE, _CANDIDATE = 20.0, 24.0  # nanoseconds of looking into a bucket, and of an entry in it; measured, hashes are not uniform
_AT_A_TIME: Final = 300_000  # buckets and pairs that are looked at in one step: 15 MB
_KEYS_AT_A_TIME: Final = 1 << 18  # words that keys are made of in one step: 5 MB
_BUCKETS_AT_A_TIME: Final = 1 << 18  # that are counted in one step: 2 MB
_GATHERED: Final = 8_000_000  # pairs of landmarks whose crops are looked at in one go: 64 MB
_PAIRS_AT_A_TIME: Final = 1_024  # crops that are laid over each other after their landmarks are compared

Places = NDArray[np.int64]
Numbers = NDArray[np.int32]
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Pair:
    """Two crops (by their positions, first < second) that show the same piece of a smear. `correlation` of the fine structure
    where they overlap; `offset`: distance of the two crops' centres there, as a share of the crop's side."""

    first: int
    second: int
    correlation: float
    offset: float


def near_duplicates(measured: pd.DataFrame, max_bits: int, min_correlation: float) -> list[Pair]:
    """All pairs among the rows of `measured` (view, landmarks, hashes, width, height of `quality.measure`), as `alike`."""
    landmarks = np.frombuffer(b"".join(measured["landmarks"]), np.uint8).reshape(-1, 2)
    hashes = np.frombuffer(b"".join(measured["hashes"]), np.uint64)
    counts = measured["hashes"].map(len).to_numpy(np.int64) // 8
    sizes = measured[["height", "width"]].to_numpy(np.float64)
    views = np.frombuffer(b"".join(measured["view"]), np.uint8).reshape(-1, VIEW * VIEW)
    return alike(Crops(views, landmarks, hashes, counts, sizes), max_bits, min_correlation)


def alike(crops: Crops, max_bits: int, min_correlation: float, new: NDArray[np.bool_] | None = None) -> list[Pair]:
    """All pairs of crops that show the same; of which at least one is `new`, bool (n,), where that is given.

    `max_bits`: Hamming distance of two landmark hashes up to which the pixels of crops of one size are compared; where sizes
    differ, SCALE_BITS more.
    """
    new = np.ones(len(crops.views), bool) if new is None else new
    likely = [np.zeros((0, 2), np.int64)]
    for first, second in _gathered(_close_landmarks(crops, max_bits, np.flatnonzero(new[crops.owner]).astype(np.int32))):
        likely.append(agreeing(crops, first, second, new[crops.owner[second]], max_bits))
    proposed = np.unique(np.concatenate(likely), axis=0)
    pairs = []
    for start in range(0, len(proposed), _PAIRS_AT_A_TIME):
        _, *landmarks = close_landmarks(crops, proposed[start : start + _PAIRS_AT_A_TIME], max_bits)
        for (one, other), similar in sorted(meetings(crops, [(landmarks[0], landmarks[1])]).items()):
            correlation, offset = crops.correlation(one, other, similar)
            if correlation >= min_correlation:
                pairs.append(Pair(one, other, round(correlation, 3), round(offset, 3)))
    return pairs


def _close_landmarks(crops: Crops, max_bits: int, asked: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Pairs of landmarks of two crops with close hashes, many at a time."""
    size, sizes = pd.factorize(crops.sizes[:, 0] * 2.0**32 + crops.sizes[:, 1])  # both are whole numbers
    mixed = len(sizes) > 1
    for first, second, bits in close_pairs(crops.hashes, asked, max_bits + SCALE_BITS * mixed):
        one, other = crops.owner[first], crops.owner[second]
        kept = (one != other) & ((bits <= max_bits) | (size[one] != size[other]))
        yield first[kept].astype(np.int32), second[kept].astype(np.int32)


def _gathered(pairs: Iterable[tuple[Numbers, Numbers]]) -> Iterator[tuple[Numbers, Numbers]]:
    """The same pairs, as many at a time as memory is spent on."""
    waiting: list[tuple[Numbers, Numbers]] = []
    count = 0
    for pair in itertools.chain(pairs, [None]):
        if pair is not None:
            waiting.append(pair)
            count += len(pair[0])
        if count >= _GATHERED or (pair is None and count):
            first, second = zip(*waiting, strict=True)
            waiting, count = [], 0
            yield np.concatenate(first), np.concatenate(second)


# --- words that differ in few bits ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """Some bits of a shuffled word, and in how many of them two words may differ that meet in its table."""

    shift: int
    width: int
    radius: int

    @cached_property
    def mask(self) -> np.uint64:
        """Which bits of a word these are, before it is shuffled."""
        bits: Words = np.uint64(1) << np.arange(WORD, dtype=np.uint64)
        return np.uint64(np.bitwise_or.reduce(bits[self.keys(bits) > 0]))

    def keys(self, words: Words) -> NDArray[np.uint32]:
        """The bits of these words as numbers, byte by byte from tables."""
        keys = np.zeros(len(words), np.uint32)
        for start in range(0, len(words), _KEYS_AT_A_TIME):
            some = slice(start, start + _KEYS_AT_A_TIME)
            of_bytes = words[some].view(np.uint8).reshape(-1, WORD // 8)
            for byte, table in enumerate(self._tables):
                keys[some] |= table[of_bytes[:, byte]]
        return keys

    @cached_property
    def _tables(self) -> list[NDArray[np.uint32]]:
        """What each value of each byte of a word gives to its key."""
        own = np.uint64((1 << self.width) - 1)
        tables = []
        for byte in range(WORD // 8):
            values = np.zeros((256, WORD // 8), np.uint8)
            values[:, byte] = np.arange(256)
            tables.append(((_shuffled(values.view(np.uint64).ravel()) >> np.uint64(self.shift)) & own).astype(np.uint32))
        return tables


def close_pairs(words: Words, asked: Numbers | Places, max_bits: int) -> Iterator[tuple[Numbers, Numbers, NDArray[np.uint8]]]:
    """All pairs of positions (first < second) of which one is `asked`, and whose words differ in at most `max_bits` bits; each
    once, with the number of bits, many at a time."""
    is_asked = np.zeros(len(words), bool)
    is_asked[asked] = True
    del asked
    parts = _parts(len(words), max_bits)
    for number, part in enumerate(parts):
        for first, second, difference in _met(words, is_asked, part, max_bits):
            kept = np.ones(len(first), bool)
            for before in parts[:number]:  # found in its table
                kept &= np.bitwise_count(difference & before.mask) > before.radius
            yield first[kept], second[kept], np.bitwise_count(difference[kept])


def _met(words: Words, is_asked: NDArray[np.bool_], part: _Part, max_bits: int) -> Iterator[tuple[Numbers, Numbers, Words]]:
    """The close pairs that meet in the table of a part, each once, with the bits in which they differ."""
    keys, order = _in_buckets(part.keys(words), is_asked)
    words, is_asked = words[order], is_asked[order]
    for run in _near(keys, is_asked, part):
        first, second = run.close(words, max_bits)
        kept = (first < second) | ~is_asked[second]
        first, second = first[kept], second[kept]
        one, other = order[first], order[second]
        yield np.minimum(one, other), np.maximum(one, other), words[first] ^ words[second]


@dataclass(frozen=True)
class _Runs:
    """Pairs of each of the positions `firsts` with the `times` positions from `seconds` on; int32 (n,)."""

    firsts: Numbers
    seconds: Numbers
    times: Numbers

    def close(self, words: Words, max_bits: int) -> tuple[Numbers, Numbers]:
        """Those of the pairs whose words differ in at most so many bits. Little is made of the others: there are thousands of
        times as many."""
        ends = np.cumsum(self.times, dtype=np.int32)
        second = np.arange(ends[-1], dtype=np.int32)
        second += np.repeat(self.seconds - (ends - self.times), self.times)
        difference = np.repeat(words[self.firsts], self.times)
        difference ^= words[second]
        found = np.flatnonzero(np.bitwise_count(difference) <= max_bits)
        return self.firsts[np.searchsorted(ends, found, side="right")], second[found]


def _in_buckets(keys: NDArray[np.uint32], asked: NDArray[np.bool_]) -> tuple[NDArray[np.uint32], Numbers]:
    """The keys in ascending order, of equal ones the asked first, and the positions that they had."""
    packed = keys.astype(np.uint64)
    del keys
    packed <<= np.uint64(1)
    packed |= ~asked
    packed <<= np.uint64(31)
    packed |= np.arange(len(packed), dtype=np.uint32)
    packed.sort()
    halves = packed.view(np.uint32).reshape(-1, 2)  # the low one first: such are the processors that this runs on
    return halves[:, 1].copy(), (halves[:, 0] & np.uint32(2**31 - 1)).view(np.int32)


def _near(keys: NDArray[np.uint32], asked: NDArray[np.bool_], part: _Part) -> Iterator[_Runs]:
    """Pairs of an asked position and one that is near it in this part, by the `keys` of words. These are in ascending order, and
    in each bucket the asked ones are first. Of two that are asked a pair comes once at least.

    Buckets are compared, not words. Where there are many words a bucket has several, and the next one looks into much the same
    buckets as this.
    """
    starts = _starts(keys, 1 << part.width)
    filled = starts[1:] > starts[:-1]
    asking, askers = np.unique(keys[asked], return_counts=True)
    del keys
    flips, all_ask = _flips(part.width, part.radius), bool(asked.all())
    step = max(1, _AT_A_TIME // len(flips))
    for place in range(0, len(asking), step):
        here = asking[place : place + step]
        buckets = here[:, None] ^ flips
        seen = filled[buckets]
        if all_ask:
            seen &= buckets >= here[:, None]  # the others are found from the other side
        who, flip = np.nonzero(seen)
        theirs, own = buckets[who, flip], here[who]
        firsts, seconds = starts[own], starts[theirs]
        times = starts[theirs + np.uint32(1)] - seconds
        counts = askers[place + who] * times
        for some in _slices(counts):
            yield _of_each(askers[place + who[some]], firsts[some], seconds[some], times[some])


def _starts(keys: NDArray[np.uint32], size: int) -> Numbers:
    """Where each bucket begins in the ascending `keys`, and the last one ends: (size + 1,)."""
    starts = np.zeros(size + 1, np.int32)
    for bucket in range(0, size, _BUCKETS_AT_A_TIME):
        end = min(bucket + _BUCKETS_AT_A_TIME, size)
        low, high = np.searchsorted(keys, np.array([bucket, end], np.uint32))
        counts = np.bincount(keys[low:high] - np.uint32(bucket), minlength=end - bucket)
        starts[bucket + 1 : end + 1] = low + np.cumsum(counts)
    return starts


def _of_each(askers: Places, firsts: Numbers, seconds: Numbers, times: Numbers) -> _Runs:
    """The same runs for each of the `askers` that lie in a bucket from `firsts` on."""
    first = np.arange(askers.sum(), dtype=np.int32)
    first += np.repeat((firsts - (np.cumsum(askers) - askers)).astype(np.int32), askers)
    return _Runs(first, np.repeat(seconds, askers), np.repeat(times, askers))


def _slices(counts: Places) -> Iterator[slice]:
    """Runs of buckets with about as many entries as are looked at in one step."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(_AT_A_TIME, total, _AT_A_TIME))
    for start, end in itertools.pairwise([0, *cuts.tolist(), len(counts)]):
        if start < end:
            yield slice(start, end)


def _shuffled(words: Words) -> Words:
    """Words with their bits in another order, the same in all: neighbouring coefficients have much in common, and so each part
    has some of all."""
    order = np.random.default_rng(0).permutation(WORD)
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, WORD // 8), axis=1)
    shuffled: Words = np.packbits(bits[:, order].copy(), axis=1).copy().view(np.uint64).ravel()
    return shuffled


@cache
def _flips(width: int, radius: int) -> NDArray[np.uint32]:
    """All numbers of `width` bits with at most `radius` of them set."""
    chosen = (bits for count in range(radius + 1) for bits in itertools.combinations(range(width), count))
    return np.array([sum(1 << bit for bit in bits) for bits in chosen], np.uint32)


def _parts(words: int, max_bits: int) -> list[_Part]:
    """How the bits of so many words are best divided."""
    divisions = [_divided(count, max_bits) for count in range(_FEWEST, max(_FEWEST, max_bits + 1) + 1)]

    def cost(parts: list[_Part]) -> float:
        probes = [(sum(comb(part.width, count) for count in range(part.radius + 1)), part.width) for part in parts]
        return float(sum(count * (_PROBE + _CANDIDATE * words / 2**width) for count, width in probes))

    return min(divisions, key=cost)


def _divided(count: int, max_bits: int) -> list[_Part]:
    """`count` parts with the smallest radii that miss no pair: where all parts differ in more bits, the words do in more than
    `max_bits`."""
    ends = [WORD * number // count for number in range(count + 1)]
    radius, rest = divmod(max_bits, count)
    parts = []
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        limit = radius if number <= rest else radius - 1
        if limit >= 0:
            parts.append(_Part(start, end - start, limit))
    return parts
