"""What a cell costs when there are many: seconds per 1,000 cells and peak memory of each step, and the last cells added.

    python studies/growing.py --cells 10000 100000 1000000 --folder /data/growing

Each size is a workspace of its own in the folder. Each step is a process of its own that measures itself: seconds on the clock
and of the processors without the loading of libraries, and the most memory it ever held. Then 10,000 cells are added. A step that
was measured is not repeated: run the same command again after a kill. A million cells take 25 GB and hours.

The cells are made by NumPy, 40 x 40 pixels, no two alike. Every thousandth is another's picture again, brighter and as JPEG. The
first labels are drawn at random (data.initial): the cover by colours is a choice of cells, and no part of this.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

ROOT: Final = Path(__file__).parents[1]
OUT: Final = ROOT / "studies/growing"
SIDE: Final = 40  # pixels of a cell
NOISE: Final = 12  # pixels of the random picture that it is stretched from
AT_A_TIME: Final = 2000
AGAIN: Final = 1000  # every so many cells one is shown again
GROUP: Final = 20  # cells of a patient
LABELS: Final = 20  # one of so many cells gets a label by the import
SIZE: Final = 32  # pixels of the network's view
# A thread that waits for another sleeps, unless the caller's environment says otherwise. By default OpenMP's threads spin, and
# on a busy machine that is most of a query's processor time.
WAITING: Final = {"OMP_WAIT_POLICY": "passive"}
COLUMNS: Final = ["cells", "step", "of", "seconds", "cpu_seconds", "peak_mb"]
CLASSES: Final = ("Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil")


# --- cells ------------------------------------------------------------------------------------------------------------------


def pictures(start: int, count: int) -> NDArray[np.uint8]:
    """Cells number `start` to `start + count`, uint8 (count, SIDE, SIDE, 3): a dark nucleus on a light smear, and random
    structure at all scales. A cell depends on its number alone."""
    place = np.linspace(0, NOISE - 1, SIDE)
    below = np.minimum(place.astype(int), NOISE - 2)
    stretch = np.zeros((SIDE, NOISE), np.float32)
    stretch[np.arange(SIDE), below] = 1 - (place - below)
    stretch[np.arange(SIDE), below + 1] = place - below
    noise = np.stack(
        [np.random.default_rng([7, number]).random((NOISE, NOISE, 4), np.float32) for number in range(start, start + count)]
    )
    field = np.einsum("rp,npqc,sq->nrsc", stretch, noise, stretch, optimize=True)
    row, column = np.mgrid[:SIDE, :SIDE]
    across, down, radius = (low + noise[:, 0, where, 3] * 8 for low, where in ((16, 0), (16, 1), (6, 2)))
    distance = np.hypot(row[None] - down[:, None, None], column[None] - across[:, None, None])
    nucleus = 1 / (1 + np.exp(distance - radius[:, None, None]))
    shade = np.array([70, 110, 40], np.float32)
    return np.clip(110 + 120 * field[..., :3] - nucleus[..., None] * shade * (0.6 + 0.8 * field[..., 3:]), 0, 255).astype(
        np.uint8
    )


def write_pictures(folder: Path, start: int, count: int) -> list[tuple[str, str, str]]:
    """Write cells as PNG, a thousand to a folder; returns the rows of their manifest."""
    rows = []
    for number, pixels in zip(range(start, start + count), pictures(start, count), strict=True):
        path = f"{number // 1000:04}/{number:07}.png"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if number % AGAIN == AGAIN - 1:
            pixels = np.clip(pictures(number - AGAIN // 2, 1)[0] * 1.05, 0, 255).astype(np.uint8)
            path = path.replace(".png", ".jpg")
            Image.fromarray(pixels).save(folder / path, quality=90)
        else:
            Image.fromarray(pixels).save(folder / path, compress_level=1)
        rows.append((path, CLASSES[int(np.random.default_rng([8, number]).integers(5))], f"patient-{number // GROUP}"))
    return rows


def make(folder: Path, start: int, count: int) -> Path:
    """A manifest of `count` cells from number `start` on, with its images; what is there stays."""
    manifest = folder / f"cells-{start}-{count}.csv"
    if not manifest.exists():
        parts = range(start, start + count, AT_A_TIME)
        sizes = [min(AT_A_TIME, start + count - part) for part in parts]
        with ProcessPoolExecutor() as pool:
            rows = [row for part in pool.map(write_pictures, [folder] * len(parts), parts, sizes) for row in part]
        unfinished = manifest.with_suffix(".new")
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "label", "group"), *rows])
        unfinished.rename(manifest)
    return manifest


# --- steps: each is run in a process of its own ----------------------------------------------------------------------------


def ingest(workspace: Path, manifest: Path) -> Callable[[], object]:
    from wbc_model.cells import ingest as module
    from wbc_model.params import read_params

    def first_query(*_: object) -> pd.DataFrame:
        raise SystemExit("the first labels are drawn at random in this study")

    params = read_params(workspace / "params.yaml")
    return lambda: module.ingest(manifest, workspace / "data", params, first_query=first_query)


def validate(workspace: Path, manifest: Path) -> Callable[[], object]:
    import great_expectations  # noqa: F401 - loaded before the clock starts

    from flows.pipeline import checks
    from wbc_model.params import read_params

    params = read_params(workspace / "params.yaml")
    return lambda: checks.validate(workspace, params)


def decode(workspace: Path, manifest: Path) -> Callable[[], object]:
    from flows.pipeline.stages import decoded_cells
    from wbc_model.cells.pools import Pools

    return lambda: decoded_cells(workspace, SIZE, "whole").prepare(
        pd.concat([frame["sha256"] for frame in Pools.read(workspace / "data/pools").frames.values()], ignore_index=True)
    )


def query(workspace: Path, manifest: Path) -> Callable[[], object]:
    from flows.pipeline.stages import decoded_cells, usable_pools
    from wbc_model.acquisition.query import Question
    from wbc_model.acquisition.query import query as query_pool

    model = _untrained(workspace.parent / "model")

    def ask() -> object:
        pools, decoded = usable_pools(workspace), decoded_cells(workspace, SIZE, "whole")
        how = Question("entropy", 1000, seed=0, autocast=True)
        return query_pool(model, decoded, pools.frames["unlabelled"], how, pools.frames["labelled"])

    return ask


def version(workspace: Path, manifest: Path) -> Callable[[], object]:
    from wbc_model.cells.pools import Pools

    return lambda: Pools.read(workspace / "data/pools").version()


def labels(workspace: Path, manifest: Path) -> Callable[[], object]:
    from flows.labels import import_labels
    from wbc_model.cells.pools import Pools

    asked = Pools.read(workspace / "data/pools").frames["unlabelled"]["sha256"]
    file = workspace / "labels.csv"
    asked[::LABELS].to_frame().assign(label=CLASSES[0]).to_csv(file, index=False)
    del asked
    return lambda: import_labels(workspace, file, cycle=1, annotator="study")


STEPS: Final = {step.__name__: step for step in (ingest, validate, decode, query, version, labels)}
ADDED: Final = ("ingest", "validate", "decode", "version")


def _untrained(folder: Path) -> Path:
    """A model directory whose network has learned nothing: a step's cost does not depend on what it knows."""
    import torch

    from wbc_model.core.model_card import Architecture, ModelCard, Normalisation
    from wbc_model.network.model_directory import save_model
    from wbc_model.network.resnet import MEAN, STD, AttentionResNet18

    if not folder.exists():
        torch.manual_seed(0)
        architecture = Architecture(attention="cbam", lossnet=True)
        card = ModelCard(version="", input_size=SIZE, normalisation=Normalisation(mean=MEAN, std=STD), architecture=architecture)
        save_model(folder, AttentionResNet18("cbam", lossnet=True), card)
    return folder


def run(step: str, workspace: Path, manifest: Path) -> None:
    """What a step's process does; prints what it measured as JSON."""
    work = STEPS[step](workspace, manifest)
    wall, processors = time.perf_counter(), time.process_time()
    work()
    measured = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - processors}
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent before the exec too
    print(json.dumps(measured | {"peak_mb": int(status.split("VmHWM:")[1].split()[0]) / 1024}))


# --- the table ----------------------------------------------------------------------------------------------------------


def measure(folder: Path, sizes: list[int], added: int, steps: list[str]) -> Iterator[dict[str, Any]]:
    """These steps for every size, and for the cells that are added to the largest."""
    for size in sizes:
        workspace = folder / f"workspace-{size}"
        for step in steps:
            yield {"cells": size, "step": step, "of": size} | once(step, workspace, partial(make, folder / "images", 0, size))
    workspace = folder / f"workspace-{sizes[-1]}"
    for step in [step for step in ADDED if step in steps] if added else []:
        name = f"add {added}: {step}"
        found = once(step, workspace, partial(make, folder / "images", sizes[-1], added), f"added-{added}-{step}")
        yield {"cells": sizes[-1], "step": name, "of": added} | found


def once(step: str, workspace: Path, manifest: Callable[[], Path], name: str = "") -> dict[str, float]:
    """Run a step, unless it was measured here before."""
    kept = workspace / f"measured-{name or step}.json"
    if not kept.exists():
        workspace.mkdir(parents=True, exist_ok=True)
        text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("initial: colours", "initial: random")
        (workspace / "params.yaml").write_text(text, encoding="utf-8")
        command = [sys.executable, __file__, "--step", step, "--workspace", str(workspace), "--manifest", str(manifest())]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=WAITING | os.environ)
        kept.write_text(answer.stdout.splitlines()[-1], encoding="utf-8")
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds per 1,000 cells of each step, the ratio of the processors' to the smallest size, and kB of memory for each cell
    more."""
    rows = rows.assign(per_1000=1000 * rows["seconds"] / rows["of"], cpu_per_1000=1000 * rows["cpu_seconds"] / rows["of"])
    first = rows.drop_duplicates("step").set_index("step")
    more = rows["cells"] - rows["step"].map(first["cells"])
    rows["times"] = rows["cpu_per_1000"] / rows["step"].map(first["cpu_per_1000"])
    rows["kb_a_cell"] = 1024 * (rows["peak_mb"] - rows["step"].map(first["peak_mb"])) / more.where(more > 0)
    return rows


def write(rows: pd.DataFrame, out: Path) -> None:
    """The table as CSV and Markdown, and its plot."""
    out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(out / "growing.csv", index=False, float_format="%.4f")
    lines = ["| cells | step | s per 1,000 | CPU s per 1,000 | times the smallest's CPU | peak MB | kB per cell more |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows.itertuples():
        more = "" if np.isnan(row.kb_a_cell) else f"{row.kb_a_cell:.2f}"
        times = f"{row.per_1000:.3f} | {row.cpu_per_1000:.3f} | {row.times:.2f}"
        lines.append(f"| {row.cells:,} | {row.step} | {times} | {row.peak_mb:,.0f} | {more} |")
    (out / "growing.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(rows[rows["cells"] == rows["of"]], out / "growing.png")


def plot(rows: pd.DataFrame, path: Path) -> None:
    """Processor seconds per 1,000 cells and peak memory over the number of cells, a line per step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    shown = (("cpu_per_1000", "processor seconds per 1,000 cells"), ("peak_mb", "peak memory (MB)"))
    for axis, (column, label) in zip(axes, shown, strict=True):
        for step, of_step in rows.groupby("step", sort=False):
            axis.plot(of_step["cells"], of_step[column], marker="o", label=step)
        axis.set(xscale="log", yscale="log", xlabel="cells", ylabel=label)
    axes[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--added", type=int, default=10_000, help="cells that are added to the largest size")
    parser.add_argument("--folder", type=Path, required="--step" not in sys.argv, help="where images and workspaces go")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--out", type=Path, default=OUT)
    for hidden in ("--step", "--workspace", "--manifest"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run(arguments.step, Path(arguments.workspace), Path(arguments.manifest))
        return
    rows = []
    for row in measure(arguments.folder, sorted(arguments.cells), arguments.added, arguments.steps):
        rows.append(row)
        speed = f"{1000 * row['seconds'] / row['of']:8.3f} s per 1,000"
        print(f"{row['cells']:>9,} {row['step']:<22} {speed} {row['peak_mb']:8,.0f} MB", flush=True)
        write(table(pd.DataFrame(rows, columns=COLUMNS)), arguments.out)


if __name__ == "__main__":
    main()
