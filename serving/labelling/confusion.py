"""What each reader takes which cells for: an estimate after Dawid and Skene (Applied Statistics 1979). Pure functions.

The true kind of most cells is not known. It is a hidden variable here, and each reader answers by a row of probabilities for
each true kind, whatever others say. Of known cells the truth is used. A third person who decides is one more reader, who is
expected to be right nearly always. Gibbs sampling draws the hidden kinds, the readers' rows and the kinds' shares in turn. The
limits are quantiles of these draws. So they hold what the hidden kinds leave open, which limits of a maximum would not.
docs/decisions/057 says why, studies/agreement how often they hold the truth.

Cells with a single answer are used too. Else a second reading that an `unsure` caused would make readers look unsure.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serving.contract.differential import TAILS

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
# Of a reader's answers that another reader's or the truth stands against. studies/agreement: from so many on the limits of every
# rate held the truth in 93 % of the simulations or more, and those of the commonest kind are narrower than 10 points.
MIN_COMPARED: Final = 250
MIN_OF_KIND: Final = 20  # cells of a kind, below which a row says nothing: its limits are 40 points wide and more
CHAINS: Final = 20
BURN_IN: Final = 30
KEPT: Final = 100
SEED: Final = 0
RIGHT, WRONG = 2.0, 1.0  # imagined cells in a row that were answered rightly, and that were not: few, and tried out
THIRD_RIGHT, THIRD_WRONG = 30.0, 1.0  # the same for the third person; what disagreements alone leave open is settled by these
THIRD: Final = ""  # stands for whoever decides, as a reader after all others
THIRD_VOTES: Final = 3  # of readers, where the chains start
NONE: Final = -1


@dataclass(frozen=True)
class Reading:
    """A reader's first standing answer to a cell; `truth` where the cell was given because its kind is known."""

    cell: str
    reader: str
    answer: str
    truth: str = ""


@dataclass(frozen=True)
class Row:
    """Of about `cells` cells of the kind `truth`: the share of each answer, with 95 % limits, in the order of the answers."""

    truth: str
    cells: float
    rates: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class ReaderConfusion:
    """A reader's rows by true kind; `compared` of the reader's answers stood against another reader's or the truth."""

    answers: tuple[str, ...]
    rows: tuple[Row, ...]
    compared: int


@dataclass(frozen=True)
class _Table:
    """Cells with the same answers and truth are one row: `given` (P, R) and `truth` (P,) are numbers of answers, or NONE.

    The third person is the last of the R readers. Known cells were chosen: they tell nothing of the kinds' shares.
    """

    given: Counts
    truth: Counts
    cells: Counts
    kinds: int
    answers: int


def compared(readings: Sequence[Reading], adjudicated: Mapping[str, str]) -> Counter[str]:
    """How many of each reader's answers stand against another reader's, an adjudicated one or a known truth."""
    readers = Counter(reading.cell for reading in readings)
    stands = (one.reader for one in readings if readers[one.cell] > 1 or one.cell in adjudicated or one.truth)
    return Counter(stands)


def dawid_skene(
    readings: Sequence[Reading], adjudicated: Mapping[str, str], kinds: Sequence[str], unsure: str
) -> dict[str, ReaderConfusion]:
    """The confusion of each reader, whole; the same input gives the same output.

    `readings` holds one answer for each cell and reader. `adjudicated` has by cell what a third person decided; it is nearly
    always right, and need not be. `unsure` is an answer that is no kind. Kinds that nobody named are left out.
    The result is empty where fewer than two answers were used. Raises KeyError at an answer that is no kind and not `unsure`.
    """
    readers = sorted({reading.reader for reading in readings})
    named = {one.answer for one in readings} | {one.truth for one in readings} | set(adjudicated.values())
    used = [kind for kind in kinds if kind in named]
    answers = [*used, unsure] if unsure in named else used
    if not used or len(answers) < 2:
        return {}
    decided = [Reading(cell, THIRD, answer) for cell, answer in adjudicated.items()]
    rates, cells = _sampled(_table([*readings, *decided], [*readers, THIRD], used, answers))
    counts = compared(readings, adjudicated)
    rows = [[_row(kind, rates[:, at, who], float(cells[at, who])) for at, kind in enumerate(used)] for who in range(len(readers))]
    return {reader: ReaderConfusion(tuple(answers), tuple(rows[who]), counts[reader]) for who, reader in enumerate(readers)}


def reportable(confusion: ReaderConfusion) -> ReaderConfusion | None:
    """What is worth showing of it: the rows of MIN_OF_KIND cells or more; None below MIN_COMPARED answers."""
    if confusion.compared < MIN_COMPARED:
        return None
    return replace(confusion, rows=tuple(row for row in confusion.rows if row.cells >= MIN_OF_KIND))


def _row(truth: str, rates: Floats, cells: float) -> Row:
    """Mean and limits of draws (D, A). Where fewer than half a cell had the answer, the lower limit is 0: it may never come."""
    low, high = np.quantile(rates, TAILS, axis=0)
    middle = rates.mean(axis=0)
    low[middle * cells < 0.5] = 0
    return Row(truth, cells, tuple(middle.tolist()), tuple(low.tolist()), tuple(high.tolist()))


def _table(readings: Iterable[Reading], readers: Sequence[str], kinds: Sequence[str], answers: Sequence[str]) -> _Table:
    column = {reader: at for at, reader in enumerate(readers)}
    number = {answer: at for at, answer in enumerate(answers)}
    kind = {name: at for at, name in enumerate(kinds)}
    cells: dict[tuple[str, str], list[int]] = {}
    for one in readings:
        cells.setdefault((one.cell, one.truth), [NONE] * len(readers))[column[one.reader]] = number[one.answer]
    alike: Counter[tuple[int, ...]] = Counter()
    for (_, truth), given in cells.items():
        alike[(*given, kind[truth] if truth else NONE)] += 1
    rows = np.array(sorted(alike), np.int64)
    number_of_cells = np.array([alike[pattern] for pattern in sorted(alike)], np.int64)
    return _Table(rows[:, :-1], rows[:, -1], number_of_cells, len(kinds), len(answers))


def _sampled(table: _Table) -> tuple[Floats, Floats]:
    """Draws of the readers' rows (D, K, R, A), and the mean number of cells of each kind that each reader had (K, R)."""
    rng = np.random.default_rng(SEED)
    readers, shape = table.given.shape[1], (CHAINS, table.kinds, table.given.shape[1] * table.answers)
    hidden = table.truth == NONE
    said = (table.given[:, :, None] == np.arange(table.answers)).reshape(len(table.given), -1).astype(np.float64)
    given_truth = (table.truth[:, None] == np.arange(table.kinds)) * table.cells[:, None]
    known = (given_truth.T @ said).reshape(table.kinds, readers, table.answers) + _prior(table)
    said, cells = said[hidden], table.cells[hidden]
    rates = _dirichlet(rng, np.broadcast_to(known + _majority(table, said), (CHAINS, *known.shape)))
    shares = np.full((CHAINS, table.kinds), 1 / table.kinds)
    draws = np.empty((KEPT, *rates.shape))
    total = np.zeros(known.shape[:2])
    for step in range(BURN_IN + KEPT):
        scores = np.log(rates).reshape(shape) @ said.T + np.log(shares)[:, :, None]
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        drawn = rng.multinomial(np.broadcast_to(cells, (CHAINS, len(cells))), odds.transpose(0, 2, 1)).transpose(0, 2, 1)
        seen = known + (drawn @ said).reshape(rates.shape)
        rates = _dirichlet(rng, seen)
        shares = _dirichlet(rng, drawn.sum(axis=2) + 1 / table.kinds)
        if step >= BURN_IN:
            draws[step - BURN_IN] = rates
            total += (seen - _prior(table)).sum(axis=-1).mean(axis=0) / KEPT
    return draws.reshape(-1, *known.shape), total


def _prior(table: _Table) -> Floats:
    """Imagined answers (K, R, A) in each row: right ones, and wrong ones in equal parts; of the third person more."""
    right = np.eye(table.kinds, table.answers)
    wrong = (1 - right) / (table.answers - 1)
    prior: Floats = np.repeat((RIGHT * right + WRONG * wrong)[:, None], table.given.shape[1], axis=1)
    prior[:, -1] = THIRD_RIGHT * right + THIRD_WRONG * wrong
    return prior


def _majority(table: _Table, said: Floats) -> Floats:
    """Answers (K, R, A) to the hidden cells, each under the kind with the most votes: where the chains start."""
    by_reader = said.reshape(len(said), -1, table.answers)[:, :, : table.kinds]
    votes = by_reader.sum(axis=1) + (THIRD_VOTES - 1) * by_reader[:, -1]
    kind = (votes.argmax(axis=1)[:, None] == np.arange(table.kinds)) * (votes.sum(axis=1) > 0)[:, None]
    cells = table.cells[table.truth == NONE]
    answers: Floats = ((kind * cells[:, None]).T @ said).reshape(table.kinds, -1, table.answers)
    return answers


def _dirichlet(rng: np.random.Generator, weights: Floats) -> Floats:
    """One draw of each Dirichlet distribution along the last axis of `weights`."""
    gammas = np.maximum(rng.standard_gamma(weights), np.finfo(np.float64).tiny)
    draws: Floats = gammas / gammas.sum(axis=-1, keepdims=True)
    return draws
