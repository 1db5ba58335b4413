"""Normalisation layers: what each of the two does to a batch, to its statistics, and to what is built on them."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from tests.model.conftest import rendered_set, tiny_params
from tests.model.test_export import card
from tests.model.test_pretrain import pool_of
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import CARD
from wbc_model.network.batch_norm_statistics import with_statistics_of
from wbc_model.network.lossnet import STAGE_CHANNELS
from wbc_model.network.model_directory import load_model, save_model
from wbc_model.network.resnet import STATISTICS, AttentionResNet18, load_imagenet
from wbc_model.params import Params
from wbc_model.training.adaptation import at_site
from wbc_model.training.labelled import LabelledCells
from wbc_model.training.pretrain import pretrained
from wbc_model.training.train import Training
from wbc_model.training.validation import calibrated_card

pytestmark = pytest.mark.usefixtures("narrow")


def with_norm(norm: str, **train: object) -> Params:
    params = tiny_params(**train)
    return params.model_copy(update={"model": params.model.model_copy(update={"norm": norm})})


def test_the_default_is_plain_batch_norm_with_the_same_random_weights():
    torch.manual_seed(0)
    default = AttentionResNet18()
    torch.manual_seed(0)
    named = AttentionResNet18(norm="batch").state_dict()
    assert default.state_dict().keys() == named.keys()
    assert all(torch.equal(value, named[name]) for name, value in default.state_dict().items())
    assert len([module for module in default.modules() if type(module) is nn.BatchNorm2d]) == 20  # torchvision's number


def test_group_norm_stands_in_every_place_of_batch_norm_under_its_name():
    ours, theirs = AttentionResNet18("none", False, norm="group"), torchvision.models.resnet18(num_classes=5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert set(ours.state_dict()) == {name for name in theirs.state_dict() if not name.endswith(STATISTICS)}


def test_group_norm_by_hand():
    """Two channels a group in the stem: each image's group has mean 0 and variance 1, whatever the rest of the batch."""
    network = AttentionResNet18("none", False, norm="group").train()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = network.conv1((images - network.mean) / network.std)
        pairs = y.view(3, 32, -1)
        by_hand = (pairs - pairs.mean(2, keepdim=True)) / (pairs.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(network.bn1(y), by_hand.view_as(y), rtol=1e-4, atol=1e-4)
        alone, together = network(images[:1]).logits, network(images).logits
    torch.testing.assert_close(alone, together[:1], rtol=1e-4, atol=1e-4)


def test_a_network_with_groups_is_trained_and_read_back_by_its_card(
    labelled: LabelledCells, validation: LabelledCells, tmp_path: Path
):
    params = with_norm("group", ema=0.5)
    training = Training.of_pools(params, labelled, validation, tmp_path / "c")
    before = training.network.bn1.weight.detach().clone()
    network = training.fit()
    assert not torch.equal(network.bn1.weight, before)
    written = save_model(tmp_path / "model", network, calibrated_card(network, validation, params))
    assert written.architecture.norm == "group"
    read, _ = load_model(tmp_path / "model")
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in network.state_dict().items())


def test_pre_trained_weights_begin_a_training_with_groups_too(labelled: LabelledCells, validation: LabelledCells, tmp_path: Path):
    params = with_norm("group", pretraining="simsiam", pretraining_updates=2)
    start = pretrained(params, pool_of(labelled), tmp_path)
    assert start is not None
    training = Training.of_pools(params, labelled, validation, tmp_path / "c", start=start)
    assert all(torch.equal(value, training.network.state_dict()[name]) for name, value in start.items())


def test_an_older_card_is_of_batch_norm(tmp_path: Path):
    save_model(tmp_path / "model", AttentionResNet18("none", False), card("none", False))
    content = json.loads((tmp_path / "model" / CARD).read_text())
    del content["architecture"]["norm"]
    (tmp_path / "model" / CARD).write_text(json.dumps(content))
    network, read = load_model(tmp_path / "model")
    assert (network.norm, read.architecture.norm) == ("batch", "batch")


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_what_has_no_statistics_of_a_site_is_refused_them_and_onboarding_leaves_it_as_it_is(norm: str):
    network, cells = AttentionResNet18("none", False, norm=norm), rendered_set(40, seed=9).images
    with pytest.raises(WbcError, match=f"model.norm: {norm} and cannot be given") as caught:
        with_statistics_of(network, cells)
    assert "\n" not in str(caught.value)
    assert at_site(network, cells) is network


def test_imagenet_weights_begin_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wbc_model.network.resnet.STAGE_CHANNELS", STAGE_CHANNELS)  # as wide as torchvision's
    state = torchvision.models.resnet18().state_dict()
    state["bn1.running_mean"] += 3
    save_file(state, tmp_path / "w.safetensors")
    for norm in ("batch", "group"):
        network = AttentionResNet18("eca", norm=norm)
        load_imagenet(network, tmp_path / "w.safetensors")
        own = network.state_dict()
        assert torch.equal(own["layer2.0.downsample.0.weight"], state["layer2.0.downsample.0.weight"])
        assert ("bn1.running_mean" in own) == (norm != "group")
        if norm != "group":
            assert torch.equal(own["bn1.running_mean"], state["bn1.running_mean"])
