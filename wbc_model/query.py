"""Query: score the unlabelled pool and put the cells most worth a label into a queue, with the reason."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from wbc_model.acquire import PoolScores, Strategy, find_strategy, select
from wbc_model.classes import CLASSES
from wbc_model.decoded import DecodedCells
from wbc_model.errors import WbcError
from wbc_model.export import load_model
from wbc_model.network import AttentionResNet18
from wbc_model.predict import Predictions, predict
from wbc_model.probabilities import softmax

QUEUE_COLUMNS: Final = ("sha256", "path", "rank", "score", "reason", "predicted", "probability")
BATCH: Final = 128


def score_pool(network: AttentionResNet18, decoded: DecodedCells, sha256s: list[str], autocast: bool) -> Predictions:
    """Predictions for the cells in order, in a stream: memory beyond the returned rows does not grow with the pool."""
    with tqdm(total=len(sha256s), desc="score the pool", unit="cell", disable=None, leave=False) as bar:

        def batches() -> Iterator[NDArray[np.uint8]]:
            for batch in decoded.batches(sha256s, BATCH):
                yield batch
                bar.update(len(batch))

        return predict(network, batches(), autocast=autocast)


def query(
    model_directory: Path, decoded: DecodedCells, unlabelled: pd.DataFrame, strategy: str, count: int, seed: int, autocast: bool
) -> pd.DataFrame:
    """The `count` cells of `unlabelled` (columns sha256, path) most worth a label: QUEUE_COLUMNS, best first.

    Raises WbcError for an unknown strategy, or one that needs a LossNet which the model does not have.
    """
    chosen = find_strategy(strategy)
    network, card = load_model(model_directory)
    if "predicted_loss" in chosen.needs and not card.architecture.lossnet:
        raise WbcError(f"acquisition.strategy {strategy} needs a model with LossNet: set model.lossnet to true and train again")
    sha256s = unlabelled["sha256"].tolist()
    if not sha256s:
        return pd.DataFrame(columns=list(QUEUE_COLUMNS))
    seen = score_pool(network, decoded, sha256s, autocast)
    pool = PoolScores(softmax(seen.logits, card.temperature), seen.predicted_loss.astype(np.float64))
    return queue_frame(chosen, pool, unlabelled, count, seed)


def queue_frame(strategy: Strategy, pool: PoolScores, unlabelled: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """The queue as a table, best cell first."""
    order, values = select(strategy, pool, count, seed)
    chosen = unlabelled.iloc[order]
    top = pool.probabilities[order].argmax(axis=1)
    return pd.DataFrame(
        {
            "sha256": chosen["sha256"].to_numpy(),
            "path": chosen["path"].to_numpy(),
            "rank": np.arange(1, len(order) + 1),
            "score": values.round(6),
            "reason": strategy.reason,
            "predicted": [CLASSES[i] for i in top],
            "probability": pool.probabilities[order, top].round(6),
        },
        columns=list(QUEUE_COLUMNS),
    )
