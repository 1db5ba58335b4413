"""Agreement of readers: kappa by hand, limits that hold the truth, and a confusion that is found without knowing most truths."""

import importlib.util
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.labelling.agreement import cohen_kappa, hits, kappa_of_class
from serving.labelling.confusion import (
    MIN_COMPARED,
    MIN_OF_KIND,
    ReaderConfusion,
    Reading,
    Row,
    compared,
    dawid_skene,
    reportable,
)
from wbc_model.core.classes import CLASSES

BAND = (0.91, 0.995)  # around 95 %, for the few simulations of a test; limits that are half as wide hold the truth in 67 %


def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("agreement_study", Path(__file__).parents[2] / "studies/agreement.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    return module


def paired(table: dict[tuple[str, str], int]) -> tuple[list[str], list[str]]:
    pairs = [pair for pair, count in table.items() for _ in range(count)]
    return [a for a, _ in pairs], [b for _, b in pairs]


# 50 cells: 20 + 15 agreed of 50 is 0.7; by chance (25 * 30 + 25 * 20) / 2500 is 0.5; kappa is 0.2 / 0.5.
TEXTBOOK = {("Monocyte", "Monocyte"): 20, ("Monocyte", "Band"): 5, ("Band", "Monocyte"): 10, ("Band", "Band"): 15}


def test_kappa_is_what_it_is_by_hand() -> None:
    kappa = cohen_kappa(*paired(TEXTBOOK), ("Band", "Monocyte"))
    assert kappa
    assert kappa.value == pytest.approx(0.4)
    assert kappa.n == 50
    # The simple standard error is sqrt(0.7 * 0.3 / 50) / 0.5, which is 0.130: 0.146 to 0.654, and skewed in truth.
    assert (kappa.low, kappa.high) == pytest.approx((0.146, 0.654), abs=0.035)
    assert cohen_kappa(*paired(TEXTBOOK), ("Band", "Monocyte")) == kappa


def test_kappa_of_a_kind_sets_it_against_the_rest() -> None:
    # Of 40 cells 8 are a blast to both, 2 to the first only, 30 to none: agreed 0.95, by chance (10 * 8 + 30 * 32) / 1600 = 0.65.
    table = {("Blast", "Blast"): 8, ("Blast", "Monocyte"): 2, ("Monocyte", "Monocyte"): 20, ("Lymphocyte", "Lymphocyte"): 10}
    kappa = kappa_of_class(*paired(table), "Blast", ("Blast", "Monocyte", "Lymphocyte"))
    assert kappa
    assert kappa.value == pytest.approx(0.30 / 0.35)
    assert kappa_of_class(*paired(table), "Band", ("Blast", "Monocyte", "Lymphocyte", "Band")) is None


def test_answers_that_are_no_kind_do_not_count() -> None:
    with_unsure = {**TEXTBOOK, ("unsure", "Band"): 7, ("Monocyte", "unsure"): 3, ("unsure", "unsure"): 1}
    names = ("Band", "Monocyte")
    assert cohen_kappa(*paired(with_unsure), names) == cohen_kappa(*paired(TEXTBOOK), names)


def test_where_chance_explains_everything_there_is_no_kappa() -> None:
    assert cohen_kappa([], [], CLASSES) is None
    assert cohen_kappa(["Monocyte"] * 9, ["Monocyte"] * 9, CLASSES) is None
    assert cohen_kappa(["unsure"], ["Monocyte"], CLASSES) is None


def test_readers_who_never_differed_are_not_known_to_be_the_same() -> None:
    few = cohen_kappa(["Monocyte", "Band"] * 10, ["Monocyte", "Band"] * 10, CLASSES)
    many = cohen_kappa(["Monocyte", "Lymphocyte"] * 500, ["Monocyte", "Lymphocyte"] * 500, CLASSES)
    assert few is None  # a band is no kind here, so that monocytes are all there is
    assert many
    assert (many.value, many.n) == (1.0, 1000)
    assert 0.99 < many.low < many.high < 1
    twenty = cohen_kappa(["Monocyte", "Lymphocyte"] * 10, ["Monocyte", "Lymphocyte"] * 10, CLASSES)
    assert twenty
    assert 0.6 < twenty.low < 0.9


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=60))
def test_limits_stand_around_the_middle_and_readers_may_change_places(pairs: list[tuple[str, str]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    one, other = cohen_kappa(first, second, "abc"), cohen_kappa(second, first, "abc")
    if one is None or other is None:
        assert one == other
        return
    assert one.value == pytest.approx(other.value)
    assert (one.low, one.high) == (other.low, other.high)
    assert -1 <= one.low < one.high < 1


def test_hits_have_exact_limits() -> None:
    assert hits(0, 0) is None
    found = hits(10, 100)
    assert found
    assert (found.right, found.asked) == (10, 100)
    assert (found.low, found.high) == pytest.approx((0.0490, 0.1762), abs=5e-5)


def test_simulated_limits_of_kappa_and_of_confusions_hold_the_truth() -> None:
    """40 simulations of studies/agreement.py, which has 1,000 of each size."""
    simulation = study()
    held: dict[str, list[bool]] = defaultdict(list)
    for seed in range(40):
        for one in simulation.simulated(100, simulation.MAIN, seed):
            held[one.what.split(" ")[0]].append(one.low <= one.truth <= one.high)
    assert {what: len(all_of) for what, all_of in held.items()}["kappa"] > 200
    assert {"kappa", "right", "taken", "unsure"} == set(held)
    assert {what: share for what, all_of in held.items() if not BAND[0] <= (share := np.mean(all_of)) <= BAND[1]} == {}


def test_a_confusion_is_found_where_most_truths_are_not_known() -> None:
    """Reader B takes a third of the monocytes for lymphocytes; A errs nowhere. Nobody says who of them is right but an expert."""
    rng = np.random.default_rng(0)
    readings, adjudicated = [], {}
    for cell in range(900):
        truth = str(rng.choice(["Monocyte", "Lymphocyte", "Neutrophil"]))
        by_b = "Lymphocyte" if truth == "Monocyte" and rng.random() < 1 / 3 else truth
        readings += [Reading(str(cell), "A", truth), Reading(str(cell), "B", by_b)]
        if by_b != truth:
            adjudicated[str(cell)] = truth
    found = dawid_skene(readings, adjudicated, CLASSES, "unsure")
    assert found == dawid_skene(readings, adjudicated, CLASSES, "unsure")
    rows = {(reader, row.truth): row for reader, confusion in found.items() for row in confusion.rows}
    monocytes = rows["B", "Monocyte"]
    at = found["B"].answers.index
    assert found["B"].answers == ("Lymphocyte", "Monocyte", "Neutrophil")
    assert monocytes.rates[at("Lymphocyte")] == pytest.approx(1 / 3, abs=0.06)
    assert monocytes.low[at("Lymphocyte")] < 1 / 3 < monocytes.high[at("Lymphocyte")]
    assert monocytes.cells == pytest.approx(300, abs=40)
    assert rows["A", "Monocyte"].rates[at("Monocyte")] > 0.97
    assert rows["A", "Monocyte"].low[at("Neutrophil")] == 0
    assert sum(monocytes.rates) == pytest.approx(1)


def test_a_second_reading_that_an_unsure_caused_makes_nobody_look_unsure() -> None:
    """All of what A calls unsure, and only a tenth of the rest, is read by B: A is unsure in 10 %, not in half of the cells."""
    readings, adjudicated = [], {}
    for cell in range(3000):
        kind, unsure = ("Monocyte", "Lymphocyte")[cell % 2], cell % 10 < 1
        readings.append(Reading(str(cell), "A", "unsure" if unsure else kind))
        if unsure or cell % 100 < 20:
            readings.append(Reading(str(cell), "B", kind))
        if unsure:
            adjudicated[str(cell)] = kind
    [lymphocytes, monocytes] = dawid_skene(readings, adjudicated, CLASSES, "unsure")["A"].rows
    assert (lymphocytes.rates[-1], monocytes.rates[-1]) == pytest.approx((0.0, 0.2), abs=0.02)


@pytest.mark.slow
def test_a_third_person_who_is_sometimes_wrong_costs_no_reader() -> None:
    """Whoever decides errs in 5 % of the cells. Taken as the truth that would leave the limits of the readers' rates at 86 %."""
    simulation = study()
    held = []
    for seed in range(40):
        for one in simulation.simulated(500, simulation.Scenario("third errs 5 %", third=0.05), seed):
            if one.what.startswith("right") and not one.what.endswith(simulation.FEW):
                held.append(one.low <= one.truth <= one.high)
    assert 0.92 <= np.mean(held) <= 0.99


def test_known_cells_tell_of_a_reader_who_works_alone() -> None:
    readings = [Reading(f"known {cell}", "A", "Monocyte" if cell % 4 else "Lymphocyte", "Monocyte") for cell in range(400)]
    readings += [Reading(str(cell), "A", "Lymphocyte") for cell in range(50)]
    assert compared(readings, {}) == {"A": 400}
    row = next(row for row in dawid_skene(readings, {}, CLASSES, "unsure")["A"].rows if row.truth == "Monocyte")
    assert row.rates == pytest.approx((0.25, 0.75), abs=0.03)


def test_nothing_is_said_of_nothing() -> None:
    assert dawid_skene([], {}, CLASSES, "unsure") == {}
    assert dawid_skene([Reading("1", "A", "unsure"), Reading("1", "B", "unsure")], {}, CLASSES, "unsure") == {}
    assert dawid_skene([Reading("1", "A", "Monocyte")], {}, CLASSES, "unsure") == {}


def test_only_what_rests_on_enough_answers_is_shown() -> None:
    few, many = (
        Row(name, cells, (1.0,), (0.9,), (1.0,)) for name, cells in (("Basophil", MIN_OF_KIND - 1.0), ("Monocyte", 300.0))
    )
    assert reportable(ReaderConfusion(("Monocyte",), (few, many), MIN_COMPARED - 1)) is None
    shown = reportable(ReaderConfusion(("Monocyte",), (few, many), MIN_COMPARED))
    assert shown
    assert shown.rows == (many,)
