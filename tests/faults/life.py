"""A day in a workspace, and the processes that a fault is put to."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from flows.labels import import_labels
from flows.workspace import STORE, init_workspace, set_params
from serving.reports.review import Action, sign
from serving.reports.store import Store, sqlite_url
from tests.pools import ingest
from wbc_model.cells.pools import Pools
from wbc_model.core.classes import CLASSES
from wbc_model.params import read_params
from wbc_model.rendering.cells import write_cells

ROOT: Final = Path(__file__).parents[2]
IDENTITY: Final = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
CELLS: Final = 130
TINY: Final = {
    "presets.small.image_size": 32,
    "presets.small.batch_size": 8,
    "presets.small.updates": 8,
    "presets.small.precision": "32-true",
    "train.eval_every": 2,
    "data.initial_share": 0.3,
    "retrain.until": 0.3,  # nothing to ask for: one training
    "retrain.cycles": 1,
    "package.int8": False,
    "gate.max_recall_drop": 1.0,
    "gate.max_accuracy_drop": 1.0,
    "gate.alpha": 0.0,  # whatever is trained becomes the champion: so there is a promotion for a fault to come into
    **{f"gate.recall_floor.{name}": 0.0 for name in CLASSES},
}
NEXT: Final = ("--until", "0.6", "--cycles", "1", "--commit")  # a retraining that has labels to ask for


def environment() -> dict[str, str]:
    """The tests' own, without a Prefect server of the user's; one thread a process, and somebody who commits."""
    values = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    return values | IDENTITY | {"OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    """A `wbc` command line."""
    return [sys.executable, "-m", "flows.cli", *arguments]


def wbc(workspace: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in the workspace, with `more` in its environment."""
    values = environment() | more
    return subprocess.run(command(*arguments), cwd=workspace, env=values, capture_output=True, text=True, check=False)


def succeeds(workspace: Path, *arguments: str, **more: str) -> str:
    """What a command says that comes to its end."""
    done = wbc(workspace, *arguments, **more)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def is_refused(workspace: Path, *arguments: str, **more: str) -> str:
    """The one line with which a command ends, and nothing of a traceback before it."""
    done = wbc(workspace, *arguments, **more)
    assert done.returncode == 1, (done.returncode, done.stderr[-4000:])
    return line_of(done.stderr)


def line_of(said: str) -> str:
    """The last line of stderr, which says why; there is only one like it."""
    assert "Traceback" not in said, said[-4000:]
    lines = [line for line in said.splitlines() if line.startswith("wbc: error: ")]
    assert len(lines) == 1, said[-4000:]
    assert said.splitlines()[-1] == lines[0]
    return lines[0].removeprefix("wbc: error: ")


def live(workspace: Path) -> Path:
    """Make the workspace, retrain once, let a person name two cells, and keep two reports, one of them signed."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in IDENTITY.items():
            patch.setenv(name, value)
        init_workspace(workspace)
    set_params(workspace, TINY)
    data = write_cells(workspace / ".wbc/rendered", CELLS, seed=0, size=64)
    ingest(data, workspace / "data", read_params(workspace / "params.yaml"), source="rendered")
    succeeds(workspace, "retrain", "--commit")
    succeeds(workspace, "labels", "import", str(two_labels(workspace)))
    keep_two_reports(sqlite_url(workspace / STORE))
    return workspace


def settle(workspace: Path) -> Path:
    """Make a workspace without a training: cells of noise, a champion made by hand, labels of a person, and two reports."""
    from tiny_model import write_model

    ingest(noise(workspace.parent / "cells", 0, 25), workspace / "data", read_params(ROOT / "params.yaml"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, workspace)
    write_model(workspace / "models/champion")
    import_labels(workspace, two_labels(workspace), cycle=1)
    keep_two_reports(sqlite_url(workspace / STORE))
    return workspace


def noise(folder: Path, first: int, last: int) -> Path:
    """A manifest of cells of noise, of any number of which most are to be learned from."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(first, last):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append([f"{number}.png", CLASSES[number % 5], "train" if number % 25 < 20 else "val" if number % 2 else "test"])
    path = folder / f"manifest-{first}.csv"
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(path, index=False)
    return path


def two_labels(workspace: Path, by: str = "Dr. Ada") -> Path:
    """A file with a person's labels for two cells that wait for one; it lies beside the workspace."""
    cells = sorted(Pools.read(workspace / "data/pools").frames["unlabelled"]["sha256"])[:2]
    file = workspace.parent / "labels.csv"
    file.write_text("sha256,label,labelled_by\n" + "".join(f"{cell},Monocyte,{by}\n" for cell in cells))
    return file


def keep_two_reports(url: str) -> str:
    """Put a signed report and an open one into a store; the id of the open one. That is counted by the settings which services of
    the tests have: their start counts an open report again that was counted by others."""
    from specimens import PERSON, reported, site

    from serving.contract.site import read_site

    store = Store.open(url)
    sign(store, Action(reported(store), PERSON, 1), site())
    opened = reported(store, read_site())
    store.close()
    return opened


# --- a retraining that is under way ---------------------------------------------------------------------------------------


class Retraining:
    """`wbc retrain` in a process of its own, which is watched from outside."""

    def __init__(self, workspace: Path, *arguments: str, **more: str) -> None:
        descriptor, name = tempfile.mkstemp(prefix="wbc-said-")  # not beside the workspace: that disk may be full
        os.close(descriptor)
        self.said = Path(name)
        with self.said.open("w") as said:
            line, values = command("retrain", "--json", *arguments), environment() | more
            self.process = subprocess.Popen(
                line, cwd=workspace, env=values, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
            )

    def reaches(self, stage: str, seconds: float = 300) -> None:
        """Wait until a child of the flow runs this stage."""
        deadline = time.monotonic() + seconds
        while not self._is_in(stage):
            assert self.process.poll() is None, f"it ended before {stage}: {self.said.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"no {stage} in {seconds} s: {self.said.read_text()[-3000:]}"
            time.sleep(0.02)

    def _is_in(self, stage: str) -> bool:
        for child in self._children():
            with contextlib.suppress(psutil.Error):
                if child.cmdline()[-1:] == [stage] and "dvc" not in child.cmdline():
                    return True
        return False

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def is_killed(self) -> None:
        """SIGKILL; nothing that it started is left after a while."""
        children = self._children()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        _, left = psutil.wait_procs(children, timeout=60)
        assert not left, [child.cmdline() for child in left]

    def __enter__(self) -> "Retraining":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.is_killed()
        self.said.unlink()


def outcome(workspace: Path) -> dict[str, Any]:
    """What the last retraining came to."""
    found: dict[str, Any] = json.loads((workspace / ".wbc/retrain.json").read_text())
    return found


# --- disks ------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, of so many bytes; skips where none can be mounted."""
    folder.mkdir()
    if os.geteuid() or not mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mounted(*arguments: str) -> bool:
    """Whether a mount succeeds."""
    return not subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode
