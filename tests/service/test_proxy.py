"""The shipped nginx configuration, on loopback, with a certificate of its own, before a real service; headers of answers."""

import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from live import ROOT, Server, clean_environment, form, free_port, of_class, serve_command, started
from test_api import assert_problem

from serving.api import CONTENT_SECURITY_POLICY
from serving.keys import add_key

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
    """A main file as Debian's around the shipped one, in which only ports and certificate files are changed."""
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
        f"http {{ access_log {folder}/access.log; {temporary} include {folder}/wbc.conf; }}\n"
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
    key = add_key(folder / "keys", "ward-3", ["classify"])
    environment = clean_environment(WBC_API_KEYS_FILE=str(folder / "keys"), WBC_MAX_BODY_MIB="10")
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
        assert answer.headers["cache-control"] == "no-store"


def test_the_policy_allows_nothing_inline_and_nobody_else() -> None:
    policy = dict(part.strip().split(" ", 1) for part in CONTENT_SECURITY_POLICY.split(";"))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert not re.search(r"unsafe|http|\*", CONTENT_SECURITY_POLICY)


def test_a_service_without_keys_is_not_opened_by_a_proxy_or_a_strange_web_page(client: httpx.Client) -> None:
    def status(**headers: str) -> int:
        return client.get("/v1/model", headers={name.replace("_", "-"): value for name, value in headers.items()}).status_code

    port = client.base_url.port
    assert [status(), status(Host=f"localhost:{port}"), status(Sec_Fetch_Site="same-origin")] == [200] * 3
    assert status(X_Forwarded_For="203.0.113.9") == 403
    assert status(Host="rebound.example") == 403
    assert status(Host="127.evil.example") == 403
    assert status(Sec_Fetch_Site="cross-site") == 403
    assert status(Host="[") == 200, "a name that is none is no reason to fail"
    assert client.get("/nothing", headers={"Host": "["}).status_code == 404
    assert_problem(client.get("/v1/model", headers={"X-Forwarded-For": "203.0.113.9"}), 403)


def test_bentomls_own_pages_are_not_there(client: httpx.Client) -> None:
    for path in ("/schema.json", "/docs.json", "/static_content/", "/assets/", "/openapi.json", "/docs"):
        assert_problem(client.get(path), 404)
