"""Knowing a cell again when the pixels differ: saved again, resized, brightened, photographed again, cut elsewhere.

White cells on one stain look much alike. A hash of the whole crop misses a crop that was cut a little to the side, or takes
different cells for one. So hashes only propose pairs, landmark by landmark, and pixels decide: the two grey views are laid over
each other where their landmarks meet, and must agree in their fine structure.

It is NumPy alone: the learner finds near-duplicates in its pools with it (wbc_model/checks/near_duplicates.py), and the service
the twins in a report.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from math import dist
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VIEW: Final = 64  # side of the small grey view, in pixels
LANDMARKS: Final = 8  # the most that are kept of a crop
MARGIN: Final = 8  # pixels of the view nearer to its edge than this hold no landmark
REACH: Final = 12  # a landmark's surroundings are the 2 * REACH pixels square around it
BITS: Final = 8  # Hamming distance of two landmarks' hashes up to which pixels are compared
CORRELATION: Final = 0.82  # of the fine structure of two views, from which on they show the same piece of a smear
DETAIL_SIGMA: Final = 4.0  # pixels of the view: coarser structure than this (stain, light, one dark blob) proves nothing
PATCH_CORRELATION: Final = 0.7  # of two landmarks' surroundings, under which their views are not laid over each other
SEARCH: Final = 3  # pixels of the view that the best fit may lie from where the landmarks meet
MIN_OVERLAP: Final = 0.33  # of the view's area that both crops must show
SMALLEST: Final = 0.5  # ratio of two crops' scales that is still tried
MIN_DISTANCE: Final = 12.0  # pixels of the view that two landmarks must lie apart to tell a scale
SCALE_BITS: Final = 5  # more that hashes may differ where two crops are of different size, and so of different scale in the view
HOPELESS: Final = 0.4  # correlation at the first meeting under which the others are not tried
MEETINGS: Final = 4  # of landmarks, the most that are tried for a pair of crops
TRIED: Final = 16  # earlier crops, the most that one cell's twin is looked for among pixel by pixel
DETAILS_KEPT: Final = 1024  # crops whose fine structure is kept, the last ones: 16 MB
PATCHES_KEPT: Final = 8192  # crops whose landmarks' surroundings are kept, the last ones: 75 MB
_FREQUENCIES: Final = sorted((row + column, row, column) for row in range(10) for column in range(10) if row + column)[:64]
_DCT_ROWS: Final = [row for _, row, _ in _FREQUENCIES]
_DCT_COLUMNS: Final = [column for _, _, column in _FREQUENCIES]
_SIZE_BYTES: Final = 4  # of a fingerprint: height and width, 16 bits each; then the view, and 10 bytes a landmark

T = TypeVar("T")
Floats = NDArray[np.float32]
Meeting = tuple[tuple[int, int], tuple[int, int]]  # (row, column) of a landmark in the first view and in the second
_Alike = tuple[float, Meeting]  # with how much the surroundings look alike


def small_view(grey: Image.Image) -> Image.Image:
    """The small grey view of a grey image, VIEW x VIEW."""
    return grey.resize((VIEW, VIEW), Image.Resampling.BOX)


def find_landmarks(view: Floats) -> NDArray[np.uint8]:
    """The strongest blobs (extrema of a difference of Gaussians) of a grey view (VIEW, VIEW): uint8 (n <= LANDMARKS, 2).

    They sit on nuclei, granules and red cells, and so move with the content when a crop is cut elsewhere.
    """
    blobs = np.abs(_blurred(view, 2.5) - _blurred(view, 5.0))
    peaks = (blobs == _highest_around(blobs)) & (blobs > 0.5)
    inside = np.zeros_like(peaks)
    inside[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    places = np.argwhere(peaks & inside)
    order = np.argsort(-blobs[places[:, 0], places[:, 1]], kind="stable")[:LANDMARKS]
    return places[order].astype(np.uint8)


def perceptual_hashes(view: Floats, landmarks: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A 64-bit hash per landmark, uint64 (n,): the signs of the lowest DCT coefficients of its surroundings."""
    if not len(landmarks):
        return np.zeros(0, np.uint64)
    cosines = _cosines(2 * REACH)
    coefficients = cosines @ surroundings(_blurred(view, 1.0), landmarks) @ cosines.T
    return np.ascontiguousarray(np.packbits(coefficients[:, _DCT_ROWS, _DCT_COLUMNS] > 0, axis=1)).view(np.uint64).ravel()


def surroundings(view: Floats, landmarks: NDArray[np.uint8]) -> Floats:
    """The squares around landmarks, float32 (n, 2 * REACH, 2 * REACH); beyond the edge the view is mirrored."""
    padded = np.pad(view, REACH, mode="reflect")
    return np.stack([padded[row : row + 2 * REACH, column : column + 2 * REACH] for row, column in landmarks.astype(int)])


@cache
def blurring(sigma: float) -> NDArray[np.float64]:
    """The matrix that blurs a column of the view by a Gaussian out to 4 sigma, mirrored at the edge."""
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    mirrored = np.pad(np.eye(VIEW), ((reach, reach), (0, 0)), mode="symmetric")
    steps = enumerate(weights / weights.sum())
    matrix: NDArray[np.float64] = np.sum([weight * mirrored[step : step + VIEW] for step, weight in steps], axis=0)
    return matrix


def _blurred(view: Floats, sigma: float) -> Floats:
    matrix = blurring(sigma)
    return (matrix @ view @ matrix.T).astype(np.float32)


def _highest_around(values: Floats) -> Floats:
    """The maximum of the 5 x 5 pixels around each."""
    padded = np.pad(values, 2, mode="edge")
    rows = np.max([padded[step : step + VIEW] for step in range(5)], axis=0)
    highest: Floats = np.max([rows[:, step : step + VIEW] for step in range(5)], axis=0)
    return highest


@cache
def _cosines(size: int) -> NDArray[np.float64]:
    """The matrix of the discrete cosine transform (type II, unscaled) of `size` values."""
    place = np.arange(size)
    matrix: NDArray[np.float64] = np.cos(np.pi / size * (place[None] + 0.5) * place[:, None])
    return matrix


@cache
def _stretching(size: int) -> NDArray[np.float64]:
    """The matrix (size, VIEW) that stretches a column of the view to `size` pixels, linearly."""
    places = np.clip((np.arange(size) + 0.5) * VIEW / size - 0.5, 0, VIEW - 1)
    below = np.minimum(places.astype(int), VIEW - 2)
    matrix = np.zeros((size, VIEW))
    matrix[np.arange(size), below] = 1 - (places - below)
    matrix[np.arange(size), below + 1] = places - below
    return matrix


# --- fingerprints: what the service keeps of a cell to know it again ------------------------------------------------------


def fingerprint(image: Image.Image, scale: float = 1.0) -> bytes:
    """What a decoded image is known again by, about 4 kB. `scale`: its pixels for each pixel of the file, where it was decoded
    at less than its size."""
    small = small_view(image.convert("L"))
    view = np.asarray(small, dtype=np.float32)
    landmarks = find_landmarks(view)
    size = np.array([round(image.height / scale), round(image.width / scale)], "<u2").tobytes()
    return size + small.tobytes() + landmarks.tobytes() + perceptual_hashes(view, landmarks).astype("<u8").tobytes()


def _crops(fingerprints: Sequence[bytes]) -> "Crops":
    start = _SIZE_BYTES + VIEW * VIEW
    counts = [(len(data) - start) // 10 for data in fingerprints]  # 2 bytes of place, 8 of hash
    landmarks = b"".join(data[start : start + 2 * count] for data, count in zip(fingerprints, counts, strict=True))
    hashes = b"".join(data[start + 2 * count :] for data, count in zip(fingerprints, counts, strict=True))
    return Crops(
        np.frombuffer(b"".join(data[_SIZE_BYTES:start] for data in fingerprints), np.uint8).reshape(-1, VIEW * VIEW),
        np.frombuffer(landmarks, np.uint8).reshape(-1, 2),
        np.frombuffer(hashes, "<u8"),
        np.array(counts, np.int64),
        np.array([np.frombuffer(data, "<u2", 2) for data in fingerprints], np.float64).reshape(-1, 2),
    )


def twins_of(fingerprints: Sequence[bytes], earlier: Sequence[bytes] = ()) -> list[int | None]:
    """For each fingerprint the place of one that shows the same cell, among `earlier` and those before it here: a position in
    `[*earlier, *fingerprints]`, None where there is none.

    Of each, only the TRIED most alike are laid over it, so that images made to look alike cost no more than others.
    """
    crops = _crops([*earlier, *fingerprints])
    return [_twin(crops, place) for place in range(len(earlier), len(crops.views))]


def _twin(crops: "Crops", place: int) -> int | None:
    """The position of a crop before this one that shows the same cell."""
    start, end = crops.starts[place], crops.starts[place + 1]
    distances = np.bitwise_count(crops.hashes[:start, None] ^ crops.hashes[None, start:end])
    other_size = (crops.sizes[crops.owner[:start]] != crops.sizes[place]).any(axis=1)
    first, second = np.nonzero(distances <= BITS + SCALE_BITS * other_size[:, None])
    landmarks = np.bincount(crops.owner[first], minlength=place)
    tried = np.argsort(-landmarks, kind="stable")[:TRIED]  # of those alike, the first
    among = np.isin(crops.owner[first], tried[landmarks[tried] > 0])
    proposed = meetings(crops, [(first[among], second[among] + start)])
    for (other, _), similar in sorted(proposed.items(), key=lambda entry: -landmarks[entry[0][0]]):
        if crops.correlation(other, place, similar)[0] >= CORRELATION:
            return other
    return None


# --- crops that are compared -----------------------------------------------------------------------------------------------


class Views(Protocol):
    """The views of crops, in memory or read when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[np.uint8]:
        """The pixels of one view, by its number, uint8 (VIEW * VIEW,); or of those at an array of numbers, (n, VIEW * VIEW)."""


class Crops:
    """Measured crops as arrays; the fine structure of their views is computed when it is asked for.

    `views`: the pixels of each crop's view. The landmarks of all crops, one crop after the other: `places` uint8 (m, 2), `hashes`
    uint64 (m,), and `counts` int64 (n,), how many each crop has. `sizes` float64 (n, 2): height and width in pixels.
    """

    def __init__(
        self,
        views: Views,
        places: NDArray[np.uint8],
        hashes: NDArray[np.uint64],
        counts: NDArray[np.int64],
        sizes: NDArray[np.float64],
    ) -> None:
        self.views, self.places, self.hashes, self.sizes = views, places, hashes, sizes
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._details: OrderedDict[int, Floats] = OrderedDict()
        self._patches: OrderedDict[int, NDArray[np.float16]] = OrderedDict()

    def detail(self, row: int) -> Floats:
        """The fine structure of a crop's view, float32 (VIEW, VIEW)."""
        return _remembered(self._details, row, DETAILS_KEPT, self._computed_detail)

    def _computed_detail(self, row: int) -> Floats:
        view = self.views[row].reshape(VIEW, VIEW).astype(np.float32)
        return view - _blurred(view, DETAIL_SIGMA)

    def _patches_of(self, row: int) -> NDArray[np.float16]:
        """The normalised surroundings of a view's landmarks: a dot product of two is a correlation."""
        return _remembered(self._patches, row, PATCHES_KEPT, self._computed_patches)

    def _computed_patches(self, row: int) -> NDArray[np.float16]:
        cut = surroundings(self._computed_detail(row), self.places[self.starts[row] : self.starts[row + 1]])
        flat = cut.reshape(len(cut), -1)
        flat = flat - flat.mean(axis=1, keepdims=True)
        patches: NDArray[np.float16] = (flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6)).astype(np.float16)
        return patches

    def patch_correlations(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> Floats:
        """Correlations of the surroundings of pairs of landmarks, given by their numbers, float32 (n,)."""
        if not len(first):
            return np.zeros(0, np.float32)
        owners, place = np.unique(self.owner[np.concatenate([first, second])], return_inverse=True)
        patches = np.concatenate([self._patches_of(row) for row in owners.tolist()])
        counts = self.starts[owners + 1] - self.starts[owners]
        moved = (np.cumsum(counts) - counts - self.starts[owners])[place]
        correlations: Floats = np.einsum(
            "np,np->n", patches[first + moved[: len(first)]], patches[second + moved[len(first) :]], dtype=np.float32
        )
        return correlations

    def correlation(self, first: int, second: int, meetings: list[Meeting]) -> tuple[float, float]:
        """Best correlation of the fine structure where landmarks meet, and the offset of the centres there.

        The second view is taken as it is, and at the scale that the distance of two landmarks tells. Where the crops' sizes
        differ it is taken at their common scale too.
        """
        a, b = self.detail(first), self.detail(second)
        size = self.sizes[second] / self.sizes[first]
        scales = {(1.0, 1.0), (float(size[0]), float(size[1])), told_scale(meetings)}
        best = (-1.0, 0.0)
        for down, right in sorted(scales, key=lambda scale: scale != (1.0, 1.0)):
            if min(down, right) < SMALLEST or max(down, right) > 1 / SMALLEST:
                continue
            shape = round(VIEW * down), round(VIEW * right)
            scaled = b if shape == b.shape else (_stretching(shape[0]) @ b @ _stretching(shape[1]).T).astype(np.float32)
            for here, (row, column) in meetings:
                there = round((row + 0.5) * down - 0.5), round((column + 0.5) * right - 0.5)
                best = max(best, _best_correlation(a, scaled, (here, there)))
                if best[0] < HOPELESS and size[0] == size[1] == 1:
                    return best
        return best


def _remembered(kept: "OrderedDict[int, T]", row: int, most: int, compute: Callable[[int], T]) -> T:
    """What is computed of a row; that of the last rows, `most` of them, is kept."""
    if row in kept:
        kept.move_to_end(row)
    else:
        kept[row] = compute(row)
        if len(kept) > most:
            kept.popitem(last=False)
    return kept[row]


def told_scale(meetings: list[Meeting]) -> tuple[float, float]:
    """How much larger the first view shows the distance of the two landmarks that lie farthest apart; 1 where too near."""
    told, farthest = 1.0, MIN_DISTANCE
    for place, (here, there) in enumerate(meetings):
        for other_here, other_there in meetings[place + 1 :]:
            distance, other_distance = dist(here, other_here), dist(there, other_there)
            if distance > farthest and other_distance > MIN_DISTANCE:
                told, farthest = distance / other_distance, distance
    return told, told


def _best_correlation(a: Floats, b: Floats, meeting: Meeting) -> tuple[float, float]:
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


def _correlation(a: Floats, b: Floats, down: int, right: int) -> float:
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


def meetings(
    crops: Crops, landmarks: Iterable[tuple[NDArray[np.intp], NDArray[np.intp]]]
) -> dict[tuple[int, int], list[Meeting]]:
    """Of pairs of landmarks, by their numbers: the pairs of crops with those that look alike, at most MEETINGS, the most alike
    first."""
    found: dict[tuple[int, int], list[_Alike]] = {}
    for first, second in landmarks:
        for pair, similar in _landmarks_alike(crops, first, second):
            found.setdefault(pair, []).append(similar)
    return {pair: [meeting for _, meeting in sorted(similar, reverse=True)[:MEETINGS]] for pair, similar in found.items()}


def _landmarks_alike(crops: Crops, first: NDArray[np.intp], second: NDArray[np.intp]) -> Iterator[tuple[tuple[int, int], _Alike]]:
    """Of pairs of landmarks those of two crops with surroundings that look alike: the crops, how much alike, and where."""
    correlations = crops.patch_correlations(first, second)
    chosen = (correlations >= PATCH_CORRELATION) & (crops.owner[first] != crops.owner[second])
    pairs = np.stack([crops.owner[first], crops.owner[second]], axis=1)[chosen].tolist()
    here, there = crops.places[first[chosen]].tolist(), crops.places[second[chosen]].tolist()
    for (a, b), correlation, place, other in zip(pairs, correlations[chosen].tolist(), here, there, strict=True):
        yield (a, b), (correlation, ((place[0], place[1]), (other[0], other[1])))
