"""What a model was trained on, in a few numbers a cell: the file `reference.npz` beside model.json, with which served cells are
compared.

NumPy only. A cell is described by these measures, by the same code in training and serving:

    class        index of the class that the model names.
    doubt        the two out-of-distribution scores; NaN where the card has none.
    stain        optical density of the view's mean colour, red, green and blue.
    sharpness    logarithm of the variance of the Laplacian in the middle of the view.
    embedding    the network's embedding on the principal axes of the reference cells; NaN where model.onnx gives none.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import REFERENCE, ModelCard
from wbc_model.core.out_of_distribution import cell_score, site_score

AXES: Final = 8  # principal axes of the embedding that are kept: 512 numbers a cell would be far more than the store needs
MIDDLE: Final = 64  # pixels of the side of what the sharpness is measured in: it costs the same for a large view
EVERY: Final = 4  # pixel of a row and column that the mean colour is taken of
FEW: Final = 12  # cells of a class, below which the class has no usual values of its own
MEASURES: Final[dict[str, slice]] = {
    "class": slice(0, 1),
    "doubt": slice(1, 3),
    "stain": slice(3, 6),
    "sharpness": slice(6, 7),
    "embedding": slice(7, 7 + AXES),
}
WIDTH: Final = 7 + AXES
Floats = NDArray[np.float32]


class Axes(NamedTuple):
    """The principal axes of embeddings: their `mean` (512,) and `directions` (AXES, 512)."""

    mean: Floats
    directions: Floats

    def project(self, embedding: Floats) -> Floats:
        """Embeddings (N, 512) on the axes, (N, AXES)."""
        return np.asarray((embedding - self.mean) @ self.directions.T, np.float32)


@dataclass(frozen=True)
class Reference:
    """The measures of cells that a model did not learn from, `cells` (N, WIDTH), and the axes of their embeddings."""

    axes: Axes
    cells: Floats

    def write(self, path: Path) -> None:
        """Write the file; the same reference gives the same bytes."""
        np.savez(path, mean=self.axes.mean, directions=self.axes.directions, cells=self.cells)


def read_reference(directory: Path, card: ModelCard) -> Reference | None:
    """The reference of a model directory, whose files `read_card` has checked; None for a model that was made without one.

    Raises WbcError where the file is not one.
    """
    path = directory / REFERENCE
    if REFERENCE not in card.sha256:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            axes, cells = Axes(file["mean"], file["directions"]), file["cells"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WbcError(f"{path} cannot be read ({type(error).__name__}): train the model again") from None
    if cells.ndim != 2 or cells.shape[1] != WIDTH or axes.directions.shape != (AXES, len(axes.mean)):
        raise WbcError(f"{path} is of another version: train the model again")
    return Reference(axes, cells)


def describe(
    card: ModelCard,
    views: NDArray[np.uint8],
    appearance: NDArray[np.float64],
    logits: NDArray[np.floating],
    embedding: Floats | None,
    axes: Axes | None,
) -> Floats:
    """The measures (N, WIDTH) of cells: views (N, S, S, 3), appearances (N, 7), logits (N, C), embeddings (N, 512)."""
    rows = np.full((len(views), WIDTH), np.nan, np.float32)
    rows[:, 0] = np.asarray(logits).argmax(axis=1)
    if (known := card.out_of_distribution) is not None:
        rows[:, 1], rows[:, 2] = cell_score(known, logits, appearance), site_score(known, appearance)
    rows[:, MEASURES["stain"]] = stain(views)
    rows[:, 6] = sharpness(views)
    if embedding is not None and axes is not None and embedding.shape[1:] == axes.mean.shape:
        rows[:, MEASURES["embedding"]] = axes.project(embedding)
    return rows


def stain(views: NDArray[np.uint8]) -> Floats:
    """Optical density (natural log) of the mean colour of views (N, S, S, 3); (N, 3)."""
    colour = views[:, ::EVERY, ::EVERY].mean(axis=(1, 2), dtype=np.float64)
    return np.asarray(-np.log((colour + 1) / 256), np.float32)


def sharpness(views: NDArray[np.uint8]) -> Floats:
    """Logarithm of the variance of the Laplacian (grey values squared, of the green channel) in the middle of views, (N,)."""
    side = views.shape[1]
    edge = max(0, side - MIDDLE) // 2
    grey = views[:, edge : side - edge, edge : side - edge, 1].astype(np.float32)
    laplacian = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * grey[:, 1:-1, 1:-1]
    return np.asarray(np.log1p(laplacian.var(axis=(1, 2))), np.float32)
