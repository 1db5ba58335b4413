"""People are known by their keys: whose a key is, what then stands in the record, and what systems send as before."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import example, given
from hypothesis import strategies as st
from specimens import site
from test_outbox import eventually
from test_reports import assert_problem, client_of, posted
from typer.testing import CliRunner

from flows.cli import app as command_line
from serving.contract.names import NAME, trimmed
from serving.inference.classify import Classifier
from serving.security.audit import AuditLog
from serving.security.chain import lines, read_record, verify
from serving.security.keys import KEYRING_HEADER, PEOPLE_HEADER, ApiKeys, Key, _line, _parse_line, add_key, list_keys
from wbc_model.core.errors import WbcError

ADA = "Dr. Ada Lovelace"


@pytest.fixture(scope="module")
def classifier(model_dir: Path) -> Iterator[Classifier]:
    made = Classifier.open(model_dir)
    yield made
    made.close()


@pytest.fixture
def people(classifier: Classifier, tmp_path: Path) -> Iterator[tuple[TestClient, dict[str, dict[str, str]], Path]]:
    """A service, the headers of a person's key and of a system's, and its audit log."""
    keyring, log = tmp_path / "keys", tmp_path / "audit.jsonl"
    keys = {"system": add_key(keyring, "system", ["classify", "review"]), "ada": add_key(keyring, "ada", ["review"], ADA)}
    audit = AuditLog(log)
    headers = {name: {"X-API-Key": key} for name, key in keys.items()}
    for client in client_of(classifier, tmp_path, site(), ApiKeys(file=keyring), audit):
        yield client, headers, log
    audit.close()


def report_of(client: TestClient, headers: dict[str, str]) -> str:
    client.headers.update(headers)
    report = str(posted(client)["report_id"])
    client.headers.pop("X-API-Key")
    return report


def put(client: TestClient, report: str, headers: dict[str, str], **body: Any) -> httpx.Response:
    return client.put(f"/v1/reports/{report}/cells/0", json={"label": "Monocyte", **body}, headers={**headers, "If-Match": "*"})


def records(log: Path) -> list[dict[str, Any]]:
    return [record for *_, line in lines(log) if (record := read_record(line))]


def test_a_keyring_says_whose_a_key_is_and_stays_as_it_was_without_people(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    add_key(path, "ward", ["classify"])
    assert path.read_text().splitlines()[0] == KEYRING_HEADER
    key = add_key(path, "ada", ["label", "review"], f"  {ADA}\u00a0")
    header, ward, ada = path.read_text().splitlines()
    assert header == PEOPLE_HEADER
    assert (ward.split(" ")[-1], ada.split(" ")[-1]) == ("-", "Dr.%20Ada%20Lovelace")
    assert [(one.name, one.person) for one in list_keys(path)] == [("ward", ""), ("ada", ADA)]
    found = ApiKeys(file=path).check(key, ["label"])
    assert (found.name, found.person, found.scopes) == ("ada", ADA, {"label", "review"})


@example("-")  # as a keyring says that a key is nobody's
@given(st.from_regex(NAME, fullmatch=True).map(trimmed).filter(lambda name: 0 < len(name) <= 100))
def test_every_name_comes_back_as_it_was_written(person: str) -> None:
    key = Key("a", frozenset(["label"]), bytes(32), "2026", person)
    assert _parse_line(_line(key, people=True), "here", people=True) == key


@pytest.mark.parametrize("person", ["\u200b", "x" * 101, "a\nb", "\u202eadA"])
def test_a_person_without_a_name_to_see_is_refused(tmp_path: Path, person: str) -> None:
    with pytest.raises(WbcError, match="--person"):
        add_key(tmp_path / "keys", "a", ["label"], person)


def test_the_commands_make_and_list_keys_of_people(tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        result = CliRunner().invoke(command_line, ["keys", *words, "--file", str(tmp_path / "keys")], catch_exceptions=False)
        return result.stdout

    assert f"hand it to {ADA}" in run("add", "ada", "--person", ADA, "--scope", "label")
    run("add", "ward", "--scope", "classify")
    ada, ward = run("list").splitlines()
    assert ada.endswith(ADA)
    assert ward.startswith("ward  classify")
    assert [one["person"] for one in json.loads(run("list", "--json"))["keys"]] == [ADA, None]


def test_me_says_who_is_signed_in(people: tuple[TestClient, dict[str, dict[str, str]], Path]) -> None:
    client, headers, _ = people
    assert client.get("/v1/me", headers=headers["ada"]).json() == {"key": "ada", "person": ADA, "scopes": ["review"]}
    system = {"key": "system", "person": None, "scopes": ["classify", "review"]}
    assert client.get("/v1/me", headers=headers["system"]).json() == system
    assert_problem(client.get("/v1/me"), 401, "unauthorised")


def test_who_may_review_can_be_asked_by_name(people: tuple[TestClient, dict[str, dict[str, str]], Path]) -> None:
    client, headers, log = people
    add_key(log.with_name("keys"), "ben", ["label"], "Dr. Ben")
    add_key(log.with_name("keys"), "cy", ["label", "review"], "Dr. Cy")
    client.app.app.state.running.keys._next_look = 0.0  # type: ignore[attr-defined]
    assert client.get("/v1/people", headers=headers["ada"]).json() == {"people": [ADA, "Dr. Cy"]}
    assert_problem(client.get("/v1/people"), 401, "unauthorised")


def test_without_keys_everybody_may_do_everything(classifier: Classifier, tmp_path: Path) -> None:
    for client in client_of(classifier, tmp_path, site()):
        scopes = ["classify", "review", "label", "adjudicate", "admin"]
        assert client.get("/v1/me").json() == {"key": "local", "person": None, "scopes": scopes}


def test_the_record_has_the_person_of_the_key(people: tuple[TestClient, dict[str, dict[str, str]], Path]) -> None:
    client, headers, _ = people
    report = report_of(client, headers["system"])
    assert put(client, report, headers["ada"]).status_code == 200
    assert put(client, report, headers["ada"], by=ADA).status_code == 200
    refused = assert_problem(put(client, report, headers["ada"], by="Dr. Grace Hopper"), 403, "another-person")
    assert ADA in refused["detail"]
    signed = client.post(f"/v1/reports/{report}/signature", json={}, headers={**headers["ada"], "If-Match": "*"}).json()
    assert signed["signed_by"] == ADA
    assert [(one["by"], one["caller"]) for one in signed["corrections"] + signed["signatures"]] == [(ADA, "ada")] * 3


def test_a_systems_key_says_by_as_before(people: tuple[TestClient, dict[str, dict[str, str]], Path]) -> None:
    client, headers, _ = people
    report = report_of(client, headers["system"])
    assert assert_problem(put(client, report, headers["system"]), 422, "bad-field")["field"] == "by"
    answer = put(client, report, headers["system"], by="Dr. Grace Hopper").json()
    assert [(one["by"], one["caller"]) for one in answer["corrections"]] == [("Dr. Grace Hopper", "system")]


def test_the_audit_log_names_the_person(people: tuple[TestClient, dict[str, dict[str, str]], Path]) -> None:
    client, headers, log = people
    report = report_of(client, headers["system"])
    put(client, report, headers["ada"])
    client.get("/v1/me", headers=headers["ada"])
    found = records(log)
    assert [record.get("person") for record in found if record["caller"] == "system"] == [None, None]
    of_ada = [record for record in found if record["caller"] == "ada"]
    assert ["intends" in record for record in of_ada] == [True, False, False]
    assert {record["person"] for record in of_ada} == {ADA}
    assert verify(log).records == len(found)


def test_the_audit_log_says_who_removed_a_report_and_why(
    people: tuple[TestClient, dict[str, dict[str, str]], Path], tmp_path: Path
) -> None:
    """The report, whose record says it of all else, is gone."""
    client, headers, log = people
    report = report_of(client, headers["system"])
    admin = {"X-API-Key": add_key(tmp_path / "keys", "admin", ["review", "admin"])}
    body = {"by": "Dr. Bo", "reason": "asked for by the patient"}
    eventually(lambda: client.get("/v1/me", headers=admin).status_code == 200)
    removed = client.request("DELETE", f"/v1/reports/{report}", json=body, headers=admin)
    assert (removed.status_code, removed.json()["unsent"]) == (200, 0)
    last = records(log)[-1]
    assert (last["call"], last["by"], last["reason"]) == (f"DELETE /v1/reports/{report}", body["by"], body["reason"])
