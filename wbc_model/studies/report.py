"""What a study says: statistics over paired seeds, a report in Markdown, pictures.

A seed is a pair: both arms had its splits and its first labels. All tests are over these pairs, and nothing here looks at
more than the rows of `results.parquet`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.files import write_atomic
from wbc_model.studies.study import HOME, Study, StudyFile, shown

Floats = NDArray[np.float64]
ALPHA: Final = 0.05  # of the paired t-tests of the penalty matrix
RESAMPLES: Final = 10_000
EXACT_WITH_TIES: Final = 14  # pairs up to which every assignment of signs is tried
TITLES: Final = {
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "validation_macro_f1": "macro-F1 on the validation pool",
}
COLOURS: Final = ("#1f5fa8", "#c2571a", "#3a8f5c", "#8a4fa0", "#b08b00", "#0f8b9d", "#b03060", "#6b7a1f", "#5c4b3a", "#4a5fd0")
RANKING: Final = "ranking.png"
MARKERS: Final = "osD^vPX*<>"


# --- statistics -----------------------------------------------------------------------------------------------------------


def area(labels: Floats, values: Floats, log: bool) -> float:
    """Area under a curve over its budgets by trapezoids, divided by their range, so that it is a mean value of the metric;
    over log(labels) where `log`. One budget's area is its value."""
    x = np.log(labels) if log else np.asarray(labels, dtype=np.float64)
    if len(x) == 1:
        return float(values[0])
    return float(np.trapezoid(values, x) / (x[-1] - x[0]))


def labels_needed(labels: Floats, values: Floats, target: float, log: bool) -> float | None:
    """Labels at which a curve first reaches `target`: linear between its budgets (over log(labels) where `log`), the first
    budget where it begins above, None where it is not reached."""
    x = np.log(labels) if log else np.asarray(labels, dtype=np.float64)
    reached = np.flatnonzero(np.asarray(values) >= target)
    if not len(reached):
        return None
    at = int(reached[0])
    if at == 0:
        return float(labels[0])
    share = (target - values[at - 1]) / (values[at] - values[at - 1])
    crossing = float(x[at - 1] + share * (x[at] - x[at - 1]))
    return float(np.exp(crossing)) if log else crossing


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down method (Scandinavian Journal of Statistics 1979), in the order given."""
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def wilcoxon_p(differences: Floats, alternative: str = "two-sided") -> float:
    """p of Wilcoxon's signed-rank test, exact for few pairs; pairs without a difference are left out, 1 where none is left."""
    kept = np.round(differences[np.isfinite(differences)], 12)
    kept = kept[kept != 0]
    if not len(kept):
        return 1.0
    tied = len(np.unique(np.abs(kept))) < len(kept)
    method: Any = stats.PermutationMethod(n_resamples=2**EXACT_WITH_TIES) if tied and len(kept) <= EXACT_WITH_TIES else "auto"
    return float(stats.wilcoxon(kept, alternative=alternative, method=method).pvalue)


def smallest_p(pairs: int, alternative: str) -> float:
    """The smallest p that Wilcoxon's test can give with so many pairs."""
    return float((2 if alternative == "two-sided" else 1) / 2**pairs)


def effect_size(differences: Floats) -> float:
    """Cohen's d_z: mean over standard deviation of the paired differences; NaN for fewer than two, infinite without spread."""
    if len(differences) < 2:
        return float("nan")
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if spread < 1e-12:
        return 0.0 if abs(mean) < 1e-12 else float(np.copysign(np.inf, mean))
    return mean / spread


def bootstrap_interval(differences: Floats, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean difference under resampling of the pairs; NaN for one pair or pairs without spread, of
    which resampling tells nothing."""
    if np.ptp(differences) < 1e-12:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def beats(errors: Floats, others: Floats) -> bool:
    """Whether paired errors (seeds,) are lower than others' by a two-sided paired t-test at ALPHA."""
    difference = others - errors
    if len(difference) < 2 or difference.mean() <= 0:
        return False
    spread = float(difference.std(ddof=1))
    if spread < 1e-12:
        return True
    t = float(difference.mean()) * np.sqrt(len(difference)) / spread
    return bool(t > stats.t.ppf(1 - ALPHA / 2, len(difference) - 1))


def penalty_matrix(errors: Sequence[Floats]) -> Floats:
    """The pairwise penalty matrix of Ash et al. (BADGE, ICLR 2020), for one data set.

    `errors` has an array (seeds, budgets) per arm. Entry (i, j) grows by 1 / budgets for each budget at which i beats j, so
    it lies in 0..1; the mean of column j says how often j was beaten: lower is better.
    """
    budgets = errors[0].shape[1]
    matrix = np.zeros((len(errors), len(errors)))
    for i, ours in enumerate(errors):
        for j, theirs in enumerate(errors):
            if i != j:
                matrix[i, j] = sum(beats(ours[:, at], theirs[:, at]) for at in range(budgets)) / budgets
    return matrix


# --- tables out of results --------------------------------------------------------------------------------------------------


def curves(results: pd.DataFrame, test: str, metric: str) -> tuple[dict[str, Floats], Floats, list[int], list[float]]:
    """Of one evaluation set: arm -> values (seeds, budgets), the labels (seeds, budgets), the seeds, the budgets.

    Only seeds that every arm has been through are used, so that all comparisons are paired.
    """
    here = results[results["test"] == test]
    arms, budgets = list(dict.fromkeys(here["arm"])), sorted(set(results["budget"]))
    grid = pd.MultiIndex.from_product([arms, budgets])
    wide = here.pivot(index="seed", columns=["arm", "budget"], values=metric).reindex(columns=grid).dropna()
    if wide.empty:
        raise WbcError("no seed has been through all arms and budgets yet: run the study again to go on")
    seeds = [int(seed) for seed in wide.index]
    labels = here[here["arm"] == arms[0]].pivot(index="seed", columns="budget", values="labels").loc[seeds, budgets]
    values = {arm: wide[arm][budgets].to_numpy(dtype=np.float64) for arm in arms}
    return values, labels.to_numpy(dtype=np.float64), seeds, budgets


def areas(values: Mapping[str, Floats], labels: Floats, log: bool) -> dict[str, Floats]:
    """Each arm's area by seed, (seeds,)."""
    return {arm: np.array([area(x, y, log) for x, y in zip(labels, each, strict=True)]) for arm, each in values.items()}


def comparison(arm: str, what: str, difference: Floats, alternative: str) -> dict[str, Any]:
    """One paired comparison of two arms; `difference` (seeds,) is the one minus the other."""
    low, high = bootstrap_interval(difference)
    return {
        "arm": arm,
        "what": what,
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "d_z": effect_size(difference),
        "p": wilcoxon_p(difference, alternative),
    }


def comparisons(study: Study, results: pd.DataFrame, test: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every arm against the reference: by area (one family of tests) and at each budget (another), with `p_holm`."""
    file = study.file
    values, labels, _, _ = curves(results, test, file.metric)
    by_area = areas(values, labels, file.log_budget)
    others = [arm for arm in values if arm != file.reference]
    whole = [comparison(arm, "area", by_area[arm] - by_area[file.reference], file.alternative) for arm in others]
    names = [_labels_text(labels[:, at]) for at in range(labels.shape[1])]
    single = [
        comparison(arm, names[at], (values[arm] - values[file.reference])[:, at], file.alternative)
        for arm in others
        for at in range(len(names))
    ]
    frames = []
    for rows in (whole, single):
        frame = pd.DataFrame(rows)
        frame["p_holm"] = holm([row["p"] for row in rows])
        frames.append(frame)
    return frames[0], frames[1]


def own_shares(study: Study, results: pd.DataFrame, test: str) -> pd.DataFrame:
    """What each of the study's `parts` adds by itself, by area: the arm with it against the arm that lacks only it. One family
    of tests, with `p_holm`."""
    file = study.file
    values, labels, _, _ = curves(results, test, file.metric)
    by_area = areas(values, labels, file.log_budget)
    rows = [
        comparison(part, f"{arm} − {other}", by_area[arm] - by_area[other], file.alternative)
        for part, (arm, other) in file.parts.items()
    ]
    return pd.DataFrame(rows).assign(p_holm=holm([row["p"] for row in rows]))


def needed(study: Study, results: pd.DataFrame, test: str) -> list[dict[str, Any]]:
    """Labels that each arm needs for each target: of the mean curve, and how many seeds' own curves get there."""
    file = study.file
    values, labels, _, _ = curves(results, test, file.metric)
    rows = []
    for arm, each in values.items():
        for target in file.targets:
            mean = labels_needed(labels.mean(axis=0), each.mean(axis=0), target, file.log_budget)
            single = [labels_needed(x, y, target, file.log_budget) for x, y in zip(labels, each, strict=True)]
            first = mean is not None and mean <= labels.mean(axis=0)[0]
            reached = sum(one is not None for one in single)
            rows.append({"arm": arm, "target": target, "labels": mean, "at_first": first, "reached": reached, "seeds": len(each)})
    return rows


def summary(study: Study, results: pd.DataFrame) -> list[dict[str, Any]]:
    """For `--json`: each arm's last budget and its area, on the data's own test split."""
    file = study.file
    values, labels, _, _ = curves(results, HOME, file.metric)
    by_area = areas(values, labels, file.log_budget)
    return [
        {
            "arm": arm,
            "metric": file.metric,
            "labels": round(float(labels[:, -1].mean())),
            "mean": float(each[:, -1].mean()),
            "sd": _sd(each[:, -1]),
            "area": float(by_area[arm].mean()),
            "seeds": len(each),
        }
        for arm, each in values.items()
    ]


# --- Markdown ---------------------------------------------------------------------------------------------------------------


def write_report(study: Study, results: pd.DataFrame, out: Path, history: pd.DataFrame | None = None) -> list[str]:
    """Write `report.md` and its pictures into `out`; returns the names of the files. `history` has a row for each look of each
    training at the validation pool."""
    tests = list(dict.fromkeys(results["test"]))
    parts = [_head(study, results)]
    names = ["report.md"]
    for test in tests:
        pictures = [f"curves-{test}.png", f"recall-{test}.png"]
        plot_curves(study, results, test, out / pictures[0])
        plot_recalls(results, test, out / pictures[1])
        parts.append(_section(study, results, test, pictures))
        names += pictures
    if history is not None and not history.get("ranking_accuracy", pd.Series(dtype=float)).isna().all():
        plot_ranking(history, out / RANKING)
        parts.append(
            "## LossNet while it trains\n\nRanking accuracy on the validation pool over the updates, mean over seeds; 0.5 is "
            "chance.\n\n"
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
        f"{_labels_text(labels[:, at])} ({budget:.0%})" if shares else f"{budget:.0f}" for at, budget in enumerate(budgets)
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
        f"All arms of a seed have the same splits and, unless an arm says otherwise, the same first labels ({file.initial}). "
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
        return "One seed: differences have no spread, and nothing is tested."
    asked = "differs from" if file.alternative == "two-sided" else "is better than"
    return (
        f"Tests ask whether an arm {asked} `{file.reference}`: Wilcoxon's signed-rank test over the paired seeds "
        f"({file.alternative}), p adjusted by Holm within a table. With {seeds} seeds its smallest possible p is "
        f"{smallest_p(seeds, file.alternative):.3g}, before adjustment. d_z is the mean of the paired differences "
        "over their standard deviation; intervals are 95 % percentile bootstrap over seeds, too narrow for fewer than about 10."
    )


def _section(study: Study, results: pd.DataFrame, test: str, pictures: Sequence[str]) -> str:
    file = study.file
    values, labels, seeds, _ = curves(results, test, file.metric)
    spread = ", mean ± standard deviation over seeds" if len(seeds) > 1 else ""
    cells = int(results.loc[results["test"] == test, "n"].iloc[0])
    title = TITLES[file.metric]
    columns = [_labels_text(labels[:, at]) for at in range(labels.shape[1])]
    by_area = areas(values, labels, file.log_budget)
    over = "log(labels)" if file.log_budget else "labels"
    curve_rows = [
        [arm, *(_spread(each[:, at]) for at in range(each.shape[1])), _spread(by_area[arm])] for arm, each in values.items()
    ]
    parts = [
        f"## {'The test split' if test == HOME else f'Another site: {test}'} ({cells} cells)",
        f"![learning curves]({pictures[0]})",
        f"{title} in per cent{spread}. Area: under the curve over {over}, divided by its range.",
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
    head = f"Labels needed for a {title} (where the mean curve first gets there; share of the reference's; seeds that get there)."
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
        "Pairwise penalty matrix (Ash et al. 2020): at which share of the budgets the row's arm beats the column's, by a paired "
        f"two-sided t-test at {ALPHA}. The lower a column's mean, the less often was its arm beaten."
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
        "## Cost\n\nSeconds of a training and of a query, updates until training stopped, and LossNet's ranking accuracy on the "
        "test split (0.5 is chance), means over seeds and budgets. Arms that share a training show the same one."
    )
    return head + "\n\n" + _table(["arm", "training, s", "updates", "query, s", "ranking accuracy"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _labels_text(labels: Floats) -> str:
    low, high = int(labels.min()), int(labels.max())
    return str(low) if low == high else f"{low}–{high}"


def _sd(values: Floats) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _spread(values: Floats) -> str:
    sd = _sd(values)
    return f"{100 * values.mean():.2f}" + ("" if sd is None else f" ± {100 * sd:.2f}")


def _number(value: float) -> str:
    return "–" if np.isnan(value) else "∞" if np.isinf(value) else f"{value:.2f}"


def _listed(results: pd.DataFrame, column: str) -> str:
    """The different values of a column, shortened where they are hashes."""
    texts = [re.sub(r"\b([0-9a-f]{12})[0-9a-f]{4,}", r"\1", str(value)) for value in results[column].unique()]
    return ", ".join(texts) or "unknown"


# --- pictures -----------------------------------------------------------------------------------------------------------------


def plot_curves(study: Study, results: pd.DataFrame, test: str, path: Path) -> None:
    """The study's metric and accuracy against labels, mean and standard deviation over seeds."""
    metrics = list(dict.fromkeys([study.file.metric, "accuracy"]))
    figure = Figure(figsize=(6.2 * len(metrics), 4.6))
    for axes, metric in zip(np.atleast_1d(figure.subplots(1, len(metrics))), metrics, strict=True):
        values, labels, _, _ = curves(results, test, metric)
        _draw(axes, values, labels, study.file.reference)
        axes.set(xlabel="labels", title=TITLES[metric])
        if study.file.log_budget:
            axes.set_xscale("log")
            ticks = labels.mean(axis=0)
            axes.set_xticks(ticks, [f"{x:.0f}" for x in ticks], rotation=45 if len(ticks) > 5 else 0)  # 863 lies close to 1140
            axes.minorticks_off()
        if metric == study.file.metric and test == HOME:
            top = axes.get_ylim()[1]
            for target in (target for target in study.file.targets if target < top):
                axes.axhline(target, color="#999", linewidth=0.7, linestyle=":")
    _legend(figure)
    rendered = ", rendered cells, not real" if study.file.data == "rendered" else ""
    seeds = len(values[study.file.reference])
    spread = "one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds"
    figure.suptitle(f"{study.file.name}: {test}{rendered}; {spread}")
    _save(figure, path)


def plot_recalls(results: pd.DataFrame, test: str, path: Path) -> None:
    """Recall of every class against labels, mean over seeds."""
    present = [name for name in CLASSES if not results.loc[results["test"] == test, f"recall_{name}"].isna().all()]
    figure = Figure(figsize=(3.2 * len(present), 3.4))
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(present), sharey=True)), present, strict=True):
        values, labels, _, _ = curves(results, test, f"recall_{name}")
        _draw(axes, values, labels, None)
        axes.set(title=name, xlabel="labels", xscale="log")
        axes.set_xticks(labels.mean(axis=0)[:: max(1, labels.shape[1] // 3)])
        axes.get_xaxis().set_major_formatter("{x:.0f}")
        axes.minorticks_off()
    _legend(figure)
    _save(figure, path)


def plot_ranking(history: pd.DataFrame, path: Path) -> None:
    """LossNet's ranking accuracy over the updates of a training, a panel for each budget, mean over seeds."""
    arms = list(dict.fromkeys(history["arm"]))
    shown_rows = history[history["ranking_accuracy"].notna()]
    budgets = sorted(set(shown_rows["budget"]))
    figure = Figure(figsize=(3.2 * len(budgets), 3.2))
    for axes, budget in zip(np.atleast_1d(figure.subplots(1, len(budgets), sharey=True)), budgets, strict=True):
        here = shown_rows[shown_rows["budget"] == budget]
        for arm, rows in here.groupby("arm", sort=False):
            mean = rows.groupby("update")["ranking_accuracy"].mean()
            axes.plot(mean.index, mean, color=COLOURS[arms.index(str(arm)) % len(COLOURS)], label=str(arm))
        axes.axhline(0.5, color="#999", linewidth=0.7, linestyle=":")
        axes.set(title=f"{_labels_text(here['labels'].to_numpy(dtype=np.float64))} labels", xlabel="update")
        axes.grid(alpha=0.3)
    _legend(figure)
    _save(figure, path)


def _draw(axes: Axes, values: Mapping[str, Floats], labels: Floats, reference: str | None) -> None:
    x = labels.mean(axis=0)
    for place, (arm, each) in enumerate(values.items()):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        mean = each.mean(axis=0)
        if len(each) > 1:
            spread = each.std(axis=0, ddof=1)
            low, high = np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1)
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        line = "--" if arm == reference else "-"
        axes.plot(x, mean, line, marker=marker, markersize=4, color=colour, label=arm)
    axes.grid(alpha=0.3)


def _legend(figure: Figure) -> None:
    """The arms beside the panels: a study may have many, and no curve is to lie under their names."""
    figure.axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))


def _save(figure: Figure, path: Path) -> None:
    """PNG without a time stamp, so that the same numbers give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": None})
