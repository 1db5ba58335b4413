"""Temperature, conformal threshold and out-of-distribution scores, fitted on the validation pool."""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from wbc_model.core.classes import CLASSES
from wbc_model.core.out_of_distribution import SITE, Normal, OutOfDistribution, cell_description
from wbc_model.core.probabilities import HIGHEST, LOWEST, at_bound, softmax
from wbc_model.network.predict import Predictions

FALSE_ALARMS: Final = 0.02  # of the site's own cells that a detector may send to a person
FOLDS: Final = 5
MIN_OF_CLASS: Final = 12  # a class with fewer cells has the covariance of all classes about their means
MIN_CELLS: Final = 50  # fewer do not tell where 2 % of them lie
Floats = NDArray[np.float64]


def negative_log_likelihood(logits: NDArray[Any], labels: NDArray[np.int64], temperature: float) -> float:
    """Mean negative log likelihood of labels (N,) under logits (N, C) at a temperature."""
    probabilities = softmax(logits, temperature)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(probabilities, 1e-12)).mean())


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The temperature in LOWEST..HIGHEST that minimises the negative log likelihood (Guo et al., ICML 2017)."""
    bounds = math.log(LOWEST), math.log(HIGHEST)
    result = minimize_scalar(lambda t: negative_log_likelihood(logits, labels, math.exp(t)), bounds=bounds, method="bounded")
    return float(math.exp(result.x))


def calibrated_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> tuple[float, str]:
    """The fitted temperature, and why it is none: where it comes out at a bound, 1 (the network's own probabilities) and the
    reason in words, else the reason is empty."""
    temperature, right = fit_temperature(logits, labels), logits.argmax(axis=1) == labels
    # Never wrong: the colder the likelier, though the likelihood of a sharp network is 1, to the last digit, far above the bound.
    if not at_bound(temperature) and not right.all():
        return temperature, ""
    share = f"the model is right on {right.mean():.0%} of the {len(labels)} cells"
    return 1.0, f"{share}, and no temperature in {LOWEST:g} to {HIGHEST:g} fits them best"


def conformal_threshold(probabilities: NDArray[Any], labels: NDArray[np.int64], coverage: float) -> float:
    """Split conformal prediction with the score 1 - p(label) (Sadinle et al., JASA 2019).

    Returns the probability at or above which a class joins the prediction set. On exchangeable cells the set then holds the label
    with at least the given coverage. Returns 0 (every class joins) when the pool is too small to promise that.
    """
    count = len(labels)
    rank = math.floor((count + 1) * (1 - coverage))
    if rank < 1:
        return 0.0
    return float(np.sort(probabilities[np.arange(count), labels])[rank - 1])


def fit_out_of_distribution(seen: Predictions, labels: NDArray[np.int64], appearance: Floats) -> OutOfDistribution | None:
    """Densities and thresholds from cells of one site: their predictions, labels (N,) and appearances (N, 7).

    Covariances are shrunk (Ledoit & Wolf 2004). The thresholds are quantiles of what each fifth of the cells gets from densities
    of the other four fifths: they hold for cells that no density was fitted to. None for fewer than MIN_CELLS cells
    with a nucleus.
    """
    good = ~np.isnan(appearance).any(axis=1)
    if good.sum() < MIN_CELLS:
        return None
    rows, shown = cell_description(seen.logits, appearance)[good], appearance[good][:, SITE]
    labels = labels[good]
    fold = np.random.default_rng(0).permutation(len(rows)) % FOLDS
    cell, site = np.empty(len(rows)), np.empty(len(rows))
    for number in range(FOLDS):
        out = fold == number
        densities = _class_densities(rows[~out], labels[~out])
        cell[out] = np.min([density.surprise(rows[out]) for density in densities], axis=0)
        site[out] = _density(shown[~out]).surprise(shown[out])
    losses = seen.predicted_loss[good]
    return OutOfDistribution(
        cell=_class_densities(rows, labels),
        cell_threshold=float(np.quantile(cell, 1 - FALSE_ALARMS)),
        site=_density(shown),
        site_threshold=float(np.quantile(site, 1 - FALSE_ALARMS)),
        predicted_loss_threshold=float(np.quantile(losses, 1 - FALSE_ALARMS)) if losses.any() else None,
        false_alarms=FALSE_ALARMS,
    )


def _class_densities(rows: Floats, labels: NDArray[np.int64]) -> list[Normal]:
    """A density for each class that has a cell."""
    present = [index for index in range(len(CLASSES)) if (labels == index).any()]
    means = {index: rows[labels == index].mean(axis=0) for index in present}
    pooled = _density(rows - np.stack([means[label] for label in labels])).precision
    densities = []
    for index in present:
        own = rows[labels == index]
        precision = _density(own).precision if len(own) >= MIN_OF_CLASS else pooled
        densities.append(Normal(mean=means[index].tolist(), precision=precision))
    return densities


def _density(rows: Floats) -> Normal:
    from sklearn.covariance import LedoitWolf

    # In units of each number's own spread: shrinking does not favour the numbers that happen to be large.
    spread = rows.std(axis=0) + 1e-6
    precision = LedoitWolf().fit(rows / spread).precision_ / np.outer(spread, spread)
    return Normal(mean=rows.mean(axis=0).tolist(), precision=precision.tolist())
