"""The statistics of a study, against values worked out by hand and against SciPy."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.model.test_study_file import study
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.studies.report import write_report
from wbc_model.studies.statistics import (
    area,
    areas,
    beats,
    bootstrap_interval,
    comparisons,
    curves,
    effect_size,
    holm,
    labels_needed,
    needed,
    own_shares,
    penalty_matrix,
    smallest_p,
    summary,
    wilcoxon_p,
)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


# --- by hand --------------------------------------------------------------------------------------------------------------


def test_area_by_hand() -> None:
    # trapezoids: (0.6 + 0.8) / 2 * 10 + (0.8 + 1.0) / 2 * 30 = 7 + 27 = 34, over a range of 40
    assert area(floats(10, 20, 50), floats(0.6, 0.8, 1.0), log=False) == pytest.approx(34 / 40)
    # over the logarithm 10, 100, 1000 are equally far apart: (0.7 + 0.9) / 2
    assert area(floats(10, 100, 1000), floats(0.6, 0.8, 1.0), log=True) == pytest.approx(0.8)
    assert area(floats(10), floats(0.6), log=True) == 0.6
    assert area(floats(5, 80), floats(0.7, 0.7), log=True) == pytest.approx(0.7)


def test_labels_needed_by_hand() -> None:
    labels, values = floats(100, 200, 400), floats(0.90, 0.94, 0.98)
    assert labels_needed(labels, values, 0.92, log=False) == pytest.approx(150)
    assert labels_needed(labels, values, 0.95, log=False) == pytest.approx(250)  # a quarter of the way from 200 to 400
    assert labels_needed(labels, values, 0.96, log=True) == pytest.approx(math.sqrt(200 * 400))
    assert labels_needed(labels, values, 0.98, log=False) == pytest.approx(400)
    assert labels_needed(labels, values, 0.90, log=True) == pytest.approx(100)
    assert labels_needed(labels, values, 0.50, log=False) == 100  # begins above
    assert labels_needed(labels, values, 0.99, log=False) is None
    assert labels_needed(labels, floats(0.90, 0.96, 0.94), 0.95, log=False) == pytest.approx(100 + 100 * 5 / 6)  # the first time


def test_holm_by_hand() -> None:
    # sorted 0.01 x4, 0.02 x3, 0.03 x2, 0.04 x1; the last must not be below the one before it
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.001, 0.4, 0.5]) == pytest.approx([0.003, 0.8, 0.8])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_never_lowers_a_p(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, a in zip(p_values, adjusted, strict=True):
        assert min(1.0, p) <= a <= 1
    assert min(adjusted) == pytest.approx(min(1.0, len(p_values) * min(p_values)))  # the first step is Bonferroni's
    order = np.argsort(p_values, kind="stable")
    assert all(adjusted[a] <= adjusted[b] for a, b in itertools.pairwise(order))


def test_penalties_by_hand() -> None:
    # three seeds, two budgets. At the first budget a's errors are lower than b's by 0.10, 0.11, 0.12: t = 0.11 / (0.01 / sqrt 3)
    # = 19 > 4.30. At the second the differences are 0.1, -0.1, 0.0: t = 0. c is b, a little better, always by the same.
    b = np.array([[0.30, 0.20], [0.31, 0.20], [0.32, 0.20]])
    a = np.array([[0.20, 0.10], [0.20, 0.30], [0.20, 0.20]])
    c = b - 0.01
    expected = [[0, 0.5, 0.5], [0, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(penalty_matrix([a, b, c]), expected)


def test_beating_needs_two_sided_significance() -> None:
    ours = floats(0.20, 0.20, 0.20, 0.20, 0.20)
    # mean 0.1; t_0.975 with 4 degrees of freedom is 2.776: sd 0.08 gives t = 2.795, sd 0.081 gives t = 2.76
    shape = floats(-1, -0.5, 0, 0.5, 1)
    for sd, expected in ((0.080, True), (0.081, False)):
        theirs = ours + 0.1 + shape / shape.std(ddof=1) * sd
        assert beats(ours, theirs) is expected
        assert beats(theirs, ours) is False
        assert (stats.ttest_rel(theirs, ours).pvalue < 0.05) is np.bool_(expected)
    assert beats(ours, ours) is False
    assert beats(ours[:1], ours[:1] + 1) is False  # one seed shows nothing


def test_effect_size_by_hand() -> None:
    assert effect_size(floats(1, 2, 3)) == pytest.approx(2.0)
    assert effect_size(floats(0, 0)) == 0
    assert effect_size(floats(0.1, 0.1, 0.1)) == math.inf
    assert effect_size(-floats(0.1, 0.1, 0.1)) == -math.inf
    assert math.isnan(effect_size(floats(1)))


# --- against SciPy --------------------------------------------------------------------------------------------------------


def test_wilcoxon_is_exact() -> None:
    five = floats(0.01, 0.02, 0.03, 0.04, 0.05)
    assert wilcoxon_p(five) == pytest.approx(2 / 32) == smallest_p(5, "two-sided")
    assert wilcoxon_p(five, "greater") == pytest.approx(1 / 32) == smallest_p(5, "greater")
    assert wilcoxon_p(-five, "greater") == pytest.approx(1)
    assert wilcoxon_p(floats(0, 0, 0)) == 1
    mixed = np.random.default_rng(0).normal(0.3, 1, 10)
    assert wilcoxon_p(mixed) == pytest.approx(stats.wilcoxon(mixed, method="exact").pvalue)
    # ties: of the 8 assignments of signs to 1, 1, 1 two are as extreme; a pair without a difference says nothing
    assert wilcoxon_p(floats(1, 1, 1, 0)) == pytest.approx(2 / 8)


def test_the_interval_is_of_the_mean_and_repeats() -> None:
    sample = np.random.default_rng(1).normal(0.5, 1, 200)
    low, high = bootstrap_interval(sample)
    assert low < sample.mean() < high
    reference = stats.bootstrap((sample,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.02)
    assert bootstrap_interval(sample) == (low, high)
    assert np.isnan([bootstrap_interval(floats(0.2)), bootstrap_interval(floats(0.2, 0.2, 0.2))]).all()


# --- tables ---------------------------------------------------------------------------------------------------------------


def results(arms: dict[str, float], seeds: int = 5) -> pd.DataFrame:
    """Curves 0.9, 0.94, 0.96 at 10, 20, 40 labels, each arm raised by a constant, with a wobble that arms of a seed share."""
    rows = []
    for arm, gain in arms.items():
        for seed in range(seeds):
            for budget, labels, base in ((0.1, 10, 0.90), (0.2, 20, 0.94), (0.4, 40, 0.96)):
                value = base + gain * (1 + seed / 10) + 0.001 * seed
                row = {"study": "s", "arm": arm, "seed": seed, "budget": budget, "labels": labels, "test": "home", "n": 50}
                row |= {"accuracy": value, "macro_f1": value, "balanced_accuracy": value, "ece": 0.1}
                row |= {f"recall_{name}": value for name in CLASSES}
                row |= {
                    "ranking_accuracy": None,
                    "updates": 5,
                    "train_seconds": 1.0,
                    "query_seconds": None if budget == 0.4 else 0.5,
                }
                row |= {"device": "cpu", "torch": "2", "commit": "c" * 40 + "-dirty", "code": "c0de", "data_version": "d"}
                rows.append(row)
    return pd.DataFrame(rows)


def test_comparisons_are_paired_and_adjusted_by_family(tmp_path: Path) -> None:
    arms = {"plain": {}, "full": {}, "same": {}}
    read = study(tmp_path, arms=arms, budgets=[0.1, 0.2, 0.4], log_budget=False)
    by_area, by_budget = comparisons(read, results({"plain": 0.0, "full": 0.02, "same": 0.0}), "home")
    full, same = by_area.to_dict("records")
    assert full["difference"] == pytest.approx(0.02 * 1.2)
    assert full["p"] == pytest.approx(2 / 32)
    assert full["p_holm"] == pytest.approx(4 / 32)
    assert full["d_z"] == pytest.approx(1.2 / np.std([1, 1.1, 1.2, 1.3, 1.4], ddof=1))
    assert full["low"] > 0.02
    assert (same["difference"], same["p"], same["p_holm"]) == (0, 1, 1)
    assert len(by_budget) == 6
    assert by_budget["p_holm"].iloc[0] == pytest.approx(6 * 2 / 32)
    one_sided = study(tmp_path, arms=arms, budgets=[0.1, 0.2, 0.4], alternative="greater")
    assert comparisons(one_sided, results({"plain": 0.0, "full": 0.02, "same": 0.0}), "home")[0]["p"][0] == pytest.approx(1 / 32)


def test_each_part_is_set_against_the_arm_that_lacks_only_it(tmp_path: Path) -> None:
    arms = {"plain": {}, "half": {}, "full": {}}
    parts = {"first": ["half", "plain"], "second": ["full", "half"]}
    read = study(tmp_path, arms=arms, budgets=[0.1, 0.2, 0.4], log_budget=False, parts=parts)
    table = results({"plain": 0.0, "half": 0.03, "full": 0.02})
    first, second = own_shares(read, table, "home").to_dict("records")
    assert (first["arm"], second["what"]) == ("first", "full − half")
    assert first["difference"] == pytest.approx(0.03 * 1.2)
    assert second["difference"] == pytest.approx(-0.01 * 1.2)
    assert first["p_holm"] == second["p_holm"] == pytest.approx(4 / 32)  # a family of two
    write_report(read, table, tmp_path / "out")
    assert "| second | full − half | -1.20 [" in (tmp_path / "out/report.md").read_text()


def test_labels_needed_are_of_the_mean_curve_with_a_count_of_seeds(tmp_path: Path) -> None:
    read = study(tmp_path, arms={"plain": {}, "full": {}}, budgets=[0.1, 0.2, 0.4], targets=[0.95, 0.98], log_budget=False)
    rows = {(row["arm"], row["target"]): row for row in needed(read, results({"plain": 0.0, "full": 0.02}), "home")}
    assert rows["plain", 0.95]["labels"] == pytest.approx(20 + 20 * (0.95 - 0.942) / 0.02)  # the mean curve: 0.942, 0.962
    assert rows["plain", 0.98]["labels"] is None
    assert rows["plain", 0.98]["reached"] == 0
    assert rows["full", 0.98]["reached"] == 5
    assert rows["full", 0.95]["labels"] == pytest.approx(10 + 10 * (0.95 - 0.926) / 0.04)


def test_only_complete_seeds_are_compared() -> None:
    table = results({"plain": 0.0, "full": 0.02})
    table = table.drop(table[(table["arm"] == "full") & (table["seed"] == 3) & (table["budget"] == 0.4)].index)
    values, labels, seeds, budgets = curves(table, "home", "macro_f1")
    assert seeds == [0, 1, 2, 4]
    assert budgets == [0.1, 0.2, 0.4]
    assert values["plain"].shape == values["full"].shape == labels.shape == (4, 3)
    assert areas(values, labels, log=False)["plain"].shape == (4,)
    with pytest.raises(WbcError, match="no seed has been through"):
        curves(table[table["seed"] == 3], "home", "macro_f1")


def test_the_report_says_what_was_found_and_how(tmp_path: Path) -> None:
    read = study(tmp_path, arms={"plain": {}, "full": {"model.attention": "none"}}, budgets=[0.1, 0.2, 0.4], description="Why.")
    table = results({"plain": 0.0, "full": 0.02})
    other = table.assign(test="away", n=7, accuracy=0.5, macro_f1=0.5, recall_Basophil=np.nan)
    both = pd.concat([table, other], ignore_index=True)
    looks = [(arm, 0, 0.1, 10, at, None if arm == "plain" else 0.6) for arm in ("plain", "full") for at in (2, 4)]
    history = pd.DataFrame(looks, columns=["arm", "seed", "budget", "labels", "update", "ranking_accuracy"])
    names = write_report(read, both, tmp_path / "out", history)
    assert names == ["report.md", "curves-home.png", "recall-home.png", "curves-away.png", "recall-away.png", "ranking.png"]
    assert all((tmp_path / "out" / name).stat().st_size for name in names)
    text = (tmp_path / "out/report.md").read_text()
    for piece in (
        "wbc benchmark studies/s.yaml",
        "5 paired seeds (0, 1, 2, 3, 4)",
        "Rendered cells.",
        "plain (reference)",
        "`model.attention=none`",
        "smallest possible p is 0.0625",
        "cccccccccccc-dirty",
        "not reached (0/5 seeds)",
        "94.20 ± 0.16",
        "Another site: away (7 cells)",
        "| full | 1.00 | – |",  # it beats the reference at every budget
    ):
        assert piece in text, piece
    pictures = [(tmp_path / "out" / name).read_bytes() for name in names]
    write_report(read, both, tmp_path / "out", history)
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == pictures  # the same numbers, the same bytes
    without = history.assign(ranking_accuracy=None)
    assert "ranking.png" not in write_report(read, both, tmp_path / "out", without)
    assert summary(read, both)[1]["area"] == pytest.approx(
        float(areas(*curves(both, "home", "macro_f1")[:2], log=True)["full"].mean())
    )


def test_one_arm_one_budget_one_seed_make_a_report_too(tmp_path: Path) -> None:
    read = study(tmp_path, arms={"plain": {}}, budgets=[0.1])
    table = results({"plain": 0.0}, seeds=1)
    write_report(read, table[table["budget"] == 0.1], tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "| plain | 90.00 | 90.00 |" in text  # the one value, and the area, which is the same
    assert "one seed (0), preset" in text
    assert "Wilcoxon" not in text
    assert "Against" not in text


def test_one_seed_gives_differences_and_tests_nothing(tmp_path: Path) -> None:
    read = study(tmp_path)
    write_report(read, results({"plain": 0.0, "full": 0.01}, seeds=1), tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "nothing is tested" in text
    assert "| arm | labels | difference |" in text
    assert "| full | area | +1.00 |" in text
    assert not any(word in text for word in ("Wilcoxon", "Holm", "penalty", "nan"))
