"""LossNet: a small head that predicts each image's classification loss (Yoo & Kweon, CVPR 2019)."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

STAGE_CHANNELS: Final = (64, 128, 256, 512)


class LossNet(nn.Module):
    """Global average pooling, a linear layer and ReLU on each of the four stage outputs, concatenated to one number.

    Adaptive pooling makes it independent of the image size. Works in float32 also under autocast: predicted losses are
    compared with each other, and bf16 makes ties of them.
    """

    def __init__(self, channels: Sequence[int] = STAGE_CHANNELS, hidden: int = 128) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Linear(c, hidden) for c in channels)
        self.head = nn.Linear(hidden * len(channels), 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four stage outputs (N, C_i, H_i, W_i) to the predicted loss (N,) in float32."""
        with torch.autocast(features[0].device.type, enabled=False):
            hidden = [torch.relu(linear(f.float().mean((2, 3)))) for linear, f in zip(self.stages, features, strict=True)]
            predicted: Tensor = self.head(torch.cat(hidden, dim=1)).squeeze(1)
        return predicted


def ranking_loss(predicted: Tensor, actual: Tensor, margin: float = 1.0) -> Tensor:
    """Mean pairwise ranking loss of predicted against actual losses, both (N,); Yoo & Kweon 2019, equation 2:

        max(0, -sign(l_i - l_j) · (p_i - p_j) + ξ)

    Sample i is paired with sample i + N // 2 (cyclically). For an even N these are the paper's N / 2 disjoint pairs, each
    counted twice, which leaves the mean unchanged; for an odd N each sample stands in two pairs. Batches are shuffled, so
    the pairs are random. 0 for N < 2. The actual losses are targets: no gradient flows into them.
    """
    n = predicted.shape[0]
    if n < 2:
        return predicted.sum() * 0
    target = actual.detach()
    sign = torch.sign(target - target.roll(n // 2))
    return torch.relu(margin - sign * (predicted - predicted.roll(n // 2))).mean()


def ranking_accuracy(predicted: Tensor, actual: Tensor) -> float:
    """Share of all pairs with different actual losses, (N,) each, that the predicted losses put in the right order.

    0.5 is chance; a tie of predictions counts half; NaN when no pair differs.
    """
    truth = torch.sign(actual[:, None] - actual[None, :])
    guess = torch.sign(predicted[:, None] - predicted[None, :])
    pairs = truth != 0
    agreement = (truth * guess)[pairs]
    return float((agreement.float().mean() + 1) / 2) if agreement.numel() else float("nan")
