"""Make a workspace as it was before commit 336762a had successors: run with that commit's code on PYTHONPATH.

    python make_workspace.py DIR

It holds two registered models (the first is the champion), a signed report whose message waits, an open report, an audit log,
keys, labels of the oracle and of a person, and the deployments of a schedule.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

TINY = {
    "presets.small.image_size": 32,
    "presets.small.batch_size": 8,
    "presets.small.updates": 8,
    "few_labels.updates_share": 0.5,
    "presets.small.precision": "32-true",
    "train.eval_every": 2,
    "data.initial_share": 0.3,
    "retrain.until": 0.5,
    "retrain.cycles": 1,
    "package.int8": False,
    "data.rendered_cells": 260,
    **{f"gate.recall_floor.{name}": 0.0 for name in ("Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil")},
}
WBC = [sys.executable, "-P", "-c", "from flows.cli import main; main()"]
SITE = "name: before\nhl7: {host: 127.0.0.1, port: 9, timeout_seconds: 1, retries: 1}\n"


def wbc(workspace: Path, *arguments: str) -> str:
    """Run a command in the workspace; its output."""
    return subprocess.run([*WBC, *arguments], cwd=workspace, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(workspace: Path) -> None:
    """Live in the workspace for a day."""
    from flows.workspace import init_workspace, set_params

    init_workspace(workspace)
    set_params(workspace, TINY)
    wbc(workspace, "retrain", "--commit")
    label_by_a_person(workspace)
    wbc(workspace, "retrain", "--commit", "--until", "0.6")
    (workspace / "site.yaml").write_text(SITE)
    serve(workspace, wbc(workspace, "keys", "add", "ward", "--scope", "classify", "--scope", "review").split()[0])
    schedule(workspace)


def label_by_a_person(workspace: Path) -> None:
    """One cell of the queue gets its label from a person."""
    import pandas as pd

    pools = workspace / "data/pools/unlabelled.csv"
    cell = pd.read_csv(pools)["sha256"].iloc[0]
    labels = workspace / ".wbc/ada.csv"
    labels.write_text(f"sha256,label,labelled_by\n{cell},Monocyte,Dr. Ada\n")
    wbc(workspace, "labels", "import", str(labels))
    labels.unlink()


def serve(workspace: Path, key: str) -> None:
    """Two reports over HTTP, the first corrected and signed."""
    from wbc_model.pools import Pools
    from wbc_model.store import ImageStore

    cells = Pools.read(workspace / "data/pools").frames["test"]["sha256"].tolist()[:6]
    images = [data for _, data in ImageStore(workspace / "data/images").read(cells)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "WBC_SITE_FILE": str(workspace / "site.yaml")}
    server = subprocess.Popen([*WBC, "serve", "--port", str(port)], cwd=workspace, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        wait(f"{url}/readyz")
        first = post_images(url, key, images[:4], "S-1")
        call(url, key, "PUT", f"/v1/reports/{first}/cells/0", {"label": "Monocyte", "by": "Dr. Ada"})
        call(url, key, "POST", f"/v1/reports/{first}/signature", {"by": "Dr. Ada"})
        post_images(url, key, images[4:], "S-2")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def wait(url: str) -> None:
    """Until the service is ready."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own loopback address
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{url} did not answer")


def call(url: str, key: str, method: str, path: str, body: dict[str, Any]) -> None:
    """A change of a report, whatever its version."""
    headers = {"X-API-Key": key, "Content-Type": "application/json", "If-Match": "*"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers, method=method)  # noqa: S310
    urllib.request.urlopen(request, timeout=60).close()  # noqa: S310


def post_images(url: str, key: str, images: list[bytes], specimen: str) -> str:
    """A report of these images; its id."""
    boundary = uuid.uuid4().hex
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="specimen_id"\r\n\r\n{specimen}\r\n'.encode()]
    for image in images:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="cell"\r\n\r\n'
        parts.append(head.encode() + image + b"\r\n")
    body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
    headers = {"X-API-Key": key, "Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{url}/v1/differential", body, headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        report: str = json.load(answer)["report_id"]
    return report


def schedule(workspace: Path) -> None:
    """Let the schedule make its deployments."""
    process = subprocess.Popen([*WBC, "schedule"], cwd=workspace, stderr=subprocess.PIPE, text=True)
    for line in process.stderr or ():
        if "Stop with Ctrl-C" in line:
            break
    time.sleep(30)  # nothing says that the deployments are made
    process.send_signal(signal.SIGINT)
    process.wait(60)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
