"""Who is answered: host names, web pages of others, proxies; in a real browser too."""

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import ROOT, Server, clean_environment, fails_to_start, form, free_port, of_class, serve_command, started
from test_proxy import NGINX, wait_for
from test_reports import assert_problem

from serving.http.refused import problem_of
from serving.reports.store import sqlite_url
from serving.security.hosts import Hosts
from serving.security.keys import add_key
from tests.chromium import CHROMIUM, headless_chromium
from wbc_model.core.errors import WbcError

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed here")


def refused(hosts: Hosts, keyless: bool = True, method: str = "GET", path: str = "/v1/model", **headers: str) -> str | None:
    """The kind of the refusal of a request to 127.0.0.1:3000."""
    named = {"host": "127.0.0.1:3000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "server": ("192.168.1.5", 3000),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in named.items() if value],
    }
    refusal = hosts.refusal(scope, keyless)
    return None if refusal is None else str(problem_of(refusal).document["type"]).rpartition(":")[2]


@pytest.mark.parametrize("keyless", [True, False])
def test_names_are_those_of_loopback_and_of_the_operator(keyless: bool) -> None:
    hosts = Hosts(["wbc.Hospital.example", "10.1.2.3"])
    for good in ("localhost", "LOCALHOST:3000", "localhost.", "127.0.0.1", "127.9.9.9:1", "[::1]:3000", "192.168.1.5:3000"):
        assert refused(hosts, keyless, host=good) is None, good
    for good in ("wbc.hospital.example", "wbc.hospital.example.:8443", "10.1.2.3"):
        assert refused(hosts, keyless, host=good) is None, good
    for bad in ("evil", "evil:3000", "localhost.evil.example", "127.0.0.1.nip.io", "192.168.1.6", "x.wbc.hospital.example"):
        assert refused(hosts, keyless, host=bad) == "host-not-allowed", bad
    for bad in ("", "[", "a b", "localhost@evil", "localhost/x", "127.1", "0x7f.1", "localhost:x", "*"):
        assert refused(hosts, keyless, host=bad) == "host-not-allowed", bad


@pytest.mark.parametrize("keyless", [True, False])
def test_a_page_of_somebody_else_changes_nothing(keyless: bool) -> None:
    hosts = Hosts(["wbc.example"])

    def post(**headers: str) -> str | None:
        return refused(hosts, keyless, "POST", "/v1/differential", **headers)

    assert post() is None, "a program sends none of this"
    assert post(origin="http://127.0.0.1:3000", sec_fetch_site="same-origin") is None
    assert post(host="wbc.example", origin="https://wbc.example") is None, "TLS ends in the proxy"
    assert post(referer="http://127.0.0.1:3000/") is None
    for other in ("https://evil.example", "http://127.0.0.1:8080", "http://localhost:3000", "null", "file://", "http://[", "x"):
        assert post(origin=other) == "cross-origin", other
        assert post(referer=other) == "cross-origin", other
    for site in ("cross-site", "same-site", "new-thing"):
        assert post(sec_fetch_site=site, origin="http://127.0.0.1:3000") == "cross-origin"
    assert refused(hosts, keyless, sec_fetch_site="cross-site") == "cross-origin"
    assert refused(hosts, keyless, path="/", sec_fetch_site="cross-site") is None, "a link to the page"


def test_without_keys_whatever_a_proxy_adds_is_refused() -> None:
    hosts = Hosts()
    added = "forwarded x_forwarded_for x_forwarded_host x_forwarded_proto via x_real_ip true_client_ip cf_connecting_ip"
    for name in (*added.split(), "x_original_uri"):
        assert refused(hosts, **{name: "1"}) == "no-keys", name
        assert refused(hosts, keyless=False, **{name: "1"}) is None, name


@pytest.mark.parametrize("name", ["a b", "*", "http://x", "x:3000", "-x"])
def test_a_name_that_is_none_ends_the_start(name: str) -> None:
    with pytest.raises(WbcError, match="WBC_HOSTS"):
        Hosts.from_environment({"WBC_HOSTS": name})


def test_the_setting_is_checked_at_the_start(model_dir: Path) -> None:
    assert "WBC_HOSTS" in fails_to_start(serve_command(model_dir, free_port(), "--allow-host", "http://x"))


def test_a_real_server_answers_by_its_names_only(client: httpx.Client) -> None:
    port = client.base_url.port
    for host, status in ((f"localhost:{port}", 200), ("evil", 403), ("[", 403), ("rebound.example", 403)):
        assert client.get("/v1/model", headers={"Host": host}).status_code == status, host
        assert client.get("/", headers={"Host": host}).status_code == status, host
    assert_problem(client.get("/v1/model", headers={"X-Forwarded-For": "203.0.113.9"}), 403, "no-keys")
    answer = client.post("/v1/classify", files=form(of_class("Basophil")), headers={"Origin": "https://evil.example"})
    assert_problem(answer, 403, "cross-origin")


@pytest.mark.skipif(not NGINX, reason="nginx is not installed here")
def test_the_plainest_proxy_does_not_open_a_service_without_keys(server: Server, tmp_path: Path) -> None:
    port = free_port()
    temporary = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    plainest = f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {server.url}; }} }}"
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/log; daemon off; events {{}}\n"
        f"http {{ access_log off; {temporary} {plainest} }}\n"
    )
    process = subprocess.Popen([str(NGINX), "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)], stderr=subprocess.PIPE)
    try:
        wait_for(port, process)
        assert_problem(httpx.get(f"http://127.0.0.1:{port}/v1/model"), 403, "no-keys")
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(20)


# --- in a browser --------------------------------------------------------------------------------------------------------

ATTACK = """async ([url, key]) => {
  const headers = key ? { "X-API-Key": key } : {};
  const read = await fetch(url + "/v1/reports?status=all", { headers }).then((r) => r.text(), (e) => String(e));
  const form = new FormData();
  form.append("images", new Blob([new Uint8Array(8)]), "x");
  const sent = await fetch(url + "/v1/differential", { method: "POST", body: form, mode: "no-cors" }).then((r) => r.type, String);
  return [read, sent];
}"""


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>evil</title>")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def page_of_somebody_else() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("with_key", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_rebound_name_and_another_port_reach_nothing_in_chromium(model_dir: Path, tmp_path: Path, with_key: bool) -> None:
    """`evil` means this machine, as after DNS rebinding: the page's own origin is then the service."""
    port, key = free_port(), ""
    environment = clean_environment(WBC_STORE_URL=sqlite_url(tmp_path / "service.db"))
    if with_key:
        key = add_key(tmp_path / "keys", "ward", ["classify", "review"])
        environment["WBC_API_KEYS_FILE"] = str(tmp_path / "keys")
    with (
        started(serve_command(model_dir, port), port, tmp_path, environment, ROOT) as server,
        page_of_somebody_else() as other,
        headless_chromium("--host-resolver-rules=MAP evil 127.0.0.1, MAP evil.example 127.0.0.1") as browser,
    ):
        headers = {"X-API-Key": key} if key else {}
        made = httpx.post(f"{server.url}/v1/differential", files=form(of_class("Monocyte")), headers=headers)
        assert made.status_code == 200
        page = browser.new_page()
        for name in ("evil", "evil.example"):
            answer = page.goto(f"http://{name}:{port}/")
            assert answer is not None
            assert answer.status == 403
            read, _ = page.evaluate(ATTACK, [f"http://{name}:{port}", key])
            assert "host-not-allowed" in read
        page.goto(f"http://127.0.0.1:{other}/")
        read, _ = page.evaluate(ATTACK, [server.url, ""])
        assert "Failed to fetch" in read
        listed = httpx.get(f"{server.url}/v1/reports?status=all", headers=headers).json()["reports"]
        assert [one["id"] for one in listed] == [made.json()["report_id"]]
