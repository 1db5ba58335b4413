"""The Bento: what is in it, and that it runs on what is in it alone, started as the Dockerfile starts it.

No Docker engine is needed: the instructions of the Dockerfile are read and carried out with its paths mapped into a temporary
folder. With WBC_TEST_DOCKERFILE=1 the `RUN` that makes the virtual environment is carried out too (it downloads packages, a
minute or two); otherwise the environment of the tests stands in for it.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import httpx
import pytest
import yaml
from live import ROOT, clean_environment, form, free_port, of_class, started
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_model import write_model

from flows.pipeline.package import REQUIREMENTS, bento_version, build_bento, pinned_requirements
from wbc_model.core.errors import WbcError

KEY = "a-key-of-the-ward"
WHOLE = os.environ.get("WBC_TEST_DOCKERFILE") == "1"
METRICS = {"n": 10, "accuracy": 0.9, "macro_f1": 0.8}
TRAINING = {
    "nncf",
    "torch",
    "torchvision",
    "lightning-fabric",
    "mlflow",
    "dvc",
    "prefect",
    "great-expectations",
    "pandas",
    "onnx",
}


@pytest.fixture(scope="module")
def bento(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bento(model_dir, tmp_path_factory.mktemp("build") / "bento", METRICS)


def test_it_holds_the_model_the_service_and_the_pure_modules_only(bento: Path, model_dir: Path) -> None:
    source = bento / "src"
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "serving").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert "serving/sites/default.yaml" in code
    code |= {"wbc_model/__init__.py"} | {str(path.relative_to(ROOT)) for path in (ROOT / "wbc_model/core").glob("*.py")}
    model = {f"model/{path.name}" for path in model_dir.iterdir()}
    assert files == code | model | {"bentofile.yaml", "README.md", "metrics.json"}
    for name in model:
        assert (source / name).read_bytes() == (model_dir / Path(name).name).read_bytes()
    assert json.loads((source / "metrics.json").read_text()) == METRICS


def locked(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", path.read_text(), re.MULTILINE))


def test_it_requires_exact_versions_and_nothing_that_training_needs(bento: Path) -> None:
    lines = (bento / "env" / "python" / "requirements.txt").read_text().split()
    pinned = dict(line.split("==") for line in lines)
    assert set(lines) == set(pinned_requirements())
    assert not set(pinned) & TRAINING
    assert not [name for name in pinned if name.startswith(("nvidia-cu", "triton"))]


def test_the_lock_of_the_service_has_the_versions_of_the_lock_of_all() -> None:
    service, everything = locked(REQUIREMENTS), locked(ROOT / "requirements.lock")
    assert service == {name: everything[name] for name in service}, "run `make lock`"
    assert sorted(f"{name}=={version}" for name, version in service.items()) == pinned_requirements()


def imported() -> list[set[str]]:
    """What the service and the core import wherever in their modules: of each the packages that it may have come from, as they
    are named when they are installed. Most are one; several share the name `opentelemetry`."""
    files = [*(ROOT / "serving").rglob("*.py"), *(ROOT / "wbc_model/core").rglob("*.py")]
    names = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    known = packages_distributions()
    outside = names - sys.stdlib_module_names - {"serving", "wbc_model"}
    return [set(map(canonicalize_name, known[name])) for name in outside]


def test_the_lock_of_the_service_has_all_that_it_imports() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        group = {canonicalize_name(Requirement(line).name) for line in tomllib.load(file)["dependency-groups"]["serving"]}
    on_a_gpu = {"torch"}  # serving/inference/engine.py uses it where it is installed
    assert [names for names in imported() if not names & (group | on_a_gpu)] == []
    assert group <= set(locked(REQUIREMENTS))


def test_the_lock_of_the_service_is_what_the_group_needs() -> None:
    """Offline: all that the group needs is installed here, and so says what it needs itself."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        waiting = [Requirement(line) for line in tomllib.load(file)["dependency-groups"]["serving"]]
    found, seen = set(), set()
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        found.add(canonicalize_name(requirement.name))
        for one in map(Requirement, distribution(requirement.name).requires or ()):
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in requirement.extras or {""}):
                waiting.append(one)
    assert found == set(locked(REQUIREMENTS)), "run `make lock`"


def test_its_version_is_the_content_of_the_model(bento: Path, model_dir: Path, tmp_path: Path) -> None:
    document = yaml.safe_load((bento / "bento.yaml").read_text())
    assert (document["name"], document["version"]) == ("wbc", bento_version(model_dir))
    assert document["labels"]["accuracy"] == "0.9000"
    write_model(tmp_path / "same")
    assert bento_version(tmp_path / "same") == document["version"]
    write_model(tmp_path / "other", temperature=2.0)
    assert bento_version(tmp_path / "other") != document["version"]


def test_building_again_gives_the_same_bytes_and_leaves_nothing_behind(bento: Path, model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "bento"
    out.mkdir(parents=True)
    (out / "stale").write_text("of an older Bento")
    assert build_bento(model_dir, out, METRICS) == out
    first = {str(path.relative_to(bento)): path.read_bytes() for path in bento.rglob("*") if path.is_file()}
    second = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert first == second
    assert [path.name for path in out.parent.iterdir()] == ["bento"]


def test_a_damaged_model_is_not_packaged(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(WbcError, match="damaged"):
        build_bento(tmp_path / "model", tmp_path / "bento")
    assert not (tmp_path / "bento").exists()


@dataclass
class Instruction:
    name: str
    text: str

    def words(self) -> list[str]:
        """The words of an instruction in exec form."""
        words: list[str] = json.loads(self.text.removeprefix("CMD ") if self.name == "HEALTHCHECK" else self.text)
        return words


def instructions() -> list[Instruction]:
    """The Dockerfile's instructions, continuation lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(" ", 1)) for line in joined.splitlines()]


def one(name: str) -> Instruction:
    """The last instruction of a name."""
    return [instruction for instruction in instructions() if instruction.name == name][-1]


def test_the_dockerfile_keeps_its_promises() -> None:
    assert [instruction.name for instruction in instructions()].count("FROM") == 2
    bases = [instruction.text.split()[0] for instruction in instructions() if instruction.name == "FROM"]
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base) for base in bases)
    assert int(one("USER").text) > 0
    assert "/readyz" in one("HEALTHCHECK").text
    assert one("CMD").words()[:3] == ["python", "-m", "serving.run"]
    assert not re.search(r"WBC_API_KEYS=|password|token", "\n".join(i.text for i in instructions()), re.IGNORECASE)
    copied = [i.text for i in instructions() if i.name == "COPY" and "--from" not in i.text]
    assert all(text.startswith("${BENTO}") for text in copied), "only the Bento goes into the image"
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


@pytest.fixture(scope="module")
def python(bento: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of the image's virtual environment: made by the Dockerfile's own RUN, or that of the tests."""
    if not WHOLE:
        return sys.executable
    root = tmp_path_factory.mktemp("builder")
    line = next(i.text for i in instructions() if i.name == "RUN" and "venv" in i.text)
    line = line.replace("/tmp/requirements.txt", str(bento / "env/python/requirements.txt"))  # noqa: S108
    line = line.replace("/opt/venv", str(root / "venv"))
    for command in line.split(" && "):
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        subprocess.run(words, check=True, env=clean_environment(), timeout=900)
    return str(root / "venv" / "bin" / "python")


@pytest.mark.slow
def test_the_container_serves_with_the_bentos_own_code(bento: Path, python: str, tmp_path: Path) -> None:
    """CMD and HEALTHCHECK of the Dockerfile, from a folder outside the project, with the Bento's code marked as its own."""
    marked = tmp_path / "srv" / "bento"
    shutil.copytree(bento, marked)
    module = marked / "src" / "wbc_model" / "__init__.py"
    module.write_text(module.read_text().replace('__version__ = "', '__version__ = "bento-'))
    port = free_port()

    def mapped(words: list[str]) -> list[str]:
        return [python if w == "python" else w.replace("/srv/bento", str(marked)).replace("3000", str(port)) for w in words]

    variables = dict(item.split("=", 1) for item in shlex.split(one("ENV").text))
    variables = {name: value for name, value in variables.items() if name not in ("PATH", "XDG_CACHE_HOME")}
    environment = clean_environment(**variables, PYTHONPROFILEIMPORTTIME="1", WBC_API_KEYS=KEY, HOME=str(tmp_path / "home"))
    folder = Path(one("WORKDIR").text.replace("/srv/bento", str(marked)))
    with started(mapped(one("CMD").words()), port, tmp_path, environment, folder) as server:
        headers = {"X-API-Key": KEY}
        assert httpx.get(f"{server.url}/v1/openapi.json", headers=headers).json()["info"]["version"].startswith("bento-")
        answer = httpx.post(f"{server.url}/v1/classify", files=form(of_class("Eosinophil")), headers=headers, timeout=30)
        assert answer.json()["results"][0]["label"] == "Eosinophil"
        assert httpx.get(f"{server.url}/v1/model").status_code == 401
        check = Instruction("HEALTHCHECK", re.sub(r"^.*?(?=CMD )", "", one("HEALTHCHECK").text))
        assert subprocess.run(mapped(check.words()), env=clean_environment(), timeout=30, check=False).returncode == 0
    assert server.process.returncode == 0, "SIGTERM must reach the server"
    assert subprocess.run(mapped(check.words()), capture_output=True, timeout=30, check=False).returncode != 0
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", server.log.read_text(), re.MULTILINE))
    assert {"serving.inference.classify", "wbc_model.core.images", "openvino"} <= imported
    assert not {name for name in imported if name.partition(".")[0] in ("torch", "torchvision", "flows", "mlflow", "pandas")}
    assert not (tmp_path / "home" / "bentoml").exists()


def test_plain_bentoml_serve_takes_the_bento_and_listens_on_loopback_only(bento: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-P", "-m", "bentoml", "serve", str(bento), "--port", str(port)]
    environment = clean_environment(BENTOML_HOME=str(tmp_path / "home"))
    with started(command, port, tmp_path, environment, tmp_path) as server:
        assert httpx.get(f"{server.url}/v1/model").json()["version"] == "tiny-1"
        listening = _listening(port)
    assert listening == {"0100007F"}


def _listening(port: int) -> set[str]:
    """Addresses, in the kernel's hexadecimal, on which somebody listens at a port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}


DOCKER = """#!/bin/sh
case "$1" in
    version) echo '"27.0.0"' ;;
    build) for last; do :; done; cp -rL "$last" "$CONTEXT" && echo "$*" > "$CONTEXT/command" ;;
esac
"""


def bentoml(*arguments: str, folder: Path, **environment: str) -> str:
    """What a command of BentoML's says, in a home of its own."""
    values = clean_environment(BENTOML_HOME=str(folder / "home"), BENTOML_DO_NOT_TRACK="True", **environment)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bentoml", *arguments], cwd=folder, env=values, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_bentomls_own_commands_take_the_bento(bento: Path, tmp_path: Path) -> None:
    """`serve`, `build` and `containerize`, as docs/stack.md has them. There is no Docker: a stand-in for it keeps the context
    and the Dockerfile that it is given to build from."""
    shutil.copytree(bento, tmp_path / "build/bento")
    bentoml("build", "build/bento/src", folder=tmp_path)
    [built] = [path.parent for path in (tmp_path / "home/bentos/wbc").glob("*/bento.yaml")]
    for part in ("src", "env/python"):
        first, again = (
            {str(path.relative_to(root)): path.read_bytes() for path in (root / part).rglob("*") if path.is_file()}
            for root in (bento, built)
        )
        assert first == again

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").write_text(DOCKER)
    (tmp_path / "bin/docker").chmod(0o755)
    context = tmp_path / "context"
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    said = bentoml("containerize", "wbc:latest", folder=tmp_path, PATH=path, CONTEXT=str(context))
    assert "Successfully built Bento container" in said
    assert (context / "command").read_text().startswith("build --tag wbc:")
    dockerfile = (context / "env/docker/Dockerfile").read_text()
    assert "env/python/requirements.txt" in dockerfile
    assert re.search(r"^USER bentoml$", dockerfile, re.MULTILINE)
    assert (context / "src/model/model.onnx").read_bytes() == (bento / "src/model/model.onnx").read_bytes()

    port = free_port()
    command = [sys.executable, "-P", "-m", "bentoml", "serve", f"{tmp_path}/build/bento", "--port", str(port)]
    environment = clean_environment(BENTOML_HOME=str(tmp_path / "home"), WBC_API_KEYS=KEY)
    with started(command, port, tmp_path, environment, tmp_path) as server:
        answer = httpx.post(
            f"{server.url}/v1/classify", files=form(of_class("Eosinophil")), headers={"X-API-Key": KEY}, timeout=30
        )
        assert answer.json()["results"][0]["label"] == "Eosinophil"
