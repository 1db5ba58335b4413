"""`wbc demo`: the whole loop, small, on rendered cells, in a workspace of its own; then one real HTTP request."""

import json
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Final

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
    "data.initial_share": 0.15,
    "presets.small.batch_size": 32,
    "presets.small.updates": 60,
    "presets.small.precision": "32-true",
    "train.eval_every": 20,
    "few_labels.below": 0,  # pseudo-labels would double the minutes
    "retrain.until": 0.5,
    "retrain.cycles": 2,
    **{f"gate.recall_floor.{name}": 0.5 for name in CLASSES},  # a dozen test cells of a rare class measure its recall badly
}
_START_SECONDS: Final = 60


def demo(directory: Path | None) -> dict[str, Any]:
    """Run the demo in `directory` (a new temporary folder by default); returns the outcome and the service's answer."""
    from flows.retraining.run import outcome_text, retrain

    progress = Progress()
    start = time.monotonic()
    workspace = init_workspace(directory or Path(tempfile.mkdtemp(prefix="wbc-demo-"))).workspace
    if not Pools.exist(workspace / "data/pools"):
        set_params(workspace, SMALL)
    progress.say(f"workspace {workspace}: rendered cells, not real; its figures say nothing about real blood")
    outcome = retrain(workspace, {}, commit=False)
    progress.say(outcome_text(outcome))
    promoted = (workspace / "models/champion").is_dir()
    model = workspace / ("models/champion" if promoted else "models/candidate")
    progress.say(f"serving the {'champion' if promoted else 'candidate, as there is no champion yet'}, one request:")
    answer = ask(workspace, model)
    return {**outcome.to_dict(), "model": str(model), "answer": answer, "seconds": round(time.monotonic() - start, 1)}


def ask(workspace: Path, model: Path) -> dict[str, Any]:
    """Serve a model on a free loopback port, have it classify one cell of the test pool over HTTP, stop it again."""
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
        _await_ready(port, server, log)
        return _post(port, _test_cell(workspace), key)
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _test_cell(workspace: Path) -> bytes:
    sha256 = str(Pools.read(workspace / "data/pools").frames["test"]["sha256"].iloc[0])
    return next(iter(ImageStore(workspace / "data/images").read([sha256])))[1]


def _await_ready(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise WbcError(f"the service did not start: see {log}")


def _post(port: int, image: bytes, key: str) -> dict[str, Any]:
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="cell.png"\r\nContent-Type: image/png\r\n\r\n'
    )
    body = head.encode() + image + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", HEADER: key}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/classify", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - our own http://127.0.0.1
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        raise WbcError(f"the service answered {error.code}: {error.read().decode(errors='replace')[:500]}") from None
