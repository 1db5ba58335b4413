"""The queue as a table, and the first one: before there is any model, by the cells' colours. Without torch."""

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wbc_model.acquisition.colours import colours
from wbc_model.acquisition.distances import MANY
from wbc_model.acquisition.strategies import PoolScores, Strategy, find_strategy, select
from wbc_model.cells.decoded import DecodedCells
from wbc_model.core.classes import CLASSES

QUEUE_COLUMNS: Final = ("sha256", "path", "rank", "score", "reason", "predicted", "probability")
BATCH: Final = 128


def colours_of(decoded: DecodedCells, sha256s: pd.Series) -> NDArray[np.float32]:
    """The colours (N, 49) of cells in their order, in a stream."""
    return np.concatenate([colours(batch) for batch in decoded.batches(sha256s.tolist(), BATCH)])


def first_query(decoded: DecodedCells, unlabelled: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """The `count` cells of `unlabelled` (columns sha256, path) to be labelled before there is any model: those whose colours
    cover the pool's best (`colour_cover`, decision 025). QUEUE_COLUMNS; `predicted` and `probability` are empty.

    Of more than MANY cells so many are looked at, drawn at random, at least twice the `count`: nothing is known of any yet."""
    if unlabelled.empty or count < 1:
        return pd.DataFrame(columns=list(QUEUE_COLUMNS))
    if (size := max(MANY, 2 * count)) < len(unlabelled):
        drawn = np.random.default_rng([seed, 2]).choice(len(unlabelled), size, replace=False)
        unlabelled = unlabelled.iloc[np.sort(drawn)]
    shares = np.full((len(unlabelled), len(CLASSES)), 1 / len(CLASSES))
    pool = PoolScores(shares, np.zeros(len(unlabelled)), colours=colours_of(decoded, unlabelled["sha256"]))
    return queue_frame(find_strategy("colour_cover"), pool, unlabelled, count, seed).assign(predicted="", probability="")


def queue_frame(strategy: Strategy, pool: PoolScores, unlabelled: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """The queue as a table, best cell first."""
    picks = select(strategy, pool, count, seed)
    chosen, probabilities = unlabelled.iloc[picks.indices], pool.probabilities[picks.indices]
    return pd.DataFrame(
        {
            "sha256": chosen["sha256"].to_numpy(),
            "path": chosen["path"].to_numpy(),
            "rank": np.arange(1, len(chosen) + 1),
            "score": picks.scores.round(6),
            "reason": list(picks.reasons),
            "predicted": [CLASSES[i] for i in probabilities.argmax(axis=1)],
            "probability": probabilities.max(axis=1).round(6),
        },
        columns=list(QUEUE_COLUMNS),
    )
