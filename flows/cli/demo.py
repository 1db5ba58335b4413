"""`wbc demo`: the whole loop, small, on rendered cells, in a workspace of its own; then one real HTTP request."""

import json
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import httpx

from flows.guard import FLOW, flow_token
from flows.progress import Progress
from flows.workspace import environment, init_workspace, set_params
from serving.security.keys import HEADER, KEYS
from wbc_model.cells.pools import Pools
from wbc_model.cells.store import ImageStore
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError

SMALL: Final = {
    "data.rendered_cells": 600,
    "data.validation_share": 0.22,  # enough for a differential
    "data.initial_share": 0.15,
    "presets.small.image_size": 32,
    "presets.small.batch_size": 32,
    "presets.small.updates": 60,
    "presets.small.precision": "32-true",
    "train.eval_every": 20,
    "few_labels.below": 0,  # pseudo-labels would double the minutes
    "retrain.until": 0.3,
    "retrain.cycles": 1,
    "package.int8": False,
    **{f"gate.recall_floor.{name}": 0.5 for name in CLASSES},  # a dozen test cells of a rare class measure its recall badly
}
SPECIMEN: Final = "specimen"  # the folder of sample cells, in the workspace
PICTURES: Final = ("reports/learning_curve.png", "plots/confusion.png", "plots/reliability.png", "data/docs/index.html")
_STEPS: Final = 5
_START_SECONDS: Final = 60


def demo(directory: Path | None) -> dict[str, Any]:
    """Run the demo in `directory` (a new temporary folder by default); returns the outcome, the service's answer, the folder of
    sample cells and the pictures that were made. It says each step on stderr."""
    progress = Progress()
    folder = (directory or Path(tempfile.mkdtemp(prefix="wbc-demo-"))).resolve()
    _refuse_cells_of_others(folder)
    try:
        return _run(folder, progress)
    except KeyboardInterrupt:
        if directory is None:  # the same command would begin in another temporary folder
            progress.say(f"`wbc demo {shlex.quote(str(folder))}` goes on with this one")
        raise


def _refuse_cells_of_others(folder: Path) -> None:
    """Raises WbcError where the pools have cells that nobody drew: the demo would train on them, and call them drawn."""
    pools = folder / "data/pools"
    if Pools.exist(pools) and not Pools.read(pools).table()["source"].str.contains("rendered").all():
        raise WbcError(
            f"{folder} has cells that are not drawn, and the demo is of drawn ones: `wbc retrain` there learns from them; "
            "give the demo a new folder"
        )


def _run(folder: Path, progress: Progress) -> dict[str, Any]:
    from flows.retraining.run import retrain

    start = time.monotonic()
    progress.say(f"1 of {_STEPS}: a workspace with git and DVC in {folder}")
    workspace = init_workspace(folder).workspace
    if not Pools.exist(workspace / "data/pools"):
        set_params(workspace, SMALL)
    progress.say(f"2 of {_STEPS}: drawn cells, checked, and two trainings; in between the model asks for labels (minutes)")
    outcome = retrain(workspace, {}, commit=False)
    if outcome.gate:
        word = "promoted" if outcome.gate["promoted"] else "not promoted"
        progress.say(f"3 of {_STEPS}: the gate: {word}: {outcome.gate['reason']}")
    progress.say(f"4 of {_STEPS}: cells to drop on the page, in {SPECIMEN}/")
    cells = _write_specimen(workspace)
    model = next(name for name in ("models/champion", "models/candidate") if (workspace / name).is_dir())
    progress.say(f"5 of {_STEPS}: {model} is served, and asked about {cells[0].name} over HTTP")
    answer = ask(workspace, workspace / model, cells[0])
    pictures = [name for name in PICTURES if (workspace / name).exists()]
    return {
        **outcome.to_dict(),
        "model": model,
        "answer": answer,
        "specimen": SPECIMEN,
        "pictures": pictures,
        "seconds": round(time.monotonic() - start, 1),
    }


def demo_text(result: dict[str, Any]) -> str:
    """The service's answer, and what to do next."""
    serve = "wbc serve" if result["model"] == "models/champion" else f"wbc serve --model {result['model']}"
    return "\n".join(
        [
            json.dumps(_rounded(result["answer"]), indent=2),
            f"done in {result['seconds']:.0f} s; the cells are drawn, and the figures say nothing about real blood",
            "next:",
            f"  cd {shlex.quote(result['workspace'])}",
            f"  {serve:<24} # then open the address that it shows, http://127.0.0.1:3000/ with a key",
            f"  drop the folder {result['specimen']}/ on the page",
            f"  look at {', '.join(result['pictures'])}",
        ]
    )


def ask(workspace: Path, model: Path, cell: Path) -> dict[str, Any]:
    """Serve a model on a free loopback port, have it classify one cell over HTTP, stop it again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = workspace / ".wbc/logs/serve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(port), "--model", str(model)]
    key = secrets.token_urlsafe(32)  # of this one request
    values = {name: value for name, value in environment().items() if not name.startswith("WBC_")}
    values |= {FLOW: flow_token(), KEYS: key}
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=workspace, env=values, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        # No proxy of the environment stands between us and this machine.
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            _await_ready(client, server, log)
            return _classify(client, cell, key)
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _write_specimen(workspace: Path) -> list[Path]:
    """The validation cells as files, for the page: the model has not learned from them, and knows their stains. Each drawn smear
    has a stain of its own: the model would mark those of the test pool as a site that it does not know."""
    folder = workspace / SPECIMEN
    folder.mkdir(exist_ok=True)
    cells = Pools.read(workspace / "data/pools").frames["validation"]["sha256"].tolist()
    written = []
    for number, (_, image) in enumerate(ImageStore(workspace / "data/images").read(cells), 1):
        written.append(folder / f"cell-{number:03d}.png")
        written[-1].write_bytes(image)
    return written


def _await_ready(client: httpx.Client, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if client.get("/readyz").is_success:
                return
        except httpx.TransportError:  # it does not listen yet
            pass
        time.sleep(0.2)
    raise WbcError(f"the service did not start: see {log}")


def _classify(client: httpx.Client, cell: Path, key: str) -> dict[str, Any]:
    files = {"images": (cell.name, cell.read_bytes(), "image/png")}
    answer = client.post("/v1/classify", files=files, headers={HEADER: key})
    if not answer.is_success:
        raise WbcError(f"the service answered {answer.status_code}: {answer.text[:500]}")
    return dict(answer.json())


def _rounded(value: Any) -> Any:
    """The same JSON with four digits after the point."""
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return round(value, 4) if isinstance(value, float) else value
