"""Calls that write: repeated they are done once, the audit log has the intention first, and 503 means that nothing was done."""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from live import ROOT, clean_environment, form, free_port, of_class, serve_command, started
from specimens import SPECIMEN, site
from sqlalchemy import select
from test_reports import DOCTOR, assert_problem, correct, posted, sign

from serving.contract.site import Hl7Receiver
from serving.http import deeds
from serving.http import routes as api
from serving.http.app import create_app
from serving.http.layer import Around
from serving.http.limits import Limits
from serving.http.running import Kept, Running
from serving.inference.classify import Classifier
from serving.reports.outbox import backlog
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import Deed, Report
from serving.security.audit import AuditLog
from serving.security.chain import verify
from serving.security.keys import ApiKeys, add_key
from serving.upkeep import deeds as left
from serving.upkeep.clock import Clock

FILES = form(*[of_class("Neutrophil")] * 8, of_class("Monocyte"))


@pytest.fixture(scope="module")
def classifier(model_dir: Path) -> Iterator[Classifier]:
    made = Classifier.open(model_dir)
    yield made
    made.close()


class Service:
    """One in this process, with a store and an audit log."""

    def __init__(self, classifier: Classifier, url: str, folder: Path, keys: ApiKeys | None = None) -> None:
        self.path = folder / "audit.jsonl"
        self.store = Store.open(url)
        self.audit = AuditLog(self.path)
        of = site(hl7=Hl7Receiver(host="127.0.0.1", port=free_port()))
        self.kept = Kept(self.store, of)
        app = create_app()
        self.running = app.state.running = Running(classifier, keys or ApiKeys([]), Limits(), of, self.audit, self.kept)
        self.client = TestClient(Around(app), raise_server_exceptions=False)

    def close(self) -> None:
        self.kept.close()
        self.audit.close()

    def reports(self) -> int:
        with self.store.reading() as session:
            return len(session.scalars(select(Report)).all())

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def service(classifier: Classifier, store_url: str, tmp_path: Path) -> Iterator[Service]:
    made = Service(classifier, store_url, tmp_path)
    yield made
    made.close()


def post(client: TestClient | httpx.Client, key: str, **data: str) -> httpx.Response:
    return client.post("/v1/differential", files=FILES, data=data, headers={"Idempotency-Key": key})


# --- repeated calls ------------------------------------------------------------------------------------------------------


def test_a_repetition_gets_the_first_answer_and_counts_nothing_twice(service: Service) -> None:
    first, again = (post(service.client, "batch 1") for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert (again.content, again.headers["content-type"]) == (first.content, first.headers["content-type"])
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    report = first.json()["report_id"]
    for _ in range(3):
        more = post(service.client, "batch 2", report_id=report)
    assert more.json()["differential"]["cells"] == service.client.get(f"/v1/reports/{report}").json()["differential"]["cells"]
    assert (service.reports(), more.headers["idempotency-replayed"]) == (1, "true")
    assert len(service.client.get(f"/v1/reports/{report}").json()["cells"]) == 18


def test_corrections_and_signatures_too_with_their_version(service: Service) -> None:
    report = posted(service.client)["report_id"]
    url, body = f"/v1/reports/{report}", {"label": "Monocyte", **DOCTOR}
    headers = {"If-Match": '"1"', "Idempotency-Key": "c"}
    first, again = (service.client.put(f"{url}/cells/12", json=body, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code, again.headers["etag"], again.content) == (200, 200, '"2"', first.content)
    headers = {"If-Match": '"2"', "Idempotency-Key": "s"}
    signed, resigned = (service.client.post(f"{url}/signature", json=DOCTOR, headers=headers) for _ in range(2))
    assert (signed.status_code, resigned.content, resigned.headers["etag"]) == (200, signed.content, '"3"')
    assert backlog(service.store).pending == 1


def test_a_key_is_of_one_call_with_one_body_of_one_caller(classifier: Classifier, tmp_path: Path) -> None:
    keyring = tmp_path / "keys"
    one, two = (add_key(keyring, name, ["classify", "review"]) for name in ("one", "two"))
    service = Service(classifier, sqlite_url(tmp_path / "service.db"), tmp_path, ApiKeys(file=keyring))
    client = service.client
    client.headers["X-API-Key"] = one
    report = post(client, "k").json()["report_id"]
    for other in (
        post(client, "k", specimen_id="S-1"),
        client.post("/v1/differential", files=FILES[:-1], headers={"Idempotency-Key": "k"}),
        client.post(f"/v1/reports/{report}/signature", json=DOCTOR, headers={"If-Match": "*", "Idempotency-Key": "k"}),
    ):
        assert_problem(other, 422, "idempotency-key-reused")
    for bad in ("", "x" * 256, "ä".encode(), "a\tb"):
        headers = {"Idempotency-Key": bad}
        assert assert_problem(client.post("/v1/differential", files=FILES, headers=headers), 422, "bad-parameter")  # type: ignore[arg-type]
    client.headers["X-API-Key"] = two
    assert post(client, "k").json()["report_id"] != report
    service.close()


def test_what_changed_nothing_may_be_tried_again_with_the_same_key(service: Service) -> None:
    report = posted(service.client)["report_id"]
    headers = {"If-Match": '"7"', "Idempotency-Key": "k"}
    url = f"/v1/reports/{report}/signature"
    assert_problem(service.client.post(url, json=DOCTOR, headers=headers), 412, "changed-meanwhile")
    assert service.client.post(url, json=DOCTOR, headers={**headers, "If-Match": '"1"'}).status_code == 200


def test_what_takes_too_long_is_a_problem_and_can_be_asked_for_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    done, take_in = threading.Event(), api.take_in

    def slowly(*arguments: Any) -> Any:
        time.sleep(1.5)
        done.set()
        return take_in(*arguments)

    monkeypatch.setattr(api, "take_in", slowly)
    service.running.limits = dataclasses.replace(service.running.limits, answer_seconds=1)
    late = post(service.client, "k")
    assert "within 1 seconds" in assert_problem(late, 504, "too-slow")["detail"]
    assert late.headers["x-content-type-options"] == "nosniff"
    assert service.lines()[-1]["status"] == 504
    assert done.wait(20)
    deadline = time.monotonic() + 20
    while not service.reports() and time.monotonic() < deadline:
        time.sleep(0.05)
    again = post(service.client, "k")
    assert (again.status_code, again.headers["idempotency-replayed"], service.reports()) == (200, "true", 1)


def test_while_the_first_is_under_way_the_second_hears_409(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on = threading.Event(), threading.Event()
    take_in = api.take_in

    def slowly(*arguments: Any) -> str:
        inside.set()
        go_on.wait(20)
        return take_in(*arguments)

    monkeypatch.setattr(api, "take_in", slowly)
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(post(service.client, "k")))
    thread.start()
    assert inside.wait(20)
    second = post(service.client, "k")
    go_on.set()
    thread.join()
    assert assert_problem(second, 409, "idempotency-key-in-use")
    assert second.headers["retry-after"]
    assert answers[0].status_code == 200
    assert post(service.client, "k").content == answers[0].content
    assert service.reports() == 1


def test_two_processes_with_one_store_do_it_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is played by a row that comes in between the look and the deed."""
    first = post(service.client, "k")
    looked: list[bool] = []
    look_up = deeds.Begun.look_up

    def blind_once(self: deeds.Begun, store: Store) -> Any:
        looked.append(True)
        return None if len(looked) == 1 else look_up(self, store)

    monkeypatch.setattr(deeds.Begun, "look_up", blind_once)
    again = post(service.client, "k")
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
    assert service.reports() == 1


def test_old_answers_are_forgotten_but_not_those_without_an_outcome(service: Service) -> None:
    post(service.client, "old")
    post(service.client, "older")
    with service.store.writing() as session:
        for deed in session.scalars(select(Deed)):
            deed.at = datetime.now(UTC) - timedelta(days=left.KEPT_DAYS + 1)
            if deed.key == "older":
                service.audit.intentions[deed.intention] = {"caller": "local", "intends": "x"}
    service.running.cleaned.next = 0.0
    post(service.client, "new")
    with service.store.reading() as session:
        assert {deed.key for deed in session.scalars(select(Deed))} == {"older", "new"}


def test_a_clock_that_jumps_ahead_forgets_no_answer(service: Service) -> None:
    first = post(service.client, "k")
    service.kept.clock = Clock(service.store, wall=lambda: datetime.now(UTC) + timedelta(days=left.KEPT_DAYS + 2))
    service.running.cleaned.next = 0.0
    post(service.client, "another")
    again = post(service.client, "k")
    assert (again.content, again.headers["idempotency-replayed"], service.reports()) == (first.content, "true", 2)


# --- the order of things -------------------------------------------------------------------------------------------------


def test_every_answer_has_its_line_and_a_deed_its_intention_before(service: Service) -> None:
    client = service.client
    report = posted(client)["report_id"]
    url = f"/v1/reports/{report}"
    client.get(url)
    client.get(f"/v1/reports/{'0' * 32}")
    client.get(f"/v1/reports?specimen_id={SPECIMEN}")
    client.get(f"/v1/reports/{SPECIMEN}")
    correct(client, report, 0, "Monocyte", '"9"')
    correct(client, report, 99, "Monocyte", "*")
    client.put(f"{url}/cells/0", json={"label": "Thrombocyte", **DOCTOR}, headers={"If-Match": "*"})
    sign(client, report, "*")
    sign(client, report, "*")
    client.get(f"{url}/report.pdf")
    lines = service.lines()
    told = [(one.get("intends") or one["call"], one.get("status", "intends")) for one in lines]
    assert [(call.replace(report, "ID"), status) for call, status in told] == [
        ("POST /v1/differential", "intends"),
        ("POST /v1/differential", 200),
        ("GET /v1/reports/ID", 200),
        (f"GET /v1/reports/{'0' * 32}", 404),
        ("GET /v1/reports", 200),
        ("GET /v1/reports/{id}", 404),
        ("PUT /v1/reports/ID/cells/0", "intends"),
        ("PUT /v1/reports/ID/cells/0", 412),
        ("PUT /v1/reports/ID/cells/99", "intends"),
        ("PUT /v1/reports/ID/cells/99", 404),
        ("PUT /v1/reports/ID/cells/0", "intends"),  # which kinds a site has is no matter of the body's form
        ("PUT /v1/reports/ID/cells/0", 422),
        ("POST /v1/reports/ID/signature", "intends"),
        ("POST /v1/reports/ID/signature", 200),
        ("POST /v1/reports/ID/signature", "intends"),
        ("POST /v1/reports/ID/signature", 409),
        ("GET /v1/reports/ID/report.pdf", 200),
    ]
    for before, after in itertools.pairwise(lines):
        assert "intends" not in before or before["intention"] == after["intention"]
    assert SPECIMEN not in service.path.read_text()
    found = verify(service.path)
    assert (found.records, found.open) == (17, 0)


def fill(audit: AuditLog, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The disk is full once so many more lines are written."""
    write, left = os.write, [after]

    def full(descriptor: int, data: bytes) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink() != audit.path:
            return write(descriptor, data)
        if left[0] <= 0:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)


def test_without_its_intention_nothing_is_done(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    report = posted(service.client)["report_id"]
    with monkeypatch.context() as patch:
        fill(service.audit, patch, 0)
        refused = sign(service.client, report, "*")
        assert "Nothing was done" in assert_problem(refused, 503, "audit-log")["detail"]
        assert_problem(service.client.get(f"/v1/reports/{report}"), 503, "audit-log")
        assert post(service.client, "k").status_code == 503
    assert backlog(service.store).pending == 0
    assert service.client.get(f"/v1/reports/{report}").json()["status"] == "preliminary"
    assert service.reports() == 1
    assert sign(service.client, report, "*").json()["status"] == "final"
    assert verify(service.path).open == 0


def test_what_was_done_is_answered_and_its_outcome_follows_when_there_is_room(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = posted(service.client)["report_id"]
    with monkeypatch.context() as patch:
        fill(service.audit, patch, 1)
        signed = sign(service.client, report, "*")
        assert (signed.status_code, signed.json()["status"]) == (200, "final")
        assert service.client.get(f"/v1/reports/{report}").status_code == 503
        assert verify(service.path).open == 1
    assert service.client.get(f"/v1/reports/{report}").status_code == 200
    intends, outcome, read = service.lines()[2:]
    assert (intends["intention"], outcome["status"], read["call"]) == (outcome["intention"], 200, f"GET /v1/reports/{report}")
    assert verify(service.path).open == 0


@pytest.mark.parametrize("committed", [True, False])
def test_killed_between_intention_and_outcome_the_next_start_completes_it(
    classifier: Classifier, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    service = Service(classifier, store_url, tmp_path)
    report = posted(service.client)["report_id"]

    async def not_written(*_: Any) -> None:
        """As the process is gone."""

    def not_committed(*_: Any) -> None:
        raise RuntimeError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(service.audit, "conclude", not_written)
        if not committed:
            patch.setattr(deeds.Begun, "_transaction", not_committed)
        sign(service.client, report, "*")
    service.close()
    assert verify(service.path).open == 1
    service = Service(classifier, store_url, tmp_path)
    left.complete(service.audit, service.store)
    status = service.client.get(f"/v1/reports/{report}").json()["status"]
    intends, outcome, _ = service.lines()[2:]
    assert outcome["intention"] == intends["intention"]
    assert outcome["completed"]
    assert (outcome["call"], outcome["caller"]) == (f"POST /v1/reports/{report}/signature", "local")
    assert (status, outcome["status"], len(outcome["images"])) == (("final", 200, 14) if committed else ("preliminary", None, 0))
    assert verify(service.path).open == 0
    service.close()


@pytest.mark.parametrize("really", [True, False])
def test_a_commit_that_fails_is_looked_up(service: Service, monkeypatch: pytest.MonkeyPatch, really: bool) -> None:
    """The connection is lost at the commit: whether it was done, the store says, and the answer."""
    report = posted(service.client)["report_id"]
    engine = service.store._engine
    commit, failures = engine.dialect.do_commit, [True]

    def lost(connection: Any) -> None:
        if failures and threading.current_thread().name != "outbox":  # which reads the store whenever it likes
            failures.clear()
            if really:
                commit(connection)
            raise engine.dialect.dbapi.OperationalError("server closed the connection unexpectedly")  # type: ignore[union-attr]
        commit(connection)

    monkeypatch.setattr(engine.dialect, "do_commit", lost)
    signed = sign(service.client, report, "*")
    assert signed.status_code == (200 if really else 503)
    assert service.client.get(f"/v1/reports/{report}").json()["status"] == ("final" if really else "preliminary")
    assert backlog(service.store).pending == (1 if really else 0)


def test_where_nobody_can_tell_the_answer_is_no_503(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    report = posted(service.client)["report_id"]

    def lost(_: Any) -> None:
        raise service.store._engine.dialect.dbapi.OperationalError("gone")  # type: ignore[union-attr]

    with monkeypatch.context() as patch:
        patch.setattr(service.store._engine.dialect, "do_commit", lost)
        if service.store.is_file:  # a look is enough: nothing is on its way
            assert_problem(sign(service.client, report, "*"), 503, "store-unavailable")
        else:
            assert_problem(sign(service.client, report, "*"), 500, "outcome-unknown")
    assert verify(service.path).open == (0 if service.store.is_file else 1)
    left.complete(service.audit, service.store)
    assert verify(service.path).open == 0


# --- the real thing ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "64k") -> Iterator[Path]:
    """A tmpfs."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_signature_with_the_audit_logs_disk_full(model_dir: Path, tmp_path: Path) -> None:
    port = free_port()
    with small_disk(tmp_path / "small") as disk:
        path = disk / "audit.jsonl"
        (tmp_path / "site.yaml").write_text("review_before_signature: nothing\n")
        environment = clean_environment(
            WBC_AUDIT_LOG=str(path),
            WBC_STORE_URL=sqlite_url(tmp_path / "service.db"),
            WBC_SITE_FILE=str(tmp_path / "site.yaml"),
        )
        with (
            started(serve_command(model_dir, port), port, tmp_path, environment, ROOT) as server,
            httpx.Client(base_url=server.url, timeout=30) as client,
        ):
            report = posted(client, [of_class("Neutrophil")])["report_id"]  # which nobody must look at
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(512)):
                    pass
            while (answer := client.get("/v1/model")).status_code == 200:  # what is left of the log's last page
                pass
            assert_problem(answer, 503, "audit-log")
            headers = {"If-Match": "*", "Idempotency-Key": "s"}
            url = f"/v1/reports/{report}/signature"
            assert_problem(client.post(url, json=DOCTOR, headers=headers), 503, "audit-log")
            with sqlite3.connect(tmp_path / "service.db") as store:
                assert store.execute("SELECT status FROM reports").fetchall() == [("preliminary",)]
            filler.unlink()
            assert client.post(url, json=DOCTOR, headers=headers).json()["status"] == "final"
            assert client.post(url, json=DOCTOR, headers=headers).headers["idempotency-replayed"] == "true"
        found = verify(path)
        assert (found.open, found.torn > 0) == (0, True)
        shutil.copy(path, tmp_path)


def test_the_audit_log_waits_for_nobody_that_has_gone(tmp_path: Path) -> None:
    async def gone() -> None:
        log = AuditLog(tmp_path / "audit.jsonl")
        intention = await log.intend("ward", "POST /v1/differential")
        call = asyncio.create_task(log.conclude(intention, {"caller": "ward", "call": "x", "status": 200}))
        await asyncio.sleep(0)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        log.close()

    asyncio.run(gone())
    assert verify(tmp_path / "audit.jsonl").records >= 1
