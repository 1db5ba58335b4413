"""The ways back: an undo that undoes, numbers put right, a withdrawal; each stays in the record. Short answers on request."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from fhir.resources.R4B.bundle import Bundle
from live import of_class
from specimens import PERSON, SPECIMEN, reported, site
from sqlalchemy.exc import DBAPIError
from test_expected_images import patch
from test_more_cells import add, report_of
from test_reports import DOCTOR, assert_problem, classifier, client, client_of, correct, posted, sign  # noqa: F401 - two of them are fixtures
from typer.testing import CliRunner

from flows.cli import app
from serving.inference.classify import Classifier
from serving.reports import listing
from serving.reports.review import Action, find, put_right, reinstate, undo, withdraw
from serving.reports.review import correct as decided
from serving.reports.review import sign as signed
from serving.reports.store import Store
from serving.reports.tables import Change

UNSURE = 12  # of `posted`: the cell that a person must look at


def undone(client: TestClient, report: str, index: int, version: str = "*", **more: Any) -> httpx.Response:  # noqa: F811
    url = f"/v1/reports/{report}/cells/{index}/undo"
    return client.post(url, json={**DOCTOR, **more}, headers={"If-Match": version})


def withdrawn(client: TestClient, report: str, version: str = "*", **more: Any) -> httpx.Response:  # noqa: F811
    body = {"reason": "another patient's smear", **DOCTOR, **more}
    return client.post(f"/v1/reports/{report}/withdrawal", json=body, headers={"If-Match": version})


def taken_back(client: TestClient, report: str, version: str = "*", **more: Any) -> httpx.Response:  # noqa: F811
    body = {"reason": "the smear was right", **DOCTOR, **more}
    return client.request("DELETE", f"/v1/reports/{report}/withdrawal", json=body, headers={"If-Match": version})


@pytest.fixture
def own(classifier: Classifier, tmp_path: Path) -> Iterator[TestClient]:  # noqa: F811
    """A service with a store of its own."""
    yield from client_of(classifier, tmp_path, site())


@pytest.mark.parametrize("label", ["Eosinophil", "Basophil", None])
def test_undo_puts_the_cell_back_where_it_was(client: TestClient, label: str | None) -> None:  # noqa: F811
    """Whether it was confirmed, changed or taken out: it waits for a person again, and the record has both."""
    report = posted(client)["report_id"]
    before = report_of(client, report)
    correct(client, report, UNSURE, label, '"1"')
    after = undone(client, report, UNSURE, '"2"').json()
    assert after["cells"] == before["cells"]
    assert after["differential"] == before["differential"]
    assert (after["to_review"], after["cells"][UNSURE]["by_person"]) == (1, False)
    assert [(one["to_label"], one["undo"], one["by"]) for one in after["corrections"]] == [
        (label, False, "Dr. Ada"),
        (before["cells"][UNSURE]["label"], True, "Dr. Ada"),
    ]
    assert_problem(undone(client, report, UNSURE), 409, "nothing-to-undo")
    assert report_of(client, report)["version"] == 3


def test_undo_after_undo_goes_further_back(client: TestClient) -> None:  # noqa: F811
    report = posted(client)["report_id"]
    for label in ("Monocyte", None, "Basophil"):
        correct(client, report, 0, label, "*")
    labels = [undone(client, report, 0).json()["cells"][0]["label"] for _ in range(2)]
    assert labels == [None, "Monocyte"]
    assert correct(client, report, 0, "Lymphocyte", "*").json()["cells"][0]["label"] == "Lymphocyte"
    states = [undone(client, report, 0).json()["cells"][0] for _ in range(2)]
    assert [(one["label"], one["by_person"]) for one in states] == [("Monocyte", True), ("Neutrophil", False)]
    assert_problem(undone(client, report, 0), 409, "nothing-to-undo")


def test_undo_of_a_signed_report_is_an_amendment(client: TestClient) -> None:  # noqa: F811
    report = posted(client)["report_id"]
    correct(client, report, UNSURE, "Basophil", "*")
    sign(client, report, "*")
    assert_problem(undone(client, report, UNSURE), 409, "signed")
    assert undone(client, report, UNSURE, amend=True).json()["status"] == "preliminary"
    for index, kind in ((13, "rejected-image"), (0, "nothing-to-undo")):
        assert_problem(undone(client, report, index), 409, kind)
    assert_problem(undone(client, report, 99), 404, "no-such-cell")
    assert_problem(undone(client, report, UNSURE, '"1"'), 412, "changed-meanwhile")
    body = client.post(f"/v1/reports/{report}/cells/0/undo", json={}, headers={"If-Match": "*"})
    assert_problem(body, 422, "bad-field")


def test_a_wrong_number_is_put_right_with_a_reason(client: TestClient) -> None:  # noqa: F811
    report = posted(client)["report_id"]
    fixed = patch(client, report, specimen_id="S-4712", wbc_count=13).json()
    assert (fixed["specimen_id"], fixed["version"], fixed["status"]) == ("S-4712", 2, "preliminary")
    assert fixed["differential"]["wbc_count"] == 13
    assert fixed["differential"]["classes"]["Neutrophil"]["absolute"]["value"] == pytest.approx(13 * 8 / 13)
    changes = {one["what"]: (one["from_value"], one["to_value"], one["reason"], one["by"]) for one in fixed["changes"]}
    assert changes == {
        "specimen_id": (SPECIMEN, "S-4712", "a typing error", "Dr. Ada"),
        "wbc_count": (6.5, 13.0, "a typing error", "Dr. Ada"),
    }
    cleared = patch(client, report, wbc_count=None).json()
    assert cleared["differential"]["classes"]["Neutrophil"]["absolute"] is None
    assert cleared["specimen_id"] == "S-4712"
    assert_problem(patch(client, report, wbc_count=None), 409, "nothing-to-change")
    assert add(client, report, of_class("Basophil"), specimen_id="S-4712").status_code == 200


def test_of_a_signed_report_that_is_an_amendment(client: TestClient) -> None:  # noqa: F811
    report = posted(client)["report_id"]
    sign(client, report, "*")
    assert_problem(patch(client, report, specimen_id="S-4713"), 409, "signed")
    assert patch(client, report, specimen_id="S-4713", amend=True).json()["status"] == "preliminary"
    assert sign(client, report, "*").json()["status"] == "amended"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"specimen_id": " padded"}, "specimen_id"),
        ({"wbc_count": 7100}, "wbc_count"),
        ({"wbc_count": "7.1"}, "wbc_count"),
        ({"expected_images": 1.5}, "expected_images"),
        ({"expected_images": 0}, "expected_images"),
        ({"specimen_id": "S", "reason": ""}, "reason"),
        ({"specimen_id": "S", "reason": "two\nlines"}, "reason"),
        ({"specimen_id": "S", "status": "final"}, "status"),
    ],
)
def test_what_cannot_be_put_right(client: TestClient, body: dict[str, Any], field: str) -> None:  # noqa: F811
    report = posted(client)["report_id"]
    assert assert_problem(patch(client, report, **body), 422, "bad-field")["field"] == field
    assert report_of(client, report)["version"] == 1


def test_a_method_that_is_none_names_those_that_are(client: TestClient) -> None:  # noqa: F811
    answer = client.options(f"/v1/reports/{'0' * 32}")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, PATCH, DELETE")


def test_a_withdrawn_report_is_nothing_any_more(own: TestClient) -> None:
    report = posted(own)["report_id"]
    answer = withdrawn(own, report, '"1"').json()
    assert (answer["status"], answer["withdrawn"], answer["version"], answer["signed_by"]) == ("withdrawn", True, 2, None)
    assert [one["kind"] for one in answer["blocked"]] == ["withdrawn"]
    [change] = answer["changes"]
    assert (change["what"], change["from_value"], change["reason"]) == ("withdrawal", "preliminary", "another patient's smear")
    for refused in (
        correct(own, report, 0, "Monocyte", "*"),
        undone(own, report, 0),
        patch(own, report, specimen_id="S-1"),
        withdrawn(own, report),
        sign(own, report, "*"),
        add(own, report, of_class("Basophil")),
    ):
        assert_problem(refused, 409, "withdrawn")
    assert report_of(own, report)["version"] == 2
    listed = {status: own.get(f"/v1/reports?status={status}").json()["reports"] for status in ("open", "withdrawn", "all")}
    assert [len(found) for found in listed.values()] == [0, 1, 1]
    bundle = own.get(f"/v1/reports/{report}/fhir")
    Bundle.model_validate_json(bundle.text)
    assert bundle.json()["entry"][0]["resource"]["status"] == "cancelled"
    assert own.get(f"/v1/reports/{report}/report.pdf").status_code == 200


def test_a_signed_report_is_withdrawn_as_an_amendment(client: TestClient) -> None:  # noqa: F811
    report = posted(client)["report_id"]
    sign(client, report, "*")
    assert_problem(withdrawn(client, report), 409, "signed")
    answer = withdrawn(client, report, amend=True).json()
    assert (answer["status"], answer["signed_by"], len(answer["signatures"])) == ("withdrawn", None, 1)
    bundle = client.get(f"/v1/reports/{report}/fhir")
    Bundle.model_validate_json(bundle.text)
    assert bundle.json()["entry"][0]["resource"]["status"] == "entered-in-error"


def test_an_amendment_updates_at_a_server_what_the_report_made_there(own: TestClient) -> None:
    """Observations that the report has no longer are named too, from its record alone: of counts, and of further kinds."""
    report = posted(own, wbc_count="7.5")["report_id"]
    correct(own, report, 0, "Band", "*")

    def stored() -> dict[str, str]:
        answer = own.get(f"/v1/reports/{report}/fhir?bundle=transaction")
        assert Bundle.model_validate_json(answer.text).type == "transaction"
        assert answer.headers["etag"] == f'"{report_of(own, report)["version"]}"'
        return {entry["request"]["url"]: entry["resource"].get("status") for entry in answer.json()["entry"]}

    first = stored()
    patch(own, report, wbc_count=None)
    undone(own, report, 0)
    second = stored()
    assert set(second) == set(first)
    gone = [status for url, status in second.items() if url.startswith("Observation")].count("entered-in-error")
    assert gone == 6, "five counts and the bands"
    assert_problem(own.get(f"/v1/reports/{report}/fhir?bundle=batch"), 422, "bad-parameter")


def test_a_withdrawal_is_taken_back_and_both_stay_in_the_record(own: TestClient) -> None:
    report = posted(own)["report_id"]
    before = report_of(own, report)
    withdrawn(own, report, '"1"')
    for refused in (withdrawn(own, report), patch(own, report, specimen_id="S-1"), sign(own, report, "*")):
        assert f"DELETE /v1/reports/{report}/withdrawal" in assert_problem(refused, 409, "withdrawn")["detail"]
    assert f"DELETE /v1/reports/{report}/withdrawal" in report_of(own, report)["blocked"][0]["detail"]
    back = taken_back(own, report, '"2"')
    assert (back.status_code, back.headers["etag"]) == (200, '"3"')
    after = back.json()
    assert (after["status"], after["withdrawn"], after["blocked"], after["signed_by"]) == ("preliminary", False, [], None)
    assert (after["cells"], after["differential"]) == (before["cells"], before["differential"])
    assert [(one["what"], one["from_value"], one["to_value"], one["reason"], one["by"]) for one in after["changes"]] == [
        ("withdrawal", "preliminary", "withdrawn", "another patient's smear", "Dr. Ada"),
        ("withdrawal", "withdrawn", "preliminary", "the smear was right", "Dr. Ada"),
    ]
    bundle = own.get(f"/v1/reports/{report}/fhir")
    Bundle.model_validate_json(bundle.text)
    assert bundle.json()["entry"][0]["resource"]["status"] == "preliminary"
    assert "Withdrawn" not in bundle.text
    assert own.get(f"/v1/reports/{report}/report.pdf").status_code == 200
    assert [one["id"] for one in own.get("/v1/reports").json()["reports"]] == [report]
    assert add(own, report, of_class("Basophil")).status_code == 200
    assert sign(own, report, "*").json()["status"] == "final"
    assert_problem(taken_back(own, report), 409, "not-withdrawn")


def test_a_signed_report_whose_withdrawal_is_taken_back_must_be_signed_again(client: TestClient) -> None:  # noqa: F811
    report = posted(client)["report_id"]
    sign(client, report, "*")
    withdrawn(client, report, amend=True)
    after = taken_back(client, report).json()
    assert (after["status"], after["signed_by"], len(after["signatures"])) == ("preliminary", None, 1)
    signed = sign(client, report, "*").json()
    assert (signed["status"], [one["status"] for one in signed["signatures"]]) == ("amended", ["final", "amended"])
    again = withdrawn(client, report, amend=True).json()
    assert (again["status"], len(again["changes"])) == ("withdrawn", 3)


def test_a_withdrawal_is_taken_back_as_every_call_that_writes(client: TestClient) -> None:  # noqa: F811
    report = posted(client)["report_id"]
    assert_problem(taken_back(client, report), 409, "not-withdrawn")
    withdrawn(client, report)
    url, body = f"/v1/reports/{report}/withdrawal", {"reason": "a slip", **DOCTOR}
    assert_problem(client.request("DELETE", url, json=body), 428, "if-match-missing")
    assert_problem(taken_back(client, report, '"1"'), 412, "changed-meanwhile")
    assert assert_problem(taken_back(client, report, reason=""), 422, "bad-field")["field"] == "reason"
    assert_problem(taken_back(client, "0" * 32), 404, "no-such-report")
    assert report_of(client, report)["version"] == 2
    headers = {"If-Match": "*", "Idempotency-Key": f"back-{report}", "Prefer": "return=minimal"}
    first, second = (client.request("DELETE", url, json=body, headers=headers) for _ in range(2))
    assert (first.status_code, first.content) == (second.status_code, second.content) == (200, first.content)
    assert second.headers["idempotency-replayed"] == "true"
    assert ([one["reason"] for one in first.json()["changes"]], first.json()["cells"]) == (["a slip"], [])
    assert report_of(client, report)["version"] == 3


def test_the_pdf_says_that_a_withdrawal_was_taken_back(own: TestClient, written: list[str]) -> None:
    report = posted(own)["report_id"]
    withdrawn(own, report)
    taken_back(own, report)
    assert own.get(f"/v1/reports/{report}/report.pdf").status_code == 200
    kinds = [text.partition(",")[0] for text in written if text.startswith("Withdraw")]
    assert kinds == ["Withdrawn", "Withdrawal taken back"]
    assert not any("WITHDRAWN" in text for text in written)


def test_a_second_report_of_a_specimen_names_the_first(own: TestClient) -> None:
    first, second = (posted(own, specimen_id="S-9")["report_id"] for _ in range(2))
    third = posted(own, specimen_id="S-9")
    assert third["same_specimen"] == [first, second]
    assert add(own, second, of_class("Basophil")).json()["same_specimen"] == [first]
    withdrawn(own, first)
    assert posted(own, specimen_id="S-9")["same_specimen"] == [second, third["report_id"]]
    assert posted(own, specimen_id="S-90")["same_specimen"] == []
    found = own.get("/v1/reports?specimen_id=S-9").json()["reports"]
    assert [one["id"] for one in found][1:] == [third["report_id"], second, first]
    assert [one["withdrawn"] for one in found] == [False, False, False, True]


def test_recall_all_signed_reports_of_a_version(own: TestClient) -> None:
    ids = [posted(own)["report_id"] for _ in range(4)]
    for report in ids[:3]:
        sign(own, report, "*")
    correct(own, ids[1], 0, "Monocyte", "*", amend=True)
    withdrawn(own, ids[2], amend=True)

    def listed(**parameters: str) -> list[str]:
        answer = own.get("/v1/reports", params=parameters)
        assert answer.status_code == 200, answer.text
        return [one["id"] for one in answer.json()["reports"]]

    assert listed(model="tiny-1", signed="true") == ids[2::-1]
    assert listed(model="tiny-1", signed="false") == ids[3:]
    assert listed(model="tiny-2", signed="true") == []
    assert listed(model="tiny-1", signed="true", status="final") == ids[:1]
    assert listed(model="tiny-1", signed="true", status="open") == ids[1:2]
    for wrong in ("specimen_id=%00", "model=%00", "signed=maybe", "model="):
        assert_problem(own.get(f"/v1/reports?{wrong}"), 422, "bad-parameter")


def test_recall_on_the_command_line(store_url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WBC_STORE_URL", store_url)
    monkeypatch.setattr(listing, "AT_A_TIME", 2)
    ids = [reported(store) for _ in range(5)]
    for report in ids[1:]:
        signed(store, Action(report, PERSON), site())
    decided(store, Action(ids[1], PERSON, amend=True), 0, "Monocyte", site())
    withdraw(store, Action(ids[2], PERSON, amend=True, reason="x"), site())

    def wbc(*more: str) -> str:
        done = CliRunner().invoke(app, ["reports", "list", *more])
        assert done.exit_code == 0, done.output
        return done.output

    found = json.loads(wbc("--model", "tiny-1", "--json"))["reports"]
    assert [one["id"] for one in found] == ids[:0:-1]
    assert [one["status"] for one in found] == ["final", "final", "withdrawn", "preliminary"]
    assert {one["last_signature"]["by"] for one in found} == {"Dr. Ada"}
    lines = wbc("--model", "tiny-1").splitlines()
    assert (len(lines), lines[-1]) == (5, "4 reports")
    assert f"{ids[2]}  withdrawn" in lines[2]
    assert lines[2].count(" UTC") == 2  # when it was made, and when it was signed last
    assert wbc("--model", "tiny-2") == "0 reports\n"
    assert ids[0] in wbc("--model", "tiny-1", "--unsigned")
    assert wbc("--specimen", SPECIMEN).count("specimen") == 5
    assert wbc().splitlines()[-1] == "2 reports"


def test_a_short_answer_has_what_changed(client: TestClient) -> None:  # noqa: F811
    report = posted(client)["report_id"]
    url, little = f"/v1/reports/{report}", {"If-Match": "*", "Prefer": "return=minimal"}
    answer = client.put(f"{url}/cells/{UNSURE}", json={"label": "Monocyte", **DOCTOR}, headers=little)
    assert (answer.headers["preference-applied"], answer.headers["etag"]) == ("return=minimal", '"2"')
    short, whole = answer.json(), report_of(client, report)
    assert [cell["index"] for cell in short["cells"]] == [UNSURE]
    assert short["cells"][0] == whole["cells"][UNSURE]
    shared = set(short) & set(whole) - {"cells", "corrections", "changes"}
    assert {name: short[name] for name in shared} == {name: whole[name] for name in shared}
    assert {"id", "version", "status", "signed_by", "differential", "to_review", "blocked", "messages"} <= shared
    assert len(answer.content) < 6000
    back = client.post(f"{url}/cells/{UNSURE}/undo", json=DOCTOR, headers=little).json()
    assert ([cell["by_person"] for cell in back["cells"]], [one["undo"] for one in back["corrections"]]) == ([False], [True])
    fixed = client.patch(url, json={"wbc_count": 9, "reason": "x", **DOCTOR}, headers=little).json()
    assert (fixed["cells"], [one["what"] for one in fixed["changes"]]) == ([], ["wbc_count"])
    signed = client.post(f"{url}/signature", json=DOCTOR, headers=little).json()
    assert (signed["status"], signed["signature"]["by"], signed["cells"]) == ("final", "Dr. Ada", [])
    for preference in ("return=representation", "respond-async", ""):
        headers = {"If-Match": "*", "Prefer": preference}
        body = {"label": "Monocyte", "amend": True, **DOCTOR}
        plain = client.put(f"{url}/cells/0", json=body, headers=headers)
        assert "preference-applied" not in plain.headers
        assert len(plain.json()["cells"]) == 14


def test_the_record_of_changes_is_only_ever_added_to(store: Store) -> None:
    report = reported(store)
    put_right(store, Action(report, PERSON, 1, reason="unknown"), {"specimen_id": None}, site())
    withdraw(store, Action(report, PERSON, 2, reason="twice"), site())
    kept = find(store, report)
    assert [(one.what, one.from_value, one.to_value, one.caller, one.version) for one in kept.changes] == [
        ("specimen_id", SPECIMEN, None, "ward", 2),
        ("withdrawal", "preliminary", "withdrawn", "ward", 3),
    ]
    with pytest.raises(DBAPIError, match="only ever added"), store.writing() as session:
        session.get_one(Change, kept.changes[0].id).reason = "another"


def test_a_withdrawal_is_taken_back_in_both_databases(store: Store) -> None:
    report = reported(store)
    signed(store, Action(report, PERSON), site())
    withdraw(store, Action(report, PERSON, amend=True, reason="another's"), site())
    assert reinstate(store, Action(report, PERSON, 3, reason="a slip")).status == "preliminary"
    assert signed(store, Action(report, PERSON, 4), site()).status == "amended"
    kept = find(store, report)
    assert (kept.withdrawn_at, kept.status, kept.version) == (None, "amended", 5)
    assert [(one.what, one.from_value, one.to_value, one.caller, one.version) for one in kept.changes] == [
        ("withdrawal", "final", "withdrawn", "ward", 3),
        ("withdrawal", "withdrawn", "preliminary", "ward", 4),
    ]


def test_an_undo_is_for_both_databases(store: Store) -> None:
    report = reported(store)
    decided(store, Action(report, PERSON, 1), 14, "Monocyte", site())
    undo(store, Action(report, PERSON, 2), 14, site())
    kept = find(store, report)
    assert (kept.differential["to_review"], kept.cells[14].label) == (7, "Lymphocyte")
    assert [one.undoes for one in kept.corrections] == [None, kept.corrections[0].id]
