"""Leukocytes drawn by the program, so that a demo and the tests run anywhere without a patient's image.

They are rendered, not real: good for showing that the pipeline works, never to be quoted for accuracy.

A picture is made as a microscope makes one. Every structure absorbs light: it has an optical density for red, green and blue.
The densities of what lies above each other add up, and the light that is left is `exp(-density)`. Lengths are micrometres until
the last moment, so that a magnification or another image size changes nothing but the scale. The five classes differ in what a
haematologist looks at (nucleus shape and lobes, chromatin, granules, cytoplasm, size); stain, focus, illumination, white
balance, magnification and the red cells are a property of the `Smear`.
"""

import csv
import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy.ndimage import gaussian_filter

from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.files import replace_directory, write_atomic
from wbc_model.rendering.anatomy import ANATOMY, Anatomy, Colour, Floats, Granules, polar, scattered

NOTICE: Final = "Rendered cells, drawn by a program, not real: never quote an accuracy measured on them."
# Like blood, but with the rare classes common enough for a small demo to learn them.
SHARES: Final[dict[str, float]] = {"Basophil": 0.08, "Eosinophil": 0.10, "Lymphocyte": 0.25, "Monocyte": 0.12, "Neutrophil": 0.45}
FIELD_UM: Final = 27.0  # side of a crop at magnification 1: a 13 um neutrophil fills half of it
SMEAR_CELLS: Final = (25, 40)
NEIGHBOUR_SHARE: Final = 0.05  # of the crops that show a part of another leukocyte at the border
FOLDER: Final = "rendered"

# Optical densities (red, green, blue) of a May-Gruenwald-Giemsa stain.
RED_CELL: Final = (0.20, 0.28, 0.24)
CHROMATIN: Final = (1.28, 1.90, 0.78)
PLATELET: Final = (0.55, 0.85, 0.28)


@dataclass(frozen=True)
class Smear:
    """One slide: all that its cells have in common. Draw one with `Smear.draw`.

    `magnification` scales the cells (1 is `FIELD_UM` to a crop); `focus_um` is the sigma of the blur; `light` is the colour of
    the empty background (0 to 1); `azure` and `eosin` are the strengths of the blue and the red dye; `tint` shifts every
    dye's colour; `red_cells` is their mean number in a crop's neighbourhood; `red_cell_seed` draws their shapes.
    """

    group: str
    magnification: float
    focus_um: float
    light: Colour
    shading: tuple[float, float]
    azure: float
    eosin: float
    tint: Colour
    noise: float
    red_cells: float
    pallor: float
    crenation: float
    platelets: float
    red_cell_seed: int

    @classmethod
    def draw(cls, seed: int, number: int) -> "Smear":
        """The smear of that number (0, 1, ...) in the series of `seed`; its group is `smear-NNNN`."""
        rng = np.random.default_rng((seed, 1, number))
        warm = rng.beta(0.8, 0.6)  # cream or blue-white background, few in between
        light = np.array([0.88 + 0.11 * warm, 0.88 + 0.03 * warm, 0.96 - 0.15 * warm])
        light *= rng.uniform(0.88, 1.0) * rng.normal(1, 0.012, 3)
        red, green, blue = (float(value) for value in np.clip(light, 0.6, 1.0))
        tint = np.exp(rng.normal(0, 0.06, 3))
        return cls(
            group=f"smear-{number:04d}",
            magnification=float(rng.uniform(0.86, 1.14)),
            focus_um=float(0.06 + 0.14 * rng.beta(1.2, 2.5)),
            light=(red, green, blue),
            shading=(float(rng.normal(0, 0.018)), float(rng.normal(0, 0.018))),
            azure=float(np.exp(rng.normal(0, 0.16))),
            eosin=float(np.exp(rng.normal(0, 0.2))),
            tint=(float(tint[0]), float(tint[1]), float(tint[2])),
            noise=float(rng.uniform(0.6, 2.2)),
            red_cells=float(rng.uniform(7, 24)),
            pallor=float(rng.uniform(0.35, 0.95)),
            crenation=float(max(0.0, rng.normal(-0.02, 0.03))),
            platelets=float(rng.gamma(1.5, 0.8)),
            red_cell_seed=int(rng.integers(2**31)),
        )


@dataclass(frozen=True)
class RenderedCell:
    """A drawn cell: `pixels` uint8 (size, size, 3), its class, the group id of its smear, and the truth about its anatomy.

    `cell` and `nucleus` are bool masks (size, size), `lobes` the number of nucleus lobes that were drawn.
    """

    pixels: NDArray[np.uint8]
    label: str
    smear: str
    cell: NDArray[np.bool_]
    nucleus: NDArray[np.bool_]
    lobes: int


# ---------------------------------------------------------------- drawing


@lru_cache(maxsize=16)
def _noise_field(grain_um: float, size: int) -> Floats:
    """Smooth periodic noise of mean 0 and standard deviation 1, four crops wide; windows of it texture the cells."""
    noise = np.random.default_rng(20).standard_normal((4 * size, 4 * size), dtype=np.float32)
    if grain_um > 0:
        noise = gaussian_filter(noise, grain_um * size / FIELD_UM, mode="wrap")
    return np.asarray((noise - noise.mean()) / noise.std(), dtype=np.float32)


def _noise(rng: np.random.Generator, grain_um: float, size: int, height: int, width: int) -> Floats:
    """A random window (height, width) of the noise field, mirrored or not."""
    noise = _noise_field(grain_um, size)
    top, left, turn = rng.integers((noise.shape[0] - height, noise.shape[1] - width, 4)).tolist()
    window = noise[top : top + height, left : left + width]
    return window[:: 1 - 2 * (turn & 1), :: 1 - (turn & 2)]


def _distance(discs: Floats, x: Floats, y: Floats) -> Floats:
    """Signed distance (um, negative inside) to the union of discs, on the grid of x (w,) and y (h,); exact near its border."""
    half = 0.5 / discs[:, 2:]
    columns = (x - discs[:, :1]) ** 2 * half - discs[:, 2:] / 2
    rows = (y - discs[:, 1:2]) ** 2 * half
    nearest = np.full((len(y), len(x)), 1e3, np.float32)
    one = np.empty_like(nearest)
    for row, column in zip(rows, columns, strict=True):
        np.add(row[:, None], column, out=one)
        np.minimum(nearest, one, out=nearest)
    return nearest


def _coverage(distance: Floats, scale: float) -> Floats:
    """How much of each pixel lies inside (0 to 1), from the signed distance in um and pixels per um."""
    inside = distance * np.float32(-scale)
    inside += 0.5
    return np.clip(inside, 0, 1, out=inside)


@lru_cache(maxsize=4)
def _red_cell_shapes(smear: Smear, size: int) -> list[Floats]:
    """The smear's red cells, each a square of optical density (1 is a normal ring)."""
    rng = np.random.default_rng(smear.red_cell_seed)
    scale = size / FIELD_UM * smear.magnification
    shapes = []
    for _ in range(14):
        radius = 3.7 * rng.normal(1, 0.07)
        half = int(radius * 1.25 * scale) + 2
        axis = np.arange(-half, half + 1, dtype=np.float32) / np.float32(scale * radius)
        x, y = axis[None, :] * np.float32(rng.uniform(0.94, 1.16)), axis[:, None]
        theta = np.arctan2(y, x)
        wobble = (
            1
            + 0.05 * rng.normal() * np.cos(2 * theta + rng.uniform(0, 7))
            + 0.03 * rng.normal() * np.cos(3 * theta + rng.uniform(0, 7))
        )
        wobble += smear.crenation * np.cos(int(rng.integers(9, 14)) * theta)
        rho = np.sqrt(x * x + y * y) / wobble
        hollow = np.clip(rng.normal(smear.pallor, 0.15), 0.1, 1.0) * np.exp(-((rho / rng.uniform(0.38, 0.58)) ** 3))
        rim = 0.16 * np.exp(-(((rho - 0.93) / 0.06) ** 2))
        shape = np.clip((1 - rho) * radius * scale + 0.5, 0, 1) * (0.8 + 0.2 * rho * rho - 0.85 * hollow + rim)
        shapes.append(shape.astype(np.float32))
    return shapes


def _red_cells(smear: Smear, rng: np.random.Generator, size: int, keep_out_um: float) -> Floats:
    """Optical density (size, size) of red cells scattered around, and hardly under, a leukocyte in the middle."""
    scale = size / FIELD_UM * smear.magnification
    shapes = _red_cell_shapes(smear, size)
    reach = size / 2 + 3 * scale
    count = int(rng.poisson(smear.red_cells))
    places = rng.uniform(-reach, reach, (count, 2))
    places = places[np.hypot(places[:, 0], places[:, 1]) > (keep_out_um + rng.uniform(1.9, 4.0, count)) * scale]
    canvas = np.zeros((size, size), np.float32)
    choices = rng.integers((len(shapes), 4), size=(len(places), 2)).tolist()
    for (x, y), (choice, turn) in zip((places + size / 2).astype(int).tolist(), choices, strict=True):
        shape = shapes[choice]
        shape = shape.T if turn & 1 else shape[::-1]
        half = len(shape) // 2
        top, left = y - half, x - half
        target = canvas[max(top, 0) : max(y + half + 1, 0), max(left, 0) : max(x + half + 1, 0)]
        seen = shape[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
        target += seen * (1 - 0.3 * target)  # where two lie above each other they are thinner
    return canvas


def _platelets(density: Floats, smear: Smear, rng: np.random.Generator, size: int, keep_out_um: float) -> None:
    """Small purple grains beside the leukocyte, added to `density` (3, size, size)."""
    scale = size / FIELD_UM * smear.magnification
    colour = _dyed(PLATELET, smear)
    for _ in range(int(rng.poisson(smear.platelets))):
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.3)
        away = (keep_out_um + rng.uniform(1.2, 9.0)) * scale
        window = _Window.around(size / 2 + away * np.cos(angle), size / 2 + away * np.sin(angle), 1.8 * radius, scale, size)
        if window is None:
            continue
        height, width = len(window.y), len(window.x)
        discs = scattered(rng, 2, 0.0, 0.5, (0.6 * radius, 0.9 * radius), radius)
        body = _coverage(_distance(discs, window.x, window.y), scale)
        body *= 0.8 + 0.3 * _noise(rng, 0.25, size, height, width)
        density[:, window.rows, window.columns] += body * colour


@dataclass(frozen=True)
class _Window:
    """The part of the crop that a body covers: slices into it, and the um from the body's centre of each column and row."""

    rows: slice
    columns: slice
    x: Floats
    y: Floats

    @classmethod
    def around(cls, x: float, y: float, reach_um: float, scale: float, size: int) -> "_Window | None":
        """The window around pixel position (x, y), clipped to the crop; None where nothing of it is inside."""
        reach = reach_um * scale
        left, right = max(0, int(x - reach)), min(size, int(x + reach) + 1)
        top, bottom = max(0, int(y - reach)), min(size, int(y + reach) + 1)
        if right - left < 1 or bottom - top < 1:
            return None
        columns = (np.arange(left, right, dtype=np.float32) - np.float32(x)) / np.float32(scale)
        rows = (np.arange(top, bottom, dtype=np.float32) - np.float32(y)) / np.float32(scale)
        return cls(slice(top, bottom), slice(left, right), columns, rows)


def _dyed(colour: Colour, smear: Smear, share: float = 1.0) -> Floats:
    """A dye's density in this smear, (3, 1, 1): how red the colour is decides how much of it is eosin and how much azure."""
    redness = min(1.0, colour[2] / (colour[0] + 1e-6) / 2)
    strength = share * (smear.azure * (1 - redness) + smear.eosin * redness)
    return (np.array(colour, np.float32) * np.array(smear.tint, np.float32) * np.float32(strength))[:, None, None]


def _granule_cover(rng: np.random.Generator, granules: Granules, radius: float, window: _Window, scale: float) -> Floats:
    """How much of each pixel in the window (0 to 1) is granule: points splashed, blurred and cut off."""
    height, width = len(window.y), len(window.x)
    places = polar(rng.uniform(0, 2 * np.pi, granules.count), 0.97 * radius * np.sqrt(rng.random(granules.count)))
    columns = ((places[:, 0] - window.x[0]) * scale).round().astype(np.intp)
    rows = ((places[:, 1] - window.y[0]) * scale).round().astype(np.intp)
    seen = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    weights = rng.uniform(0.45, 1.35, granules.count)[seen]
    points = np.bincount(rows[seen] * width + columns[seen], weights, height * width).astype(np.float32).reshape(height, width)
    sigma = max(0.6, 0.62 * granules.radius * scale)
    cover: Floats = gaussian_filter(points, sigma, truncate=2.5, mode="constant")
    cover *= 2 * np.pi * sigma**2 * 1.15
    cover -= 0.35
    return np.clip(cover, 0, 1, out=cover)


def _leukocyte(
    density: Floats, anatomy: Anatomy, smear: Smear, rng: np.random.Generator, x: float, y: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Draw a leukocyte centred at pixel (x, y) over what `density` (3, size, size) holds; masks of the cell and its nucleus."""
    size = density.shape[1]
    scale = size / FIELD_UM * smear.magnification
    masks = np.zeros((2, size, size), np.bool_)
    window = _Window.around(x, y, anatomy.radius * 1.12 + 1.2 + 0.5 * len(anatomy.bulges), scale, size)
    if window is None:
        return masks[0], masks[1]
    height, width = len(window.y), len(window.x)

    edge = _body(anatomy, rng, window)
    edge += anatomy.roughness * _noise(rng, 1.2, size, height, width)
    cell = _coverage(edge, scale)
    inner = _distance(anatomy.nucleus, window.x, window.y)
    inner += anatomy.folds * _noise(rng, 0.8, size, height, width)
    np.maximum(inner, edge + 0.35, out=inner)
    nucleus = _coverage(inner, scale)

    cytoplasm = 1 + anatomy.grain * _noise(rng, 0.3, size, height, width)
    if anatomy.rim:
        cytoplasm += anatomy.rim * np.clip(1 + edge / 1.2, 0, 1)
    if len(anatomy.vacuoles):
        cytoplasm *= 1 - 0.85 * _coverage(_distance(anatomy.vacuoles, window.x, window.y), scale)
    chromatin = 0.9 + anatomy.clumps * _noise(rng, 0.45, size, height, width) + 0.22 * np.clip(1 + inner / 0.5, 0, 1)
    if anatomy.lace:
        chromatin += anatomy.lace * (0.7 - np.minimum(np.abs(_noise(rng, 0.32, size, height, width)), 1.6))
    chromatin *= nucleus

    weight = np.exp(rng.normal(0, 0.1))
    body = (cytoplasm * (1 - nucleus)) * _dyed(_jittered(rng, anatomy.cytoplasm), smear, weight)
    body += chromatin * _dyed(_jittered(rng, CHROMATIN), smear, weight * anatomy.density)
    if anatomy.granules.count:
        grains = _granule_cover(rng, anatomy.granules, anatomy.radius, window, scale)
        grains *= 1 - (1 - anatomy.granules.cover) * nucleus
        body *= 1 - 0.6 * grains
        grains *= 0.85 + 0.22 * _noise(rng, 0.22, size, height, width)
        body += grains * _dyed(_jittered(rng, anatomy.granules.colour), smear, weight)
    part = density[:, window.rows, window.columns]
    part *= 1 - 0.97 * cell
    body *= cell
    part += body
    masks[0, window.rows, window.columns] = cell > 0.5
    masks[1, window.rows, window.columns] = nucleus > 0.5
    return masks[0], masks[1]


def _body(anatomy: Anatomy, rng: np.random.Generator, window: _Window) -> Floats:
    """Signed distance (um) to the cell's outline before it is roughened: an ellipse and its bulges."""
    angle = rng.uniform(0, np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, across = np.float32(anatomy.radius / anatomy.aspect**0.5), np.float32(anatomy.radius * anatomy.aspect**0.5)
    u = (window.y * (sine / along))[:, None] + window.x * (cosine / along)
    v = (window.y * (cosine / across))[:, None] - window.x * (sine / across)
    edge: Floats = (np.sqrt(u * u + v * v) - 1) * np.float32(anatomy.radius)
    if len(anatomy.bulges):
        np.minimum(edge, _distance(anatomy.bulges, window.x, window.y), out=edge)
    return edge


def _jittered(rng: np.random.Generator, colour: Colour) -> Colour:
    red, green, blue = (np.array(colour) * np.exp(rng.normal(0, 0.07, 3))).tolist()
    return red, green, blue


def _photographed(density: Floats, smear: Smear, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The camera: light through the densities (3, size, size), uneven illumination, focus, noise; uint8 (size, size, 3)."""
    size = density.shape[1]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    across, down = (np.float32(value) for value in rng.normal(smear.shading, 0.015))
    illumination = (255 - 5 * axis**2 + 255 * down * axis)[:, None] + (255 * across * axis - 5 * axis**2)
    blur_um = smear.focus_um * float(np.exp(rng.normal(0, 0.3))) * (rng.uniform(2.0, 3.5) if rng.random() < 0.08 else 1.0)
    pixels = np.empty((size, size, 3), np.uint8)
    for channel in range(3):  # one at a time: what fits into the processor's cache is several times faster
        light = np.exp(-density[channel])
        light *= illumination
        light *= np.float32(smear.light[channel])
        _blur(light, blur_um * size / FIELD_UM * smear.magnification)
        light += np.float32(smear.noise) * _noise(rng, 0.0, size, size, size)
        pixels[:, :, channel] = np.clip(light, 0, 255, out=light)
    return pixels


def _blur(light: Floats, sigma: float) -> None:
    """Blur (size, size) in place by a Gaussian of `sigma` pixels, as passes of three taps: the blurs here are small, and
    this is several times faster than a general filter."""
    passes = max(1, int(np.ceil(sigma**2 / 0.5)))
    side = np.float32(sigma**2 / 2 / passes)
    scratch = np.empty_like(light)
    for _ in range(passes):
        for image, beside in ((light, scratch), (light.T, scratch.T)):
            np.add(image[2:], image[:-2], out=beside[1:-1])
            np.add(image[0], image[1], out=beside[0])
            np.add(image[-1], image[-2], out=beside[-1])
            beside *= side
            image *= 1 - 2 * side
            image += beside


def draw_cell(label: str, smear: Smear, rng: np.random.Generator, size: int = 128) -> RenderedCell:
    """Draw one leukocyte of class `label` in a crop of `size` x `size` pixels, with the truth about its anatomy.

    Raises WbcError for an unknown class or a size under 32.
    """
    if label not in ANATOMY:
        raise WbcError(f"cannot render the class {label!r}: it is none of {', '.join(CLASSES)}")
    _check_size(size)
    anatomy = ANATOMY[label](rng)
    density = _red_cells(smear, rng, size, anatomy.radius) * _dyed(RED_CELL, smear)
    _platelets(density, smear, rng, size, anatomy.radius)
    scale = size / FIELD_UM * smear.magnification
    if rng.random() < NEIGHBOUR_SHARE:
        other = ANATOMY[str(rng.choice(CLASSES))](rng)
        angle, away = rng.uniform(0, 2 * np.pi), (anatomy.radius + other.radius + rng.uniform(1.0, 3.0)) * scale
        away = max(away, size * 0.62)
        _leukocyte(density, other, smear, rng, size / 2 + away * np.cos(angle), size / 2 + away * np.sin(angle))
    x, y = size / 2 + rng.normal(0, 0.7, 2) * scale
    cell, nucleus = _leukocyte(density, anatomy, smear, rng, float(x), float(y))
    return RenderedCell(_photographed(density, smear, rng), label, smear.group, cell, nucleus, anatomy.lobes)


def _check_size(size: int) -> None:
    if size < 32:
        raise WbcError(f"cannot render cells of {size} pixels: at least 32 are needed to see a nucleus")


# ---------------------------------------------------------------- many cells


def _labels(count: int, shares: Mapping[str, float], rng: np.random.Generator) -> list[str]:
    """`count` labels in random order whose shares are as asked for, to the nearest cell (largest remainder)."""
    unknown = sorted(set(shares) - set(CLASSES))
    if unknown:
        raise WbcError(f"shares name {unknown[0]!r}, which is none of {', '.join(CLASSES)}")
    weights = np.array([float(shares.get(name, 0.0)) for name in CLASSES])
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() == 0:
        raise WbcError("the class shares must be finite, none below 0, and at least one above 0")
    exact = weights / weights.sum() * count
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: count - counts.sum()]] += 1
    return [CLASSES[index] for index in rng.permutation(np.repeat(np.arange(len(CLASSES)), counts))]


def render_cells(count: int, seed: int, size: int = 128, shares: Mapping[str, float] | None = None) -> Iterator[RenderedCell]:
    """Draw `count` cells, 25 to 40 to a smear; the same arguments give the same pixels.

    `shares` (class to weight, default `SHARES`) is met to the nearest cell. Raises WbcError for a negative count or seed, a
    size under 32, or shares that name an unknown class or make no sense.
    """
    if count < 0 or seed < 0:
        raise WbcError(f"cannot render {count} cells with seed {seed}: neither may be negative")
    _check_size(size)
    rng = np.random.default_rng((seed, 0))
    labels = _labels(count, SHARES if shares is None else shares, rng)
    return _drawn(labels, seed, size, rng)


def _drawn(labels: list[str], seed: int, size: int, rng: np.random.Generator) -> Iterator[RenderedCell]:
    number, left = -1, 0
    for index, label in enumerate(labels):
        if left == 0:
            number, left = number + 1, int(rng.integers(SMEAR_CELLS[0], SMEAR_CELLS[1] + 1))
            smear = Smear.draw(seed, number)
        left -= 1
        yield draw_cell(label, smear, np.random.default_rng((seed, 2, index)), size)


def _stranger(folder: Path, manifest: Path, readme: Path, images: Path) -> Path | None:
    """A file that `write_cells` would overwrite and did not write."""
    if folder.exists() and not folder.is_dir():
        return folder
    if readme.exists() and readme.read_bytes() != f"{NOTICE}\n".encode():
        return readme
    if not images.is_dir():
        return next((path for path in (images, manifest) if path.exists()), None)
    return next((path for path in sorted(images.iterdir()) if not path.name.startswith("rendered-")), None)


def write_cells(folder: Path, count: int, seed: int, shares: Mapping[str, float] | None = None, size: int = 128) -> Path:
    """Write PNG files and their `manifest.csv` (path, label, group) into `folder`; the manifest's path is returned.

    The images go into `folder/rendered`, every one says in its name and in its PNG text that it is rendered. A folder
    written before is replaced; the bytes are the same for the same arguments. Raises WbcError as `render_cells` does, and
    where `folder` holds a manifest or images that this function did not write.
    """
    manifest, readme, images = folder / "manifest.csv", folder / "README.txt", folder / FOLDER
    stranger = _stranger(folder, manifest, readme, images)
    if stranger is not None:
        raise WbcError(f"{stranger} is there and is not rendered: choose an empty folder for rendered cells")
    cells = render_cells(count, seed, size, shares)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f".{FOLDER}."))
    text = PngInfo()
    text.add_text("Source", "rendered")
    text.add_text("Comment", NOTICE)
    rows = io.StringIO()
    lines = csv.writer(rows, lineterminator="\n")
    lines.writerow(["path", "label", "group"])
    try:
        for index, cell in enumerate(cells):
            name = f"rendered-{cell.label.lower()}-{index:06d}.png"
            Image.fromarray(cell.pixels).save(temporary / name, pnginfo=text, compress_level=1)
            lines.writerow([f"{FOLDER}/{name}", cell.label, cell.smear])
        temporary.chmod(0o755)
        manifest.unlink(missing_ok=True)  # never beside images that it does not list
        replace_directory(temporary, images)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_atomic(readme, NOTICE + "\n")
    write_atomic(manifest, rows.getvalue())
    return manifest
