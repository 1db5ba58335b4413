"""Backup, restore and removal: what belongs together stays together, and nothing newer is overwritten without a word."""

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import ROOT, clean_environment, form, free_port, of_class, serve_command, started
from readers import asked, next_of, says
from specimens import PERSON, SPECIMEN, reported, several, site
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from serving.http.running import Kept
from serving.reports.answers import whole
from serving.reports.errors import NoSuchReport
from serving.reports.review import Action, correct, find, sign
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import Base, Deed, Report
from serving.security.audit import AuditLog, outcome
from serving.security.chain import lines, read_record, verify
from serving.security.keys import add_key, list_keys
from serving.upkeep.backup import CONTENTS, Places, back_up, bring_back, read_contents
from serving.upkeep.removal import remove, remove_here, reports_of
from wbc_model.core.errors import WbcError

URLS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


@pytest.fixture
def places(store_url: str, tmp_path: Path) -> Places:
    """A store with two reports, one signed, an audit log of two lines, and a key."""
    add_key(tmp_path / "service.keys", "ward", ["review"])
    store = Store.open(store_url)
    of = site()
    sign(store, Action(reported(store, of, several("Neutrophil", 12)), PERSON), of)
    reported(store, of, several("Lymphocyte", 12))
    asked(store, 2)
    says(store, "Dr. Ada", str(next_of(store, "Dr. Ada")), "Monocyte")
    store.close()
    add_lines(tmp_path / "audit.jsonl", 2)
    return Places(store_url, tmp_path / "audit.jsonl", tmp_path / "service.keys")


def log_of(places: Places) -> Path:
    assert places.audit is not None
    return places.audit


def add_lines(path: Path, count: int) -> None:
    log = AuditLog(path)
    for _ in range(count):
        asyncio.run(log.record("ward", "GET /v1/reports", 200, [], None, b"{}"))
    log.close()


def records(path: Path) -> list[dict[str, Any]]:
    return [record for *_, line in lines(path) if (record := read_record(line))]


def everything(url: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables."""
    store = Store.open(url)
    with store.snapshot() as connection:
        rows = {
            table.name: [dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()]
            for table in Base.metadata.sorted_tables
        }
    store.close_for_good()
    return rows


def lose(places: Places) -> None:
    """The machine is gone."""
    store = Store.open(places.store)
    store.empty()
    store.close_for_good()
    assert places.keys is not None
    for path in (*log_of(places).parent.glob("audit.jsonl*"), places.keys):
        path.unlink()


@pytest.mark.parametrize("store_url", URLS, indirect=True)
def test_what_was_backed_up_comes_back_whole(places: Places, tmp_path: Path) -> None:
    before, last = everything(places.store), verify(log_of(places))
    assert places.keys is not None
    keys = list_keys(places.keys)
    found = back_up(places, tmp_path / "backup")
    assert (found["reports"], found["audit"]["records"], found["audit"]["last"], found["keys"]) == (2, 2, last.last, True)
    assert {one.stat().st_mode & 0o77 for one in (tmp_path / "backup").iterdir() if one.name != CONTENTS} == {0}
    lose(places)
    back = bring_back(tmp_path / "backup", places, replace=False)
    assert (back["aside"], back["newer"]) == (None, [])
    assert everything(places.store) == before
    assert (len(before["reports"]), len(before["asked_images"]), len(before["answers"])) == (2, 2, 1)
    assert verify(log_of(places)) == last
    assert list_keys(places.keys) == keys
    assert read_contents(tmp_path / "backup")["reports"] == 2  # restoring has changed nothing in it
    store = Store.open(places.store)
    more = reported(store, site(), several("Monocyte", 12))  # the numbers go on behind those that came back
    correct(store, Action(more, PERSON), 0, "Basophil", site())
    assert sign(store, Action(more, PERSON), site()).status == "final"
    says(store, "Dr. Ada", str(next_of(store, "Dr. Ada")), "Band")
    store.close()
    add_lines(log_of(places), 1)
    assert verify(log_of(places)).records == 3


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_what_is_newer_is_not_overwritten_without_a_word(places: Places, tmp_path: Path) -> None:
    back_up(places, tmp_path / "backup")
    assert bring_back(tmp_path / "backup", places, replace=False)["newer"] == []  # the same again is nothing newer
    store = Store.open(places.store)
    [first, _] = reports_of(store, SPECIMEN)
    correct(store, Action(first, PERSON, amend=True), 0, "Basophil", site())
    added = reported(store)
    store.close()
    add_lines(log_of(places), 1)
    before = everything(places.store)
    with pytest.raises(WbcError, match="newer than the backup: 1 report is not in it; 1 report was changed since; the audit"):
        bring_back(tmp_path / "backup", places, replace=False)
    assert everything(places.store) == before
    back = bring_back(tmp_path / "backup", places, replace=True)
    assert len(back["newer"]) == 3
    assert added not in {row["id"] for row in everything(places.store)["reports"]}
    assert verify(log_of(places)).records == 2
    bring_back(Path(back["aside"]), places, replace=False)  # and it is not lost
    assert everything(places.store) == before
    assert verify(log_of(places)).records == 3


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_answers_of_readers_are_not_overwritten_without_a_word(places: Places, tmp_path: Path) -> None:
    back_up(places, tmp_path / "backup")
    store = Store.open(places.store)
    says(store, "Dr. Ada", str(next_of(store, "Dr. Ada")), "Band")
    store.close()
    with pytest.raises(WbcError, match="newer than the backup: 1 answer of a reader is not in it"):
        bring_back(tmp_path / "backup", places, replace=False)
    assert len(everything(places.store)["answers"]) == 2


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_damaged_backup_is_refused_and_nothing_is_changed(places: Places, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    back_up(places, backup)
    with pytest.raises(WbcError, match="is there already"):
        back_up(places, backup)
    before = everything(places.store)
    for name in ("service.db", "audit.jsonl", "service.keys"):
        content = (backup / name).read_bytes()
        (backup / name).write_bytes(content[:-1] + b"X")
        with pytest.raises(WbcError, match=f"{name} is missing or damaged"):
            bring_back(backup, places, replace=True)
        (backup / name).write_bytes(content)
    (backup / CONTENTS).write_text("{}")
    with pytest.raises(WbcError, match="is of format None"):
        bring_back(backup, places, replace=True)
    with pytest.raises(WbcError, match="is no backup"):
        bring_back(tmp_path / "none", places, replace=True)
    assert everything(places.store) == before


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_while_a_service_runs_nothing_is_brought_back(places: Places, tmp_path: Path) -> None:
    back_up(places, tmp_path / "backup")
    log = AuditLog(log_of(places))
    try:
        with pytest.raises(WbcError, match="a service is running"):
            bring_back(tmp_path / "backup", places, replace=True)
        store = Store.open(places.store)
        with pytest.raises(WbcError, match="a service is running"):
            remove_here(store, log_of(places), reports_of(store, SPECIMEN), "Dr. Ada", "asked for")
    finally:
        log.close()


@pytest.mark.parametrize("store_url", URLS, indirect=True)
def test_a_service_without_an_audit_log_is_noticed_too(places: Places, tmp_path: Path) -> None:
    places = places._replace(audit=None)
    back_up(places, tmp_path / "backup")
    store = Store.open(places.store)
    first, second = (Kept(one, site()) for one in (store, Store.open(places.store)))  # two services may share a store
    second.close()
    before = everything(places.store)
    for replace in (False, True):
        with pytest.raises(WbcError, match=r"^a service is running \(it works with the store .*\): stop it first$"):
            bring_back(tmp_path / "backup", places, replace)
    with pytest.raises(WbcError, match="a service is running"):
        remove_here(Store.open(places.store), tmp_path / "no.jsonl", reports_of(store, SPECIMEN), "Dr. Ada", "asked for")
    assert everything(places.store) == before
    first.close()
    store = Store.open(places.store)
    with store.held(alone=True), pytest.raises(WbcError, match="is being restored"):
        Kept(store, site())
    store.close()
    assert bring_back(tmp_path / "backup", places, replace=True)["reports"] == 2
    Kept(Store.open(places.store), site()).close()


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_the_log_ends_before_the_first_outcome_that_the_store_does_not_know(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deed is done between the copy of the store and that of the log."""
    import serving.upkeep.backup as module

    log, store = AuditLog(log_of(places)), Store.open(places.store)

    def deed(name: str) -> None:
        intention = asyncio.run(log.intend("ward", f"POST /v1/{name}"))
        record = outcome("ward", f"POST /v1/{name}", 200, [], None, b"{}")
        with store.writing() as session:
            moment = session.scalars(select(Report.created_at)).first()
            session.add(
                Deed(intention=intention, caller="ward", digest="", status=200, headers={}, body=b"", record=record, at=moment)
            )
        asyncio.run(log.conclude(intention, record))

    original = module._copy_store

    def between(url: str, target: Path) -> Any:
        found = original(url, target)
        deed("later")
        return found

    deed("known")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_copy_store", between)
        found = back_up(places, tmp_path / "backup")
    log.close()
    assert [one.get("call", one.get("intends")) for one in records(tmp_path / "backup/audit.jsonl")[2:]] == [
        "POST /v1/known",
        "POST /v1/known",
        "POST /v1/later",
    ]
    assert (found["audit"]["records"], verify(tmp_path / "backup/audit.jsonl").open) == (5, 1)
    bring_back(tmp_path / "backup", places, replace=True)
    restored = AuditLog(log_of(places))
    assert [what["intends"] for what in restored.intentions.values()] == ["POST /v1/later"]  # the start completes it: not done
    restored.close()


# --- removal ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store_url", URLS, indirect=True)
def test_a_removed_report_leaves_the_record_of_its_removal_and_nothing_else(places: Places) -> None:
    store = Store.open(places.store)
    first, second = reports_of(store, SPECIMEN)
    correct(store, Action(first, PERSON, amend=True), 0, "Basophil", site())
    others = whole(find(store, second), site())
    [(removal, _)] = remove_here(store, log_of(places), [first], "Dr. Ada", "the patient asked for it")
    assert (removal.report_id, removal.by, removal.reason) == (first, "Dr. Ada", "the patient asked for it")
    rows = everything(places.store)
    assert [row["id"] for row in rows["reports"]] == [second]
    for name, found in rows.items():
        if name not in ("removals", "deeds"):
            assert first not in json.dumps(found, default=str), name
    [kept] = rows["removals"]
    assert (kept["report_id"], kept["by"]) == (first, "Dr. Ada")
    store = Store.open(places.store)
    assert whole(find(store, second), site()) == others
    for statement in ("UPDATE removals SET reason = 'x'", "DELETE FROM removals"):
        with pytest.raises(DBAPIError, match="only ever added"), store.writing() as session:
            session.execute(text(statement))
    with pytest.raises(NoSuchReport, match="no report"):
        remove(store, first, "Dr. Ada", "again")
    store.close()
    verified = verify(log_of(places))
    assert (verified.records, verified.open) == (4, 0)
    last = records(log_of(places))[-1]
    assert (last["call"], last["by"], last["reason"]) == (f"DELETE /v1/reports/{first}", "Dr. Ada", "the patient asked for it")


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_nothing_of_a_removed_specimen_can_be_read_in_the_files(places: Places, tmp_path: Path) -> None:
    store = Store.open(places.store)
    assert any(SPECIMEN.encode() in one.read_bytes() for one in tmp_path.rglob("*") if one.is_file())
    remove_here(store, log_of(places), reports_of(store, SPECIMEN), "Dr. Ada", "asked for")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert SPECIMEN.encode() not in path.read_bytes(), path


# --- beside a running service ------------------------------------------------------------------------------------------------


def wbc(workspace: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "flows.cli", *words]
    environment = clean_environment(PYTHONPATH=str(ROOT))
    return subprocess.run(line, cwd=workspace, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_a_running_service_is_backed_up_loses_a_report_and_comes_back(model_dir: Path, tmp_path: Path) -> None:
    """The commands, beside a service that is being written to."""
    workspace, data = tmp_path / "site", tmp_path / "site/data"
    data.mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, workspace / name)
    key = add_key(data / "service.keys", "ward", ["classify", "review", "admin"])
    environment = clean_environment(
        WBC_API_KEYS_FILE=str(data / "service.keys"),
        WBC_AUDIT_LOG=str(data / "audit.jsonl"),
        WBC_STORE_URL=sqlite_url(data / "service.db"),
    )
    port = free_port()
    with started(serve_command(model_dir, port), port, tmp_path, environment, ROOT) as server:
        client = httpx.Client(base_url=server.url, headers={"X-API-Key": key}, timeout=60)
        sent = {"files": form(of_class("Basophil"), of_class("Monocyte")), "data": {"specimen_id": SPECIMEN}}
        once = {"Idempotency-Key": "once"}
        gone = client.post("/v1/differential", **sent, headers=once).json()["report_id"]  # type: ignore[arg-type]
        backed_up_while_busy(client, workspace, tmp_path / "backup")
        refused = wbc(workspace, "reports", "remove", gone, "--by", "Dr. Ada", "--reason", "asked for")
        assert (refused.returncode, "a service is running" in refused.stderr) == (1, True), refused.stderr
        answer = client.request("DELETE", f"/v1/reports/{gone}", json={"by": "Dr. Ada", "reason": "asked for"})
        assert (answer.status_code, answer.json()["report_id"]) == (200, gone)
        assert client.get(f"/v1/reports/{gone}").status_code == 404
        again = client.post("/v1/differential", **sent, headers=once)  # type: ignore[arg-type]
        assert (again.status_code, again.json()["type"]) == (410, "urn:wbc:problem:removed")
        assert SPECIMEN not in again.text
        assert "a service is running" in wbc(workspace, "restore", str(tmp_path / "backup")).stderr
    assert wbc(workspace, "audit", "verify").returncode == 0
    refused = wbc(workspace, "restore", str(tmp_path / "backup"))
    assert (refused.returncode, "newer than the backup" in refused.stderr) == (1, True), refused.stderr
    back = wbc(workspace, "restore", str(tmp_path / "backup"), "--replace")
    assert back.returncode == 0, back.stderr
    assert wbc(workspace, "audit", "verify").returncode == 0
    removed = wbc(workspace, "reports", "remove", "--specimen", SPECIMEN, "--by", "Dr. Ada", "--reason", "asked for")
    assert (removed.returncode, f"removed {gone}" in removed.stdout) == (0, True), removed.stderr


def backed_up_while_busy(client: httpx.Client, workspace: Path, backup: Path) -> None:
    """Each deed in the backup's store has its lines in the backup's log, and no line speaks of another deed."""
    stop = threading.Event()

    def busy() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            client.post("/v1/differential", files=form(of_class("Neutrophil")), data={"specimen_id": f"B-{number}"})

    writer = threading.Thread(target=busy)
    writer.start()
    try:
        made = wbc(workspace, "backup", str(backup), "--json")
    finally:
        stop.set()
        writer.join()
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["reports"] > 1
    store = Store.open(sqlite_url(shutil.copy(backup / "service.db", backup.with_suffix(".db"))))
    with store.reading() as session:
        deeds = set(session.scalars(select(Deed.intention)))
    store.close()
    kept = records(backup / "audit.jsonl")
    intended = {one["intention"] for one in kept if "intends" in one}
    done = {one["intention"] for one in kept if "intention" in one and one.get("status") == 200}
    assert done <= deeds <= intended
