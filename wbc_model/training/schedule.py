"""How a training goes over its updates: the learning rate, and the weights averaged over them."""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]
WEIGHT_DECAY: Final = 0.05  # of AdamW (Loshchilov & Hutter 2019)
WARMUP_SHARE: Final = 0.1  # of the updates, with a rising learning rate: AdamW's moments are not known yet


def adamw(network: nn.Module, rate: float) -> torch.optim.AdamW:
    """The optimizer of a network's parameters, Loshchilov & Hutter 2019; the fused kernel."""
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=WEIGHT_DECAY, fused=True)


def learning_rate(update: int, updates: int, peak: float, warmup_share: float = WARMUP_SHARE) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    warmup = max(1, round(warmup_share * updates))
    if update < warmup:
        return peak * (update + 1) / warmup
    progress = (update - warmup) / max(1, updates - warmup)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a network's weights and batch-norm statistics; `update_parameters` takes new ones in.

    The decay grows to its value over the first t updates, min(decay, t / (9 + t)): the random weights of the beginning are soon
    forgotten. `.module` is the averaged network, in evaluation mode.
    """

    def take_in(mine: Tensors, new: Tensors, taken: Tensor | int) -> None:
        if not mine[0].is_floating_point():  # batch norm's counters
            torch._foreach_copy_(mine, new)
            return
        t = int(taken)
        torch._foreach_lerp_(mine, new, 1 - min(decay, t / (9 + t)))

    average = AveragedModel(network, multi_avg_fn=torch.no_grad()(take_in), use_buffers=True)
    average.requires_grad_(False).eval()
    average.update_parameters(network)  # the first one is copied
    return average
