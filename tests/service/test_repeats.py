"""A cell counts once, however often its image comes; what was cut or saved again counts and is looked at by a person."""

import io
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from live import encode, form, of_class
from PIL import Image
from specimens import several, site
from test_more_cells import add, report_of
from test_reports import assert_problem, classifier, client, client_of, correct, posted  # noqa: F401 - two of them are fixtures

from serving.http.app import create_app
from serving.http.layer import Around
from serving.http.limits import Limits
from serving.http.running import Running
from serving.inference.classify import Classifier, Seen
from serving.reports.repeats import held, place, site_unknown
from serving.security.keys import ApiKeys
from wbc_model.rendering.cells import render_cells


@pytest.fixture(scope="module")
def smear() -> list[Image.Image]:
    """Cells as the renderer draws them, on 160 pixels."""
    return [Image.fromarray(cell.pixels) for cell in render_cells(6, 11, 160)]


@pytest.fixture
def keeping(classifier: Classifier, tmp_path: Path) -> Iterator[TestClient]:  # noqa: F811
    """A service that keeps images, and so by what a cell is known again in a later request."""
    yield from client_of(classifier, tmp_path, site(keep_images=True))


def statuses(results: list[dict[str, Any]]) -> list[Any]:
    """Of each result its class, or the index that it is a duplicate of, or why else it was rejected."""
    return [one["label"] if one["status"] == "ok" else one.get("duplicate_of", one["problem"]["reason"]) for one in results]


def keyed(client: TestClient, report: str, *files: bytes) -> httpx.Response:  # noqa: F811
    """Files that are added by another call than any before."""
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    return client.post("/v1/differential", files=form(*files), data={"report_id": report}, headers=headers)


def test_a_hundred_copies_are_one_cell(client: TestClient) -> None:  # noqa: F811
    answer = posted(client, [of_class("Lymphocyte")] * 100)
    assert statuses(answer["results"]) == ["Lymphocyte"] + [0] * 99
    rejected = answer["results"][7]
    assert (rejected["problem"]["reason"], rejected["problem"]["type"]) == ("duplicate", "urn:wbc:problem:image:duplicate")
    assert "image 0" in rejected["problem"]["detail"]
    assert answer["differential"]["cells"] == 1
    assert answer["differential"]["kind"] == "too_few_cells"
    assert answer["positions"] == list(range(100))
    kept = report_of(client, answer["report_id"])
    assert (kept["sent_images"], len(kept["cells"])) == (100, 100)
    assert_problem(correct(client, answer["report_id"], 7, "Monocyte", "*"), 409, "rejected-image")


def test_the_same_files_added_again_change_nothing(client: TestClient) -> None:  # noqa: F811
    """Twice the same ten: once as somebody who repeats a call blindly, once as a client that says it is another call."""
    files = [of_class("Neutrophil") for _ in range(10)]
    report = posted(client, files)["report_id"]
    again = add(client, report, *files).json()
    assert statuses(again["results"]) == list(range(10))
    assert (again["positions"], again["report"]["sent_images"]) == (list(range(10)), 10)
    meant = keyed(client, report, *files, of_class("Monocyte")).json()
    assert statuses(meant["results"]) == [*range(10), "Monocyte"]
    assert (meant["positions"], meant["report"]["sent_images"]) == (list(range(10, 21)), 21)
    assert again["differential"]["cells"] == 10
    assert meant["differential"]["cells"] == 11


def test_without_a_store_a_file_counts_once_too(classifier: Classifier) -> None:  # noqa: F811
    app = create_app()
    app.state.running = Running(classifier, ApiKeys([]), Limits(), site())
    one, other = of_class("Neutrophil"), of_class("Monocyte")
    answer = posted(TestClient(Around(app)), [one, other, one, b"no image", b"no image"])
    assert statuses(answer["results"]) == ["Neutrophil", "Monocyte", 0, "undecodable", "undecodable"]
    assert answer["differential"]["cells"] == 2


def test_classify_counts_nothing_and_answers_each(client: TestClient) -> None:  # noqa: F811
    results = client.post("/v1/classify", files=form(*[of_class("Basophil")] * 3)).json()["results"]
    assert statuses(results) == ["Basophil"] * 3
    assert not any("twin" in result or result["review"]["required"] for result in results)


def test_the_cell_that_a_person_took_out_does_not_come_back(client: TestClient) -> None:  # noqa: F811
    file = of_class("Neutrophil")
    report = posted(client, [file, of_class("Monocyte")])["report_id"]
    correct(client, report, 0, None, "*")
    answer = keyed(client, report, file).json()
    assert statuses(answer["results"]) == [0]
    assert answer["differential"]["cells"] == 1


def test_a_file_that_was_not_usable_before_and_is_now_counts() -> None:
    """As where the time for decoding ran out."""
    [cell] = several("Neutrophil", 1)
    before = held([], {})._replace(images=5, places={cell.sha256: 2})
    placed = place([Seen(cell, None)], before, repetition=True)
    assert (placed.results, placed.positions, placed.new) == ([cell], [5], [0])


def test_a_cell_cut_or_saved_again_counts_and_names_its_twin(keeping: TestClient, smear: list[Image.Image]) -> None:
    saved = io.BytesIO()
    smear[0].save(saved, "JPEG", quality=80)
    files = [encode(cell) for cell in smear[:3]] + [saved.getvalue()]
    answer = posted(keeping, files)
    reasons = [result["review"]["reasons"] for result in answer["results"]]
    assert "near_duplicate" in reasons[3]
    assert not any("near_duplicate" in some for some in reasons[:3])
    assert answer["results"][3]["twin"] == 0
    assert answer["results"][3]["review"]["required"]
    assert answer["differential"]["cells"] == 4
    report = answer["report_id"]
    cut = encode(smear[2].crop((8, 5, 160, 157)))
    more = keyed(keeping, report, encode(smear[4]), cut, b"no image").json()
    assert [one.get("twin") for one in more["results"]] == [None, 2, None]
    assert report_of(keeping, report)["cells"][5]["result"]["twin"] == 2
    left = report_of(keeping, report)["to_review"]
    decided = correct(keeping, report, 5, None, "*").json()
    assert decided["to_review"] == left - 1


def test_copies_of_one_strange_image_do_not_make_an_unknown_site() -> None:
    [strange] = several("Neutrophil", 1, True, "site_unknown")
    placed = place([Seen(strange, None)] * 20 + [Seen(one, None) for one in several("Neutrophil", 30)])
    results = [one.model_dump() for one in placed.results]
    assert not site_unknown(results, 0.02)
    assert site_unknown([one.model_dump() for one in several("Neutrophil", 20, True, "site_unknown")], 0.02)
