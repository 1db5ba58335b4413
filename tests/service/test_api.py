"""The HTTP contract, on a real server."""

import hashlib
import http.client
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live import Server, encode, form, of_class
from tiny_model import COLOURS, expected_probabilities

from serving.contract.schemas import Classification
from wbc_model.core.classes import CLASSES
from wbc_model.core.model_card import read_card

PROBLEM = "application/problem+json"
MIXED = (180, 20, 200)  # between colours


def assert_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    document: dict[str, Any] = answer.json()
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    assert document["status"] == status
    assert document["type"] == "about:blank" or document["type"].startswith("urn:wbc:problem:")
    assert document["title"]
    assert document["detail"]
    return document


def test_an_answer_is_the_hand_computed_one(client: httpx.Client, model_dir: Path) -> None:
    data = encode(MIXED)
    answer = client.post("/v1/classify", files=form(data))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"model", "results"}
    assert body["model"] == {"name": "wbc", "version": "tiny-1"}
    [result] = body["results"]
    assert set(result) == {"status", "label", "probabilities", "prediction_set", "predicted_loss", "review", "sha256"}
    expected = expected_probabilities(np.array(MIXED))
    assert list(result["probabilities"]) == list(CLASSES)
    assert list(result["probabilities"].values()) == pytest.approx(expected, abs=0.02)
    assert result["status"] == "ok"
    assert result["label"] == CLASSES[int(expected.argmax())]
    threshold = read_card(model_dir).conformal_threshold
    assert set(result["prediction_set"]) == {name for name, p in zip(CLASSES, expected, strict=True) if p >= threshold}
    assert result["predicted_loss"] == pytest.approx(MIXED[0] / 255, abs=0.01)
    assert result["sha256"] == hashlib.sha256(data).hexdigest()


def test_results_come_in_the_order_posted(client: httpx.Client) -> None:
    rng = np.random.default_rng(1)
    labels = [CLASSES[index] for index in rng.integers(0, 5, 100)]
    files = [encode(COLOURS[label], "PNG" if number % 2 else "JPEG") for number, label in enumerate(labels)]
    results = client.post("/v1/classify", files=form(*files)).json()["results"]
    assert [result["label"] for result in results] == labels
    assert [result["sha256"] for result in results] == [hashlib.sha256(data).hexdigest() for data in files]


def test_review_is_required_exactly_when_the_set_has_not_one_class(client: httpx.Client) -> None:
    clear, tie = of_class("Basophil"), encode((128, 0, 0))  # halfway between red and black
    results = client.post("/v1/classify", files=form(clear, tie)).json()["results"]
    assert results[0]["prediction_set"] == ["Basophil"]
    assert results[0]["review"] == {"required": False, "reasons": []}
    assert set(results[1]["prediction_set"]) == {"Eosinophil", "Monocyte"}
    assert results[1]["prediction_set"][0] == results[1]["label"]
    assert results[1]["review"] == {"required": True, "reasons": ["ambiguous"]}


def test_a_bad_image_is_rejected_in_its_place(client: httpx.Client) -> None:
    answer = client.post("/v1/classify", files=form(of_class("Monocyte"), b"not an image", of_class("Lymphocyte")))
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["status"] for result in results] == ["ok", "rejected", "ok"]
    assert [results[0]["label"], results[2]["label"]] == ["Monocyte", "Lymphocyte"]
    assert set(results[1]) == {"status", "problem", "sha256"}
    assert {"type", "title", "detail"} <= set(results[1]["problem"])
    assert results[1]["sha256"] == hashlib.sha256(b"not an image").hexdigest()
    Classification.model_validate(answer.json())


def test_no_usable_image_is_422_and_says_why_for_each(client: httpx.Client) -> None:
    document = assert_problem(client.post("/v1/classify", files=form(b"a", b"")), 422)
    assert [result["status"] for result in document["results"]] == ["rejected", "rejected"]
    assert document["results"][0]["sha256"] == hashlib.sha256(b"a").hexdigest()


def test_256_images_are_taken_and_257_are_not(client: httpx.Client) -> None:
    data = of_class("Neutrophil")
    answer = client.post("/v1/classify", files=form(*[data] * 256))
    assert answer.status_code == 200
    assert [result["label"] for result in answer.json()["results"]] == ["Neutrophil"] * 256
    document = assert_problem(client.post("/v1/classify", files=form(*[data] * 257)), 413)
    assert document["limit"] == 256


def test_a_file_over_the_limit_is_413(client: httpx.Client) -> None:
    document = assert_problem(client.post("/v1/classify", files=form(of_class("Basophil"), bytes(33 * 2**20))), 413)
    assert "Image 2" in document["detail"]


def test_an_announced_body_over_the_limit_is_refused_before_it_is_sent(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 10) as connection:
        head = f"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {2**40}\r\nExpect: 100-continue\r\n"
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode())
        answer = connection.makefile("rb").readline()
    assert b" 413 " in answer


def test_an_endless_body_is_refused_while_it_arrives(server: Server) -> None:
    """Chunked, so that no length is announced; the memory of the server stays far under what was sent."""

    def endless() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        while True:
            yield b"\0" * 2**20

    before = sum(_resident(process) for process in server.processes())
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rsplit(":", 1)[1]), timeout=30)
    status = None
    try:
        connection.request(
            "POST", "/v1/classify", endless(), {"Content-Type": "multipart/form-data; boundary=x"}, encode_chunked=True
        )
    except (BrokenPipeError, ConnectionResetError):
        status = _status_left(connection)
    assert status in (413, None)  # the answer may be lost when the connection is reset on a client that never stops
    assert sum(_resident(process) for process in server.processes()) - before < 150 * 2**20
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def _status_left(connection: http.client.HTTPConnection) -> int | None:
    try:
        return int(connection.sock.recv(64).split()[1])
    except (OSError, IndexError):
        return None


def _resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


def test_a_body_over_the_limit_without_a_length_is_413(server: Server) -> None:
    """41 MiB in chunks: the limit of this server is 40, and the client still gets to read the answer."""
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n' + bytes(2**20) + b"\r\n"

    def body() -> Any:
        yield from [part] * 42
        yield b"--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert_problem(httpx.post(f"{server.url}/v1/classify", content=body(), headers=headers, timeout=30), 413)


def test_a_body_that_does_not_arrive_is_408(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 15) as connection:
        head = "POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x".encode())
        started = time.monotonic()
        answer = connection.makefile("rb").readline()
    assert b" 408 " in answer
    assert time.monotonic() - started > 2.5


def test_what_is_no_http_is_refused_with_a_problem_document(client: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), 10) as connection:
        connection.sendall(b"GET / no such version\r\n\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert_problem(httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read()), 400)
    assert_problem(client.post("/livez"), 404)
    assert client.head("/livez").status_code == 200


def test_an_address_in_the_field_is_refused_and_never_fetched(client: httpx.Client) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(1)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/cell.png"
        for answer in (
            client.post("/v1/classify", files={"images": (None, address)}),
            client.post("/v1/classify", data={"images": address}),
            client.post("/v1/classify", json={"images": [address]}),
            client.post("/v1/classify", files=form(address.encode())),  # as the content of a file: an image that is none
        ):
            assert_problem(answer, answer.status_code)
            assert answer.status_code in (415, 422)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize(
    ("request_arguments", "status", "mentions"),
    [
        ({"files": {"images": (None, "text")}}, 422, "holds text"),
        ({"files": [*form(of_class("Basophil")), ("wbc_count", (None, "7.1"))]}, 422, "wbc_count"),
        ({"files": form(of_class("Basophil"), field="image")}, 422, "'image'"),
        ({"files": {"images": ("", b"")}}, 422, "images"),
        ({"json": {}}, 415, "multipart"),
        ({"content": b"\x89PNG", "headers": {"content-type": "image/png"}}, 415, "multipart"),
        ({}, 415, "multipart"),
        ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, 422, "boundary"),
        ({"content": b"", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 422, ""),
        ({"content": b"--x--\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 422, ""),
        ({"content": b"rubbish", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 422, ""),
        (
            {"content": b"--x\r\n\r\nabc\r\n--x--", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            422,
            "field name",
        ),
        ({"content": b"", "headers": {"content-type": f"multipart/form-data; boundary={'x' * 5000}"}}, 422, "oundary"),
        (
            {
                "content": b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\nab',
                "headers": {"content-type": "multipart/form-data; boundary=x"},
            },
            422,
            "ends before",
        ),
        (
            {"content": b"", "headers": {"content-type": "multipart/form-data; boundary=x", "content-encoding": "gzip"}},
            415,
            "ompress",
        ),
    ],
)
def test_what_is_not_multipart_images_is_refused(
    client: httpx.Client, request_arguments: dict[str, Any], status: int, mentions: str
) -> None:
    document = assert_problem(client.post("/v1/classify", **request_arguments), status)
    assert mentions in document["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/classify", 405),
        ("DELETE", "/v1/model", 405),
        ("GET", "/v1/differential", 405),
        ("GET", "/nothing", 404),
        ("GET", "/page", 404),
        ("GET", "/v1/../etc/passwd", 404),
    ],
)
def test_unknown_paths_and_methods_are_problems(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert_problem(answer, status)
    assert status != 405 or answer.headers["allow"] in ("POST", "GET")


def test_the_model_card(client: httpx.Client, model_dir: Path) -> None:
    answer = client.get("/v1/model")
    assert answer.headers["content-type"] == "application/json"
    card = json.loads(read_card(model_dir).model_dump_json(exclude={"cells"}))
    assert answer.json() == card | {"doubt": card["out_of_distribution"]}
    fields = client.get("/v1/openapi.json").json()["components"]["schemas"]["ServedCard"]["properties"]
    assert [name for name, field in fields.items() if field.get("deprecated")] == ["doubt"]


def test_the_openapi_document_describes_the_answers(client: httpx.Client) -> None:
    document = client.get("/v1/openapi.json").json()
    calls = {path for path in document["paths"] if not path.startswith(("/v1/reports", "/v1/labelling"))}
    listed = {"/v1/classify", "/v1/differential", "/v1/model", "/v1/preview", "/v1/me", "/v1/people", "/v1/site", "/v1/worklist"}
    assert calls == listed | {"/v1/watch", "/v1/watch/{site}/pictures/{name}"}
    call = document["paths"]["/v1/classify"]["post"]
    images = call["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["images"]
    assert (images["type"], images["minItems"], images["maxItems"]) == ("array", 1, 256)
    assert {"200", "401", "403", "408", "413", "415", "422", "429", "503"} <= set(call["responses"])
    assert list(call["responses"]["413"]["content"]) == [PROBLEM]
    assert call["security"] == [{"APIKeyHeader": ["classify"]}]
    assert document["components"]["securitySchemes"]["APIKeyHeader"]["name"] == "X-API-Key"
    for reference in _references(document):
        found = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


def _references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [reference for item in node for reference in _references(item)]
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [reference for item in node.values() for reference in _references(item)]
    return []


def test_health(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200


def _metric(client: httpx.Client, start: str, *parts: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start) and all(part in line for part in parts))


def test_metrics_count_requests_and_images(client: httpx.Client) -> None:
    asked = ("bentoml_service_request_total{", 'endpoint="/v1/classify"', 'http_response_code="200"')
    requests, images = _metric(client, *asked), _metric(client, "wbc_images_total{", 'label="Basophil"', 'status="ok"')
    rejected = _metric(client, "wbc_images_total{", 'status="rejected"')
    assert client.post("/v1/classify", files=form(of_class("Basophil"), of_class("Basophil"), b"x")).status_code == 200
    assert _metric(client, *asked) == requests + 1
    assert _metric(client, "wbc_images_total{", 'label="Basophil"', 'status="ok"') == images + 2
    assert _metric(client, "wbc_images_total{", 'status="rejected"') == rejected + 1
    assert _metric(client, "bentoml_service_request_duration_seconds_count{", 'endpoint="/v1/classify"') > requests


def test_metrics_do_not_grow_with_the_paths_that_are_asked_for(client: httpx.Client) -> None:
    client.get("/made-up/first")
    before = len(client.get("/metrics").content)
    for number in range(20):
        client.get(f"/made-up/{number}")
    after = client.get("/metrics")
    assert b"made-up" not in after.content
    assert len(after.content) - before < 500


def test_health_answers_while_images_are_worked_on(server: Server) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), dtype=np.uint8)
    big = encode(noise, "JPEG", quality=60)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        answers: list[httpx.Response] = []
        sender = threading.Thread(target=lambda: answers.append(client.post("/v1/classify", files=form(*[big] * 24))))
        sender.start()
        longest = 0.0
        while sender.is_alive():
            started = time.monotonic()
            assert httpx.get(f"{server.url}/livez", timeout=10).status_code == 200
            longest = max(longest, time.monotonic() - started)
        sender.join()
    assert answers[0].status_code == 200
    assert longest < 1.0


def test_many_callers_at_once_get_their_own_answers(server: Server) -> None:
    failures: list[str] = []

    def caller(label: str) -> None:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            for count in (1, 5, 17):
                results = client.post("/v1/classify", files=form(*[of_class(label)] * count)).json()["results"]
                if [result["label"] for result in results] != [label] * count:
                    failures.append(label)

    threads = [threading.Thread(target=caller, args=(label,)) for label in CLASSES * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_answers_travel_compressed_where_the_caller_takes_that(client: httpx.Client) -> None:
    files = form(*(of_class("Monocyte") for _ in range(40)))
    packed = client.post("/v1/classify", files=files)
    plain = client.post("/v1/classify", files=files, headers={"Accept-Encoding": "identity"})
    assert (packed.headers["content-encoding"], plain.headers.get("content-encoding")) == ("gzip", None)
    assert int(packed.headers["content-length"]) * 3 < int(plain.headers["content-length"]) == len(packed.content)
    assert packed.content == plain.content
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert packed.headers["cache-control"] == "no-store"
    small = client.get("/v1/me")
    assert "content-encoding" not in small.headers
