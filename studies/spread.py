"""What several processes bring: ingest, measuring, decoding and scoring by one and by two, each at one thread, in turns.

    python studies/spread.py [--cells 6000] [--rounds 3] [--workers 2] [--image-size 64]

This process alone (`retrain.runner: local`) stands against a Dask cluster, which is there from the start. Each round does all the
work both ways, in fresh folders. Results are compared: the names of the store's shards, the decoded files and the scores are the
same bits. The cells are drawn. On a machine that does other work at the time the seconds say nothing. The processor time, of
this process and its workers together, says what the cluster costs.
"""

import argparse
import contextlib
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch are loaded, here and in the processes

import torch

from flows.shards.cluster import cluster, connected, on_cluster
from wbc_model.acquisition.query import score_pool
from wbc_model.acquisition.queue import first_query
from wbc_model.cells.decoded import DecodedCells
from wbc_model.cells.ingest import ingest
from wbc_model.cells.store import ImageStore
from wbc_model.checks.quality import measure_store
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.params import Params, RetrainParams, read_params
from wbc_model.rendering.cells import write_cells
from wbc_model.spread import spread_by

ROOT = Path(__file__).parents[1]
SHARD_BYTES = 4_000_000  # a real shard has 256 MB: drawn cells of 6 kB would make one
Times = dict[tuple[str, int], list[float]]  # of a step and a number of processes, round by round
STEPS = ("ingest", "measure", "decode", "score")


def steps(manifest: Path, folder: Path, params: Params, size: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The work, step by step, with what each makes as a name of its bits."""
    store = ImageStore(folder / "data/images")
    torch.manual_seed(0)
    network = AttentionResNet18("cbam", lossnet=True).eval()

    def taken_in() -> str:
        ingest(manifest, folder / "data", params, first_query=first_query)
        return " ".join(shard.name for shard in store.shards())

    def measured() -> str:
        return hashlib.sha256(measure_store(store, folder / "quality").facts.to_csv().encode()).hexdigest()

    def decoded() -> str:
        cells = DecodedCells(store, folder / "decoded", size, "canonical")
        cells.prepare(sorted(store.index()))
        return " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "decoded").iterdir()))

    def scored() -> str:
        cells = DecodedCells(store, folder / "decoded", size, "canonical")
        found = score_pool(network, cells, sorted(store.index()), False, embeddings=True)
        return hashlib.sha256(b"".join(part.tobytes() for part in found)).hexdigest()

    yield from zip(STEPS, (taken_in, measured, decoded, scored), strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--cells", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=64)
    args = parser.parse_args()
    from wbc_model.cells import store as store_module

    store_module.SHARD_BYTES = 256 * 512 + SHARD_BYTES  # type: ignore[misc]
    params = read_params(ROOT / "params.yaml")
    params = params.model_copy(update={"data": params.data.model_copy(update={"initial": "random"})})
    runner = RetrainParams(until=1.0, cycles=1, annotator="oracle", runner="dask")
    seconds: Times = {}
    processor: Times = {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        manifest = write_cells(Path(scratch) / "rendered", args.cells, seed=0)
        client = stack.enter_context(connected(stack.enter_context(cluster(runner, args.workers))))

        def used(count: int) -> float:
            """Seconds of processor time of all processes that work."""
            return time.process_time() + (sum(client.run(time.process_time).values()) if count > 1 else 0)

        for number in range(args.rounds + 1):  # the first is for warming up
            made: dict[int, list[str]] = {}
            for count in sorted((1, args.workers), reverse=bool(number % 2)):
                folder = Path(scratch) / f"{number}-{count}"
                with contextlib.nullcontext() if count == 1 else spread_by(partial(on_cluster, client)):
                    for name, work in steps(manifest, folder, params, args.image_size):
                        before, start = used(count), time.perf_counter()
                        made.setdefault(count, []).append(work())
                        end = time.perf_counter()
                        if number:
                            seconds.setdefault((name, count), []).append(end - start)
                            processor.setdefault((name, count), []).append(used(count) - before)
            if made[1] != made[args.workers]:
                raise SystemExit(f"the results differ: {made}")
    print(f"{args.cells} cells, median of {args.rounds} rounds; the same bits in all of them")
    print(f"{'step':10}{'1 process':>12}{f'{args.workers} processes':>14}{'times':>8}{'processor':>12}{'all':>9}")
    for name in (*STEPS, "all"):
        of = STEPS if name == "all" else (name,)
        one, many, one_used, many_used = (_median(kind, of, n) for kind in (seconds, processor) for n in (1, args.workers))
        print(f"{name:10}{one:>11.2f}s{many:>13.2f}s{one / many:>8.2f}{one_used:>11.2f}s{many_used:>8.2f}s")


def _median(seconds: Times, names: Sequence[str], count: int) -> float:
    """Of the rounds' sums over these steps."""
    return statistics.median(map(sum, zip(*(seconds[name, count] for name in names), strict=True)))


if __name__ == "__main__":
    main()
