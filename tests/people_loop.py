"""The loop of people and model, for real: a workspace, a Prefect server with a worker, the service, and readers of known error
rates. Each part is a process that can be killed and started again.
"""

import contextlib
import hashlib
import http.server
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pandas as pd
from PIL import Image

from flows.state import read_state
from flows.workspace import init_workspace, set_params
from serving.contract.site import read_site
from tests.pools import ingest
from wbc_model.cells.pools import Pools, read_table
from wbc_model.cells.store import ImageStore
from wbc_model.core.classes import CLASSES
from wbc_model.core.images import decode
from wbc_model.params import read_params
from wbc_model.rendering.cells import write_cells

ROOT: Final = Path(__file__).parents[1]
IDENTITY: Final = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
QUICK: Final = {
    "presets.small.image_size": 32,
    "presets.small.batch_size": 8,
    "presets.small.updates": 8,
    "presets.small.precision": "32-true",
    "train.eval_every": 2,
    "data.initial_share": 0.3,
    "package.int8": False,
    "gate.max_recall_drop": 1.0,
    "gate.max_accuracy_drop": 1.0,
    "gate.alpha": 0.0,  # what is promoted is not the matter here
    **{f"gate.recall_floor.{name}": 0.0 for name in CLASSES},
}
SHARES: Final = {"second_reader_share": 1.0, "repeat_share": 0.0, "known_share": 0.1}


@dataclass(frozen=True)
class Reader:
    """A person with a key: of the cells `wrong` in the mean are called by the class `off` places further."""

    name: str
    key: str
    wrong: float
    off: int

    def says(self, truth: str, chance: random.Random) -> str:
        return CLASSES[(CLASSES.index(truth) + self.off) % len(CLASSES)] if chance.random() < self.wrong else truth


@dataclass
class Loop:
    """A workspace whose retraining runs on a worker; `ours` are the processes that were started, by what they are."""

    workspace: Path
    prefect: int
    service: int
    ours: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.prefect}/api"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.service}"

    @property
    def environment(self) -> dict[str, str]:
        values = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "WBC_", "MLFLOW_"))}
        beside = self.workspace.parent
        more = {
            "PREFECT_API_URL": self.api,
            "PREFECT_HOME": str(beside / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_LOGGING_TO_API_ENABLED": "true",
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            "WBC_SITE": "march",
            "WBC_WORKSPACE": str(self.workspace),
            "WBC_SITE_FILE": str(beside / "site.yaml"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        return values | IDENTITY | more

    def wbc(self, *arguments: str) -> str:
        """What a command answers; without the Prefect server, as a person at a desk types it."""
        values = {name: value for name, value in self.environment.items() if not name.startswith("PREFECT_")}
        command = [sys.executable, "-m", "flows.cli", *arguments]
        done = subprocess.run(command, cwd=self.workspace, env=values, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def do(self, *command: str) -> str:
        """A command of Prefect's, at the root of the project."""
        call = [sys.executable, "-m", "prefect", "--no-prompt", *command]
        done = subprocess.run(call, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, what: str, *command: str) -> None:
        with (self.workspace.parent / f"{what}.log").open("ab") as log:
            self.ours[what] = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=self.workspace, env=self.environment, stdout=log, stderr=log
            )

    def start_server(self) -> None:
        self.start("server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.prefect), "--no-ui")
        until(lambda: answers(f"{self.api}/health"), 240)

    def start_worker(self) -> None:
        self.start("worker", "prefect", "worker", "start", "--pool", "wbc", "--type", "process")

    def start_service(self) -> None:
        self.start("service", "flows.cli", "serve", "--port", str(self.service))
        until(lambda: answers(f"{self.url}/readyz"), 240)

    def kill(self, what: str) -> None:
        process = self.ours.pop(what)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        for process in self.ours.values():
            process.terminate()
        for process in self.ours.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()

    def deploy(self) -> None:
        """The deployments of the process pool in prefect.yaml, as the documents say."""
        self.do("work-pool", "create", "wbc", "--type", "process")
        self.do("deploy", "--prefect-file", "prefect.yaml", "--name", "process-*")

    def runs(self, flow: str = "retraining") -> list[dict[str, Any]]:
        """The runs of a flow that have begun, the oldest first."""
        flows = {one["id"]: one["name"] for one in self.post("flows/filter")}
        runs = self.post("flow_runs/filter", sort="START_TIME_ASC")
        return [run for run in runs if flows[run["flow_id"]] == flow and run["start_time"]]

    def states(self) -> list[tuple[str, str]]:
        return [(run["state_type"], run["state_name"]) for run in self.runs()]

    def post(self, path: str, **query: Any) -> Any:
        return httpx.post(f"{self.api}/{path}", json=query, timeout=60).json()

    def flow_process(self) -> int | None:
        """The process that has the workspace, where it lives."""
        path = self.workspace / ".wbc/retrain.lock"
        try:
            holder = int(json.loads(path.read_text())["pid"])
            return holder if f"prefect.{'flow_engine'}" in Path(f"/proc/{holder}/cmdline").read_text() else None
        except (OSError, ValueError, KeyError):
            return None

    def add_key(self, name: str, person: str, *scopes: str) -> str:
        given = [part for scope in scopes for part in ("--scope", scope)]
        key: str = json.loads(self.wbc("keys", "add", name, "--person", person, *given, "--json"))["key"]
        return key


def until(condition: Callable[[], Any], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).status_code == 200
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def loop_at(folder: Path) -> Iterator[Loop]:
    """A workspace of drawn cells with a champion, that asks people from now on; all that was started ends with the block."""
    workspace = folder / "site"
    labelling = read_site().labelling.model_copy(update=SHARES).model_dump()
    (folder / "site.yaml").write_text(json.dumps({"labelling": labelling}))  # JSON is YAML
    with pytest_environment(IDENTITY):
        init_workspace(workspace)
    set_params(workspace, QUICK | {"retrain.until": 0.3, "retrain.cycles": 1})  # all that is revealed: one training
    data = write_cells(workspace / ".wbc/rendered", 130, seed=0, size=64)
    ingest(data, workspace / "data", read_params(workspace / "params.yaml"), source="rendered")
    loop = Loop(workspace, free_port(), free_port())
    try:
        yield loop
    finally:
        loop.end()


@contextlib.contextmanager
def pytest_environment(more: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server on loopback; yields its address and what was posted to it."""
    posted: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", posted
        server.shutdown()


# --- readers -----------------------------------------------------------------------------------------------------------------


def shown(data: bytes) -> str:
    """A name of what an image shows: its pixels, however they are packed."""
    with Image.open(io.BytesIO(data)) as image:
        return hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).hexdigest()


def truths(workspace: Path) -> dict[str, tuple[str, str]]:
    """What the pixels of each cell of the training side are: its sha256 and its class, which readers cannot see."""
    known = dict(read_table(workspace / "data/oracle.csv", ["sha256", "label"]).to_numpy())
    labelled = Pools.read(workspace / "data/pools").frames["labelled"]
    known |= dict(labelled[["sha256", "label"]].to_numpy())
    found = {}
    for sha256, data in ImageStore(workspace / "data/images").read(list(known)):
        pixels = np.asarray(decode(data)[0].convert("RGB")).tobytes()
        found[hashlib.sha256(pixels).hexdigest()] = (sha256, known[sha256])
    return found


def read_all(loop: Loop, reader: Reader, known: dict[str, tuple[str, str]], odd: str, chance: random.Random) -> int:
    """Answer every task that a reader is given, by HTTP; the cell `odd` is not a leukocyte. Returns how many there were."""
    done = 0
    with httpx.Client(base_url=loop.url, headers={"X-API-Key": reader.key}, timeout=60) as http:
        while given := http.get("/v1/labelling/tasks", params={"count": 10}).raise_for_status().json()["tasks"]:
            for task in given:
                image = http.get(f"/v1/labelling/tasks/{task['task']}/image").raise_for_status().content
                sha256, truth = known[shown(image)]
                answer = "not a leukocyte" if sha256 == odd else reader.says(truth, chance)
                body = {"answer": answer, "seconds": 1.5, "way": "single"}
                http.put(f"/v1/labelling/tasks/{task['task']}", json=body).raise_for_status()
                done += 1
    return done


def adjudicate(loop: Loop, key: str, known: dict[str, tuple[str, str]]) -> int:
    """Decide on every dispute by the truth; returns how many there were."""
    done = 0
    with httpx.Client(base_url=loop.url, headers={"X-API-Key": key}, timeout=60) as http:
        while waiting := http.get("/v1/labelling/disputes").raise_for_status().json()["disputes"]:
            for one in waiting:
                image = http.get(f"/v1/labelling/disputes/{one['dispute']}/image").raise_for_status().content
                http.put(f"/v1/labelling/disputes/{one['dispute']}", json={"answer": known[shown(image)][1]}).raise_for_status()
                done += 1
    return done


def log_of(workspace: Path) -> pd.DataFrame:
    """The label log as it is on disk."""
    return pd.read_csv(workspace / "data/labels.csv", dtype=str, keep_default_na=False)


def status_of(workspace: Path) -> str:
    state = read_state(workspace)
    return state.status if state else ""
