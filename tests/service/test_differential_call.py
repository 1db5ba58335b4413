"""`POST /v1/differential` on a real server; the client and the curl lines of the documentation."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from fhir.resources.R4B.bundle import Bundle
from live import ROOT, Server, clean_environment, encode, form, free_port, of_class, serve_command
from page_visits import KEY, api_of, report_of
from test_api import assert_problem
from tiny_model import CONFUSION, write_model

from serving.contract.differential import Circumstances, count_differential
from serving.contract.schemas import DifferentialAnswer, FhirBundle
from serving.contract.site import read_site
from serving.http.app import create_app
from serving.http.layer import Around
from serving.http.limits import MAX_IMAGES, Limits
from serving.http.running import Running
from serving.inference.classify import Classifier
from serving.security.keys import ApiKeys

FHIR = "application/fhir+json"
SPECIMEN = "26-04711/B"
COUNTS = {"Basophil": 1, "Eosinophil": 4, "Lymphocyte": 31, "Monocyte": 6, "Neutrophil": 60}
AMBIGUOUS = encode((128, 0, 0))  # halfway between an eosinophil and a monocyte


def cells() -> list[tuple[str, tuple[str, bytes, str]]]:
    return form(*[of_class(label) for label, count in COUNTS.items() for _ in range(count)])


def texts(**fields: str) -> list[tuple[str, tuple[None, str]]]:
    return [(name, (None, value)) for name, value in fields.items()]


def test_the_answer_is_the_differential_of_its_results(client: httpx.Client) -> None:
    files = [*texts(specimen_id=SPECIMEN), *cells(), *form(AMBIGUOUS, b"no image"), *texts(wbc_count="7.1")]
    answer = client.post("/v1/differential", files=files)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "Accept, Accept-Encoding"
    body = answer.json()
    told = {"positions": None, "report": None, "same_specimen": [], "recounted": None}  # of a service that keeps nothing
    assert set(body) == {"model", "specimen_id", "differential", "results", *told}
    assert told.items() <= body.items()
    assert (body["specimen_id"], body["model"]["version"]) == (SPECIMEN, "tiny-1")
    assert [result["status"] for result in body["results"]] == ["ok"] * 103 + ["rejected"]
    labels = [result["label"] for result in body["results"][:-1]]
    expected = count_differential(labels, np.array(CONFUSION), read_site(), Circumstances(wbc_count=7.1, to_review=1))
    assert DifferentialAnswer.model_validate(body).differential == expected
    assert body["differential"]["classes"]["Neutrophil"]["count"] == 60
    assert body["differential"]["correction"]["applied"]
    assert body["differential"]["to_review"] == 1


def test_without_the_text_fields_there_are_no_absolute_counts(client: httpx.Client) -> None:
    body = client.post("/v1/differential", files=form(of_class("Monocyte"))).json()
    assert body["specimen_id"] is None
    assert body["differential"]["kind"] == "too_few_cells"
    assert {(share["absolute"], share["flag"]) for share in body["differential"]["classes"].values()} == {(None, None)}


def test_as_fhir(client: httpx.Client) -> None:
    answer = client.post(
        "/v1/differential", files=[*cells(), *texts(specimen_id=SPECIMEN, wbc_count="7.1")], headers={"Accept": FHIR}
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == FHIR
    bundle = Bundle.model_validate_json(answer.content)
    FhirBundle.model_validate_json(answer.content)
    kinds = [entry.resource.get_resource_type() for entry in bundle.entry]
    assert (kinds.count("DiagnosticReport"), kinds.count("Observation")) == (1, 10)
    report = bundle.entry[0].resource
    assert report.status == "preliminary"
    neutrophils = next(it.resource for it in bundle.entry if _loinc(it.resource) == "26511-6")
    assert float(neutrophils.valueQuantity.value) == pytest.approx(100 * 60 / 102, abs=0.05)  # as it is printed


def _loinc(resource: Any) -> str | None:
    return resource.code.coding[0].code if resource.get_resource_type() == "Observation" else None


def test_what_is_not_acceptable_is_406_and_an_error_is_a_problem_whatever_is_accepted(client: httpx.Client) -> None:
    document = assert_problem(client.post("/v1/differential", files=cells(), headers={"Accept": "text/html"}), 406)
    assert document["offered"] == ["application/json", FHIR]
    assert_problem(client.post("/v1/differential", files=form(b"x"), headers={"Accept": FHIR}), 422)


@pytest.mark.parametrize(
    ("fields", "mentions"),
    [
        (texts(wbc_count=""), "wbc_count"),
        (texts(wbc_count="seven"), "wbc_count"),
        (texts(wbc_count="nan"), "wbc_count"),
        (texts(wbc_count="inf"), "wbc_count"),
        (texts(wbc_count="1e999"), "wbc_count"),
        (texts(wbc_count="0"), "wbc_count"),
        (texts(wbc_count="-7.1"), "wbc_count"),
        (texts(wbc_count="7100"), "10*3/uL"),
        (texts(wbc_count="7,1"), "wbc_count"),
        (texts(wbc_count="٧"), "wbc_count"),
        (texts(wbc_count=" 7.1"), "wbc_count"),
        (texts(wbc_count="7.1" + "0" * 300), "longer than"),
        ([*texts(wbc_count="7.1"), *texts(wbc_count="7.2")], "twice"),
        ([("wbc_count", ("a.txt", b"7.1", "text/plain"))], "not a file"),
        (texts(specimen_id=""), "specimen_id"),
        (texts(specimen_id=" padded"), "specimen_id"),
        (texts(specimen_id="two\r\nlines"), "specimen_id"),
        (texts(specimen_id="trailing\n"), "specimen_id"),
        (texts(specimen_id="nul\0"), "specimen_id"),
        (texts(specimen_id="x" * 65), "specimen_id"),
        (texts(specimen_id="x" * 10_000), "longer than"),
        ([("specimen_id", (None, b"\xff\xfe"))], "UTF-8"),
        (texts(specimen_id="a") * 2, "twice"),
        (texts(patient="secret-name"), "Unknown form field 'patient'"),
    ],
)
def test_a_bad_field_is_422_and_is_not_repeated(
    client: httpx.Client, fields: list[tuple[str, tuple[None, str]]], mentions: str
) -> None:
    document = assert_problem(client.post("/v1/differential", files=[*form(of_class("Basophil")), *fields]), 422)
    assert mentions in document["detail"]
    assert document["field"] == fields[0][0]
    assert not re.search("secret-name|7100|seven|padded|xxxx", str(document))


@pytest.mark.parametrize("text", ["7.1", "7", "0.01", "1000", "7.10", "1e1", "1.0E-1"])
def test_a_good_count_is_taken(client: httpx.Client, text: str) -> None:
    body = client.post("/v1/differential", files=[*form(of_class("Basophil")), *texts(wbc_count=text)]).json()
    assert body["differential"]["wbc_count"] == float(text)
    assert body["differential"]["classes"]["Basophil"]["absolute"]["value"] == float(text)


@pytest.mark.parametrize("text", ["S", "26-04711 B", "~!^|\\&", "x" * 64])
def test_a_good_specimen_number_is_taken(client: httpx.Client, text: str) -> None:
    body = client.post("/v1/differential", files=[*form(of_class("Basophil")), *texts(specimen_id=text)]).json()
    assert body["specimen_id"] == text


def test_the_other_refusals_are_those_of_classify(client: httpx.Client) -> None:
    assert_problem(client.post("/v1/differential", json={}), 415)
    assert_problem(client.post("/v1/differential", files=texts(specimen_id="S")), 422)
    assert_problem(client.post("/v1/differential", files=form(*[of_class("Basophil")] * 257)), 413)
    document = assert_problem(client.post("/v1/differential", files=form(b"x", b"y")), 422)
    assert len(document["results"]) == 2


def test_the_call_is_counted_and_the_specimen_stands_in_no_log(server: Server, client: httpx.Client) -> None:
    number = "SECRET-4711"
    for fields in (texts(specimen_id=number), texts(specimen_id=number, wbc_count="x"), texts(specimen_id=number + "\n")):
        client.post("/v1/differential", files=[*form(of_class("Basophil")), *fields])
    assert 'endpoint="/v1/differential",http_response_code="422"' in client.get("/metrics").text
    log = server.log.read_text()
    assert "/v1/differential" in log
    assert number not in log
    assert "0.png" not in log


@pytest.fixture
def without_confusion(tmp_path: Path) -> Iterator[TestClient]:
    write_model(tmp_path / "model", metrics={})
    app, classifier = create_app(), Classifier.open(tmp_path / "model")
    app.state.running = Running(classifier, ApiKeys(["k"]), Limits())
    yield TestClient(Around(app), headers={"X-API-Key": "k"})
    classifier.close()


def test_an_older_model_answers_without_the_correction_and_says_why(without_confusion: TestClient) -> None:
    body = without_confusion.post("/v1/differential", files=form(of_class("Basophil"))).json()
    assert {share["corrected"] for share in body["differential"]["classes"].values()} == {None}
    assert "no confusion matrix" in body["differential"]["correction"]["explanation"]
    assert without_confusion.post("/v1/differential", headers={"X-API-Key": ""}).status_code == 401


def test_a_bad_site_file_ends_the_start_with_one_line(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("minimum_cells: 0")
    result = subprocess.run(
        serve_command(model_dir, free_port()),
        env=clean_environment(WBC_SITE_FILE=str(tmp_path / "site.yaml")),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode != 0
    assert "site.yaml: minimum_cells: " in result.stderr
    assert len((result.stdout + result.stderr).splitlines()) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `cells/` in it: the documentation's example."""
    (tmp_path / "cells").mkdir()
    files = [data for _, (_, data, _) in cells()]
    for number, data in enumerate([*files, AMBIGUOUS, b"no image"], 1):
        (tmp_path / "cells" / f"{number}.png").write_bytes(data)
    return tmp_path


def example(server: Server, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "docs/examples/client.py"), server.url, str(folder / "cells"), *more]
    environment = clean_environment(WBC_API_KEY=KEY)
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60, env=environment)


def test_the_example_client(server: Server, folder: Path) -> None:
    done = example(server, folder, "--specimen", SPECIMEN, "--wbc", "7.1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "differential, model tiny-1: 103 cells counted, 1 of them to be looked at by a person."
    assert re.fullmatch(r"Neutrophil +60 +58\.3 % \( *\d+\.\d to +\d+\.\d\) +normal +4\.14 10\*3/uL normal", lines[5])
    assert "is to be looked at (ambiguous)" in done.stdout
    assert "was not used" in done.stdout
    assert example(server, folder, "--fhir", str(folder / "bundle.json")).returncode == 0
    Bundle.model_validate_json((folder / "bundle.json").read_bytes())
    refused = example(server, folder, "--wbc", "7100")
    assert refused.returncode == 1
    assert refused.stderr.startswith("422 Field not accepted: ")
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_example_client_sends_in_batches_what_one_request_does_not_hold(
    keeping: Server, server: Server, tmp_path: Path
) -> None:
    cells, count = tmp_path / "cells", MAX_IMAGES + 2
    cells.mkdir()
    for number in range(count):
        (cells / f"{number:03}.png").write_bytes(of_class("Neutrophil"))
    (cells / "000.png").write_bytes(b"no image")
    (cells / "zz-copy.png").write_bytes((cells / "001.png").read_bytes())
    done = example(keeping, tmp_path, "--specimen", "batches")
    assert done.returncode == 0, done.stderr
    report = report_of(api_of(keeping), "batches")
    assert (report["expected_images"], report["sent_images"], report["complete"]) == (count + 1, count + 1, True)
    assert report["differential"]["cells"] == count - 1
    assert f"{count - 1} cells" in done.stdout.splitlines()[0]
    assert re.findall(r"image (\d+) was not used", done.stdout) == ["1", str(count + 1)]
    assert example(keeping, tmp_path, "--fhir", str(tmp_path / "bundle.json")).returncode == 0
    Bundle.model_validate_json((tmp_path / "bundle.json").read_bytes())
    refused = example(server, tmp_path)  # it keeps no reports, so that nothing can be added to one
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_curl_line_of_the_documentation_works(server: Server, folder: Path) -> None:
    text = (ROOT / "docs/http.md").read_text()
    calls = r"^curl .*(?:/v1/(?:classify|differential|model|openapi\.json)|/livez|/readyz|/metrics)$"
    lines = re.findall(calls, text, re.MULTILINE)
    assert len(lines) == 9
    environment = clean_environment(URL=server.url, KEY="the-key")
    for line in lines:
        command = ["bash", "-c", f"{line} --fail --silent --show-error"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, (line, done.stderr)
        assert "differential" not in line or b"26-04711" in done.stdout
