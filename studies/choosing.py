"""How long each strategy takes to choose from a large pool of scored cells, and how much memory.

    python studies/choosing.py [--cells 1000000] [--count 1000] [--labelled 10000] [--candidates auto] [--strategies badge]

The scores are drawn, in the shapes and types that a network gives: probabilities of five classes, predicted losses, embeddings
of 512 float32. What is timed is the choice alone, since scoring grows evenly with the pool. Each strategy has a process of its
own. Its peak of memory is taken, and what the scores alone had taken before. `--candidates 0` has every strategy compare all
cells, as before there were candidates of the highest scores; it needs 2 KiB for each cell. The table goes to studies/choosing/.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from wbc_model.acquisition.distances import MANY, Rows
from wbc_model.acquisition.query import leading_candidates
from wbc_model.acquisition.strategies import STRATEGIES, Floats, Labelled, PoolScores, find_strategy, select
from wbc_model.core.probabilities import softmax

ROOT = Path(__file__).parents[1]
OUT = ROOT / "studies/choosing"
WIDTH, COLOURS, CLASSES, BLOCK = 512, 49, 5, 100_000


def drawn_rows(places: np.ndarray, width: int, classes: np.ndarray) -> Rows:
    """Rows as of a network: positive, alike within a class; made in blocks."""
    means = np.random.default_rng(1).gamma(0.5, 1.0, (CLASSES, width)).astype(np.float32)
    rows = np.empty((len(places), width), np.float32)
    for start in range(0, len(places), BLOCK):
        part = slice(start, start + BLOCK)
        noise = np.random.default_rng([2, start]).standard_normal(rows[part].shape, np.float32)
        rows[part] = (means[classes[places[part]]] + 0.5 * noise).clip(0)
    return rows


def drawn_scores(cells: int) -> tuple[Floats, Floats, np.ndarray]:
    """Probabilities (N, 5), predicted losses (N,) and classes (N,): most cells are sure ones."""
    rng = np.random.default_rng(0)
    classes = rng.choice(CLASSES, cells, p=[0.02, 0.05, 0.3, 0.08, 0.55])
    logits = rng.standard_normal((cells, CLASSES)).astype(np.float32)
    logits[np.arange(cells), classes] += rng.gamma(4, 2, cells).astype(np.float32)
    return softmax(logits), rng.standard_normal(cells), classes


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def choose(name: str, cells: int, count: int, labelled: int, auto: bool) -> dict[str, float | int | str]:
    """One choice in this process."""
    strategy = find_strategy(name)
    probabilities, loss, classes = drawn_scores(cells)
    wanted = strategy.needs
    start, begun = time.perf_counter(), time.process_time()
    places = np.arange(cells)
    if auto and cells > MANY and wanted & {"embedding", "colours"}:
        places = leading_candidates(strategy, probabilities, loss, count, 0)
    seconds, processors = time.perf_counter() - start, time.process_time() - begun
    none = np.empty((0, 0), np.float32)
    first = np.arange(labelled)
    widths = {"embedding": WIDTH, "colours": COLOURS}
    of_pool = {need: drawn_rows(places, width, classes) if need in wanted else none for need, width in widths.items()}
    of_known = {need: drawn_rows(first, width, classes) if need in wanted else none for need, width in widths.items()}
    known = Labelled(classes[:labelled], probabilities[:labelled], of_known["embedding"], of_known["colours"])
    pool = PoolScores(probabilities[places], loss[places], of_pool["embedding"], known, of_pool["colours"])
    before = megabytes()
    start, begun = time.perf_counter(), time.process_time()
    picks = select(strategy, pool, count, 0)
    seconds, processors = seconds + time.perf_counter() - start, processors + time.process_time() - begun
    return {
        "strategy": name,
        "compared": len(pool),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(processors, 1),
        "peak_mb": round(megabytes()),
        "scores_mb": round(before),
        "chosen": len(picks.indices),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--labelled", type=int, default=10_000)
    parser.add_argument("--candidates", choices=("auto", "0"), default="auto")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(choose(args.one, args.cells, args.count, args.labelled, args.candidates == "auto")))
        return
    print(f"{args.count} of {args.cells} cells, {args.labelled} labelled, candidates: {args.candidates}")
    print(f"{'strategy':18}{'compared':>10}{'seconds':>10}{'CPU s':>10}{'peak MB':>10}{'scores MB':>11}")
    rows = []
    for name in args.strategies.split(","):
        command = [sys.executable, __file__, "--one", name, "--cells", str(args.cells), "--count", str(args.count)]
        command += ["--labelled", str(args.labelled), "--candidates", args.candidates]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        row = json.loads(done.stdout)
        measured = f"{row['seconds']:>10}{row['cpu_seconds']:>10}{row['peak_mb']:>10}{row['scores_mb']:>11}"
        print(f"{name:18}{row['compared']:>10}{measured}", flush=True)
        rows.append({"cells": args.cells, "count": args.count, "candidates": args.candidates} | row)
        args.out.mkdir(parents=True, exist_ok=True)
        with (args.out / "choosing.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
