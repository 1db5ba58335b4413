"""Learning from the unlabelled pool: pseudo-labels and averaged weights by hand, and the training that uses them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model.conftest import rendered_set, tiny_params
from tests.model.test_train import history, same, weights
from wbc_model.core.errors import WbcError
from wbc_model.network.predict import Predictions
from wbc_model.training import pseudo_labels
from wbc_model.training import train as training_module
from wbc_model.training.batches import log_prior
from wbc_model.training.labelled import LabelledCells
from wbc_model.training.pseudo_labels import PseudoLabelling, PseudoLabels, UnlabelledCells, candidates, choose, class_thresholds
from wbc_model.training.schedule import averaged
from wbc_model.training.train import Training

pytestmark = pytest.mark.usefixtures("narrow")
POOL = {"unlabelled_ratio": 1.0, "ema": 0.9}


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that knows little yet has pseudo-labels too, from the first validation step on."""
    monkeypatch.setattr(pseudo_labels, "THRESHOLD", 0.2)
    monkeypatch.setattr(pseudo_labels, "START_SHARE", 0.0)


@pytest.fixture(scope="module")
def pool() -> UnlabelledCells:
    return as_pool(rendered_set(60, seed=4))


def as_pool(cells: LabelledCells) -> UnlabelledCells:
    row = {sha256: i for i, sha256 in enumerate(cells.sha256s)}
    return UnlabelledCells(cells.sha256s, lambda wanted: cells.images[[row[sha256] for sha256 in wanted]])


def test_pseudo_labels_by_hand():
    """Class 0 is the surest, 0.9 on the average; class 1 with 0.6 on the average needs two thirds of its threshold."""
    probabilities = torch.tensor(
        [[0.98, 0.01, 0.01], [0.82, 0.08, 0.1], [0.99, 0.0, 0.01], [0.81, 0.1, 0.09], [0.35, 0.65, 0.0], [0.4, 0.55, 0.05]]
    )
    confidence, guess = probabilities.max(1)
    thresholds = class_thresholds(confidence, guess, 3, 0.9)
    assert thresholds.tolist() == pytest.approx([0.9, 0.6, 0.0])  # nothing was taken for class 2
    chosen = choose(probabilities, 0.9, 0.5)
    assert chosen.labels.tolist() == [0, 0, 0, 0, 1, 1]
    half = 2**-0.5
    assert chosen.weights.tolist() == pytest.approx([half, 0, half, 0, 1.0, 0])
    assert choose(probabilities, 0.9, 0.0).weights.tolist() == [1, 0, 1, 0, 1, 0]
    assert not choose(probabilities * 0.5, 1.0, 0.5).weights.isnan().any()
    same = choose(probabilities, 0.9, 0.5, by_class=False)  # the unsure class gets none: 0.65 is below 0.9
    assert same.weights.tolist() == pytest.approx([half, 0, half, 0, 0, 0])


def test_at_a_new_site_one_threshold_serves_all_classes(monkeypatch: pytest.MonkeyPatch):
    """Three cells are sure to be of class 0. The fourth is of class 1 by 0.73: over that class's own threshold, under 0.9."""
    logits = np.array([[9.0, 0, 0, 0, 0]] * 3 + [[0, 2.4, 0, 0, 0]], np.float32)
    seen = Predictions(logits, np.zeros(4, np.float32), np.empty((4, 0), np.float32))
    monkeypatch.setattr(pseudo_labels, "predict", lambda network, batches, autocast: seen)
    cells, even = UnlabelledCells(("a", "b", "c", "d"), lambda wanted: np.empty(0, np.uint8)), torch.zeros(5)
    by_class, at_a_site = (PseudoLabelling(cells, tiny_params(**POOL), by_class=by_class) for by_class in (True, False))
    network = torch.nn.Identity()
    assert by_class.choose(network, even, 50).weights[3] == 1  # type: ignore[arg-type]
    assert at_a_site.choose(network, even, 50).weights[3] == 0  # type: ignore[arg-type]


def test_pseudo_labels_are_chosen_with_half_of_the_labelled_pools_shares(monkeypatch: pytest.MonkeyPatch):
    """Class 1 is e^1.5 times as frequent as class 0, so 0.75 are added for it: more than it is behind in the second cell, and
    less than in the first."""
    logits = np.array([[1.0, 0, -9, -9, -9], [0.5, 0, -9, -9, -9]], np.float32)
    seen = Predictions(logits, np.zeros(2, np.float32), np.empty((2, 0), np.float32))
    monkeypatch.setattr(pseudo_labels, "predict", lambda network, batches, autocast: seen)
    labelling = PseudoLabelling(UnlabelledCells(("a", "b"), lambda wanted: np.empty(0, np.uint8)), tiny_params(**POOL))
    chosen = labelling.choose(torch.nn.Identity(), torch.tensor([0.0, 1.5, 0, 0, 0]), 50)  # type: ignore[arg-type]
    assert chosen.labels.tolist() == [0, 1]


def test_of_a_large_pool_other_cells_are_valued_at_each_validation_step():
    assert candidates(5, 5, 0, 50).tolist() == [0, 1, 2, 3, 4]
    first, second = candidates(1000, 100, 0, 50), candidates(1000, 100, 0, 100)
    assert len(first.unique()) == len(second.unique()) == 100
    assert not torch.equal(first, second)
    assert torch.equal(first, candidates(1000, 100, 0, 50))


def test_class_shares_by_hand():
    assert log_prior(torch.tensor([1, 3, 0])).tolist() == pytest.approx([math.log(0.25), math.log(0.75), math.log(0.001)])
    assert log_prior(torch.zeros(3)).tolist() == [0, 0, 0]


def test_averaged_weights_by_hand():
    network = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    network[0].weight.data.fill_(2.0)
    average = averaged(network, 0.5)
    network[0].weight.data.fill_(12.0)
    network[1].running_mean.fill_(1.0)
    network[1].num_batches_tracked.fill_(7)
    average.update_parameters(network)  # decay 1 / 10: 0.1 · 2 + 0.9 · 12
    assert average.module[0].weight.item() == pytest.approx(11.0)
    assert average.module[1].running_mean.item() == pytest.approx(0.9)
    assert average.module[1].num_batches_tracked.item() == 7
    network[0].weight.data.fill_(1.0)
    average.n_averaged.fill_(1000)
    average.update_parameters(network)  # the decay has grown to 0.5
    assert average.module[0].weight.item() == pytest.approx(6.0)
    assert not average.module[0].weight.requires_grad
    assert not average.module.training


def test_the_loss_by_hand(labelled: LabelledCells, validation: LabelledCells, pool: UnlabelledCells, tmp_path: Path):
    """Cross-entropy of the labelled part plus cross-entropy of the pseudo-labelled part, each with the logarithm of its class
    shares on the logits; LossNet's from the labelled alone."""
    training = Training.of_pools(tiny_params(**POOL, logit_adjustment=1.0), labelled, validation, tmp_path / "checkpoint", pool)
    pseudo = PseudoLabels.none(60)
    pseudo.labels[7], pseudo.weights[7] = 3, 1.0
    assert training.pseudo is not None
    training.pseudo.use(pseudo)
    asked = {}
    training.module = lambda images, lossnet_gradient: asked.setdefault("output", training.network(images, lossnet_gradient))  # type: ignore[assignment]
    training.fabric.backward = lambda loss: asked.setdefault("loss", loss)  # type: ignore[method-assign]
    training.step(0)
    logits, predicted = asked["output"].logits, asked["output"].predicted_loss
    assert len(logits) == 16 + 16
    _, labels, _ = training.labelled_batch(0)
    shares = torch.bincount(torch.from_numpy(labelled.labels), minlength=5) / 160
    each = -(logits + shares.log()).log_softmax(1)[range(16), labels]
    drawn = torch.tensor([0.001, 0.001, 0.001, 1.0, 0.001])
    of_pool = -(logits + drawn.log()).log_softmax(1)[16:, 3]
    ranking = training_module.ranking_loss(predicted[:16], each)
    assert asked["loss"].item() == pytest.approx((each.mean() + of_pool.mean() + ranking).item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("early")
def test_goes_on_after_a_kill_to_the_same_bits(
    labelled: LabelledCells, validation: LabelledCells, pool: UnlabelledCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training_module, "CHECKPOINT_SECONDS", 0.0)
    params = tiny_params(**POOL)
    whole = Training.of_pools(params, labelled, validation, tmp_path / "whole", pool)
    whole.fit()
    assert whole.pseudo is not None
    assert whole.pseudo.chosen.weights.any()

    class Killed(Exception):
        pass

    def kill(row: dict[str, float]) -> None:
        if row["update"] == 6:
            raise Killed

    with pytest.raises(Killed):
        Training.of_pools(params, labelled, validation, tmp_path / "killed", pool).fit(kill)
    resumed = Training.of_pools(params, labelled, validation, tmp_path / "killed", pool)
    seen: list[float] = []
    resumed.fit(lambda row: seen.append(row["update"]))
    assert seen == [9]
    assert same(weights(whole), weights(resumed))
    assert history(whole) == history(resumed)
    assert resumed.pseudo is not None
    assert torch.equal(whole.pseudo.chosen.weights, resumed.pseudo.chosen.weights)
    other = Training.of_pools(params, labelled, validation, tmp_path / "killed", as_pool(rendered_set(20, seed=5)))
    other.resume()
    assert other.progress.update == 0  # a checkpoint of another pool


def test_a_share_of_the_labelled_samples_is_augmented_strongly(
    labelled: LabelledCells, validation: LabelledCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = Training.of_pools(tiny_params(strong_share=0.5, hard_share=0.0), labelled, validation, tmp_path / "checkpoint")
    marked: list[torch.Tensor] = []

    def noted(images: torch.Tensor, strong: torch.Tensor, *rest: object) -> torch.Tensor:
        marked.append(strong)
        return images

    monkeypatch.setattr(training_module, "augment", noted)
    for update in range(40):
        training.labelled_batch(update)
    assert torch.cat(marked).float().mean().item() == pytest.approx(0.5, abs=0.1)  # of 640, five standard deviations


def test_off_the_pool_changes_nothing(labelled: LabelledCells, validation: LabelledCells, pool: UnlabelledCells, tmp_path: Path):
    off = tiny_params(unlabelled_ratio=0.0)
    runs = [Training.of_pools(off, labelled, validation, tmp_path / f"{i}", given) for i, given in enumerate((None, pool))]
    empty = UnlabelledCells((), lambda wanted: np.empty((0, 32, 32, 3), np.uint8))
    runs.append(Training.of_pools(tiny_params(unlabelled_ratio=1.0), labelled, validation, tmp_path / "empty", empty))
    for run in runs:
        run.fit()
    assert same(weights(runs[0]), weights(runs[1]))
    assert same(weights(runs[0]), weights(runs[2]))


def test_the_pool_is_needed_where_it_is_used(labelled: LabelledCells, validation: LabelledCells, tmp_path: Path):
    with pytest.raises(WbcError, match=r"train\.unlabelled_ratio is above 0, but"):
        Training.of_pools(tiny_params(unlabelled_ratio=1.0), labelled, validation, tmp_path / "checkpoint")


def test_the_averaged_network_is_the_one_that_is_validated_and_kept(
    labelled: LabelledCells, validation: LabelledCells, tmp_path: Path
):
    training = Training.of_pools(tiny_params(ema=0.9), labelled, validation, tmp_path / "checkpoint")
    training.fit()
    assert training.averaged is not None
    if training.progress.best_update == 9:
        assert same(training.network.state_dict(), training.averaged.module.state_dict())
    assert training.averaged.module.state_dict().keys() == training.best.keys()
