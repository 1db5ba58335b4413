"""OpenTelemetry: spans and metrics of a call at a receiver, nothing in them of a patient or a key; and none unasked."""

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from live import ROOT, clean_environment, form, free_port, of_class, started
from otlp_receiver import Receiver, attributes, receiving
from specimens import site
from test_reports import classifier, client_of  # noqa: F401 - one is a fixture

from serving.http.limits import Limits
from serving.http.running import Running
from serving.inference.classify import Classifier
from serving.reports.store import sqlite_url
from serving.security.keys import ApiKeys, add_key
from serving.upkeep.telemetry import METRICS, TRACES, Telemetry, wanted
from wbc_model.core.errors import WbcError

PATIENT = "26-04711-SMITH"
FILE = "SMITH-JOHN-1950.png"
REPEAT = "repeat-26-04711"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as made:
        monkeypatch.setenv(ENDPOINT, made.url)
        monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)  # importing the service has set it
        yield made


def calls(client: TestClient | httpx.Client, key: str) -> None:
    """What a hospital's system does, with something of a patient wherever there is room for it."""
    files = [("images", (FILE, of_class("Neutrophil"), "image/png")) for _ in range(3)]
    headers = {"X-API-Key": key, "traceparent": CALLER}
    assert client.post("/v1/classify", files=files, headers=headers).status_code == 200
    body = {"specimen_id": PATIENT, "wbc_count": "6.5"}
    again = {**headers, "Idempotency-Key": REPEAT}
    answer = client.post("/v1/differential", files=files, data=body, headers=again)
    assert answer.status_code == 200, answer.text
    report = answer.json()["report_id"]
    assert client.get(f"/v1/reports?specimen_id={PATIENT}", headers=headers).status_code == 200
    assert client.get(f"/v1/reports/{report}", headers=headers).status_code == 200
    assert client.get(f"/{PATIENT}?name={PATIENT}", headers=headers).status_code == 404
    assert client.request("SMITH", "/", headers=headers).status_code == 405


def check(receiver: Receiver, key: str) -> None:
    """Each call is a span of the caller's trace, with its steps and its statements below it; nothing tells of a patient."""
    spans = receiver.spans()
    names = {span["spanId"]: span["name"] for span in spans}
    above = {(names.get(span.get("parentSpanId", "")), span["name"]) for span in spans}
    assert ("POST /v1/classify", "read images") in above
    assert {("POST /v1/differential", "read images"), ("POST /v1/differential", "INSERT")} <= above
    assert {("GET /v1/reports", "SELECT"), ("GET /v1/reports/{id}", "SELECT"), (None, "_OTHER /")} <= above
    calls = [span for span in spans if span.get("kind") == "SPAN_KIND_SERVER"]
    assert len(calls) == 6
    assert len({span["traceId"] for span in spans}) == 1
    assert {attributes(span)["http.response.status_code"] for span in calls} == {"200", "404", "405"}
    statements = [attributes(span)["db.statement"] for span in spans if "db.statement" in attributes(span)]
    assert any("INSERT INTO reports" in statement for statement in statements)
    told = b"".join(body for _, body in receiver.bodies)
    for secret in (PATIENT, FILE, "SMITH", REPEAT, key, "service.db", "ward"):
        assert secret.encode() not in told, secret
    metrics = {metric["name"]: metric for metric in receiver.metrics()}
    assert {"http.server.request.duration", "wbc.images", "wbc.images.in_flight"} <= set(metrics)
    assert sum(int(point["asInt"]) for point in metrics["wbc.images"]["sum"]["dataPoints"]) == 6


def test_a_call_is_a_span_with_its_statements_below_it_and_tells_of_no_patient(
    classifier: Classifier,  # noqa: F811
    tmp_path: Path,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = add_key(tmp_path / "keys", "ward", ["classify", "review"])
    monkeypatch.setenv("WBC_API_KEYS_FILE", str(tmp_path / "keys"))
    for client in client_of(classifier, tmp_path, site(), ApiKeys.from_environment()):
        running: Running = client.app.state.running  # type: ignore[attr-defined]
        in_flight = running.in_flight
        telemetry = Telemetry.from_environment(lambda: in_flight.images)  # noqa: B023 - one client only
        assert telemetry is not None
        assert running.kept is not None
        telemetry.look_at(running.kept.store)
        monkeypatch.setattr(running.metrics, "telemetry", telemetry)
        calls(client, key)
        telemetry.close()
    check(receiver, key)
    assert receiver.services() == {"wbc"}


@pytest.mark.parametrize(
    ("environment", "sent"),
    [
        ({}, (False, False)),
        ({ENDPOINT: " "}, (False, False)),
        ({ENDPOINT: "http://localhost:4318"}, (True, True)),
        ({ENDPOINT: "http://localhost:4318", "OTEL_SDK_DISABLED": "True"}, (False, False)),
        ({ENDPOINT: "http://localhost:4318", "OTEL_METRICS_EXPORTER": "none"}, (True, False)),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://localhost:4318/v1/metrics"}, (False, True)),
        ({ENDPOINT: "http://localhost:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, (True, True)),
    ],
)
def test_the_variables_are_opentelemetrys(environment: dict[str, str], sent: tuple[bool, bool]) -> None:
    assert (wanted(TRACES, environment), wanted(METRICS, environment)) == sent


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: OTLP is sent by http/protobuf here"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER=zipkin: give otlp or none"),
    ],
)
def test_what_is_not_here_is_said(name: str, value: str, says: str) -> None:
    with pytest.raises(WbcError, match=says):
        wanted(TRACES, {ENDPOINT: "http://localhost:4318", name: value})


def test_the_images_in_flight_are_a_metric_that_a_cluster_scales_by(
    classifier: Classifier,  # noqa: F811
    tmp_path: Path,
) -> None:
    for client in client_of(classifier, tmp_path, site()):
        running: Running = client.app.state.running  # type: ignore[attr-defined]
        with running.in_flight.also(7):
            assert "\nwbc_images_in_flight 7.0\n" in client.get("/metrics").text
        assert "\nwbc_images_in_flight 0.0\n" in client.get("/metrics").text
        assert running.in_flight.image_limit == Limits().waiting_images


@pytest.mark.slow
def test_a_real_server_sends_nothing_but_this_and_nothing_unasked(model_dir: Path, tmp_path: Path) -> None:
    """`bentoml serve`, which has spans of its own with paths and queries; with the variables, and without."""
    key = add_key(tmp_path / "keys", "ward", ["classify", "review"])
    more = {"WBC_API_KEYS_FILE": str(tmp_path / "keys"), "WBC_MODEL_DIR": str(model_dir), "PYTHONPATH": str(ROOT)}
    with receiving() as receiver:
        for name, asked in (("off", {}), ("on", {"OTEL_SERVICE_NAME": "cells-3", ENDPOINT: receiver.url})):
            port = free_port()
            environment = clean_environment(**more, **asked, WBC_STORE_URL=sqlite_url(tmp_path / f"{name}.db"))
            environment |= {"BENTOML_HOME": str(tmp_path / name)}
            command = [sys.executable, "-m", "bentoml", "serve", "serving.service:WbcService", "--port", str(port)]
            with started(command, port, tmp_path, environment, ROOT) as server, httpx.Client(base_url=server.url) as client:
                if name == "off":
                    client.post("/v1/classify", files=form(of_class("Neutrophil")), headers={"X-API-Key": key})
                else:
                    calls(client, key)
            if name == "off":
                assert receiver.bodies == []
        check(receiver, key)
        assert receiver.services() == {"cells-3"}
