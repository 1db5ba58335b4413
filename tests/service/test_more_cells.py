"""A specimen of more cells than one request holds: `report_id` adds images to a report."""

from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from live import ambiguous, form, of_class
from specimens import SPECIMEN, read, several, site
from test_reports import assert_problem, classifier, client, correct, posted, sign  # noqa: F401 - two of them are fixtures

from serving.contract.differential import Circumstances, count_differential
from serving.contract.specimen import Specimen
from serving.reports import intake
from serving.reports.intake import add_cells


def add(client: TestClient, report: str, *files: bytes, **fields: str) -> httpx.Response:  # noqa: F811
    return client.post("/v1/differential", files=form(*files), data={"report_id": report, **fields})


def report_of(client: TestClient, report: str) -> dict[str, Any]:  # noqa: F811
    answer: dict[str, Any] = client.get(f"/v1/reports/{report}").json()
    return answer


def test_the_differential_is_that_of_all_cells(client: TestClient) -> None:  # noqa: F811
    first = posted(client)  # 8 neutrophils, 4 lymphocytes, one to review, one that is no image
    report = first["report_id"]
    answer = add(client, report, of_class("Basophil"), ambiguous(), b"none either", of_class("Basophil")).json()
    assert (answer["report_id"], answer["specimen_id"], len(answer["results"])) == (report, SPECIMEN, 4)
    unsure = first["results"][12]["label"]
    labels = ["Neutrophil"] * 8 + ["Lymphocyte"] * 4 + [unsure] * 2 + ["Basophil"] * 2
    confusion = client.app.app.state.running.classifier.confusion  # type: ignore[attr-defined]  # Around holds the application
    assert answer["differential"] == count_differential(
        labels, confusion, site(), Circumstances(wbc_count=6.5, to_review=2)
    ).model_dump(mode="json")
    kept = report_of(client, report)
    assert kept["differential"] == answer["differential"]
    assert kept["version"] == 2
    assert [cell["index"] for cell in kept["cells"]] == list(range(18))
    assert [cell["result"] for cell in kept["cells"][14:]] == answer["results"]


def test_what_people_did_stays(client: TestClient) -> None:  # noqa: F811
    report = posted(client)["report_id"]
    assert correct(client, report, 0, "Monocyte", '"1"').status_code == 200
    answer = add(client, report, of_class("Basophil"), specimen_id=SPECIMEN, wbc_count="6.50").json()
    assert answer["differential"]["classes"]["Monocyte"]["count"] >= 1
    assert answer["differential"]["by_person"] == 1
    kept = report_of(client, report)
    assert [(cell["label"], cell["by_person"]) for cell in (kept["cells"][0], kept["cells"][14])] == [
        ("Monocyte", True),
        ("Basophil", False),
    ]
    assert correct(client, report, 14, None, '"3"').status_code == 200
    assert_problem(correct(client, report, 14, None, '"3"'), 412, "changed-meanwhile")


def test_the_mark_of_an_unknown_site_stays(client: TestClient) -> None:  # noqa: F811
    """One request's cells have earned it; neither more cells nor a correction takes it away."""
    report = posted(client)["report_id"]
    running = client.app.app.state.running  # type: ignore[attr-defined]
    assert not report_of(client, report)["differential"]["site_unknown"]
    foreign = read(several("Basophil", 12, True, "site_unknown"), 0.02)._replace(model=running.classifier.model)
    add_cells(running.kept.store, report, foreign, Specimen(None, None), running.site)
    assert add(client, report, of_class("Basophil")).json()["differential"]["site_unknown"]
    assert correct(client, report, 0, "Monocyte", "*").json()["differential"]["site_unknown"]


def test_what_cannot_be_added_to_is_said_and_left_alone(
    client: TestClient,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = posted(client)["report_id"]
    cell = of_class("Basophil")
    for name in ("wbc_count", "specimen_id"):
        assert assert_problem(add(client, report, cell, **{name: "7"}), 409, "another-specimen")["field"] == name
    assert_problem(add(client, report, cell, wbc_count="many"), 422, "bad-field")
    assert_problem(add(client, "0" * 32, cell), 404, "no-such-report")
    assert_problem(add(client, "no such id", cell), 404, "no-such-report")
    with monkeypatch.context() as patch:
        patch.setattr(intake, "MOST_IMAGES", 15)
        assert_problem(add(client, report, cell, cell), 413, "too-large")
        assert report_of(client, report)["version"] == 1
        assert add(client, report, cell).status_code == 200
    assert sign(client, report, '"2"').status_code == 200
    assert_problem(add(client, report, cell), 409, "signed")
    assert correct(client, report, 0, "Monocyte", '"3"', amend=True).status_code == 200
    assert_problem(add(client, report, cell), 409, "signed")
    assert len(report_of(client, report)["cells"]) == 15


def test_without_a_store_there_is_nothing_to_add_to(client: TestClient) -> None:  # noqa: F811
    running = client.app.app.state.running  # type: ignore[attr-defined]
    kept, running.kept = running.kept, None
    try:
        assert_problem(add(client, "0" * 32, of_class("Basophil")), 404, "no-store")
    finally:
        running.kept = kept
