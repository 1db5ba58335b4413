"""The differential against hand-computed cases, its definition and simulation."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, binom
from tiny_model import CONFUSION, write_model

from serving.contract.differential import (
    Circumstances,
    Differential,
    Flag,
    ReferenceRange,
    _confusions,
    card_confusion,
    clopper_pearson,
    count_differential,
    flag,
    foreign_site,
    printed,
    true_shares,
)
from serving.contract.site import Critical, CriticalLimits, Range, Reference, read_site
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError

SITE = read_site()
TWO_HUNDRED = [1, 6, 60, 13, 120]
HEALTHY = np.array([0.005, 0.03, 0.30, 0.06, 0.605])
NO_ERRORS = np.diag([200] * 5)


def labels(counts: Sequence[int]) -> list[str]:
    return [name for name, count in zip(CLASSES, counts, strict=True) for _ in range(count)]


def differential(counts: Sequence[int], confusion: NDArray[np.int64] | None = None, wbc: float | None = None) -> Differential:
    return count_differential(labels(counts), confusion, SITE, Circumstances(wbc_count=wbc))


def test_counts_and_percent_by_hand() -> None:
    answer = differential(TWO_HUNDRED)
    assert (answer.kind, answer.cells, answer.minimum_cells, answer.wbc_count) == ("differential", 200, 100, None)
    assert list(answer.classes) == list(CLASSES)
    assert [share.count for share in answer.classes.values()] == TWO_HUNDRED
    assert [share.percent for share in answer.classes.values()] == [0.5, 3, 30, 6.5, 60]
    assert [share.flag for share in answer.classes.values()] == ["normal"] * 5
    assert all(share.absolute is None for share in answer.classes.values())


def test_exact_limits_by_hand() -> None:
    """Of 0 or all of n the limits have a closed form; those of 10 in 100 stand in every table."""
    assert clopper_pearson(0, 100) == pytest.approx((0, 1 - 0.025 ** (1 / 100)))
    assert clopper_pearson(100, 100) == pytest.approx((0.025 ** (1 / 100), 1))
    assert clopper_pearson(10, 100) == pytest.approx((0.0490, 0.1762), abs=5e-5)
    interval = differential(TWO_HUNDRED).classes["Lymphocyte"].interval
    assert (interval.low, interval.high) == pytest.approx([100 * limit for limit in clopper_pearson(60, 200)])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 1000), st.data())
def test_exact_limits_leave_a_fortieth_in_each_tail(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total))
    low, high = clopper_pearson(count, total)
    assert low <= count / total <= high
    assert low == pytest.approx(np.nan_to_num(beta.ppf(0.025, count, total - count + 1)), abs=1e-12)
    assert high == pytest.approx(beta.ppf(0.975, count + 1, total - count) if count < total else 1, abs=1e-12)
    assert count == 0 or binom.sf(count - 1, total, low) == pytest.approx(0.025)
    assert count == total or binom.cdf(count, total, high) == pytest.approx(0.025)


def test_absolute_counts_by_hand() -> None:
    """4.0 of which 0.5 % are 0.02, which is still within 0.02 to 0.1; 60 % are 2.4."""
    answer = differential(TWO_HUNDRED, NO_ERRORS, 4.0)
    absolute = {name: share.absolute for name, share in answer.classes.items()}
    assert [count and count.value for count in absolute.values()] == [0.02, 0.12, 1.2, 0.26, 2.4]
    assert {count and count.flag for count in absolute.values()} == {"normal"}
    for name, share in answer.classes.items():
        count = absolute[name]
        assert count is not None
        assert count.interval.high == pytest.approx(0.04 * share.interval.high)
        assert count.corrected is not None
        assert share.corrected is not None
        assert count.corrected.low == pytest.approx(0.04 * share.corrected.low)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.49, "critical_low"), (0.5, "low"), (1.9, "low"), (2, "normal"), (7, "normal"), (7.1, "high"), (50, "high")],
)
def test_flags(value: float, expected: str) -> None:
    assert flag(value, Range(low=2.0, high=7.0), Critical(low=0.5, high=50.0)) == expected


def test_critical_limits_may_be_missing_and_come_before_the_range() -> None:
    reference = Range(low=2.0, high=7.0)
    assert flag(50.1, reference, Critical(low=0.5, high=50.0)) == "critical_high"
    assert flag(0.0, reference, None) == flag(0.0, reference, Critical(high=50.0)) == "low"
    assert flag(51, reference, Critical(low=0.5)) == "high"


def test_the_flags_of_a_neutropenic_specimen() -> None:
    answer = differential([0, 0, 90, 5, 5], wbc=2.0)
    neutrophil, lymphocyte = answer.classes["Neutrophil"], answer.classes["Lymphocyte"]
    assert neutrophil.absolute is not None
    assert (neutrophil.flag, neutrophil.absolute.value, neutrophil.absolute.flag) == ("low", 0.1, "critical_low")
    assert neutrophil.absolute.printed == printed(0.1, 2, Range(low=2.0, high=7.0), "critical_low") == "0.10"
    assert lymphocyte.absolute is not None
    assert (lymphocyte.flag, lymphocyte.absolute.flag) == ("high", "normal")


def test_below_the_minimum_it_is_no_differential_and_has_no_flags() -> None:
    few, enough = differential([0, 0, 0, 0, 99], wbc=0.1), differential([0, 0, 0, 0, 100], wbc=0.1)
    assert (few.kind, enough.kind) == ("too_few_cells", "differential")
    assert "at least 100 are needed" in few.note
    assert "needed" not in enough.note
    for answer, flags in ((few, {None}), (enough, {"low", "normal", "high", "critical_low"})):
        shares = answer.classes.values()
        assert {share.flag for share in shares} | {share.absolute and share.absolute.flag for share in shares} == flags
    assert few.classes["Neutrophil"].percent == 100


def test_cells_to_review_are_counted_and_their_number_is_said() -> None:
    answer = count_differential(labels(TWO_HUNDRED), None, SITE, Circumstances(to_review=7))
    assert (answer.cells, answer.to_review) == (200, 7)
    assert "7 of them to be looked at" in answer.note


def test_of_no_cell_nothing_is_known() -> None:
    answer = count_differential([], np.eye(5, dtype=np.int64) * 50, SITE, Circumstances(wbc_count=7.0))
    assert (answer.kind, answer.cells) == ("too_few_cells", 0)
    share = answer.classes["Neutrophil"]
    assert (share.count, share.percent, share.interval.low, share.interval.high) == (0, 0, 0, 100)
    assert (share.corrected, share.flag, answer.correction.applied) == (None, None, False)
    assert share.absolute is not None
    assert (share.absolute.value, round(share.absolute.interval.high, 9)) == (0, 7)
    assert "No cell" in answer.correction.explanation


def test_the_correction_finds_the_truth_that_was_mixed() -> None:
    """Predicted shares that are exactly the true ones through the confusion matrix give the true ones back."""
    rates = np.full((5, 5), 0.02) + 0.9 * np.eye(5)
    true = np.array([0.05, 0.1, 0.3, 0.15, 0.4])
    seen = np.round(100_000 * true @ rates).astype(int)
    answer = differential(seen.tolist(), np.round(1e6 * rates).astype(np.int64))
    assert answer.correction.applied
    assert answer.correction.validation_cells == 5_000_000
    for share, truth, raw in zip(answer.classes.values(), true, true @ rates, strict=True):
        assert share.corrected is not None
        assert share.corrected.median == pytest.approx(100 * truth, abs=0.05)
        assert share.corrected.low < 100 * truth < share.corrected.high
        assert share.percent == pytest.approx(100 * raw, abs=0.01)


def simulate(true: NDArray[np.float64], rates: NDArray[np.float64], validation: int, cells: int) -> NDArray[np.float64]:
    """How often the exact and the corrected limits (2, 5) hold the true share, in 200 specimens with a confusion matrix each."""
    rng = np.random.default_rng(7)
    held = np.zeros((2, 5))
    for _ in range(200):
        confusion = np.stack([rng.multinomial(validation, row) for row in rates])
        answer = differential(rng.multinomial(cells, true @ rates).tolist(), confusion)
        for number, (share, truth) in enumerate(zip(answer.classes.values(), 100 * true, strict=True)):
            assert share.corrected is not None
            held[0, number] += share.interval.low <= truth <= share.interval.high
            held[1, number] += share.corrected.low <= truth <= share.corrected.high
    return held / 200


def one_sided(accuracy: float) -> NDArray[np.float64]:
    """Errors as they are: granulocytes for each other, monocytes for lymphocytes and back."""
    rates = accuracy * np.eye(5)
    for true, taken_for in ((0, 4), (1, 4), (2, 3), (3, 2), (4, 1)):
        rates[true, taken_for] = 1 - accuracy
    return rates


@pytest.mark.parametrize(
    ("accuracy", "validation", "cells", "exact_at_most"),
    [pytest.param(0.95, 300, 200, 0.88, marks=pytest.mark.slow), (0.85, 60, 100, 0.75)],
)
def test_corrected_limits_cover_95_percent_where_the_classifier_errs(
    accuracy: float, validation: int, cells: int, exact_at_most: float
) -> None:
    """200 specimens: a standard error of 1.5 points a class, 0.7 over the five."""
    exact, corrected = simulate(HEALTHY, one_sided(accuracy), validation, cells)
    assert 0.935 <= corrected.mean() <= 0.98
    assert corrected.min() >= 0.90
    assert exact.mean() <= exact_at_most
    assert exact.min() < corrected.min()


@pytest.mark.parametrize(("accuracy", "looked_at"), [(0.97, (2, 3)), (0.9, (4,))])
def test_corrected_limits_cover_95_percent_where_people_look_at_some_classes_only(
    accuracy: float, looked_at: tuple[int, ...]
) -> None:
    """They name each cell that the model calls a lymphocyte or monocyte, or each neutrophil. How many these are is chance as
    well. And what the model calls an eosinophil then is one, or a neutrophil that nobody named."""
    rng, rates = np.random.default_rng(7), one_sided(accuracy)
    held = np.zeros(5)
    for _ in range(100):
        confusion = np.stack([rng.multinomial(300, row) for row in rates])
        true = rng.choice(5, 150, p=HEALTHY)
        predicted = np.array([rng.choice(5, p=rates[one]) for one in true])
        seen = np.isin(predicted, looked_at)
        names = [CLASSES[one] for one in np.where(seen, true, predicted)]
        answer = count_differential(names, confusion, SITE, Circumstances(by_person=seen.tolist()))
        limits = [share.corrected for share in answer.classes.values()]
        held += [one is not None and one.low <= truth <= one.high for one, truth in zip(limits, 100 * HEALTHY, strict=True)]
    assert 0.93 <= (held / 100).mean() <= 0.99
    assert (held / 100).min() >= 0.88


def test_corrected_limits_cover_95_percent_where_it_does_not() -> None:
    exact, corrected = simulate(HEALTHY, np.eye(5), 200, 200)
    assert exact.mean() >= 0.95
    assert 0.935 <= corrected.mean() <= 0.985


def test_where_there_may_be_none_the_lower_limit_is_0_and_where_all_are_the_upper_is_100() -> None:
    shares = differential([0, 0, 0, 0, 150], NO_ERRORS).classes
    assert [share.corrected and share.corrected.low for share in shares.values()][:4] == [0] * 4
    assert shares["Neutrophil"].corrected is not None
    assert shares["Neutrophil"].corrected.high == 100


counts = st.lists(st.integers(0, 60), min_size=5, max_size=5).filter(any)
matrices = st.lists(st.lists(st.integers(0, 50), min_size=5, max_size=5).filter(any), min_size=5, max_size=5)


def test_what_is_kept_of_a_confusion_matrix_gives_the_limits_of_a_new_computation() -> None:
    """The draws of a matrix are kept. Those of the counts follow them, as if both had been drawn anew."""
    matrices = [np.diag([diagonal] * 5) + 1 for diagonal in (20, 50)]
    kept = [differential(TWO_HUNDRED, matrix) for matrix in [*matrices, *matrices]]
    _confusions.cache_clear()
    anew = [differential(TWO_HUNDRED, matrix) for matrix in matrices]
    assert kept == [*anew, *anew]
    assert anew[0] != anew[1]


def test_the_draws_of_the_counts_follow_those_of_the_matrix() -> None:
    """As one generator gives them: were the counts drawn from the seed again, both would move together."""
    rng, counts, matrix = np.random.default_rng(0), np.array(TWO_HUNDRED), np.diag([20] * 5) + 1
    rates = rng.standard_gamma(np.broadcast_to(matrix + 0.2, (4000, 5, 5)))
    predicted = rng.standard_gamma(np.broadcast_to(counts + 0.5, (4000, 5)))
    rates, predicted = rates / rates.sum(2, keepdims=True), predicted / predicted.sum(1, keepdims=True)
    shares = np.linalg.solve(rates.transpose(0, 2, 1), predicted[:, :, None])[:, :, 0].clip(min=0)
    expected = shares / shares.sum(1, keepdims=True)
    np.testing.assert_allclose(true_shares(counts, np.zeros(5, np.int64), matrix), expected, rtol=1e-9)


@pytest.mark.parametrize("by_person", [[5, 10, 0, 5, 5], [5, 10, 0, 5, 5, 20], [0] * 5])
def test_where_the_model_never_errs_it_does_not_matter_who_named_a_cell(by_person: list[int]) -> None:
    """The shares are then a Dirichlet distribution's, of the counts and half a cell a class (of a sixth what is people's part):
    mean a / n, variance a (n - a) / n² / (n + 1)."""
    by_model, named = np.array([5, 0, 40, 0, 30]), np.array(by_person)
    prior = np.full(len(named), 0.5)
    prior[5:] *= named.sum() / (by_model.sum() + named.sum())
    a = np.pad(by_model, (0, len(named) - 5)) + named + prior
    draws, n = true_shares(by_model, named, 10**9 * np.eye(5, dtype=np.int64)), a.sum()
    spread = np.sqrt(a * (n - a) / n**2 / (n + 1))
    np.testing.assert_allclose(draws.mean(axis=0) / spread, a / n / spread, atol=0.08)
    np.testing.assert_allclose(draws.std(axis=0), spread, rtol=0.06)


@settings(max_examples=40, deadline=None)
@given(counts, matrices)
def test_whatever_the_matrix_the_limits_are_limits_and_the_same_again(seen: list[int], rows: list[list[int]]) -> None:
    answer = differential(seen, np.array(rows), 7.0)
    assert answer == differential(seen, np.array(rows), 7.0)
    assert sum(share.percent for share in answer.classes.values()) == pytest.approx(100)
    for share in answer.classes.values():
        assert share.corrected is not None
        assert 0 <= share.corrected.low <= share.corrected.median <= share.corrected.high <= 100
        assert 0 <= share.interval.low <= share.percent <= share.interval.high <= 100


def test_what_a_person_said_is_not_corrected() -> None:
    """Of 200 cells a person gave 100: their part is as certain as their number, the other is corrected as before."""
    names = labels([0, 0, 0, 0, 200])
    confusion = np.round(1000 * one_sided(0.8)).astype(np.int64)

    def eosinophils(by_person: int) -> tuple[bool, float | None]:
        answer = count_differential(names, confusion, SITE, Circumstances(by_person=[place < by_person for place in range(200)]))
        assert answer.by_person == by_person
        corrected = answer.classes["Basophil"].corrected
        return answer.correction.applied, corrected and corrected.high

    one, half, all_ = (eosinophils(number) for number in (1, 100, 200))
    assert (one[0], half[0], all_[0]) == (True, True, False)
    assert all_[1] is None
    assert one[1] is not None
    assert half[1] is not None
    assert half[1] < one[1]


def test_without_a_confusion_matrix_the_corrected_limits_are_null_and_it_says_why() -> None:
    answer = differential(TWO_HUNDRED)
    assert not answer.correction.applied
    assert "no confusion matrix" in answer.correction.explanation
    assert {share.corrected for share in answer.classes.values()} == {None}
    empty_row = np.array(CONFUSION)
    empty_row[3] = 0
    answer = differential(TWO_HUNDRED, empty_row)
    assert not answer.correction.applied
    assert "no Monocyte" in answer.correction.explanation


def test_of_an_unknown_site_nothing_is_corrected_and_it_is_marked() -> None:
    answer = count_differential(labels(TWO_HUNDRED), NO_ERRORS, SITE, Circumstances(site_unknown=True))
    assert answer.site_unknown
    assert not answer.correction.applied
    assert "no site" in answer.correction.explanation
    assert {share.corrected for share in answer.classes.values()} == {None}
    assert not differential(TWO_HUNDRED).site_unknown


def test_the_confusion_matrix_comes_from_the_card(tmp_path_factory: pytest.TempPathFactory) -> None:
    confusion = card_confusion(write_model(tmp_path_factory.mktemp("card")))
    assert confusion is not None
    assert confusion.tolist() == CONFUSION
    assert card_confusion(write_model(tmp_path_factory.mktemp("card"), metrics={})) is None
    for damaged in ([[1]], "x", [[1.5] * 5] * 5, [[-1] * 5] * 5, [[True] * 5] * 5, CONFUSION[:4], [*CONFUSION[:4], None]):
        card = write_model(tmp_path_factory.mktemp("card"), metrics={"validation": {"confusion": damaged}})
        with pytest.raises(WbcError, match=r"metrics\.validation\.confusion"):
            card_confusion(card)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400), st.floats(0.001, 0.5), st.data())
def test_a_site_is_foreign_where_false_alarms_do_not_explain_it(cells: int, false_alarms: float, data: st.DataObject) -> None:
    foreign = data.draw(st.integers(0, cells))
    tail = binom.sf(foreign - 1, cells, false_alarms)
    assert foreign_site(foreign, cells, false_alarms) == (foreign > 0 and tail < 1e-3)


def printed_number(text: str, reference: ReferenceRange, critical: Critical | None) -> Flag:
    """The flag that a reader gives to what is printed."""
    return flag(float(text), reference, critical)


LIMITS = st.integers(0, 100).map(lambda tenths: tenths / 10)


@settings(max_examples=300, deadline=None)
@given(count=st.integers(0, 1500), more=st.integers(1, 1500), limits=st.tuples(LIMITS, LIMITS), wbc=st.integers(1, 60000))
def test_a_flag_never_contradicts_the_number_that_is_printed(
    count: int, more: int, limits: tuple[float, float], wbc: int
) -> None:
    low, high = sorted(limits)
    site = read_site()
    ranges = {**site.reference.percent, "Monocyte": Range(low=low, high=high)}
    absolute = {**site.reference.absolute, "Monocyte": Range(low=low / 10, high=high / 10)}
    critical = Critical(low=low / 2, high=high * 2 + 1)
    changed = site.model_copy(
        update={
            "minimum_cells": 1,
            "reference": Reference(source="x", percent=ranges, absolute=absolute),
            "critical": CriticalLimits(source="x", percent={"Monocyte": critical}, absolute={}),
        }
    )
    share = count_differential(
        ["Monocyte"] * count + ["Neutrophil"] * more, None, changed, Circumstances(wbc_count=wbc / 1000)
    ).classes["Monocyte"]
    assert share.absolute is not None
    assert printed_number(share.printed, share.reference, critical) == share.flag
    assert printed_number(share.absolute.printed, share.absolute.reference, None) == share.absolute.flag
    assert float(share.printed) == pytest.approx(share.percent, abs=0.0501)
    assert float(share.absolute.printed) == pytest.approx(share.absolute.value, abs=0.00501)


def test_the_digit_that_decides_is_printed_and_no_more() -> None:
    eosinophils = count_differential(["Eosinophil"] * 31 + ["Neutrophil"] * 482, None, read_site()).classes["Eosinophil"]
    assert (eosinophils.percent, eosinophils.printed, eosinophils.flag) == (pytest.approx(100 * 31 / 513), "6.04", "high")
    assert (
        count_differential(["Eosinophil"] * 30 + ["Neutrophil"] * 470, None, read_site()).classes["Eosinophil"].printed == "6.0"
    )


def test_the_digit_that_tells_a_critical_value_is_printed() -> None:
    """Of 66.667 % one digit would be 66.7, which is not below 66.68."""
    site = read_site()
    ranges = {**site.reference.percent, "Monocyte": Range(low=80.0, high=90.0)}
    critical = CriticalLimits(source="x", percent={"Monocyte": Critical(low=66.68)}, absolute={})
    reference = site.reference.model_copy(update={"percent": ranges})
    changed = site.model_copy(update={"minimum_cells": 1, "reference": reference, "critical": critical})
    share = count_differential(["Monocyte"] * 2 + ["Neutrophil"], None, changed).classes["Monocyte"]
    assert (share.flag, share.printed) == ("critical_low", "66.67")


def test_a_differential_that_was_kept_before_is_printed_so_too() -> None:
    kept = count_differential(
        ["Eosinophil"] * 31 + ["Neutrophil"] * 482, None, read_site(), Circumstances(wbc_count=9.99)
    ).model_dump()
    for share in kept["classes"].values():
        del share["printed"], share["absolute"]["printed"]
    del kept["rendered"]
    shares = Differential.model_validate(kept).classes
    assert (shares["Eosinophil"].printed, shares["Eosinophil"].flag) == ("6.04", "high")
    for share in shares.values():
        assert share.absolute is not None
        assert printed_number(share.absolute.printed, share.absolute.reference, None) == share.absolute.flag
