"""The attention modules that the paper compares: ECA, SRM and CBAM. Each maps (N, C, H, W) to the same shape."""

import math
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class ECA(nn.Module):
    """Efficient channel attention, Wang et al., CVPR 2020: w = σ(C1D_k(GAP(x))), k from C by their equation 12."""

    def __init__(self, channels: int, gamma: int = 2, b: int = 1) -> None:
        super().__init__()
        k = int(abs(math.log2(channels) / gamma + b / gamma))
        k += 1 - k % 2  # the nearest odd number
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3)).unsqueeze(1)
        weight = torch.sigmoid(self.conv(mean)).squeeze(1)
        return x * weight[:, :, None, None]


class SRM(nn.Module):
    """Style-based recalibration, Lee et al., ICCV 2019: g = σ(BN(w_c · [μ_c, σ_c])), one pair of weights a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 2))
        nn.init.kaiming_normal_(self.weight)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        # Style pooling in float32: the variance of bf16 activations loses what this module is about.
        values = x.float().flatten(2)
        variance, mean = torch.var_mean(values, dim=2, correction=0)
        style = torch.stack([mean, (variance + 1e-5).sqrt()], dim=2)
        weight = torch.sigmoid(self.norm((style * self.weight).sum(2)))
        return x * weight[:, :, None, None].to(x.dtype)


def mean_and_max_of_pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) to the mean and the largest value of each channel, (N, C) each."""
    if _with_places(x):
        result: tuple[Tensor, Tensor] = _OfPixels.apply(x)
        return result
    return x.mean((2, 3)), x.amax((2, 3))


def mean_and_max_of_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) to the mean and the largest value at each pixel, (N, H, W) each."""
    if _with_places(x):
        result: tuple[Tensor, Tensor] = _OfChannels.apply(x)
        return result
    return x.mean(1), x.amax(1)


def _with_places(x: Tensor) -> bool:
    """Whether to note where the largest values are. On a CPU PyTorch's gradient of `amax` compares every value with them, five
    times as slowly. Of equal values it moves all, the noted place moves one."""
    return x.device.type == "cpu" and x.requires_grad and torch.is_grad_enabled() and not torch.onnx.is_in_onnx_export()


def _spread(mean: Tensor, largest: Tensor, places: Tensor, dim: int, like: tuple[int, int, int, int]) -> Tensor:
    """The gradient of a mean and a largest value over dimension `dim` of (N, H * W, C), as one of (N, C, H, W)."""
    n, channels, height, width = like
    count = (n, height * width, channels)[dim]
    share = (mean / count).unsqueeze(dim)
    whole = share.expand(n, height * width, channels).contiguous()
    whole.scatter_(dim, places.unsqueeze(dim), share + largest.unsqueeze(dim))
    return whole.view(n, height, width, channels).permute(0, 3, 1, 2)


class _OfPixels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        largest, places = F.adaptive_max_pool2d(x, 1, return_indices=True)
        ctx.save_for_backward(places.flatten(1))
        ctx.like = tuple(x.shape)
        return x.mean((2, 3)), largest.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, mean: Tensor, largest: Tensor) -> Tensor:
        return _spread(mean, largest, ctx.saved_tensors[0], 1, ctx.like)


class _OfChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        largest, places = x.permute(0, 2, 3, 1).max(3)
        ctx.save_for_backward(places.flatten(1))
        ctx.like = tuple(x.shape)
        return x.mean(1), largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, mean: Tensor, largest: Tensor) -> Tensor:
        return _spread(mean.flatten(1), largest.flatten(1), ctx.saved_tensors[0], 2, ctx.like)


class CBAM(nn.Module):
    """Convolutional block attention, Woo et al., ECCV 2018: channel attention, then spatial attention.

    M_c(F) = σ(MLP(AvgPool(F)) + MLP(MaxPool(F))), equation 2, with a hidden layer of C / `reduction`;
    M_s(F) = σ(f7x7([AvgPool(F); MaxPool(F)])) over channels, equation 3.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.excite = nn.Linear(hidden, channels, bias=False)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack(mean_and_max_of_pixels(x))
        weight = torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))).sum(0))
        x = x * weight[:, :, None, None].to(x.dtype)
        seen = torch.stack(mean_and_max_of_channels(x), dim=1)
        return x * torch.sigmoid(self.spatial(seen)).to(x.dtype)


ATTENTION: Final[dict[str, Callable[[int], nn.Module]]] = {
    "none": lambda channels: nn.Identity(),
    "eca": ECA,
    "srm": SRM,
    "cbam": CBAM,
}
