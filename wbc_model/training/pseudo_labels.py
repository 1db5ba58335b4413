"""Semi-supervised training: what the network is sure of in the unlabelled pool is training data too.

FixMatch (Sohn et al. 2020): the network's sure answer for an image is its pseudo-label. The network learns to give the same
answer for the image strongly augmented. This module differs in two points, for pools in which one class has 2 % of the cells:

- Pseudo-labels are chosen at each look at the validation pool, by the averaged weights and for the whole pool at once, not
  from 64 cells at a time: class shares are then known, and an update is spared the forward pass of the weak view.
- Each class has its own threshold, lower where the network is still unsure (FreeMatch, Wang et al. 2023), and of the cells
  over it the rarer classes are drawn more often, as hard samples are.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wbc_model.training.hard_samples import seeded

BATCH: Final = 128
PRIOR_SHARE: Final = 0.5  # of the class shares' logarithm when pseudo-labels are chosen: with all of it rare classes are missed
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class UnlabelledCells:
    """The unlabelled pool: `read` gives the uint8 views (n, S, S, 3) of some of its `sha256s` (`DecodedCells.read`), so that
    memory does not grow with the pool."""

    sha256s: tuple[str, ...]
    read: Callable[[Sequence[str]], NDArray[np.uint8]]

    def images(self, index: Tensor) -> NDArray[np.uint8]:
        """The images at these indices, uint8 (n, S, S, 3)."""
        return self.read([self.sha256s[i] for i in index.tolist()])

    def batches(self, index: Tensor) -> Iterator[NDArray[np.uint8]]:
        """As `images`, a batch at a time."""
        for start in range(0, len(index), BATCH):
            yield self.images(index[start : start + BATCH])


class PseudoLabels(NamedTuple):
    """For each cell of the unlabelled pool its class index, int64 (N,), and the weight (N,) float32 with which it is drawn; 0
    where the network is not sure."""

    labels: Tensor
    weights: Tensor

    @classmethod
    def none(cls, cells: int) -> "PseudoLabels":
        return cls(torch.zeros(cells, dtype=torch.int64), torch.zeros(cells))


def class_thresholds(confidence: Tensor, guess: Tensor, classes: int, threshold: float) -> Tensor:
    """A threshold a class, (classes,): `threshold` for the class that the network is surest of on the average, and for the
    others as much lower as their mean confidence is (FreeMatch's local threshold). `confidence`, `guess` (N,)."""
    count = torch.bincount(guess, minlength=classes)
    mean = torch.bincount(guess, weights=confidence.double(), minlength=classes) / count.clamp_min(1)
    return (threshold * mean / mean.max()).to(confidence.dtype)


def choose(probabilities: Tensor, threshold: float, rarity: float) -> PseudoLabels:
    """Pseudo-labels from the network's probabilities (N, classes).

    A cell is taken where its highest probability reaches its class's threshold. A cell of a class of which n are taken has
    weight n ** -rarity: 0 draws the classes as they come, 1 all alike.
    """
    confidence, guess = probabilities.max(1)
    classes = probabilities.shape[1]
    taken = confidence >= class_thresholds(confidence, guess, classes, threshold)[guess]
    count = torch.bincount(guess[taken], minlength=classes).clamp_min(1)
    return PseudoLabels(guess, torch.where(taken, count[guess].float() ** -rarity, torch.zeros(())))


def candidates(cells: int, most: int, seed: int, look: int) -> Tensor:
    """Indices of the cells that are valued at this look: all, or of a large pool `most` at random."""
    if cells <= most:
        return torch.arange(cells)
    return torch.randperm(cells, generator=seeded(seed, 5, look))[:most].sort().values


class Averaged(Generic[Network]):
    """Exponential moving average of a network's weights and batch norm statistics.

    The decay grows to its value over the first updates, min(decay, (1 + t) / (10 + t)), so that the random weights of the
    beginning are soon forgotten.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network, self.decay = copy.deepcopy(network), decay
        self.network.requires_grad_(False).eval()

    @torch.no_grad()
    def follow(self, network: Network, update: int) -> None:
        """Take in the weights after `update` (counted from 0)."""
        decay = min(self.decay, (1 + update) / (10 + update))
        for mine, new in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(new, 1 - decay)
            else:
                mine.copy_(new)
