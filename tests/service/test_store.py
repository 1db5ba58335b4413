"""What is kept: the same tests on SQLite and on a real PostgreSQL."""

import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from databases import new_database
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live import ROOT, clean_environment
from specimens import PERSON, SPECIMEN, classified, read, rejected, reported, several, site
from sqlalchemy import create_engine, inspect, make_url, select, text
from sqlalchemy.exc import DBAPIError, OperationalError

from serving.contract.differential import Differential
from serving.contract.schemas import Result
from serving.contract.site import Hl7Receiver
from serving.contract.specimen import Specimen
from serving.reports import store as store_module
from serving.reports.errors import AlreadySigned, ChangedMeanwhile, NoSuchCell, NotSignable, RejectedCell
from serving.reports.intake import take_in
from serving.reports.kept_images import images_of
from serving.reports.labelling_tables import AskedImage
from serving.reports.review import Action, changed_cells, correct, find, sign, undo
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import Base, KeptImage, Message, Removal, Report
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError

REPORT = "e" * 32
RECEIVER = Hl7Receiver(host="127.0.0.1", port=9)


def test_the_migrations_make_the_tables_of_the_models(store: Store) -> None:
    with store.reading() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        # Alembic compares neither constraints that check nor what a primary key is called
        found = inspect(session.connection())
        for name, table in Base.metadata.tables.items():
            assert set(found.get_pk_constraint(name)["constrained_columns"]) == {column.name for column in table.primary_key}
            checks = {one["name"] for one in found.get_check_constraints(name)}
            assert checks == {one.name for one in table.constraints if type(one).__name__ == "CheckConstraint"}


def test_opening_again_changes_nothing_and_keeps_what_is_there(store: Store, store_url: str) -> None:
    report = reported(store)
    again = Store.open(store_url)
    assert find(again, report).specimen_id == SPECIMEN
    again.close()


def test_processes_that_open_an_empty_store_at_once_wait_for_each_other(blank_url: str) -> None:
    code = "import sys; from serving.reports.store import Store; Store.open(sys.argv[1]).close()"
    command = [sys.executable, "-c", code, blank_url]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    reported(Store.open(blank_url))


def test_a_store_of_a_newer_version_is_refused_in_one_line(store: Store, store_url: str) -> None:
    with store.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(WbcError, match=r"newer version.*9999.*0008") as refused:
        Store.open(store_url)
    assert "\n" not in str(refused.value)


def test_times_keep_their_moment_and_have_a_zone(store: Store) -> None:
    report = reported(store)
    moment = datetime(2026, 11, 23, 1, 30, tzinfo=timezone(timedelta(hours=5)))
    with store.writing() as session:
        session.get_one(Report, report).changed_at = moment
    read = find(store, report).changed_at
    assert read == moment
    assert read.utcoffset() == timedelta(0)
    with pytest.raises(Exception, match="without a time zone"), store.writing() as session:
        session.get_one(Report, report).changed_at = datetime(2026, 11, 23)


def test_a_report_is_kept_as_it_was_answered(store: Store) -> None:
    results: list[Result] = [classified("Neutrophil"), rejected(), classified("Basophil", review=True)]
    report = find(store, reported(store, results=results))
    assert (report.status, report.version, report.model_version, report.wbc_count) == ("preliminary", 1, "tiny-1", 5.0)
    assert [cell.label for cell in report.cells] == ["Neutrophil", None, "Basophil"]
    assert [cell.result for cell in report.cells] == [result.model_dump(mode="json") for result in results]
    assert report.differential["classes"]["Neutrophil"]["count"] == 1
    assert report.differential["to_review"] == 1


@pytest.mark.parametrize("keep", [True, False])
def test_images_are_kept_only_where_the_site_says_so(store: Store, keep: bool) -> None:
    reported(store, site(keep_images=keep), [classified("Neutrophil"), rejected()])
    with store.reading() as session:
        images = list(session.scalars(select(KeptImage.data)))
    assert images == ([b"image 0"] if keep else [])


def test_a_correction_counts_again_and_stays(store: Store) -> None:
    report = reported(store)
    correct(store, Action(report, PERSON, 1), 12, "Monocyte", site())
    correct(store, Action(report, PERSON, 2), 13, "Lymphocyte", site())  # looked at and confirmed
    correct(store, Action(report, PERSON, 3), 0, None, site())
    kept = find(store, report)
    differential = Differential.model_validate(kept.differential)
    counts = {name: share.count for name, share in differential.classes.items()}
    assert counts == {"Basophil": 0, "Eosinophil": 0, "Lymphocyte": 6, "Monocyte": 1, "Neutrophil": 11}
    assert differential.classes["Neutrophil"].percent == pytest.approx(100 * 11 / 18)
    assert differential.classes["Monocyte"].absolute is not None
    assert differential.classes["Monocyte"].absolute.value == pytest.approx(5.0 / 18)
    assert (differential.cells, differential.to_review, differential.by_person) == (18, 5, 2)
    changes = [(one.position, one.from_label, one.to_label, one.by, one.caller, one.version) for one in kept.corrections]
    assert changes == [
        (12, "Lymphocyte", "Monocyte", "Dr. Ada", "ward", 2),
        (13, "Lymphocyte", "Lymphocyte", "Dr. Ada", "ward", 3),
        (0, "Neutrophil", None, "Dr. Ada", "ward", 4),
    ]
    assert changed_cells(kept) == 2
    assert kept.version == 4
    assert kept.cells[12].result["label"] == "Lymphocyte"  # what the model said stays


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 18), st.sampled_from([*CLASSES, None])), max_size=6))
def test_the_corrections_replayed_give_the_labels(store: Store, changes: list[tuple[int, str | None]]) -> None:
    report = reported(store)
    for position, label in changes:
        correct(store, Action(report, PERSON), position, label, site())
    kept = find(store, report)
    labels = [cell.result.get("label") for cell in kept.cells]
    for change in kept.corrections:
        assert labels[change.position] == change.from_label
        labels[change.position] = change.to_label
    assert labels == [cell.label for cell in kept.cells]
    counts = {name: share["count"] for name, share in kept.differential["classes"].items()}
    assert counts == {name: labels.count(name) for name in CLASSES}


def test_that_the_site_is_unknown_outlives_a_correction(store: Store) -> None:
    report = take_in(store, read(several("Neutrophil", 12, True, "site_unknown"), 0.02), Specimen(None, None), site()).report.id
    correct(store, Action(report, PERSON, 1), 0, "Basophil", site())
    kept = Differential.model_validate(find(store, report).differential)
    assert kept.site_unknown
    assert kept.classes["Neutrophil"].corrected is None


@pytest.mark.parametrize(
    ("position", "expected", "error"),
    [(0, 7, ChangedMeanwhile), (20, 1, NoSuchCell), (-1, 1, NoSuchCell), (19, 1, RejectedCell)],
)
def test_a_correction_that_cannot_be_leaves_no_trace(store: Store, position: int, expected: int, error: type[Exception]) -> None:
    report = reported(store)
    with pytest.raises(error):
        correct(store, Action(report, PERSON, expected), position, "Monocyte", site())
    kept = find(store, report)
    assert (kept.version, kept.corrections) == (1, [])


def test_without_a_cell_there_is_nothing_to_sign(store: Store) -> None:
    report = reported(store, results=[classified("Neutrophil")])
    correct(store, Action(report, PERSON, 1), 0, None, site())
    assert find(store, report).differential["cells"] == 0
    with pytest.raises(NotSignable) as refused:
        sign(store, Action(report, PERSON, 2), site())
    assert [block.kind for block in refused.value.blocked] == ["no_cells"]
    undo(store, Action(report, PERSON, 2), 0, site())
    assert sign(store, Action(report, PERSON, 3), site()).status == "final"


def test_a_signed_report_is_corrected_only_as_an_amendment(store: Store) -> None:
    of = site(RECEIVER)
    report = reported(store, of)
    sign(store, Action(report, PERSON, 1), of)
    with pytest.raises(AlreadySigned):
        correct(store, Action(report, PERSON), 0, "Basophil", of)
    with pytest.raises(NotSignable) as refused:
        sign(store, Action(report, PERSON), of)
    assert [block.kind for block in refused.value.blocked] == ["signed"]
    assert find(store, report).status == "final"
    correct(store, Action(report, PERSON, 2, amend=True), 0, "Basophil", of)
    assert find(store, report).status == "preliminary"  # what nobody has signed is not final
    sign(store, Action(report, PERSON, 3), of)
    kept = find(store, report)
    assert kept.status == "amended"
    assert [(one.status, one.version) for one in kept.signatures] == [("final", 2), ("amended", 4)]
    assert [one.differential["classes"]["Basophil"]["count"] for one in kept.signatures] == [0, 1]
    assert [one.text.split("\rOBR")[1].split("|")[25] for one in kept.messages] == ["F", "C"]


def test_signing_and_the_outbox_are_one_transaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    of = site(RECEIVER)
    report = reported(store, of)

    def fails(*_: object) -> None:
        raise RuntimeError("the message cannot be made")

    with monkeypatch.context() as patch:
        patch.setattr("serving.reports.messages.oru_r01", fails)
        with pytest.raises(RuntimeError):
            sign(store, Action(report, PERSON, 1), of)
    kept = find(store, report)
    assert (kept.status, kept.signatures, kept.messages) == ("preliminary", [], [])
    sign(store, Action(report, PERSON, 1), of)
    [message] = find(store, report).messages
    assert (message.state, message.attempts, len(message.control_id)) == ("pending", 0, 20)
    assert f"|{message.control_id}|" in message.text


def test_without_a_receiver_nothing_waits_for_one(store: Store) -> None:
    report = reported(store)
    sign(store, Action(report, PERSON, 1), site())
    assert find(store, report).messages == []


def test_of_two_people_who_correct_at_once_one_is_told(store: Store) -> None:
    report = reported(store)
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def person(label: str) -> None:
        barrier.wait()
        try:
            correct(store, Action(report, PERSON, 1), 0, label, site())
            outcomes.append("corrected")
        except ChangedMeanwhile as told:
            outcomes.append(f"{told.expected} is {told.version} now")

    threads = [threading.Thread(target=person, args=(label,)) for label in CLASSES[:4]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [*["1 is 2 now"] * 3, "corrected"]
    kept = find(store, report)
    assert (len(kept.corrections), kept.version) == (1, 2)


@pytest.mark.parametrize("statement", ["UPDATE corrections SET by = 'x'", "DELETE FROM corrections", "DELETE FROM signatures"])
def test_the_database_itself_refuses_to_change_what_people_did(store: Store, statement: str) -> None:
    report = reported(store)
    correct(store, Action(report, PERSON, 1), 0, "Basophil", site())
    sign(store, Action(report, PERSON, 2), site())
    with pytest.raises(DBAPIError, match="only ever added"), store.writing() as session:
        session.execute(text(statement))
    kept = find(store, report)
    assert (len(kept.corrections), len(kept.signatures), kept.corrections[0].by) == (1, 1, "Dr. Ada")


def test_rows_cannot_point_to_nothing_and_states_are_known_ones(store: Store) -> None:
    now = datetime.now(UTC)
    with pytest.raises(DBAPIError), store.writing() as session:
        session.add(Message(report_id="0" * 32, control_id="A", text="x", not_before=now, created_at=now))
    report = reported(store)
    with pytest.raises(DBAPIError), store.writing() as session:
        session.execute(text("UPDATE reports SET status = 'done' WHERE id = :id"), {"id": report})


def test_a_statement_is_not_waited_for_for_ever(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stands still keeps no limit of its own. Those who come next are refused at once, for some seconds."""
    monkeypatch.setattr(store_module, "SILENT_SECONDS", 1)
    store = Store.open(new_database(postgres))
    began = time.monotonic()
    with store.reading() as session:
        store_module._wait_for(session.connection(), 0.5)
        with pytest.raises(OperationalError, match="does not answer"):
            session.execute(text("SELECT pg_sleep(8)"))
    assert time.monotonic() - began < 4
    refused = time.monotonic()
    with pytest.raises(OperationalError, match="does not answer"), store.reading() as session:
        session.execute(text("SELECT 1"))
    assert time.monotonic() - refused < 0.5
    time.sleep(1)
    with store.reading() as session:
        assert session.scalar(text("SELECT 1")) == 1
    store.close()


def test_an_error_names_neither_specimen_nor_password(store: Store, store_url: str, postgres: str) -> None:
    with pytest.raises(DBAPIError) as error, store.writing() as session:
        session.execute(text("INSERT INTO reports (specimen_id) VALUES (:specimen)"), {"specimen": "SECRET-1"})
    assert "SECRET-1" not in str(error.value)
    password = postgres.split(":")[2].partition("@")[0]
    for url in (f"{postgres}/not_there", postgres.replace(password, "wrong-secret") + "/postgres"):
        with pytest.raises(WbcError) as refused:
            Store.open(url)
        assert "cannot be used" in str(refused.value)
        assert not {password, "wrong-secret"} & set(str(refused.value).replace('"', " ").split())
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://wbc:top-secret@127.0.0.1:1/wbc", "cannot be used"),
        ("postgresql://wbc:top@secret@127.0.0.1:1/wbc", "%40"),
        ("postgresql://127.0.0.1:1/wbc?user=wbc&password=top-secret", "cannot be used"),
        ("mysql://wbc:top-secret@127.0.0.1/wbc", "use sqlite or postgresql"),
        ("top-secret", "not a database URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line_without_the_password(url: str, words: str) -> None:
    with pytest.raises(WbcError, match=words) as refused:
        Store.open(url)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_sqlite_store_is_private_durable_and_made_where_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "deep er" / "ser%vice.db"
    store = Store.open(sqlite_url(path))
    reported(store)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    with store.writing() as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    store.close()


def test_a_file_that_is_no_database_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "service.db").write_bytes(b"this is not a database, but it is long enough to look like one" * 100)
    with pytest.raises(WbcError, match=r"service\.db cannot be used: file is not a database"):
        Store.open(sqlite_url(tmp_path / "service.db"))
    with pytest.raises(WbcError, match="cannot be written"):
        Store.open(sqlite_url(tmp_path))


WHEN = "'2026-01-01 00:00:00+00:00'"


def _image(url: str) -> str:
    return "x'696d616765'" if url.startswith("sqlite") else "'\\x696d616765'"


def _at_0001(url: str) -> None:
    """A store as the first version made it, with a signed and sent report."""
    image, when = _image(url), WHEN
    rows = (
        f"INSERT INTO reports VALUES ('{REPORT}', 3, 'final', 'S-1', NULL, 'wbc', 'v1', NULL, '{{}}', {when}, {when})",
        f"INSERT INTO cells VALUES ('{REPORT}', 0, '{'a' * 64}', '{{}}', 'Monocyte', {image})",
        f"INSERT INTO corrections VALUES (1, '{REPORT}', 0, NULL, 'Monocyte', 'Ada', 'local', {when}, 2)",
        f"INSERT INTO signatures VALUES (1, '{REPORT}', 'final', '{{}}', 'Ada', 'local', {when}, 3)",
        f"INSERT INTO outbox VALUES (7, '{REPORT}', 'C1', 'MSH', 'failed', 1, 0, {when}, {when}, NULL, 'AE')",
    )
    _at(url, "0001", rows)


def _at(url: str, revision: str, rows: Sequence[str]) -> None:
    """A store as an earlier version made it, with these rows."""
    engine = create_engine(make_url(url).set(drivername="sqlite" if url.startswith("sqlite") else "postgresql+psycopg"))
    config = Config()
    config.set_main_option("script_location", str(ROOT / "serving/reports/migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    with engine.begin() as connection:
        for row in rows:
            connection.exec_driver_sql(row)
    engine.dispose()


def test_a_store_of_the_first_version_keeps_what_it_has(blank_url: str) -> None:
    _at_0001(blank_url)
    store = Store.open(blank_url)
    report = find(store, REPORT)
    assert (report.status, report.rendered, report.expected_images, report.withdrawn_at) == ("final", False, None, None)
    assert [(one.to_label, one.undoes) for one in report.corrections] == [("Monocyte", None)]
    assert [(one.id, one.state, one.error) for one in report.messages] == [(7, "failed", "AE")]
    assert [cell.has_image for cell in report.cells] == [True]
    with store.writing() as session:
        assert images_of(session, REPORT, [0]) == {0: b"image"}
        session.get_one(Message, 7).state = "retired"
    store.close()


def test_a_store_of_before_keeps_its_queues_with_their_images_and_answers(blank_url: str) -> None:
    """SQLite makes the table of cells anew, which images and answers point to."""
    queue, cell = "0123456789ab", "a" * 64
    yes, no = ("1", "0") if blank_url.startswith("sqlite") else ("true", "false")
    place = f"5, 1, 'uncertain', 'asked', '', 'Band', 0.5, 40, 40, 1, 1, 1, 'agreed', {no}, NULL, NULL, NULL"
    rows = (
        f"INSERT INTO queues VALUES ('{queue}', 'ward', 1, 'm', {WHEN}, NULL, NULL, NULL, 'soon')",
        f"INSERT INTO asked_cells VALUES ('{queue}', '{cell}', {place}, 'Band', 'one', {WHEN}, NULL, NULL)",
        f"INSERT INTO asked_images VALUES ('{queue}', '{cell}', NULL, {_image(blank_url)}, NULL)",
        f"INSERT INTO readers VALUES ('{queue}', 'Ada', 1, 1, 0, {WHEN})",
        f"INSERT INTO tasks VALUES ('{queue}', 'Ada', 1, '{cell}', 'first', {yes}, 'answered', {WHEN}, {WHEN}, 'Band', 1)",
        f"INSERT INTO answers VALUES (1, '{queue}', '{cell}', 'Ada', 'key', 'Band', 1.5, {WHEN}, 1, 'sweep', NULL)",
    )
    _at(blank_url, "0005", rows)
    store = Store.open(blank_url)
    with store.reading() as session:
        counts = {name: len(session.execute(text(f"SELECT * FROM {name}")).all()) for name in Base.metadata.tables}
        assert {name: count for name, count in counts.items() if count} == dict.fromkeys(
            ("queues", "asked_cells", "asked_images", "readers", "tasks", "answers"), 1
        )
        assert session.get_one(AskedImage, (queue, cell)).data == b"image"
    for statement in ("UPDATE asked_cells SET state = 'unnamed'", "UPDATE asked_cells SET withdrawn = 'removed'"):
        with store.writing() as session:
            session.execute(text(statement))
    for statement in ("UPDATE asked_cells SET state = 'lost'", f"UPDATE tasks SET sha256 = '{'b' * 64}'"):
        with pytest.raises(DBAPIError), store.writing() as session:
            session.execute(text(statement))
    store.close()


def test_what_people_did_is_deleted_only_with_a_removal_that_says_so(blank_url: str) -> None:
    _at_0001(blank_url)
    store = Store.open(blank_url)
    tables = ("corrections", "signatures")
    for table in tables:
        with pytest.raises(DBAPIError, match="only ever added"), store.writing() as session:
            session.execute(text(f"DELETE FROM {table}"))
    with store.writing() as session:
        session.add(Removal(report_id=REPORT, reason="asked for by the patient", by="Ada", at=datetime.now(UTC)))
        session.flush()
        for table in (*tables, "cells", "outbox"):
            session.execute(text(f"DELETE FROM {table}"))
        session.execute(text("DELETE FROM reports"))
    with store.reading() as session:
        assert session.get(Report, REPORT) is None
    store.close()
