"""The pictures of a study: its curves, the recall of each class, and LossNet's ranking while it trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wbc_model.core.classes import CLASSES
from wbc_model.evaluation.plots import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    NOT_REAL,
    ORANGE,
    PINK,
    RED,
    SKY,
    head,
    in_percent,
    legend_below,
    plain,
    save_figure,
)
from wbc_model.studies.statistics import Floats, curves, labels_text
from wbc_model.studies.study import HOME, Study

TITLES: Final = {
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "validation_macro_f1": "macro-F1 on the validation pool",
}
COLOURS: Final = (BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK, "#8C510A", "#6A51A3", GREY)
MARKERS: Final = "osD^vPX*<>"
MOST_BANDS: Final = 3  # more bands than this lie on each other
APART: Final = 0.012  # by which share of the axis the bars of two arms stand apart


def plot_curves(study: Study, results: pd.DataFrame, test: str, path: Path) -> None:
    """The study's metric and accuracy against labels, mean and standard deviation over seeds."""
    file = study.file
    metrics = list(dict.fromkeys([file.metric, "accuracy"]))
    figure = Figure(figsize=(5.6 * max(len(metrics), 1.3), 5.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    for axes, metric in zip(panels, metrics, strict=True):
        values, labels, seeds, _ = curves(results, test, metric)
        _draw(axes, values, labels, file.reference, file.log_budget)
        axes.set(ylabel=TITLES[metric])
        axes.tick_params(labelleft=True)
        plain(axes)
        in_percent(axes)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, min(high, 1.005))
    reached = [target for target in file.targets if low < target < high] if test == HOME else []
    for target in reached:
        line = panels[0].axhline(target, color=GREY, linewidth=1, linestyle=":")
    if reached:
        line.set_label(f"target for {TITLES[file.metric]}: {', '.join(f'{100 * target:g}' for target in reached)} %")
    if len(seeds) > 1:
        drawn = "band and bar" if len(values) <= MOST_BANDS else "bar"
        panels[0].vlines([], [], [], color=GREY, linewidth=1.3, label=f"{drawn}: ± standard deviation over {len(seeds)} seeds")
    _legend(figure, list(values))
    cells = int(results.loc[results["test"] == test, "n"].iloc[0])
    head(figure, f"{_where(study, test)}, {cells:,} cells\n{_how(study, len(seeds))}")
    save_figure(figure, path)


def plot_recalls(study: Study, results: pd.DataFrame, test: str, path: Path) -> None:
    """Recall of every class against labels, mean over seeds."""
    present = [name for name in CLASSES if not results.loc[results["test"] == test, f"recall_{name}"].isna().all()]
    figure = Figure(figsize=(2.9 * max(len(present), 2), 4.2), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(present), sharey=True)), present, strict=True):
        values, labels, seeds, _ = curves(results, test, f"recall_{name}")
        _draw(axes, values, labels, study.file.reference, study.file.log_budget, spread=False)
        axes.set_title(name, fontsize=10.5)
        axes.set(ylim=(-0.02, 1.02))
        plain(axes)
        in_percent(axes)
    figure.axes[0].set_ylabel("recall")
    _legend(figure, list(values))
    head(figure, f"Recall of each class: {_where(study, test)}\n{_how(study, len(seeds))}")
    save_figure(figure, path)


def plot_ranking(study: Study, history: pd.DataFrame, path: Path) -> None:
    """LossNet's ranking accuracy over the updates of a training, a panel for each budget, mean over seeds."""
    arms = list(dict.fromkeys(history["arm"]))
    shown_rows = history[history["ranking_accuracy"].notna()]
    budgets = sorted(set(shown_rows["budget"]))
    figure = Figure(figsize=(4.2 * max(len(budgets), 2), 4.4), layout="constrained")
    for axes, budget in zip(np.atleast_1d(figure.subplots(1, len(budgets), sharey=True)), budgets, strict=True):
        here = shown_rows[shown_rows["budget"] == budget]
        for arm, rows in here.groupby("arm", sort=False):
            mean = rows.groupby("update")["ranking_accuracy"].mean()
            axes.plot(mean.index, mean, label=str(arm), **_style(arms.index(str(arm))))
        axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":", label="chance: 50 %")
        axes.set_title(f"{labels_text(here['labels'].to_numpy(dtype=np.float64))} labels", fontsize=10.5)
        axes.set(xlabel="update")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        plain(axes)
        in_percent(axes)
    figure.axes[0].set_ylabel("ranking accuracy")
    _legend(figure, [*map(str, arms), "chance"])
    seeds = shown_rows["seed"].nunique()
    head(figure, f"{study.file.name}: LossNet's ranking on the validation pool of {_data(study)}\n{_how(study, seeds)}")
    save_figure(figure, path)


def _data(study: Study) -> str:
    return NOT_REAL if study.file.data == "rendered" else study.file.data


def _where(study: Study, test: str) -> str:
    """The study, and the cells that its models were tested on."""
    data = _data(study)
    return (
        f"{study.file.name}, the test split of {data}"
        if test == HOME
        else f"{study.file.name}, trained on {data}, tested at {test}"
    )


def _how(study: Study, seeds: int) -> str:
    """The models and the seeds behind a picture."""
    return f"preset {study.file.preset}, {'one seed' if seeds == 1 else f'mean over {seeds} seeds'}"


def _style(place: int) -> dict[str, Any]:
    """An arm's colour and marker."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)], "markersize": 5}


def _draw(axes: Axes, values: Mapping[str, Floats], labels: Floats, reference: str, log: bool, spread: bool = True) -> None:
    """The arms' mean curves, a little apart. With `spread` their standard deviations are bars and, of few arms, bands."""
    ticks = labels.mean(axis=0)
    place_of = np.log(ticks) if log else ticks
    width = max(float(np.ptp(place_of)), 0.5 if log else float(ticks[0]) / 2)
    has_bars = spread and len(next(iter(values.values()))) > 1
    step = APART * width if has_bars or len(ticks) == 1 else 0.0
    for place, (arm, each) in enumerate(values.items()):
        apart = (place - (len(values) - 1) / 2) * step
        x = np.exp(place_of + apart) if log else place_of + apart
        mean, style = each.mean(axis=0), _style(place)
        line, name = ("--", f"{arm} (reference)") if arm == reference and len(values) > 1 else ("-", arm)
        axes.plot(x, mean, line, label=name, **style)
        if has_bars:
            deviations = each.std(axis=0, ddof=1)
            low, high = np.clip(mean - deviations, 0, 1), np.clip(mean + deviations, 0, 1)
            axes.vlines(x, low, high, color=style["color"], linewidth=1.3, alpha=0.7)
            if len(values) <= MOST_BANDS:
                axes.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    logarithmic = log and len(ticks) > 1
    axes.set_xlabel("labels (log scale)" if logarithmic else "labels")
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{x:,.0f}" for x in ticks], rotation=45 if len(ticks) > 5 else 0)  # 863 lies close to 1140
    axes.minorticks_off()


def _legend(figure: Figure, names: list[str]) -> None:
    """The arms below the panels: a study may have many, and no curve is to lie under their names."""
    widest = max(map(len, names))
    legend_below(figure, columns=max(1, min(6, int(10 * figure.get_figwidth() / (widest + 8)))))
