"""The reference of a model: the measures of cells that it did not learn from, and the principal axes of their embeddings."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from wbc_model.core.model_card import ModelCard
from wbc_model.core.reference import AXES, Axes, Reference, describe
from wbc_model.network.predict import Predictions, predict
from wbc_model.network.resnet import AttentionResNet18

MOST: Final = 2000  # cells: more make no test sharper, and the file has 60 bytes of each
LEAST: Final = 2 * AXES  # fewer have no axes worth the name
BATCH: Final = 64


def reference_of(
    card: ModelCard, views: NDArray[np.uint8], appearance: NDArray[np.float64], seen: Predictions
) -> Reference | None:
    """Of cells, their views (N, S, S, 3), appearances (N, 7) and predictions with embeddings; None of fewer than LEAST."""
    if len(views) < LEAST:
        return None
    axes = principal_axes(seen.embedding)
    return Reference(axes, describe(card, views, appearance, seen.logits, seen.embedding, axes))


def measured_reference(
    network: AttentionResNet18, card: ModelCard, views: NDArray[np.uint8], appearance: NDArray[np.float64]
) -> Reference | None:
    """Of views (N, S, S, 3) and appearances (N, 7), by what the network says of them; MOST at most, evenly spread."""
    step = max(1, -(-len(views) // MOST))
    views, appearance = views[::step], appearance[::step]
    seen = predict(network, (views[start : start + BATCH] for start in range(0, len(views), BATCH)), embeddings=True)
    return reference_of(card, views, appearance, seen)


def principal_axes(embedding: NDArray[np.float32]) -> Axes:
    """Mean and the AXES directions in which embeddings (N, 512) vary most. The largest number of each is positive."""
    mean = embedding.mean(axis=0, dtype=np.float64)
    _, _, directions = np.linalg.svd(embedding - mean, full_matrices=False)
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    padded = np.zeros((AXES, embedding.shape[1]))
    count = min(AXES, len(directions))
    padded[:count] = (directions * np.sign(largest))[:count]
    return Axes(mean.astype(np.float32), padded.astype(np.float32))
