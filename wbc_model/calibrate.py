"""Temperature and conformal threshold, fitted on the validation pool."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from wbc_model.probabilities import softmax


def negative_log_likelihood(logits: NDArray[Any], labels: NDArray[np.int64], temperature: float) -> float:
    """Mean negative log likelihood of labels (N,) under logits (N, C) at a temperature."""
    probabilities = softmax(logits, temperature)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(probabilities, 1e-12)).mean())


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The temperature in 0.05..20 that minimises the negative log likelihood (Guo et al., ICML 2017)."""
    result = minimize_scalar(
        lambda t: negative_log_likelihood(logits, labels, math.exp(t)), bounds=(math.log(0.05), math.log(20)), method="bounded"
    )
    return float(math.exp(result.x))


def conformal_threshold(probabilities: NDArray[Any], labels: NDArray[np.int64], coverage: float) -> float:
    """Split conformal prediction with the score 1 - p(label) (Sadinle et al., JASA 2019).

    Returns the probability at or above which a class joins the prediction set, so that on exchangeable cells the set holds
    the label with at least the given coverage; 0 (every class joins) when the pool is too small to promise that.
    """
    count = len(labels)
    rank = math.floor((count + 1) * (1 - coverage))
    if rank < 1:
        return 0.0
    return float(np.sort(probabilities[np.arange(count), labels])[rank - 1])
