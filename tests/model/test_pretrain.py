"""Self-supervised pre-training: its losses, that it goes on and repeats to the same bits, and that a training begins with it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.model.conftest import tiny_params
from wbc_model.core.errors import WbcError
from wbc_model.params import Params
from wbc_model.training import pretrain as module
from wbc_model.training.labelled import LabelledCells
from wbc_model.training.pretrain import DINO, METHODS, Pretraining, SimSiam, VICReg, pretrained
from wbc_model.training.pseudo_labels import UnlabelledCells
from wbc_model.training.train import Training

pytestmark = pytest.mark.usefixtures("narrow")


def pool_of(cells: LabelledCells) -> UnlabelledCells:
    place = {name: row for row, name in enumerate(cells.sha256s)}
    return UnlabelledCells(cells.sha256s, lambda wanted: cells.images[[place[name] for name in wanted]])


def settings(method: str, **more: object) -> Params:
    return tiny_params(pretraining=method, **{"pretraining_updates": 3, **more})


def halves(network: nn.Module, views: Tensor) -> tuple[Tensor, Tensor]:
    """An embedding that is the views themselves."""
    first, second = views.chunk(2)
    return first, second


def test_simsiam_by_hand():
    """Projection and prediction left out: minus the cosine of each view with the other."""
    method = SimSiam(nn.Identity())
    method.project = method.predict = nn.Identity()
    views = torch.tensor([[3.0, 4.0], [1.0, 0.0], [6.0, 8.0], [0.0, 1.0]], requires_grad=True)  # cosines 1 and 0
    loss = method(halves, nn.Identity(), views)
    assert loss.item() == pytest.approx(-0.5)


def test_simsiam_sends_no_gradient_to_what_is_predicted():
    method = SimSiam(nn.Identity())
    method.project, method.predict = nn.Identity(), nn.Linear(2, 2, bias=False)
    nn.init.zeros_(method.predict.weight)  # a prediction of nothing passes no gradient on to the views either
    views = torch.randn(4, 2, requires_grad=True)
    method(halves, nn.Identity(), views).backward()
    assert views.grad is not None
    assert not views.grad.any()
    assert method.predict.weight.grad is not None


def test_vicreg_by_hand():
    """Views alike, spread by one in every dimension, uncorrelated: only what is left of the variance's hinge."""
    method = VICReg(nn.Identity())
    method.project = nn.Identity()
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert method(halves, nn.Identity(), torch.cat([corners, corners])).item() == pytest.approx(0, abs=1e-6)
    apart = method(halves, nn.Identity(), torch.cat([corners, -corners])).item()
    assert apart == pytest.approx(25 * 4)  # 25 times the mean square of a difference of 2


def test_dinos_teacher_follows_slowly():
    student = nn.Linear(2, 512, bias=False)
    method = DINO(student)
    before = [value.clone() for value in (method.teacher.weight, method.teacher_head.last_layer.weight_v)]
    with torch.no_grad():
        student.weight += 1
        method.head.last_layer.weight_v += 1
    method.follow(student)
    after = method.teacher.weight, method.teacher_head.last_layer.weight_v
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old + 0.01)
    assert not any(value.requires_grad for part in (method.teacher, method.teacher_head) for value in part.parameters())


@pytest.mark.parametrize("method", [name if name == "vicreg" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS])
def test_it_learns_goes_on_after_a_kill_and_repeats(
    method: str, labelled: LabelledCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    params = settings(method)
    whole = Pretraining(params, pool_of(labelled), tmp_path / "whole")
    begin = {name: value.clone() for name, value in whole.network.state_dict().items()}
    weights = whole.fit()
    assert set(weights) == {name for name in begin if not name.startswith("fc.")}
    assert not torch.equal(weights["layer4.1.conv2.weight"], begin["layer4.1.conv2.weight"])
    assert all(value.isfinite().all() for value in weights.values())

    killed = Pretraining(params, pool_of(labelled), tmp_path / "killed")
    step = killed.step

    def dies(update: int) -> float:
        if update == 2:
            raise KeyboardInterrupt
        return step(update)

    monkeypatch.setattr(killed, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    resumed = Pretraining(params, pool_of(labelled), tmp_path / "killed")
    again = resumed.fit()
    assert resumed.update == 3
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.slow
def test_views_of_one_cell_come_closer(labelled: LabelledCells, tmp_path: Path):
    """VICReg's loss, which no trivial answer lowers, falls."""
    training = Pretraining(settings("vicreg", pretraining_updates=24), pool_of(labelled), tmp_path / "c")
    losses = [training.step(update) for update in range(24)]
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])


def test_made_once_for_a_pool_and_used_by_the_training(labelled: LabelledCells, validation: LabelledCells, tmp_path: Path):
    params, pool = settings("simsiam"), pool_of(labelled)
    first = pretrained(params, pool, tmp_path)
    files = list(tmp_path.glob("*.safetensors"))
    written = files[0].stat().st_mtime_ns
    turned = UnlabelledCells(pool.sha256s[::-1], pool.read)  # cells that were labelled meanwhile come in another order
    again = pretrained(params, turned, tmp_path)
    assert len(files) == 1
    assert list(tmp_path.glob("*.safetensors")) == files
    assert files[0].stat().st_mtime_ns == written
    assert first is not None
    assert again is not None
    assert all(torch.equal(first[name], again[name]) for name in first)
    pretrained(settings("simsiam", pretraining_updates=5), pool, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    training = Training.of_pools(params, labelled, validation, tmp_path / "checkpoint", start=first)
    assert torch.equal(training.network.state_dict()["layer1.0.conv1.weight"], first["layer1.0.conv1.weight"])
    assert pretrained(tiny_params(), pool, tmp_path) is None


def test_what_cannot_be_learnt_from_is_said(labelled: LabelledCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    few = UnlabelledCells(labelled.sha256s[:15], pool_of(labelled).read)
    with pytest.raises(WbcError, match="the pool has 15 cells, at least 16 are needed"):
        pretrained(settings("simsiam"), few, tmp_path)
    monkeypatch.setattr(module.Pretraining, "spread", lambda self: 0.001)
    with pytest.raises(WbcError, match="simsiam has collapsed"):
        pretrained(settings("simsiam"), pool_of(labelled), tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
