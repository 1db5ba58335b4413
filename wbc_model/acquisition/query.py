"""Query: score the unlabelled pool and put the cells most worth a label into a queue, with the reason."""

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from wbc_model.acquisition.distances import MANY, Floats, Ints
from wbc_model.acquisition.queue import QUEUE_COLUMNS, colours_of, queue_frame
from wbc_model.acquisition.strategies import Labelled, PoolScores, Strategy, find_strategy, ranked
from wbc_model.cells.decoded import DecodedCells
from wbc_model.choices import AUTO, Candidates
from wbc_model.core.classes import CLASS_INDEX
from wbc_model.core.errors import WbcError
from wbc_model.core.probabilities import softmax
from wbc_model.network.model_directory import load_model
from wbc_model.network.predict import Predictions, predict
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.network.shared import NetworkFile, network_file, network_in
from wbc_model.spread import each, is_spread, part_size

BATCH: Final = 128
SLICE: Final = 16 * BATCH


def score_pool(
    network: AttentionResNet18, decoded: DecodedCells, sha256s: list[str], autocast: bool, embeddings: bool = False
) -> Predictions:
    """Predictions for the cells in order, in a stream, slice by slice. Memory grows with the pool only by the returned rows: 24
    bytes per cell, and with `embeddings` 512 float32 (2 KiB) more."""
    n, width = len(sha256s), network.fc.in_features if embeddings else 0
    sizes = (n, network.fc.out_features), (n,), (n, width)
    seen = Predictions(*(np.empty(size, np.float32) for size in sizes))
    # whole batches in every slice: a cell is scored among the same others, wherever that is
    size = SLICE if not is_spread() else part_size(n, 2 * BATCH)
    slices = [sha256s[begin : begin + size] for begin in range(0, n, size)]
    with (
        tqdm(total=n, desc="score the pool", unit="cell", disable=None, leave=False) as bar,
        network_file(network, decoded.cache) if is_spread() and n > size else contextlib.nullcontext(network) as there,
    ):
        decoded.prepare(sha256s)
        work = functools.partial(_scored, there, decoded, autocast, embeddings)
        start = 0
        for found in each(work, slices):
            part = slice(start, start + len(found.logits))
            for rows, new in zip(seen, found, strict=True):  # to their place, slice by slice: they are never there twice
                rows[part] = new
            start = part.stop
            bar.update(len(found.logits))
    return seen


def _scored(
    there: AttentionResNet18 | NetworkFile, decoded: DecodedCells, autocast: bool, embeddings: bool, sha256s: list[str]
) -> Predictions:
    network = network_in(there) if isinstance(there, NetworkFile) else there
    return predict(network, decoded.batches(sha256s, BATCH), embeddings=embeddings, autocast=autocast)


def draw_candidates(unlabelled: pd.DataFrame, candidates: int, count: int, seed: int) -> pd.DataFrame:
    """`candidates` rows drawn at random, in their order, and never fewer than the `count` to choose; all rows for 0."""
    size = max(candidates, count)
    if candidates == 0 or size >= len(unlabelled):
        return unlabelled
    rng = np.random.default_rng([seed, 1])  # not the stream that the strategy draws from
    return unlabelled.iloc[np.sort(rng.choice(len(unlabelled), size, replace=False))]


def leading_candidates(strategy: Strategy, probabilities: Floats, predicted_loss: Floats, count: int, seed: int) -> Ints:
    """Which of many scored cells a strategy compares with each other, in their order: MANY of them, at least twice the `count`.

    Half are those of the highest score. That is |p - e_y|, the part of BADGE's gradient that the prediction y makes; for a
    strategy that goes by LossNet it is the predicted loss. Half are drawn at random from the rest: what a model is sure of, and
    wrong, has its chance.
    """
    size = min(len(probabilities), max(MANY, 2 * count))
    rng = np.random.default_rng([seed, 2])
    likeliest = probabilities.max(axis=1)
    doubt = np.square(probabilities).sum(axis=1) - 2 * likeliest + 1
    order = ranked(predicted_loss if "predicted_loss" in strategy.needs else doubt, rng)
    leading, rest = np.split(order, [size // 2])
    return np.sort(np.concatenate([leading, rng.choice(rest, size - len(leading), replace=False)]))


@dataclass(frozen=True)
class Question:
    """How a query asks: by which strategy, for how many cells, with which seed; `autocast`: in bfloat16.

    With a number of `candidates` the strategy sees, and the model scores, only so many cells drawn at random; 0: all. `auto`:
    all, but of more than MANY a strategy that compares cells with each other sees `leading_candidates`."""

    strategy: str
    count: int
    seed: int
    autocast: bool = False
    candidates: Candidates = 0

    def needs_fewer(self, strategy: Strategy, cells: int) -> bool:
        """Whether so many cells are too many for a strategy that compares them with each other."""
        return self.candidates == AUTO and cells > MANY and bool(strategy.needs & {"embedding", "colours"})


def query(
    model_directory: Path, decoded: DecodedCells, unlabelled: pd.DataFrame, how: Question, labelled: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The cells of `unlabelled` (columns sha256, path) most worth a label: QUEUE_COLUMNS, best first.

    `labelled` (columns sha256, label) is the labelled pool, for strategies that look at it. Raises WbcError for an unknown
    strategy, or one that needs a LossNet which the model does not have; ValueError for one that needs the labelled pool when it
    is not given.
    """
    chosen = find_strategy(how.strategy)
    network, card = load_model(model_directory)
    if "predicted_loss" in chosen.needs and not card.architecture.lossnet:
        raise WbcError(
            f"acquisition.strategy {how.strategy} needs a model with LossNet: set model.lossnet to true and train again"
        )
    if unlabelled.empty or how.count < 1:
        return pd.DataFrame(columns=list(QUEUE_COLUMNS))
    cells = unlabelled if how.candidates == AUTO else draw_candidates(unlabelled, how.candidates, how.count, how.seed)

    def scored(sha256s: pd.Series, embeddings: bool = "embedding" in chosen.needs) -> tuple[Predictions, Floats]:
        seen = score_pool(network, decoded, sha256s.tolist(), how.autocast, embeddings)
        return seen, softmax(seen.logits, card.temperature)

    def described(sha256s: pd.Series) -> NDArray[np.float32]:
        return colours_of(decoded, sha256s) if "colours" in chosen.needs else np.empty((0, 0), np.float32)

    known = Labelled()
    if chosen.needs & {"labels", "labelled"}:
        if labelled is None:
            raise ValueError(f"acquisition.strategy {how.strategy} needs the labelled pool")
        known = Labelled(np.array([CLASS_INDEX[label] for label in labelled["label"]], np.int64))
    if "labelled" in chosen.needs and labelled is not None and not labelled.empty:
        seen, probabilities = scored(labelled["sha256"])
        known = Labelled(known.labels, probabilities, seen.embedding, described(labelled["sha256"]))
    if how.needs_fewer(chosen, len(cells)):
        seen, probabilities = scored(cells["sha256"], embeddings=False)
        loss = seen.predicted_loss.astype(np.float64)
        cells = cells.iloc[leading_candidates(chosen, probabilities, loss, how.count, how.seed)]
    seen, probabilities = scored(cells["sha256"])
    loss = seen.predicted_loss.astype(np.float64)
    pool = PoolScores(probabilities, loss, seen.embedding, known, described(cells["sha256"]))
    return queue_frame(chosen, pool, cells, how.count, how.seed)
