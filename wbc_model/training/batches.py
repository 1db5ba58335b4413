"""The labelled part of a batch: which cells an update learns from, and which of them are strongly augmented.

Everything here is a function of the seed, the number of the update and the losses noted so far. A training that was interrupted
goes on with the very batches it would have had.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Generator, Tensor

from wbc_model.core.classes import CLASSES
from wbc_model.params import Params
from wbc_model.training.hard_samples import hard_sample_weights
from wbc_model.training.labelled import LabelledCells

HARD_START_SHARE: Final = 0.2  # of the updates before the first hard sample is drawn: losses of the beginning say little


def seeded(*numbers: int) -> Generator:
    """A CPU generator whose stream belongs to these numbers (seed, purpose, counter ...)."""
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number + 0x9E3779B9) % 2**63
    return torch.Generator().manual_seed(state)


@dataclass(frozen=True)
class BatchPlan:
    """How the batches of one training are put together.

    From update `again_from` on, `again` of the `batch_size` samples of a batch are cells drawn again, by weight. The others go
    on through the shuffled epochs.
    """

    samples: int
    batch_size: int
    again: int
    again_from: int
    seed: int

    def _position(self, update: int) -> int:
        """How many samples the shuffled epochs have given before this update."""
        early = min(update, self.again_from)
        return early * self.batch_size + (update - early) * (self.batch_size - self.again)

    def epoch(self, update: int) -> int:
        """The epoch that this update begins in."""
        return self._position(update) // self.samples

    def regular(self, update: int) -> Tensor:
        """Indices of the samples that the shuffled epochs give to this update."""
        start, end = self._position(update), self._position(update + 1)
        epochs = range(start // self.samples, (end - 1) // self.samples + 1)
        order = torch.cat([torch.randperm(self.samples, generator=seeded(self.seed, 1, epoch)) for epoch in epochs])
        offset = start - epochs[0] * self.samples
        return order[offset : offset + end - start]

    def drawn_again(self, update: int, weights: Tensor) -> Tensor:
        """Indices of the samples that this update draws again, with replacement; none before `again_from`."""
        if update < self.again_from or self.again == 0 or not weights.any():
            return torch.empty(0, dtype=torch.int64)
        return torch.multinomial(weights, self.again, replacement=True, generator=seeded(self.seed, 2, update))


class Drawn(NamedTuple):
    """The cells of one update: indices into a pool, int64 (B,), and which of them are strongly augmented, bool (B,)."""

    cells: Tensor
    strong: Tensor

    def of_rank(self, rank: int, ranks: int) -> "Drawn":
        """The part of one of several devices: every `ranks`-th cell."""
        mine = slice(rank, None, ranks)
        return Drawn(self.cells[mine], self.strong[mine])


class Batches:
    """Shuffled epochs of the labelled `cells`, and among them cells drawn again by `weights` (N,) and strongly augmented."""

    def __init__(self, cells: LabelledCells, params: Params, again_share: float, again_from: int) -> None:
        """`again_share` of a batch is drawn again from update `again_from` on; every device gets an equal part of that."""
        size, devices = params.size, params.train.devices
        self.cells, self.labels = cells, torch.from_numpy(cells.labels)
        self.seed, self.strong_share, self.augmentation = params.seed, params.train.strong_share, params.train.augmentation
        again = devices * round(again_share * size.batch_size / devices)
        self.plan = BatchPlan(len(cells.labels), size.batch_size, again, max(again_from, 1), params.seed)
        self.losses = torch.full((len(cells.labels),), torch.nan)  # of each cell, when it was last drawn
        self.weights = torch.zeros(len(cells.labels))

    def draw(self, update: int) -> Drawn:
        """The labelled cells of an update, of all devices."""
        regular, again = self.plan.regular(update), self.plan.drawn_again(update, self.weights)
        index = torch.cat([regular, again])
        strong = torch.arange(len(index)) >= len(regular)
        strong |= torch.rand(len(index), generator=seeded(self.seed, 8, update)) < self.strong_share
        return Drawn(index, strong)

    def note(self, index: Tensor, losses: Tensor) -> None:
        """Keep the losses (B,) of the cells at `index` (B,)."""
        self.losses[index] = losses

    def choose_again(self) -> None:
        """Called at each validation step: choose anew what is drawn again. Here `weights` stay as they are."""

    def shown_elsewhere(self, cells: int) -> int:
        """How many of the `cells` of a device, the first ones, are augmented as other sites would show them."""
        return {"mild": 0, "both": cells // 2, "sites": cells}[self.augmentation]

    def normalised_apart(self, index: Tensor, pseudo: int) -> list[Tensor]:
        """The parts of a batch that batch normalisation must not mix, as positions in it: the labelled cells at `index`, then
        `pseudo` pseudo-labelled ones. The running statistics are the first part's. Here the batch is one part. Where half of it
        is augmented as other sites would show it, that half is another one (as in AdvProp: Xie et al., CVPR 2020)."""
        elsewhere, everything = self.shown_elsewhere(len(index)), torch.arange(len(index) + pseudo)
        return [everything[elsewhere:], everything[:elsewhere]] if 2 <= elsewhere < len(index) else [everything]

    def facts(self) -> list[Any]:
        """What the batches are made of, for the key of a checkpoint."""
        return [type(self).__name__, list(self.cells.sha256s), self.cells.labels.tolist(), self.plan.again]


class HardSampleBatches(Batches):
    """Active iterative augmentation (Jiang et al. 2024): what is drawn again are the cells that the network finds hardest, chosen
    anew at each validation step, in ever new strong augmentations."""

    def __init__(self, cells: LabelledCells, params: Params) -> None:
        super().__init__(cells, params, params.train.hard_share, round(HARD_START_SHARE * params.size.updates))

    def choose_again(self) -> None:
        self.weights = hard_sample_weights(self.losses, self.labels)


def log_prior(count: Tensor) -> Tensor:
    """Logarithms of the class shares, (classes,) float32, from counts or weights; a class with less than one in a thousand
    counts as that much. Zeros where nothing was counted.

    Added to the logits in the loss, the network learns what each class looks like rather than how frequent it is: logit
    adjustment, Menon et al. 2021. Without it, it would rather not name a class of which it has seen three.
    """
    if not count.any():
        return torch.zeros(len(count))
    return (count.double() / count.sum()).clamp_min(1e-3).log().float()


def labelled_prior(batches: Batches) -> Tensor:
    """`log_prior` of the labelled cells."""
    return log_prior(torch.bincount(batches.labels, minlength=len(CLASSES)))
