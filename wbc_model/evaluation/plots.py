"""The pictures that stand next to the numbers: shares in per cent, colours for all eyes, and the same bytes for the same data."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from wbc_model.core.classes import CLASSES
from wbc_model.evaluation.metrics import ECE_BINS

# Okabe & Ito's colours, which colour-blind people tell apart, without their yellow, which is too light for a line.
BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
GREY: Final = "#767676"
NOT_REAL: Final = "rendered cells, not real blood"
CURVES: Final = {"accuracy": "accuracy", "macro_f1": "macro-F1"}  # the panels of a learning curve
PERCENT: Final = FuncFormatter(lambda share, _: f"{round(100 * share, 6):g} %")
_MOST_NUMBERED: Final = 12  # more numbers of retrainings than this would lie on each other
_MOST_TICKS: Final = 7  # up to so many numbers of labels each has a tick of its own


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG without a date or version, so that the same numbers give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    return path


def head(figure: Figure, title: str) -> None:
    """The figure's title, wrapped to its width."""
    columns = int(11.5 * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(line, columns) for line in title.split("\n")), fontsize=11.5)


def plain(axes: Axes) -> None:
    """A light grid under the data, and no frame above and to the right."""
    axes.grid(alpha=0.3, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def in_percent(axes: Axes) -> None:
    """Label the y axis, whose values are shares, in per cent."""
    axes.yaxis.set_major_formatter(PERCENT)


def legend_below(figure: Figure, columns: int) -> None:
    """One legend for all panels, each entry once, below them: no data lie under it."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


# --- one evaluation -------------------------------------------------------------------------------------------------------


def plot_confusion(confusion: NDArray[np.int64], path: Path, title: str) -> Path:
    """Confusion matrix (C, C): counts, and the share of its label's cells in per cent and as colour."""
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    axes = figure.subplots()
    totals = confusion.sum(axis=1)
    share = confusion / np.maximum(totals, 1)[:, None]
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(confusion > 0):
        text = f"{confusion[row, column]:,}\n{100 * share[row, column]:.1f} %"
        colour = "white" if share[row, column] > 0.55 else "#222"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=30, ha="right")
    axes.set_yticks(range(len(CLASSES)), [f"{name}\n{total:,} cells" for name, total in zip(CLASSES, totals, strict=True)])
    axes.set(xlabel="predicted class", ylabel="label")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PERCENT)
    bar.set_label("share of the label's cells")
    right = np.trace(confusion) / max(int(totals.sum()), 1)
    head(figure, f"{title}\n{totals.sum():,} cells, {100 * right:.1f} % of them right")
    return save_figure(figure, path)


def _wilson(hits: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Lower and upper 95 % limits (N,) of proportions of `counts` above 0, by Wilson's formula (JASA 1927). `scipy.stats` has it
    too, and takes longer to load than all pictures take to draw."""
    z = 1.959963984540054  # of the normal distribution
    share = hits / counts
    centre, half = share + z**2 / (2 * counts), z * np.sqrt(share * (1 - share) / counts + z**2 / (4 * counts**2))
    return (centre - half) / (1 + z**2 / counts), (centre + half) / (1 + z**2 / counts)


def plot_reliability(probabilities: NDArray[Any], labels: NDArray[np.int64], ece: float, path: Path, title: str) -> Path:
    """Accuracy against confidence in the bins of the ECE, with Wilson 95 % intervals (JASA 1927), and how many cells each has.

    `probabilities` (N, C) and `labels` (N,) class indices; `ece` is that of exactly these cells.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    counts = np.bincount(bins, minlength=ECE_BINS)
    used = np.flatnonzero(counts)
    hits = np.bincount(bins, correct, ECE_BINS).astype(int)
    mean = np.bincount(bins, confidence, ECE_BINS)[used] / counts[used]
    limits = _wilson(hits[used], counts[used])
    figure = Figure(figsize=(6.4, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as accurate as sure")
    above.vlines(mean, *limits, color=BLUE, linewidth=1.5, label="Wilson 95 % interval")
    above.plot(mean, hits[used] / counts[used], "o", color=BLUE, label="cells of one bin")
    above.set(ylabel="accuracy", xlim=(0, 1.01), ylim=(-0.03, 1.03))
    below.bar((np.arange(ECE_BINS) + 0.5) / ECE_BINS, counts, width=0.9 / ECE_BINS, color=SKY)
    below.bar_label(below.containers[0], [f"{count:,}" if count else "" for count in counts], padding=2, fontsize=8)
    below.set(xlabel="confidence", ylabel="cells", yscale="log", ylim=(0.5, 4 * counts.max()))
    below.xaxis.set_major_formatter(PERCENT)
    below.yaxis.set_major_formatter("{x:,.0f}")
    in_percent(above)
    for axes in (above, below):
        plain(axes)
    legend_below(figure, columns=3)
    head(figure, f"{title}\nReliability: {len(labels):,} cells, expected calibration error {100 * ece:.1f} %")
    return save_figure(figure, path)


# --- one training ---------------------------------------------------------------------------------------------------------


def plot_history(history: pd.DataFrame, path: Path, title: str) -> Path:
    """Losses, validation macro-F1 and LossNet's ranking accuracy over the updates of one training."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(history["update"], history["train_loss"], ".-", label="training cells, augmented", color=ORANGE)
    left.plot(history["update"], history["validation_loss"], ".-", label="validation pool", color=BLUE)
    left.set(xlabel="update", ylabel="cross-entropy", yscale="log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("")
    right.plot(history["update"], history["validation_macro_f1"], ".-", label="macro-F1", color=BLUE)
    if "ranking_accuracy" in history and history["ranking_accuracy"].notna().any():
        right.plot(
            history["update"], history["ranking_accuracy"], "s-", markersize=3, label="LossNet's ranking accuracy", color=RED
        )
        right.axhline(0.5, color=GREY, linestyle=":", linewidth=1, label="chance for a ranking")
    right.set(xlabel="update", ylabel="on the validation pool", ylim=(0, 1.02))
    in_percent(right)
    for axes in (left, right):
        plain(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    head(figure, title)
    return save_figure(figure, path)


# --- the cycles of retrainings --------------------------------------------------------------------------------------------


def plot_learning_curve(cycles: Sequence[dict[str, Any]], path: Path, rendered: bool, model: str = "") -> Path:
    """Test accuracy and macro-F1 with 95 % intervals against labels, one line per retraining; one cycle is enough.

    A row is a cycle and needs `labels`, `strategy` and `metrics` (`accuracy`, `macro_f1`, `n`, `intervals`). It may say:
    `retraining`, a number or date (rows of one retraining stand together and share it); `champion`, true where this cycle's
    model became the champion; `out_of_date`, how many test labels were corrected since, which leaves the point open.
    """
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    last = cycles[-1]
    for axes, (metric, name) in zip(panels, CURVES.items(), strict=True):
        _draw_cycles(axes, cycles, metric)
        axes.set(xlabel="labels", ylabel=name)
        axes.set_title(f"{name}: {100 * last['metrics'][metric]:.1f} % with {last['labels']:,} labels", fontsize=10.5)
        axes.tick_params(labelleft=True)
        plain(axes)
        in_percent(axes)
    panels[0].set_ylim(top=min(1.005, panels[0].get_ylim()[1]))
    legend_below(figure, columns=5)
    cells = f"{last['metrics']['n']:,} test cells" + (f" ({NOT_REAL})" if rendered else "")
    head(figure, f"Learning curve on {cells}" + (f", model {model}" if model else "") + f", labels chosen by {last['strategy']}")
    return save_figure(figure, path)


def _draw_cycles(axes: Axes, cycles: Sequence[dict[str, Any]], metric: str) -> None:
    """One panel: the lines, their intervals, and the marks of single points."""
    retrainings = [list(rows) for _, rows in itertools.groupby(cycles, key=lambda row: row.get("retraining"))]
    for number, rows in enumerate(retrainings, 1):
        labels, values = [row["labels"] for row in rows], [row["metrics"][metric] for row in rows]
        limits = [row["metrics"]["intervals"].get(metric, [np.nan, np.nan]) for row in rows]  # NaN draws nothing
        low, high = zip(*limits, strict=True)
        newest = number == len(retrainings)
        colour = BLUE if newest else GREY
        many = len(retrainings) > 1
        name = "test pool" if not many else f"retraining {rows[0]['retraining']}, the last" if newest else "retrainings before"
        if not np.isnan(limits).all():
            bars = axes.vlines(labels, low, high, color=colour, linewidth=1.4, alpha=0.6)  # all that one cycle has
            band = axes.fill_between(labels, low, high, color=colour, alpha=0.2, linewidth=0)
            (band if len(rows) > 1 else bars).set_label("95 % interval, bootstrap over test cells")
        axes.plot(labels, values, "o-", color=colour, markersize=5, label=name)
        if many and (len(retrainings) <= _MOST_NUMBERED or newest):
            at, name = (labels[0], values[0]), str(rows[0]["retraining"])
            axes.annotate(name, at, (0, -14), textcoords="offset points", ha="center", fontsize=8, color=colour)
    _draw_marks(axes, cycles, metric)
    ticks = sorted({row["labels"] for row in cycles})
    if len(ticks) <= _MOST_TICKS:
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(_MOST_TICKS, integer=True))


def _draw_marks(axes: Axes, cycles: Sequence[dict[str, Any]], metric: str) -> None:
    """A star on each point whose model became the champion; open circles where test labels were corrected since."""
    champions = [(row["labels"], row["metrics"][metric]) for row in cycles if row.get("champion")]
    if champions:
        axes.plot(
            *zip(*champions, strict=True), "*", color=ORANGE, markeredgecolor=BLACK, markersize=13, label="became the champion"
        )
    old = [(row["labels"], row["metrics"][metric]) for row in cycles if row.get("out_of_date")]
    if old:
        name = "open: rests on test labels corrected since"
        axes.plot(*zip(*old, strict=True), "o", color=BLUE, markerfacecolor="white", markersize=5, label=name)
