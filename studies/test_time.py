"""What helps at a strange microscope without a label and without training: the site's own statistics, averaging over views, both.

    python studies/test_time.py MODEL_DIR DATA.csv [DATA.csv ...] --out studies/test_time

The labelled test cells of each manifest are used, or all labelled cells where it names no test split. `statistics` gives batch
normalisation the statistics of these cells, without their labels (wbc_model/network/batch_norm_statistics.py). `eight views`
averages the probabilities over the eight turns and flips of the square. There is no seed: only where there are very many cells,
those that statistics are measured on are drawn at random. A second MODEL_DIR with the same `--out` is put beside the first, since
trainings of one kind differ more away from home than at home.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from flows.studies.results import claim, publishing
from flows.workspace import find_workspace
from wbc_model.cells.manifest import read_cell, read_manifest, root_of
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.core.images import preprocess
from wbc_model.core.model_card import ModelCard
from wbc_model.core.probabilities import softmax
from wbc_model.evaluation.evaluate import BATCH, label_indices
from wbc_model.evaluation.metrics import classification_metrics
from wbc_model.evaluation.plots import BLUE, GREEN, GREY, RED, head, in_percent, legend_below, plain, save_figure
from wbc_model.network.batch_norm_statistics import MIN_CELLS, some_cells, takes_statistics, with_statistics_of
from wbc_model.network.model_directory import load_model
from wbc_model.network.predict import predict
from wbc_model.network.resnet import AttentionResNet18

Pixels = NDArray[np.uint8]
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1", "balanced_accuracy": "balanced accuracy"}
COLOURS = {"as it is": BLUE, "statistics": RED, "eight views": GREEN, "both": GREY}
WAYS = tuple(COLOURS)


def read_cells(data: Path, card: ModelCard) -> tuple[Pixels, NDArray[np.int64], int]:
    """The views (N, S, S, 3) of a manifest's cells, their labels (N,), and how many rows were unusable."""
    manifest, root = read_manifest(data), root_of(data)
    test = manifest["split"] == "test"
    rows = manifest[test] if test.any() else manifest
    known = rows[rows["label"].isin(CLASSES)]

    def view(path: str) -> Pixels | None:
        try:
            return preprocess(read_cell(path, root), card.input_size, card.view)
        except ImageRejected:
            return None

    with ThreadPoolExecutor() as pool:
        read = pool.map(view, known["path"])
        views = list(tqdm(read, total=len(known), desc=f"read {data.stem}", unit="cell", disable=None, leave=False))
    good = [index for index, one in enumerate(views) if one is not None]
    if not good:
        raise WbcError(f"{data}: no labelled image is usable")
    labels = label_indices(known["label"].iloc[good].tolist())
    return np.stack([one for one in views if one is not None]), labels, len(rows) - len(good)


def eight_views(images: Pixels) -> Iterator[Pixels]:
    """The symmetries of the square, of images (N, S, S, 3): four turns, each as it is and mirrored. The first changes nothing."""
    for turns in range(4):
        turned = np.rot90(images, turns, axes=(1, 2))
        yield np.ascontiguousarray(turned)
        yield np.ascontiguousarray(turned[:, :, ::-1])


def probabilities(network: AttentionResNet18, images: Pixels, temperature: float, average: bool) -> NDArray[np.float64]:
    """Calibrated probabilities (N, classes) of images as they are or, with `average`, their mean over the eight views."""
    views = eight_views(images) if average else iter([images])
    each = []
    for view in tqdm(views, total=8 if average else 1, desc="predict", unit="view", disable=None, leave=False):
        batches = [view[start : start + BATCH] for start in range(0, len(view), BATCH)]
        each.append(softmax(predict(network, batches).logits, temperature))
    mean: NDArray[np.float64] = np.mean(each, axis=0)
    return mean


def rows_of(model: Path, data: Path) -> list[dict[str, Any]]:
    """A row of `results.csv` for each way, without those by statistics where there are none to be had. Raises WbcError."""
    network, card = load_model(model)
    images, labels, unusable = read_cells(data, card)
    networks = {"as it is": network}
    if not takes_statistics(network) or len(images) < MIN_CELLS:
        print(f"{data.stem}: without its statistics: the network cannot have any (model.norm), or it has under {MIN_CELLS} cells")
    else:
        networks["statistics"] = with_statistics_of(network, images[some_cells(len(images), seed=0)])
    rows = []
    for way in WAYS:
        base = "statistics" if way in ("statistics", "both") else "as it is"
        if base not in networks:
            continue
        average = way in ("eight views", "both")
        found = classification_metrics(probabilities(networks[base], images, card.temperature, average), labels)
        row: dict[str, Any] = {"model": card.version, "data": data.stem, "way": way, "cells": found["n"], "unusable": unusable}
        for metric in METRICS:
            low, high = found["intervals"].get(metric, [np.nan, np.nan])
            row |= {metric: found[metric], f"{metric}_low": low, f"{metric}_high": high}
        rows.append(row)
        print(f"{data.stem}: {way}: " + ", ".join(f"{METRICS[m]} {found[m]:.1%}" for m in METRICS), flush=True)
    return rows


def table(results: pd.DataFrame) -> str:
    """The results as Markdown, in per cent: of one model with 95 % intervals over cells, of several the mean and each."""
    lines = ["| data | cells | way | " + " | ".join(METRICS.values()) + " |", "|" + "---|" * (3 + len(METRICS))]
    for (data, way), rows in results.groupby(["data", "way"], sort=False):
        cells = []
        for m in METRICS:
            each = (100 * rows[m]).tolist()
            low, high = 100 * rows[f"{m}_low"].iloc[0], 100 * rows[f"{m}_high"].iloc[0]
            around = "no interval" if np.isnan(low) else f"{low:.1f} to {high:.1f}"
            brackets = around if len(each) == 1 else ", ".join(f"{one:.1f}" for one in each)
            cells.append(f"{np.mean(each):.1f} ({brackets})")
        lines.append(f"| {data} | {rows['cells'].iloc[0]} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: pd.DataFrame, path: Path) -> None:
    """Bars of balanced accuracy, a group per data set: of one model with its intervals, of several with a dot for each."""
    sets, ways = list(dict.fromkeys(results["data"])), [way for way in WAYS if way in set(results["way"])]
    models = list(dict.fromkeys(results["model"]))
    figure = Figure(figsize=(3 + 1.8 * len(sets), 4.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(ways)
    for place, way in enumerate(ways):
        at = np.arange(len(sets)) + (place - (len(ways) - 1) / 2) * width
        here = results[results["way"] == way].pivot(index="data", columns="model").reindex(sets)
        value = here["balanced_accuracy"].mean(axis=1)
        bars = axes.bar(at, value, width, label=way, color=COLOURS[way], edgecolor="white")
        axes.bar_label(bars, [f"{100 * one:.0f} %" for one in value], label_type="center", color="white", fontsize=9)
        if len(models) == 1:
            low, high = (here[f"balanced_accuracy_{end}"].iloc[:, 0] for end in ("low", "high"))
            axes.vlines(at, low, high, color="black", linewidth=1.4, label="95 % interval, bootstrap over cells")
        else:
            lines = axes.plot(at, here["balanced_accuracy"], "o", color="black", markersize=3.5)
            lines[0].set_label("one model")
    cells = results.groupby("data")["cells"].first()
    axes.set_xticks(range(len(sets)), [f"{name}\n{cells[name]:,} cells" for name in sets])
    axes.set(ylabel="balanced accuracy", ylim=(0, 1))
    plain(axes)
    axes.grid(visible=False, axis="x")
    in_percent(axes)
    legend_below(figure, columns=len(ways) + 1)
    of = f"model {models[0]}" if len(models) == 1 else f"mean of the {len(models)} models {', '.join(models)}"
    head(figure, f"What helps without a label: {of}")
    save_figure(figure, path)


def with_earlier(rows: list[dict[str, Any]], table: Path) -> pd.DataFrame:
    """The rows of this model after those that the table holds of others."""
    new = pd.DataFrame(rows)
    if not table.exists():
        return new
    old = pd.read_csv(table)
    return pd.concat([old[~old["model"].isin(new["model"])], new], ignore_index=True)


def readme(results: pd.DataFrame, notes: str) -> str:
    """README.md from the table, and what people noted in NOTES.md."""
    models = ", ".join(dict.fromkeys(results["model"]))
    brackets = (
        "with 95 % bootstrap\nintervals over cells. They say nothing of how much another training would differ."
        if results["model"].nunique() == 1
        else "the mean over\nmodels, which are trainings of the same kind, and each of them in brackets."
    )
    text = (
        "# At test time, without a label\n\n"
        f"`python studies/test_time.py MODEL_DIR DATA.csv ...`, {models}: per cent, {brackets}\n"
        "`statistics`: batch normalisation by the statistics of these cells. `eight views`: probabilities averaged over turns\n"
        "and flips. `both`: one on top of the other.\n\n"
    )
    return "\n\n".join([text + table(results), "![balanced accuracy](bars.png)", *([notes.strip()] if notes else [])]) + "\n"


def report(results: pd.DataFrame, out: Path) -> None:
    """`results.csv`, `bars.png` and `README.md`."""
    notes = (out / "NOTES.md").read_text() if (out / "NOTES.md").exists() else ""
    with publishing(out) as folder:
        (folder / "results.csv").write_text(results.to_csv(index=False, float_format="%.6f"))
        plot(results, folder / "bars.png")
        (folder / "README.md").write_text(readme(results, notes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if len({data.stem for data in given.data}) < len(given.data):
        parser.error("two of the manifests have the same name, by which the table tells them apart")
    try:
        claim([given.out / name for name in ("results.csv", "bars.png", "README.md")], find_workspace())
        rows = [row for data in given.data for row in rows_of(given.model, data)]
        report(with_earlier(rows, given.out / "results.csv"), given.out)
    except WbcError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
