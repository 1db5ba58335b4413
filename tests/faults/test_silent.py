"""Servers that take a connection and never answer, and a PostgreSQL that is gone in the middle of a retraining and comes back."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from databases import new_database, postgres_machine
from live import free_port

from flows.identity import identify
from flows.workspace import set_params
from tests.faults.life import Retraining, environment, is_refused, line_of, outcome, succeeds
from tests.faults.whole import assert_whole, kept

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
RETRAIN = ("retrain", "--until", "0.5", "--cycles", "1", "--commit")
SOON = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes every connection and says nothing."""
    taken: list[socket.socket] = []

    def take(server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                taken.append(server.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=take, args=(server,), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
    for one in taken:
        one.close()


def goes_to(workspace: Path, uri: str) -> None:
    """Have the workspace's runs go to this server, under names of its own."""
    identify(workspace)  # as a copy, before it is told where its runs go
    names = dict.fromkeys(("tracking.experiment", "tracking.model_name"), workspace.parent.name)
    set_params(workspace, {"tracking.uri": uri, **names})


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[str, int]]:
    """The address of a server of MLflow's own, and its process group."""
    folder.mkdir()
    port = free_port()
    line = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    line += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(line, cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while not _is_up(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_an_mlflow_server_that_never_answers_is_one_line(workspace: Path, silent: str) -> None:
    before, as_it_was = kept(workspace), (workspace / "params.yaml").read_bytes()
    goes_to(workspace, f"http://{silent}")
    began = time.monotonic()
    line = is_refused(workspace, *RETRAIN, **SOON)
    assert line.startswith(f"MLflow at http://{silent} does not answer")
    assert time.monotonic() - began < 120
    (workspace / "params.yaml").write_bytes(as_it_was)
    assert_whole(workspace, before, lambda: succeeds(workspace, *RETRAIN))


def test_an_mlflow_server_that_falls_silent_in_a_retraining_is_one_line_and_the_same_command_goes_on(workspace: Path) -> None:
    before = kept(workspace)
    with mlflow_server(workspace.parent / "mlflow") as (uri, group):
        goes_to(workspace, uri)
        with Retraining(workspace, *RETRAIN[1:], **SOON) as retraining:
            retraining.reaches("train")
            os.killpg(group, signal.SIGSTOP)  # the kernel takes connections for it
            assert retraining.process.wait(600) == 1
            said = retraining.said.read_text()
        assert "does not answer: it is asked again" in said
        assert "has stopped answering; finished work is kept" in line_of(said)
        os.killpg(group, signal.SIGCONT)
        assert_whole(workspace, before, lambda: succeeds(workspace, *RETRAIN))
        assert outcome(workspace)["status"] == "done"


def test_a_shared_prefect_server_that_never_answers_is_one_line(workspace: Path, silent: str) -> None:
    """With a patience of seconds; it is minutes."""
    before, began = kept(workspace), time.monotonic()
    hasty = "import sys; from flows.retraining import prefect_api; prefect_api._PATIENCE = 5; from flows.cli import main; main()"
    values = environment() | {"PREFECT_API_URL": f"http://{silent}/api"}
    line = [sys.executable, "-c", hasty, *RETRAIN]
    done = subprocess.run(line, cwd=workspace, env=values, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert f"the Prefect server at http://{silent}/api has not answered" in line_of(done.stderr)
    assert "it is waited for" in done.stderr
    assert time.monotonic() - began < 120
    assert_whole(workspace, before, lambda: succeeds(workspace, *RETRAIN))


def test_a_bucket_that_never_answers_is_one_line(workspace: Path, silent: str) -> None:
    before, began = kept(workspace), time.monotonic()
    where = {"AWS_ENDPOINT_URL": f"http://{silent}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    line = is_refused(workspace, "ingest", "s3://bucket/cells.zip", **where)
    assert line.startswith("s3://bucket/cells.zip: cannot be read")
    assert time.monotonic() - began < 300
    assert_whole(workspace, before)


def test_a_store_on_postgresql_that_never_answers_stops_no_retraining(workspace: Path, silent: str) -> None:
    before = kept(workspace)
    with Retraining(workspace, *RETRAIN[1:], WBC_STORE_URL=f"postgresql://wbc@{silent}/wbc") as retraining:
        assert retraining.process.wait(900) == 0
        assert "the people's answers were not looked at: " in retraining.said.read_text()
    assert_whole(workspace, before)


def test_a_store_on_postgresql_that_is_gone_in_a_retraining_and_back_stops_it_nowhere(workspace: Path) -> None:
    """Its oracle answers meanwhile. A round that people shall answer cannot be given to them, and is by the same command."""
    before = kept(workspace)
    with postgres_machine() as machine:
        store = {"WBC_STORE_URL": new_database(machine.url)}
        with Retraining(workspace, *RETRAIN[1:], **store) as retraining:
            retraining.reaches("train")
            machine.stop()
            assert retraining.process.wait(900) == 0
            assert "the people's answers were not looked at: " in retraining.said.read_text()
        assert_whole(workspace, before)
        asks = ("retrain", "--annotator", "people", "--until", "0.8", "--cycles", "1", "--commit")
        assert "cannot be used" in is_refused(workspace, *asks, **store)
        machine.start()
        assert_whole(workspace, before, lambda: succeeds(workspace, *asks, **store))
        assert outcome(workspace)["status"] == "waiting"
