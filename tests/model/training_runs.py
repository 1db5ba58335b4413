"""Trainings of the tests: on pools, and of a network that is taken on to a site."""

from collections.abc import Sequence
from pathlib import Path

import torch

from tests.model.conftest import part
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.params import Params
from wbc_model.training.adaptation import SiteBatches, at_site_of, the_last
from wbc_model.training.labelled import LabelledCells
from wbc_model.training.pseudo_labels import PseudoLabelling, UnlabelledCells
from wbc_model.training.train import Training

SITE_SHARE = 0.5


def champion(params: Params) -> dict[str, torch.Tensor]:
    """The weights of a network that is taken on: random ones of its own."""
    torch.manual_seed(99)
    return AttentionResNet18(params.model.attention, params.model.lossnet).state_dict()


def adapting(
    params: Params,
    cells: LabelledCells,
    validation: LabelledCells,
    checkpoint: Path,
    site: int,
    unlabelled: UnlabelledCells | None = None,
    share: float = SITE_SHARE,
    fixed: Sequence[str] = (),
) -> Training:
    """The training of an onboarding, in which the last `site` of the `cells` are the new site's."""
    home = len(cells.labels) - site
    batches = SiteBatches(part(cells, slice(home)), part(cells, slice(home, None)), params, share)
    pseudo = PseudoLabelling(unlabelled, params, 0.0, at_site_of(unlabelled, params.seed)) if unlabelled else None
    return Training(params, batches, validation, checkpoint, pseudo, start=champion(params), keep=the_last, fixed=fixed)
