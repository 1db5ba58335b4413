"""What it costs to compare new cells with many real ones: processor seconds of each step, the pairs left after it, and memory.

    python studies/near_duplicates.py DATA/pbc.csv [--old 100000 300000 1000000] [--added 10000]

Real cells are alike as drawn ones are not, and their number is what a search must bear. A million of them are not to be had. So
each cell of the manifest is turned and mirrored: eight that are none of each other's near-duplicates. One of seven cells is set
aside, and what is made of it is new. What is made of the others is there already, repeated until there are enough. Those that
are there are not compared with each other, so that repeating them changes no cost. The rows go to studies/near_duplicates/.
"""

import argparse
import csv
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wbc_model.checks import near_duplicates as module
from wbc_model.checks.near_duplicates import alike
from wbc_model.checks.quality import ViewFiles, measure
from wbc_model.checks.sketches import agreeing
from wbc_model.core.twins import BITS, CORRELATION, VIEW, Crops, find_landmarks, perceptual_hashes

OUT: Final = Path(__file__).parent / "near_duplicates"
ASIDE: Final = 7  # one cell of so many is new
SECONDS: Final = ("search_s", "sketches_s", "laid_over_s", "cpu_s")  # of the processor
COLUMNS: Final = ("old", "added", "landmark_pairs", "crop_pairs", "pairs", *SECONDS, "peak_mb")


class Cells:
    """Views, landmarks and hashes of cells, turned and mirrored."""

    def __init__(self, views: NDArray[np.uint8]) -> None:
        turned = [np.rot90(one, quarter) for view in views for one in (view, view.T) for quarter in range(4)]
        self.views = np.ascontiguousarray(turned)
        landmarks = [find_landmarks(view.astype(np.float32)) for view in self.views]
        hashes = [perceptual_hashes(view.astype(np.float32), of) for view, of in zip(self.views, landmarks, strict=True)]
        self.counts = np.array([len(of) for of in landmarks], np.int64)
        self.landmarks, self.hashes = np.concatenate(landmarks), np.concatenate(hashes)

    def __len__(self) -> int:
        return len(self.views)

    def repeated(self, count: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint64]]:
        """`count` cells in turn: their rows here, how many landmarks each has, these, and the hashes."""
        rows = np.arange(count, dtype=np.int32) % len(self)
        counts = self.counts[rows]
        starts = np.cumsum(self.counts) - self.counts
        places = np.repeat(starts[rows] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        return rows, counts, self.landmarks[places], self.hashes[places]


def read_views(manifest: Path) -> NDArray[np.uint8]:
    """The views of a manifest's cells, uint8 (n, VIEW, VIEW)."""
    paths = pd.read_csv(manifest)["path"]
    data = b"".join(measure((manifest.parent / path).read_bytes())["view"] for path in paths)
    return np.frombuffer(data, np.uint8).reshape(-1, VIEW, VIEW)


def crops_of(old: Cells, new: Cells, counts: tuple[int, int], folder: Path) -> Crops:
    """So many old cells and new ones as crops, whose views lie in files."""
    files = (folder / "old.parquet", folder / "new.parquet")
    parts = [cells.repeated(count) for cells, count in zip((old, new), counts, strict=True)]
    for cells, path in zip((old, new), files, strict=True):
        path.with_suffix(".views").write_bytes(cells.views.tobytes())
    rows, landmarks_of, landmarks, hashes = (np.concatenate(column) for column in zip(*parts, strict=True))
    views = ViewFiles(files, np.repeat(np.arange(2, dtype=np.int32), counts), rows)
    return Crops(views, landmarks, hashes, landmarks_of, np.full((len(rows), 2), 360.0))


def compare(crops: Crops, new: NDArray[np.bool_]) -> dict[str, Any]:
    """What comparing the new crops with all costs, step by step."""
    spent = {"sketches_s": 0.0, "landmark_pairs": 0, "crop_pairs": 0, "search_s": 0.0}
    gathered = module._gathered

    def sketched(crops: Crops, first: Any, *more: Any) -> Any:
        start = time.process_time()
        found = agreeing(crops, first, *more)
        spent["sketches_s"] += time.process_time() - start
        spent["landmark_pairs"] += len(first)
        spent["crop_pairs"] += len(found)
        return found

    def searched(pairs: Any) -> Iterator[Any]:
        found = gathered(pairs)
        while True:
            start = time.process_time()
            some = next(found, None)
            spent["search_s"] += time.process_time() - start
            if some is None:
                return
            yield some

    start = time.process_time()
    with mock.patch.multiple(module, agreeing=sketched, _gathered=searched):
        pairs = alike(crops, BITS, CORRELATION, new)
    whole = time.process_time() - start
    rest = whole - spent["sketches_s"] - spent["search_s"]
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    return spent | {"pairs": len(pairs), "laid_over_s": rest, "cpu_s": whole, "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("manifest", type=Path, help="a manifest of real cells of one size")
    parser.add_argument("--old", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--added", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    views = read_views(arguments.manifest)
    aside = np.arange(len(views)) % ASIDE == 0
    old, new = Cells(views[~aside]), Cells(views[aside])
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in sorted(arguments.old):
            crops = crops_of(old, new, (count, arguments.added), Path(folder))
            row = {"old": count, "added": arguments.added} | compare(crops, np.arange(count + arguments.added) >= count)
            rows.append({name: round(row[name], 1) for name in COLUMNS})
            print("  ".join(f"{name} {value:,}" for name, value in rows[-1].items()), flush=True)
            with (arguments.out / "near_duplicates.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows(itertools.chain([COLUMNS], (row.values() for row in rows)))


if __name__ == "__main__":
    main()
