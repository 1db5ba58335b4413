"""The rooms of the design: flows -> wbc_model <- serving; flows -> serving; and what may be imported in each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from flows.pipeline.package import PURE_MODULES

ROOT = Path(__file__).parents[2]
ALLOWED = {"wbc_model": {"wbc_model"}, "serving": {"wbc_model", "serving"}, "flows": {"wbc_model", "serving", "flows"}}
OUTSIDE_WORLD = {"prefect", "dvc", "mlflow", "great_expectations", "bentoml", "fastapi"}
PURE = PURE_MODULES


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


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_arrows_point_one_way(room: str) -> None:
    assert sources(room)
    for path in sources(room):
        rooms = {name.split(".")[0] for name in imports(path)} & {*ALLOWED, "tests", "studies"}
        assert rooms <= ALLOWED[room], f"{room}/{path.name} imports {rooms - ALLOWED[room]}"


def test_the_learner_knows_nothing_of_the_outside_world() -> None:
    for path in sources("wbc_model"):
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & OUTSIDE_WORLD, f"wbc_model/{path.name} imports {tops & OUTSIDE_WORLD}"


def test_the_service_uses_the_pure_parts_of_the_learner_only() -> None:
    for path in sources("serving"):
        names = {name.split(".")[1] for name in imports(path, when_loaded=True) if name.startswith("wbc_model.")}
        used = {name for name in names if (ROOT / f"wbc_model/{name}.py").exists()}
        assert used <= set(PURE), f"serving/{path.name} imports {used - set(PURE)} of wbc_model"


# What stands on the roof: the command line with `wbc serve` and `wbc demo`, packaging, and a measurement of what is answered.
SEES_SERVICE = ("cli.py", "demo.py", "package.py", "quantise.py", "serve.py")


def test_only_the_command_line_sees_all_three_rooms() -> None:
    for path in sources("flows"):
        rooms = {name.split(".")[0] for name in imports(path)} & set(ALLOWED)
        assert "serving" not in rooms or path.name in SEES_SERVICE, f"flows/{path.name} imports serving"


def test_pure_modules_load_without_torch() -> None:
    modules = [f"wbc_model.{name}" for name in PURE if name != "__init__"]
    code = f"import sys, {', '.join(modules)}; print([m for m in ('torch', 'pandas', 'prefect') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"
