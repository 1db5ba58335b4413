"""What a study says: its report in Markdown, with the statistics and the pictures beside it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from wbc_model.core.classes import CLASSES
from wbc_model.core.files import write_atomic
from wbc_model.studies.plots import TITLES, plot_curves, plot_ranking, plot_recalls
from wbc_model.studies.statistics import (
    ALPHA,
    Floats,
    areas,
    comparisons,
    curves,
    deviation,
    labels_text,
    needed,
    own_shares,
    penalty_matrix,
    smallest_p,
)
from wbc_model.studies.study import HOME, Study, StudyFile, shown

RANKING: Final = "ranking.png"


def write_report(study: Study, results: pd.DataFrame, out: Path, history: pd.DataFrame | None = None) -> list[str]:
    """Write `report.md` and its pictures into `out`; returns the names of the files. `history` has a row per validation step of
    each training."""
    tests = list(dict.fromkeys(results["test"]))
    parts = [_head(study, results)]
    names = ["report.md"]
    for test in tests:
        pictures = [f"curves-{test}.png", f"recall-{test}.png"]
        plot_curves(study, results, test, out / pictures[0])
        plot_recalls(study, results, test, out / pictures[1])
        parts.append(_section(study, results, test, pictures))
        names += pictures
    if history is not None and not history.get("ranking_accuracy", pd.Series(dtype=float)).isna().all():
        plot_ranking(study, history, out / RANKING)
        parts.append(
            "## LossNet while it trains\n\nRanking accuracy on the validation pool over the updates, mean over seeds. Chance has "
            "50 %.\n\n"
            f"![ranking accuracy]({RANKING})"
        )
        names.append(RANKING)
    parts.append(_cost(results))
    write_atomic(out / "report.md", "\n\n".join(parts) + "\n")
    return names


def _head(study: Study, results: pd.DataFrame) -> str:
    file = study.file
    _, labels, seeds, budgets = curves(results, HOME, file.metric)
    shares = budgets[-1] <= 1
    points = ", ".join(
        f"{labels_text(labels[:, at])} ({budget:.0%})" if shares else f"{budget:.0f}" for at, budget in enumerate(budgets)
    )
    rendered = ["> **Rendered cells.** Its figures say nothing about real blood.", ""] if file.data == "rendered" else []
    arms = [
        f"| {arm.name}{' (reference)' if arm.name == file.reference else ''} | `{shown(arm.overrides)}` |" for arm in study.arms
    ]
    lines = [
        f"# {file.name}",
        "",
        *([file.description.strip(), ""] if file.description else []),
        *rendered,
        f"`wbc benchmark studies/{study.path.name}`, {_seeds_text(len(seeds))} ({', '.join(map(str, seeds))}), preset "
        f"{file.preset}, data `{file.data}` (version {_listed(results, 'data_version')}). Labels: {points}.",
        f"Trained on {_listed(results, 'device')}; torch {_listed(results, 'torch')}; commit {_listed(results, 'commit')}; "
        f"code {_listed(results, 'code')}. Every row is in `results.csv` and `results.parquet`.",
        "",
        "All arms of a seed have the same splits. Unless an arm says otherwise, they have the same first labels too, chosen by "
        f"`{file.initial}`. "
        f"Base parameters: `{shown(file.base)}`.",
        "",
        "| arm | parameters |",
        "|---|---|",
        *arms,
        *(["", _tests_text(file, len(seeds))] if len(study.arms) > 1 else []),
    ]
    return "\n".join(lines)


def _seeds_text(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"{seeds} paired seeds"


def _tests_text(file: StudyFile, seeds: int) -> str:
    if seeds == 1:
        return "There is one seed. So differences have no spread, and nothing is tested."
    asked = "differs from" if file.alternative == "two-sided" else "is better than"
    return (
        f"The tests ask whether an arm {asked} `{file.reference}`, by Wilcoxon's signed-rank test over the paired seeds "
        f"({file.alternative}). p is adjusted by Holm within a table. With {seeds} seeds the smallest possible p is "
        f"{smallest_p(seeds, file.alternative):.3g}, before adjustment. d_z is the mean of the paired differences over their "
        "standard deviation. Intervals are 95 % percentile bootstrap over seeds, and too narrow for fewer than about 10 seeds."
    )


def _section(study: Study, results: pd.DataFrame, test: str, pictures: Sequence[str]) -> str:
    file = study.file
    values, labels, seeds, _ = curves(results, test, file.metric)
    spread = ", mean ± standard deviation over seeds" if len(seeds) > 1 else ""
    cells = int(results.loc[results["test"] == test, "n"].iloc[0])
    title = TITLES[file.metric]
    columns = [labels_text(labels[:, at]) for at in range(labels.shape[1])]
    by_area = areas(values, labels, file.log_budget)
    over = "log(labels)" if file.log_budget else "labels"
    curve_rows = [
        [arm, *(_spread(each[:, at]) for at in range(each.shape[1])), _spread(by_area[arm])] for arm, each in values.items()
    ]
    parts = [
        f"## {'The test split' if test == HOME else f'Another site: {test}'} ({cells} cells)",
        f"![learning curves]({pictures[0]})",
        f"{title} in per cent{spread}. The area is that under the curve over {over}, divided by the range.",
        _table(["arm", *(f"{name} labels" for name in columns), "area"], curve_rows),
        _needed_table(study, results, test, title),
        *_comparison_tables(study, results, test),
        *_penalty_table(values),
        "Recall of each class in per cent, mean over seeds.",
        f"![recall of each class]({pictures[1]})",
        _recall_table(results, test, columns),
    ]
    return "\n\n".join(parts)


def _needed_table(study: Study, results: pd.DataFrame, test: str, title: str) -> str:
    rows = needed(study, results, test)
    reference = {row["target"]: row["labels"] for row in rows if row["arm"] == study.file.reference}
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        compared = reference if arm != study.file.reference else {}
        lines.append([arm, *(_needed_text(row, compared.get(row["target"])) for row in mine)])
    head = (
        f"Labels needed for a {title}: where the mean curve first gets there, and the share of the reference's labels. In "
        "brackets are the seeds that get there."
    )
    return head + "\n\n" + _table(["arm", *(f"{target:.0%}" for target in study.file.targets)], lines)


def _needed_text(row: Mapping[str, Any], reference: float | None) -> str:
    seeds = f"{row['reached']}/{row['seeds']} seeds"
    if row["labels"] is None:
        return f"not reached ({seeds})"
    ratio = f", {row['labels'] / reference:.0%}" if reference else ""
    return f"{'≤ ' if row['at_first'] else ''}{row['labels']:.0f}{ratio} ({seeds})"


def _comparison_tables(study: Study, results: pd.DataFrame, test: str) -> list[str]:
    if len(study.arms) < 2:
        return []
    by_area, by_budget = comparisons(study, results, test)
    _, _, seeds, _ = curves(results, test, study.file.metric)
    tested = len(seeds) > 1
    numbers = ["difference [95 % interval]", "d_z", "p", "p (Holm)"] if tested else ["difference"]
    columns = ["arm", "labels", *numbers]
    texts = []
    for frame, what in ((by_area, "by area"), (by_budget, "at each budget")):
        rows = [_comparison_row(row, tested) for row in frame.to_dict("records")]
        texts.append(f"Against `{study.file.reference}`, {what}, in percentage points.\n\n" + _table(columns, rows))
    if study.file.parts:
        rows = [_comparison_row(row, tested) for row in own_shares(study, results, test).to_dict("records")]
        texts.append("Each part's own share, by area, in percentage points.\n\n" + _table(["part", "arms", *numbers], rows))
    return texts


def _comparison_row(row: Mapping[Any, Any], tested: bool) -> list[str]:
    difference = f"{100 * row['difference']:+.2f}"
    if not tested:
        return [row["arm"], row["what"], difference]
    interval = "[none]" if np.isnan(row["low"]) else f"[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"
    return [row["arm"], row["what"], f"{difference} {interval}", _number(row["d_z"]), f"{row['p']:.3g}", f"{row['p_holm']:.3g}"]


def _penalty_table(values: Mapping[str, Floats]) -> list[str]:
    if len(values) < 2 or len(next(iter(values.values()))) < 2:
        return []  # one arm has nothing to be compared with, one seed has no spread to test by
    matrix = penalty_matrix([1 - each for each in values.values()])
    arms = list(values)
    rows = [[arm, *("–" if i == j else f"{matrix[i, j]:.2f}" for j in range(len(arms)))] for i, arm in enumerate(arms)]
    rows.append(["**mean of the column**", *(f"**{matrix[:, j].sum() / (len(arms) - 1):.2f}**" for j in range(len(arms)))])
    head = (
        "Pairwise penalty matrix (Ash et al. 2020). An entry is the share of the budgets at which the row's arm beats the "
        f"column's, by a paired two-sided t-test at {ALPHA}. The lower a column's mean, the less often its arm was beaten."
    )
    return [head + "\n\n" + _table(["", *arms], rows)]


def _recall_table(results: pd.DataFrame, test: str, columns: Sequence[str]) -> str:
    here = results[results["test"] == test]
    rows = []
    for arm in dict.fromkeys(here["arm"]):
        means = here[here["arm"] == arm].groupby("budget")[[f"recall_{name}" for name in CLASSES]].mean()
        for text, (_, each) in zip(columns, means.iterrows(), strict=True):
            rows.append([arm, text, *("–" if pd.isna(value) else f"{100 * value:.1f}" for value in each)])
    return _table(["arm", "labels", *CLASSES], rows)


def _cost(results: pd.DataFrame) -> str:
    here = results[results["test"] == HOME]
    rows = []
    for arm in dict.fromkeys(here["arm"]):
        mine = here[here["arm"] == arm]
        query = mine["query_seconds"].astype(float).mean()
        ranking = mine["ranking_accuracy"].astype(float)
        rows.append(
            [
                arm,
                f"{mine['train_seconds'].mean():.1f}",
                f"{mine['updates'].mean():.0f}",
                "–" if np.isnan(query) else f"{query:.1f}",
                "–" if ranking.isna().all() else f"{ranking.mean():.3f}",
            ]
        )
    head = (
        "## Cost\n\nSeconds per training and per query, updates until training stopped, and LossNet's ranking accuracy on the "
        "test split (chance has 0.5). All are means over seeds and budgets. Arms that share a training show the same one."
    )
    return head + "\n\n" + _table(["arm", "training, s", "updates", "query, s", "ranking accuracy"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _spread(values: Floats) -> str:
    sd = deviation(values)
    return f"{100 * values.mean():.2f}" + ("" if sd is None else f" ± {100 * sd:.2f}")


def _number(value: float) -> str:
    return "–" if np.isnan(value) else "∞" if np.isinf(value) else f"{value:.2f}"


def _listed(results: pd.DataFrame, column: str) -> str:
    """The different values of a column, shortened where they are hashes."""
    texts = [re.sub(r"\b([0-9a-f]{12})[0-9a-f]{4,}", r"\1", str(value)) for value in results[column].unique()]
    return ", ".join(texts) or "unknown"
