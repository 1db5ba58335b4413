"""The published faults of BentoML and of what reads our bodies, as far as they could touch this interface: each is tried here.

The pinned versions have the fixes; these tests hold also for whatever is pinned next. What needs a Bento, a bentofile.yaml or
a base image of somebody else's (CVE-2026-24123, -27905, -33744, -44345) does not apply: we build our own only.
"""

import os
import pickle
import re
import socket
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from live import Server, form, of_class
from packaging.version import Version
from test_api import assert_problem

FIXED = {
    "bentoml": "1.4.39",  # CVE-2024-2912, -2024-9056, -2025-27520, -2025-32375, -2025-54381, -2026-24123, -27905, -33744, -44345
    "python-multipart": "0.0.26",  # CVE-2024-24762, CVE-2024-53981, CVE-2026-24486, CVE-2026-40347
    "starlette": "0.49.1",  # CVE-2024-47874, CVE-2025-54121, CVE-2025-62727
    "h11": "0.16",  # CVE-2025-43859
    "pillow": "13.0.0",  # its release notes: JPEG and TIFF decoders that wrote and read beyond their buffers
}


@pytest.mark.parametrize("package", FIXED)
def test_what_is_installed_has_the_fixes(package: str) -> None:
    assert Version(version(package)) >= Version(FIXED[package])


class Touch:
    """Pickled, it makes a file when it is read back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o700)


PICKLE_HEADERS = [
    {"Content-Type": "application/vnd.bentoml+pickle"},  # CVE-2024-2912
    {"Content-Type": "application/vnd.bentoml.pickled"},
    {"Content-Type": "application/octet-stream"},
    {"Content-Type": "multipart/form-data; boundary=x"},
    # CVE-2025-27520 and CVE-2025-32375: a runner's request
    {
        "Content-Type": "application/vnd.bentoml.pickled",
        "Payload-Container": "NdarrayContainer",
        "Payload-Meta": '{"format": "default"}',
        "Batch-Size": "-1",
        "args-number": "1",
    },
]


@pytest.mark.parametrize(
    "path", ["/v1/classify", "/v1/model", "/", "/classify", "/predict", "/schema.json", "/livez", "/tasks/submit"]
)
def test_nothing_unpickles(server: Server, tmp_path: Path, path: str) -> None:
    canary = tmp_path / "canary"
    payload = pickle.dumps(Touch(canary))
    for headers in PICKLE_HEADERS:
        answer = httpx.post(f"{server.url}{path}", content=payload, headers=headers)
        assert answer.status_code in (404, 405, 415, 422), (path, headers)
    httpx.post(f"{server.url}{path}", files=form(payload))
    assert not canary.exists()
    pickle.loads(payload)  # noqa: S301 - our own: the canary does sing where somebody unpickles it
    assert canary.exists()


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """An address of this machine, and who has asked it."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        stop = threading.Event()

        def listen() -> None:
            while not stop.is_set():
                try:
                    connection, address = server.accept()
                except TimeoutError:
                    continue
                asked.append(str(address))
                connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/latest/meta-data", asked
        time.sleep(0.3)
        stop.set()
        thread.join()


def test_no_address_is_ever_followed(client: httpx.Client, listener: tuple[str, list[str]]) -> None:
    """CVE-2025-54381: BentoML fetched what stood where a file belongs."""
    address, asked = listener
    answers = [
        client.post("/v1/classify", data={"images": address}),
        client.post("/v1/classify", files={"images": (None, address)}),
        client.post("/v1/classify", files={"images": (address, address.encode(), "text/uri-list")}),
        client.post("/v1/classify", json={"images": [address]}),
        client.post("/v1/classify", params={"images": address}),
        client.post("/v1/classify", content=address, headers={"Content-Type": "text/plain"}),
        client.post("/v1/classify", files=form(of_class("Basophil")), headers={"Referer": address, "X-Forwarded-Host": address}),
    ]
    for answer in answers[:-1]:
        assert_problem(answer, answer.status_code)
        assert answer.status_code in (415, 422)
    time.sleep(0.5)
    assert not asked


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/..%2f..%2f..%2fetc/passwd",
        "/static_content/../../../../etc/passwd",
        "/assets/..%2f..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/..%5c..%5cetc%5cpasswd",
        "//etc/passwd",
        "/v1/model/%00",
    ],
)
def test_no_path_leads_to_a_file(server: Server, path: str) -> None:
    """Sent as it is, since clients tidy such paths up."""
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert b" 404 " in answer.splitlines()[0]
    assert b"root:" not in answer


@pytest.mark.parametrize("name", ["../../../tmp/owned", "/etc/cron.d/owned", "..\\..\\owned", "\0", "%2e%2e%2fowned"])
def test_a_file_name_is_never_used(client: httpx.Client, name: str) -> None:
    answer = client.post("/v1/classify", files=[("images", (name, of_class("Basophil"), "image/png"))])
    assert answer.status_code == 200
    assert "owned" not in answer.text


def test_nothing_of_a_request_is_written_into_the_log_as_it_came(server: Server) -> None:
    """A path may be a specimen's id by mistake, and a line of the log by intent."""
    forged = "%0a2026-11-23T00:00:00+0000%20[INFO]%20POST%20/v1/classify%20200%20forged"
    for path in (f"/v1/{forged}", "/v1/classify/Doe-4711", "/v1/classify?specimen_id=Doe-4711"):
        httpx.get(f"{server.url}{path}", headers={"User-Agent": "Doe-4711", "Content-Type": "Doe-4711", "X-API-Key": "Doe-4711"})
    answer = httpx.post(f"{server.url}/v1/classify", content=b"x", headers={"Content-Type": b"image/\xff"})
    assert_problem(answer, 415)
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 10) as connection:
        connection.sendall(b"DOE4711 /v1/model HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert b" 405 " in connection.makefile("rb").readline()
    log = server.log.read_text()
    assert "forged" not in log
    assert "doe" not in log.lower()
    assert "GET other 404" in log
    assert re.search(r"POST /v1/classify 415 \d+ ms, caller local\b", log)
    assert "Traceback" not in log


SOON = 8  # seconds, on a busy machine; what is tried took minutes where it worked


def test_a_body_of_dashes_or_line_ends_is_read_in_no_time(client: httpx.Client) -> None:
    """CVE-2024-9056, CVE-2024-53981, CVE-2026-40347: parsers that went byte by byte through what is around the parts."""
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    part = head + of_class("Basophil") + b"\r\n"
    begun = time.monotonic()
    for body in (
        part + b"--x--" + b"-" * 5_000_000,
        part + b"--x--\r\n" + b"\r\n" * 2_000_000,
        b"\r\n" * 2_000_000 + part + b"--x--",
    ):
        assert client.post("/v1/classify", content=body, headers=headers).status_code in (200, 422)
    assert client.post("/v1/classify", content=(head + b"\r\n") * 20_000, headers=headers).status_code == 413
    assert time.monotonic() - begun < SOON
    assert client.post("/v1/classify", content=part + b"--x--\r\n", headers=headers).status_code == 200


def test_a_content_type_cannot_keep_the_parser_busy(client: httpx.Client) -> None:
    """CVE-2024-24762: a regular expression over the options of the header."""
    begun = time.monotonic()
    for options in ('!="' + "\\" * 7000, '=x; !="' + "\\" * 7000, ";" * 7000, "; a=b" * 1500):
        answer = client.post("/v1/classify", content=b"x", headers={"Content-Type": f"multipart/form-data; {options}"})
        assert answer.status_code in (400, 415, 422, 431)
    disposition = f'form-data; name="images"; filename="{"x" * 100}"; !="' + "\\" * 3000
    body = f"--x\r\nContent-Disposition: {disposition}\r\n\r\nx\r\n--x--\r\n".encode()
    answer = client.post("/v1/classify", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 422
    assert time.monotonic() - begun < SOON


@pytest.mark.parametrize(
    "request_bytes",
    [
        # CVE-2025-43859: what ended a chunk was not looked at
        b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nAAAAAXX0\r\n\r\n",
        b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4\r\nContent-Length: 40\r\n\r\nAAAA",
        b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: +4\r\n\r\nAAAA",
        b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_no_second_request_hides_in_a_first(server: Server, request_bytes: bytes) -> None:
    """Whatever the framing, at most one answer comes before the connection is closed, and it is no success."""
    hidden = b"GET /v1/model HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 10) as connection:
        connection.settimeout(10)
        connection.sendall(request_bytes + hidden)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except (TimeoutError, ConnectionResetError):
            pass
    assert b"HTTP/1.1 200" not in answer
