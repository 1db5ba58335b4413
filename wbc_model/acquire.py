"""Acquisition: which unlabelled cells are worth a label next.

A strategy is a function from the pool's scores to one value a cell, higher meaning more worth a label; `needs` names what
it looks at, so that nothing else is computed. Registering is all it takes:

    @acquisition("entropy", needs={"probabilities"}, reason="the model is torn between classes")
    def entropy(pool: PoolScores, rng: np.random.Generator) -> Floats: ...
"""

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from wbc_model.errors import WbcError

Floats = NDArray[np.float64]
Need = Literal["probabilities", "predicted_loss"]


@dataclass(frozen=True)
class PoolScores:
    """What the model says of each of N cells: `probabilities` (N, C) and `predicted_loss` (N,), in the order of the pool."""

    probabilities: Floats
    predicted_loss: Floats

    def __len__(self) -> int:
        return len(self.probabilities)


Value = Callable[[PoolScores, np.random.Generator], Floats]


@dataclass(frozen=True)
class Strategy:
    """A named way to value cells; `reason` is what the annotator reads beside a cell."""

    name: str
    needs: Set[Need]
    reason: str
    value: Value


STRATEGIES: Final[dict[str, Strategy]] = {}


def acquisition(name: str, needs: Set[Need], reason: str) -> Callable[[Value], Value]:
    """Register a strategy under its name."""

    def register(value: Value) -> Value:
        STRATEGIES[name] = Strategy(name, needs, reason, value)
        return value

    return register


def find_strategy(name: str) -> Strategy:
    """The strategy of that name; raises WbcError listing those that there are."""
    if name not in STRATEGIES:
        raise WbcError(f"params.yaml: acquisition.strategy: {name!r} is unknown; there are {', '.join(sorted(STRATEGIES))}")
    return STRATEGIES[name]


def select(strategy: Strategy, pool: PoolScores, count: int, seed: int) -> tuple[NDArray[np.int64], Floats]:
    """The `count` most valuable cells (fewer where the pool has fewer), best first: indices (n,) and their values (n,).

    Ties, and a model that values all cells alike, are broken at random but repeatably by `seed`.
    """
    rng = np.random.default_rng(seed)
    values = strategy.value(pool, rng)
    if values.shape != (len(pool),) or not np.isfinite(values).all():
        raise ValueError(f"strategy {strategy.name} must return one finite value a cell, got shape {values.shape}")
    order = np.lexsort([rng.permutation(len(values)), -values])[:count]
    return order, values[order]


@acquisition("random", needs=set(), reason="drawn at random")
def random_value(pool: PoolScores, rng: np.random.Generator) -> Floats:
    """The baseline that every other strategy has to beat."""
    return rng.random(len(pool))


@acquisition("entropy", needs={"probabilities"}, reason="the model is torn between classes")
def entropy(pool: PoolScores, rng: np.random.Generator) -> Floats:
    """Shannon entropy of the prediction in nats (Settles 2009, section 3.1)."""
    p = np.clip(pool.probabilities, 1e-12, 1.0)
    value: Floats = -(p * np.log(p)).sum(axis=1)
    return value


@acquisition("margin", needs={"probabilities"}, reason="two classes are almost equally likely")
def margin(pool: PoolScores, rng: np.random.Generator) -> Floats:
    """Minus the gap between the two most likely classes (Scheffer et al., IDA 2001)."""
    top = np.sort(pool.probabilities, axis=1)
    value: Floats = top[:, -2] - top[:, -1]
    return value


@acquisition("learning_loss", needs={"predicted_loss"}, reason="LossNet expects the model to be wrong")
def learning_loss(pool: PoolScores, rng: np.random.Generator) -> Floats:
    """The loss that LossNet predicts (Yoo & Kweon, CVPR 2019)."""
    return pool.predicted_loss
