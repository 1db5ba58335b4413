"""Pictures: what a legend, an axis and a title say, and that the same data give the same bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest

from wbc_model.core.classes import CLASSES
from wbc_model.evaluation import plots
from wbc_model.evaluation.metrics import ECE_BINS, confusion_matrix


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures, which are written as well."""
    figures: list[Figure] = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path))
    return figures


def cycle(labels: int, accuracy: float, **more: Any) -> dict[str, Any]:
    intervals = {"accuracy": [accuracy - 0.02, accuracy + 0.01], "macro_f1": [accuracy - 0.1, accuracy - 0.03]}
    metrics = {"accuracy": accuracy, "macro_f1": accuracy - 0.05, "n": 1552, "intervals": intervals}
    return {"labels": labels, "strategy": "badge", "metrics": metrics, **more}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def ticks(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def probabilities(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(CLASSES), count)
    found = rng.dirichlet(np.ones(len(CLASSES)), count)
    found[np.arange(count), labels] += 1
    return found / found.sum(axis=1, keepdims=True), labels


def test_a_single_cycle_is_a_point_with_its_interval(tmp_path: Path, drawn: list[Figure]) -> None:
    path = plots.plot_learning_curve([cycle(154, 0.96)], tmp_path / "curve.png", rendered=True, model="ab12")
    figure = drawn[0]
    assert legend(figure) == ["95 % interval, bootstrap over test cells", "test pool"]
    left, right = figure.axes
    assert (left.get_ylabel(), right.get_ylabel(), left.get_xlabel()) == ("accuracy", "macro-F1", "labels")
    assert left.get_ylim() == right.get_ylim()
    assert left.collections[0].get_segments()[0].tolist() == [[154, 0.94], [154, 0.97]]
    assert all(tick.endswith(" %") for tick in ticks(left))
    title = figure.get_suptitle().replace("\n", " ")
    assert title == "Learning curve on 1,552 test cells (rendered cells, not real blood), model ab12, labels chosen by badge"
    first = path.read_bytes()
    plots.plot_learning_curve([cycle(154, 0.96)], path, rendered=True, model="ab12")
    assert path.read_bytes() == first


def test_several_retrainings_are_lines_of_their_own_with_the_champions_marked(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [cycle(31, 0.8, retraining=1), cycle(92, 0.9, retraining=1, champion=True)]
    rows += [cycle(154, 0.93, retraining=2), cycle(215, 0.95, retraining=2, champion=True, out_of_date=3)]
    plots.plot_learning_curve(rows, tmp_path / "curve.png", rendered=False)
    figure = drawn[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].get_lines()}
    assert lines == {
        "retrainings before": [[31, 0.8], [92, 0.9]],
        "retraining 2, the last": [[154, 0.93], [215, 0.95]],
        "became the champion": [[92, 0.9], [215, 0.95]],
        "open: rests on test labels corrected since": [[215, 0.95]],
    }
    assert {text.get_text() for text in figure.axes[0].texts} == {"1", "2"}
    assert set(lines) < set(legend(figure))


def test_an_interval_that_does_not_hold_its_value_is_drawn_and_a_missing_one_is_not(tmp_path: Path, drawn: list[Figure]) -> None:
    beside, without = cycle(10, 0.5), cycle(20, 0.6)
    beside["metrics"]["intervals"] = {"accuracy": [0.51, 0.6]}
    without["metrics"]["intervals"] = {}
    plots.plot_learning_curve([beside, without], tmp_path / "curve.png", rendered=False)
    assert [len(axes.collections) for axes in drawn[0].axes] == [2, 0]


def test_reliability_has_counts_and_wilson_intervals(tmp_path: Path, drawn: list[Figure]) -> None:
    confident = np.full((8, len(CLASSES)), 0.02)
    confident[:, 0] = 0.92
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1])
    plots.plot_reliability(confident, labels, 0.045, tmp_path / "reliability.png", "Test pool, model ab12")
    above, below = drawn[0].axes
    low, high = above.collections[0].get_segments()[0][:, 1]
    assert [low, high] == pytest.approx(list(binomtest(7, 8).proportion_ci(0.95, method="wilson")), abs=1e-12)
    assert [text.get_text() for text in below.texts] == [*[""] * (ECE_BINS - 2), "8", ""]
    assert (above.get_ylabel(), below.get_ylabel(), below.get_xlabel()) == ("accuracy", "cells", "confidence")
    assert "8 cells, expected calibration error 4.5 %" in drawn[0].get_suptitle()


def test_pictures_of_one_evaluation_and_one_training_say_what_they_show(tmp_path: Path, drawn: list[Figure]) -> None:
    found, labels = probabilities()
    plots.plot_confusion(confusion_matrix(labels, found.argmax(axis=1)), tmp_path / "confusion.png", "Test pool, model ab12")
    history = pd.DataFrame({"update": [50, 100], "train_loss": [2.0, 0.4], "validation_loss": [1.5, 0.5]})
    history["validation_macro_f1"] = [0.5, 0.9]
    plots.plot_history(history, tmp_path / "history.png", "Training of model ab12")
    plots.plot_history(history.assign(ranking_accuracy=[0.5, 0.7]), tmp_path / "history.png", "Training of model ab12")
    confusion, without, with_ranking = drawn
    assert confusion.axes[0].get_ylabel() == "label"
    assert confusion.axes[1].get_ylabel() == "share of the label's cells"
    assert confusion.get_suptitle().startswith("Test pool, model ab12\n60 cells, ")
    assert [len(figure.axes[1].get_lines()) for figure in (without, with_ranking)] == [1, 3]
    assert "100 %" in ticks(without.axes[1])
