"""The canonical view: one cell, seen as every site would show it.

Sites differ in magnification, stain and lamp far more than their cells do. The view finds the nucleus by its stain, and cuts a
square whose side is a fixed multiple of the nucleus's radius. It undoes lamp and stain strength by Beer-Lambert's law:
transmitted light is divided by the background's, and a power takes the nucleus half the way to a standard density. It is pure
NumPy and Pillow: the service has it too.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMB: Final = 64  # the nucleus is sought at this size; its features are far larger than a pixel of it
FRAME: Final = 2.5  # half the side of the view in radii of gyration of the nucleus: a neutrophil's cytoplasm just fits
WHITE: Final = 245  # the grey value that the background becomes
DENSITY: Final = 1.0  # optical density (natural log, mean of red and green) that the nucleus becomes
POWER_SHARE: Final = 0.5  # of the way to that density: all of it makes a pale neutrophil as red as an eosinophil
MAX_POWER: Final = 1.6  # a pale nucleus is not made denser than this: it would be noise
MIN_DENSITY: Final = 0.15  # of what can be a nucleus at all; paler crops are background or red cells only
MIN_LIGHT: Final = 80  # grey value that empty smear has at least: darker is no smear but a cap on the lens or a black frame
MIN_AREA: Final = 8  # pixels of the thumbnail: less is a platelet or a speck
WINDOW: Final = 0.28  # of the side: the radius in which the search begins
COMPACT: Final = 0.4  # of the disk with the same radius of gyration that a nucleus fills at least, lobes and gaps together
BLACK: Final = 12  # rows and columns no brighter than this at the border are padding, not smear
PURE_WHITE: Final = 254  # and such that are nowhere darker than this: the smear's own white has noise, and red cells in it
BLACK_RIM: Final = 0.05  # of the pixels at the border; more that are black are the edge of a field of view, or a cut-out cell

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Nucleus:
    """Where the nucleus is: centre `x`, `y` and radius of gyration `radius` in pixels; its mean optical `density` (3,), RGB;
    and the colour of the light beside it, `background` (3,), RGB, 0..255."""

    x: float
    y: float
    radius: float
    density: Floats
    background: Floats


class Crop(NamedTuple):
    """An RGB crop, and the same small: uint8 (h, w, 3), `scale` of its size."""

    image: Image.Image
    small: NDArray[np.uint8]
    scale: float


def _with_thumbnail(image: Image.Image) -> Crop:
    scale = min(1.0, THUMB / max(image.size))
    size = max(8, round(image.width * scale)), max(8, round(image.height * scale))
    small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return Crop(image, np.asarray(small), scale)


def without_padding(image: Image.Image) -> Crop:
    """Cut off black or white rows and columns at the border, with which crops near the edge of a photograph are filled up. What
    is black there after that becomes background: outside a round field of view, or around a cell that was cut out."""
    return _without_black(_without_bars(_with_thumbnail(image)))


def _brightest(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    brightest: NDArray[np.uint8] = np.maximum(np.maximum(red, green), blue)  # five times as fast as over an axis of three
    return brightest


def _without_bars(whole: Crop) -> Crop:
    image, lit = whole.image, _brightest(whole.small) > BLACK
    red, green, blue = whole.small[..., 0], whole.small[..., 1], whole.small[..., 2]
    white = np.minimum(np.minimum(red, green), blue) >= PURE_WHITE
    rows = np.flatnonzero((lit.mean(axis=1) > 0.1) & ~white.all(axis=1))
    if len(rows) == 0:
        return whole
    inside = slice(rows[0], rows[-1] + 1)
    columns = np.flatnonzero((lit[inside].mean(axis=0) > 0.1) & ~white[inside].all(axis=0))
    if len(columns) == 0:  # a few bright rows far apart
        return whole
    height, width = lit.shape
    ends = [columns[0], rows[0], width - 1 - columns[-1], height - 1 - rows[-1]]
    if not any(ends):
        return whole
    cut = [int(np.ceil((end + 1) / whole.scale)) if end else 0 for end in ends]  # one more: the last row is a mixture
    box = cut[0], cut[1], image.width - cut[2], image.height - cut[3]
    return _with_thumbnail(image.crop(box)) if box[2] - box[0] >= 8 and box[3] - box[1] >= 8 else whole


def _without_black(crop: Crop) -> Crop:
    black = _brightest(crop.small) <= BLACK
    rim = np.concatenate([black[0], black[-1], black[:, 0], black[:, -1]])
    if rim.mean() <= BLACK_RIM or black.all():
        return crop
    pixels = np.array(crop.image)
    pixels[_brightest(pixels) <= BLACK] = background_colour(crop.small[~black][None]).round()
    return _with_thumbnail(Image.fromarray(pixels))


def background_colour(pixels: NDArray[np.uint8]) -> Floats:
    """The lamp's colour (3,) through empty smear, of uint8 (H, W, 3): the median of the 15 % of pixels with the most green
    light, since both haemoglobin and nuclei absorb green."""
    flat = pixels.reshape(-1, 3)
    brightest = np.argpartition(flat[:, 1], -max(1, len(flat) * 15 // 100))[-max(1, len(flat) * 15 // 100) :]
    colour: Floats = np.median(flat[brightest], axis=0).clip(MIN_LIGHT, 255).astype(np.float32)
    return colour


def optical_density(pixels: NDArray[np.uint8], background: Floats) -> Floats:
    """-log of the transmitted share of light, float32 of the shape of `pixels`, not below 0."""
    levels = np.arange(256, dtype=np.float32) + 1
    tables = -np.log(np.minimum(levels[:, None] / (background + 1), 1))
    return np.stack([tables[pixels[..., c], c] for c in range(3)], axis=-1)


def otsu_threshold(values: Floats, bins: int = 64) -> float:
    """The threshold that leaves the least variance within the two sides (Otsu 1979); the maximum where all are equal."""
    counts, edges = np.histogram(values, bins=bins)
    centres = (edges[1:] + edges[:-1]) / 2
    weight, moment = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    total, mean = counts.sum(), (counts * centres).sum() / counts.sum()
    between = (mean * weight - moment) ** 2 / np.maximum(weight * (total - weight), 1)
    return float(edges[1 + int(between.argmax())])


def _nuclear_stain(density: Floats) -> Floats:
    """How much of the stain of a nucleus a pixel holds: azure absorbs red, and with eosin green; neither absorbs blue as
    haemoglobin and eosinophil granules do."""
    stain: Floats = 0.5 * density[..., 0] + np.maximum(density[..., 1] - density[..., 2], 0)
    return stain


def _threshold(stain: Floats, central: NDArray[np.bool_]) -> float:
    """Above it a pixel is nucleus: Otsu's, raised where what is above it is red cells and nucleus together."""
    threshold = otsu_threshold(stain)
    above = stain[stain > threshold]
    if len(above) > 30:
        second = otsu_threshold(above, 32)
        dense, pale = above[above > second], above[above <= second]
        if len(dense) and len(pale) and dense.mean() > 1.6 * pale.mean():
            threshold = second
    return max(threshold, 0.5 * float(np.quantile(stain[central], 0.985)))


def find_nucleus(crop: Crop) -> Nucleus | None:
    """The nucleus of the cell that a crop is about, in pixels of its image, or None where nothing is stained like one."""
    background = background_colour(crop.small)
    if background.max() <= MIN_LIGHT:
        return None
    density = optical_density(crop.small, background)
    stain = _nuclear_stain(density)
    prior = _prior(*stain.shape)
    threshold = _threshold(stain, prior > 0.3)
    if threshold < MIN_DENSITY:
        return None
    mask = np.clip((stain - threshold) / (0.15 * threshold), 0, 1)
    place = _gyrate(mask, _densest(mask * prior))
    if place is None:
        return None
    centre_x, centre_y, radius, inside = place
    mean = (density * inside[..., None]).sum((0, 1)) / inside.sum()
    return Nucleus(centre_x / crop.scale, centre_y / crop.scale, radius / crop.scale, mean, background)


@lru_cache(maxsize=64)
def _prior(height: int, width: int) -> Floats:
    """How likely the nucleus is at each pixel: the crop is about its middle."""
    y, x = np.arange(height, dtype=np.float32)[:, None] + 0.5, np.arange(width, dtype=np.float32)[None] + 0.5
    prior: Floats = np.exp(-(((y / height - 0.5) / 0.45) ** 2) - ((x / width - 0.5) / 0.45) ** 2)
    prior.flags.writeable = False
    return prior


def _densest(weight: Floats) -> tuple[float, float]:
    """Centre (x, y) of the square of a tenth of the side that holds the most weight: where the search begins."""
    reach = max(2, max(weight.shape) // 20)
    side = 2 * reach + 1
    padded = np.zeros((weight.shape[0] + side, weight.shape[1] + side), weight.dtype)
    padded[reach + 1 : reach + 1 + weight.shape[0], reach + 1 : reach + 1 + weight.shape[1]] = weight
    sums = padded.cumsum(0).cumsum(1)
    squares = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    row, column = divmod(int(squares.argmax()), weight.shape[1])
    return column + 0.5, row + 0.5


def _gyrate(mask: Floats, start: tuple[float, float]) -> tuple[float, float, float, Floats] | None:
    """Centre, radius of gyration and mask of the stained body around `start`.

    Mean shift in a window that follows the radius, so that the lobes of one nucleus count together. Where the window has run
    away over darkly stained red cells, what it holds is scattered: then it is kept as small as it began.
    """
    rows, columns = np.nonzero(mask)
    weight, y, x = mask[rows, columns], rows + 0.5, columns + 0.5
    begin = WINDOW * max(mask.shape)
    for follow in (2.3, 0.0):
        (centre_x, centre_y), window = start, begin
        before = None
        for _ in range(8):
            near = (x - centre_x) ** 2 + (y - centre_y) ** 2 < window**2
            if before is not None and np.array_equal(near, before):
                break  # the same pixels give the same centre and radius again
            before = near
            w = weight[near]
            total = float(w.sum())
            if total < MIN_AREA:
                return None
            centre_x, centre_y = float((w * x[near]).sum() / total), float((w * y[near]).sum() / total)
            radius = float(np.sqrt((w * ((x[near] - centre_x) ** 2 + (y[near] - centre_y) ** 2)).sum() / total))
            window = max(follow * radius, 5.0) if follow else begin
        if total > COMPACT * 2 * np.pi * radius**2:  # a disk's radius of gyration is its radius by the root of two
            break
    inside = np.zeros_like(mask)
    inside[rows[near], columns[near]] = w
    return centre_x, centre_y, radius, inside


def canonical_view(image: Image.Image, size: int) -> tuple[NDArray[np.uint8], Nucleus | None]:
    """An upright RGB crop as uint8 (size, size, 3), and the nucleus that was found in it.

    Without a nucleus the view is the whole image, background balanced. What lies outside the crop is background.
    """
    crop = without_padding(image)
    image, nucleus = crop.image, find_nucleus(crop)
    if nucleus is None:
        half, x, y, power = max(image.size) / 2, image.width / 2, image.height / 2, 1.0
    else:
        half, x, y = FRAME * nucleus.radius, nucleus.x, nucleus.y
        to_standard = DENSITY / max(float(nucleus.density[:2].mean()), 1e-3)
        power = float(np.clip(to_standard**POWER_SHARE, 1 / MAX_POWER, MAX_POWER))
    box = max(x - half, 0.0), max(y - half, 0.0), min(x + half, image.width), min(y + half, image.height)
    corner = [round((box[i] - (x, y)[i % 2] + half) / (2 * half) * size) for i in range(4)]
    inner = max(1, corner[2] - corner[0]), max(1, corner[3] - corner[1])
    cell = image.resize(inner, Image.Resampling.BILINEAR, box=box, reducing_gap=None)
    background = background_colour(crop.small) if nucleus is None else nucleus.background
    view = cell.point(_light_table(background, power))
    if view.size != (size, size):  # the cell lies near the crop's edge
        cell, view = view, Image.new("RGB", (size, size), (WHITE,) * 3)
        view.paste(cell, (corner[0], corner[1]))
    return np.asarray(view), nucleus


def _light_table(background: Floats, power: float) -> list[int]:
    """Lookup table (768,) that divides each channel by the background and raises it to `power`."""
    share = np.arange(256, dtype=np.float32)[None] / background[:, None]
    table = WHITE * np.minimum(share, 1.04) ** power
    levels: list[int] = table.clip(0, 255).round().astype(int).ravel().tolist()
    return levels
