"""Out-of-distribution scores: densities by hand, thresholds that keep their promise, and real cells that are no leukocytes."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

from tests.realdata import real_data
from wbc_model.core.images import APPEARANCE, look
from wbc_model.core.out_of_distribution import Normal, OutOfDistribution, cell_score, site_score
from wbc_model.evaluation.calibrate import FALSE_ALARMS, MIN_CELLS, fit_out_of_distribution
from wbc_model.network.predict import Predictions

CLASSES = 5


def cells(count: int, seed: int, light: float = 0.0) -> tuple[Predictions, np.ndarray, np.ndarray]:
    """Made-up cells: logits that name their class, a nucleus whose size belongs to it, and the lamp's light."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    logits = rng.normal(0, 1, (count, CLASSES)) + 8 * np.eye(CLASSES)[labels]
    appearance = rng.normal(0, 0.05, (count, len(APPEARANCE)))
    appearance[:, 0] += 3 + 0.2 * labels
    appearance[:, 4:] += 5.4 + light
    loss = rng.gamma(2.0, 1.0, count)
    seen = Predictions(logits.astype(np.float32), loss.astype(np.float32), np.empty((count, 0), np.float32))
    return seen, labels.astype(np.int64), appearance


@pytest.fixture(scope="module")
def known() -> OutOfDistribution:
    fitted = fit_out_of_distribution(*cells(1000, seed=1))
    assert fitted is not None
    return fitted


def test_surprise_is_minus_twice_the_log_density_up_to_a_constant():
    covariance = np.array([[2.0, 0.3], [0.3, 0.5]])
    density = Normal(mean=[1.0, -2.0], precision=np.linalg.inv(covariance).tolist())
    rows = np.array([[1.0, -2.0], [3.0, 0.0], [-1.0, 1.0]])
    expected = -2 * multivariate_normal([1.0, -2.0], covariance).logpdf(rows) - 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(density.surprise(rows), expected)


def test_of_cells_it_has_not_seen_as_many_are_false_alarms_as_it_says(known: OutOfDistribution):
    seen, _, appearance = cells(20_000, seed=2)
    for share in (
        (cell_score(known, seen.logits, appearance) > known.cell_threshold).mean(),
        (site_score(known, appearance) > known.site_threshold).mean(),
        (seen.predicted_loss > known.predicted_loss_threshold).mean(),
    ):
        assert 0.4 * FALSE_ALARMS < share < 2 * FALSE_ALARMS


def test_a_class_with_the_wrong_size_and_torn_logits_are_no_leukocytes(known: OutOfDistribution):
    seen, labels, appearance = cells(500, seed=3)
    tiny = appearance.copy()
    tiny[:, 0] -= 1.5
    assert (cell_score(known, seen.logits, tiny) > known.cell_threshold).mean() > 0.99
    torn = np.zeros_like(seen.logits)
    assert (cell_score(known, torn, appearance) > known.cell_threshold).mean() > 0.9
    swapped = seen.logits[:, ::-1]  # a neutrophil's logits on a basophil's nucleus
    odd = labels != 2
    assert (cell_score(known, swapped[odd], appearance[odd]) > known.cell_threshold).mean() > 0.9


def test_another_lamp_is_another_site_and_a_missing_nucleus_is_no_leukocyte(known: OutOfDistribution):
    _, _, appearance = cells(200, seed=4, light=0.5)
    assert (site_score(known, appearance) > known.site_threshold).all()
    nothing = np.full((1, len(APPEARANCE)), np.nan)
    assert cell_score(known, np.zeros((1, CLASSES)), nothing)[0] == np.inf
    assert site_score(known, nothing)[0] == -np.inf


def test_a_class_with_few_cells_or_none_and_a_pool_too_small():
    seen, labels, appearance = cells(300, seed=5)
    rare = (labels != 4) | (np.cumsum(labels == 4) <= 3)
    some = Predictions(seen.logits[rare], seen.predicted_loss[rare], seen.embedding[rare])
    fitted = fit_out_of_distribution(some, labels[rare], appearance[rare])
    assert fitted is not None
    assert len(fitted.cell) == 5
    assert fit_out_of_distribution(*cells(MIN_CELLS - 1, seed=6)) is None
    without_loss = Predictions(seen.logits, np.zeros_like(seen.predicted_loss), seen.embedding)
    refitted = fit_out_of_distribution(without_loss, labels, appearance)
    assert refitted is not None
    assert refitted.predicted_loss_threshold is None


def test_real_sites_are_told_apart_by_light_and_stain():
    from sklearn.metrics import roc_auc_score

    root = real_data()
    home = pd.read_csv(root / "pbc.csv")
    parts = {name: home[home["split"] == name]["path"].iloc[:: 8 if name == "val" else 10] for name in ("val", "test")}
    parts |= {name: pd.read_csv(root / f"{name}.csv")["path"].iloc[::5] for name in ("lisc", "bccd")}
    shown = {
        name: np.stack([look((root / path).read_bytes(), 64, "canonical")[1] for path in paths]) for name, paths in parts.items()
    }
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, len(shown["val"]))
    seen = Predictions(np.eye(CLASSES, dtype=np.float32)[labels], np.ones(len(labels), np.float32), np.empty((len(labels), 0)))
    fitted = fit_out_of_distribution(seen, labels, shown["val"])
    assert fitted is not None
    at_home = site_score(fitted, shown["test"])
    assert (at_home > fitted.site_threshold).mean() < 0.08
    for name in ("lisc", "bccd"):
        away = site_score(fitted, shown[name])
        assert roc_auc_score(np.r_[np.zeros(len(at_home)), np.ones(len(away))], np.r_[at_home, away]) > 0.99
