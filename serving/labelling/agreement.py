"""How far two readers agree beyond chance, and how often a reader repeats or hits an answer. Pure functions.

Cohen's kappa (Educ Psychol Meas 1960) compares two readers who were blind to each other. Its limits are those of its posterior
distribution: the shares of the table of answers get a Dirichlet distribution, and kappa is computed of each draw. So they stay
below one, and they are no point where two readers never differed. docs/decisions/057 says why, studies/agreement how often
they hold the truth.

An answer `unsure` names no class. Cells with such an answer are left out here; serving/labelling/confusion.py counts them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serving.contract.differential import TAILS, clopper_pearson

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
DRAWS: Final = 4000
SEED: Final = 0
ALIKE, DIFFERENT = 1.0, 0.5  # imagined cells on the diagonal of the table and beside it, in equal parts: few, and tried out


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa of two readers with 95 % limits, over the `n` cells to which both gave an answer that names a kind."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Hits:
    """`right` of `asked`, with exact (Clopper-Pearson) 95 % limits of the share."""

    right: int
    asked: int
    low: float
    high: float


def cohen_kappa(first: Sequence[str], second: Sequence[str], names: Collection[str]) -> Kappa | None:
    """Kappa of two readers' answers (N,) to the same cells; pairs with an answer that is not in `names` are left out.

    None where it is not defined: no pair is left, or all answers are one kind, which says nothing of chance.
    Raises ValueError if one reader has more answers than the other.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a in names and b in names]
    used = sorted({answer for pair in pairs for answer in pair})
    if len(used) < 2:
        return None
    table = np.zeros((len(used), len(used)), np.int64)
    for a, b in pairs:
        table[used.index(a), used.index(b)] += 1
    return kappa_of_table(table)


def kappa_of_class(first: Sequence[str], second: Sequence[str], name: str, names: Collection[str]) -> Kappa | None:
    """Kappa of one kind against the rest; None where no answer, or every answer, is that kind."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a in names and b in names]
    named = [[name if answer == name else "" for answer in pair] for pair in pairs]
    return cohen_kappa([a for a, _ in named], [b for _, b in named], (name, ""))


def kappa_of_table(table: Counts) -> Kappa:
    """Kappa of a table (K, K) of counts, the first reader's answers x the second's, each kind named by at least one of them."""
    counts = min(tuple(each.ravel().tolist()) for each in (table, table.T))  # whoever of the two is first
    low, high = _limits(len(table), counts)
    return Kappa(float(_kappa(table / table.sum())), low, high, int(table.sum()))


def hits(right: int, asked: int) -> Hits | None:
    """The share `right` of `asked` with exact 95 % limits; None where nothing was asked."""
    return Hits(right, asked, *clopper_pearson(right, asked)) if asked else None


@lru_cache(1024)  # a new answer changes the tables of one reader only
def _limits(size: int, counts: tuple[int, ...]) -> tuple[float, float]:
    table = np.array(counts, np.float64).reshape(size, size)
    prior = np.where(np.eye(size, dtype=bool), ALIKE / size, DIFFERENT / (size * (size - 1)))
    gammas = np.random.default_rng(SEED).standard_gamma(np.broadcast_to(table + prior, (DRAWS, size, size)))
    low, high = np.quantile(_kappa(gammas / gammas.sum(axis=(1, 2), keepdims=True)), TAILS)
    return float(low), float(high)


def _kappa(shares: Floats) -> Floats:
    """Cohen's kappa of tables (..., K, K) of shares."""
    agreed = np.trace(shares, axis1=-2, axis2=-1)
    by_chance = (shares.sum(axis=-2) * shares.sum(axis=-1)).sum(axis=-1)
    kappa: Floats = (agreed - by_chance) / (1 - by_chance)
    return kappa
