"""More work than the service can do: the surplus is told so at once, what was accepted is answered in its time."""

import http.client
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import ROOT, Server, clean_environment, encode, form, free_port, serve_command, started
from PIL import Image
from test_api import assert_problem

from serving.http.limits import InFlight, Limits
from wbc_model.core.errors import WbcError

IMAGES = 16
WAITING = 256
SLOW = 60  # images of a request that SIGTERM is to find at work


def plain(side: int) -> bytes:
    """A PNG that is small to send and takes its time to decode."""
    return encode(Image.new("RGB", (side, side), (0, 0, 255)))


@dataclass
class Load:
    """What closed-loop clients saw; seconds of each answer by its status."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    wall: float = 0.0

    def rate(self) -> float:
        """Accepted images a second."""
        return len(self.seconds.get(200, [])) * IMAGES / self.wall

    def p99(self, status: int = 200) -> float:
        return statistics.quantiles(self.seconds[status], n=100)[98]


def send(url: str, clients: int, seconds: float, body: bytes, content_type: str) -> Load:
    """Closed-loop clients that send a prepared body again and again, and wait as long as they are told to when refused."""
    load, lock, end = Load(), threading.Lock(), time.monotonic() + seconds
    port = int(url.rsplit(":", 1)[1])

    def client() -> None:
        while time.monotonic() < end:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            begun = time.monotonic()
            connection.request("POST", "/v1/classify", body, {"Content-Type": content_type})
            answer = connection.getresponse()
            answer.read()
            took = time.monotonic() - begun
            connection.close()
            with lock:
                load.seconds.setdefault(answer.status, []).append(took)
            if answer.status == 503:
                time.sleep(min(0.2, float(answer.headers["Retry-After"])))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.wall = time.monotonic() - begun
    return load


def prepared(files: list[bytes]) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://x", files=form(*files))
    return request.read(), request.headers["content-type"]


@pytest.fixture(scope="module")
def small(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that lets 256 images wait: 16 requests of 16."""
    port, environment = free_port(), clean_environment(WBC_MAX_WAITING_IMAGES=str(WAITING), WBC_THREADS="2")
    with started(serve_command(model_dir, port), port, tmp_path_factory.mktemp("small"), environment, ROOT) as server:
        yield server


@pytest.mark.slow
def test_three_times_the_capacity_sheds_the_surplus_at_once_and_keeps_the_rest(small: Server) -> None:
    """16 clients are the capacity: as many images as may wait. 48 are three times as many."""
    body, content_type = prepared([plain(400)] * IMAGES)
    send(small.url, 4, 0.5, body, content_type)
    at_capacity = send(small.url, WAITING // IMAGES, 2, body, content_type)
    overloaded = send(small.url, 3 * WAITING // IMAGES, 2, body, content_type)
    print(
        at_capacity.rate(),
        at_capacity.p99(),
        overloaded.rate(),
        overloaded.p99(),
        {k: (len(v), statistics.median(v)) for k, v in overloaded.seconds.items()},
    )
    assert set(at_capacity.seconds) == {200}, "nobody is refused who fits"
    assert set(overloaded.seconds) == {200, 503}
    assert overloaded.rate() > 0.4 * at_capacity.rate(), "refusing must not cost the work"
    assert overloaded.p99() < 2.2 * at_capacity.p99() + 0.5, "it would be three times with a queue that takes everything"
    assert statistics.median(overloaded.seconds[503]) < 0.6 * statistics.median(overloaded.seconds[200])
    with httpx.Client(base_url=small.url, timeout=30) as client:
        assert client.post("/v1/classify", content=body, headers={"content-type": content_type}).status_code == 200


@pytest.mark.slow
def test_a_full_service_refuses_before_the_body_is_sent(small: Server) -> None:
    body, content_type = prepared([plain(700)] * WAITING)
    port = int(small.url.rsplit(":", 1)[1])
    answers: list[int] = []

    def big() -> None:
        answers.append(httpx.post(f"{small.url}/v1/classify", content=body, headers=headers, timeout=60).status_code)

    headers = {"content-type": content_type}
    sender = threading.Thread(target=big)
    sender.start()
    refusals = 0
    while sender.is_alive():
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            head = "POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n"
            begun = time.monotonic()
            connection.sendall(f"{head}Content-Type: {content_type}\r\n\r\n".encode())
            line = connection.makefile("rb").readline()
        if b" 503 " in line:
            refusals += 1
            assert time.monotonic() - begun < 3.0  # at once; the work that fills it takes longer, on two busy cores as well
        else:
            assert b" 100 " in line  # there was room yet, or again
        time.sleep(0.02)
    assert answers == [200]
    assert refusals


def test_the_refusal_is_a_problem_with_retry_after_and_what_was_counted_is_given_back(small: Server) -> None:
    half, content_type = prepared([plain(500)] * (WAITING * 5 // 8))
    headers = {"content-type": content_type}
    answers: list[httpx.Response] = []
    senders = [
        threading.Thread(
            target=lambda: answers.append(httpx.post(f"{small.url}/v1/classify", content=half, headers=headers, timeout=60))
        )
        for _ in range(3)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert sorted(answer.status_code for answer in answers)[0] == 200
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert assert_problem(answer, 503)["type"] == "urn:wbc:problem:busy"
        assert int(answer.headers["retry-after"]) >= 1
    full, content_type = prepared([plain(40)] * WAITING)
    assert (
        httpx.post(f"{small.url}/v1/classify", content=full, headers={"content-type": content_type}, timeout=60).status_code
        == 200
    )


def test_the_count_by_hand() -> None:
    flight = InFlight(100, 3)
    assert flight.take(60, 2)
    assert not flight.take(41)
    assert not flight.take(0, 2)
    assert (flight.held, flight.images, flight.full) == (60, 2, False)
    assert flight.take(40, 1)
    assert flight.full
    flight.give(60, 2)
    assert (flight.held, flight.images, flight.full) == (40, 1, False)


def test_what_costs_more_waits_as_more() -> None:
    flight = InFlight(100, 10)
    with flight.also(7) as room:
        assert room
        assert flight.images == 7
        with flight.also(4) as more:
            assert not more
        assert flight.images == 7
    assert flight.images == 0


def test_one_request_of_the_greatest_size_always_fits() -> None:
    with pytest.raises(WbcError, match="WBC_MAX_WAITING_IMAGES"):
        Limits.from_environment({"WBC_MAX_WAITING_IMAGES": "255"})
    assert Limits.from_environment({"WBC_MAX_WAITING_IMAGES": "256"}).waiting_images == 256


@pytest.mark.slow
def test_sigterm_answers_what_was_accepted(model_dir: Path, tmp_path: Path) -> None:
    port, audit = free_port(), tmp_path / "audit.jsonl"
    body, content_type = prepared([plain(800)] * SLOW)  # a second of work and more, whatever the machine
    answers: list[httpx.Response] = []

    def post() -> None:
        url, headers = f"http://127.0.0.1:{port}/v1/classify", {"content-type": content_type}
        answers.append(httpx.post(url, content=body, headers=headers, timeout=60))

    with started(serve_command(model_dir, port), port, tmp_path, clean_environment(WBC_AUDIT_LOG=str(audit)), ROOT) as server:
        senders = [threading.Thread(target=post) for _ in range(3)]
        for sender in senders:
            sender.start()
        time.sleep(0.4)
        assert not answers, "the test must hit requests in progress"
        server.process.send_signal(signal.SIGTERM)
        for sender in senders:
            sender.join()
        assert server.process.wait(30) == 0
    assert [answer.status_code for answer in answers] == [200] * 3
    assert all(len(answer.json()["results"]) == SLOW for answer in answers)
    assert len(audit.read_text().splitlines()) == 3
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.url}/livez")


def _resident(server: Server) -> int:
    return sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 for process in server.processes())


def _files(server: Server) -> int:
    return sum(len(list(Path(f"/proc/{process}/fd").iterdir())) for process in server.processes())


@pytest.mark.slow
def test_nothing_leaks_in_a_long_overload(model_dir: Path, tmp_path: Path) -> None:
    """Minutes of three times the capacity, bad files among the good: memory, threads and open files stay where they were."""
    port, minutes = free_port(), int(os.environ.get("WBC_TEST_SOAK_MINUTES", "5"))
    mixed: list[Any] = [plain(800)] * (IMAGES - 2) + [b"not an image", plain(800)[:-500]]
    body, content_type = prepared(mixed)
    environment = clean_environment(WBC_MAX_WAITING_IMAGES=str(WAITING), WBC_AUDIT_LOG=str(tmp_path / "audit.jsonl"))
    with started(serve_command(model_dir, port), port, tmp_path, environment, ROOT) as server:
        send(server.url, 48, 30, body, content_type)
        resident, files = _resident(server), _files(server)
        rates = []
        for minute in range(minutes):
            load = send(server.url, 48, 60, body, content_type)
            assert set(load.seconds) == {200, 503}
            rates.append(load.rate())
            print(f"minute {minute + 1}: {rates[-1]:.0f} answers/s, {_resident(server) / 2**20:.0f} MiB, {_files(server)} files")
        assert _resident(server) < resident + 60 * 2**20
        assert _files(server) <= files + 5
        assert min(rates) > 0.5 * max(rates)
