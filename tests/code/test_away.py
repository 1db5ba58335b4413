"""Servers that are away for a while: who waits for them, and what is said."""

import http.server
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import requests

from flows import away
from flows.retraining import prefect_api
from wbc_model.core.errors import WbcError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A Prefect server by its `/ready`: it answers by the codes in the list, and then by 200."""
    codes: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/api/ready"
            self.send_response(codes.pop(0) if codes else 200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None: ...

    made = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{made.server_port}/api")
    monkeypatch.setattr("flows.retraining.prefect_api.time.sleep", lambda _: None)
    yield codes
    made.shutdown()
    made.server_close()


def test_a_shared_prefect_server_that_is_away_is_waited_for(server: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    prefect_api.await_server(said.append)
    server.append(404)  # of another kind, which has no such address
    prefect_api.await_server(said.append)
    assert said == []
    server += [503, 500, 503]
    prefect_api.await_server(said.append)
    assert [line.partition(": ")[0] for line in said[:1]] == [
        f"the Prefect server at {os.environ['PREFECT_API_URL']} does not answer"
    ]
    assert said[1:] == ["the Prefect server answers again"]
    monkeypatch.setattr(prefect_api, "_PATIENCE", -1)
    server += [503, 503]
    with pytest.raises(WbcError, match="the same command continues"):
        prefect_api.await_server(said.append)
    server += [503]
    monkeypatch.setattr(prefect_api, "_OWN", {os.environ["PREFECT_API_URL"]})
    prefect_api.await_server(said.append)
    assert server == [503], "a private one was not asked"


def test_a_server_that_takes_calls_and_never_answers_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes connections for it
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        monkeypatch.setenv("PREFECT_API_URL", url)
        monkeypatch.setattr(prefect_api, "_ANSWER_SECONDS", 0.1)
        monkeypatch.setattr(prefect_api, "_PATIENCE", -1)
        with pytest.raises(WbcError, match=f"{url} has not answered .* the same command continues"):
            prefect_api.await_server(lambda line: None)


@pytest.mark.usefixtures("server")
def test_at_a_shared_server_the_slot_has_a_lock_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that whoever has it knows that nobody holds a slot that the server counts as taken."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said: list[str] = []
    waits = threading.Event()

    def second() -> None:
        with prefect_api._lock_of_slot(lambda line: (said.append(line), waits.set())) as alone:
            said.append(f"alone: {alone}")

    other = threading.Thread(target=second)
    with prefect_api._lock_of_slot(said.append) as alone:
        assert alone
        other.start()
        assert waits.wait(30)
        assert said == ["another training is at work on this machine: it is waited for"]
    other.join(30)
    assert said[1:] == ["alone: True"]
    monkeypatch.setattr(prefect_api, "_OWN", {os.environ["PREFECT_API_URL"]})
    with prefect_api._lock_of_slot(said.append) as alone:
        assert not alone, "a private server's slot is this process's anyway"


def test_what_prefects_clients_say_of_a_server_that_is_gone_is_one_line() -> None:
    line = "the server has stopped answering: ReadTimeout; finished work is kept, and the same command continues"
    unreached = RuntimeError("Failed to reach API")
    unreached.__context__ = httpx.ReadTimeout("")  # a client that is new says so
    for error in (httpx.ReadTimeout(""), unreached):
        with pytest.raises(WbcError, match=line), prefect_api._answering("the server"):
            raise error
    with pytest.raises(RuntimeError, match="ours"), prefect_api._answering("the server"):
        raise RuntimeError("ours")


def test_an_outage_is_told_once() -> None:
    told: list[int] = []
    log = logging.getLogger("urllib3.connectionpool")
    with away.told_when_retrying(lambda: told.append(1)):
        for _ in range(3):
            log.warning("Retrying")
    assert (told, log.handlers, log.propagate) == ([1], [], True)


def test_what_nobody_answers_is_known_by_where_it_came_from() -> None:
    def failed(first: Exception) -> Exception:
        try:
            try:
                raise first
            except type(first) as error:
                raise RuntimeError("API request failed") from error
        except RuntimeError as error:
            return error

    assert away.is_away(failed(requests.exceptions.ConnectionError("refused")))
    assert not away.is_away(failed(ValueError("no such run")))


def test_the_wait_for_an_answer_is_bounded_unless_the_user_has_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    away.bound_waiting()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    away.bound_waiting()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "60"


def test_one_try_leaves_the_users_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "4"):
        if before:
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", before)
        with away.one_try():
            assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
        assert os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES") == before
