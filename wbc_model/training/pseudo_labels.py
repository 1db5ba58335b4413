"""Pseudo-labels: what the network is sure of in the unlabelled pool is training data too.

FixMatch (Sohn et al. 2020): the network's sure answer for an image is its pseudo-label. The network learns to give the same
answer for the image strongly augmented. This module differs in two points, for pools in which one class has 2 % of the cells:

- Pseudo-labels are chosen at each validation step, by the averaged weights. They are chosen for the whole pool at once, not from
  64 cells at a time. Class shares are then known, and an update is spared the forward pass of the weak view.
- Each class has its own threshold, lower where the network is still unsure (FreeMatch, Wang et al. 2023). Of the cells over it
  the rarer classes are drawn more often, as hard samples are. Where nobody has labelled a cell of a new site, one threshold
  serves all classes (decision 015).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbc_model.core.classes import CLASSES
from wbc_model.core.probabilities import softmax
from wbc_model.network.predict import predict
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.params import Params
from wbc_model.training.batches import log_prior, seeded
from wbc_model.training.hard_samples import RARITY

BATCH: Final = 128
THRESHOLD: Final = 0.9  # of the probability, for the class that the network is surest of; less for the others
START_SHARE: Final = 0.4  # of the updates before the first pseudo-label: the first guesses decide (decision 013)
PRIOR_SHARE: Final = 0.5  # of the class shares' logarithm when pseudo-labels are chosen: with all of it rare classes are missed


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
    """A threshold per class, (classes,): `threshold` for the class that the network is surest of on the average. The
    others have as much less as their mean confidence is lower (FreeMatch's local threshold). `confidence`, `guess` (N,)."""
    count = torch.bincount(guess, minlength=classes)
    mean = torch.bincount(guess, weights=confidence.double(), minlength=classes) / count.clamp_min(1)
    return (threshold * mean / mean.max()).to(confidence.dtype)


def choose(probabilities: Tensor, threshold: float = THRESHOLD, rarity: float = RARITY, *, by_class: bool = True) -> PseudoLabels:
    """Pseudo-labels from the network's probabilities (N, classes).

    A cell is taken where its highest probability reaches its class's threshold, or without `by_class` the `threshold` itself. A
    cell of a class of which n are taken has weight n ** -rarity: 0 draws the classes as they come, 1 all alike.
    """
    confidence, guess = probabilities.max(1)
    classes = probabilities.shape[1]
    least = class_thresholds(confidence, guess, classes, threshold)[guess] if by_class else threshold
    taken = confidence >= least
    count = torch.bincount(guess[taken], minlength=classes).clamp_min(1)
    return PseudoLabels(guess, torch.where(taken, count[guess].float() ** -rarity, torch.zeros(())))


def candidates(cells: int, most: int, seed: int, update: int) -> Tensor:
    """Indices of the cells that are valued at the validation step after `update`: all, or of a large pool `most` at random."""
    if cells <= most:
        return torch.arange(cells)
    return torch.randperm(cells, generator=seeded(seed, 5, update))[:most].sort().values


class PseudoLabelling:
    """Draws cells of the unlabelled pool by their pseudo-labels, and chooses these anew at each validation step."""

    def __init__(
        self,
        cells: UnlabelledCells,
        params: Params,
        start_share: float | None = None,
        prepared: Callable[[AttentionResNet18], AttentionResNet18] = lambda network: network,
        *,
        by_class: bool = True,
    ) -> None:
        """`start_share` of the updates come before the first pseudo-label, usually START_SHARE. The network that chooses is
        `prepared` for the pool first: at a new site it is given that site's batch-norm statistics. `by_class` is whether a class
        of which it is unsure has a lower threshold."""
        self.cells, self.params, self.prepared, self.by_class = cells, params, prepared, by_class
        self.first = (START_SHARE if start_share is None else start_share) * params.size.updates
        share, devices = params.train.unlabelled_ratio * params.size.batch_size, params.train.devices
        self.count = devices * round(share / devices)  # images of a batch, of all devices
        self.use(PseudoLabels.none(len(cells.sha256s)))

    def use(self, chosen: PseudoLabels) -> None:
        """Draw from these pseudo-labels from now on."""
        self.chosen = chosen
        drawn = torch.bincount(chosen.labels, weights=chosen.weights.double(), minlength=len(CLASSES))
        self.prior = self.params.train.logit_adjustment * log_prior(drawn)

    def draw(self, update: int) -> Tensor:
        """Indices (B,) of the cells of an update, of all devices; none while the network is sure of none."""
        if not self.chosen.weights.any():
            return torch.empty(0, dtype=torch.int64)
        generator = seeded(self.params.seed, 6, update)
        return torch.multinomial(self.chosen.weights, self.count, replacement=True, generator=generator)

    def due(self, update: int) -> bool:
        """Whether it is late enough to choose at the validation step after `update`."""
        return update >= self.first

    def choose(self, network: AttentionResNet18, labelled_prior: Tensor, update: int) -> PseudoLabels:
        """The choice of `network`. Of a large pool no more cells are valued than can be drawn twice over before the next
        validation step. The pool has its classes in about the labelled pool's shares, which a logit-adjusted network leaves out:
        half of `labelled_prior` (classes,) is added."""
        train, cells = self.params.train, len(self.cells.sha256s)
        chosen = PseudoLabels.none(cells)
        index = candidates(cells, 2 * train.eval_every * self.count, self.params.seed, update)
        autocast = self.params.size.precision == "bf16-mixed"
        seen = predict(self.prepared(network), self.cells.batches(index), autocast=autocast)
        probabilities = softmax(seen.logits + PRIOR_SHARE * labelled_prior.cpu().numpy())
        chosen.labels[index], chosen.weights[index] = choose(
            torch.from_numpy(probabilities), THRESHOLD, RARITY, by_class=self.by_class
        )
        return chosen
