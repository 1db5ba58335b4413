"""What the validation pool says of a network: a row of the history, whether to keep the weights, and the calibrated card."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from wbc_model.core.model_card import Architecture, ModelCard, Normalisation
from wbc_model.core.probabilities import softmax
from wbc_model.evaluation.calibrate import calibrated_temperature, conformal_threshold, fit_out_of_distribution
from wbc_model.evaluation.metrics import classification_metrics
from wbc_model.network.lossnet import ranking_accuracy
from wbc_model.network.predict import Predictions, predict
from wbc_model.network.resnet import MEAN, STD, AttentionResNet18
from wbc_model.params import Params
from wbc_model.training.labelled import LabelledCells

COVERAGE: Final = 0.95


def validation_row(seen: Predictions, labels: NDArray[np.int64]) -> dict[str, float]:
    """Loss, accuracy and macro-F1 on the validation pool, and whether LossNet ranks its losses (0.5 is chance) and spreads."""
    probabilities = softmax(seen.logits)
    losses = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12))
    metrics = classification_metrics(probabilities, labels, resamples=0)
    return {
        "validation_loss": float(losses.mean()),
        "validation_accuracy": metrics["accuracy"],
        "validation_macro_f1": metrics["macro_f1"],
        "ranking_accuracy": ranking_accuracy(torch.from_numpy(seen.predicted_loss), torch.from_numpy(losses)),
        "predicted_loss_spread": float(seen.predicted_loss.std()),
    }


def lowest_loss(row: Mapping[str, float], lowest_so_far: float) -> bool:
    """The usual keep rule: the weights with the lowest validation loss."""
    return row["validation_loss"] < lowest_so_far


def calibrated_card(
    network: AttentionResNet18, validation: LabelledCells, params: Params, appearance: NDArray[np.float64] | None = None
) -> ModelCard:
    """The card of a trained network: temperature, conformal threshold and metrics from the validation pool, and with the
    `appearance` (N, 7) of its cells its out-of-distribution scores. Where no temperature can be fitted the card says so."""
    seen = predict(network, validation.batches())
    temperature, why_not = calibrated_temperature(seen.logits, validation.labels)
    probabilities = softmax(seen.logits, temperature)
    return ModelCard(
        version="",
        input_size=params.size.image_size,
        view=params.model.view,
        normalisation=Normalisation(mean=MEAN, std=STD),
        architecture=Architecture(attention=params.model.attention, lossnet=params.model.lossnet, norm=params.model.norm),
        temperature=temperature,
        uncalibrated=why_not,
        conformal_coverage=COVERAGE,
        conformal_threshold=conformal_threshold(probabilities, validation.labels, COVERAGE),
        out_of_distribution=None if appearance is None else fit_out_of_distribution(seen, validation.labels, appearance),
        parameters={**params.model_dump(include={"preset", "seed", "model", "train"}), "size": params.size.model_dump()},
        metrics={"validation": classification_metrics(probabilities, validation.labels)},
    )
