"""The pictures that stand next to the numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wbc_model.core.classes import CLASSES
from wbc_model.evaluation.metrics import ECE_BINS


def _save(figure: Figure, path: Path) -> Path:
    """PNG without a time stamp, so that the same numbers give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": None})
    return path


def plot_confusion(confusion: NDArray[np.int64], path: Path, title: str) -> Path:
    """Confusion matrix (C, C) with counts, coloured by the share of each label's row."""
    figure = Figure(figsize=(6.2, 5.4))
    axes = figure.subplots()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(CLASSES)):
        for column in range(len(CLASSES)):
            if confusion[row, column]:
                text = f"{confusion[row, column]}\n{share[row, column]:.1%}"
                colour = "white" if share[row, column] > 0.55 else "#222"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=30, ha="right")
    axes.set_yticks(range(len(CLASSES)), CLASSES)
    axes.set(xlabel="predicted", ylabel="label", title=title)
    return _save(figure, path)


def plot_reliability(probabilities: NDArray[Any], labels: NDArray[np.int64], ece: float, path: Path) -> Path:
    """Accuracy against confidence in equal-width bins, with how many cells stand in each."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    counts = np.bincount(bins, minlength=ECE_BINS)
    used = counts > 0
    accuracy = np.bincount(bins, correct, ECE_BINS)[used] / counts[used]
    mean = np.bincount(bins, confidence, ECE_BINS)[used] / counts[used]
    figure = Figure(figsize=(5.4, 5))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999", linestyle="--", linewidth=1)
    axes.scatter(mean, accuracy, s=20 + 180 * counts[used] / counts.max(), color="#1f5fa8", zorder=3)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.05))
    axes.set_title(f"Reliability, ECE {ece:.3f}")
    return _save(figure, path)


def plot_history(history: pd.DataFrame, path: Path) -> Path:
    """Losses, validation accuracy and LossNet's ranking over the updates of one training."""
    figure = Figure(figsize=(10, 3.6))
    left, right = figure.subplots(1, 2)
    left.plot(history["update"], history["train_loss"], label="train (augmented)", color="#999")
    left.plot(history["update"], history["validation_loss"], label="validation", color="#1f5fa8")
    left.set(xlabel="update", ylabel="cross-entropy", yscale="log")
    right.plot(history["update"], history["validation_macro_f1"], label="validation macro-F1", color="#1f5fa8")
    if "ranking_accuracy" in history:
        right.plot(history["update"], history["ranking_accuracy"], label="LossNet ranking accuracy", color="#c2571a")
    right.set(xlabel="update", ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return _save(figure, path)


def _open(labels: list[int], values: list[float], cycles: Sequence[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """The points of the cycles that are out of date."""
    old = [place for place, row in enumerate(cycles) if row.get("out_of_date")]
    return [labels[place] for place in old], [values[place] for place in old]


def plot_learning_curve(cycles: Sequence[dict[str, Any]], path: Path, rendered: bool) -> Path:
    """Test accuracy and macro-F1 with 95 % intervals against the labels used; a row needs `labels`, `metrics`, `strategy`. Where
    its `out_of_date` counts test labels that were corrected since, its points are open."""
    figure = Figure(figsize=(7, 4.4))
    axes = figure.subplots()
    labels = [row["labels"] for row in cycles]
    for metric, colour, name in (("accuracy", "#1f5fa8", "accuracy"), ("macro_f1", "#c2571a", "macro-F1")):
        values = [row["metrics"][metric] for row in cycles]
        nothing = [float("nan")] * 2  # where there is no interval nothing is drawn
        low, high = zip(*(row["metrics"]["intervals"].get(metric, nothing) for row in cycles), strict=True)
        axes.fill_between(labels, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(labels, values, marker="o", color=colour, label=f"{name}, {values[-1]:.1%} with {labels[-1]} labels")
        axes.plot(*_open(labels, values, cycles), linestyle="none", marker="o", color=colour, markerfacecolor="white")
    if any(row.get("out_of_date") for row in cycles):
        axes.plot([], [], "o", color="black", markerfacecolor="white", label="open: rests on test labels corrected since")
    cells = "rendered cells, not real" if rendered else f"{cycles[-1]['metrics']['n']} test cells"
    axes.set(xlabel="labels", ylabel="test pool", title=f"Learning curve, acquisition {cycles[-1]['strategy']} ({cells})")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    return _save(figure, path)
