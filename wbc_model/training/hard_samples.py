"""Which labelled cells are hard: the choice of active iterative augmentation (Jiang et al. 2024)."""

import math
from typing import Final

import torch
from torch import Tensor

HARD_FRACTION: Final = 0.3  # of each class, by loss, that counts as hard
RARITY: Final = 0.5  # a class of n cells is drawn with weight n ** -RARITY: rare classes keep up, and are not all that is drawn


def hard_sample_weights(losses: Tensor, labels: Tensor, fraction: float = HARD_FRACTION, rarity: float = RARITY) -> Tensor:
    """Weights (N,) with which hard samples are drawn again; active iterative augmentation, Jiang et al. 2024.

    Of each class the given `fraction` with the highest loss is hard (at least one sample; samples not seen yet have a NaN
    loss and are left out). A hard sample of a class of n samples has weight n ** -rarity, so that rare classes keep up.
    """
    weights = torch.zeros_like(losses)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().squeeze(1)
        seen = members[~losses[members].isnan()]
        if len(seen):
            hardest = losses[seen].argsort(descending=True, stable=True)[: math.ceil(fraction * len(members))]
            weights[seen[hardest]] = float(len(members)) ** -rarity
    return weights
