"""The network: torchvision's names and numbers, weights from a file."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from wbc_model.core.errors import WbcError
from wbc_model.network.resnet import MEAN, STD, AttentionResNet18, load_imagenet


def test_without_attention_it_is_torchvisions_resnet18(tmp_path: Path):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    path = tmp_path / "weights.safetensors"
    save_file(theirs.state_dict(), path)
    ours = AttentionResNet18("none", lossnet=False, classes=1000).eval()
    assert load_imagenet(ours, path) == ["fc.bias", "fc.weight"]
    ours.fc.load_state_dict(theirs.fc.state_dict())
    x = torch.rand(2, 3, 64, 64)
    normalised = torchvision.transforms.functional.normalize(x, MEAN, STD)
    torch.testing.assert_close(ours(x).logits, theirs(normalised))


@pytest.mark.parametrize("attention", ["eca", "srm", "cbam"])
def test_imagenet_weights_load_beside_attention(attention: str, tmp_path: Path):
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    network = AttentionResNet18(attention)
    fresh = load_imagenet(network, path)
    assert all("attention" in name or "lossnet" in name or name.startswith("fc.") for name in fresh)
    blocks = [block for stage in (network.layer1, network.layer2, network.layer3, network.layer4) for block in stage]
    assert all(any(True for _ in block.attention.parameters()) for block in blocks)


def test_other_weights_are_refused(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(WbcError, match="not a ResNet18"):
        load_imagenet(AttentionResNet18(), path)
    with pytest.raises(WbcError, match="does not exist"):
        load_imagenet(AttentionResNet18(), tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WbcError, match="holds no ResNet18 weights"):
        load_imagenet(AttentionResNet18(), tmp_path / "text.pth")


def test_code_in_a_weights_file_does_not_run(tmp_path: Path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv1.weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(WbcError):
        load_imagenet(AttentionResNet18(), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
