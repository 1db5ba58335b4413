"""The whole loop on real images: the full method and the paper's plain ResNet18, side by side, over seeds.

    python studies/home.py DATA.csv --out studies/home [--seeds 3] [--until 0.28] [--preset small]

Each run is what a user does: `wbc init`, `wbc ingest DATA`, `wbc retrain`. A run that is in `runs.csv` already is not repeated.
Writes `runs.csv` (one row a run), `cycles.csv` (one row a cycle), `README.md` and `learning-curves.png`.
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

from flows.workspace import set_params

WBC = Path(sys.executable).parent / "wbc"
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
        raise SystemExit(f"wbc {' '.join(arguments)} ended with {answer.returncode}")
    return json.loads(answer.stdout)


def run(data: Path, arm: str, seed: int, preset: str, until: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One workspace from nothing to its last model: a row for the run and a row a cycle."""
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
    key = {"arm": arm, "seed": seed, "preset": preset}
    cycles = [{**key, **flat(cycle)} for cycle in outcome["cycles"]]
    recalls = {f"recall_{name}": value["recall"] for name, value in metrics["per_class"].items()}
    row = {**key, "labels": cycles[-1]["labels"], "minutes": round(seconds / 60, 2), "test_cells": metrics["n"]}
    row |= {name: metrics[name] for name in ("accuracy", "macro_f1", "balanced_accuracy", "ece")}
    return {**row, **recalls, "gate": outcome.get("gate", {}).get("promoted")}, cycles


def flat(cycle: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a cycle that can stand in a table."""
    metrics = cycle.get("metrics", cycle)
    return {"cycle": cycle["cycle"], "labels": cycle["labels"], "seconds": cycle.get("seconds")} | {
        name: metrics[name] for name in ("accuracy", "macro_f1")
    }


def report(out: Path, data: Path, until: str) -> None:
    """README.md and learning-curves.png from the tables."""
    runs, cycles = pd.read_csv(out / "runs.csv"), pd.read_csv(out / "cycles.csv")
    lines = ["| arm | seeds | labels | accuracy | macro-F1 | lowest class recall |", "|---|---|---|---|---|---|"]
    for arm, rows in runs.groupby("arm"):
        recalls = rows[[c for c in rows.columns if c.startswith("recall_")]]
        spread = [f"{100 * rows[m].mean():.2f} ± {100 * rows[m].std(ddof=1):.2f}" for m in ("accuracy", "macro_f1")]
        lowest = f"{100 * recalls.min(axis=1).mean():.1f} ({recalls.mean().idxmin().removeprefix('recall_')})"
        lines.append("| " + " | ".join([arm, str(len(rows)), str(rows["labels"].iloc[0]), *spread, lowest]) + " |")
    head = f"# `{data.name}` to {until} of the labels\n\n`python studies/home.py {data.name} --until {until}`; mean ± standard"
    text = (
        f"{head}\ndeviation over seeds, in per cent, on the test pool. Each run is in `runs.csv`, each cycle in `cycles.csv`.\n\n"
    )
    (out / "README.md").write_text(text + "\n".join(lines) + "\n\n![learning curves](learning-curves.png)\n")
    figure = Figure(figsize=(8, 4))
    for axes, metric, title in zip(figure.subplots(1, 2), ("accuracy", "macro_f1"), ("accuracy", "macro-F1"), strict=True):
        for arm, colour in (("full", "#1f5fa8"), ("plain", "#c2571a")):
            curve = cycles[cycles["arm"] == arm].groupby("labels")[metric].agg(["mean", "min", "max"])
            axes.fill_between(curve.index, curve["min"], curve["max"], color=colour, alpha=0.15, linewidth=0)
            axes.plot(curve.index, curve["mean"], marker="o", color=colour, label=arm)
        axes.set(xlabel="labels", title=title)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(out / "learning-curves.png", dpi=120, bbox_inches="tight")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pd.read_csv(path).to_dict("records") if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--until", default="0.28")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    paths = arguments.out / "runs.csv", arguments.out / "cycles.csv"
    for seed in range(arguments.seeds):
        for arm in arguments.arms:
            if any(row["arm"] == arm and row["seed"] == seed for row in rows_of(paths[0])):
                continue
            row, rows = run(arguments.data.resolve(), arm, seed, arguments.preset, arguments.until)
            print(json.dumps(row), flush=True)
            for path, new in zip(paths, ([row], rows), strict=True):
                pd.DataFrame(rows_of(path) + new).to_csv(path, index=False)
            report(arguments.out, arguments.data, arguments.until)


if __name__ == "__main__":
    main()
