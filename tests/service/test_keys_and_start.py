"""Who may call, where the server listens, and how it refuses to start."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from live import ROOT, clean_environment, fails_to_start, form, free_port, of_class, serve_command, started
from tiny_model import write_model

from serving import run
from serving.http.app import create_app
from serving.http.layer import Around
from serving.http.limits import Limits
from serving.http.running import Running
from serving.inference.classify import Classifier
from serving.security.keys import PAGE_KEY, ApiKeys, add_key
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import CARD, ONNX, WEIGHTS

KEY = "a-key-of-the-ward"


def in_process(model_dir: Path, keys: list[str], limits: Limits | None = None) -> Iterator[TestClient]:
    app = create_app()
    classifier = Classifier.open(model_dir)
    app.state.running = Running(classifier, ApiKeys(keys), limits or Limits())
    yield TestClient(Around(app), raise_server_exceptions=False)
    classifier.close()


@pytest.fixture
def guarded(model_dir: Path) -> Iterator[TestClient]:
    yield from in_process(model_dir, ["another", KEY])


@pytest.mark.parametrize("path", ["/v1/model", "/v1/openapi.json", "/v1/classify"])
@pytest.mark.parametrize("key", [None, "", "a-key", KEY + "x", KEY.upper(), "ä"])
def test_without_the_right_key_every_call_is_401(guarded: TestClient, path: str, key: str | None) -> None:
    headers = {} if key is None else {"X-API-Key": key.encode()}
    answer = guarded.post(path, files=form(b"x"), headers=headers) if "classify" in path else guarded.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert "www-authenticate" in answer.headers
    assert KEY not in answer.text


def test_with_a_key_every_call_works(guarded: TestClient) -> None:
    for key in (KEY, "another"):
        assert guarded.get("/v1/model", headers={"X-API-Key": key}).status_code == 200
        assert guarded.post("/v1/classify", files=form(of_class("Basophil")), headers={"x-api-key": key}).status_code == 200


def test_too_many_bytes_of_all_requests_together_are_503(model_dir: Path) -> None:
    for client in in_process(model_dir, [], Limits(in_flight_bytes=1000)):
        answer = client.post("/v1/classify", files=form(bytes(2000)))
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        for _ in range(12):  # what was counted is given back
            assert client.post("/v1/classify", files=form(of_class("Basophil"))).status_code == 200


def test_a_defect_is_500_and_says_nothing_of_the_inside(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret path /srv/x")

    monkeypatch.setattr(Classifier, "see", broken)
    for client in in_process(model_dir, []):
        answer = client.post("/v1/classify", files=form(of_class("Basophil")))
        assert answer.status_code == 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert "secret" not in answer.text


def test_keys_come_from_the_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("third\n fourth , fifth\n\n")
    keys = ApiKeys.from_environment({"WBC_API_KEYS": "first, second", "WBC_API_KEYS_FILE": str(file)})
    for key in ("first", "second", "third", "fourth", "fifth"):
        keys.check(key)
    assert keys
    assert not ApiKeys.from_environment({})


@pytest.mark.parametrize("environment", [{"WBC_API_KEYS": ""}, {"WBC_API_KEYS": " , "}, {"WBC_API_KEYS_FILE": "/not/there"}])
def test_an_empty_secret_does_not_open_the_service(environment: dict[str, str]) -> None:
    with pytest.raises(WbcError, match="WBC_API_KEYS"):
        ApiKeys.from_environment(environment)


def test_an_address_others_can_reach_needs_a_key(tmp_path: Path) -> None:
    none, some = ApiKeys([]), ApiKeys([KEY])
    add_key(tmp_path / "keys", PAGE_KEY, ["classify", "review"])
    of_the_page = ApiKeys(file=tmp_path / "keys")
    assert run.address(None, none) == run.address("localhost", none) == "127.0.0.1"
    assert run.address("::1", none) == "::1"
    assert run.address("0.0.0.0", some) == "0.0.0.0"  # noqa: S104
    for host in ("0.0.0.0", "::", "192.168.1.5"):  # noqa: S104
        for too_few in (none, of_the_page):
            with pytest.raises(WbcError, match="WBC_API_KEYS"):
                run.address(host, too_few)
    with pytest.raises(WbcError, match="IP address"):
        run.address("ward.example", some)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many"])
def test_a_bad_limit_is_named(text: str) -> None:
    with pytest.raises(WbcError, match="WBC_MAX_BODY_MIB"):
        Limits.from_environment({"WBC_MAX_BODY_MIB": text})


def test_a_damaged_model_ends_the_start_with_one_line(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    with (tmp_path / "model" / ONNX).open("ab") as file:
        file.write(b"x")
    line = fails_to_start(serve_command(tmp_path / "model", free_port()))
    assert "model.onnx" in line
    assert "damaged" in line


def test_bentoml_itself_refuses_a_damaged_model_in_one_line(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / WEIGHTS).unlink()
    command = run.command("serving.service:WbcService", "127.0.0.1", free_port(), ROOT)
    line = fails_to_start(command, WBC_MODEL_DIR=str(tmp_path / "model"), BENTOML_HOME=str(tmp_path / "home"))
    assert WEIGHTS in line


def test_no_model_and_an_open_host_are_one_line(tmp_path: Path, model_dir: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert CARD in fails_to_start(serve_command(tmp_path / "empty", free_port()))
    assert "WBC_API_KEYS" in fails_to_start(serve_command(model_dir, free_port(), "--host", "0.0.0.0"))  # noqa: S104


@pytest.mark.slow
def test_a_real_server_asks_for_the_key(model_dir: Path, tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "keys"
    file.write_text(KEY + "\n")
    with started(
        serve_command(model_dir, port, "--host", "0.0.0.0"),  # noqa: S104
        port,
        tmp_path,
        clean_environment(WBC_API_KEYS_FILE=str(file)),
        ROOT,
    ) as server:
        assert httpx.get(f"{server.url}/v1/model").status_code == 401
        assert httpx.get(f"{server.url}/v1/model", headers={"X-API-Key": KEY}).json()["version"] == "tiny-1"
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        children = server.processes()
    assert server.process.returncode == 0, "SIGTERM must end the server cleanly"
    assert not [process for process in children if Path(f"/proc/{process}").exists()]
    assert KEY not in server.log.read_text()
