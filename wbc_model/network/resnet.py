"""AttentionResNet18: torchvision's ResNet18, an attention module at the end of every residual block, and LossNet.

    images (N, 3, S, S) in 0..1 ── normalise ── stem ── layer1 ── layer2 ── layer3 ── layer4 ── mean ── fc ── logits
                                                          └────────┴────────┴────────┴── LossNet ── predicted loss

Parameter names are torchvision's, so that its ImageNet weights load as they are. Normalisation in the backbone is by batch or by
group.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.network.attention import ATTENTION
from wbc_model.network.convolution import Conv3x3
from wbc_model.network.lossnet import STAGE_CHANNELS, LossNet

# ImageNet's statistics, because that is what weights given by file were trained with.
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
GROUPS: Final = 32  # the default of Wu & He 2018


class Output(NamedTuple):
    """`logits` (N, classes), `predicted_loss` (N,) float32 (zeros without LossNet), `embedding` (N, 512)."""

    logits: Tensor
    predicted_loss: Tensor
    embedding: Tensor


NORM: Final[dict[str, Callable[[int], nn.Module]]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(GROUPS, channels),
    "frozen": nn.BatchNorm2d,  # of models made before: they learned by statistics that must not be measured anew
}
STATISTICS: Final = ("running_mean", "running_var", "num_batches_tracked")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with attention before the residual sum, as in CBAM's figure 3."""

    def __init__(self, channels_in: int, channels: int, stride: int, attention: str, norm: str) -> None:
        super().__init__()
        normalise = NORM[norm]
        self.conv1 = Conv3x3(channels_in, channels, stride)
        self.bn1 = normalise(channels)
        self.conv2 = Conv3x3(channels, channels)
        self.bn2 = normalise(channels)
        self.attention = ATTENTION[attention](channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), normalise(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.attention(self.bn2(self.conv2(y)))
        return torch.relu(y + self.downsample(x))


class AttentionResNet18(nn.Module):
    """The classifier. `attention` is `none`, `eca`, `srm` or `cbam`; `lossnet` adds the loss prediction head; `norm`, of the
    backbone without its attention, is `batch` or `group`; a model made before may have `frozen`."""

    mean: Tensor
    std: Tensor

    def __init__(self, attention: str = "cbam", lossnet: bool = True, classes: int = len(CLASSES), norm: str = "batch") -> None:
        super().__init__()
        self.attention, self.norm = attention, norm
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        channels_in = STAGE_CHANNELS[0]
        self.conv1 = nn.Conv2d(3, channels_in, 7, stride=2, padding=3, bias=False)
        self.bn1 = NORM[norm](channels_in)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        for channels, stride in zip(STAGE_CHANNELS, (1, 2, 2, 2), strict=True):
            first = BasicBlock(channels_in, channels, stride, attention, norm)
            stages.append(nn.Sequential(first, BasicBlock(channels, channels, 1, attention, norm)))
            channels_in = channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels_in, classes)
        self.lossnet = LossNet(STAGE_CHANNELS) if lossnet else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, lossnet_gradient: bool = True) -> Output:
        """Float images (N, 3, S, S) in 0..1. Without `lossnet_gradient` LossNet learns but does not move the backbone."""
        x = (images - self.mean) / self.std
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        embedding = x.mean((2, 3))
        logits = self.fc(embedding)
        if self.lossnet is None:
            return Output(logits, torch.zeros_like(logits[:, 0], dtype=torch.float32), embedding)
        predicted = self.lossnet(features if lossnet_gradient else [f.detach() for f in features])
        return Output(logits, predicted, embedding)


def load_imagenet(network: AttentionResNet18, path: Path) -> list[str]:
    """Load torchvision ResNet18 weights (.safetensors, or a .pth that holds tensors only) into the backbone.

    The classifier of another number of classes is left out. So are attention and LossNet, which ImageNet does not have. For group
    normalisation the batch-norm statistics are left out.
    Returns the names of the parameters that stay as initialised. Raises WbcError when the file does not fit.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)  # tensors only: no code from the file runs
    except FileNotFoundError:
        raise WbcError(f"model.init_weights: {path} does not exist") from None
    except Exception as error:
        raise WbcError(f"model.init_weights: {path} holds no ResNet18 weights ({type(error).__name__})") from error
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    if network.norm == "group":
        state = {name: value for name, value in state.items() if not name.endswith(STATISTICS)}
    own = network.state_dict()
    wrong = sorted(name for name, value in state.items() if name not in own or own[name].shape != value.shape)
    fresh = sorted(name for name in own if name not in state)
    lacking = [name for name in fresh if not any(part in name for part in ("attention", "lossnet", "fc."))]
    if wrong or lacking:
        raise WbcError(f"model.init_weights: {path} is not a ResNet18: {(wrong + lacking)[0]} does not fit")
    network.load_state_dict(state, strict=False)
    return fresh


def begin_with(network: AttentionResNet18, start: Mapping[str, Tensor]) -> None:
    """Load the weights of a network of the same kind; a head that they lack (`fc`, `lossnet`) stays as initialised.

    Raises WbcError when they are of another network.
    """
    own = network.state_dict()
    wrong = sorted(name for name, value in start.items() if name not in own or own[name].shape != value.shape)
    lacking = sorted(name for name in own if name not in start and not name.startswith(("fc.", "lossnet.")))
    if wrong or lacking:
        raise WbcError(f"the weights that the training begins with are of another network: {(wrong + lacking)[0]} does not fit")
    network.load_state_dict(dict(start), strict=False)
