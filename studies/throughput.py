"""How much of the bare network's speed training and scoring keep, and whether scoring's memory grows with the pool.

    python studies/throughput.py [--preset small] [--rounds 12]

All is measured side by side in one run, in alternating blocks. So the machine's drift falls on both sides. A training update
(batch, augmentation, LossNet, hard samples) stands against the same network, loss and optimizer on one random tensor. Scoring
stored cells in a stream stands against the bare forward pass. The cells are rendered, since speed does not depend on the
picture.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from wbc_model.acquisition.query import BATCH, score_pool
from wbc_model.acquisition.queue import first_query
from wbc_model.cells.decoded import DecodedCells
from wbc_model.cells.ingest import ingest
from wbc_model.cells.pools import Pools
from wbc_model.cells.store import ImageStore
from wbc_model.network.lossnet import ranking_loss
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.params import Params, read_params
from wbc_model.rendering.cells import write_cells
from wbc_model.training.labelled import LabelledCells
from wbc_model.training.train import Training

ROOT = Path(__file__).parents[1]


def stored_cells(folder: Path, params: Params, count: int) -> tuple[DecodedCells, Pools]:
    """Rendered cells, ingested and decoded."""
    manifest = write_cells(folder / "rendered", count, seed=0)
    ingest(manifest, folder / "data", params, "rendered", first_query=first_query)
    decoded = DecodedCells(ImageStore(folder / "data/images"), folder / ".wbc/decoded", params.size.image_size, params.model.view)
    return decoded, Pools.read(folder / "data/pools")


def bare_update(training: Training) -> Callable[[], None]:
    """One update of a second network of the same kind on one random batch."""
    params = training.params
    torch.manual_seed(0)
    network = AttentionResNet18(params.model.attention, params.model.lossnet, norm=params.model.norm).to(training.fabric.device)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    shape = params.size.batch_size, 3, params.size.image_size, params.size.image_size
    images = torch.rand(shape, device=training.fabric.device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 5, shape[:1], device=training.fabric.device)
    bf16 = params.size.precision == "bf16-mixed"

    def update() -> None:
        with torch.autocast(training.fabric.device.type, torch.bfloat16, enabled=bf16):
            output = network(images, lossnet_gradient=params.train.lossnet_gradient_share > 0)
        each = F.cross_entropy(output.logits.float(), labels, reduction="none")
        loss = each.mean()
        if network.lossnet is not None:
            loss = loss + ranking_loss(output.predicted_loss, each)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return update


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(ours: Callable[[], None], bare: Callable[[], None], rounds: int) -> dict[str, float]:
    """Median over the rounds of bare time / our time, after one round that is not counted, with its range."""
    pairs = [(seconds(ours), seconds(bare)) for _ in range(rounds + 1)][1:]
    ratios = [b / a for a, b in pairs]
    return {
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "seconds": statistics.median(a for a, _ in pairs),
        "bare_seconds": statistics.median(b for _, b in pairs),
    }


def training_speed(params: Params, decoded: DecodedCells, pools: Pools, folder: Path, rounds: int) -> dict[str, float]:
    """Images per second of a training update, as a share of the bare update's."""
    labelled = pools.frames["labelled"]
    cells = LabelledCells.load(decoded, labelled["sha256"].tolist(), labelled["label"].tolist())
    training = Training.of_pools(params, cells, cells, folder / "checkpoint")
    training.network.train()
    training.weights = torch.ones(len(cells.labels))
    bare, updates = bare_update(training), 5
    first = training.plan.hard_start  # from here on, batches hold hard samples too

    def ours() -> None:
        for update in range(first, first + updates):
            training.step(update)

    result = alternate(ours, lambda: [bare() for _ in range(updates)] and None, rounds)
    return {**result, "images_per_second": updates * params.size.batch_size / result["seconds"]}


def scoring_speed(params: Params, decoded: DecodedCells, pools: Pools, rounds: int) -> dict[str, float]:
    """Cells per second of scoring from the store, as a share of the bare forward pass over one random batch."""
    sha256s = pools.frames["unlabelled"]["sha256"].tolist()
    sha256s = sha256s[: 5 * BATCH]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = AttentionResNet18(params.model.attention, params.model.lossnet, norm=params.model.norm).to(device).eval()
    network.to(memory_format=torch.channels_last)
    size, bf16 = params.size.image_size, params.size.precision == "bf16-mixed"
    images = torch.rand(BATCH, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)

    def bare() -> None:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            for _ in range(len(sha256s) // BATCH):
                network(images)

    result = alternate(lambda: score_pool(network, decoded, sha256s, bf16) and None, bare, rounds)
    return {**result, "cells_per_second": len(sha256s) / result["seconds"]}


def peak_memory(folder: Path, preset: str, times: int) -> float:
    """Peak resident memory in MiB of a process of its own that scores the unlabelled pool `times` over."""
    command = [sys.executable, __file__, "--preset", preset, "--score", str(folder), "--times", str(times)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(answer.stdout.split()[-1])


def score_once(params: Params, folder: Path, times: int) -> None:
    """What `peak_memory` runs: prints the peak resident memory in MiB."""
    decoded = DecodedCells(ImageStore(folder / "data/images"), folder / ".wbc/decoded", params.size.image_size, params.model.view)
    sha256s = Pools.read(folder / "data/pools").frames["unlabelled"]["sha256"].tolist() * times
    network = AttentionResNet18(params.model.attention, params.model.lossnet, norm=params.model.norm).eval()
    seen = score_pool(network, decoded, sha256s, params.size.precision == "bf16-mixed")
    if not np.isfinite(seen.logits).all():
        raise SystemExit("scoring gave numbers that are not finite")
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent before the exec too
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", choices=("small", "standard", "full"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    params = read_params(ROOT / "params.yaml").model_copy(update={"preset": arguments.preset})
    if arguments.score:
        score_once(params, arguments.score, arguments.times)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        decoded, pools = stored_cells(folder, params, arguments.cells)
        result = {
            "preset": arguments.preset,
            "threads": torch.get_num_threads(),
            "training": training_speed(params, decoded, pools, folder, arguments.rounds),
            "scoring": scoring_speed(params, decoded, pools, arguments.rounds),
            "scoring_peak_mib": {times: peak_memory(folder, arguments.preset, times) for times in (1, 10)},
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
