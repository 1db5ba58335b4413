"""Nothing is there that nobody uses: what only its own test calls is read, repaired and moved for nothing."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("wbc_model", "flows", "serving", "studies", "docs")
CODE = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
PAGE = sorted((ROOT / "serving/page").glob("*.js"))
CALLED_BY_NAME = {"_load_pyfunc"}  # MLflow's name for what loads a model


def defined(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The names that a module defines, with their lines. What has a decorator is found by it: commands, routes, strategies."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.decorator_list:
            yield node.name, node.lineno
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        yield from ((target.id, node.lineno) for target in targets if isinstance(target, ast.Name))


def passed_over(tree: ast.Module) -> Iterator[str]:
    """Parameters that a function never reads, where its callers alone say what they pass: it is called, and handed to nobody."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.decorator_list}
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    handed = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called}
    for name, node in functions.items():
        if name.startswith("_") and name not in handed and name not in CALLED_BY_NAME:
            read = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            yield from (f"{name}: {one.arg}" for one in arguments if one.arg not in read and not one.arg.startswith("_"))


def test_every_name_is_used() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in CODE}
    words = Counter(word for text in texts.values() for word in re.findall(r"\w+", text))
    unused = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, text in texts.items()
        for name, line in defined(ast.parse(text))
        if words[name] < 2 and name not in CALLED_BY_NAME
    ]
    assert unused == []


def test_every_parameter_is_read() -> None:
    found = {str(path.relative_to(ROOT)): list(passed_over(ast.parse(path.read_text(encoding="utf-8")))) for path in CODE}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize("path", PAGE, ids=lambda path: path.name)
def test_every_import_and_export_of_the_page_is_used(path: Path) -> None:
    own = path.read_text(encoding="utf-8")
    others = "\n".join(other.read_text(encoding="utf-8") for other in PAGE if other != path)
    exported = re.findall(r"^export (?:async )?(?:function|const|let|class)\*? (\w+)", own, re.MULTILINE)
    assert [name for name in exported if not re.search(rf"\b{name}\b", others)] == []
    imported = [name.split()[-1] for names in re.findall(r"^import \{([^}]*)\}", own, re.MULTILINE) for name in names.split(",")]
    body = re.sub(r"^import .*$", "", own, flags=re.MULTILINE)
    assert [name for name in imported if not re.search(rf"\b{name}\b", body)] == []


def test_the_rules_find_what_they_are_for() -> None:
    tree = ast.parse(
        "ALONE: int = 1\n@route\ndef found(): ...\ndef _one(a, b): return a\n_one(1, 2)\ndef _two(a): ...\nmap(_two)"
    )
    assert [name for name, _ in defined(tree)] == ["ALONE", "_one", "_two"]
    assert list(passed_over(tree)) == ["_one: b"]
