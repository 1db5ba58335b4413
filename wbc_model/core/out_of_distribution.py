"""Out-of-distribution scores: how unlike every class a cell is, and how unlike the site that the model was calibrated for.

NumPy only.

A cell is described by the network's logits and by how it was shown: the size of its nucleus, how dark that is, and the light
beside it (`APPEARANCE` in wbc_model/core/images.py). The canonical view takes size and much of the stain out, and the network
is blind to them. That is why they tell a platelet, which it was never shown, from a lymphocyte. Both scores come from Gaussian
densities of one site's cells. They belong to a site, as its temperature does.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

CELL: Final = slice(0, 4)  # of the appearance: the nucleus's radius and density
SITE: Final = slice(1, 7)  # its density and the light: what stain, lamp and camera make
Floats = NDArray[np.float64]


class Normal(BaseModel):
    """A Gaussian density: `mean` (K,) and `precision` (K, K), the inverse of the covariance."""

    model_config = ConfigDict(extra="forbid")
    mean: list[float]
    precision: list[list[float]]

    def surprise(self, rows: Floats) -> Floats:
        """-2 log density of rows (N, K), up to a constant that is the same for all densities over K numbers; (N,)."""
        precision = np.array(self.precision)
        away = rows - np.array(self.mean)
        distance: Floats = np.einsum("ni,ij,nj->n", away, precision, away)
        return distance - float(np.linalg.slogdet(precision)[1])


class OutOfDistribution(BaseModel):
    """The densities of a site's cells, and the score above which a cell is unlike them.

    `cell`: a density of `cell_description` for each class that the validation pool has. `site`: of the appearance's SITE part.
    About `false_alarms` of the site's own cells lie over a threshold.
    """

    model_config = ConfigDict(extra="forbid")
    cell: list[Normal]
    cell_threshold: float
    site: Normal
    site_threshold: float
    predicted_loss_threshold: float | None
    false_alarms: float


def cell_description(logits: NDArray[np.floating], appearance: Floats) -> Floats:
    """Logits (N, C), less their mean, and the nucleus's size and darkness, from appearances (N, 7): (N, C + 4)."""
    rows = np.asarray(logits, np.float64)
    return np.concatenate([rows - rows.mean(axis=1, keepdims=True), appearance[:, CELL]], axis=1)


def cell_score(known: OutOfDistribution, logits: NDArray[np.floating], appearance: Floats) -> Floats:
    """How unlike a cell of every class each cell is, (N,); infinite where no nucleus was found."""
    rows = cell_description(logits, appearance)
    surprise: Floats = np.min([density.surprise(rows) for density in known.cell], axis=0)
    return np.where(np.isnan(surprise), np.inf, surprise)


def site_score(known: OutOfDistribution, appearance: Floats) -> Floats:
    """How unlike the site's stain and light each cell is shown, (N,); -infinite where no nucleus was found: nothing is known."""
    surprise = known.site.surprise(appearance[:, SITE])
    return np.where(np.isnan(surprise), -np.inf, surprise)
