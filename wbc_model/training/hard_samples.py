"""Which labelled samples a batch is made of: shuffled epochs, and the hardest samples drawn again.

Everything here is a function of the seed, the number of the update and the table of losses, so that training that was
interrupted goes on with the very batches it would have had.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


def seeded(*numbers: int) -> Generator:
    """A CPU generator whose stream belongs to these numbers (seed, purpose, counter ...)."""
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number + 0x9E3779B9) % 2**63
    return torch.Generator().manual_seed(state)


def hard_sample_weights(losses: Tensor, labels: Tensor, fraction: float, rarity: float) -> Tensor:
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


@dataclass(frozen=True)
class BatchPlan:
    """How the batches of one training are put together.

    From update `hard_start` on, `hard_count` of the `batch_size` samples of a batch are hard ones, the others go on
    through the shuffled epochs.
    """

    samples: int
    batch_size: int
    hard_count: int
    hard_start: int
    seed: int

    def _position(self, update: int) -> int:
        """How many samples the shuffled epochs have given before this update."""
        early = min(update, self.hard_start)
        return early * self.batch_size + (update - early) * (self.batch_size - self.hard_count)

    def epoch(self, update: int) -> int:
        """The epoch that this update begins in."""
        return self._position(update) // self.samples

    def regular(self, update: int) -> Tensor:
        """Indices of the regular samples of this update."""
        start, end = self._position(update), self._position(update + 1)
        epochs = range(start // self.samples, (end - 1) // self.samples + 1)
        order = torch.cat([torch.randperm(self.samples, generator=seeded(self.seed, 1, epoch)) for epoch in epochs])
        offset = start - epochs[0] * self.samples
        return order[offset : offset + end - start]

    def hard(self, update: int, weights: Tensor) -> Tensor:
        """Indices of the hard samples of this update, drawn with replacement; none before `hard_start`."""
        if update < self.hard_start or self.hard_count == 0 or not weights.any():
            return torch.empty(0, dtype=torch.int64)
        return torch.multinomial(weights, self.hard_count, replacement=True, generator=seeded(self.seed, 2, update))
