"""Each command of README's code blocks is run as it stands there, and what README shows is what comes out."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from live import free_port
from PIL import Image
from tiny_model import write_model

from flows.cli.demo import demo_text
from wbc_model.rendering.cells import render_cells

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
INSTALL, ACTIVATED, DEMO, CELLS, TRAINING, NOWHERE = "install", "activated", "demo", "cells", "training", "nowhere"

# Where each command is run. CELLS are run in one shell, in README's order; a TRAINING takes minutes, and the fast run of the
# shell puts a small model in its place.
RUN = {
    "make install": INSTALL,  # by `.ci/run`, in a clean clone
    "source .venv/bin/activate": ACTIVATED,
    "make demo": DEMO,
    "wbc init ../site && cd ../site": CELLS,
    "wbc ingest ../cells.csv": CELLS,
    "wbc retrain --until 0.28 --commit": TRAINING,
    "wbc status": CELLS,
    "wbc serve": CELLS,
    "wbc keys add ward-3 --scope classify": CELLS,
    'curl -H "X-API-Key: $KEY" -F images=@cell1.jpg -F images=@cell2.png http://127.0.0.1:3000/v1/classify': CELLS,
    "docker build -t wbc .": NOWHERE,  # there is no Docker engine here; tests/service/test_bento.py carries its steps out
}
QUICK = {"image_size": 32, "updates": 60, "batch_size": 32, "precision": "32-true"}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def _commands() -> Iterator[str]:
    for block in _blocks("sh"):
        for line in block.splitlines():
            if command := re.sub(r"(^|\s+)#.*", "", line).strip():
                yield command
    yield from re.findall(r"`(docker [^`]*)`", README)


def _bash(script: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script; `wbc` is the one of this interpreter, and nothing of the caller's settings comes through."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WBC_", "PREFECT_", "VIRTUAL_ENV"))}
    return subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=cwd, env=kept | more, capture_output=True, text=True)


def _shape(value: Any) -> Any:
    """An answer without its values: what README shows and what comes out are the same in this."""
    if isinstance(value, dict):
        return {name: _shape(entry) for name, entry in value.items()}
    return [_shape(entry) for entry in value] if isinstance(value, list) else type(value).__name__


def test_each_command_of_the_readme_is_run_somewhere() -> None:
    assert list(dict.fromkeys(_commands())) == list(RUN)
    assert "make test" in (ROOT / ".ci/run").read_text(), "which installs first"


@pytest.mark.skipif(not (ROOT / ".venv/bin/activate").exists(), reason="there is no .venv: `make install` makes it")
def test_after_activation_the_commands_are_found() -> None:
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if ".venv" not in part)
    done = _bash("source .venv/bin/activate\ncommand -v wbc dvc mlflow prefect\nwbc --version", ROOT, PATH=path)
    assert done.returncode == 0, done.stderr
    *found, version = done.stdout.split()
    assert [Path(name).parent for name in found] == [ROOT / ".venv/bin"] * 4
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def _own_cells(folder: Path, count: int) -> None:
    """A person's cells beside the clone, and the two files that are posted: an image and a text."""
    (folder / "clone").mkdir()
    (folder / "cells").mkdir()
    rows = []
    for number, cell in enumerate(render_cells(count, seed=3, size=64)):
        Image.fromarray(np.asarray(cell.pixels)).save(folder / f"cells/{number}.png")
        rows.append((f"cells/{number}.png", cell.label))
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(folder / "cells.csv", index=False)
    Image.open(folder / "cells/0.png").save(folder / "cell1.jpg")
    (folder / "cell2.png").write_text("no image")


def _of_cells(folder: Path, training: str) -> dict[str, Any]:
    """Run README's commands on one's own cells in one shell; `training` is run before the first retraining, or in its place.
    Returns the service's answer. Only the port is different, as 3000 may be taken, and `wbc serve` is sent to the background."""
    port = free_port()
    lines = []
    for command in (one for one in _commands() if RUN.get(one) in (CELLS, TRAINING)):
        if RUN[command] == TRAINING:
            lines += training.replace("COMMAND", command).splitlines()
        elif command == "wbc serve":
            lines += [f"{command} --port {port} > serve.log 2>&1 &", "trap 'kill $!; wait $! || true' EXIT"]
            ready = f"curl --silent --fail --output /dev/null http://127.0.0.1:{port}/readyz"
            lines.append(f"until {ready}; do kill -0 $!; sleep 0.2; done")
        elif command.startswith("wbc keys add"):
            lines.append(f"KEY=$({command} | sed -n 1p)")
        elif command.startswith("curl "):
            lines += ["cp ../cell1.jpg ../cell2.png .", command.replace("3000", str(port)).replace("curl", "curl --silent")]
        else:
            lines.append(f"{{ {command}; }} >&2")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = _bash("\n".join(lines), folder / "clone", PATH=path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_ones_own_cells_are_taken_in_and_the_service_answers_as_shown(tmp_path: Path) -> None:
    _own_cells(tmp_path, 30)
    write_model(tmp_path / "model")
    answer = _of_cells(tmp_path, "mkdir -p models; cp -r ../model models/champion")
    (shown,) = map(json.loads, _blocks("json"))
    assert _shape(answer) == _shape(shown)
    assert answer["results"][1]["problem"] == shown["results"][1]["problem"]


@pytest.mark.slow
def test_the_retraining_too(tmp_path: Path) -> None:
    _own_cells(tmp_path, 300)
    small = "; ".join(f"s/^    {name}: .*/    {name}: {value}/" for name, value in QUICK.items())
    floors = "s/: 0.8/: 0.0/g"
    answer = _of_cells(tmp_path, f"sed -i '{small}; {floors}; s/  below: 500 /  below: 0 /' params.yaml\n{{ COMMAND; }} >&2")
    assert answer["results"][0]["status"] == "ok"
    tags = subprocess.run(["git", "tag"], cwd=tmp_path / "site", capture_output=True, text=True, check=True).stdout.split()
    assert "pools-v1" in tags


def test_the_demo_ends_with_what_to_do_next() -> None:
    result = {
        "workspace": "/srv/a demo",
        "model": "models/candidate",
        "answer": {"results": [{"probabilities": {"Basophil": 0.123456789}, "predicted_loss": -1}]},
        "specimen": "specimen",
        "pictures": ["plots/confusion.png"],
        "seconds": 99.9,
    }
    answer, rest = demo_text(result).split("done in 100 s")
    assert json.loads(answer) == {"results": [{"probabilities": {"Basophil": 0.1235}, "predicted_loss": -1}]}
    assert "cd '/srv/a demo'" in rest
    assert "wbc serve --model models/candidate" in rest, "there is no champion"
    assert [word in rest for word in ("http://127.0.0.1:3000/", "specimen/", "plots/confusion.png")] == [True] * 3


@pytest.mark.slow
def test_the_demo_says_what_the_readme_shows(tmp_path: Path) -> None:
    done = _bash("make --old-file=.venv/.installed demo", ROOT, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    said = (done.stderr + done.stdout).splitlines()
    long = [line for line in said if len(line.strip()) > 20]
    assert len(long) == len(set(long)), "no line comes twice"
    (shown,) = _blocks("text")
    alike = {_figureless(line) for line in said}
    assert [line for line in shown.splitlines() if line.strip() != "..." and _figureless(line) not in alike] == []
    workspace = next(tmp_path.glob("wbc-demo-*"))
    assert len(list((workspace / "specimen").iterdir())) > 100
    assert all((workspace / name).exists() for name in re.findall(r"[\w/]+\.(?:png|html)", said[-1]))
    shutil.rmtree(workspace)


def _figureless(line: str) -> str:
    line = re.sub(r"/\S*wbc-demo-\w+", "FOLDER", line)
    return re.sub(r"\s+", " ", re.sub(r"\d+(\.\d+)?", "#", line)).strip()
