"""Distances from one cell to all, and the choice of a spread set by them: exact, and on the GPU where cells are many.

Fewer than MANY cells are compared by NumPy: there the same seed gives the same bits on every machine of a kind.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rows = NDArray[np.float32]
Distances = Callable[[int], Floats]
Products = Callable[[int], NDArray[Any]]  # of row i with all rows (N,)

MANY: Final = 50_000  # cells
BLOCK: Final = 65_536  # rows that go to the GPU, or are compared there, at a time: 128 MiB of embeddings
GPU_SHARE: Final = 0.6  # of a GPU's free memory that embeddings may fill


def products(rows: Rows) -> Products:
    """Inner products of rows (N, D), all N with one of them; a call reads the matrix once."""
    return _products_on_gpu(rows) or (lambda i: rows @ rows[i])


def _on_gpu(rows: Rows) -> Any:
    """The rows on the GPU, copied in blocks; None where they are few, or there is no GPU with room for them."""
    if len(rows) < MANY:
        return None
    import torch

    if not torch.cuda.is_available() or rows.nbytes > GPU_SHARE * torch.cuda.mem_get_info()[0]:
        return None
    there = torch.empty(rows.shape, device="cuda")
    for start in range(0, len(rows), BLOCK):
        there[start : start + BLOCK] = torch.from_numpy(np.ascontiguousarray(rows[start : start + BLOCK]))
    return there


def _products_on_gpu(rows: Rows) -> Products | None:
    there = _on_gpu(rows)
    return None if there is None else lambda i: (there @ there[i]).cpu().numpy()


def nearest_squared(rows: Rows, labelled: Rows) -> Floats:
    """The squared distance (N,) of each of the rows (N, D) to the nearest of the labelled ones (L, D), in blocks."""
    there = _on_gpu(rows)
    if there is None:
        from sklearn.metrics import pairwise_distances_argmin_min  # in blocks of its `working_memory`

        found: Floats = pairwise_distances_argmin_min(rows, labelled)[1].astype(np.float64) ** 2
        return found
    import torch

    nearest = torch.full((len(rows),), torch.inf, device="cuda")
    for start in range(0, len(labelled), BLOCK):
        block = torch.from_numpy(np.ascontiguousarray(labelled[start : start + BLOCK])).cuda()
        for first in range(0, len(rows), 4096):
            part = slice(first, first + 4096)
            nearest[part] = torch.minimum(nearest[part], torch.cdist(there[part], block).amin(dim=1))
    on_gpu: Floats = nearest.double().square().cpu().numpy()
    return on_gpu


def squared_distances(norms: Floats, products: Distances) -> Distances:
    """Squared distances (N,) of one row to all, from squared norms (N,) and inner products: |x|² + |y|² - 2 <x, y>."""

    def to(i: int) -> Floats:
        sums = norms + norms[i]
        squared: Floats = sums - 2.0 * products(i)
        squared[squared < 1e-6 * sums] = 0.0  # below what float32 products can tell: a duplicate
        return squared

    return to


def embedding_distances(embedding: Rows) -> Distances:
    """Squared Euclidean distances between rows (N, 512); each call costs one product of the matrix with a vector."""
    norms = np.einsum("nd,nd->n", embedding, embedding).astype(np.float64)
    of = products(embedding)
    return squared_distances(norms, lambda i: of(i).astype(np.float64))


def gradient_distances(probabilities: Floats, embedding: Rows) -> tuple[Floats, Distances]:
    """Squared norms (N,) of the gradient embeddings of BADGE, and squared distances between them.

    Take the gradient of the cross-entropy of the predicted class ŷ by the last layer's weights (Ash et al. 2020, equation 1). It
    is the outer product of d = p - e_ŷ (C,) and the embedding h (512,). Since <d ⊗ h, d' ⊗ h'> = <d, d'> <h, h'>, the N x (512 C)
    matrix is never made.
    """
    d = probabilities - np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)]
    norms = np.einsum("nc,nc->n", d, d) * np.einsum("nd,nd->n", embedding, embedding)
    of = products(embedding)
    return norms, squared_distances(norms, lambda i: (d @ d[i]) * of(i))


def kmeans_plus_plus(to: Distances, first: int, count: int, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Seeding of k-means++ (Arthur & Vassilvitskii, SODA 2007): each next centre is drawn in proportion to its squared distance
    to the nearest centre; among cells that are all duplicates of centres, evenly.

    Returns the centres (count,) and the squared distance (count,) that each was drawn with; 0 for the first.
    """
    chosen, drawn_with = [first], [0.0]
    nearest = to(first)
    free = np.ones(len(nearest), bool)
    while len(chosen) < count:
        free[chosen[-1]] = False
        weights = np.where(free, nearest, 0.0)
        if not weights.any():
            weights = free.astype(np.float64)
        chosen.append(int(rng.choice(len(weights), p=weights / weights.sum())))
        drawn_with.append(float(nearest[chosen[-1]]))
        nearest = np.minimum(nearest, to(chosen[-1]))
    return np.array(chosen, np.int64), np.array(drawn_with)


def any_highest(values: Floats, rng: np.random.Generator) -> int:
    """One of the places of the highest value, at random."""
    return int(rng.choice(np.flatnonzero(values == values.max())))
