"""Drift: what chance makes is no alarm, what does not matter is none, and what does comes on its day."""

import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from flows.monitoring.drift import LEAST, PLAIN, USUAL, Day, Usual, judge
from flows.monitoring.measures import ALPHA, FLOOR, NAMES, Cells, compare
from wbc_model.core.reference import MEASURES, WIDTH

SHARES = (0.02, 0.05, 0.3, 0.08, 0.55)
CLASS_MEANS = np.random.default_rng(9).normal(0, 3, (5, WIDTH))


def cells(count: int, seed: int, shift: float = 0.0, shares: tuple[float, ...] = SHARES, smear: float = 0.0) -> Cells:
    """Cells in requests of 100. A class has a place of its own; `smear` is how far requests are apart, in spreads of cells."""
    chance = np.random.default_rng(seed)
    classes = chance.choice(5, count, p=shares)
    request = np.arange(count) // 100
    rows = (
        CLASS_MEANS[classes] + chance.normal(size=(count, WIDTH)) + smear * chance.normal(size=(count // 100 + 1, WIDTH))[request]
    )
    rows[:, MEASURES["stain"]] += shift
    rows[:, 0] = classes
    return Cells(rows.astype(np.float32), request)


def alarms(days: list[Day], training: Cells | None = None) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in judge(days, Usual(), training)[0]:
        if one.state in ("alarm", "differs"):
            found.setdefault(one.day, set()).add(one.measure)
    return found


def test_what_shifts_is_found_and_named() -> None:
    usual = cells(1000, 1)
    found = {name: compare(name, cells(500, 2, shift=1.0), usual) for name in NAMES}
    assert {name for name, one in found.items() if one is not None and one.drifts} == {"stain"}
    one = found["stain"]
    assert one is not None
    assert one.effect == pytest.approx(0.38, abs=0.08), "of two normal densities one spread apart"


def test_other_patients_are_no_drift_of_how_cells_look() -> None:
    usual, ward = cells(1000, 1), cells(500, 2, shares=(0.02, 0.02, 0.76, 0.05, 0.15))
    found = {name: compare(name, ward, usual) for name in NAMES}
    assert {name for name, one in found.items() if one is not None and one.drifts} == {"class"}


def test_a_harmless_difference_is_no_alarm_however_many_cells_show_it() -> None:
    one = compare("stain", cells(40_000, 1, shift=0.25), cells(40_000, 2))
    assert one is not None
    assert one.p < ALPHA / 1000
    assert one.effect < FLOOR
    assert not one.drifts


def test_a_few_cells_are_not_enough_for_chance_to_be_ruled_out() -> None:
    one = compare("stain", cells(20, 1, shift=0.6), cells(1000, 2))
    assert one is not None
    assert one.effect > FLOOR
    assert not one.drifts


def test_cells_of_one_smear_count_as_fewer() -> None:
    apart, alike = (compare("stain", cells(500, 1, smear=smear), cells(1000, 2, smear=smear)) for smear in (0.0, 1.0))
    assert apart is not None
    assert alike is not None
    assert apart.effective > 250
    assert alike.effective < 25, "five smears are hardly more than five cells, if their cells are alike"


def test_of_independent_cells_of_one_class_scipy_says_the_same() -> None:
    chance = np.random.default_rng(0)
    now, usual = chance.normal(0.2, 1, (200, WIDTH)).astype(np.float32), chance.normal(0, 1, (300, WIDTH)).astype(np.float32)
    now[:, 0] = usual[:, 0] = 4
    for name in NAMES[1:]:
        tests = [ks_2samp(now[:, n], usual[:, n], method="asymp") for n in range(WIDTH)[MEASURES[name]]]
        largest = max(tests, key=lambda one: one.statistic)
        one = compare(name, Cells.independent(now), Cells.independent(usual))
        assert one is not None
        assert (one.effect, one.effective) == (pytest.approx(largest.statistic), pytest.approx(200))
        assert one.p == pytest.approx(min(1, largest.pvalue * len(tests)), rel=0.3), "scipy does not take the limit of many cells"
    now[:80, 0], usual[:90, 0] = 2, 2
    one = compare("class", Cells.independent(now), Cells.independent(usual))
    assert one == pytest.approx((0.4 - 0.3, chi2_contingency([[80, 120], [90, 210]], correction=False).pvalue, 200))


def test_what_cells_of_some_requests_are_worth_by_hand() -> None:
    """Ranks 1 and 2 to 4: mean squares of 3 between and 1 within, 1.5 cells a request, so they are (3 - 1) / (3 + 0.5) alike.
    Kish: 4 cells in requests of 1 and 3 count as 4 / (1 + (10 / 4 - 1) 4 / 7). Requests of one class each count as cells."""
    now, usual = np.zeros((4, WIDTH), np.float32), np.zeros((20, WIDTH), np.float32)
    now[:, MEASURES["stain"]] = [[1], [2], [3], [4]]
    usual[:, MEASURES["stain"]] = np.linspace(0, 5, 20)[:, None]
    one = compare("stain", Cells(now, np.array([0, 1, 1, 1])), Cells.independent(usual))
    assert one is not None
    assert one.effective == pytest.approx(28 / 13)
    alone = compare("stain", Cells(now, np.zeros(4, np.int64)), Cells.independent(usual))
    assert alone is not None
    assert alone.effective == pytest.approx(4), "of one request nobody knows how alike its cells are"
    flat = compare("sharpness", Cells.independent(now), Cells.independent(usual))
    assert flat is not None, "numbers without any spread are compared all the same"
    assert flat.effect == 0
    now[2:, 0] = usual[10:, 0] = 1
    assert compare("class", Cells(now, np.array([0, 0, 1, 1])), Cells.independent(usual)) == pytest.approx((0, 1, 2))


def test_where_one_has_no_cells_nothing_is_said() -> None:
    for one, other in ((cells(150, 1), Cells.none()), (Cells.none(), cells(150, 1))):
        assert {compare(name, one, other) for name in NAMES} == {None}


def test_the_requests_of_one_day_are_not_those_of_another() -> None:
    day = cells(150, 1)
    both = Cells.none().plus(day).plus(day)
    assert np.unique(both.request, return_counts=True)[1].tolist() == [100, 50, 100, 50]


def test_smears_that_differ_are_no_drift() -> None:
    """Five smears a day, each stained a little otherwise: taken as 500 cells, they would be an alarm most days."""
    for seed in range(2):
        days = [Day(f"2026-11-{day:02}", cells(500, 100 * seed + day, smear=0.7)) for day in range(1, 8)]
        assert alarms(days, cells(462, 7777)) == {}, seed


def test_without_drift_there_is_no_alarm() -> None:
    """Two weeks of a site, 70 tests; studies/watching.py has many more."""
    training = Cells.independent(cells(462, 8888).rows)
    for seed in range(2):
        assert alarms([Day(f"2026-11-{day:02}", cells(500, 1000 * seed + day)) for day in range(1, 8)], training) == {}, seed


def test_a_change_is_an_alarm_from_its_day_on() -> None:
    days = [Day(f"2026-11-{day:02}", cells(500, day, shift=1.0 if day >= 4 else 0.0)) for day in range(1, 8)]
    assert alarms(days, cells(462, 99)) == {f"2026-11-{day:02}": {"stain"} for day in range(4, 8)}


def test_a_site_that_differs_from_training_is_told_once_and_then_compared_with_itself() -> None:
    days = [Day(f"2026-11-{day:02}", cells(500, day, shift=3.0 if day >= 5 else 1.5)) for day in range(1, 7)]
    assert alarms(days, cells(462, 99)) == {"2026-11-01": {"stain"}, "2026-11-05": {"stain"}, "2026-11-06": {"stain"}}
    verdicts = judge(days, Usual(), cells(462, 99))[0]
    assert [one.against for one in verdicts if one.measure == "stain"] == ["training", *["site"] * 5]
    assert all(one.training is not None and one.training > 0.4 for one in verdicts if one.measure == "stain")


def test_a_day_judged_alone_or_with_others_is_judged_alike() -> None:
    days = [Day(f"2026-11-{day:02}", cells(700, day, shift=1.0 if day == 3 else 0.0)) for day in range(1, 7)]
    together, usual = judge(days, Usual(), None)
    one_by_one, state = [], Usual()
    for day in days:
        found, state = judge([day], state, None)
        one_by_one += found
    assert one_by_one == together
    assert (state.through, len(state.cells)) == (usual.through, len(usual.cells))
    assert len(usual.cells) == 2100, "of days without an alarm, until there are enough"
    assert USUAL <= 2100


def test_small_days_wait_for_the_next() -> None:
    days = [Day(f"2026-11-{day:02}", cells(40, day)) for day in range(1, 5)]
    found = [(one.day[-2:], one.state, one.cells) for one in judge(days, Usual(), None)[0] if one.measure == "stain"]
    assert found == [("01", "few", 40), ("02", "few", 80), ("03", "unknown", 120), ("04", "few", 40)]
    assert LEAST == 100


def test_a_day_of_just_enough_cells_is_judged_and_a_usual_state_of_enough_is_left() -> None:
    verdicts, usual = judge([Day("2026-11-01", cells(LEAST, 1))], Usual(), None)
    assert {one.state for one in verdicts} == {"unknown"}
    assert (usual.since, usual.through, len(usual.cells)) == ("2026-11-01", "2026-11-01", LEAST)
    usual = judge([Day("2026-11-02", cells(500, 2))], Usual("2026-11-01", "2026-11-01", cells(USUAL, 3)), None)[1]
    assert (usual.since, usual.through, len(usual.cells)) == ("2026-11-01", "2026-11-02", USUAL)


def test_a_day_that_is_no_alarm_but_no_chance_either_does_not_become_usual() -> None:
    """Else a slow change would take the usual state along with it."""
    before = Usual("2026-11-01", "2026-11-01", cells(1500, 1))
    verdicts, usual = judge([Day("2026-11-02", cells(1500, 2, shift=0.25))], before, None)
    assert {one.state for one in verdicts} == {"usual"}
    assert min(one.compared.p for one in verdicts if one.compared) < PLAIN
    assert usual == Usual("2026-11-01", "2026-11-02", before.cells)


def test_a_model_without_an_embedding_is_watched_by_the_rest() -> None:
    def older(some: Cells) -> Cells:
        rows = some.rows.copy()
        rows[:, MEASURES["embedding"]] = np.nan
        return Cells(rows, some.request)

    days = [Day(f"2026-11-{day:02}", older(cells(500, day, shift=float(day == 2)))) for day in (1, 2)]
    states = {(one.day[-2:], one.measure): one.state for one in judge(days, Usual(), None)[0]}
    assert states["02", "embedding"] == "unknown"
    assert states["02", "stain"] == "alarm"
    assert states["02", "sharpness"] == "usual"


def test_cells_without_a_nucleus_do_not_break_a_comparison() -> None:
    some = cells(500, 1)
    rows = some.rows.copy()
    rows[:30, MEASURES["doubt"].start], rows[:30, MEASURES["doubt"].start + 1] = np.inf, -np.inf
    one = compare("doubt", Cells(rows, some.request), cells(500, 2))
    assert one is not None
    assert not one.drifts
