"""From logits to probabilities: the one definition for training, evaluation and the service. NumPy only."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LOWEST: Final = 0.05  # temperatures that are tried
HIGHEST: Final = 20.0
NEAR: Final = 1.01  # within this factor of a bound a fit is at the bound


def at_bound(temperature: float) -> bool:
    """Whether a fitted temperature is a bound: beyond it the likelihood would go on growing, so that nothing was fitted."""
    return not LOWEST * NEAR < temperature < HIGHEST / NEAR


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities (N, C) of logits (N, C) divided by the temperature."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    exponentials: NDArray[np.float64] = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials
