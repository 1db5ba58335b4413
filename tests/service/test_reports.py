"""The routes of reports, over HTTP: what a page or a hospital's system does with a differential."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import new_database
from fastapi.testclient import TestClient
from fhir.resources.R4B.bundle import Bundle
from live import ROOT, Server, ambiguous, clean_environment, form, free_port, of_class, started
from specimens import SPECIMEN, site
from test_outbox import Listener, eventually

from serving.contract.site import Site
from serving.http.app import create_app
from serving.http.layer import Around
from serving.http.limits import Limits
from serving.http.running import Kept, Running
from serving.http.upload import BODY_BYTES
from serving.inference.classify import Classifier
from serving.reports.store import Store, sqlite_url
from serving.security.audit import AuditLog
from serving.security.keys import ApiKeys, add_key
from serving.upkeep.metrics import endpoint
from wbc_model.core.classes import CLASSES

PROBLEM = "urn:wbc:problem:"
DOCTOR = {"by": "Dr. Ada"}


@pytest.fixture(scope="module")
def classifier(model_dir: Path) -> Iterator[Classifier]:
    made = Classifier.open(model_dir)
    yield made
    made.close()


def client_of(
    classifier: Classifier, folder: Path, of: Site, keys: ApiKeys | None = None, audit: AuditLog | None = None
) -> Iterator[TestClient]:
    app = create_app()
    kept = Kept(Store.open(sqlite_url(folder / "service.db")), of)
    app.state.running = Running(classifier, keys or ApiKeys([]), Limits(), of, audit, kept)
    yield TestClient(Around(app), raise_server_exceptions=False)
    kept.close()


@pytest.fixture(scope="module")
def client(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    yield from client_of(classifier, tmp_path_factory.mktemp("kept"), site())


def posted(client: TestClient | httpx.Client, files: list[bytes] | None = None, **fields: str) -> dict[str, Any]:
    """The answer to 8 neutrophils, 4 lymphocytes, one between eosinophil and monocyte and a file that is no image."""
    if files is None:
        labels = ["Neutrophil"] * 8 + ["Lymphocyte"] * 4
        files = [*map(of_class, labels), ambiguous(), b"no image"]
    answer = client.post("/v1/differential", files=form(*files), data={"specimen_id": SPECIMEN, "wbc_count": "6.5", **fields})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def assert_problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    document: dict[str, Any] = answer.json()
    assert (answer.status_code, document["type"]) == (status, PROBLEM + kind), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["detail"]
    return document


def correct(
    client: TestClient | httpx.Client, report: str, index: int, label: str | None, version: str, **more: Any
) -> httpx.Response:
    body = {"label": label, **DOCTOR, **more}
    return client.put(f"/v1/reports/{report}/cells/{index}", json=body, headers={"If-Match": version})


def sign(client: TestClient | httpx.Client, report: str, version: str) -> httpx.Response:
    return client.post(f"/v1/reports/{report}/signature", json=DOCTOR, headers={"If-Match": version})


def test_a_differential_becomes_a_report_that_says_the_same(client: TestClient) -> None:
    answer = posted(client)
    got = client.get(f"/v1/reports/{answer['report_id']}")
    report = got.json()
    assert got.headers["etag"] == '"1"'
    assert (report["id"], report["status"], report["version"]) == (answer["report_id"], "preliminary", 1)
    assert (report["specimen_id"], report["model"], report["signed_by"]) == (SPECIMEN, answer["model"], None)
    assert report["differential"] == answer["differential"]
    assert [cell["result"] for cell in report["cells"]] == answer["results"]
    assert [cell["label"] for cell in report["cells"]] == [result.get("label") for result in answer["results"]]
    assert not any(cell["by_person"] or cell["has_image"] for cell in report["cells"])
    assert (report["corrections"], report["signatures"], report["messages"]) == ([], [], [])


def test_from_correction_to_amendment(client: TestClient) -> None:
    report = posted(client)["report_id"]
    first = correct(client, report, 12, "Monocyte", '"1"')
    assert (first.status_code, first.headers["etag"]) == (200, '"2"')
    assert first.json()["differential"]["classes"]["Monocyte"]["count"] == 1
    assert first.json()["differential"]["to_review"] == 0
    signed = sign(client, report, '"2"').json()
    assert (signed["status"], signed["signed_by"], signed["version"]) == ("final", "Dr. Ada", 3)
    assert_problem(sign(client, report, '"3"'), 409, "signed")
    assert_problem(correct(client, report, 0, "Basophil", '"3"'), 409, "signed")
    opened = correct(client, report, 0, "Basophil", '"3"', amend=True).json()
    assert (opened["status"], opened["signed_by"]) == ("preliminary", None)
    amended = sign(client, report, "*").json()
    assert (amended["status"], amended["corrected"]) == ("amended", 1 + (first.json()["corrected"]))
    assert [(one["index"], one["to_label"], one["by"], one["caller"]) for one in amended["corrections"]] == [
        (12, "Monocyte", "Dr. Ada", "local"),
        (0, "Basophil", "Dr. Ada", "local"),
    ]
    counts = [one["differential"]["classes"]["Basophil"]["count"] for one in amended["signatures"]]
    assert ([one["status"] for one in amended["signatures"]], counts) == (["final", "amended"], [0, 1])


def test_who_saw_another_version_is_told(client: TestClient) -> None:
    report = posted(client)["report_id"]
    assert correct(client, report, 0, "Monocyte", '"1"').status_code == 200
    for late in (correct(client, report, 0, "Basophil", '"1"'), sign(client, report, '"1"')):
        assert_problem(late, 412, "changed-meanwhile")
        assert late.headers["etag"] == '"2"'
    for wrong in ("1", 'W/"1"', '"one"', '"1", "2"'):
        assert assert_problem(correct(client, report, 0, "Basophil", wrong), 422, "bad-parameter")["parameter"] == "If-Match"
    url = f"/v1/reports/{report}"
    assert_problem(client.put(f"{url}/cells/0", json={"label": None, **DOCTOR}), 428, "if-match-missing")
    assert_problem(client.post(f"{url}/signature", json=DOCTOR), 428, "if-match-missing")
    assert client.get(url).json()["version"] == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"label": "Plasma cell", "by": "x"}, "label"),
        ({"label": "Basophil"}, "by"),
        ({"label": "Basophil", "by": "  "}, "by"),
        ({"label": "Basophil", "by": "a\u0000b"}, "by"),
        ({"label": "Basophil", "by": "x" * 101}, "by"),
        ({"label": "Basophil", "by": "x", "more": 1}, "more"),
        ({"label": "Basophil", "by": "x", "amend": "yes"}, "amend"),
        ({"by": "x"}, "label"),
        ([], "body"),
    ],
)
def test_a_body_that_is_not_right_names_the_field(client: TestClient, body: Any, field: str) -> None:
    report = posted(client)["report_id"]
    answer = client.put(f"/v1/reports/{report}/cells/0", json=body, headers={"If-Match": "*"})
    assert assert_problem(answer, 422, "bad-field")["field"] == field


def test_bodies_that_are_too_large_or_no_json(client: TestClient) -> None:
    url = f"/v1/reports/{posted(client)['report_id']}/signature"
    headers = {"If-Match": "*", "Content-Type": "application/json"}
    assert_problem(client.post(url, content=b" " * (BODY_BYTES + 1), headers=headers), 413, "too-large")
    assert_problem(client.post(url, content=b"{", headers=headers), 422, "bad-field")
    assert_problem(client.post(url, content=b'{"by": "\\ud800"}', headers=headers), 422, "bad-field")
    assert_problem(client.post(url, data={"by": "x"}, headers={"If-Match": "*"}), 415, "not-json")


@pytest.mark.parametrize("report", ["0" * 32, "nothing", "%00", "'; DROP TABLE reports; --", "ä"])
def test_what_is_not_there_is_404(client: TestClient, report: str) -> None:
    url = f"/v1/reports/{report}"
    for path in (url, f"{url}/fhir", f"{url}/report.pdf", f"{url}/cells/0/image"):
        assert_problem(client.get(path), 404, "no-such-report")
    assert_problem(client.get("/v1/reports", params={"before": report}), 404, "no-such-report")
    headers = {"If-Match": "*"}
    assert_problem(client.post(f"{url}/signature", json=DOCTOR, headers=headers), 404, "no-such-report")
    assert_problem(client.put(f"{url}/cells/0", json={"label": None, **DOCTOR}, headers=headers), 404, "no-such-report")


def test_cells_that_are_not_there_or_were_rejected(client: TestClient) -> None:
    report = posted(client)["report_id"]
    for index in (14, -1, 10**30):
        assert_problem(correct(client, report, index, "Basophil", "*"), 404, "no-such-cell")
    assert_problem(correct(client, report, 13, "Basophil", "*"), 409, "rejected-image")
    answer = client.put(f"/v1/reports/{report}/cells/one", json={"label": None, **DOCTOR}, headers={"If-Match": "*"})
    assert_problem(answer, 422, "bad-parameter")


def test_the_list_is_by_status_newest_first_and_paged(classifier: Classifier, tmp_path: Path) -> None:
    for client in client_of(classifier, tmp_path, site()):
        assert_listed(client)


def assert_listed(client: TestClient) -> None:
    ids = [posted(client, specimen_id=f"S-{number}")["report_id"] for number in range(5)]
    sign(client, ids[1], "*")
    assert client.get("/v1/reports").json() == client.get("/v1/reports?status=open").json()

    def listed(**parameters: Any) -> list[str]:
        found, before = [], {}
        while True:
            page = client.get("/v1/reports", params={**parameters, **before}).json()
            found += [one["id"] for one in page["reports"]]
            if page["next"] is None:
                return found
            before = {"before": page["next"]}

    assert listed(status="all", limit=2) == ids[::-1]
    assert listed(status="all", limit=5) == ids[::-1]
    assert listed(limit=1) == [ids[4], ids[3], ids[2], ids[0]]
    assert listed(status="final") == [ids[1]]
    assert listed(status="amended") == []
    [line] = client.get("/v1/reports?status=final").json()["reports"]
    assert (line["specimen_id"], line["cells"], line["to_review"], line["signed_by"]) == ("S-1", 13, 1, "Dr. Ada")
    for wrong in ("status=done", "limit=0", "limit=x"):
        assert_problem(client.get(f"/v1/reports?{wrong}"), 422, "bad-parameter")


def test_fhir_says_who_signed_and_counts_the_corrections(client: TestClient) -> None:
    report = posted(client)["report_id"]

    def bundle() -> dict[str, Any]:
        answer = client.get(f"/v1/reports/{report}/fhir")
        assert answer.headers["content-type"] == "application/fhir+json"
        Bundle.model_validate_json(answer.text)
        document: dict[str, Any] = answer.json()
        return document

    def resources(kind: str) -> list[dict[str, Any]]:
        return [one["resource"] for one in bundle()["entry"] if one["resource"]["resourceType"] == kind]

    assert [one["status"] for one in resources("DiagnosticReport")] == ["preliminary"]
    assert resources("Practitioner") == []
    correct(client, report, 0, "Basophil", "*")
    sign(client, report, "*")
    assert [one["status"] for one in resources("DiagnosticReport")] == ["final"]
    assert resources("Practitioner")[0]["name"] == [{"text": "Dr. Ada"}]
    counts = {one["code"]["text"]: one["component"][0]["valueInteger"] for one in resources("Observation") if "/100" in str(one)}
    assert counts["Basophils/100 leukocytes in Blood"] == 1
    assert counts["Neutrophils/100 leukocytes in Blood"] == 7


def test_the_pdf_is_a_pdf_and_only_changes_with_the_report(client: TestClient) -> None:
    report = posted(client)["report_id"]
    url = f"/v1/reports/{report}/report.pdf"
    first = client.get(url)
    assert (first.headers["content-type"], first.content[:5]) == ("application/pdf", b"%PDF-")
    assert SPECIMEN not in first.headers["content-disposition"]
    assert client.get(url).content == first.content
    sign(client, report, "*")
    assert client.get(url).content != first.content


def test_images_are_shown_where_the_site_keeps_them(classifier: Classifier, tmp_path: Path) -> None:
    file = of_class("Neutrophil", kind="JPEG")
    for keep in (True, False):
        for client in client_of(classifier, tmp_path, site(keep_images=keep)):
            report = posted(client, [file, b"no image"])["report_id"]
            cells = client.get(f"/v1/reports/{report}").json()["cells"]
            assert [cell["has_image"] for cell in cells] == [keep, False]
            answer = client.get(f"/v1/reports/{report}/cells/0/image")
            if keep:
                assert (answer.headers["content-type"], answer.content[:4]) == ("image/png", b"\x89PNG")
            else:
                assert_problem(answer, 404, "no-such-image")
            assert_problem(client.get(f"/v1/reports/{report}/cells/1/image"), 404, "no-such-image")


def test_reports_are_for_keys_that_review_and_changes_are_in_the_audit_log(classifier: Classifier, tmp_path: Path) -> None:
    file, audit = tmp_path / "keys", AuditLog(tmp_path / "audit.jsonl")
    machine, doctor = (add_key(file, name, [name]) for name in ("classify", "review"))
    for client in client_of(classifier, tmp_path, site(), ApiKeys(file=file), audit):
        client.headers["X-API-Key"] = machine
        report = posted(client, [of_class("Neutrophil"), of_class("Monocyte")])["report_id"]
        url = f"/v1/reports/{report}"
        for refused in (
            *(client.get(path) for path in ("/v1/reports", url, f"{url}/fhir", f"{url}/report.pdf", f"{url}/cells/0/image")),
            correct(client, report, 0, "Basophil", "*"),
            sign(client, report, "*"),
        ):
            assert_problem(refused, 403, "forbidden")
        client.headers["X-API-Key"] = doctor
        assert correct(client, report, 1, "Basophil", "*").json()["corrections"][0]["caller"] == "review"
        assert sign(client, report, "*").json()["signatures"][0]["caller"] == "review"
        digests = [cell["result"]["sha256"] for cell in client.get(url).json()["cells"]]
        del client.headers["X-API-Key"]
        assert_problem(client.get(url), 401, "unauthorised")
    audit.close()
    records = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    told = [one for one in records if "status" in one]
    assert [(one["caller"], one["call"].replace(report, "ID"), one["images"]) for one in told] == [
        ("classify", "POST /v1/differential", digests),
        ("review", "PUT /v1/reports/ID/cells/1", digests[1:]),
        ("review", "POST /v1/reports/ID/signature", digests),
        ("review", "GET /v1/reports/ID", []),
    ]
    assert records[-1]["refused"] == {"401": 1, "403": 7}
    assert SPECIMEN not in (tmp_path / "audit.jsonl").read_text()


def test_without_a_store_there_are_no_reports(classifier: Classifier) -> None:
    app = create_app()
    app.state.running = Running(classifier, ApiKeys([]), Limits(), site())
    client = TestClient(Around(app), raise_server_exceptions=False)
    assert "report_id" not in posted(client)
    assert_problem(client.get("/v1/reports"), 404, "no-store")
    assert_problem(client.get(f"/v1/reports/{'0' * 32}"), 404, "no-store")
    assert "wbc_outbox" not in client.get("/metrics").text


def test_a_store_that_is_gone_is_503_and_back_when_it_is_back(classifier: Classifier, tmp_path: Path) -> None:
    for client in client_of(classifier, tmp_path, site()):
        report = posted(client)["report_id"]
        hidden = tmp_path / "elsewhere"
        client.app.app.state.running.kept.store.close()  # type: ignore[attr-defined]  # SQLite then keeps no second file
        (tmp_path / "service.db").rename(hidden)
        (tmp_path / "service.db").mkdir()
        answer = client.get(f"/v1/reports/{report}")
        assert_problem(answer, 503, "store-unavailable")
        assert answer.headers["retry-after"]
        assert client.post("/v1/differential", files=form(of_class("Basophil"))).status_code == 503
        (tmp_path / "service.db").rmdir()
        hidden.rename(tmp_path / "service.db")
        assert client.get(f"/v1/reports/{report}").status_code == 200


def test_paths_are_counted_without_the_ids_in_them() -> None:
    report = f"/v1/reports/{'a' * 32}"
    assert endpoint(report) == "/v1/reports/{id}"
    assert endpoint(f"{report}/cells/17") == "/v1/reports/{id}/cells/{index}"
    assert endpoint(f"{report}/cells/17/image") == "/v1/reports/{id}/cells/{index}/image"
    assert endpoint(f"{report}/report.pdf") == "/v1/reports/{id}/report.pdf"
    assert endpoint(f"{report}/more") == endpoint("/v1/else") == "other"
    assert endpoint("/v1/reports") == "/v1/reports"


def test_the_interface_describes_what_is_answered(client: TestClient) -> None:
    document = client.get("/v1/openapi.json").json()
    put = document["paths"]["/v1/reports/{id}/cells/{index}"]["put"]
    assert {"200", "401", "404", "408", "409", "412", "413", "415", "422", "428", "503"} <= set(put["responses"])
    schema = put["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["label"]["anyOf"][0]["examples"] == list(CLASSES)
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])


def run_document(server: Server, folder: Path) -> None:
    """All lines of docs/reports.md with a call, as they stand, but for the address and the key."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/reports.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if "curl" in line]
    assert len(lines) == 11
    (folder / "cells").mkdir()
    for number, label in enumerate(("Neutrophil", "Lymphocyte", "Monocyte"), 1):
        (folder / f"cells/{number}.png").write_bytes(of_class(label))
    script = "\n".join(["set -e -o pipefail", *(line.replace("curl ", "curl --fail-with-body --silent ", 1) for line in lines)])
    environment = clean_environment(URL=server.url, KEY="the-key")
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"status":"final"' in done.stdout
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF-")
    kinds = [json.loads((folder / f"{name}.json").read_text())["type"] for name in ("bundle", "transaction")]
    assert kinds == ["collection", "transaction"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_wbc_serve_keeps_delivers_and_survives(
    model_dir: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """In a workspace with a receiver: post and sign, kill it without warning; what was answered is there when it is back."""
    listener, port = Listener(tmp_path), free_port()
    settings = {"hl7": {"host": "127.0.0.1", "port": listener.port, "timeout_seconds": 2}, "minimum_cells": 10}
    (tmp_path / "site.yaml").write_text(json.dumps(settings | {"review_before_signature": "nothing"}))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "data").mkdir()
    shutil.copytree(model_dir, tmp_path / "models/champion")
    environment = clean_environment(WBC_SITE_FILE=str(tmp_path / "site.yaml"), PYTHONPATH=str(ROOT), WBC_API_KEYS="the-key")
    key = {"X-API-Key": "the-key"}
    if kind == "postgresql":
        environment["WBC_STORE_URL"] = new_database(request.getfixturevalue("postgres"))
    wbc = [sys.executable, "-m", "flows.cli"]
    serve = [*wbc, "serve", "--port", str(port)]
    with (
        started(serve, port, tmp_path, environment, tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=30, headers=key) as http,
    ):
        report = posted(http)["report_id"]
        assert sign(http, report, '"1"').status_code == 200
        assert _gauge(http, "wbc_outbox_pending") == 1
        log = server.log.read_text()
        _kill(server)
    assert (tmp_path / "data/service.db").is_file() == (kind == "sqlite")
    listener.start()
    try:
        with (
            started(serve, port, tmp_path, environment, tmp_path) as server,
            httpx.Client(base_url=server.url, timeout=30, headers=key) as http,
        ):
            eventually(lambda: _gauge(http, "wbc_outbox_pending") == 0)
            kept = http.get(f"/v1/reports/{report}").json()
            assert (kept["status"], [one["state"] for one in kept["messages"]]) == ("final", ["delivered"])
            assert [one["control_id"] for one in kept["messages"]] == listener.control_ids()
            assert listener.specimens() == [SPECIMEN]
            run_document(server, tmp_path)
            eventually(lambda: listener.specimens() == [SPECIMEN, "26-04711"])
            eventually(lambda: _gauge(http, "wbc_outbox_pending") == 0)
        assert server.process.returncode == 0, "SIGTERM ends it"
    finally:
        listener.kill()
    for words in (SPECIMEN, "Dr. Ada", environment.get("WBC_STORE_URL", "no password").partition("@")[0]):
        assert words not in log + server.log.read_text()
    command = [*wbc, "outbox", "--again", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"sent_again": 0, "pending": 0, "failed": 0, "oldest_seconds": 0.0, "refused": []}


def _gauge(http: httpx.Client, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", http.get("/metrics").text, re.MULTILINE)
    assert found, f"{name} is not among the metrics"
    return float(found[1])


def _kill(server: Server) -> None:
    """Without warning, the whole family."""
    for process in reversed(server.processes()):
        os.kill(process, signal.SIGKILL)
    server.process.wait()
