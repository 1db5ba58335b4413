"""The rooms of the design and the packages in them: what each may import, and what loading it may bring."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("wbc_model", "serving", "flows")
OUTSIDE_WORLD = {"prefect", "dvc", "mlflow", "great_expectations", "bentoml", "fastapi"}
MOST_MODULES = 14
CORE = sorted(path.stem for path in (ROOT / "wbc_model/core").glob("*.py") if path.stem != "__init__")

# What each package imports, wherever in its modules; `.` is its own room, `.core` a package in that. Each stands below all that
# it imports, so that the arrows go one way.
PACKAGES = {
    "wbc_model.core": "",
    "wbc_model": ".core",
    "wbc_model.rendering": ".core",
    "wbc_model.network": ".core",
    "wbc_model.cells": ". .core",
    "wbc_model.checks": ". .core .cells",
    "wbc_model.sources": ".core .cells",
    "wbc_model.evaluation": ".core .network .cells",
    "wbc_model.acquisition": ". .core .network .cells",
    "wbc_model.training": ". .core .network .cells .evaluation",
    "wbc_model.studies": ". .core .network .cells .evaluation .acquisition .training",
    "serving.contract": "wbc_model.core",
    "serving.inference": ".contract wbc_model.core wbc_model.network",
    "serving.security": ".contract wbc_model.core",
    "serving.formats": ".contract wbc_model.core",
    "serving.reports.migrations": "wbc_model.core",
    "serving.reports": ".contract .inference .security .formats .reports.migrations wbc_model.core",
    "serving.labelling": ".contract .security .reports wbc_model.core",
    "serving.worklist": ".contract .reports",
    "serving.watch": ".contract .inference .reports",
    "serving.upkeep": ".contract .security .reports .watch wbc_model.core",
    "serving.page": "",
    "serving.http": ".contract .inference .security .formats .reports .labelling .worklist .watch .upkeep .page wbc_model.core",
    "serving": ".contract .inference .security .reports .upkeep .http wbc_model.core",
    "flows.exchange": "wbc_model.core wbc_model.cells",
    "flows": ".exchange serving.contract wbc_model wbc_model.core wbc_model.cells",
    "flows.pipeline": ". .exchange serving.inference "
    "wbc_model wbc_model.core wbc_model.network wbc_model.cells wbc_model.checks wbc_model.sources wbc_model.evaluation "
    "wbc_model.acquisition wbc_model.training",
    "flows.shards": "wbc_model wbc_model.core",
    "flows.registry": ". .pipeline serving.contract serving.inference "
    "wbc_model wbc_model.core wbc_model.network wbc_model.cells wbc_model.checks wbc_model.evaluation wbc_model.training",
    "flows.labelling": ". .exchange .pipeline .registry serving.contract serving.labelling serving.reports serving.security "
    "serving.upkeep wbc_model wbc_model.core wbc_model.network wbc_model.cells wbc_model.evaluation wbc_model.acquisition",
    "flows.retraining": ". .shards .exchange .pipeline .registry .labelling serving.contract serving.labelling serving.reports "
    "wbc_model wbc_model.core wbc_model.rendering wbc_model.network wbc_model.cells wbc_model.sources wbc_model.evaluation "
    "wbc_model.acquisition",
    "flows.sites": ". .exchange .pipeline .registry "
    "wbc_model wbc_model.core wbc_model.network wbc_model.cells wbc_model.evaluation wbc_model.acquisition wbc_model.training",
    "flows.studies": ". .shards .exchange .pipeline "
    "wbc_model wbc_model.core wbc_model.rendering wbc_model.cells wbc_model.sources wbc_model.acquisition wbc_model.studies",
    "flows.monitoring": ". .pipeline .labelling .retraining .sites serving.contract serving.labelling serving.reports "
    "serving.security serving.watch wbc_model wbc_model.core wbc_model.cells wbc_model.checks",
    "flows.cli": ". .shards .pipeline .registry .retraining .sites .studies .monitoring serving serving.contract "
    "serving.security serving.reports serving.upkeep wbc_model wbc_model.core wbc_model.cells wbc_model.sources "
    "wbc_model.acquisition",
}


def in_full(name: str, package: str) -> str:
    """An entry of the table without its abbreviation."""
    room = package.partition(".")[0]
    return room if name == "." else room + name if name.startswith(".") else name


TABLE = {package: {in_full(name, package) for name in names.split()} for package, names in PACKAGES.items()}


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def package_of(file: Path) -> str:
    """The package that a file is in: the nearest folder above it with an `__init__`."""
    folder = next(folder for folder in file.parents if (folder / "__init__.py").is_file())
    return ".".join(folder.relative_to(ROOT).parts)


MODULES = {file: package_of(file) for room in ROOMS for file in sources(room) if file.stem != "__init__"}
IMPORTABLE = {".".join(file.relative_to(ROOT).with_suffix("").parts): package for file, package in MODULES.items()}


def imports(path: Path, when_loaded: bool = False) -> set[str]:
    """Every module that a file imports, dotted: wherever in it, or only what loading it imports."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if when_loaded else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} line {node.lineno}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def imported_packages(package: str) -> set[str]:
    names = {name for room in ROOMS for file in sources(room) if package_of(file) == package for name in imports(file)}
    return {IMPORTABLE[name] for name in names & IMPORTABLE.keys()} - {package}


def test_the_table_has_all_packages_and_no_other() -> None:
    assert set(TABLE) == {package_of(file) for room in ROOMS for file in sources(room)}


@pytest.mark.parametrize("package", TABLE)
def test_a_package_imports_what_the_table_says_and_nothing_else(package: str) -> None:
    assert imported_packages(package) == TABLE[package]


def test_arrows_point_one_way() -> None:
    order = list(TABLE)
    for package, imported in TABLE.items():
        above = set(order[order.index(package) :])
        assert not imported & above, f"{package} imports {imported & above}"


def test_no_package_is_a_heap() -> None:
    counts = {package: list(MODULES.values()).count(package) for package in TABLE}
    assert {package: count for package, count in counts.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("package", TABLE)
def test_a_package_says_in_two_sentences_what_it_is_and_imports(package: str) -> None:
    said = ast.get_docstring(ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")))
    what, imported = re.split(r"(?<=\.)\s+", said or "")
    assert what
    assert "import" in imported


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_imported_from_tests_or_studies(room: str) -> None:
    for path in sources(room):
        assert not {name.partition(".")[0] for name in imports(path)} & {"tests", "studies"}, path


def test_the_learner_knows_nothing_of_the_outside_world() -> None:
    for path in sources("wbc_model"):
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & OUTSIDE_WORLD, f"wbc_model/{path.name} imports {tops & OUTSIDE_WORLD}"


def test_the_service_loads_the_core_of_the_learner_only() -> None:
    for path in sources("serving"):
        loaded = {IMPORTABLE[name] for name in imports(path, when_loaded=True) & IMPORTABLE.keys()}
        assert {name for name in loaded if name.startswith("wbc_model")} <= {"wbc_model.core"}, path


def test_the_core_loads_without_torch() -> None:
    modules = ", ".join(f"wbc_model.core.{name}" for name in CORE)
    code = f"import sys, {modules}; print([m for m in ('torch', 'pandas', 'prefect') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


def test_a_training_and_an_evaluation_load_no_library_that_they_do_not_use() -> None:
    """Each of them takes a second or more, in every stage `train` or `evaluate`."""
    unused = ["torchvision", "torchmetrics", "scipy.signal", "scipy.stats", "sklearn", "mlflow", "prefect"]
    code = (
        f"import sys, wbc_model.training.train; print([m for m in {[*unused, 'matplotlib']} if m in sys.modules])\n"
        f"import wbc_model.evaluation.evaluate; print([m for m in {unused} if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.split() == ["[]", "[]"]


@pytest.mark.parametrize("command", ["retrain", "schedule"])
def test_prefect_is_not_loaded_before_its_settings_are_in_the_environment(command: str, tmp_path: Path) -> None:
    """Prefect reads them once, when it is loaded. Without an address it starts a server of its own, which schedules nothing."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    code = """
import sys
from contextlib import contextmanager
from flows.retraining import prefect_api

@contextmanager
def look(workspace, scheduling=False):
    print([name for name in ("prefect",) if name in sys.modules])
    sys.exit()
    yield

prefect_api.prefect_api = look
from flows.cli.command import main
main()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    asked = [sys.executable, "-c", code, command]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert answer.stdout.strip() == "[]", answer.stderr


def test_who_starts_the_worker_of_the_service_loads_neither_routes_nor_database() -> None:
    """A service is two processes, and the first only checks: what it loads is waited for at each start."""
    unused = ("fastapi", "sqlalchemy", "openvino", "serving.http.app", "serving.worker")
    code = f"import sys, serving.run, serving.service; print([m for m in {unused} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


def test_the_flow_of_a_retraining_leaves_pytorch_to_the_stages() -> None:
    """Each stage is a process of its own. What the flow loads, it holds for the whole night."""
    modules = (
        "flows.retraining.flow, flows.retraining.gate, flows.registry.scores, flows.pipeline.package, wbc_model.network.card_page"
    )
    code = f"import sys, {modules}; print([m for m in ('torch', 'onnx', 'matplotlib', 'scipy') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"
