"""Running the network over cells: a stream of uint8 batches in, one row of numbers a cell out."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Floats = NDArray[np.float32]


class Predictions(NamedTuple):
    """`logits` (N, C), `predicted_loss` (N,) and `embedding` (N, 512; (N, 0) unless asked for), all float32."""

    logits: Floats
    predicted_loss: Floats
    embedding: Floats


def predict(
    network: nn.Module, batches: Iterable[NDArray[np.uint8]], embeddings: bool = False, autocast: bool = False
) -> Predictions:
    """Evaluate uint8 batches (n, S, S, 3). Memory is one batch plus the rows returned, whatever the number of batches.

    `autocast` computes in bf16, as training with `bf16-mixed` does; without it in float32.
    """
    device = next(network.parameters()).device
    rows: list[tuple[Floats, Floats, Floats]] = []
    was_training = network.training
    network.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        for batch in batches:
            images = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float() / 255
            output = network(images)
            embedding = output.embedding.float().cpu().numpy() if embeddings else np.empty((len(batch), 0), np.float32)
            rows.append((output.logits.float().cpu().numpy(), output.predicted_loss.float().cpu().numpy(), embedding))
    network.train(was_training)
    if not rows:
        return Predictions(np.empty((0, 0), np.float32), np.empty(0, np.float32), np.empty((0, 0), np.float32))
    return Predictions(*(np.concatenate(column) for column in zip(*rows, strict=True)))
