"""Batch normalisation by a site's own statistics: what its stain and camera do to every cell alike is taken out, without a label.

Adaptive batch normalisation (AdaBN, Li et al. 2017): means and variances are measured again on images of the site, the weights
stay as they are. The images should have the site's classes in something like their usual shares, and be some dozens at least.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wbc_model.core.errors import WbcError
from wbc_model.network.resnet import AttentionResNet18

BATCH: Final = 128
MIN_CELLS: Final = 32  # fewer say more about these cells than about the site
MAX_CELLS: Final = 2048  # more change nothing


def some_cells(cells: int, seed: int) -> NDArray[np.int64]:
    """Indices of up to MAX_CELLS of `cells` in random order, so that a batch is not all of one class."""
    order: NDArray[np.int64] = np.random.default_rng([seed, 2]).permutation(cells)[:MAX_CELLS]
    return order


def takes_statistics(network: AttentionResNet18) -> bool:
    """Whether a network can be given a site's statistics: one that normalises by groups has none, and one with frozen statistics
    has learned by these and no others."""
    return network.norm == "batch"


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Within it batch normalisation in training mode goes by each batch's own statistics and adds nothing to the running ones."""
    momentum = {norm: norm.momentum for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)}
    for norm in momentum:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, value in momentum.items():
            norm.momentum = value


def with_statistics_of(network: AttentionResNet18, images: NDArray[np.uint8], autocast: bool = False) -> AttentionResNet18:
    """A copy of `network` whose batch normalisation has the statistics of `images`, uint8 (N, S, S, 3), in mixed order.

    Each layer gets the mean over batches of the batch's mean and variance, in float32. `autocast` computes what they are taken of
    in bf16, which is for a look in between. Raises ValueError for fewer than
    MIN_CELLS, WbcError for a network that cannot be given statistics.
    """
    if not takes_statistics(network):
        raise WbcError(f"the network was trained with model.norm: {network.norm} and cannot be given the statistics of a site")
    if len(images) < MIN_CELLS:
        raise ValueError(f"{len(images)} images are too few to measure a site's statistics; {MIN_CELLS} are needed")
    measured = copy.deepcopy(network).eval()
    norms = [module for module in measured.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    device = next(measured.parameters()).device
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        for part in np.array_split(images, -(-len(images) // BATCH)):  # parts of like size: each counts the same
            measured(torch.from_numpy(part).to(device).permute(0, 3, 1, 2).float() / 255)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    return measured.eval()
