"""A model is promoted in the middle of a report: it can be completed all the same, and says by which model it was counted."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from live import encode, of_class, of_colour
from PIL import Image
from specimens import site
from sqlalchemy.exc import OperationalError
from test_more_cells import add, report_of
from test_reports import assert_problem, classifier, client_of, correct, posted, sign  # noqa: F401 - one is a fixture
from tiny_model import CONFUSION, write_model

from serving.http.running import Running
from serving.inference.classify import Classifier
from serving.reports import recount
from serving.reports.tables import KeptImage, Report
from serving.security.keys import ApiKeys, add_key
from wbc_model.rendering.cells import render_cells

Promote = Callable[[TestClient], Classifier]
DARK = (60, 60, 60)  # a monocyte, and one that the second model is not sure of


@pytest.fixture
def promote(tmp_path: Path) -> Iterator[Promote]:
    """Let another model answer, whose threshold makes it doubt more; each time of another version."""
    opened: list[Classifier] = []
    numbers = itertools.count(2)

    def install(client: TestClient) -> Classifier:
        folder = tmp_path / f"model-{next(numbers)}"
        confusion = [[2 * count for count in row] for row in CONFUSION]
        version, metrics = folder.name.replace("model", "tiny"), {"validation": {"confusion": confusion}}
        write_model(folder, version=version, conformal_threshold=1e-6, metrics=metrics, rendered=False)
        opened.append(Classifier.open(folder))
        running(client).install(opened[-1])
        return opened[-1]

    yield install
    for one in opened:
        one.close()


def running(client: TestClient) -> Running:
    found: Running = client.app.app.state.running  # type: ignore[attr-defined]
    return found


@pytest.fixture
def keeping(classifier: Classifier, tmp_path: Path) -> Iterator[TestClient]:  # noqa: F811
    """A service that keeps images."""
    yield from client_of(classifier, tmp_path, site(keep_images=True))


@pytest.fixture
def forgetful(classifier: Classifier, tmp_path: Path) -> Iterator[TestClient]:  # noqa: F811
    """One that keeps none."""
    yield from client_of(classifier, tmp_path, site())


def test_the_whole_report_is_counted_again_and_says_so(keeping: TestClient, promote: Promote) -> None:
    file = of_class("Neutrophil")
    report = posted(keeping, [file, of_class("Basophil"), of_colour(DARK), b"no image", file], expected_images="7")["report_id"]
    correct(keeping, report, 0, "Eosinophil", "*")
    correct(keeping, report, 1, None, "*")
    before = report_of(keeping, report)
    model = promote(keeping)
    answer = add(keeping, report, of_class("Monocyte"), of_class("Neutrophil")).json()
    assert answer["recounted"] == {"from_version": "tiny-1", "to_version": "tiny-2", "cells": 3}
    assert answer["model"]["version"] == "tiny-2"
    after = report_of(keeping, report)
    assert (after["model"]["version"], after["sent_images"], after["complete"]) == ("tiny-2", 7, True)
    labels = ["Eosinophil", None, "Monocyte", None, None, "Monocyte", "Neutrophil"]
    assert [cell["label"] for cell in after["cells"]] == labels
    assert [cell["by_person"] for cell in after["cells"]] == [True, True, False, False, False, False, False]
    assert after["corrections"] == before["corrections"]
    assert [one["result"] for one in after["cells"][3:5]] == [one["result"] for one in before["cells"][3:5]]
    [again] = model.classify_chunk([of_colour(DARK)])
    expected = again.model_dump(mode="json")
    got = after["cells"][2]["result"]
    assert {**got, "sha256": ""} == {**expected, "sha256": ""} != {**before["cells"][2]["result"], "sha256": ""}
    assert after["differential"]["correction"]["validation_cells"] == 2 * before["differential"]["correction"]["validation_cells"]
    [change] = after["changes"]
    assert (change["what"], change["from_value"], change["to_value"], change["by"]) == ("model", "tiny-1", "tiny-2", "local")
    assert all(cell["has_image"] == (cell["result"]["status"] == "ok") for cell in after["cells"])
    undone = keeping.post(f"/v1/reports/{report}/cells/1/undo", json={"by": "Dr. Ada"}, headers={"If-Match": "*"})
    assert undone.json()["cells"][1]["label"] == "Basophil"
    assert add(keeping, report, of_class("Monocyte")).status_code == 409  # expects no more
    assert "recounted" in answer
    assert sign(keeping, report, "*").json()["status"] == "final"


def test_the_record_says_whose_key_it_was(keeping: TestClient, promote: Promote, tmp_path: Path) -> None:
    report = posted(keeping)["report_id"]
    promote(keeping)
    keeping.headers["X-API-Key"] = add_key(tmp_path / "keys", "ada", ["classify", "review"], "Dr Ada Lovelace")
    running(keeping).keys = ApiKeys(file=tmp_path / "keys")
    assert add(keeping, report, of_class("Basophil")).status_code == 200
    [change] = report_of(keeping, report)["changes"]
    assert (change["by"], change["caller"]) == ("Dr Ada Lovelace", "ada")


def test_nobody_signs_by_settings_that_he_has_not_seen(keeping: TestClient) -> None:
    """They changed, and the service has not come to this report yet."""
    report = posted(keeping, [of_class("Neutrophil")] * 12)["report_id"]
    running(keeping).site = running(keeping).site.model_copy(update={"minimum_cells": 500})
    refused = assert_problem(sign(keeping, report, '"1"'), 412, "changed-meanwhile")
    assert refused["version"] == 2
    assert report_of(keeping, report)["differential"]["kind"] == "too_few_cells"
    assert sign(keeping, report, '"2"').json()["signatures"][0]["differential"]["minimum_cells"] == 500


def test_adding_once_more_counts_nothing_again(keeping: TestClient, promote: Promote) -> None:
    report = posted(keeping)["report_id"]
    promote(keeping)
    assert add(keeping, report, of_class("Basophil")).json()["recounted"]["cells"] == 13
    assert add(keeping, report, of_class("Basophil")).json()["recounted"] is None
    assert len(report_of(keeping, report)["changes"]) == 1


def test_twins_and_their_fingerprints_outlive_it(keeping: TestClient, promote: Promote) -> None:
    one, other = (Image.fromarray(cell.pixels) for cell in render_cells(2, 11, 160))
    report = posted(keeping, [b"no image", encode(one), encode(other), encode(one, "JPEG", quality=85)])["report_id"]
    assert report_of(keeping, report)["cells"][3]["result"]["twin"] == 1
    promote(keeping)
    add(keeping, report, encode(other.crop((8, 5, 160, 157))))
    cells = report_of(keeping, report)["cells"]
    assert [cell["result"].get("twin") for cell in cells] == [None, None, None, 1, 2]
    assert "near_duplicate" in cells[3]["result"]["review"]["reasons"]


def test_without_images_the_earlier_model_goes_on_with_its_reports(
    forgetful: TestClient, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = posted(forgetful)["report_id"]
    promote(forgetful)
    newer = posted(forgetful)["report_id"]
    promote(forgetful)  # the first is held as long as it has an open report
    for of, version in ((report, "tiny-1"), (newer, "tiny-2")):
        answer = add(forgetful, of, of_class("Basophil")).json()
        assert (answer["model"]["version"], answer["recounted"]) == (version, None)
        assert report_of(forgetful, of)["model"]["version"] == version
    sign(forgetful, report, "*")
    promote(forgetful)
    assert [one.model.version for one in running(forgetful)._earlier] == ["tiny-3", "tiny-2"]
    assert posted(forgetful)["model"]["version"] == "tiny-4"
    running(forgetful).kept.store.close()  # type: ignore[union-attr]
    monkeypatch.setattr("serving.http.running.models_of_open_reports", _cannot_be_read)
    assert promote(forgetful).model.version == posted(forgetful)["model"]["version"] == "tiny-5"  # the store is no reason to wait
    assert [one.model.version for one in running(forgetful)._earlier] == ["tiny-4", "tiny-3", "tiny-2"]


def _cannot_be_read(*_: Any) -> None:
    raise OperationalError("SELECT", {}, Exception("disk I/O error"))


def test_where_neither_can_be_the_refusal_names_the_way_on(
    forgetful: TestClient, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart of a service that keeps no images."""
    report = posted(forgetful)["report_id"]
    promote(forgetful)
    monkeypatch.setattr(running(forgetful), "_earlier", [])
    problem = assert_problem(add(forgetful, report, of_class("Basophil")), 409, "another-model")
    assert f"POST /v1/reports/{report}/withdrawal" in problem["detail"]
    assert "new report" in problem["detail"]
    assert report_of(forgetful, report)["version"] == 1


def test_reports_of_before_it_was_kept_say_that_their_model_learned_from_drawn_cells(
    forgetful: TestClient,
    tmp_path: Path,
) -> None:
    """The column `rendered` of a store of revision 0001 is false; the card of the model that serves knows better."""
    open_one, final, other = (posted(forgetful)["report_id"] for _ in range(3))
    sign(forgetful, final, "*")
    with running(forgetful).kept.store.writing() as session:  # type: ignore[union-attr]
        session.get_one(Report, other).model_version = "tiny-0"
    write_model(tmp_path / "drawn", rendered=True)
    drawn = Classifier.open(tmp_path / "drawn")
    running(forgetful).install(drawn)
    assert drawn.model.version == report_of(forgetful, open_one)["model"]["version"]
    assert [one["kind"] for one in report_of(forgetful, open_one)["blocked"]] == ["rendered_model"]
    assert_problem(sign(forgetful, open_one, "*"), 409, "rendered-model")
    assert "HTEST" in forgetful.get(f"/v1/reports/{open_one}/fhir").text
    assert report_of(forgetful, final)["differential"]["rendered"]
    correct(forgetful, final, 0, "Monocyte", "*", amend=True)
    assert_problem(sign(forgetful, final, "*"), 409, "rendered-model")
    assert sign(forgetful, other, "*").json()["status"] == "final"
    drawn.close()


def test_a_signed_report_is_not_counted_again(keeping: TestClient, promote: Promote, monkeypatch: pytest.MonkeyPatch) -> None:
    report = posted(keeping)["report_id"]
    sign(keeping, report, "*")
    promote(keeping)
    monkeypatch.setattr("serving.http.routes.read_again", None)  # would be called
    assert_problem(add(keeping, report, of_class("Basophil")), 409, "signed")


def test_images_that_ran_out_are_missed(keeping: TestClient, promote: Promote) -> None:
    report = posted(keeping)["report_id"]
    with running(keeping).kept.store.writing() as session:  # type: ignore[union-attr]
        session.delete(session.get_one(KeptImage, (report, 3)))
    promote(keeping)
    assert_problem(add(keeping, report, of_class("Basophil")), 409, "another-model")


def test_cells_that_come_meanwhile_are_not_left_out(
    keeping: TestClient, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another batch is added between the reading of the images and the writing: nothing is done, and the call may be repeated."""
    report = posted(keeping)["report_id"]
    before, after = running(keeping).classifier, promote(keeping)
    read_again = recount.read_again

    async def slow(*given: Any) -> Any:
        again = await read_again(*given)
        again.popitem()
        return again

    with monkeypatch.context() as patch:
        patch.setattr("serving.http.routes.read_again", slow)
        busy = add(keeping, report, of_class("Basophil"))
        assert_problem(busy, 503, "busy")
        assert busy.headers["retry-after"]
    assert report_of(keeping, report)["model"]["version"] == before.model.version
    assert add(keeping, report, of_class("Basophil")).json()["model"]["version"] == after.model.version
