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
from typing import Any, Final, NamedTuple

import httpx
import pandas as pd
from PIL import Image

from flows.state import is_locked, read_state
from flows.workspace import init_workspace, set_params
from serving.contract.labelling import NOT_A_LEUKOCYTE
from serving.contract.site import read_site
from tests.pools import ingest
from wbc_model.cells.pools import Pools
from wbc_model.cells.store import ImageStore
from wbc_model.cells.tables import read_table
from wbc_model.core.classes import CLASSES
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

    def says(self, cell: "Cell", chance: random.Random) -> str:
        """What the reader says of a cell; what is no leukocyte nobody takes for one."""
        if cell.answer not in CLASSES or chance.random() >= self.wrong:
            return cell.answer
        return CLASSES[(CLASSES.index(cell.answer) + self.off) % len(CLASSES)]


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

    def start_schedule(self) -> None:
        """`wbc schedule`, which retrains when it is asked to, and looks for labels every few seconds."""
        log = self.workspace.parent / "schedule.log"
        before = log.stat().st_size if log.exists() else 0
        self.start("schedule", "flows.cli", "schedule", "--every", "86400", "--watch", "15")
        until(lambda: b"stop with Ctrl-C" in log.read_bytes()[before:], 240)

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

    def states(self, flow: str = "retraining") -> list[tuple[str, str]]:
        return [(run["state_type"], run["state_name"]) for run in self.runs(flow)]

    def post(self, path: str, **query: Any) -> Any:
        return httpx.post(f"{self.api}/{path}", json=query, timeout=60).json()

    def flow_process(self) -> int | None:
        """The process that has the workspace, where one has it."""
        lock = self.workspace / ".wbc/retrain.lock"
        return int(json.loads(lock.read_text())["pid"]) if is_locked(self.workspace) else None

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
    with known_as(IDENTITY):
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
def known_as(more: dict[str, str]) -> Iterator[None]:
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


class Cell(NamedTuple):
    """What a cell is, which no reader can see; `answer` is what a good reader says of it."""

    sha256: str
    answer: str


Truth = dict[str, Cell]  # by what the image shows


def shown(data: bytes) -> str:
    """A name of what an image shows: its pixels, however they are packed."""
    with Image.open(io.BytesIO(data)) as image:
        return named(image.convert("RGB").tobytes())


def named(pixels: bytes) -> str:
    """A name of red, green and blue of all pixels."""
    return hashlib.sha256(pixels).hexdigest()


def truth_of(workspace: Path, odd: str) -> Truth:
    """The cells of the training side; the cell `odd` is taken for none of the five classes."""
    known = dict(read_table(workspace / "data/oracle.csv", ["sha256", "label"]).to_numpy())
    known |= dict(Pools.read(workspace / "data/pools").frames["labelled"][["sha256", "label"]].to_numpy())
    known[odd] = NOT_A_LEUKOCYTE
    images = ImageStore(workspace / "data/images").read(list(known))
    return {shown(data): Cell(sha256, known[sha256]) for sha256, data in images}


# --- the whole of it ---------------------------------------------------------------------------------------------------------

BLOCK: Final = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
told = {"subject": "{{subject}}", "body": "{{body}}"}
CustomWebhookNotificationBlock(name="people", url=sys.argv[1], method="POST", json_data=told).save("people")
"""
ASKED: Final = 20  # and as many are enough: what comes later would come to the next round


def go_round(
    folder: Path,
    read: Callable[[Loop, Reader, Truth, random.Random], int],
    adjudicate: Callable[[Loop, Reader, Truth], int],
) -> None:
    """Ask, restart, two readers, adjudication, resume, a kill, retrain, promote, serve. `read` has a reader answer all there is,
    `adjudicate` the lead decide on all disputes."""
    with loop_at(folder) as loop, listening() as (receiver, posted):
        workspace = loop.workspace
        assert json.loads(loop.wbc("retrain", "--json"))["gate"]["promoted"]
        readers = [
            Reader("Ada", loop.add_key("ada", "Ada", "label"), 0.3, 1),
            Reader("Bo", loop.add_key("bo", "Bo", "label"), 0.2, 2),
        ]
        lead = Reader("Dr Lead", loop.add_key("lead", "Dr Lead", "label", "adjudicate", "classify"), 0.0, 0)
        loop.start_service()
        first = model_of(loop, lead)
        loop.start_server()
        subprocess.run([sys.executable, "-c", BLOCK, receiver], env=loop.environment, check=True)
        people = {"retrain.annotator": "people", "retrain.ask": ASKED, "schedule.min_new_labels": ASKED}
        set_params(workspace, {**people, "schedule.wait_hours": 48, "schedule.notify": "custom-webhook/people"})
        loop.deploy()
        loop.start_worker()
        asked = _ask_and_restart(loop)
        assert any("people are asked" in one["body"] for one in posted), posted

        chance, odd = random.Random(3), min(asked)
        truth = truth_of(workspace, odd)
        counts = [read(loop, reader, truth, chance) for reader in readers]
        assert min(counts) >= ASKED
        assert adjudicate(loop, lead, truth) > 0
        _goes_on_though_killed(loop)
        assert any("the retraining goes on: " in one["body"] for one in posted), posted
        _what_was_learned(workspace, truth, asked, odd)
        until(lambda: model_of(loop, lead) != first, 240)
        until(lambda: not {kind for kind, _ in loop.states()} & {"PAUSED", "RUNNING", "FAILED"}, 300)


def model_of(loop: Loop, lead: Reader) -> str:
    """The version of the model that the service answers with."""
    answer = httpx.get(f"{loop.url}/v1/model", headers={"X-API-Key": lead.key}, timeout=60)
    return str(answer.json().get("version"))


def _ask_and_restart(loop: Loop) -> set[str]:
    """The queue is published and its run suspends, without a process; a kill of server and worker loses nothing. Returns the
    cells that are asked for."""
    workspace = loop.workspace
    loop.do("deployment", "run", "retraining/process-march")
    until(lambda: ("PAUSED", "Suspended") in loop.states(), 1200)
    until(lambda: loop.flow_process() is None)
    assert status_of(workspace) == "waiting"
    said = json.loads(loop.wbc("labels", "status", "--json"))["next_step"]
    assert said.startswith(f"0 of {ASKED} cells are agreed; nobody has begun to read; the retraining goes on at {ASKED}, or on ")
    loop.kill("worker")
    loop.kill("server")
    loop.start_server()
    assert loop.states()[-1] == ("PAUSED", "Suspended")
    loop.start_worker()
    return {line.split(",")[0] for line in (workspace / "data/queue.csv").read_text().splitlines()[1:]}


def _goes_on_though_killed(loop: Loop) -> None:
    """Enough is agreed: the watch resumes the run, which is killed in the middle; the retraining ends well all the same."""
    workspace = loop.workspace
    until(lambda: status_of(workspace) == "running" and loop.flow_process() is not None, 1200)
    process = loop.flow_process()
    assert process is not None
    os.kill(process, signal.SIGKILL)
    until(lambda: status_of(workspace) == "done", 1800)
    state = read_state(workspace)
    assert state is not None
    assert state.gate is not None
    assert state.gate["promoted"], state.gate


def _what_was_learned(workspace: Path, truth: Truth, asked: set[str], odd: str) -> None:
    """All that two people or a third agreed on is right, and was learned; what is none of the five was not."""
    log = pd.read_csv(workspace / "data/labels.csv", dtype=str, keep_default_na=False)
    given, right = log[log["why"].str.startswith("on the page")], dict(truth.values())
    assert set(given["sha256"]) == asked - {odd}
    assert (given["label"] == given["sha256"].map(right)).all()
    assert {"Ada + Bo", "Dr Lead"} <= set(given["labelled_by"])
    pools = Pools.read(workspace / "data/pools")
    assert pools.none_of_five()["sha256"].tolist() == [odd]
    assert asked - {odd} <= set(pools.frames["labelled"]["sha256"])


def status_of(workspace: Path) -> str:
    """What the last retraining of a workspace does."""
    state = read_state(workspace)
    return state.status if state else ""
