"""Clients that take up the service: half-sent headers, too many connections, heavy answers; and a store that cannot be used."""

import contextlib
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from databases import new_database
from live import ROOT, Server, clean_environment, form, free_port, of_class, serve_command, started
from sqlalchemy import make_url, select
from sqlalchemy.exc import OperationalError
from test_deeds import small_disk
from test_reports import assert_problem, posted

from serving.reports import store as store_module
from serving.reports.store import Store, reason_of, sqlite_url
from serving.reports.tables import Report

HALF = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "


@pytest.fixture(scope="module")
def kept(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("kept"), free_port()
    environment = clean_environment(WBC_STORE_URL=sqlite_url(folder / "service.db"), WBC_HEADER_SECONDS="4")
    with started(serve_command(model_dir, port), port, folder, environment, ROOT) as server:
        yield server


@contextlib.contextmanager
def connections(server: Server, count: int, sent: bytes = HALF) -> Iterator[list[socket.socket]]:
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(stack.enter_context(socket.create_connection(address, 10)))
            with contextlib.suppress(OSError):
                made[-1].sendall(sent)
        yield made


def is_closed(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(10) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_half_sent_headers_are_closed_and_keep_nobody_out(kept: Server) -> None:
    with connections(kept, 300) as open_ones:
        start = time.monotonic()
        assert httpx.get(f"{kept.url}/livez", timeout=5).status_code == 200
        time.sleep(max(0.0, start + 6 - time.monotonic()))
        assert all(map(is_closed, open_ones))


def test_of_one_address_there_are_so_many_and_the_next_is_still_answered(kept: Server) -> None:
    with connections(kept, 700) as open_ones:
        assert httpx.get(f"{kept.url}/livez", timeout=5).status_code == 200
        assert sum(map(is_closed, open_ones)) >= 700 - 256


def test_a_header_that_drips_is_closed_and_a_slow_but_whole_one_is_answered(kept: Server) -> None:
    with connections(kept, 2) as (drips, slow):
        for _ in range(12):
            with contextlib.suppress(OSError):
                drips.sendall(b"x")
            time.sleep(0.5)
        assert is_closed(drips)
        assert is_closed(slow)
    with connections(kept, 1) as [whole]:
        time.sleep(1.5)
        whole.sendall(b"x\r\n\r\n")
        assert whole.recv(100).startswith(b"HTTP/1.1 200")
        whole.sendall(HALF)  # the same again on the same connection
        time.sleep(6)
        whole.settimeout(1)
        while whole.recv(1000):
            pass


def test_a_body_may_take_longer_than_a_header(kept: Server) -> None:
    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        time.sleep(6)
        yield of_class("Monocyte") + b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert httpx.post(f"{kept.url}/v1/classify", content=body(), headers=headers, timeout=30).status_code == 200


def test_many_readers_of_pdfs_do_not_starve_the_rest(kept: Server) -> None:
    with httpx.Client(base_url=kept.url, timeout=30) as client:
        report = posted(client)["report_id"]
    ended = threading.Event()

    def read() -> None:
        with httpx.Client(base_url=kept.url, timeout=120) as client:
            while not ended.is_set():
                with contextlib.suppress(httpx.TransportError):
                    client.get(f"/v1/reports/{report}/report.pdf")

    readers = [threading.Thread(target=read) for _ in range(20)]
    for reader in readers:
        reader.start()
    try:
        time.sleep(2)
        seconds = []
        for _ in range(10):
            start = time.monotonic()
            assert httpx.get(f"{kept.url}/livez", timeout=10).status_code == 200
            seconds.append(time.monotonic() - start)
        assert sorted(seconds)[5] < 1.0, seconds
    finally:
        ended.set()
        for reader in readers:
            reader.join()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "READ_SECONDS", 1)


def ends_soon(store: Store) -> str:
    """The reason with which a read ends."""
    start = time.monotonic()
    with pytest.raises(OperationalError) as caught, store.reading() as session:
        session.scalars(select(Report)).all()
    assert 0.5 < time.monotonic() - start < 10
    return reason_of(caught.value)


def test_a_file_that_somebody_has_for_himself_holds_up_no_reader_for_ever(tmp_path: Path, quick: None) -> None:
    url = sqlite_url(tmp_path / "service.db")
    Store.open(url).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "service.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("DELETE FROM removals")
        assert ends_soon(Store(store_module._engine(make_url(url)))) == "database is locked"


def test_a_table_that_somebody_locks_holds_up_no_reader_for_ever(postgres: str, quick: None) -> None:
    url = new_database(postgres)
    store = Store.open(url)
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE reports IN ACCESS EXCLUSIVE MODE")
        assert ends_soon(store) == "canceling statement due to statement timeout"
        other.rollback()
    with store.reading() as session:
        assert session.scalars(select(Report)).all() == []
    store.close()


def test_a_full_store_says_why_and_nothing_was_done(model_dir: Path, tmp_path: Path) -> None:
    port = free_port()
    with small_disk(tmp_path / "small", "1m") as disk:
        environment = clean_environment(WBC_STORE_URL=sqlite_url(disk / "service.db"))
        with (
            started(serve_command(model_dir, port), port, tmp_path, environment, ROOT) as server,
            httpx.Client(base_url=server.url, timeout=60) as client,
        ):
            report = posted(client)["report_id"]
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            answers = []
            while len(answers) < 20 and (not answers or answers[-1].status_code == 200):
                answers.append(client.post("/v1/differential", files=form(*[of_class("Monocyte")] * 60)))
            assert_problem(answers[-1], 503, "store-unavailable")
            assert client.get(f"/v1/reports/{report}").status_code == 200
            done = sum(answer.status_code == 200 for answer in answers)
            filler.unlink()
            assert client.post("/v1/differential", files=form(of_class("Monocyte"))).status_code == 200
            assert len(client.get("/v1/reports?status=all").json()["reports"]) == 2 + done
    assert (
        "the store: database or disk is full" in server.log.read_text() or "the store: disk I/O error" in server.log.read_text()
    )
