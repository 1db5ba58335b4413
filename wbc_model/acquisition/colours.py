"""A cell's colours as numbers: what can be known of it without any network and any label.

The classes differ in the colours that Romanowsky stains give their nuclei and granules: eosin's red, the azure of basophils. That
is too little to name a cell by. It is enough to ask a person about cells of all kinds first.
"""

import itertools
from typing import Final

import numpy as np
from numpy.typing import NDArray

DISC: Final = 0.8  # of half the side: outside lie the neighbours
RINGS: Final = 4  # of equal width, from the middle to the edge of the disc
QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
COMPONENTS: Final = 12  # that are kept of the numbers, whitened: many of them say the same
WIDTH: Final = 5 * len(QUANTILES) + 6 * RINGS

Rows = NDArray[np.float32]


def colours(images: NDArray[np.uint8]) -> Rows:
    """Describe views (N, S, S, 3) by (N, 49) numbers of their optical density: quantiles, over the disc, of red, green, blue and
    of red less green and green less blue; mean and standard deviation of each channel in rings about the middle."""
    size = images.shape[1]
    steps = (np.arange(size) + 0.5) / size * 2 - 1
    radius = np.hypot(steps[:, None], steps[None])
    density = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)[images]
    disc = density[:, radius < DISC]
    channels = np.concatenate([disc, disc[..., :2] - disc[..., 1:]], axis=2)
    parts = [np.quantile(channels, QUANTILES, axis=1).transpose(1, 0, 2).reshape(len(images), -1)]
    edges = np.linspace(0, DISC, RINGS + 1)
    for inner, outer in itertools.pairwise(edges):
        ring = density[:, (radius >= inner) & (radius < outer)]
        parts += [ring.mean(axis=1), ring.std(axis=1)]
    described: Rows = np.concatenate(parts, axis=1).astype(np.float32)
    return described


def whitened(described: Rows) -> Rows:
    """The same rows (N, 49) as (N, 12 at most): principal components of equal spread. Distances count each kind of
    difference alike, however large its numbers are."""
    centred = described.astype(np.float64) - described.mean(axis=0)
    centred /= np.maximum(centred.std(axis=0), 1e-6)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(centred, rowvar=False, bias=True)))
    values, vectors = values[-COMPONENTS:], vectors[:, -COMPONENTS:]
    spread = values > max(1e-6 * values[-1], 1e-9)  # a component in which no two cells differ stays as it is, all zeros
    result: Rows = (centred @ vectors * np.where(spread, 1 / np.sqrt(np.maximum(values, 1e-9)), 0)).astype(np.float32)
    return result
