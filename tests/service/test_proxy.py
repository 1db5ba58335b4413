"""The shipped nginx configuration, on loopback, with a certificate of its own, before a real service; headers of answers."""

import gzip
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from live import ROOT, Server, clean_environment, form, free_port, of_class, serve_command, started
from test_api import assert_problem

from serving.page.static import CONTENT_SECURITY_POLICY
from serving.reports.store import sqlite_url
from serving.security.keys import add_key

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
OPENSSL = shutil.which("openssl")
needs_nginx = pytest.mark.skipif(not (NGINX and OPENSSL), reason="nginx or openssl is not installed here")
NAME = "wbc.hospital.example"


@dataclass
class Proxy:
    url: str
    plain_port: int
    port: int
    key: str
    certificate: Path
    server: Server
    folder: Path


def configuration(folder: Path, upstream: int, plain_port: int, port: int) -> Path:
    """A main file as Debian's around the shipped one, in which only ports and certificate files are changed. Like Debian's it
    compresses, and more than that."""
    text = (ROOT / "deploy/nginx.conf").read_text()
    for old, new in (
        ("127.0.0.1:3000", f"127.0.0.1:{upstream}"),
        ("listen 80;", f"listen 127.0.0.1:{plain_port};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/nginx/wbc.", f"{folder}/wbc."),
        ("client_max_body_size 128m;", "client_max_body_size 20m;"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "wbc.conf").write_text(text)
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    main = folder / "nginx.conf"
    main.write_text(
        f"pid {folder}/nginx.pid; error_log {folder}/error.log; daemon off; worker_processes 1; events {{}}\n"
        f"http {{ gzip on; gzip_types *; gzip_proxied any; gzip_min_length 0; access_log {folder}/access.log; {temporary} "
        f"include {folder}/wbc.conf; }}\n"
    )
    return main


@pytest.fixture(scope="module")
def proxy(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)
    upstream, plain_port, port = free_port(), free_port(), free_port()
    names = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(folder / "wbc.key"), "-out", str(folder / "wbc.crt")]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    subprocess.run([str(OPENSSL), "req", "-x509", *kind, *names, *files], check=True, capture_output=True)
    main = configuration(folder, upstream, plain_port, port)
    key = add_key(folder / "keys", "ward-3", ["classify", "review"])
    kept = {"WBC_STORE_URL": sqlite_url(folder / "service.db"), "WBC_AUDIT_LOG": str(folder / "audit")}
    environment = clean_environment(WBC_API_KEYS_FILE=str(folder / "keys"), WBC_MAX_BODY_MIB="10", WBC_HOSTS=NAME, **kept)
    with started(serve_command(model_dir, upstream), upstream, folder, environment, ROOT) as server:
        process = subprocess.Popen([str(NGINX), "-c", str(main), "-p", str(folder)], stderr=subprocess.PIPE)
        url = f"https://127.0.0.1:{port}"
        try:
            wait_for(port, process)
            yield Proxy(url, plain_port, port, key, folder / "wbc.crt", server, folder)
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait(20)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise AssertionError(process.stderr.read().decode() if process.stderr else "nginx ended")
        time.sleep(0.1)
    raise AssertionError("nginx does not listen")


@pytest.fixture
def outside(proxy: Proxy) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cafile=str(proxy.certificate))
    with httpx.Client(base_url=proxy.url, verify=context, timeout=30, headers={"X-API-Key": proxy.key}) as client:
        yield client


@needs_nginx
def test_images_are_classified_over_tls_and_none_is_left_on_the_disk(proxy: Proxy, outside: httpx.Client) -> None:
    answer = outside.post("/v1/classify", files=form(*[of_class("Eosinophil")] * 200))
    assert [result["label"] for result in answer.json()["results"]] == ["Eosinophil"] * 200
    assert answer.headers["strict-transport-security"].startswith("max-age=")
    assert "nginx/" not in answer.headers.get("server", "")
    assert outside.get("/readyz").status_code == 200
    assert not [path for path in (proxy.folder / "client_body").rglob("*") if path.is_file()]


def as_sent(outside: httpx.Client, path: str, accept: str = "*/*", **headers: str) -> tuple[httpx.Response, bytes]:
    """An answer's head, and its body as it travelled."""
    asked = {"Accept": accept, "Accept-Encoding": "gzip, br", **headers}
    with outside.stream("GET", path, headers=asked) as answer:
        return answer, b"".join(answer.iter_raw())


@needs_nginx
def test_an_answer_is_compressed_once_and_says_so(outside: httpx.Client) -> None:
    """A page, which anybody may have, and a report, which has a specimen's number and a strong ETag."""
    page, body = as_sent(outside, "/")
    assert (page.headers["content-encoding"], page.headers["vary"]) == ("gzip", "Accept-Encoding")
    assert int(page.headers["content-length"]) == len(body)
    assert gzip.decompress(body).startswith(b"<!doctype html>")
    assert page.headers["etag"].startswith('W/"')
    again, nothing = as_sent(outside, "/", **{"If-None-Match": page.headers["etag"]})
    assert (again.status_code, nothing, again.headers["etag"]) == (304, b"", page.headers["etag"])

    cells = form(*(of_class("Monocyte") for _ in range(20)))
    made = outside.post("/v1/differential", files=cells, data={"specimen_id": "S-2026-0815"})
    report = f"/v1/reports/{made.json()['report_id']}"
    told, body = as_sent(outside, report)
    assert (told.headers["content-encoding"], int(told.headers["content-length"])) == ("gzip", len(body))
    assert json.loads(gzip.decompress(body))["specimen_id"] == "S-2026-0815"
    assert "Accept-Encoding" in told.headers["vary"]
    assert told.headers["cache-control"] == "no-store"
    assert told.headers["etag"] == '"1"', "it names a version, for If-Match"
    for path, kind in (
        (f"{report}/report.pdf", "application/pdf"),
        ("/v1/me", "application/json"),
    ):  # compressed already, and small
        answer, body = as_sent(outside, path, kind)
        assert answer.headers["content-type"] == kind
        assert "content-encoding" not in answer.headers
        assert int(answer.headers["content-length"]) == len(body)
    asked = {"label": "Lymphocyte", "by": "Dr Ada"}
    changed = outside.put(f"{report}/cells/0", json=asked, headers={"If-Match": told.headers["etag"]})
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')


@needs_nginx
def test_keys_are_asked_for_and_metrics_are_for_the_machine_itself(outside: httpx.Client) -> None:
    assert_problem(outside.get("/v1/model", headers={"X-API-Key": "wrong"}), 401)
    assert_problem(outside.get("/metrics"), 404)


@needs_nginx
def test_plain_http_is_sent_to_https_by_the_configured_name_only(proxy: Proxy) -> None:
    answer = httpx.get(f"http://127.0.0.1:{proxy.plain_port}/v1/model", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.headers["location"]) == (308, f"https://{NAME}/v1/model")


@needs_nginx
@pytest.mark.parametrize(
    ("version", "accepted"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_tls_is_refused(proxy: Proxy, version: ssl.TLSVersion, accepted: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(str(proxy.certificate))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    try:
        with socket.create_connection(("127.0.0.1", proxy.port), 10) as plain, context.wrap_socket(plain, server_hostname=NAME):
            connected = True
    except ssl.SSLError:
        connected = False
    assert connected == accepted


@needs_nginx
def test_a_body_over_the_limit_of_either_is_413(outside: httpx.Client) -> None:
    over_both, over_ours = form(bytes(25 * 2**20)), form(*[bytes(2**20)] * 12)
    assert "than this server accepts" in assert_problem(outside.post("/v1/classify", files=over_both), 413)["detail"]
    assert "limit" in assert_problem(outside.post("/v1/classify", files=over_ours), 413)


@needs_nginx
def test_a_chunked_body_is_limited_too(outside: httpx.Client) -> None:
    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        for _ in range(12):
            yield bytes(2**20)
        yield b"\r\n--x--\r\n"

    answer = outside.post("/v1/classify", content=body(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert_problem(answer, 413)


@needs_nginx
def test_a_caller_cannot_say_where_it_comes_from(proxy: Proxy, outside: httpx.Client) -> None:
    outside.get("/v1/model", headers={"X-Forwarded-For": "203.0.113.99"})
    assert "203.0.113.99" not in proxy.server.log.read_text()


@needs_nginx
def test_a_service_that_is_down_is_503_in_our_form(model_dir: Path, tmp_path: Path, proxy: Proxy) -> None:
    plain_port, port = free_port(), free_port()
    for name in ("wbc.crt", "wbc.key"):
        shutil.copy(proxy.folder / name, tmp_path / name)
    main = configuration(tmp_path, free_port(), plain_port, port)
    process = subprocess.Popen([str(NGINX), "-c", str(main), "-p", str(tmp_path)])
    try:
        wait_for(port, process)
        context = ssl.create_default_context(cafile=str(proxy.certificate))
        answer = httpx.get(f"https://127.0.0.1:{port}/v1/model", verify=context)
        assert_problem(answer, 503)
        assert answer.headers["retry-after"]
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(20)


@needs_nginx
def test_the_configuration_has_no_warning(proxy: Proxy) -> None:
    checked = subprocess.run(
        [str(NGINX), "-t", "-c", str(proxy.folder / "nginx.conf"), "-p", str(proxy.folder)], capture_output=True, text=True
    )
    assert checked.returncode == 0
    assert "warn" not in checked.stderr


def test_every_answer_has_the_security_headers(client: httpx.Client) -> None:
    answers = [
        client.get("/v1/model"),
        client.get("/"),
        client.get("/nothing"),
        client.post("/v1/classify", files=form(of_class("Basophil"))),
        client.post("/v1/classify", json={}),
    ]
    for answer in answers:
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        kept = "no-cache" if answer.url.path == "/" else "no-store"  # the page may be kept, if it is asked for again
        assert answer.headers["cache-control"] == kept


def test_the_policy_allows_nothing_inline_and_nobody_else() -> None:
    policy = dict(part.strip().split(" ", 1) for part in CONTENT_SECURITY_POLICY.split(";"))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert not re.search(r"unsafe|http|\*", CONTENT_SECURITY_POLICY)


def test_bentomls_own_pages_are_not_there(client: httpx.Client) -> None:
    for path in ("/schema.json", "/docs.json", "/static_content/", "/assets/", "/openapi.json", "/docs"):
        assert_problem(client.get(path), 404)


class Cutting:
    """What stands between client and service, carries each call there, and cuts the first answers off."""

    def __init__(self, upstream: str, cut: int) -> None:
        self.calls = 0
        self._upstream, self._cut = upstream, cut
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.calls += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                answer = httpx.post(outer._upstream + self.path, content=body, headers=headers, timeout=60)
                if outer.calls <= outer._cut:
                    self.connection.close()
                    return
                self.send_response(answer.status_code)
                self.send_header("Content-Type", answer.headers["content-type"])
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def nginx(folder: Path, upstream: int, error_page: str) -> Iterator[str]:
    """A plain nginx with the shipped error pages, or others."""
    port = free_port()
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    location = f"location / {{ proxy_pass http://127.0.0.1:{upstream}; proxy_http_version 1.1; proxy_next_upstream off; }}"
    (folder / "plain.conf").write_text(
        f"pid {folder}/plain.pid; error_log {folder}/plain.log; daemon off; events {{}}\n"
        f"http {{ access_log off; {temporary} client_max_body_size 20m; {shipped_map()} server {{ listen 127.0.0.1:{port}; "
        f"{location} {error_page} }} }}\n"
    )
    process = subprocess.Popen([str(NGINX), "-c", str(folder / "plain.conf"), "-p", str(folder)], stderr=subprocess.PIPE)
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(20)


def shipped_map() -> str:
    text = (ROOT / "deploy/nginx.conf").read_text()
    return text[text.index("map $upstream") : text.index("limit_conn_zone")]


def shipped_pages() -> str:
    text = (ROOT / "deploy/nginx.conf").read_text()
    return "error_page 502 504 = @no_answer; " + text[text.index("location @no_answer") : text.rindex("}")]


MAPPING = "error_page 502 503 504 =503 @again; location @again { add_header Retry-After 1 always; return 503 '{}'; }"


@needs_nginx
def test_a_cut_off_answer_is_502_and_says_how_to_repeat(tmp_path: Path, server: Server) -> None:
    cutting = Cutting(server.url, cut=9)
    with nginx(tmp_path, cutting.port, shipped_pages()) as url:
        answer = httpx.post(f"{url}/v1/differential", files=form(of_class("Basophil")), timeout=60)
    cutting.close()
    assert "Idempotency-Key" in assert_problem(answer, 502)["detail"]
    assert "retry-after" not in answer.headers


@pytest.mark.slow
@needs_nginx
def test_a_proxy_that_makes_503_of_it_all_counts_no_batch_twice(model_dir: Path, tmp_path: Path) -> None:
    """As the shipped configuration did. Repeated with its key the batch is counted once, and the answer is the first one."""
    port = free_port()
    key = add_key(tmp_path / "keys", "ward", ["classify", "review"])
    environment = clean_environment(
        WBC_API_KEYS_FILE=str(tmp_path / "keys"),
        WBC_STORE_URL=sqlite_url(tmp_path / "service.db"),
        WBC_AUDIT_LOG=str(tmp_path / "a"),
    )
    (tmp_path / "cells").mkdir()
    for number in range(5):
        (tmp_path / f"cells/{number}.png").write_bytes(of_class("Monocyte") + bytes(number))
    with started(serve_command(model_dir, port), port, tmp_path, environment, ROOT) as server:
        cutting = Cutting(server.url, cut=2)
        with nginx(tmp_path, cutting.port, MAPPING) as url:
            client = [sys.executable, str(ROOT / "docs/examples/client.py"), url, str(tmp_path / "cells")]
            done = subprocess.run(client, env=os.environ | {"WBC_API_KEY": key}, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            assert cutting.calls == 3
        cutting.close()
        headers = {"X-API-Key": key}
        [report] = httpx.get(f"{server.url}/v1/reports?status=all", headers=headers).json()["reports"]
        assert report["cells"] == 5
