"""API keys hashed at rest: the keyring's file, scopes, rotation without a restart, and the rate of each key."""

import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from live import ROOT, clean_environment, form, free_port, of_class, serve_command, started
from test_api import assert_problem
from typer.testing import CliRunner

from flows.cli import app as command_line
from flows.cli.service import ScopeChoice
from serving.http.app import create_app
from serving.http.layer import Around
from serving.http.limits import BUCKETS, Limits, RateLimit
from serving.http.running import Running
from serving.inference.classify import Classifier
from serving.security import keys as keys_module
from serving.security.errors import LacksScope, UnknownKey
from serving.security.keys import KEYRING_HEADER, SCOPES, ApiKeys, add_key, list_keys, revoke_key
from wbc_model.core.errors import WbcError


@pytest.fixture
def keyring(tmp_path: Path) -> Path:
    return tmp_path / "service.keys"


def status(keys: ApiKeys, key: str | None, *scopes: str) -> int:
    try:
        keys.check(key, scopes)
    except UnknownKey:
        return 401
    except LacksScope:
        return 403
    return 200


def test_only_the_digest_is_kept(keyring: Path) -> None:
    key = add_key(keyring, "ward-3", ["review", "classify"])
    header, line = keyring.read_text().splitlines()
    name, scopes, digest, _created = line.split(" ")
    assert header == KEYRING_HEADER
    assert (name, scopes, digest) == ("ward-3", "classify,review", hashlib.sha256(key.encode()).hexdigest())
    assert key not in keyring.read_text()
    assert len(key.removeprefix("wbc_")) == 43  # 256 bits in base64


def test_the_command_makes_lists_and_revokes(keyring: Path) -> None:
    def run(*words: str) -> Any:
        result = CliRunner().invoke(command_line, ["keys", *words, "--file", str(keyring), "--json"], catch_exceptions=False)
        return json.loads(result.stdout)

    key = run("add", "ward-3", "--scope", "classify", "--scope", "review")["key"]
    run("add", "prometheus", "--scope", "admin")
    listed = run("list")["keys"]
    assert [(one["name"], one["scopes"]) for one in listed] == [("ward-3", ["classify", "review"]), ("prometheus", ["admin"])]
    assert hashlib.sha256(key.encode()).hexdigest() not in json.dumps(listed)
    assert ApiKeys(file=keyring).check(key, ["classify"]).name == "ward-3"
    run("revoke", "ward-3")
    assert [one["name"] for one in run("list")["keys"]] == ["prometheus"]


def test_changes_at_the_same_time_wait_for_each_other(keyring: Path) -> None:
    """Else one would write back a key that the other has revoked, or lose one that was handed out."""
    old = [f"old-{number}" for number in range(8)]
    for name in old:
        add_key(keyring, name, ["classify"])
    with ThreadPoolExecutor(16) as pool:
        changes = [pool.submit(revoke_key, keyring, name) for name in old]
        changes += [pool.submit(add_key, keyring, f"new-{number}", ["review"]) for number in range(8)]
    assert not [change.exception() for change in changes if change.exception()]
    assert sorted(key.name for key in list_keys(keyring)) == [f"new-{number}" for number in range(8)]


def test_scopes_are_what_a_key_may_do_and_no_more(keyring: Path) -> None:
    assert [choice.value for choice in ScopeChoice] == list(SCOPES), "the command line knows the same"
    secrets = {scope: add_key(keyring, f"only-{scope}", [scope]) for scope in SCOPES}
    keys = ApiKeys(file=keyring)
    for own, key in secrets.items():
        assert keys.check(key).name == f"only-{own}"
        for scope in SCOPES:
            assert status(keys, key, scope) == (200 if scope == own else 403)
    assert status(keys, None) == status(keys, "") == status(keys, "wbc_guessed") == 401
    assert status(keys, hashlib.sha256(key.encode()).hexdigest()) == 401, "what is in the file must not open the door"


def test_keys_from_the_environment_have_all_scopes() -> None:
    keys = ApiKeys.from_environment({"WBC_API_KEYS": "one,two"})
    assert [keys.check(key, SCOPES).name for key in ("one", "two")] == ["env-1", "env-2"]
    assert ApiKeys().check(None, SCOPES).name == "local"


def test_every_digest_is_compared_whichever_key_it_is(keyring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [add_key(keyring, f"key-{number}", ["classify"]) for number in range(5)]
    keys = ApiKeys(file=keyring)
    compared = 0
    compare = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        nonlocal compared
        compared += 1
        return compare(one, other)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", counting)
    for key in (secrets[0], secrets[-1], "none of them", ""):
        compared = 0
        status(keys, key)
        assert compared == 5


@pytest.mark.parametrize("name", ["", "a b", "a,b", "local", "env-1", "file-12", "-x", "x" * 65, "a\nb", "ä"])
def test_a_name_that_would_be_mistaken_is_refused(keyring: Path, name: str) -> None:
    with pytest.raises(WbcError, match="cannot name a key"):
        add_key(keyring, name, ["classify"])
    assert not keyring.exists()


def test_names_are_unique_and_what_is_revoked_must_be_there(keyring: Path) -> None:
    add_key(keyring, "a", ["classify"])
    with pytest.raises(WbcError, match="revoke it first"):
        add_key(keyring, "a", ["admin"])
    with pytest.raises(WbcError, match="has no key b"):
        revoke_key(keyring, "b")
    with pytest.raises(WbcError, match="scopes are"):
        add_key(keyring, "c", ["root"])
    revoke_key(keyring, "a")
    assert list_keys(keyring) == []
    with pytest.raises(WbcError, match="holds no key"):
        ApiKeys.from_environment({"WBC_API_KEYS_FILE": str(keyring)})


def damages(text: str) -> dict[str, str]:
    header, first, second = text.splitlines()
    return {
        "empty": "",
        "torn in the header": header[:20],
        "torn in a line": text[:-30],
        "no header": f"{first}\n{second}\n",
        "another version": text.replace("keyring 1", "keyring 2"),
        "a field too many": f"{header}\n{first} x\n",
        "unknown scope": text.replace("classify", "everything"),
        "no digest": f"{header}\na classify 00 2026\n",
        "twice the same name": f"{header}\n{first}\n{first}\n",
    }


@pytest.mark.parametrize("kind", damages("#\na\nb\n"))
def test_a_damaged_keyring_does_not_start_and_does_not_replace_the_keys_in_use(
    keyring: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys_module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(logging.getLogger("bentoml"), "propagate", True)
    key = add_key(keyring, "a", ["classify"])
    add_key(keyring, "b", ["admin"])
    keys = ApiKeys(file=keyring)
    keyring.write_text(damages(keyring.read_text())[kind])
    for _ in range(3):
        assert keys.check(key).name == "a"
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(lines) == 1, "one line for the change, not one for each request"
    assert str(keyring) in lines[0]
    assert key not in lines[0]
    with pytest.raises(WbcError, match="keys"):
        ApiKeys.from_environment({"WBC_API_KEYS_FILE": str(keyring)})
    keyring.unlink()  # an administrator starts anew
    new = add_key(keyring, "new", ["classify"])
    assert (status(keys, key), keys.check(new).name) == (401, "new")


def test_plain_keys_in_a_file_are_read_again_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "LOOK_SECONDS", 0.0)
    file = tmp_path / "plain"
    file.write_text("old\n")
    keys = ApiKeys.from_environment({"WBC_API_KEYS_FILE": str(file)})
    file.write_text("new-1, new-2\n")
    assert [status(keys, key) for key in ("old", "new-1", "new-2")] == [401, 200, 200]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le-mark"])
@pytest.mark.parametrize("kind", ["plain", "keyring"])
def test_a_file_saved_in_an_editor_is_read_with_its_mark(tmp_path: Path, keyring: Path, kind: str, encoding: str) -> None:
    """The mark was taken for a part of the first key, which was shut out."""
    keys, text = ["first", "second"], "first\r\nsecond\r\n"
    if kind == "keyring":
        keys = [add_key(keyring, name, ["classify"]) for name in keys]
        text = keyring.read_text().replace("\n", "\r\n")
    data = b"\xff\xfe" + text.encode("utf-16-le") if encoding == "utf-16-le-mark" else text.encode(encoding)
    (tmp_path / "saved").write_bytes(data)
    read = ApiKeys.from_environment({"WBC_API_KEYS_FILE": str(tmp_path / "saved")})
    assert [status(read, key) for key in keys] == [200, 200]


def test_a_file_that_is_no_text_is_refused_by_one_line(tmp_path: Path) -> None:
    (tmp_path / "saved").write_bytes("first\n".encode("utf-16-le"))
    with pytest.raises(WbcError, match="saved: is no UTF-8 text"):
        ApiKeys.from_environment({"WBC_API_KEYS_FILE": str(tmp_path / "saved")})


@pytest.fixture
def guarded(model_dir: Path, keyring: Path) -> Iterator[tuple[TestClient, dict[str, str]]]:
    secrets = {scope: add_key(keyring, scope, [scope]) for scope in SCOPES}
    app = create_app()
    app.state.running = Running(Classifier.open(model_dir), ApiKeys(file=keyring), Limits(requests_per_minute=30))
    yield TestClient(Around(app), raise_server_exceptions=False), secrets
    app.state.running.classifier.close()


def test_each_call_asks_for_its_scope(guarded: tuple[TestClient, dict[str, str]]) -> None:
    client, secrets = guarded
    calls: dict[str, set[str]] = {
        "/v1/classify": {"classify"},
        "/v1/differential": {"classify"},
        "/v1/model": set(SCOPES),
        "/v1/me": set(SCOPES),
        "/v1/openapi.json": set(SCOPES),
        "/metrics": {"admin"},
    }
    for path, allowed in calls.items():
        for scope, key in {**secrets, "": "wbc_wrong"}.items():
            headers = {"X-API-Key": key}
            post = path in ("/v1/classify", "/v1/differential")
            files = form(of_class("Basophil")) if post else None
            answer = client.request("POST" if post else "GET", path, files=files, headers=headers)
            expected = 200 if scope in allowed else 403 if scope else 401
            assert answer.status_code == expected, (path, scope)
            if expected != 200:
                assert_problem(answer, expected)
        assert client.request("POST" if post else "GET", path).status_code == 401


def test_no_call_of_the_interface_is_open(guarded: tuple[TestClient, dict[str, str]]) -> None:
    """Whatever calls there are: of each the OpenAPI document tells, none answers without a key."""
    client, secrets = guarded
    paths = client.get("/v1/openapi.json", headers={"X-API-Key": secrets["review"]}).json()["paths"]
    assert len(paths) >= 3
    for path, methods in paths.items():
        for method in methods:
            answer = client.request(method, re.sub(r"\{\w+\}", "1", path))
            assert answer.status_code == 401, (method, path)


def test_a_key_that_asks_too_often_hears_429_and_no_other_does(guarded: tuple[TestClient, dict[str, str]]) -> None:
    client, secrets = guarded
    answers = [client.get("/v1/model", headers={"X-API-Key": secrets["classify"]}) for _ in range(32)]
    assert [answer.status_code for answer in answers[:30]] == [200] * 30
    document = assert_problem(answers[31], 429)
    assert "30 requests a minute" in document["detail"]
    assert answers[31].headers["retry-after"] in ("1", "2")
    assert client.get("/v1/model", headers={"X-API-Key": secrets["review"]}).status_code == 200


def test_the_bucket_by_hand() -> None:
    now = 0.0
    limit = RateLimit(60, lambda: now)  # one a second
    assert [limit.take("a") for _ in range(60)] == [0] * 60
    assert limit.take("a") == 1
    assert limit.take("b") == 0
    now = 1.5
    assert [limit.take("a"), limit.take("a")] == [0, 1]
    now = 1000.0
    assert [limit.take("a") for _ in range(61)] == [0] * 60 + [1]
    slow = RateLimit(2, lambda: now)
    assert [slow.take("a") for _ in range(3)] == [0, 0, 30]


@given(st.lists(st.floats(0, 20), max_size=200), st.integers(1, 50))
def test_no_more_than_the_allowance_in_any_stretch_of_time(gaps: list[float], per_minute: int) -> None:
    now = 0.0
    limit = RateLimit(per_minute, lambda: now)
    accepted = []
    for gap in gaps:
        now += gap
        wait = limit.take("a")
        if not wait:
            accepted.append(now)
    for first, start in enumerate(accepted):
        for last in range(first, len(accepted)):
            assert last - first + 1 <= per_minute + (accepted[last] - start) * per_minute / 60 + 1e-6


def test_callers_that_come_and_go_leave_nothing_behind() -> None:
    now = 0.0
    limit = RateLimit(10, lambda: now)
    for number in range(20 * BUCKETS):
        now += 1.0
        limit.take(f"caller-{number}")
    assert len(limit._buckets) <= BUCKETS


@pytest.mark.slow
def test_keys_change_in_a_running_server(model_dir: Path, tmp_path: Path, keyring: Path) -> None:
    port = free_port()
    old = add_key(keyring, "old", ["classify"])
    environment = clean_environment(WBC_API_KEYS_FILE=str(keyring))
    with started(serve_command(model_dir, port), port, tmp_path, environment, ROOT) as server:

        def asks(key: str, path: str = "/v1/model") -> int:
            return httpx.get(f"{server.url}{path}", headers={"X-API-Key": key}).status_code

        def becomes(key: str, expected: int) -> bool:
            deadline = time.monotonic() + 10
            while asks(key) != expected and time.monotonic() < deadline:
                time.sleep(0.1)
            return asks(key) == expected

        assert asks(old) == 200
        new = add_key(keyring, "new", ["classify"])
        assert becomes(new, 200)
        assert asks(old) == 200, "both are good while callers move over"
        revoke_key(keyring, "old")
        assert becomes(old, 401)
        whole = keyring.read_text()
        keyring.write_text(whole[:-20])
        time.sleep(1.2)
        assert asks(new) == 200
        assert asks(new) == 200
        keyring.write_text(whole)
        revoke_key(keyring, "new")
        assert becomes(new, 401), "the last key of a keyring can be revoked, and then nobody is let in"
        for path in ("/livez", "/readyz"):
            assert httpx.get(f"{server.url}{path}").status_code == 200
        assert httpx.get(f"{server.url}/metrics").status_code == 401
    log = server.log.read_text()
    assert log.count("the keys from before stay in use") == 1
    assert old not in log
    assert new not in log
