"""Metrics and calibration against hand-computed cases, scikit-learn and their own properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.probabilities import at_bound, softmax
from wbc_model.evaluation.calibrate import conformal_threshold, fit_temperature, negative_log_likelihood
from wbc_model.evaluation.metrics import classification_metrics, expected_calibration_error


def one_hot(predicted: list[int], confidence: float = 1.0) -> np.ndarray:
    probabilities = np.full((len(predicted), 5), (1 - confidence) / 4)
    probabilities[np.arange(len(predicted)), predicted] = confidence
    return probabilities


def test_by_hand():
    """Labels B B E N, predicted B E E N: recalls 1/2, 1, 1; precisions 1, 1/2, 1; F1 2/3, 2/3, 1."""
    metrics = classification_metrics(one_hot([0, 1, 1, 4]), np.array([0, 0, 1, 4]))
    assert metrics["n"] == 4
    assert metrics["accuracy"] == pytest.approx(3 / 4)
    assert metrics["balanced_accuracy"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert metrics["per_class"]["Basophil"] == {"recall": 0.5, "precision": 1.0, "support": 2}
    assert metrics["per_class"]["Eosinophil"] == {"recall": 1.0, "precision": 0.5, "support": 1}
    assert metrics["per_class"]["Monocyte"] == {"recall": None, "precision": None, "support": 0}
    assert metrics["ece"] == pytest.approx(1 / 4)  # full confidence, three of four right
    assert metrics["confusion"] == [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0] * 5, [0] * 5, [0, 0, 0, 0, 1]]
    assert "recall_Monocyte" not in metrics["intervals"]


def test_calibration_error_by_hand():
    """Two cells at 0.9 (one right), two at 0.5 (both right): |0.9 - 0.5| · 2/4 + |0.5 - 1| · 2/4."""
    probabilities = np.vstack([one_hot([0, 1], 0.9), one_hot([2, 3], 0.5)])
    assert expected_calibration_error(probabilities, np.array([0, 0, 2, 3])) == pytest.approx(0.2 + 0.25)


cells = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(cells)
def test_agrees_with_scikit_learn(pairs: list[tuple[int, int]]):
    from sklearn.metrics import balanced_accuracy_score, f1_score  # half a second, in each process that collects this

    labels, predicted = np.array(pairs).T
    metrics = classification_metrics(one_hot(predicted.tolist(), 0.8), labels, resamples=0)
    present = np.unique(labels)
    assert metrics["accuracy"] == pytest.approx((labels == predicted).mean())
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, predicted, labels=present, average="macro", zero_division=0))
    recalls = [np.mean(predicted[labels == c] == c) for c in present]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    if set(predicted) <= set(labels):
        assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))


@settings(max_examples=20, deadline=None)
@given(cells, st.integers(0, 5))
def test_intervals_hold_the_estimate_and_repeat(pairs: list[tuple[int, int]], seed: int):
    labels, predicted = np.array(pairs).T
    first = classification_metrics(one_hot(predicted.tolist()), labels, seed, resamples=200)
    assert first == classification_metrics(one_hot(predicted.tolist()), labels, seed, resamples=200)
    low, high = first["intervals"]["accuracy"]
    assert 0 <= low <= first["accuracy"] <= high <= 1


def test_interval_has_the_width_of_the_binomial():
    """900 of 1000 right: the normal approximation gives 0.9 ± 1.96 · sqrt(0.09 / 1000) = ± 0.0186."""
    predicted = [0] * 900 + [1] * 100
    low, high = classification_metrics(one_hot(predicted), np.zeros(1000, dtype=int))["intervals"]["accuracy"]
    assert low == pytest.approx(0.9 - 0.0186, abs=0.003)
    assert high == pytest.approx(0.9 + 0.0186, abs=0.003)


def test_intervals_are_those_of_cells_that_are_drawn_again_one_by_one():
    rng = np.random.default_rng(3)
    labels = rng.choice(5, 200, p=[0.1, 0.1, 0.4, 0.1, 0.3])
    probabilities = softmax(rng.normal(0, 1.2, (200, 5)) + 2 * np.eye(5)[labels])
    drawn = []
    for _ in range(400):
        cells = rng.integers(0, 200, 200)
        metrics = classification_metrics(probabilities[cells], labels[cells], resamples=0)
        recalls = {f"recall_{name}": one["recall"] for name, one in metrics["per_class"].items()}
        drawn.append(recalls | {name: metrics[name] for name in ("accuracy", "macro_f1", "balanced_accuracy", "ece")})
    found = classification_metrics(probabilities, labels)["intervals"]
    assert set(found) == set(drawn[0])
    for name, limits in found.items():
        expected = np.percentile([one[name] for one in drawn], [2.5, 97.5])
        assert limits == pytest.approx(expected, abs=0.25 * (expected[1] - expected[0])), name


def test_five_of_five_leave_much_open():
    """Exact limits of 5 of 5: 0.025 ** (1 / 5) = 47.8 % to 100 %; what is no proportion has no interval then."""
    found = classification_metrics(one_hot([0] * 5), np.zeros(5, dtype=int))["intervals"]
    assert set(found) == {"accuracy", "recall_Basophil"}
    assert found["accuracy"] == found["recall_Basophil"] == pytest.approx([0.025 ** (1 / 5), 1])
    none_right = classification_metrics(one_hot([1] * 5), np.zeros(5, dtype=int))["intervals"]
    assert none_right["accuracy"] == pytest.approx([0, 1 - 0.025 ** (1 / 5)])
    mixed = classification_metrics(one_hot([0] * 5 + [1, 0]), np.array([0] * 5 + [1, 1]))["intervals"]
    assert mixed["recall_Basophil"] == pytest.approx([0.025 ** (1 / 5), 1])
    assert set(mixed) == {"accuracy", "macro_f1", "balanced_accuracy", "ece", "recall_Basophil", "recall_Eosinophil"}


def test_no_cell_is_an_error():
    with pytest.raises(WbcError, match="no labelled cell"):
        classification_metrics(np.empty((0, 5)), np.empty(0, dtype=int))


def test_softmax_by_hand():
    """Logits ln 1 ... ln 4, whatever is added to a row: 1/10 ... 4/10. At a temperature of 1/2 the shares of 1, 4, 9, 16."""
    logits = np.log([[1, 2, 3, 4], [4, 3, 2, 1]]) + np.array([[5_000], [-5_000]])
    np.testing.assert_allclose(softmax(logits), [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], rtol=1e-9)
    np.testing.assert_allclose(softmax(logits, 0.5)[0], np.array([1, 4, 9, 16]) / 30, rtol=1e-9)
    assert softmax(logits.astype(np.float32)).dtype == np.float64


def test_a_temperature_near_a_bound_is_at_it():
    assert [at_bound(t) for t in (0.05, 0.0504, 0.06, 1, 19, 19.9, 20)] == [True, True, False, False, False, True, True]


def test_temperature_is_found():
    """Logits three times too large are cooled by about three."""
    rng = np.random.default_rng(0)
    true_logits = rng.normal(0, 1.5, (4000, len(CLASSES)))
    labels = np.array([rng.choice(5, p=p) for p in softmax(true_logits)])
    temperature = fit_temperature(true_logits * 3, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    best = negative_log_likelihood(true_logits * 3, labels, temperature)
    assert best <= min(negative_log_likelihood(true_logits * 3, labels, t) for t in (1.0, 2.0, 2.8, 3.2, 5.0)) + 1e-9


def test_conformal_threshold_by_hand():
    """Probabilities of the label 0.1 … 1.0 (ten cells), coverage 0.8: rank floor(11 · 0.2) = 2, so 0.2 of them."""
    probabilities = np.zeros((10, 5))
    probabilities[:, 0] = np.arange(1, 11) / 10
    assert conformal_threshold(probabilities, np.zeros(10, dtype=int), 0.8) == pytest.approx(0.2)
    assert conformal_threshold(probabilities, np.zeros(10, dtype=int), 0.95) == 0.0  # ten cells cannot promise 95 %


def test_conformal_coverage_holds_on_exchangeable_cells():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(200):
        probabilities = rng.dirichlet(np.ones(5), 400)
        labels = np.array([rng.choice(5, p=p) for p in probabilities])
        threshold = conformal_threshold(probabilities[:200], labels[:200], 0.9)
        covered.append((probabilities[np.arange(200, 400), labels[200:]] >= threshold).mean())
    assert 0.894 <= np.mean(covered) <= 0.916  # within three standard errors of 0.9 to 0.91
