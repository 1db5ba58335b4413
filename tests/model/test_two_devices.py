"""Training on two devices: two real processes on the CPU, through the stage."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
import yaml

from flows.pipeline import stages
from tests.model.conftest import ROOT, tiny_params
from tests.pools import ingest
from wbc_model.network.model_directory import load_model
from wbc_model.params import read_params
from wbc_model.rendering.cells import write_cells
from wbc_model.training.labelled import LabelledCells
from wbc_model.training.train import Training

Rows = list[dict[str, Any]]


def set_devices(workspace: Path, devices: int) -> None:
    document = tiny_params(
        devices=devices, eval_every=4, learning_rate=0.001, ema=0.5, unlabelled_ratio=1.0, augmentation="both"
    ).model_dump()
    document["presets"]["small"]["updates"] = 20
    document["data"]["initial_share"] = 0.6
    document["few_labels"]["below"] = 0
    (workspace / "params.yaml").write_text(yaml.safe_dump(document))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    set_devices(tmp_path, 2)
    manifest = write_cells(tmp_path / "rendered", 120, seed=0, size=64)
    ingest(manifest, tmp_path / "data", read_params(tmp_path / "params.yaml"))
    return tmp_path


def two_ranks(workspace: Path, *arguments: str) -> int:
    """The exit code of the first rank, after every process that it started has ended."""
    command = [sys.executable, "-m", "tests.model.two_ranks", str(workspace), *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "WBC_"))}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    started: set[psutil.Process] = set()
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        started |= set(psutil.Process(process.pid).children(recursive=True))
        time.sleep(0.2)
    _, left = psutil.wait_procs(started, timeout=10)
    left = [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]  # ended, and not yet fetched
    for one in left:
        one.kill()
    assert started, "no second process was started"
    assert not left, "a rank outlived the first"
    process.kill()
    return process.wait()


def began(workspace: Path) -> list[str]:
    return [(workspace / f"began-{rank}").read_text() for rank in (0, 1)]


def history(workspace: Path, rank: int) -> Rows:
    rows: Rows = json.loads((workspace / f"history-{rank}.json").read_text())
    return rows


@pytest.mark.slow
def test_two_processes_agree_repeat_and_go_on_after_a_kill(workspace: Path):
    model = workspace / "models/candidate"
    assert two_ranks(workspace, "8") == -signal.SIGKILL
    assert not model.exists()
    assert [row["update"] for row in history(workspace, 0)] == [4, 8]

    assert two_ranks(workspace) == 0
    assert began(workspace) == ["8", "8"]  # went on from the checkpoint
    gone_on = (model / "weights.safetensors").read_bytes(), (workspace / "models/history.csv").read_bytes()
    rows = history(workspace, 0)
    assert history(workspace, 1) == rows

    assert two_ranks(workspace) == 0
    assert began(workspace) == ["0", "0"]  # there is no checkpoint any more
    assert ((model / "weights.safetensors").read_bytes(), (workspace / "models/history.csv").read_bytes()) == gone_on
    assert history(workspace, 1) == rows
    assert [path.name for path in (workspace / "models").iterdir() if path.is_dir()] == ["candidate"]
    load_model(model)

    set_devices(workspace, 1)
    stages.train(workspace)
    # other augmentation and other batch statistics, but the same weights to begin with and the same cells in each update
    alone = pd.read_csv(workspace / "models/history.csv")
    for column in ("train_loss", "validation_loss"):
        assert [row[column] for row in rows[:2]] == pytest.approx(alone[column][:2].tolist(), abs=0.35), column


def test_the_ranks_share_a_batch(labelled: LabelledCells, validation: LabelledCells, tmp_path: Path):
    """Together the ranks have the batch of one device, each sample once, and losses come back in its order."""
    training = Training.of_pools(tiny_params(), labelled, validation, tmp_path / "checkpoint")
    training.batches.weights = torch.ones(160)
    whole = training.labelled_batch(5)[2]
    parts = []
    for rank in (0, 1):
        training.fabric = SimpleNamespace(global_rank=rank, world_size=2, device=torch.device("cpu"))  # type: ignore[assignment]
        images, labels, index = training.labelled_batch(5)
        assert len(images) == len(labels) == 8
        assert torch.equal(labels, training.batches.labels[index])
        parts.append(index)
    assert torch.equal(torch.stack(parts, dim=1).flatten(), whole)
