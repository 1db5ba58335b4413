"""A workspace that commit 336762a made goes on: its registered models, reports, labels, pools, keys, audit log and deployments.

`before/workspace.tar.xz` is what `before/make_workspace.py` made with its code, without images and weights. The slow tests
make it anew from the history of the repository and live in it.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import flows
from flows.cli.serve import mark_rendered
from flows.labels import decide, read_log, status
from flows.tracking import open_tracker
from flows.workspace import STORE, find_workspace
from serving.reports.review import find
from serving.reports.store import Store, sqlite_url
from serving.security.audit import AuditLog
from serving.security.chain import verify
from serving.security.keys import add_key, list_keys
from wbc_model.cells.pools import Pools
from wbc_model.core.model_card import Architecture, ModelCard, Normalisation
from wbc_model.network.card_page import write_card
from wbc_model.params import read_params

COMMIT = "336762a"
ROOT = Path(str(flows.__file__)).parent.parent
HERE = Path(__file__).parent / "before"
IDENTITY = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace without its images and weights."""
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(HERE / "workspace.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    return shutil.copytree(made, tmp_path / "workspace")


def test_its_parameters_are_read(workspace: Path) -> None:
    params = read_params(workspace / "params.yaml")
    assert (params.preset, params.retrain.until) == ("small", 0.6)
    assert find_workspace(workspace) == workspace


def test_its_pools_and_labels_are_read_and_a_person_may_say_otherwise(workspace: Path) -> None:
    log, pools = read_log(workspace), Pools.read(workspace / "data/pools")
    labelled = pools.frames["labelled"]
    assert set(log["labelled_by"]) == {"oracle", "Dr. Ada"}
    assert set(log["sha256"]) <= set(labelled["sha256"])
    by_ada = log.loc[log["labelled_by"] == "Dr. Ada", "sha256"].item()
    assert labelled.set_index("sha256").loc[by_ada, "label"] == "Monocyte"
    assert status(workspace)["in_log"] == len(log)
    decide(workspace, by_ada, "Neutrophil", "Dr. Bo", "granules", cycle=3)
    after = Pools.read(workspace / "data/pools").frames["labelled"].set_index("sha256")
    assert tuple(after.loc[by_ada, ["label", "labelled_by"]]) == ("Neutrophil", "Dr. Bo")
    history = read_log(workspace)
    assert list(history.loc[history["sha256"] == by_ada, "label"]) == ["Monocyte", "Neutrophil"]
    assert len(history) == len(log) + 1


def test_its_reports_are_as_they_were(workspace: Path) -> None:
    store = Store.open(sqlite_url(workspace / "data/service.db"))
    with store.reading() as session:
        signed, opened = (find(store, one.id) for one in sorted(_reports(session), key=lambda one: str(one.specimen_id)))
    assert (signed.status, signed.specimen_id, len(signed.cells)) == ("final", "S-1", 4)
    assert [(one.by, one.to_label, one.undoes) for one in signed.corrections] == [("Dr. Ada", "Monocyte", None)]
    assert [one.by for one in signed.signatures] == ["Dr. Ada"]
    assert [one.state for one in signed.messages] == ["pending"]
    assert (opened.status, opened.specimen_id, opened.expected_images) == ("preliminary", "S-2", None)
    store.close()


def _reports(session: Any) -> Any:
    from sqlalchemy import select

    from serving.reports.tables import Report

    return session.scalars(select(Report))


def test_its_audit_log_is_verified_and_goes_on(workspace: Path) -> None:
    path = workspace / "data/audit.jsonl"
    before = verify(path)
    log = AuditLog(path)
    asyncio.run(_intend(log))
    log.close()
    after = verify(path, contains=before.last)
    assert after.records > before.records


async def _intend(log: AuditLog) -> None:
    await log.intend("ward", "POST /v1/differential")


def test_its_keys_are_known(workspace: Path) -> None:
    path = workspace / "data/service.keys"
    assert "ward" in {key.name for key in list_keys(path)}
    add_key(path, "another", ["classify"])
    assert {"ward", "another"} <= {key.name for key in list_keys(path)}


def test_its_registry_has_its_champion(workspace: Path) -> None:
    tracker = open_tracker(workspace, read_params(workspace / "params.yaml"))
    assert len(tracker.versions()) == 2
    assert tracker.alias("champion") == "1"


def test_its_reports_of_drawn_cells_are_marked_before_it_is_served(workspace: Path) -> None:
    """Also those of a model that serves no longer: the registry has its card. The archive left it out; here it is again."""
    tracker, store = open_tracker(workspace, read_params(workspace / "params.yaml")), Store.open(sqlite_url(workspace / STORE))

    def marked() -> list[bool]:
        with store.reading() as session:
            return [one.rendered for one in _reports(session)]

    mark_rendered(workspace)  # without the card nothing is known
    assert marked() == [False, False]
    first = tracker.client.get_model_version("wbc", "1")
    card = ModelCard(
        version=first.tags["wbc.model"],
        input_size=32,
        normalisation=Normalisation(mean=(0, 0, 0), std=(1, 1, 1)),
        architecture=Architecture(attention="none", lossnet=False),
        rendered=True,
    )
    (workspace / first.source).mkdir(parents=True)
    write_card(workspace / first.source, card)
    mark_rendered(workspace)
    assert marked() == [True, True]
    store.close()


# --- made anew, and lived in ---------------------------------------------------------------------------------------------


def _environment(code: Path, home: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**IDENTITY, "HOME": str(home), "PATH": path, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole workspace, made by the commit's own code."""
    folder = tmp_path_factory.mktemp("made")
    archive = folder / "code.tar"
    asked = ["git", "archive", "--format", "tar", "--output", str(archive), COMMIT]
    if subprocess.run(asked, cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip(f"this clone does not have the commit {COMMIT}: its workspace cannot be made anew")
    with tarfile.open(archive) as code:
        code.extractall(folder / "code", filter="data")
    target = folder / "workspace"
    command = [sys.executable, "-P", str(HERE / "make_workspace.py"), str(target)]
    done = subprocess.run(
        command, cwd=folder, env=_environment(folder / "code", folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return target


def wbc(workspace: Path, *arguments: str) -> dict[str, Any]:
    """A command of today's code; its JSON."""
    command = [sys.executable, "-P", "-c", "from flows.cli import main; main()", *arguments, "--json"]
    environment = _environment(ROOT, workspace.parent)
    done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.slow
def test_todays_code_goes_on_in_it(lived_in: Path) -> None:
    assert wbc(lived_in, "champion")["champion"] == "1"
    assert wbc(lived_in, "labels", "status")["in_log"] > 1
    outcome = wbc(lived_in, "retrain", "--until", "0.7", "--commit")
    assert outcome["status"] == "done"
    registered = wbc(lived_in, "champion")
    assert len(registered["versions"]) >= 2
    tags = subprocess.run(["git", "tag", "--list", "pools-v*"], cwd=lived_in, capture_output=True, text=True, check=True)
    assert len(tags.stdout.split()) > 3
    evaluated = wbc(lived_in, "evaluate")
    assert evaluated["n"] > 0


@pytest.mark.slow
def test_its_open_report_goes_on_over_http(lived_in: Path) -> None:
    key = add_key(lived_in / "data/service.keys", "now", ["classify", "review"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-P", "-c", "from flows.cli import main; main()", "serve", "--port", str(port)]
    log = lived_in.parent / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=lived_in, env=_environment(ROOT, lived_in.parent), stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/readyz", server, log)
        request = urllib.request.Request(f"{url}/v1/reports?status=all", headers={"X-API-Key": key})  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            reports = json.load(answer)["reports"]
        assert {one["specimen_id"]: one["status"] for one in reports} == {"S-1": "final", "S-2": "preliminary"}
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def _wait(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own loopback address
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_its_schedule_is_taken_over(lived_in: Path) -> None:
    """The deployments that the commit left in the workspace's Prefect database do not keep today's schedule from starting."""
    command = [sys.executable, "-P", "-c", "from flows.cli import main; main()", "schedule"]
    process = subprocess.Popen(command, cwd=lived_in, env=_environment(ROOT, lived_in.parent), stderr=subprocess.PIPE, text=True)
    said = []
    for line in process.stderr or ():
        said.append(line)
        if re.search("Ctrl-C", line):
            break
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert said
    assert "Ctrl-C" in said[-1], said
