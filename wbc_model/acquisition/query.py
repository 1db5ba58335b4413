"""Query: score the unlabelled pool and put the cells most worth a label into a queue, with the reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from wbc_model.acquisition.queue import QUEUE_COLUMNS, colours_of, queue_frame
from wbc_model.acquisition.strategies import Floats, Labelled, PoolScores, find_strategy
from wbc_model.cells.decoded import DecodedCells
from wbc_model.core.classes import CLASS_INDEX
from wbc_model.core.errors import WbcError
from wbc_model.core.probabilities import softmax
from wbc_model.network.model_directory import load_model
from wbc_model.network.predict import Predictions, predict
from wbc_model.network.resnet import AttentionResNet18

BATCH: Final = 128
SLICE: Final = 16 * BATCH


def score_pool(
    network: AttentionResNet18, decoded: DecodedCells, sha256s: list[str], autocast: bool, embeddings: bool = False
) -> Predictions:
    """Predictions for the cells in order, in a stream. Memory grows with the pool only by the returned rows: 24 bytes per cell,
    and with `embeddings` 512 float32 (2 KiB) more."""
    n, width = len(sha256s), network.fc.in_features if embeddings else 0
    sizes = (n, network.fc.out_features), (n,), (n, width)
    seen = Predictions(*(np.empty(size, np.float32) for size in sizes))
    with tqdm(total=n, desc="score the pool", unit="cell", disable=None, leave=False) as bar:
        for start in range(0, n, SLICE):  # rows go to their place slice by slice: they are never there twice
            part = slice(start, start + SLICE)
            batches = decoded.batches(sha256s[part], BATCH)
            for rows, new in zip(seen, predict(network, batches, embeddings=embeddings, autocast=autocast), strict=True):
                rows[part] = new
            bar.update(len(sha256s[part]))
    return seen


def draw_candidates(unlabelled: pd.DataFrame, candidates: int, count: int, seed: int) -> pd.DataFrame:
    """`candidates` rows drawn at random, in their order, and never fewer than the `count` to choose; all rows for 0."""
    size = max(candidates, count)
    if candidates == 0 or size >= len(unlabelled):
        return unlabelled
    rng = np.random.default_rng([seed, 1])  # not the stream that the strategy draws from
    return unlabelled.iloc[np.sort(rng.choice(len(unlabelled), size, replace=False))]


@dataclass(frozen=True)
class Question:
    """How a query asks: by which strategy, for how many cells, with which seed; `autocast`: in bfloat16. With `candidates` the
    strategy sees, and the model scores, only so many cells drawn at random; 0: all."""

    strategy: str
    count: int
    seed: int
    autocast: bool = False
    candidates: int = 0


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
    cells = draw_candidates(unlabelled, how.candidates, how.count, how.seed)

    def scored(sha256s: pd.Series) -> tuple[Predictions, Floats]:
        seen = score_pool(network, decoded, sha256s.tolist(), how.autocast, "embedding" in chosen.needs)
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
    seen, probabilities = scored(cells["sha256"])
    loss = seen.predicted_loss.astype(np.float64)
    pool = PoolScores(probabilities, loss, seen.embedding, known, described(cells["sha256"]))
    return queue_frame(chosen, pool, cells, how.count, how.seed)
