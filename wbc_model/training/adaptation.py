"""Adapting a trained network to a new site: what the training of an onboarding has instead of the paper's batches and rule.

Weights are the same for both sites, batch-norm statistics are not: each site's part of a batch is normalised by itself. Whoever
uses the network measures its statistics at the site (wbc_model/network/batch_norm_statistics.py).
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbc_model.core.classes import CLASSES
from wbc_model.network.batch_norm_statistics import MIN_CELLS, some_cells, takes_statistics, with_statistics_of
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.params import Params
from wbc_model.training.batches import Batches
from wbc_model.training.hard_samples import RARITY
from wbc_model.training.labelled import LabelledCells
from wbc_model.training.pseudo_labels import UnlabelledCells

# The network's first modules, which do not learn: their maps are the largest. With `layer2` BCISC lost 3.5 points (decision 063).
FIXED: Final = ("conv1", "bn1", "layer1")
STEPS: Final = tuple(step / 10 for step in range(10, 0, -1))


class SiteBatches(Batches):
    """Shuffled epochs of the old and the new site's cells; `site_share` of a batch is drawn again from the new site's alone,
    strongly augmented, rare classes more often."""

    def __init__(self, home: LabelledCells, site: LabelledCells, params: Params, site_share: float) -> None:
        both = home + site
        super().__init__(both, params, site_share if len(site.labels) else 0.0, again_from=1)
        self.at_site = torch.arange(len(both.labels)) >= len(home.labels)
        count = torch.bincount(self.labels[self.at_site], minlength=len(CLASSES)).clamp_min(1)
        self.weights = torch.where(self.at_site, count[self.labels].float() ** -RARITY, torch.zeros(()))

    def normalised_apart(self, index: Tensor, pseudo: int) -> list[Tensor]:
        """Each site's images by themselves, unless one has too few for a variance. Pseudo-labelled cells are the new site's."""
        new = torch.cat([self.at_site[index], torch.ones(pseudo, dtype=torch.bool)])
        parts = [part.nonzero().squeeze(1) for part in (~new, new)]
        return parts if min(map(len, parts)) >= 2 else super().normalised_apart(index, pseudo)

    def facts(self) -> list[Any]:
        return [*super().facts(), int(self.at_site.sum())]


def the_last(row: Mapping[str, float], lowest_loss: float) -> bool:
    """The keep rule of an adaptation. The validation pool is the old site's and would choose the weights that moved the least."""
    return True


def at_site(network: AttentionResNet18, views: NDArray[np.uint8], autocast: bool = False) -> AttentionResNet18:
    """The network with the batch-norm statistics of a site's `views`, uint8 (N, S, S, 3), with `autocast` measured in bf16. It
    stays as it is where it cannot have them, or the site has too few cells."""
    return with_statistics_of(network, views, autocast) if takes_statistics(network) and len(views) >= MIN_CELLS else network


def at_site_of(cells: UnlabelledCells, seed: int, autocast: bool = False) -> Callable[[AttentionResNet18], AttentionResNet18]:
    """`at_site` for some of these cells, which are read anew each time."""

    def measured(network: AttentionResNet18) -> AttentionResNet18:
        few = not takes_statistics(network) or len(cells.sha256s) < MIN_CELLS
        index = torch.from_numpy(some_cells(len(cells.sha256s), seed))
        return network if few else at_site(network, cells.images(index), autocast)

    return measured


def between(start: Mapping[str, Tensor], end: Mapping[str, Tensor], step: float) -> dict[str, Tensor]:
    """Weights a share `step` of the way from `start` to `end` (WiSE-FT, Wortsman et al., CVPR 2022); counters, which are no
    weights, are those of `end`."""
    return {name: value.lerp(end[name], step) if value.is_floating_point() else end[name] for name, value in start.items()}


def largest_step(score: Callable[[float], float], at_start: float, max_loss: float) -> float:
    """The largest of STEPS at which `score` is at most `max_loss` below `at_start`; 0 where there is none."""
    return next((step for step in STEPS if score(step) >= at_start - max_loss), 0.0)
