"""The service killed, its database gone, read-only or damaged: real servers, a real PostgreSQL."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import new_database, postgres_machine
from live import Server, clean_environment, fails_to_start, form, free_port, of_class, serve_command, started

from flows.workspace import AUDIT, STORE
from serving.reports.store import sqlite_url
from serving.security.chain import verify
from tests.faults.life import ROOT, disk, is_refused, keep_two_reports, mounted, succeeds, two_labels
from tests.faults.whole import assert_whole, kept, workspace_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@contextlib.contextmanager
def serving(workspace: Path, store: str) -> Iterator[tuple[Server, httpx.Client]]:
    """The workspace's champion, its audit log, and a store."""
    port, folder = free_port(), workspace.parent
    environment = clean_environment(WBC_STORE_URL=store, WBC_AUDIT_LOG=str(workspace / AUDIT))
    command = serve_command(workspace / "models/champion", port)
    with started(command, port, folder, environment, ROOT) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield server, client


def post(client: httpx.Client, key: str = "") -> httpx.Response:
    """A differential of twelve cells, each time of others."""
    headers = {"Idempotency-Key": key or uuid.uuid4().hex}
    return client.post("/v1/differential", files=form(*(of_class("Neutrophil") for _ in range(12))), headers=headers)


def report_is_begun(workspace: Path, store: str) -> None:
    """The next run of a service: it starts, and takes a report."""
    with serving(workspace, store) as (_, client):
        answer = post(client)
        assert answer.status_code == 200, answer.text
        assert client.get(f"/v1/reports/{answer.json()['report_id']}").status_code == 200


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, ward: Path) -> Iterator[str]:
    """Of either kind, with two reports in it."""
    if request.param == "sqlite":
        yield sqlite_url(ward / STORE)
        return
    with postgres_machine() as machine:
        url = new_database(machine.url)
        keep_two_reports(url)
        yield url


def test_a_service_that_is_killed_under_load_keeps_what_it_answered(ward: Path, store: str) -> None:
    before = kept(ward, store)
    files = {f"batch {number}": form(*(of_class("Monocyte") for _ in range(12))) for number in range(40)}
    answered: dict[str, dict[str, Any]] = {}

    def send(url: str, keys: list[str]) -> None:
        with httpx.Client(base_url=url, timeout=60) as client, contextlib.suppress(httpx.HTTPError):
            for key in keys:
                answer = client.post("/v1/differential", files=files[key], headers={"Idempotency-Key": key})
                assert answer.status_code == 200, answer.text
                answered[key] = answer.json()

    with serving(ward, store) as (server, _):
        threads = [threading.Thread(target=send, args=(server.url, list(files)[start::3])) for start in range(3)]
        for thread in threads:
            thread.start()
        while len(answered) < 5:
            assert any(thread.is_alive() for thread in threads)
            time.sleep(0.01)
        for process in server.processes():
            os.kill(process, signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert 5 <= len(answered) < len(files)
    assert_whole(ward, before, store=store)
    acknowledged = dict(answered)
    with serving(ward, store) as (server, client):
        send(server.url, list(files))  # whoever had no answer asks again, and so do the others
        for key, answer in acknowledged.items():
            assert answered[key] == answer, "what was answered is answered again"
        reports = client.get("/v1/reports?status=all").json()["reports"]
        assert len(reports) == len(files) + 2, "each batch is one report"
    assert verify(ward / AUDIT).open == 0
    assert_whole(ward, before, lambda: report_is_begun(ward, store), store)


def test_postgresql_that_is_restarted_is_503_for_as_long(ward: Path) -> None:
    with postgres_machine() as machine:
        store = new_database(machine.url)
        opened = keep_two_reports(store)
        before = kept(ward, store)
        with serving(ward, store) as (server, client):
            assert post(client).status_code == 200
            machine.stop()
            for answer in (client.get(f"/v1/reports/{opened}"), post(client)):
                assert answer.status_code == 503, answer.text
                assert answer.json()["type"].endswith("store-unavailable")
                assert answer.headers["retry-after"]
            assert client.post("/v1/classify", files=form(of_class("Basophil"))).status_code == 200, "which needs no store"
            machine.start()
            assert post(client).status_code == 200
            assert client.get(f"/v1/reports/{opened}").status_code == 200
            assert server.process.poll() is None
        assert_whole(ward, before, lambda: report_is_begun(ward, store), store)
        assert verify(ward / AUDIT).open == 0


def test_postgresql_that_falls_silent_is_503_for_as_long(ward: Path) -> None:
    """Its connections stay open, and many ask at once: none of them may hold a thread of the service for ever."""
    with postgres_machine() as machine:
        store = new_database(machine.url)
        opened = keep_two_reports(store)
        before = kept(ward, store)
        with serving(ward, store) as (server, client), ThreadPoolExecutor(30) as people:
            assert list(people.map(lambda _: client.get(f"/v1/reports/{opened}").status_code, range(30))) == [200] * 30
            with machine.silent():
                asking = time.monotonic()
                asked = [people.submit(client.get, f"/v1/reports/{opened}") for _ in range(29)]
                asked.append(people.submit(post, client))
                for _ in range(3):
                    began = time.monotonic()
                    assert client.post("/v1/classify", files=form(of_class("Basophil"))).status_code == 200, "needs no store"
                    assert time.monotonic() - began < 5
                for answer in asked:
                    assert answer.result().status_code == 503
                    assert answer.result().json()["type"].endswith("store-unavailable")
                assert time.monotonic() - asking < 30, "all of them"
            time.sleep(int(asked[0].result().headers["retry-after"]))
            assert post(client).status_code == 200
            assert client.get(f"/v1/reports/{opened}").status_code == 200
            assert server.process.poll() is None
        assert_whole(ward, before, lambda: report_is_begun(ward, store), store)
        assert verify(ward / AUDIT).open == 0


def test_a_read_only_disk_is_one_line_and_nothing_is_changed(quiet_ward: Path, tmp_path: Path) -> None:
    with disk(tmp_path / "small", "200m") as small:
        workspace = Path(shutil.copytree(quiet_ward, small / "site", symlinks=True))
        before, labels = kept(workspace), two_labels(workspace)
        assert mounted("-o", "remount,ro", str(small))
        try:
            said = is_refused(workspace, "labels", "import", str(labels))
            assert "read-only" in said
            settings = {"WBC_STORE_URL": sqlite_url(workspace / STORE)}
            said = fails_to_start(serve_command(workspace / "models/champion", free_port()), **settings)
            assert "service.db" in said
        finally:
            assert mounted("-o", "remount,rw", str(small))

        def next_run() -> None:
            succeeds(workspace, "labels", "import", str(labels))
            report_is_begun(workspace, workspace_store(workspace))

        assert_whole(workspace, before, next_run)


@pytest.mark.parametrize("where", ["head", "middle"])
def test_a_damaged_store_is_named_and_comes_back_from_its_backup(ward: Path, where: str) -> None:
    before, backup, file = kept(ward), ward.parent / "backup", ward / STORE
    succeeds(ward, "backup", str(backup))
    content = bytearray(file.read_bytes())
    damaged = slice(0, 4096) if where == "head" else slice(4096, len(content))  # the first page, or all others
    content[damaged] = b"\xa5" * len(content[damaged])
    file.write_bytes(content)
    for beside in ward.glob(f"{STORE}-*"):
        beside.unlink()
    if where == "head":
        said = fails_to_start(serve_command(ward / "models/champion", free_port()), WBC_STORE_URL=sqlite_url(file))
        assert "service.db" in said
        assert "not a database" in said
        assert "wbc restore" in said
    else:
        said = is_refused(ward, "serve", "--port", str(free_port()))
        assert "malformed" in said
        assert "wbc restore" in said
    succeeds(ward, "restore", str(backup), "--replace")
    assert_whole(ward, before, lambda: report_is_begun(ward, workspace_store(ward)))
    assert json.loads(succeeds(ward, "audit", "verify", "--json"))["open"] == 0 if (ward / AUDIT).exists() else True
