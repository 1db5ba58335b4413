"""The one definition of every classification metric, with confidence intervals.

Macro averages run over the classes that occur among the labels: a class without a cell has no recall to average.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError

Floats = NDArray[np.float64]
ECE_BINS: Final = 15
RESAMPLES: Final = 1000
NO_SPREAD: Final = 1e-12  # an interval that is no wider is none


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts (C, C): row is the label, column the prediction."""
    size = len(CLASSES)
    counts: NDArray[np.int64] = np.bincount(labels * size + predicted, minlength=size * size).reshape(size, size)
    return counts


def _divide(a: Floats, b: Floats) -> Floats:
    """a / b, NaN where b is 0."""
    quotient: Floats = np.divide(a, b, out=np.full(np.broadcast_shapes(a.shape, b.shape), np.nan), where=b > 0)
    return quotient


def _from_confusion(confusion: Floats) -> dict[str, Floats]:
    """Metrics of confusion matrices (..., C, C); each value has the leading shape, `recall` etc. add (C,). NaN: undefined."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, guessed = confusion.sum(-1), confusion.sum(-2)
    recall, precision = _divide(hits, support), _divide(hits, guessed)
    f1 = np.where(support > 0, _divide(2 * hits, support + guessed), np.nan)
    return {
        "accuracy": hits.sum(-1) / confusion.sum((-2, -1)),
        "macro_f1": np.nanmean(f1, axis=-1),
        "balanced_accuracy": np.nanmean(recall, axis=-1),
        "recall": recall,
        "precision": precision,
    }


def _calibration_bins(probabilities: Floats, labels: NDArray[np.int64]) -> Floats:
    """(N, ECE_BINS): each row holds confidence minus correctness in the column of its bin."""
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.zeros((len(labels), ECE_BINS))
    gaps[np.arange(len(labels)), bins] = confidence - (predicted == labels)
    return gaps


def expected_calibration_error(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Top-label ECE with equal-width bins (Guo et al., ICML 2017, equation 3)."""
    return float(np.abs(_calibration_bins(probabilities, labels).sum(axis=0)).sum() / len(labels))


def _bootstrap(probabilities: Floats, labels: NDArray[np.int64], seed: int, resamples: int) -> dict[str, Floats]:
    """`resamples` values of each metric under resampling of the cells with replacement, in blocks of bounded memory."""
    count, size = len(labels), len(CLASSES)
    cell = labels * size + probabilities.argmax(axis=1)
    one_hot = np.zeros((count, size * size))
    one_hot[np.arange(count), cell] = 1
    gaps = _calibration_bins(probabilities, labels)
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, 5_000_000 // count))
    parts: list[dict[str, Floats]] = []
    for start in range(0, resamples, block):
        draws = rng.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - start)).astype(np.float64)
        values = _from_confusion((draws @ one_hot).reshape(-1, size, size))
        parts.append({**values, "ece": np.abs(draws @ gaps).sum(axis=1) / count})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _intervals(draws: dict[str, Floats], confusion: NDArray[np.int64]) -> dict[str, list[float]]:
    """95 % percentile intervals; a class's recall counts only the resamples that hold a cell of it.

    Resamples that are all alike leave nothing open only in appearance: of 5 cells all right, none is wrong in any resample. A
    proportion then has exact limits (Clopper & Pearson, 1934), another metric no interval.
    """
    hits, support = np.diagonal(confusion), confusion.sum(axis=1)
    proportions = {"accuracy": (int(hits.sum()), int(support.sum()))}
    proportions |= {f"recall_{name}": (int(hits[place]), int(support[place])) for place, name in enumerate(CLASSES)}
    columns = {name: draws[name] for name in ("accuracy", "macro_f1", "balanced_accuracy", "ece")}
    columns |= {f"recall_{name}": draws["recall"][:, index] for index, name in enumerate(CLASSES)}
    found = {}
    for name, values in columns.items():
        if np.isnan(values).all():
            continue
        low, high = (float(x) for x in np.nanpercentile(values, [2.5, 97.5]))
        if high - low > NO_SPREAD:
            found[name] = [low, high]
        elif name in proportions:
            found[name] = exact_limits(*proportions[name])
    return found


def exact_limits(hits: int, count: int) -> list[float]:
    """Exact 95 % limits of a proportion (Clopper & Pearson, Biometrika 1934)."""
    from scipy.stats import binomtest  # takes longer to load than most evaluations need it for

    low, high = binomtest(hits, count).proportion_ci(0.95, method="exact")
    return [float(low), float(high)]


def classification_metrics(
    probabilities: NDArray[Any], labels: NDArray[Any], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """All metrics of probabilities (N, C) against labels (N,) int class indices.

    Returns `n`, `accuracy`, `macro_f1`, `balanced_accuracy`, `ece`, `per_class` {class: recall, precision, support} (None
    where undefined), `confusion` (rows of counts: true x predicted) and `intervals` {metric: [low, high]}, 95 % percentile
    bootstrap over cells; per-class recalls are there as `recall_<class>`. Where all resamples are alike, proportions have exact
    limits and other metrics no interval; with 0 `resamples` there are none at all. Raises WbcError when there is no cell.
    """
    if len(labels) == 0:
        raise WbcError("there is no labelled cell to evaluate on")
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1))
    point = _from_confusion(confusion.astype(np.float64))
    per_class = {}
    for index, name in enumerate(CLASSES):
        recall, precision = float(point["recall"][index]), float(point["precision"][index])
        per_class[name] = {
            "recall": None if np.isnan(recall) else recall,
            "precision": None if np.isnan(precision) else precision,
            "support": int(confusion[index].sum()),
        }
    return {
        "n": len(labels),
        "accuracy": float(point["accuracy"]),
        "macro_f1": float(point["macro_f1"]),
        "balanced_accuracy": float(point["balanced_accuracy"]),
        "ece": expected_calibration_error(probabilities, labels),
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "intervals": _intervals(_bootstrap(probabilities, labels, seed, resamples), confusion) if resamples else {},
    }
