"""`wbc serve`: what it takes from the workspace, the key that it makes first, and paths as they were typed."""

import contextlib
import os
import pty
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import ROOT, Server, clean_environment, form, free_port, of_class, started, wait_ready
from tiny_model import write_model
from typer.testing import CliRunner

from flows.cli import app as command_line
from serving.reports.store import sqlite_url
from serving.run import command
from serving.security.keys import KEYS, KEYS_FILE, add_key, list_keys, revoke_key
from serving.settings import AWAITED, PATHS, absolute_paths


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (folder / name).write_text((ROOT / name).read_text())
    write_model(folder / "models/champion")
    return folder


@pytest.fixture
def would_start(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The environment that the server would get."""
    started: dict[str, Any] = {}
    monkeypatch.setattr(os, "execve", lambda path, arguments, environment: started.update(environment))
    monkeypatch.setenv("XDG_CACHE_HOME", str(workspace.parent / "cache"))
    for name in (KEYS, KEYS_FILE, "WBC_AUDIT_LOG", "WBC_MODEL_DIR", "WBC_HOSTS", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, "restored by monkeypatch")
        monkeypatch.delenv(name)
    monkeypatch.chdir(workspace)
    return started


def serve(*words: str) -> str:
    result = CliRunner().invoke(command_line, ["serve", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_workspace_gives_keys_audit_log_store_and_model(workspace: Path, would_start: dict[str, Any]) -> None:
    serve()
    assert would_start[KEYS_FILE] == str(workspace / "data/service.keys")
    assert would_start["WBC_AUDIT_LOG"] == str(workspace / "data/audit.jsonl")
    assert would_start["WBC_STORE_URL"].endswith(str(workspace / "data/service.db"))
    assert would_start["WBC_MODEL_DIR"] == str(workspace / "models/champion")


def test_model_chooses_the_model_and_nothing_else(
    workspace: Path, would_start: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(workspace / "models/here")
    add_key(workspace / "data/service.keys", "ward-3", ["classify"])
    serve()
    plain = dict(would_start)
    would_start.clear()
    serve("--model", "models/here")
    assert {name for name in plain if plain[name] != would_start[name]} == {"WBC_MODEL_DIR"}
    assert would_start["WBC_MODEL_DIR"] == str(workspace / "models/here")
    monkeypatch.setenv("WBC_MODEL_DIR", "models/here")
    serve()
    assert would_start["WBC_MODEL_DIR"] == str(workspace / "models/here")
    serve("--model", "models/champion")
    assert would_start["WBC_MODEL_DIR"] == str(workspace / "models/champion"), "what is typed is meant"


def test_a_model_that_is_not_there_is_named_and_leaves_no_key_behind(workspace: Path, would_start: dict[str, Any]) -> None:
    result = CliRunner().invoke(command_line, ["serve", "--model", "models/nowhere"])
    assert "models/nowhere" in str(result.exception)
    (workspace / "models/champion/model.onnx").write_bytes(b"x")
    assert CliRunner().invoke(command_line, ["serve", "--host", "0.0.0.0"]).exception is not None  # noqa: S104
    assert not (workspace / "data/service.keys").exists(), "nobody has seen it"


def test_before_the_first_champion_readers_can_name_cells(workspace: Path, would_start: dict[str, Any]) -> None:
    shutil.rmtree(workspace / "models/champion")
    output = serve()
    assert "there is no champion yet: readers name cells on /label" in output
    assert would_start["WBC_MODEL_DIR"] == str(workspace / "models/champion")
    assert would_start[AWAITED] == "true"
    would_start.clear()
    write_model(workspace / "models/champion")
    assert "no champion" not in serve()
    assert AWAITED not in would_start


@pytest.mark.slow
def test_a_service_without_a_model_takes_in_the_first_champion(tmp_path: Path) -> None:
    model, port, key = tmp_path / "models/champion", free_port(), "a-key"
    environment = clean_environment(
        WBC_MODEL_DIR=str(model), WBC_MODEL_AWAITED="true", WBC_API_KEYS=key, WBC_STORE_URL=sqlite_url(tmp_path / "service.db")
    )
    with started(command("serving.service:WbcService", "127.0.0.1", port), port, tmp_path, environment, ROOT, answers) as server:
        service = httpx.Client(base_url=server.url, headers={"X-API-Key": key}, timeout=30)
        assert [service.get(path).status_code for path in ("/livez", "/readyz", "/label", "/v1/labelling")] == [
            200,
            503,
            200,
            200,
        ]
        assert service.post("/v1/worklist", json={}).json()["reports"] == []
        refused = service.get("/v1/model")
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:wbc:problem:not-ready")
        write_model(tmp_path / "made")
        model.parent.mkdir()
        (tmp_path / "made").rename(model)
        wait_ready(server)
        assert service.get("/v1/model").status_code == 200
        assert service.post("/v1/classify", files=form(of_class("Basophil"))).json()["results"][0]["label"] == "Basophil"


def answers(server: Server) -> None:
    """Wait until it listens."""
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/livez").status_code == 200:
                return
        time.sleep(0.1)


def test_outside_a_workspace_model_and_keys_must_be_named(
    workspace: Path, would_start: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.parent)
    result = CliRunner().invoke(command_line, ["serve", "--model", "workspace/models/champion"])
    assert "not inside a workspace" in str(result.exception)
    monkeypatch.setenv(KEYS, "a-key")
    serve("--model", "workspace/models/champion")
    assert would_start["WBC_MODEL_DIR"] == str(workspace / "models/champion")


def test_the_key_of_the_first_start_is_not_written_where_no_terminal_is(workspace: Path, would_start: dict[str, Any]) -> None:
    output = serve()
    assert "#key=" not in output
    assert "wbc keys add" in output
    assert [(key.name, sorted(key.scopes)) for key in list_keys(workspace / "data/service.keys")] == [
        ("page", ["adjudicate", "classify", "label", "review"])
    ]
    serve()
    assert len(list_keys(workspace / "data/service.keys")) == 1


def test_with_keys_of_the_environment_the_workspaces_first_one_is_still_taken(
    workspace: Path, would_start: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEYS, "a-key")
    serve()
    assert list_keys(workspace / "data/service.keys") == []
    assert would_start[KEYS_FILE] == str(workspace / "data/service.keys")


def test_every_setting_that_names_a_file_or_a_folder_is_made_absolute() -> None:
    read = {name for path in (ROOT / "serving").rglob("*.py") for name in re.findall(r'"(WBC_[A-Z_]+)"', path.read_text())}
    named = {name for name in read if name.endswith(("_FILE", "_DIR", "_LOG", "_PATH", "_FOLDER"))}
    assert named == set(PATHS)


def test_paths_are_meant_from_where_they_were_typed(tmp_path: Path) -> None:
    given = {"WBC_MODEL_DIR": "m", KEYS_FILE: "/k", "WBC_AUDIT_LOG": "../a", "WBC_SITE_FILE": " s.yaml ", "WBC_THREADS": "2"}
    assert absolute_paths(given, tmp_path) == {
        "WBC_MODEL_DIR": f"{tmp_path}/m",
        KEYS_FILE: "/k",
        "WBC_AUDIT_LOG": f"{tmp_path}/../a",
        "WBC_SITE_FILE": f"{tmp_path}/s.yaml",
    }
    assert absolute_paths({"WBC_STORE_URL": "sqlite:///x.db"}, tmp_path) == {"WBC_STORE_URL": f"sqlite:///{tmp_path}/x.db"}
    for other in ("sqlite:////x.db", "postgresql://u:p@h/n", "", "nonsense"):
        assert absolute_paths({"WBC_STORE_URL": other}, tmp_path) in ({}, {"WBC_STORE_URL": "sqlite:////x.db"})


@pytest.mark.slow
@pytest.mark.parametrize("bare", [False, True])
def test_a_server_with_relative_paths_uses_the_files_that_were_meant(model_dir: Path, tmp_path: Path, bare: bool) -> None:
    port = free_port()
    typed, key = tmp_path / "typed", add_key(tmp_path / "typed/keys", "ward", ["classify"])
    (typed / "site.yaml").write_text("minimum_cells: 7\n")
    relative = {
        KEYS_FILE: "keys",
        "WBC_AUDIT_LOG": "audit.jsonl",
        "WBC_STORE_URL": "sqlite:///service.db",
        "WBC_SITE_FILE": "site.yaml",
        "WBC_MODEL_DIR": os.path.relpath(model_dir, typed),
    }
    environment = clean_environment(**relative, PYTHONPATH=str(ROOT), BENTOML_HOME=str(tmp_path / "home"))
    if bare:
        command = [sys.executable, "-m", "bentoml", "serve", "serving.service:WbcService"]
        command += ["--port", str(port), "--working-dir", str(ROOT)]
    else:
        command = [sys.executable, "-m", "serving.run", "--model", relative["WBC_MODEL_DIR"], "--port", str(port)]
    with started(command, port, tmp_path, environment, typed) as server:
        assert httpx.get(f"{server.url}/v1/model", headers={"X-API-Key": key}).status_code == 200
    for name in ("audit.jsonl", "service.db"):
        assert (typed / name).stat().st_size > 0
        assert not (ROOT / name).exists()


# --- at a terminal -------------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path: Path) -> Path:
    """A browser that keeps what it is told to open."""
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\ncat "${{1#file://}}" > {tmp_path}/page\n')
    script.chmod(0o755)
    return script


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, path
        time.sleep(0.1)
    return path.read_text()


@pytest.mark.slow
def test_at_a_terminal_the_address_is_shown_once_and_the_browser_opened(workspace: Path, tmp_path: Path, browser: Path) -> None:
    port, (ours, theirs) = free_port(), pty.openpty()
    environment = clean_environment(
        DISPLAY=":0", BROWSER=str(browser), PYTHONPATH=str(ROOT), XDG_CACHE_HOME=str(tmp_path / "cache")
    )
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=workspace, stdout=theirs, stderr=log)
    os.close(theirs)
    try:
        shown = b""
        while b"#key=" not in shown or not shown.endswith(b"\n"):
            shown += os.read(ours, 1000)
        [(address, key)] = re.findall(r"(http://127\.0\.0\.1:\d+/#key=(wbc_\S+))", shown.decode())
        page = wait_for(tmp_path / "page")
        assert address in page
        file = Path(wait_for(tmp_path / "opened").strip().removeprefix("file://"))
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert key not in "".join(path.read_text() for path in tmp_path.glob("opened")), "it would stand in the list of processes"
        server = Server(f"http://127.0.0.1:{port}", process, tmp_path / "log")
        wait_ready(server)
        assert httpx.get(f"{server.url}/v1/model").status_code == 401
        assert httpx.get(f"{server.url}/v1/reports", headers={"X-API-Key": key}).status_code == 200
    finally:
        process.terminate()
        process.wait(30)
        os.close(ours)
    assert key not in (tmp_path / "log").read_text()
    assert key not in (workspace / "data/audit.jsonl").read_text()
    assert key not in (workspace / "data/service.keys").read_text()


@pytest.fixture
def live(workspace: Path, tmp_path: Path) -> Iterator[Server]:
    port = free_port()
    environment = clean_environment(PYTHONPATH=str(ROOT), WBC_API_KEYS="given")
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(port)]
    with started(command, port, tmp_path, environment, workspace) as server:
        yield server


def test_the_first_key_is_taken_while_the_service_runs(live: Server, workspace: Path) -> None:
    keyring = workspace / "data/service.keys"

    def becomes(key: str, status: int) -> bool:
        start = time.monotonic()
        while httpx.get(f"{live.url}/v1/model", headers={"X-API-Key": key}).status_code != status:
            if time.monotonic() > start + 2:
                return False
            time.sleep(0.05)
        return True

    for name in ("first", "second"):
        key = add_key(keyring, name, ["classify"])
        assert becomes(key, 200), "within two seconds"
        revoke_key(keyring, name)
        assert becomes(key, 401)
