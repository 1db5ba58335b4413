"""Training: deterministic, resumable to the same bits, learns, and says when there is too little."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from serving.contract.differential import card_confusion
from tests.model.conftest import rendered_set, tiny_params
from wbc_model.core.errors import WbcError
from wbc_model.core.images import APPEARANCE
from wbc_model.core.model_card import ModelCard
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.params import Params
from wbc_model.training import train as training_module
from wbc_model.training.augment import MILD, SITES, Strength, augment
from wbc_model.training.labelled import LabelledCells, check_trainable
from wbc_model.training.schedule import learning_rate
from wbc_model.training.train import Training
from wbc_model.training.validation import calibrated_card

pytestmark = pytest.mark.usefixtures("narrow")


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in training.network.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def history(training: Training) -> list[dict[str, float]]:
    rows = training.progress.history
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def test_a_seed_gives_the_same_bits_and_an_interrupted_training_too(
    params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training_module, "CHECKPOINT_SECONDS", 0.0)
    whole = Training.of_pools(params, labelled, validation, tmp_path / "whole")
    whole.fit()
    again = Training.of_pools(params, labelled, validation, tmp_path / "again")
    again.fit()
    assert same(weights(whole), weights(again))

    class Killed(Exception):
        pass

    def kill(row: dict[str, float]) -> None:
        if row["update"] == 3:
            raise Killed

    with pytest.raises(Killed):
        Training.of_pools(params, labelled, validation, tmp_path / "killed").fit(kill)
    resumed = Training.of_pools(params, labelled, validation, tmp_path / "killed")
    seen: list[float] = []
    resumed.fit(lambda row: seen.append(row["update"]))
    assert seen == [6, 9]  # the first third was not trained again
    assert same(weights(whole), weights(resumed))
    assert history(whole) == history(resumed)


def test_a_checkpoint_of_other_inputs_is_not_used(
    params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training_module, "CHECKPOINT_SECONDS", 0.0)
    Training.of_pools(params, labelled, validation, tmp_path / "checkpoint").fit()
    other = Training.of_pools(tiny_params(learning_rate=0.0001), labelled, validation, tmp_path / "checkpoint")
    other.resume()
    assert other.progress.update == 0


def test_it_begins_with_given_weights_and_heads_that_they_lack_are_as_without_them(
    params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path
):
    torch.manual_seed(99)
    other = AttentionResNet18(params.model.attention, params.model.lossnet).state_dict()
    fresh = Training.of_pools(params, labelled, validation, tmp_path / "c")
    whole = Training.of_pools(params, labelled, validation, tmp_path / "c", start=other)
    assert same(weights(whole), other)
    backbone = {name: value for name, value in other.items() if not name.startswith(("fc.", "lossnet."))}
    headless = Training.of_pools(params, labelled, validation, tmp_path / "c", start=backbone)
    for name, value in weights(headless).items():
        assert torch.equal(value, backbone.get(name, weights(fresh)[name])), name
    changed = {**other, "fc.bias": other["fc.bias"] + 1}
    keys = {
        fresh.key,
        whole.key,
        headless.key,
        Training.of_pools(params, labelled, validation, tmp_path / "c", start=changed).key,
    }
    assert len(keys) == 4  # a checkpoint made from other weights is not gone on with


@pytest.mark.parametrize("name", ["layer1.0.bn1.running_mean", "layer3.1.attention.spatial.weight"])
def test_weights_of_another_network_are_no_start(
    name: str, params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path
):
    state = AttentionResNet18(params.model.attention, params.model.lossnet).state_dict()
    lacking = {key: value for key, value in state.items() if key != name}
    for start in (lacking, {**state, name: state[name][..., :1]}, {**state, f"{name}.more": state[name]}):
        with pytest.raises(WbcError, match=f"of another network: {name}"):
            Training.of_pools(params, labelled, validation, tmp_path / "c", start=start)


def test_it_learns(labelled: LabelledCells, validation: LabelledCells, tmp_path: Path):
    params = tiny_params(hard_share=0.25, eval_every=12)
    size = params.size.model_copy(update={"updates": 60})
    params = params.model_copy(update={"presets": {"small": size}})
    training = Training.of_pools(params, labelled, validation, tmp_path / "checkpoint")
    training.fit()
    rows = training.progress.history
    assert max(row["validation_accuracy"] for row in rows) > 0.7  # chance is 0.45, the share of neutrophils
    assert rows[-1]["ranking_accuracy"] > 0.55  # LossNet ranks better than chance
    assert rows[-1]["predicted_loss_spread"] > 0  # and has not collapsed
    assert training.batches.weights.any()
    card = calibrated_card(training.network, validation, params)
    assert card.metrics["validation"]["n"] == 80
    confusion = card_confusion(card)
    assert confusion is not None
    assert confusion.sum(axis=1).tolist() == np.bincount(validation.labels, minlength=5).tolist()
    assert 0 < card.conformal_threshold < 1
    assert card.out_of_distribution is None
    shown = np.random.default_rng(0).normal(size=(80, len(APPEARANCE)))
    scored = calibrated_card(training.network, validation, params, shown)
    assert scored.out_of_distribution is not None
    assert ModelCard.model_validate_json(scored.model_dump_json()) == scored


def test_hard_samples_are_the_high_losses(params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path):
    training = Training.of_pools(params, labelled, validation, tmp_path / "checkpoint")
    training.fit()
    hard = training.batches.weights > 0
    for label in np.unique(labelled.labels):
        members = torch.from_numpy(labelled.labels == label) & ~training.batches.losses.isnan()
        if (members & hard).any() and (members & ~hard).any():
            assert training.batches.losses[members & hard].min() >= training.batches.losses[members & ~hard].max()


def test_stops_early_and_keeps_the_best(
    labelled: LabelledCells, validation: LabelledCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With labels drawn at random nothing is learned, and the best validation step is not the last."""
    monkeypatch.setattr(training_module, "PATIENCE", 0.02)
    rng = np.random.default_rng(0)
    noise = LabelledCells(labelled.images, rng.permutation(labelled.labels), labelled.sha256s)
    params = tiny_params(learning_rate=0.05)
    params = params.model_copy(update={"presets": {"small": params.size.model_copy(update={"updates": 600})}})
    training = Training.of_pools(params, noise, validation, tmp_path / "checkpoint")
    training.fit()
    assert training.progress.update < 600
    assert (
        training.progress.update - training.progress.best_update == 12
    )  # 2 % of 600, a multiple of the 3 between two validation steps
    assert training.progress.best_loss == min(row["validation_loss"] for row in training.progress.history)


def test_half_of_a_batch_is_shown_as_other_sites_would_show_it_and_leaves_the_statistics_alone(
    labelled: LabelledCells, validation: LabelledCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The other half, hard samples and pseudo-labelled cells make the running statistics alone."""
    shown: list[tuple[int, Strength]] = []

    def noted(images: torch.Tensor, strong: torch.Tensor, generator: torch.Generator, strength: Strength) -> torch.Tensor:
        shown.append((len(images), strength))
        return augment(images, strong, generator, strength)

    monkeypatch.setattr("wbc_model.training.train.augment", noted)
    drawn = {}
    for kind in ("mild", "both", "sites"):
        training = Training.of_pools(tiny_params(augmentation=kind), labelled, validation, tmp_path / kind)
        images, _, index = training.labelled_batch(0)
        drawn[kind] = (images, index, [part.tolist() for part in training.batches.normalised_apart(index, 3)])
    assert shown == [(16, MILD), (8, SITES), (8, MILD), (16, SITES)]
    assert [parts for *_, parts in drawn.values()] == [[[*range(19)]], [[*range(8, 19)], [*range(8)]], [[*range(19)]]]

    training = Training.of_pools(tiny_params(augmentation="both"), labelled, validation, tmp_path / "c")
    alone = copy.deepcopy(training.network).train()
    images, index = drawn["both"][:2]
    training.network.train()
    out = training.forward(images, training.batches.normalised_apart(index, 0), 0)
    home, elsewhere = alone(images[8:]), copy.deepcopy(training.network).train()(images[:8])
    torch.testing.assert_close(out.logits, torch.cat([elsewhere.logits, home.logits]))
    statistics = [{k: v for k, v in one.state_dict().items() if "running" in k} for one in (training.network, alone)]
    torch.testing.assert_close(*statistics)
    assert {norm.momentum for norm in training.network.modules() if isinstance(norm, torch.nn.BatchNorm2d)} == {0.1}


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(u, 100, 1.0) for u in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[9] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.01, abs=0.002)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_too_little_to_learn_from(validation: LabelledCells):
    one_class = LabelledCells(validation.images[:3], np.zeros(3, dtype=np.int64), ("a", "b", "c"))
    with pytest.raises(WbcError, match="fewer than two classes"):
        check_trainable(one_class, validation)
    empty = LabelledCells(validation.images[:0], validation.labels[:0], ())
    with pytest.raises(WbcError, match=r"validation pool is empty, .*: ingest labelled cells with the split val"):
        check_trainable(rendered_set(20, 3), empty)
