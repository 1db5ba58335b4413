"""What the five classes look like to a haematologist: size, nucleus and its lobes, chromatin, granules, cytoplasm.

Shapes are unions of discs, in micrometres around the cell's centre; colours are optical densities for red, green and blue
under a May-Gruenwald-Giemsa stain. `wbc_model.rendering.cells` draws them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Granules:
    """`count` grains of about `radius` um; `cover` is how far they hide the nucleus (0 under it, 1 on top of it)."""

    count: int
    radius: float
    colour: Colour
    cover: float = 0.0


@dataclass(frozen=True)
class Anatomy:
    """What one leukocyte looks like. Discs are float rows (x, y, radius) in um around the cell's centre."""

    radius: float
    nucleus: Floats
    lobes: int
    cytoplasm: Colour
    granules: Granules
    aspect: float = 1.0
    roughness: float = 0.15  # um by which the outline wanders
    folds: float = 0.15  # um by which the nucleus outline wanders
    bulges: Floats = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    vacuoles: Floats = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    density: float = 1.0  # of the chromatin
    clumps: float = 0.15  # coarse light and dark of the chromatin
    lace: float = 0.0  # fine network of the chromatin
    grain: float = 0.1  # texture of the cytoplasm
    rim: float = 0.0  # extra density of the cytoplasm at the cell's border


# ---------------------------------------------------------------- shapes


def _chain(points: NDArray[np.float64], radii: NDArray[np.float64]) -> NDArray[np.float64]:
    """Discs close enough along a polyline (n, 2) with given radii (n,) to look like one body; rows (x, y, radius)."""
    lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    count = max(2, int(lengths[-1] / (0.55 * radii.min())) + 1)
    at = np.linspace(0, lengths[-1], min(count, 14))
    return np.stack(
        [np.interp(at, lengths, points[:, 0]), np.interp(at, lengths, points[:, 1]), np.interp(at, lengths, radii)], 1
    )


def polar(angles: NDArray[np.float64], distances: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.stack([np.cos(angles) * distances, np.sin(angles) * distances], axis=1)


def _arc(rng: np.random.Generator, span: float, distance: float, thickness: float) -> NDArray[np.float64]:
    """A kidney (small span, thick) up to a horseshoe (large span, thin); radians and shares of the cell's radius."""
    angles = np.linspace(-span / 2, span / 2, 6)
    radii = thickness * rng.normal(1, 0.08, 6)
    radii[2:4] *= rng.uniform(0.75, 1.0)  # the bend is the thinnest place
    points = polar(angles, distance * rng.normal(1, 0.06, 6))
    points[:, 0] -= distance * rng.uniform(0.35, 0.75) * np.cos(span / 4)
    return _chain(points, radii)


def _lobed(rng: np.random.Generator, lobes: int, step: float, distance: float, size: float, strand: float) -> NDArray[np.float64]:
    """Lobes of radius `size`, `step` radians apart, joined by strands of radius `strand`; shares of the cell's radius."""
    angles = (np.arange(lobes) - (lobes - 1) / 2) * step + rng.normal(0, 0.13 * step, lobes)
    centres = polar(angles, distance * rng.uniform(0.75, 1.2, lobes))
    centres -= centres.mean(axis=0) * rng.uniform(0.2, 0.8)
    parts = [_strands(centres, strand)] if lobes > 1 else []
    for centre, angle in zip(centres, rng.uniform(0, np.pi, lobes), strict=True):
        reach = size * rng.uniform(0.1, 0.6) * np.array([np.cos(angle), np.sin(angle)])
        radii = size * rng.uniform(0.72, 1.08, 2)
        parts.append(_chain(np.stack([centre - reach, centre + reach]), radii))
    return np.concatenate(parts)


def _strands(centres: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Thin discs between neighbouring lobes; where the lobes are, none are needed."""
    along = np.linspace(0.2, 0.8, 7)[:, None]
    points = np.concatenate([start + along * (end - start) for start, end in pairwise(centres)])
    return np.column_stack([points, np.full(len(points), radius)])


def _placed(rng: np.random.Generator, discs: NDArray[np.float64], radius: float) -> Floats:
    """Turn discs by a random angle and scale them from shares of the cell's radius to um."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([discs[:, :2] @ turn.T, discs[:, 2:]], axis=1).astype(np.float32) * np.float32(radius)


def scattered(
    rng: np.random.Generator, count: int, inner: float, outer: float, radii: tuple[float, float], radius: float
) -> Floats:
    """Discs at random places between two distances from the centre (shares of `radius`), radii in um."""
    discs = np.empty((count, 3), np.float32)
    discs[:, :2] = polar(rng.uniform(0, 2 * np.pi, count), radius * rng.uniform(inner, outer, count))
    discs[:, 2] = rng.uniform(*radii, count)
    return discs


# ---------------------------------------------------------------- the five classes


def _basophil(rng: np.random.Generator) -> Anatomy:
    radius = rng.uniform(5.2, 6.9)
    washed_out = rng.random() < 0.25  # the granules are soluble in water
    lobes = int(rng.choice([1, 2, 3], p=[0.15, 0.65, 0.2]))
    nucleus = _lobed(rng, lobes, rng.uniform(1.9, 2.8) if lobes == 2 else 1.7, 0.38, rng.uniform(0.4, 0.48), 0.26)
    holes = int(rng.integers(6, 14)) if washed_out else int(rng.integers(0, 5))
    return Anatomy(
        radius,
        _placed(rng, nucleus, radius),
        lobes,
        (0.38, 0.60, 0.25) if rng.random() < 0.7 else (0.25, 0.33, 0.15),
        Granules(
            int(rng.uniform(20, 80) if washed_out else rng.uniform(110, 250)), rng.uniform(0.36, 0.55), (1.50, 2.10, 0.90), 0.9
        ),
        aspect=rng.uniform(0.85, 1.0),
        roughness=0.22,
        vacuoles=scattered(rng, holes, 0.2, 0.9, (0.3, 0.6), radius),
        density=rng.uniform(0.5, 0.75),
        grain=0.25,
    )


def _eosinophil(rng: np.random.Generator) -> Anatomy:
    radius = rng.uniform(5.8, 7.6)
    lobes = int(rng.choice([1, 2, 3], p=[0.06, 0.78, 0.16]))
    step = rng.uniform(1.5, 3.0) if lobes == 2 else 1.35
    nucleus = _lobed(rng, lobes, step, 0.5, rng.uniform(0.29, 0.36) * (1.2 if lobes == 1 else 1), rng.uniform(0.07, 0.16))
    pale = rng.random() < 0.25  # few granules, easily taken for a neutrophil
    orange = rng.uniform(0, 1)
    return Anatomy(
        radius,
        _placed(rng, nucleus, radius),
        lobes,
        (0.24, 0.40, 0.30),
        Granules(
            int(rng.uniform(30, 130) if pale else rng.uniform(300, 500)),
            rng.uniform(0.36, 0.5),
            (0.34 - 0.14 * orange, 0.88, 0.60 + 0.22 * orange) if not pale else (0.2, 0.55, 0.4),
            0.12,
        ),
        aspect=rng.uniform(0.84, 1.0),
        clumps=0.2,
        density=rng.uniform(0.75, 1.0),
    )


def _lymphocyte(rng: np.random.Generator) -> Anatomy:
    large = rng.random() < 0.3  # easily taken for a monocyte
    radius = rng.uniform(5.4, 7.2) if large else rng.uniform(4.0, 5.2)
    share = rng.uniform(0.56, 0.76) if large else rng.uniform(0.76, 0.93)
    if rng.random() < 0.3:  # indented
        nucleus = _arc(rng, rng.uniform(1.0, 1.5), 0.42, share * 0.72)
    else:
        reach = rng.uniform(0.0, 0.16)
        nucleus = _chain(np.array([[-reach, 0.0], [reach, 0.0]]), share * rng.uniform(0.9, 1.0, 2))
    nucleus[:, :2] += rng.normal(0, 0.6, 2) * (1 - share)
    azurophilic = int(rng.integers(4, 14)) if large and rng.random() < 0.5 else 0
    blue = rng.uniform(0.55, 1.35)
    return Anatomy(
        radius,
        _placed(rng, nucleus, radius),
        1,
        (0.48 * blue, 0.39 * blue, 0.10 * blue),
        Granules(azurophilic, 0.3, (0.6, 1.3, 0.6)),
        aspect=rng.uniform(0.84, 1.0),
        roughness=rng.uniform(0.12, 0.4),
        bulges=scattered(rng, int(rng.poisson(0.6)), 0.85, 1.0, (0.7, 1.5), radius),
        density=rng.uniform(0.85, 1.12) if not large else rng.uniform(0.62, 1.0),
        clumps=0.15,
        rim=0.45,
    )


def _monocyte(rng: np.random.Generator) -> Anatomy:
    radius = rng.uniform(6.0, 7.2) if rng.random() < 0.3 else rng.uniform(7.2, 9.2)
    shape = rng.choice(4, p=[0.40, 0.25, 0.15, 0.20])
    if shape == 0:  # kidney
        nucleus = _arc(rng, rng.uniform(1.6, 2.5), 0.46, rng.uniform(0.36, 0.43))
    elif shape == 1:  # horseshoe
        nucleus = _arc(rng, rng.uniform(3.0, 4.3), 0.5, rng.uniform(0.25, 0.32))
    elif shape == 2:  # folded, almost two lobes
        nucleus = _lobed(rng, 2, rng.uniform(1.7, 2.4), 0.42, rng.uniform(0.38, 0.44), 0.3)
    else:  # round, the hard ones
        nucleus = _chain(np.array([[-0.1, 0.0], [0.12, 0.05]]), rng.uniform(0.52, 0.64, 2))
    grey = rng.uniform(0.7, 1.25)
    return Anatomy(
        radius,
        _placed(rng, nucleus, radius),
        2 if shape == 2 else 1,
        (0.36 * grey, 0.37 * grey, 0.18 * grey),
        Granules(int(rng.integers(20, 90)), 0.2, (0.35, 0.55, 0.2), 0.0),
        aspect=rng.uniform(0.78, 1.0),
        roughness=rng.uniform(0.25, 0.7),
        folds=0.32,
        bulges=scattered(rng, int(rng.poisson(1.0)), 0.75, 1.0, (1.2, 2.6), radius),
        vacuoles=scattered(rng, int(rng.poisson(3.5)) if rng.random() < 0.7 else 0, 0.45, 0.95, (0.25, 0.75), radius),
        density=rng.uniform(0.55, 0.92),
        clumps=0.10,
        lace=rng.uniform(0.08, 0.45),
        grain=0.22,
    )


def _neutrophil(rng: np.random.Generator) -> Anatomy:
    radius = rng.uniform(5.6, 7.4)
    lobes = int(rng.choice([1, 2, 3, 4, 5], p=[0.13, 0.08, 0.36, 0.30, 0.13]))
    if lobes == 1:  # band
        nucleus = _arc(rng, rng.uniform(2.6, 4.4), 0.5, rng.uniform(0.19, 0.25))
    else:
        size = {2: 0.31, 3: 0.265, 4: 0.24, 5: 0.215}[lobes] * rng.uniform(0.9, 1.1)
        step = {2: 2.0, 3: 1.55, 4: 1.3, 5: 1.1}[lobes] * rng.uniform(0.85, 1.12)
        nucleus = _lobed(rng, lobes, step, rng.uniform(0.5, 0.6), size, rng.uniform(0.05, 0.09))
    toxic = rng.random() < 0.18
    pink = rng.uniform(0.6, 1.2)
    return Anatomy(
        radius,
        _placed(rng, nucleus, radius),
        lobes,
        (0.13 * pink, 0.25 * pink, 0.15 * pink),
        Granules(
            int(rng.integers(180, 340)),
            rng.uniform(0.16, 0.34 if toxic else 0.22),
            (0.45, 0.85, 0.38) if toxic else (0.24, 0.46, 0.2),
            0.0,
        ),
        aspect=rng.uniform(0.82, 1.0),
        roughness=rng.uniform(0.1, 0.35),
        vacuoles=scattered(rng, int(rng.poisson(0.25)), 0.5, 0.9, (0.25, 0.6), radius),
        density=rng.uniform(0.85, 1.12),
        clumps=0.22,
    )


ANATOMY: Final[dict[str, Callable[[np.random.Generator], Anatomy]]] = {
    "Basophil": _basophil,
    "Eosinophil": _eosinophil,
    "Lymphocyte": _lymphocyte,
    "Monocyte": _monocyte,
    "Neutrophil": _neutrophil,
}
