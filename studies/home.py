"""The whole loop on real images: the full method and the paper's plain ResNet18, side by side, over seeds.

    python studies/home.py DATA.csv --out studies/home [--seeds 3] [--until 0.28] [--preset small]

Each run is what a user does: `wbc init`, `wbc ingest DATA`, `wbc retrain`. A run that was made already is not made again.
Writes `runs.csv` (a row per run), `cycles.csv` (a row per cycle), `README.md` and `learning-curves.png`. A grid of arms without
the flow around it is faster: `wbc benchmark`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from flows.studies.data import listing
from flows.studies.provenance import code_of
from flows.studies.results import RUNS, Rows, publishing
from flows.workspace import set_params
from wbc_model.core.errors import WbcError
from wbc_model.evaluation.plots import BLUE, CURVES, RED, head, in_percent, legend_below, plain, save_figure

WBC = Path(sys.executable).parent / "wbc"
LOOP = "flows.retraining.flow:retraining"  # whose code a row's numbers come from
CYCLES, CURVE = "cycles.csv", "learning-curves.png"
ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "plain": {
        "model.attention": "none",
        "model.lossnet": False,
        "train.hard_share": 0.0,
        "acquisition.strategy": "random",
        "data.initial": "random",
        "few_labels.below": 0,
        "retrain.cycles": 1,  # cells drawn at random are the same whether in one round or in several
    },
}


def wbc(workspace: Path, *arguments: str, allowed: tuple[int, ...] = (0,)) -> Any:
    """Run a command of ours in the workspace and return what it prints with --json."""
    answer = subprocess.run([WBC, *arguments, "--json"], cwd=workspace, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode not in allowed:
        raise WbcError(f"`wbc {' '.join(arguments)}` ended with {answer.returncode} (see above)")
    return json.loads(answer.stdout)


def run(data: Path, arm: str, seed: int, preset: str, until: str) -> dict[str, Any]:
    """One workspace from nothing to its last model: `run`, the numbers of its row, and `cycles`, those of each cycle."""
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name) / "workspace"
        workspace.mkdir()
        wbc(workspace, "init", ".")
        set_params(workspace, {"seed": seed, **ARMS[arm]})
        wbc(workspace, "ingest", str(data), allowed=(0, 3))
        start = time.monotonic()
        outcome = wbc(workspace, "retrain", "--preset", preset, "--until", until)
        seconds = time.monotonic() - start
        metrics = json.loads((workspace / "metrics.json").read_text())
    cycles = [flat(cycle) for cycle in outcome["cycles"]]
    recalls = {f"recall_{name}": value["recall"] for name, value in metrics["per_class"].items()}
    row = {"labels": cycles[-1]["labels"], "minutes": round(seconds / 60, 2), "test_cells": metrics["n"]}
    row |= {name: metrics[name] for name in ("accuracy", "macro_f1", "balanced_accuracy", "ece")}
    return {"run": {**row, **recalls, "gate": outcome.get("gate", {}).get("promoted")}, "cycles": cycles}


def flat(cycle: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a cycle that can stand in a table."""
    metrics = cycle.get("metrics", cycle)
    return {"cycle": cycle["cycle"], "labels": cycle["labels"], "seconds": cycle.get("seconds")} | {
        name: metrics[name] for name in ("accuracy", "macro_f1")
    }


def readme(runs: pd.DataFrame, data: Path, until: str) -> str:
    """README.md from the table of runs."""
    lines = ["| arm | seeds | labels | accuracy | macro-F1 | lowest class recall |", "|---|---|---|---|---|---|"]
    for arm, rows in runs.groupby("arm"):
        recalls = rows[[c for c in rows.columns if c.startswith("recall_")]]
        spread = [f"{100 * rows[m].mean():.2f} ± {100 * rows[m].std(ddof=1):.2f}" for m in ("accuracy", "macro_f1")]
        lowest = f"{100 * recalls.min(axis=1).mean():.1f} ({recalls.mean().idxmin().removeprefix('recall_')})"
        lines.append("| " + " | ".join([str(arm), str(len(rows)), str(rows["labels"].iloc[0]), *spread, lowest]) + " |")
    text = (
        f"# `{data.name}` to {until} of the labels\n\n"
        f"`python studies/home.py {data.name} --until {until}`: mean ± standard deviation over seeds, in per cent, on the test\n"
        "pool. Each run is in `runs.csv`, each cycle in `cycles.csv`.\n\n"
    )
    return text + "\n".join(lines) + f"\n\n![learning curves]({CURVE})\n"


def plot(cycles: pd.DataFrame, data: Path, path: Path) -> None:
    """Accuracy and macro-F1 against labels: mean over seeds, and from the lowest seed to the highest."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, 2, sharey=True), CURVES.items(), strict=True):
        for arm, colour, marker in (("full", BLUE, "o"), ("plain", RED, "s")):
            curve = cycles[cycles["arm"] == arm].groupby("labels")[metric].agg(["mean", "min", "max"])
            axes.plot(curve.index, curve["mean"], marker=marker, color=colour, label=f"{arm}, mean of seeds")
            axes.vlines(curve.index, curve["min"], curve["max"], color=colour, linewidth=1.4, alpha=0.6)
            name = f"{arm}, lowest to highest seed"
            axes.fill_between(curve.index, curve["min"], curve["max"], color=colour, alpha=0.15, linewidth=0, label=name)
        axes.set(xlabel="labels", ylabel=title)
        axes.tick_params(labelleft=True)
        plain(axes)
        in_percent(axes)
    legend_below(figure, columns=4)
    preset, seeds = cycles["preset"].iloc[0], cycles["seed"].nunique()
    head(figure, f"The whole loop on {data.name}, test pool, preset {preset}, {seeds} seeds")
    save_figure(figure, path)


def publish(rows: Rows, runs: list[dict[str, Any]], cycles: list[dict[str, Any]], data: Path, until: str) -> None:
    """Write the tables, the README and the picture."""
    all_runs, all_cycles = rows.table(runs), rows.table(cycles, CYCLES)
    with publishing(rows.out) as folder:
        all_runs.to_csv(folder / RUNS, index=False)
        all_cycles.to_csv(folder / CYCLES, index=False)
        (folder / "README.md").write_text(readme(all_runs, data, until))
        plot(all_cycles, data, folder / CURVE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--until", default="0.28")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    given = parser.parse_args()
    runs: list[dict[str, Any]] = []
    cycles: list[dict[str, Any]] = []
    try:
        rows = Rows.open("home", given.out, ("arm", "seed", "preset"), [CYCLES, CURVE, "README.md"])
        for seed in range(given.seeds):
            for arm in given.arms:
                named = {"arm": arm, "seed": seed, "preset": given.preset}
                depends_on = [code_of(LOOP), listing(given.data), given.until, ARMS[arm]]
                made = rows.once(
                    named, depends_on, lambda a=arm, s=seed: run(given.data.resolve(), a, s, given.preset, given.until)
                )
                runs.append({**named, **made["run"]})
                cycles += [{**named, **cycle} for cycle in made["cycles"]]
                print(json.dumps(runs[-1]), flush=True)
                publish(rows, runs, cycles, given.data, given.until)
    except WbcError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
