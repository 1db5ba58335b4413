"""The worklist, and what people say to each other about a report: in the store of either kind, and over HTTP."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from specimens import PERSON, reported, several, site
from sqlalchemy import text as sql
from sqlalchemy.exc import DatabaseError
from test_reports import assert_problem, client_of, posted, sign

from serving.contract.report_schemas import Shelf
from serving.inference.classify import Classifier
from serving.reports.answers import opinions, whole
from serving.reports.errors import ChangedMeanwhile, NoSuchCell
from serving.reports.listing import listed
from serving.reports.review import Action, Person, correct, find, withdraw
from serving.reports.review import sign as sign_report
from serving.reports.store import Store
from serving.reports.tables import Report
from serving.security.audit import AuditLog
from serving.security.keys import ApiKeys, add_key
from serving.upkeep.removal import remove
from serving.worklist.comments import comment
from serving.worklist.errors import AnsweredAlready, AskedAlready, AsksThemselves, NoSuchOpinion, NotTheOneAsked, TakenBackAlready
from serving.worklist.opinions import answer, ask, take_back
from serving.worklist.presence import LASTS, Looking
from serving.worklist.search import Search

OTHER = Person("Dr. Bo", "ward")
THIRD = Person("Dr. Cy", "ward")


def made(store: Store, number: str | None = None, expected: int | None = None, at: datetime | None = None) -> str:
    """A report of twelve cells, with these of its fields."""
    report = reported(store, site(), several("Neutrophil", 12))
    values = {"specimen_id": number, "expected_images": expected, "created_at": at}
    with store.writing() as session:
        row = session.get_one(Report, report)
        for name, value in values.items():
            if value is not None:
                setattr(row, name, value)
    return report


def found(store: Store, **search: Any) -> list[str]:
    return [report.id for report, _ in listed(store, Search(**search), 50)[0]]


# ---------------------------------------------------------------- comments


def test_a_comment_stays_and_leaves_a_signed_report_signed(store: Store) -> None:
    report = made(store)
    sign_report(store, Action(report, PERSON), site())
    signed = whole(find(store, report), site())
    comment(store, Action(report, OTHER), "Smudges at the edge")
    after = whole(comment(store, Action(report, PERSON), "A band?", 3), site())
    assert [(one.index, one.text, one.by, one.caller) for one in after.comments] == [
        (None, "Smudges at the edge", "Dr. Bo", "ward"),
        (3, "A band?", "Dr. Ada", "ward"),
    ]
    assert (after.status, after.signed_by, after.changed_at) == ("final", "Dr. Ada", signed.changed_at)
    assert (after.version, after.differential, after.messages) == (signed.version + 2, signed.differential, signed.messages)
    with pytest.raises(NoSuchCell):
        comment(store, Action(report, PERSON), "Of no cell", 12)
    with pytest.raises(ChangedMeanwhile):
        comment(store, Action(report, PERSON, expected=1), "Of what I saw")


@pytest.mark.parametrize("statement", ["UPDATE comments SET text = 'x'", "DELETE FROM comments", "DELETE FROM opinions"])
def test_the_database_lets_nobody_change_what_was_said(store: Store, statement: str) -> None:
    report = made(store)
    comment(store, Action(report, PERSON), "Said")
    ask(store, Action(report, PERSON), OTHER.by, "")
    with pytest.raises(DatabaseError, match="only ever added"), store.writing() as session:
        session.execute(sql(statement))
    remove(store, report, "Dr. Ada", "asked for")  # with the whole report it goes
    with store.reading() as session:
        assert [session.scalar(sql(f"SELECT count(*) FROM {table}")) for table in ("comments", "opinions")] == [0, 0]


# ---------------------------------------------------------------- second opinions


def test_a_second_opinion_is_asked_answered_and_answered_again(store: Store) -> None:
    report = made(store)
    [asked] = opinions(ask(store, Action(report, PERSON), OTHER.by, "A blast?"))
    with pytest.raises(AskedAlready):
        ask(store, Action(report, THIRD), OTHER.by, "")
    with pytest.raises(NotTheOneAsked):
        answer(store, Action(report, THIRD), asked.id, "No")
    assert found(store, shelf="asked", person=OTHER.by) == [report]
    assert found(store, shelf="asked", person=PERSON.by) == []
    answer(store, Action(report, OTHER), asked.id, "A monocyte")
    [answered] = opinions(answer(store, Action(report, OTHER), asked.id, "On a second look, a blast"))
    assert (answered.of, answered.state) == ("Dr. Bo", "answered")
    assert [(one.step, one.by, one.text) for one in answered.steps] == [
        ("asked", "Dr. Ada", "A blast?"),
        ("answered", "Dr. Bo", "A monocyte"),
        ("answered", "Dr. Bo", "On a second look, a blast"),
    ]
    assert found(store, shelf="asked", person=OTHER.by) == []
    with pytest.raises(AnsweredAlready):
        take_back(store, Action(report, PERSON), asked.id)


def test_a_question_is_taken_back_and_asked_anew(store: Store) -> None:
    report = made(store)
    with pytest.raises(AsksThemselves):
        ask(store, Action(report, PERSON), PERSON.by, "")
    [asked] = opinions(ask(store, Action(report, PERSON), OTHER.by, "A blast?"))
    take_back(store, Action(report, THIRD), asked.id)  # whoever asked may be on leave
    assert found(store, shelf="asked", person=OTHER.by) == []
    with pytest.raises(TakenBackAlready):
        take_back(store, Action(report, PERSON), asked.id)
    with pytest.raises(TakenBackAlready):
        answer(store, Action(report, OTHER), asked.id, "x")
    with pytest.raises(NoSuchOpinion):
        answer(store, Action(report, OTHER), asked.id + 99, "x")
    states = [one.state for one in opinions(ask(store, Action(report, PERSON), OTHER.by, "Please after all"))]
    assert states == ["taken_back", "open"]
    assert sign_report(store, Action(report, PERSON), site()).status == "final"  # nobody waits for it who does not want to


# ---------------------------------------------------------------- search


def test_each_report_is_on_its_shelf_and_is_counted_there(store: Store) -> None:
    to_do, incomplete, final, amended, withdrawn = (made(store, expected=12 + (at == 1)) for at in range(5))
    for report in (final, amended):
        sign_report(store, Action(report, PERSON), site())
    correct(store, Action(amended, PERSON, amend=True), 0, "Monocyte", site())
    sign_report(store, Action(amended, PERSON), site())
    withdraw(store, Action(withdrawn, PERSON, reason="x"), site())
    ask(store, Action(final, PERSON), OTHER.by, "")
    shelves: dict[Shelf, list[str]] = {
        "to_do": [to_do],
        "incomplete": [incomplete],
        "final": [final],
        "amended": [amended],
        "withdrawn": [withdrawn],
        "asked": [final],
        "all": [withdrawn, amended, final, incomplete, to_do],
    }
    assert {shelf: found(store, shelf=shelf, person=OTHER.by) for shelf in shelves} == shelves
    assert Search(person=OTHER.by).counts(store) == {shelf: len(reports) for shelf, reports in shelves.items()}


def test_reports_are_found_by_a_part_of_the_number_and_by_date(store: Store) -> None:
    noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
    first = made(store, "26-0471_a", at=noon)
    second = made(store, "26-0472%B", at=noon + timedelta(days=1))
    made(store)
    assert found(store, specimen="047") == [second, first]
    assert found(store, specimen="71_A") == [first]  # an underscore is one, and the case does not matter
    assert found(store, specimen="2%b") == [second]
    assert found(store, specimen="nobody") == []
    day = {"created_from": noon.replace(hour=0), "created_before": noon.replace(hour=0) + timedelta(days=1)}
    assert found(store, **day) == [first]
    assert Search(specimen="047").counts(store)["all"] == 2


# ---------------------------------------------------------------- who looks at it


def test_who_looks_is_forgotten_when_the_page_is_silent() -> None:
    now = [100.0]
    looking = Looking(lambda: now[0])
    looking.looks("a", "Ada")
    now[0] += 30
    looking.looks("a", "Bo")
    looking.looks("b", "Bo")
    assert (looking.here("a"), looking.here("b"), looking.here("c")) == (["Ada", "Bo"], ["Bo"], [])
    looking.left("b", "Bo")
    looking.left("c", "Bo")
    now[0] += LASTS - 29
    assert (looking.here("a"), looking.here("b")) == (["Bo"], [])
    now[0] += LASTS
    assert looking.here("a") == []
    assert looking._until == {}


# ---------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def classifier(model_dir: Path) -> Iterator[Classifier]:
    opened = Classifier.open(model_dir)
    yield opened
    opened.close()


@pytest.fixture
def people(classifier: Classifier, tmp_path: Path) -> Iterator[tuple[TestClient, dict[str, str], Path]]:
    """A service with the keys of two persons and of a system."""
    ring, log = tmp_path / "keys", tmp_path / "audit.jsonl"
    keys = {name: add_key(ring, name, ["classify", "review"], person) for name, person in PEOPLE.items()}
    for client in client_of(classifier, tmp_path, site(), ApiKeys(file=ring), AuditLog(log)):
        yield client, keys, log


PEOPLE = {"ada": "Dr. Ada", "bo": "Dr. Bo", "ward": ""}


def as_(keys: dict[str, str], name: str, **headers: str) -> dict[str, dict[str, str]]:
    return {"headers": {"X-API-Key": keys[name], "If-Match": "*", **headers}}


def test_over_http_the_key_says_who_asks_and_who_answers(people: tuple[TestClient, dict[str, str], Path]) -> None:
    client, keys, _ = people
    client.headers["X-API-Key"] = keys["ward"]
    path = f"/v1/reports/{posted(client)['report_id']}"
    nameless = client.post(f"{path}/comments", json={"text": "x"}, headers={"If-Match": "*"})
    assert_problem(nameless, 422, "bad-field")
    late = client.post(f"{path}/comments", json={"text": "x"}, **as_(keys, "ada", **{"If-Match": '"7"'}))
    assert_problem(late, 412, "changed-meanwhile")
    asked = client.post(f"{path}/opinions", json={"of": "Dr. Bo", "note": "A blast?"}, **as_(keys, "ada")).json()
    number = asked["opinions"][0]["id"]
    mine = client.post("/v1/worklist", json={"shelf": "asked"}, **as_(keys, "bo")).json()
    assert [one["id"] for one in mine["reports"]] == [asked["id"]]
    assert (mine["counts"]["asked"], mine["reports"][0]["asked"]) == (1, ["Dr. Bo"])
    wrong = client.post(f"{path}/opinions/{number}/answer", json={"text": "Yes"}, **as_(keys, "ada"))
    assert_problem(wrong, 409, "not-the-one-asked")
    twice = {"json": {"text": "Yes"}, **as_(keys, "bo", **{"Idempotency-Key": "once", "Prefer": "return=minimal"})}
    first, second = (client.post(f"{path}/opinions/{number}/answer", **twice) for _ in range(2))
    assert first.json() == second.json()
    assert second.headers["idempotency-replayed"] == "true"
    assert [step["by"] for step in first.json()["opinions"][0]["steps"]] == ["Dr. Ada", "Dr. Bo"]
    back = client.request("DELETE", f"{path}/opinions/{number}", json={}, **as_(keys, "ada"))
    assert_problem(back, 409, "answered")
    assert_problem(client.post(f"{path}/opinions/999/answer", json={"text": "x"}, **as_(keys, "bo")), 404, "no-such-opinion")


def test_a_search_is_paged_and_its_number_is_in_no_log(people: tuple[TestClient, dict[str, str], Path]) -> None:
    client, keys, log = people
    client.headers["X-API-Key"] = keys["ward"]
    ids = [posted(client, specimen_id=f"26-PAGED-{at}")["report_id"] for at in range(3)]
    body = {"specimen": "paged", "limit": 2}
    first = client.post("/v1/worklist", json=body).json()
    second = client.post("/v1/worklist", json={**body, "before": first["next"]}).json()
    assert [one["id"] for one in first["reports"] + second["reports"]] == ids[::-1]
    assert second["next"] is None
    assert_problem(client.post("/v1/worklist", json={"before": "0" * 32}), 404, "no-such-report")
    assert_problem(client.post("/v1/worklist", json={"created_from": "2026-11-20T10:00:00"}), 422, "bad-field")
    assert "PAGED" not in log.read_text()
    assert "POST /v1/worklist" in log.read_text()


def test_presence_is_seen_by_others_and_is_in_no_record(people: tuple[TestClient, dict[str, str], Path]) -> None:
    client, keys, log = people
    client.headers["X-API-Key"] = keys["ward"]
    report = posted(client)["report_id"]
    path = f"/v1/reports/{report}/presence"
    assert client.put(path, json={}, **as_(keys, "ada")).json() == {"here": [], "version": 1}
    assert client.put(path, json={"by": "Nurse Joy"}).json()["here"] == ["Dr. Ada"]
    line = client.post("/v1/worklist", json={}).json()["reports"][0]
    assert line["here"] == ["Dr. Ada", "Nurse Joy"]
    client.put(path, json={"left": True}, **as_(keys, "ada"))
    assert client.put(path, json={"by": "Nurse Joy"}).json()["here"] == []
    assert_problem(client.put(f"/v1/reports/{'0' * 32}/presence", json={}), 404, "no-such-report")
    assert "presence" not in log.read_text()
    assert client.get(f"/v1/reports/{report}").json()["version"] == 1
    assert sign(client, report, "*").status_code == 200
