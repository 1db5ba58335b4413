"""The one place where a study knows the learner: the cells it works on, and how they are trained on, scored and asked about."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from wbc_model.acquisition.query import Question, query
from wbc_model.cells.decoded import DecodedCells
from wbc_model.cells.split import seeded_rank
from wbc_model.cells.store import ImageStore
from wbc_model.core.classes import CLASS_INDEX, CLASSES
from wbc_model.core.model_card import Architecture, ModelCard, Normalisation
from wbc_model.core.probabilities import softmax
from wbc_model.evaluation.metrics import classification_metrics
from wbc_model.network.lossnet import ranking_accuracy
from wbc_model.network.predict import predict
from wbc_model.network.resnet import MEAN, STD, AttentionResNet18
from wbc_model.params import Params
from wbc_model.training.labelled import LabelledCells, check_trainable
from wbc_model.training.pretrain import pretrained
from wbc_model.training.pseudo_labels import UnlabelledCells
from wbc_model.training.train import Training, first_network
from wbc_model.training.validation import calibrated_card

BATCH: Final = 128
SCORES: Final = ("accuracy", "macro_f1", "balanced_accuracy", "ece")


def digest(content: Any) -> str:
    """Twenty-four hex digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


# --- what a study works on ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """Labelled cells of an image store. `frame` has the text columns sha256 and label, sorted by sha256. `cache` is where the
    store's decoded images are kept."""

    frame: pd.DataFrame
    images: Path
    cache: Path

    @cached_property
    def version(self) -> str:
        """A hash of which cells these are and how they are labelled."""
        return digest(self.frame[["sha256", "label"]].to_numpy().tolist())

    def decoded(self, params: Params) -> DecodedCells:
        """The cells as the network sees them."""
        return DecodedCells(ImageStore(self.images), self.cache, params.size.image_size, params.model.view)


@dataclass(frozen=True)
class StudyData:
    """The cells of one seed: the training pool with all its labels, the validation pool, and the evaluation sets by name."""

    pool: Cells
    validation: Cells
    tests: Mapping[str, Cells]

    @cached_property
    def version(self) -> str:
        """A hash of all of it."""
        return digest([self.pool.version, self.validation.version, {name: cells.version for name, cells in self.tests.items()}])

    def labels(self, sha256s: Sequence[str]) -> list[str]:
        """The labels of cells of the training pool."""
        known = dict(zip(self.pool.frame["sha256"], self.pool.frame["label"], strict=True))
        return [str(known[sha256]) for sha256 in sha256s]


# --- training, scores, queries ---------------------------------------------------------------------------------------------


def fit(
    params: Params,
    data: StudyData,
    labelled: Sequence[str],
    checkpoint: Path,
    pretraining: Path,
    start: Mapping[str, Tensor] | None = None,
) -> tuple[AttentionResNet18, ModelCard, Any]:
    """Train on the labelled cells of the pool; returns the network, its card and the history's rows. The training begins with
    the weights `start` where they are given. Otherwise `pretraining` is where pre-trained weights are kept."""
    decoded = data.pool.decoded(params)
    cells = LabelledCells.load(decoded, labelled, data.labels(labelled))
    held_out = data.validation.frame
    validation = LabelledCells.load(data.validation.decoded(params), held_out["sha256"].tolist(), held_out["label"].tolist())
    check_trainable(cells, validation)
    known = set(labelled)
    rest = tuple(sha256 for sha256 in data.pool.frame["sha256"] if sha256 not in known)
    start = pretrained_on(params, data, pretraining) if start is None else start
    training = Training.of_pools(params, cells, validation, checkpoint, UnlabelledCells(rest, decoded.read), start)
    network = training.fit()
    return network, calibrated_card(network, validation, params), training.progress.history


def pretrained_on(params: Params, data: StudyData, cache: Path) -> dict[str, torch.Tensor] | None:
    """The weights that pre-training on the whole pool gives, kept under `cache`; None without pre-training."""
    if params.train.pretraining == "none":
        return None
    return pretrained(params, UnlabelledCells(tuple(data.pool.frame["sha256"]), data.pool.decoded(params).read), cache)


def evaluate(network: AttentionResNet18, card: ModelCard, params: Params, cells: Cells) -> dict[str, Any]:
    """The scores on one evaluation set: those of SCORES, `n`, `recall` by class, and what LossNet is worth there (None
    without one)."""
    labels = np.array([CLASS_INDEX[label] for label in cells.frame["label"]], dtype=np.int64)
    seen = predict(network, cells.decoded(params).batches(cells.frame["sha256"].tolist(), BATCH))
    probabilities = softmax(seen.logits, card.temperature)
    metrics = classification_metrics(probabilities, labels, resamples=0)
    row = {"n": metrics["n"], **{name: metrics[name] for name in SCORES}}
    row["recall"] = {name: metrics["per_class"][name]["recall"] for name in CLASSES}
    row["ranking_accuracy"] = row["predicted_loss_spread"] = None
    if card.architecture.lossnet:
        losses = -np.log(np.maximum(softmax(seen.logits)[np.arange(len(labels)), labels], 1e-12))
        ranking = ranking_accuracy(torch.from_numpy(seen.predicted_loss), torch.from_numpy(losses))
        row["ranking_accuracy"] = None if np.isnan(ranking) else ranking
        row["predicted_loss_spread"] = float(seen.predicted_loss.std())
    return row


def ask(params: Params, data: StudyData, labelled: Sequence[str], model: Path, strategy: str, count: int) -> list[str]:
    """The `count` cells of the pool, beyond those labelled, that a strategy asks about, the first first."""
    known = data.pool.frame["sha256"].isin(set(labelled))
    have, unlabelled = (data.pool.frame[rows].reset_index(drop=True) for rows in (known, ~known))
    cells = unlabelled.assign(path=unlabelled["sha256"]).drop(columns="label")  # a strategy must not see the answers
    how = Question(strategy, count, params.seed, params.size.precision == "bf16-mixed", params.acquisition.candidates)
    queue = query(model, data.pool.decoded(params), cells, how, have)
    return [str(sha256) for sha256 in queue["sha256"]]


def untrained(params: Params, data: StudyData, pretraining: Path) -> tuple[AttentionResNet18, ModelCard]:
    """The network that a training begins with, for a first query that looks at embeddings."""
    start = pretrained_on(params, data, pretraining)
    network = first_network(params, start)
    architecture = Architecture(attention=params.model.attention, lossnet=params.model.lossnet, norm=params.model.norm)
    normalisation = Normalisation(mean=MEAN, std=STD)
    size, view = params.size.image_size, params.model.view
    return network, ModelCard(version="", input_size=size, view=view, normalisation=normalisation, architecture=architecture)


def random_labels(data: StudyData, seed: int, count: int) -> list[str]:
    """The labels that arms begin with: drawn at random, the same for all arms of a seed and nested over counts."""
    sha256s: list[str] = data.pool.frame["sha256"].tolist()
    return sorted(sha256s, key=lambda sha256: seeded_rank(seed, "study", sha256))[:count]
