"""A report that lacks images is incomplete and cannot be signed; the rest can be sent at any time."""

from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from live import form, of_class
from test_more_cells import add, report_of
from test_repeats import keyed
from test_reports import DOCTOR, assert_problem, classifier, client, correct, posted, sign  # noqa: F401 - two of them are fixtures


def patch(client: TestClient, report: str, **body: Any) -> httpx.Response:  # noqa: F811
    given = {"reason": "a typing error", **DOCTOR, **body}
    return client.patch(f"/v1/reports/{report}", json=given, headers={"If-Match": "*"})


def test_an_upload_that_broke_off_cannot_be_signed_until_the_rest_has_come(client: TestClient) -> None:  # noqa: F811
    answer = posted(client, [of_class("Neutrophil"), b"no image"], expected_images="4")
    report, state = answer["report_id"], answer["report"]
    assert (state["expected_images"], state["sent_images"], state["complete"]) == (4, 2, False)
    assert [one["kind"] for one in state["blocked"]] == ["incomplete"]
    refused = assert_problem(sign(client, report, "*"), 409, "incomplete")
    assert "2 of 4 images" in refused["detail"]
    assert refused["blocked"] == state["blocked"] == report_of(client, report)["blocked"]
    more = add(client, report, of_class("Monocyte"), b"no image either", expected_images="4").json()["report"]
    assert (more["sent_images"], more["complete"], more["blocked"]) == (4, True, [])
    signed = sign(client, report, "*").json()
    assert (signed["status"], [one["kind"] for one in signed["blocked"]]) == ("final", ["signed"])


def test_a_batch_without_a_usable_image_counts_as_sent(client: TestClient) -> None:  # noqa: F811
    """Also where it is the first: a folder's broken files may come before the good ones."""
    answer = posted(client, [b"one", b"two"], expected_images="4")
    assert [one["kind"] for one in answer["report"]["blocked"]] == ["incomplete", "no_cells"]
    assert (answer["differential"]["cells"], answer["differential"]["kind"]) == (0, "too_few_cells")
    report = answer["report_id"]
    for path in ("", "/fhir", "/report.pdf"):
        assert client.get(f"/v1/reports/{report}{path}").status_code == 200
    assert add(client, report, b"three").json()["report"]["sent_images"] == 3
    assert_problem(sign(client, report, "*"), 409, "incomplete")
    last = add(client, report, of_class("Basophil")).json()
    assert (last["report"]["complete"], last["differential"]["cells"]) == (True, 1)
    refused = client.post("/v1/differential", files=form(b"one", b"two"), data={"expected_images": "2"})
    assert_problem(refused, 422, "no-usable-image")  # nothing more will come: there is no report to make


def test_a_blind_repetition_completes_nothing(client: TestClient) -> None:  # noqa: F811
    files = [of_class("Neutrophil") for _ in range(3)] + [b"no image"]
    report = posted(client, files[:2], expected_images="6")["report_id"]
    for _ in range(3):
        state = add(client, report, *files[2:]).json()["report"]
    assert (state["sent_images"], state["complete"]) == (4, False)


def test_more_than_were_expected_are_refused(client: TestClient) -> None:  # noqa: F811
    report = posted(client, [of_class("Neutrophil"), of_class("Monocyte")], expected_images="3")["report_id"]
    more = [of_class("Neutrophil"), of_class("Neutrophil")]
    assert assert_problem(keyed(client, report, *more), 409, "expected-images")["field"] == "expected_images"
    assert_problem(add(client, report, more[0], expected_images="4"), 409, "expected-images")
    assert report_of(client, report)["sent_images"] == 2
    assert_problem(patch(client, report, expected_images=1), 409, "expected-images")
    assert patch(client, report, expected_images=4.0).json()["expected_images"] == 4  # JSON knows one kind of number
    assert keyed(client, report, *more).json()["report"]["complete"]
    too_many = client.post("/v1/differential", files=form(*more), data={"expected_images": "1"})
    assert assert_problem(too_many, 422, "bad-field")["field"] == "expected_images"


@pytest.mark.parametrize("wrong", ["0", "-1", "4097", "3.0", "1e2", "", "many", "٣", "9" * 30])
def test_a_number_of_images_that_is_none(client: TestClient, wrong: str) -> None:  # noqa: F811
    answer = client.post("/v1/differential", files=form(of_class("Neutrophil")), data={"expected_images": wrong})
    assert assert_problem(answer, 422, "bad-field")["field"] == "expected_images"


def test_who_never_said_how_many_has_sent_all(client: TestClient) -> None:  # noqa: F811
    answer = posted(client)
    assert (answer["report"]["expected_images"], answer["report"]["complete"]) == (None, True)
    said = add(client, answer["report_id"], of_class("Neutrophil"), expected_images="20").json()["report"]
    assert (said["expected_images"], said["sent_images"], said["complete"]) == (20, 15, False)
    [line] = [one for one in client.get("/v1/reports").json()["reports"] if one["id"] == answer["report_id"]]
    assert (line["expected_images"], line["sent_images"], line["complete"]) == (20, 15, False)
    assert patch(client, answer["report_id"], expected_images=None).json()["complete"]
