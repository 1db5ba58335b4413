"""Home's cells in the colours of another site: a map of colour that needs no label.

A site's stain and camera change all of its cells alike. Labelled cells of home are mapped to the colours that the site's cells
have. They say what that change alone costs a model, before anybody has labelled a cell there.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

CELLS: Final = 256  # of each site that a map is measured on: a million pixels of the smallest preset
Pixels = NDArray[np.uint8]
Matrix = NDArray[np.float64]


def _root(matrix: Matrix) -> Matrix:
    """The symmetric root of a symmetric matrix; eigenvalues that rounding made negative count as none."""
    values, vectors = np.linalg.eigh(matrix)
    root: Matrix = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def colour_map(home: Pixels, site: Pixels) -> tuple[Matrix, Matrix]:
    """`matrix` (3, 3) and `offset` (3,) that give the RGB of `home` the mean and the covariance of `site`; views (N, S, S, 3).

    Of all that do, they change colours the least. It is the linear Monge-Kantorovich map of Pitié & Kokaram 2007.

    T = A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2 with the covariances A of home and B of the site. A colour that home's cells do not vary
    in (all grey, say) is varied a little: A can be inverted then. CELLS of each site at most are looked at.
    """
    seen_at_home, seen_at_site = (views[:: -(-len(views) // CELLS)].reshape(-1, 3) for views in (home, site))
    root = _root(np.cov(seen_at_home.T) + 0.05 * np.eye(3))
    inverse = np.linalg.inv(root)
    matrix = inverse @ _root(root @ np.cov(seen_at_site.T) @ root) @ inverse
    return matrix, seen_at_site.mean(axis=0) - matrix @ seen_at_home.mean(axis=0)


def recoloured(views: Pixels, matrix: Matrix, offset: Matrix) -> Pixels:
    """Views uint8 (N, S, S, 3) in the colours that a map gives them, within 0..255."""
    mapped: Pixels = (views @ matrix.T + offset).clip(0, 255).round().astype(np.uint8)
    return mapped
