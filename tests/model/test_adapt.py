"""Adapting a trained network to a new site: where it starts, what it draws, what it keeps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model.conftest import tiny_params
from tests.model.training_runs import adapting, champion
from wbc_model.evaluation.shift import distances_to, separability
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.params import Params
from wbc_model.training import train as training_module
from wbc_model.training.adaptation import FIXED, between, largest_step
from wbc_model.training.labelled import LabelledCells
from wbc_model.training.pseudo_labels import PseudoLabels, UnlabelledCells
from wbc_model.training.train import Training, training_key

pytestmark = pytest.mark.usefixtures("narrow")


def test_it_starts_from_the_given_weights(params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path):
    training = adapting(params, labelled, validation, tmp_path / "c", site=5)
    assert all(torch.equal(value, champion(params)[name]) for name, value in training.network.state_dict().items())


def test_what_is_drawn_again_is_the_sites_and_its_rare_classes_weigh_more(
    params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path
):
    labels = labelled.labels.copy()
    labels[-4:] = [0, 0, 0, 1]
    cells = LabelledCells(labelled.images, labels, labelled.sha256s)
    batches = adapting(params, cells, validation, tmp_path / "c", site=4).batches
    np.testing.assert_allclose(batches.weights[-4:], [3**-0.5] * 3 + [1.0])
    assert not batches.weights[:-4].any()
    drawn = batches.draw(1)
    again = drawn.cells[params.size.batch_size // 2 :]
    assert len(drawn.cells) == params.size.batch_size
    assert set(again.tolist()) <= set(range(len(labels) - 4, len(labels)))
    assert drawn.strong.tolist() == [False] * 8 + [True] * 8
    batches.note(drawn.cells, torch.ones(16))
    batches.choose_again()
    assert not batches.weights[:-4].any(), "losses do not decide"


def test_without_a_cell_of_the_site_nothing_is_drawn_again(
    params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path
):
    batches = adapting(params, labelled, validation, tmp_path / "c", site=0).batches
    assert [batches.plan.again, len(batches.draw(3).cells)] == [0, 16]


def test_the_last_weights_are_kept_though_home_validation_was_better_before(
    params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = adapting(params, labelled, validation, tmp_path / "c", site=5)
    losses = iter([0.1, 5.0, 9.0, 9.0, 9.0, 9.0])
    row = {"validation_loss": 0.0, "validation_macro_f1": 0.5, "ranking_accuracy": 0.5, "predicted_loss_spread": 0.1}
    monkeypatch.setattr(training, "validate", lambda: {**row, "validation_loss": next(losses)})
    training.fit()
    assert training.progress.best_update == training.progress.update == params.size.updates


def test_where_there_is_no_label_pseudo_labels_are_learned_from_the_first_update(
    labelled: LabelledCells, validation: LabelledCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    params, drawn = tiny_params(unlabelled_ratio=1.0), list[int]()
    pool = UnlabelledCells(labelled.sha256s[:40], lambda names: labelled.images[: len(names)])
    chosen_at: list[int] = []

    def choose(network: AttentionResNet18, prior: torch.Tensor, update: int) -> PseudoLabels:
        chosen_at.append(update)
        return PseudoLabels(torch.zeros(40, dtype=torch.int64), torch.ones(40))

    training = adapting(params, labelled, validation, tmp_path / "c", site=0, unlabelled=pool)
    late = Training.of_pools(params, labelled, validation, tmp_path / "late", pool)
    assert training.pseudo is not None
    assert late.pseudo is not None
    monkeypatch.setattr(training.pseudo, "choose", choose)
    training.fit(updated=lambda update: drawn.append(len(training.pseudo_batch(update - 1)[1])))
    assert drawn == [16] * 9
    assert chosen_at == [0, 3, 6, 9]
    assert not late.pseudo.due(0)  # where there are labels, these come first


def test_each_site_is_normalised_by_itself(params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path):
    """What the other site's images look like does not change a site's output, in training mode; the order of the batch stays."""
    training = adapting(params, labelled, validation, tmp_path / "c", site=8)
    training.network.train()
    index = torch.tensor([0, len(labelled.labels) - 1, 1, len(labelled.labels) - 2, 2])
    new = torch.tensor([False, True, False, True, False, True, True])  # two pseudo-labelled images come last
    parts = training.batches.normalised_apart(index, 2)
    images = torch.rand(7, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    other = images.clone()
    other[new] = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        both = training.forward(images, parts, 9).logits
        changed = training.forward(other, parts, 9).logits
        alone = training.network(images[~new]).logits
    torch.testing.assert_close(both[~new], changed[~new])
    torch.testing.assert_close(both[~new].float(), alone.float(), rtol=0.1, atol=0.1)  # the one in bf16
    assert not torch.allclose(both[new], changed[new])


def test_a_site_with_too_few_cells_for_a_variance_is_normalised_with_the_rest(
    params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path
):
    batches = adapting(params, labelled, validation, tmp_path / "c", site=8).batches
    last = len(labelled.labels) - 1
    assert [part.tolist() for part in batches.normalised_apart(torch.tensor([0, last, 1]), 0)] == [[0, 1, 2]]
    assert [part.tolist() for part in batches.normalised_apart(torch.tensor([0, last, 1]), 1)] == [[0, 2], [1, 3]]


def test_another_champion_is_another_training(params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path):
    """A checkpoint made from other weights, or with other cells of the site, is not gone on with."""
    weights = champion(params)
    other = {name: value + 1 if value.is_floating_point() else value for name, value in weights.items()}
    training = adapting(params, labelled, validation, tmp_path / "c", site=5)
    plain = Training.of_pools(params, labelled, validation, tmp_path / "c", start=weights)
    keys = [training.key, plain.key, adapting(params, labelled, validation, tmp_path / "c", site=6).key]
    keys.append(training_key(params, training.batches, validation, None, other))
    assert len(set(keys)) == 4
    assert training_key(params, training.batches, validation, None, weights) == training.key


def test_fixed_modules_stay_the_champions_and_the_others_learn_as_they_would(
    params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path
):
    some, every = (adapting(params, labelled, validation, tmp_path / "c", site=8, fixed=fixed) for fixed in (FIXED, ()))
    for training in (some, every):
        training.network.train()
        training.step(0)
    learned = dict(every.network.named_parameters())
    for name, value in some.network.named_parameters():
        if name.split(".")[0] in FIXED:
            assert torch.equal(value, champion(params)[name])
            assert not torch.equal(learned[name], champion(params)[name])
        else:
            torch.testing.assert_close(value.grad, learned[name].grad)
    assert some.key != every.key, "a checkpoint of the one is not gone on with by the other"


def test_with_fixed_modules_too_an_interrupted_training_goes_on_to_the_same_bits(
    params: Params, labelled: LabelledCells, validation: LabelledCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training_module, "CHECKPOINT_SECONDS", 0.0)

    def training(name: str) -> Training:
        return adapting(params, labelled, validation, tmp_path / name, site=8, fixed=FIXED)

    def kill(row: dict[str, float]) -> None:
        if row["update"] == 6:
            raise KeyboardInterrupt

    whole = training("whole").fit().state_dict()
    with pytest.raises(KeyboardInterrupt):
        training("killed").fit(kill)
    rest: list[int] = []
    resumed = training("killed").fit(updated=rest.append).state_dict()
    assert rest == [7, 8, 9]
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_distance_to_the_nearest_by_hand():
    reference = np.array([[1, 0], [0, 2]], np.float32)
    cells = np.array([[3, 0], [1, 1], [-1, 0]], np.float32)
    np.testing.assert_allclose(distances_to(cells, reference), [0, 1 - 2**-0.5, 1], atol=1e-6)


def test_separability_is_chance_for_one_site_and_one_for_two_far_apart():
    rng = np.random.default_rng(0)
    one, same, far = (rng.normal(size=(300, 16)).astype(np.float32) for _ in range(3))
    alike, apart = separability(one, same, 0), separability(one, far + 5, 0)
    assert alike is not None
    assert 0.35 < alike < 0.65
    assert apart is not None
    assert apart > 0.99
    assert separability(one, far[:1], 0) is None, "one cell cannot be told apart and validated on"


def test_between_two_networks_by_hand():
    start = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)}
    end = {"w": torch.tensor([1.0, 0.0]), "n": torch.tensor(7)}
    half = between(start, end, 0.25)
    torch.testing.assert_close(half["w"], torch.tensor([0.25, 1.5]))
    assert half["n"] == 7


def test_the_largest_step_that_home_allows():
    home = {1.0: 0.96, 0.9: 0.97, 0.8: 0.975, 0.7: 0.979}
    assert largest_step(lambda step: home.get(step, 0.98), at_start=0.98, max_loss=0.002) == 0.7
    assert largest_step(lambda step: home.get(step, 0.98), at_start=0.98, max_loss=0.05) == 1.0
    assert largest_step(lambda step: 0.5, at_start=0.98, max_loss=0.002) == 0.0
