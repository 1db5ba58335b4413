"""Home's cells in the colours of another site: a map of colour that needs no label.

A site's stain and camera change all of its cells alike. Labelled cells of home, mapped to the colours that the site's cells have,
say what that change alone costs a model, before anybody has labelled a cell there.
"""

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CELLS: Final = 256  # of each site that a map is measured on: more change nothing
Pixels = NDArray[np.uint8]


class ColourMap(NamedTuple):
    """An affine map of RGB in 0..1: `matrix` (3, 3) and `offset` (3,), float32."""

    matrix: Tensor
    offset: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in 0..1 in their new colours, within 0..1."""
        mapped = torch.einsum("dc,nchw->ndhw", self.matrix.to(images), images) + self.offset.to(images).view(1, 3, 1, 1)
        return mapped.clamp_(0, 1)

    def views(self, pixels: Pixels) -> Pixels:
        """Views uint8 (N, S, S, 3) in their new colours."""
        mapped = self(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
        recoloured: Pixels = (mapped * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        return recoloured


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric root of a symmetric matrix; eigenvalues that rounding made negative count as none."""
    values, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def colour_map(home: Pixels, site: Pixels) -> ColourMap:
    """The map that gives views of `home` (N, S, S, 3) the mean and the covariance of the colours of `site` (M, S, S, 3), and of
    all that do changes colours the least: the linear Monge-Kantorovich map of Pitié & Kokaram 2007. The first CELLS of each are
    looked at.

    T = A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2 with the covariances A of home and B of the site. A colour that home's cells do not vary
    in (all grey, say) is varied a little, so that A can be inverted.
    """
    (from_mean, a), (to_mean, b) = (
        (p.mean(axis=0), np.cov(p.T)) for p in (v.reshape(-1, 3) / 255 for v in (home[:CELLS], site[:CELLS]))
    )
    a = a + 1e-6 * np.eye(3)
    root = _root(a)
    inverse = np.linalg.inv(root)
    matrix = inverse @ _root(root @ b @ root) @ inverse
    return ColourMap(*(torch.from_numpy(part).float() for part in (matrix, to_mean - matrix @ from_mean)))
