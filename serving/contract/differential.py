"""The 5-part differential: counts, percent, what the numbers leave open, reference ranges and flags. Pure functions.

Two kinds of 95 % limits stand beside each percentage:

`interval`   exact binomial limits (Clopper and Pearson, Biometrika 1934): what a perfect reader of so many cells leaves open.
`corrected`  limits of the specimen's true share after the classifier's own confusion has been taken back: the confusion matrix of
             the validation pool is inverted (Rogan and Gladen, Am J Epidemiol 1978; for several classes Tenenbein, Technometrics
             1972), and its own uncertainty and that of the counts go in by Dirichlet sampling. They hold as far as the
             classifier confuses the classes on this specimen as it did in the validation pool. See docs/decisions/016.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from serving.contract.site import Critical, Range, Site
from wbc_model.core.classes import CLASS_INDEX, CLASSES
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.model_card import CARD, ModelCard

Floats = NDArray[np.float64]
Flag = Literal["low", "normal", "high", "critical_low", "critical_high"]
COVERAGE: Final = 0.95
TAILS: Final = ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2)
DRAWS: Final = 4000
SEED: Final = 0
STEPS: Final = 20  # after which no limit moves by 0.1 points of percent any more
COUNT_PRIOR: Final = 0.5  # Jeffreys' prior of a multinomial
CONFUSION_PRIOR: Final = 1 / len(CLASSES)  # one imagined cell a row: a confusion never seen is rare, not impossible
SURE_FOREIGN: Final = 1e-3  # probability under which so many cells that look foreign are no chance
PERSON_ONLY: Final = "Every cell's class was given by a person; the exact limits hold as they are."
NO_CELL: Final = "No cell was counted, so that nothing is known of the specimen."
SITE_UNKNOWN: Final = "The images look like those of no site that the model was calibrated for: how it errs here is not known."
RENDERED: Final = "The model learned from drawn cells: this is for trying out, says nothing about a patient and cannot be signed."
NAMED_BY_PERSONS: Final = "Each cell named by a person from its image"  # how what stands beside the differential was found
PERCENT_DIGITS, ABSOLUTE_DIGITS = 1, 2  # decimals that are printed where no more are needed
MOST_DIGITS: Final = 12


class Interval(BaseModel):
    """95 % limits."""

    low: float
    high: float


class Corrected(Interval):
    """The median and 95 % limits after the classifier's confusion has been taken back."""

    median: float


class ReferenceRange(BaseModel):
    """The site's reference range, both ends included."""

    low: float
    high: float


class AbsoluteCount(BaseModel):
    """A class in 10*3/uL: its share times `wbc_count`, whose own uncertainty is not in the limits."""

    value: float
    printed: str = Field(default="", description="`value` as it is printed: with the digit that decides its flag.")
    interval: Interval
    corrected: Corrected | None
    reference: ReferenceRange
    flag: Flag | None

    @model_validator(mode="after")
    def _print(self) -> Self:
        self.printed = self.printed or printed(self.value, ABSOLUTE_DIGITS, self.reference, self.flag)
        return self


class ClassShare(BaseModel):
    """One class of the differential; shares and their limits are in percent of the leukocytes counted."""

    count: int
    percent: float
    printed: str = Field(default="", description="`percent` as it is printed: with the digit that decides its flag.")
    interval: Interval = Field(description="Exact (Clopper-Pearson) 95 % limits.")
    corrected: Corrected | None = Field(description="Limits corrected for the classifier's confusion; `correction` says how.")
    reference: ReferenceRange
    flag: Flag | None = Field(description="Of the percentage against the reference range; null below `minimum_cells`.")
    absolute: AbsoluteCount | None = Field(description="Only where `wbc_count` was given.")

    @model_validator(mode="after")
    def _print(self) -> Self:
        self.printed = self.printed or printed(self.percent, PERCENT_DIGITS, self.reference, self.flag)
        return self


class FurtherCount(BaseModel):
    """Cells that persons have named as one of the site's further kinds: they are beside the five classes, in none of them."""

    count: int
    per_100: float | None = Field(description="For each 100 `leukocytes`; null where there is none.")
    printed: str = Field(description="`per_100` as it is printed; empty where it is null.")
    loinc: str | None


class Correction(BaseModel):
    """How `corrected` was found, or why it is null."""

    applied: bool
    explanation: str
    validation_cells: int | None = Field(description="Cells of the validation pool behind it.")


class Differential(BaseModel):
    """The differential of one specimen; `too_few_cells` means that it must not be reported as one."""

    kind: Literal["differential", "too_few_cells"]
    note: str
    cells: int = Field(
        description="Leukocytes counted, which the shares are of: the cells of the five classes by their label, those to review "
        "too, and cells of further kinds that the site calls leukocytes."
    )
    minimum_cells: int
    to_review: int = Field(description="How many of the cells counted a person must still look at.")
    by_person: int = Field(description="How many of the cells counted have their class from a person.")
    site_unknown: bool = Field(description="The images look like no site that the model was calibrated for: trust no limits.")
    rendered: bool = Field(default=False, description="The model learned from drawn cells: nothing here is about a patient.")
    wbc_count: float | None = Field(description="As given with the request, in 10*3/uL.")
    classes: dict[str, ClassShare]
    further: dict[str, FurtherCount] = Field(
        default_factory=dict,
        description="What was counted beside the five classes, by the site's names.",
    )
    leukocytes: int | None = Field(
        default=None,
        description="What `further` is counted to: `cells`, where something of a further kind was counted.",
    )
    correction: Correction
    site: str
    reference_source: str
    critical_source: str


@lru_cache(4096)  # a decision of a person leaves most counts as they were
def clopper_pearson(count: int, total: int) -> tuple[float, float]:
    """Exact 95 % limits of a share of `count` in `total`, as fractions.

    At the lower limit `count` cells or more have a probability of 2.5 %, at the upper limit `count` or fewer. They are found by
    halving: SciPy would cost the service half a second at its start.
    """
    low = _crossing(lambda share: binomial(share, total)[count:].sum() > TAILS[0]) if count > 0 else 0.0
    high = _crossing(lambda share: binomial(share, total)[: count + 1].sum() < TAILS[0]) if count < total else 1.0
    return low, high


def binomial(share: float, total: int) -> Floats:
    """The binomial probabilities (total + 1,) of 0 to `total` hits, each of probability `share`, above 0 and below 1."""
    numbers = np.arange(total + 1)
    probabilities: Floats = np.exp(_log_ways(total) + numbers * np.log(share) + (total - numbers) * np.log1p(-share))
    return probabilities


@lru_cache(64)
def _log_ways(total: int) -> Floats:
    """The logarithms (total + 1,) of the binomial coefficients."""
    numbers = np.arange(total + 1)
    return np.concatenate([[0.0], np.cumsum(np.log((total - numbers[:-1]) / numbers[1:]))])


def foreign_site(foreign: int, cells: int, false_alarms: float) -> bool:
    """Whether more of the cells carry the reason `site_unknown` than the false alarms of a known site explain.

    That is where the binomial tail is below SURE_FOREIGN.
    """
    return foreign > 0 and float(binomial(false_alarms, cells)[foreign:].sum()) < SURE_FOREIGN


def _crossing(is_above: Callable[[float], np.bool_]) -> float:
    """Where between 0 and 1 a condition that is false below and true above turns true."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return (low + high) / 2


def card_confusion(card: ModelCard) -> NDArray[np.int64] | None:
    """The confusion matrix (5, 5), true x predicted, of the card's validation pool; None for a card that has none.

    Raises WbcError where it is there and is not one.
    """
    rows: Any = card.metrics.get("validation", {}).get("confusion")
    if rows is None:
        return None
    size = len(CLASSES)
    square = isinstance(rows, list) and len(rows) == size and all(isinstance(row, list) and len(row) == size for row in rows)
    if not square or not all(type(value) is int and value >= 0 for row in rows for value in row):
        raise WbcError(f"{CARD}: metrics.validation.confusion is not {size} rows of {size} counts; train the model again")
    return np.array(rows, np.int64)


def _dirichlet(rng: np.random.Generator, weights: NDArray[Any]) -> Floats:
    """DRAWS samples (DRAWS, ...) of Dirichlet distributions along the last axis of `weights`."""
    gammas = rng.standard_gamma(np.broadcast_to(weights, (DRAWS, *weights.shape)))
    gammas = np.maximum(gammas, np.finfo(np.float64).tiny)
    samples: Floats = gammas / gammas.sum(axis=-1, keepdims=True)
    return samples


@lru_cache(maxsize=8)
def _confusions(counts: bytes, classes: int) -> tuple[Floats, Mapping[str, Any]]:
    """Draws (DRAWS, classes, classes) of a model's confusion matrix, predicted by true class, from its counts as bytes; and the
    state of the generator after them. They are the same for each report of a model."""
    rng = np.random.default_rng(SEED)
    rates = _dirichlet(rng, np.frombuffer(counts, np.int64).reshape(classes, classes) + CONFUSION_PRIOR).transpose(0, 2, 1)
    rates.flags.writeable = False
    return rates, rng.bit_generator.state


def true_shares(by_model: NDArray[np.int64], by_person: NDArray[np.int64], confusion: NDArray[np.int64]) -> Floats:
    """Draws (DRAWS, K) of the specimen's true shares, from the cells that the model (5,) and that a person (K,) gave each class.
    K is 5, or 6 where a person found leukocytes that are of no class.

    For each draw a confusion matrix is sampled, and the shares of what the model and what people gave. A person's labels are
    taken as true. Without any the matrix is inverted on the model's shares, and what falls below zero is cut off. The seed is
    fixed: the same counts, the same limits.
    """
    rng = np.random.default_rng(SEED)
    model_part = float(by_model.sum() / (by_model.sum() + by_person.sum()))
    rates, rng.bit_generator.state = _confusions(confusion.astype(np.int64).tobytes(), len(confusion))
    given = np.concatenate([by_model + COUNT_PRIOR * model_part, by_person + COUNT_PRIOR * (1 - model_part)])
    if by_person.any():
        drawn = _dirichlet(rng, given)
        return _with_named(rates, drawn[:, : len(by_model)], drawn[:, len(by_model) :])
    predicted = _dirichlet(rng, given[: len(by_model)])
    shares: Floats = np.linalg.solve(rates, predicted[:, :, None])[:, :, 0].clip(min=0)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def _with_named(rates: Floats, predicted: Floats, named: Floats) -> Floats:
    """The likeliest shares (DRAWS, K) of the specimen, where the model gave the shares `predicted` (DRAWS, 5) of all cells, and
    people `named` (DRAWS, K).

    People look at some predictions more than at others, so what is left is no sample of the specimen: where they named all that
    were called neutrophils, no neutrophil is left but those that were missed. But among the cells of one prediction the true
    classes are as in the whole specimen. By these shares each prediction is divided among the classes, until the shares stay as
    they are (expectation maximisation: Dempster, Laird & Rubin 1977).
    """
    classes = predicted.shape[1]
    shares = predicted + named[:, :classes]
    for _ in range(STEPS):
        explained = predicted / np.einsum("dpt,dt->dp", rates, shares)
        shares = named[:, :classes] + shares * np.einsum("dpt,dp->dt", rates, explained)
    return np.concatenate([shares, named[:, classes:]], axis=1)


def _corrected(counts: NDArray[np.int64], total: int, draws: Floats) -> list[Corrected]:
    """Median and limits in percent of `total` cells. Where none of a class was seen the lower limit is 0: there may be none."""
    low, median, high = 100 * np.quantile(draws[:, : len(counts)], (TAILS[0], 0.5, TAILS[1]), axis=0)
    low[counts == 0] = 0
    high[counts == total] = 100
    return [Corrected(low=a, median=b, high=c) for a, b, c in zip(low.tolist(), median.tolist(), high.tolist(), strict=True)]


def _correction(confusion: NDArray[np.int64] | None, seen: NDArray[np.bool_], beside: int, site_unknown: bool) -> Correction:
    if not seen.size and not beside:
        return Correction(applied=False, explanation=NO_CELL, validation_cells=None)
    if seen.all():
        return Correction(applied=False, explanation=PERSON_ONLY, validation_cells=None)
    if site_unknown:
        return Correction(applied=False, explanation=SITE_UNKNOWN, validation_cells=None)
    if confusion is None:
        why = "The model's card has no confusion matrix of its validation pool; train or package the model again."
        return Correction(applied=False, explanation=why, validation_cells=None)
    cells = int(confusion.sum())
    if absent := [name for name, row in zip(CLASSES, confusion, strict=True) if not row.sum()]:
        why = f"The model's validation pool has no {absent[0]}, so that it is not known what the model takes one for."
        return Correction(applied=False, explanation=why, validation_cells=cells)
    how = (
        f"Inverted confusion matrix of {cells} validation cells; the uncertainty of the matrix and of the counts by Dirichlet "
        f"sampling ({DRAWS} draws, fixed seed). Holds as far as the model errs on this specimen as it did on those cells."
    )
    return Correction(applied=True, explanation=how, validation_cells=cells)


def flag(value: float, reference: Range | ReferenceRange, critical: Critical | None) -> Flag:
    """Where a value lies: critical limits go before the reference range; a value on a limit is inside."""
    if critical is not None and critical.low is not None and value < critical.low:
        return "critical_low"
    if critical is not None and critical.high is not None and value > critical.high:
        return "critical_high"
    if value < reference.low:
        return "low"
    return "high" if value > reference.high else "normal"


def printed(
    value: float, digits: int, reference: Range | ReferenceRange, flagged: Flag | None, critical: Critical | None = None
) -> str:
    """A value to `digits` decimals, or to as many more as it takes for the printed number to have the value's flag.

    Without `critical` limits it is on the same side of the reference range that the flag is of.
    """
    if flagged is None:
        return f"{value:.{digits}f}"
    wanted = flagged if critical is not None else flagged.removeprefix("critical_")
    texts = (f"{value:.{decimals}f}" for decimals in range(digits, MOST_DIGITS))
    return next((text for text in texts if flag(float(text), reference, critical) == wanted), repr(value))


def plain(value: float) -> str:
    """A limit as the site's file has it: every digit and no exponent."""
    return np.format_float_positional(value, trim="-")


def how_reviewed(differential: Differential) -> str:
    """To how many of the cells counted a person gave or confirmed the class, in words: from the record, whoever signed."""
    cells, by_person, left = differential.cells, differential.by_person, differential.to_review
    some = "each cell" if by_person == cells else f"{by_person} of {cells} cells"
    did = f"{some} reviewed by a person" if by_person else "not reviewed by a person"
    return f"{did}, {left} still to be reviewed" if left else did


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What is known of a specimen's N cells beside the labels.

    `further` are the names of the cells that are none of the classes, as persons have given them.

    `wbc_count` is in 10*3/uL. A person must still look at `to_review` of the cells. `by_person` (N,) says which labels a person
    gave, by default none. `site_unknown`: the images look like no site that the model was calibrated for, so they are not
    corrected. `rendered`: the model learned from drawn cells.
    """

    wbc_count: float | None = None
    to_review: int = 0
    by_person: Sequence[bool] | None = None
    site_unknown: bool = False
    rendered: bool = False
    further: Sequence[str] = ()


NOTHING_ELSE: Final = Circumstances()


def count_differential(
    labels: Sequence[str], confusion: NDArray[np.int64] | None, site: Site, of: Circumstances = NOTHING_ELSE
) -> Differential:
    """The differential of the labels (N,) of one specimen's cells. Without a cell every share is 0, from 0 to 100 %.

    Shares are of all leukocytes: the N cells, and those of further kinds that the site calls leukocytes. LOINC's terms and an
    analyser's `wbc_count` mean the same. `confusion` (5, 5) is true x predicted of the validation pool, None where not known.
    """
    indices = np.array([CLASS_INDEX[label] for label in labels], np.int64)
    seen = np.zeros(len(labels), bool) if of.by_person is None else np.asarray(of.by_person, bool)
    person = np.bincount(indices[seen], minlength=len(CLASSES))
    counts = np.bincount(indices, minlength=len(CLASSES))
    beside = sum(site.is_leukocyte(name) for name in of.further)
    total = len(labels) + beside
    correction = _correction(confusion, seen, beside, of.site_unknown)
    corrected: Sequence[Corrected | None] = [None] * len(CLASSES)
    if correction.applied and confusion is not None:
        named = np.append(person, beside) if beside else person
        corrected = _corrected(counts, total, true_shares(counts - person, named, confusion))
    shares = zip(CLASSES, counts.tolist(), corrected, strict=True)
    return Differential(
        kind="differential" if total >= site.minimum_cells else "too_few_cells",
        note=_note(total, of.to_review, site.minimum_cells),
        cells=total,
        minimum_cells=site.minimum_cells,
        to_review=of.to_review,
        by_person=int(seen.sum()) + beside,
        site_unknown=of.site_unknown,
        rendered=of.rendered,
        wbc_count=of.wbc_count,
        classes={name: _share(name, count, total, limits, site, of.wbc_count) for name, count, limits in shares},
        further=_further(of.further, total, site),
        leukocytes=total if of.further else None,
        correction=correction,
        site=site.name,
        reference_source=site.reference.source,
        critical_source=site.critical.source,
    )


def _further(names: Sequence[str], leukocytes: int, site: Site) -> dict[str, FurtherCount]:
    """The counts of the further kinds, in the site's order; those that the site has no longer come last."""
    order = [kind.name for kind in site.labelling.further_kinds]
    counts = Counter(names)
    found: dict[str, FurtherCount] = {}
    for name in sorted(counts, key=lambda one: (order.index(one) if one in order else len(order), one)):
        per_100 = 100 * counts[name] / leukocytes if leukocytes else None
        kind = site.further_kind(name)
        found[name] = FurtherCount(
            count=counts[name],
            per_100=per_100,
            printed="" if per_100 is None else f"{per_100:.{PERCENT_DIGITS}f}",
            loinc=None if kind is None else kind.loinc,
        )
    return found


def _note(cells: int, to_review: int, minimum: int) -> str:
    noted = f"{counted(cells, 'cell')} counted, {to_review} of them to be looked at by a person."
    return noted if cells >= minimum else f"{noted} Too few for a differential: at least {minimum} are needed."


def _share(name: str, count: int, total: int, corrected: Corrected | None, site: Site, wbc_count: float | None) -> ClassShare:
    low, high = clopper_pearson(count, total)
    of = max(total, 1)
    percent, reference = 100 * count / of, site.reference.percent[name]
    interval = Interval(low=100 * low, high=100 * high)
    enough = total >= site.minimum_cells
    absolute = None
    if wbc_count is not None:
        factor, limits = wbc_count / 100, site.reference.absolute[name]
        value = round(wbc_count * count / of, 9)  # so that 0.1 * 3 is not above a limit of 0.3
        critical = site.critical.absolute.get(name)
        flagged = flag(value, limits, critical) if enough else None
        absolute = AbsoluteCount(
            value=value,
            printed=printed(value, ABSOLUTE_DIGITS, limits, flagged, critical),
            interval=Interval(low=factor * interval.low, high=factor * interval.high),
            corrected=corrected and Corrected(**{key: factor * value for key, value in corrected.model_dump().items()}),
            reference=ReferenceRange(low=limits.low, high=limits.high),
            flag=flagged,
        )
    critical = site.critical.percent.get(name)
    flagged = flag(percent, reference, critical) if enough else None
    return ClassShare(
        count=count,
        percent=percent,
        printed=printed(percent, PERCENT_DIGITS, reference, flagged, critical),
        interval=interval,
        corrected=corrected,
        reference=ReferenceRange(low=reference.low, high=reference.high),
        flag=flagged,
        absolute=absolute,
    )
