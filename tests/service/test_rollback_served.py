"""A running `wbc serve` answers with whatever model a person's rollback, or the way back from it, puts in place."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from live import clean_environment, form, free_port, of_class, started
from tiny_model import write_model

from flows.registry import champion
from flows.tracking import open_tracker
from flows.workspace import init_workspace
from serving.security.keys import HEADER, KEYS
from wbc_model.params import read_params

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KEY = "k" * 43


def until(done: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def with_champions(workspace: Path, count: int) -> None:
    """A workspace whose registry has versions 1, 2, ..., each of which took the place of the one before."""
    init_workspace(workspace)
    params = read_params(workspace / "params.yaml")
    tracker = open_tracker(workspace, params)
    for number in range(1, count + 1):
        model = workspace.parent / f"model-{number}"
        write_model(model, version=f"model-{number}", temperature=float(number), parameters={"seed": number})
        version = tracker.register(tracker.cycle(tracker.retraining(f"round-{number}", params), f"round-{number}", 0), model)
        champion.promote(workspace, version, "the better one", "Ada")


def test_a_live_service_follows_a_rollback_of_two_and_the_promotion_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "t")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@example.org")
    workspace, port = tmp_path / "site", free_port()
    with_champions(workspace, 4)
    environment = clean_environment(**{KEYS: KEY})

    def wbc(*arguments: str) -> str:
        command = [sys.executable, "-m", "flows.cli", "champion", *arguments, "--by", "Ada"]
        done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    serve = [sys.executable, "-m", "flows.cli", "serve", "--port", str(port)]
    with (
        started(serve, port, tmp_path, environment, workspace) as server,
        httpx.Client(base_url=server.url, headers={HEADER: KEY}, timeout=60) as client,
    ):

        def answers_as(version: str) -> bool:
            named = client.get("/v1/model").json()["version"]
            answer = client.post("/v1/classify", files=form(of_class("Basophil"))).json()
            return bool(named == answer["model"]["version"] == version)

        assert answers_as("model-4")
        said = wbc("--rollback", "2", "--reason", "misses blasts")
        assert said.startswith("version 2 (model-2) is champion in the place of version 4\nversions 4 and 3 were withdrawn: ")
        assert "a service that serves that folder follows within seconds" in said
        until(lambda: answers_as("model-2"))
        wbc("--promote", "4", "--reason", "the blasts were the slide's")
        until(lambda: answers_as("model-4"))
        assert server.process.poll() is None
