"""The version of the code that a result comes from: what is kept under it is of no use to different code.

It covers a function, what that uses in its module by name, and all modules of ours that are imported from there, directly or
not. It is taken from the syntax tree without doc strings. A comment, a doc string or a line break makes no new version. Neither
does the number of the release, nor an import that only a type checker follows. See docs/decisions/045.
"""

import ast
import functools
import hashlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Final

ROOMS: Final = ("wbc_model", "flows", "serving")
ROOT: Final = Path(__file__).resolve().parents[1]  # the folder that holds the rooms
DIGITS: Final = 16


def code_version(function: Callable[..., Any] | str, apart_from: Collection[str] = (), root: Path = ROOT) -> str:
    """Sixteen hex digits of the code that a function or class depends on.

    `function`: itself, or `module:name` where importing it would load too much; `apart_from`: modules that do not count, for a
    result that cannot come from them. Raises LookupError where the name is not in the module, or the module not under `root`.
    """
    trees = modules_behind(function, root)
    return _digest(f"{name}\n{_printed(tree)}" for name, tree in sorted(trees.items()) if name not in apart_from)


def package_version(package: str, root: Path = ROOT) -> str:
    """Sixteen hex digits of a whole package: its modules, what of ours these import, and its files that are no Python."""
    files = [file for file in sorted((root / package).rglob("*")) if file.is_file() and file.suffix != ".pyc"]
    modules = {".".join(file.relative_to(root).with_suffix("").parts) for file in files if file.suffix == ".py"}
    trees = _closure({module.removesuffix(".__init__") for module in modules}, root)
    others = {str(file.relative_to(root)): file for file in files if file.suffix != ".py"}
    parts = [f"{name}\n{_printed(tree)}" for name, tree in sorted(trees.items())]
    return _digest([*parts, *(f"{name}\n{hashlib.sha256(file.read_bytes()).hexdigest()}" for name, file in others.items())])


def modules_behind(function: Callable[..., Any] | str, root: Path = ROOT) -> dict[str, ast.Module]:
    """The modules of ours that a function depends on, without their doc strings. Under `module:name` it has the statements of the
    function's own module that the function reaches. Raises LookupError as `code_version` does."""
    name = function if isinstance(function, str) else f"{function.__module__}:{function.__qualname__.split('.')[0]}"
    module, _, own = name.partition(":")
    path = _source(module, root)
    if path is None:
        raise LookupError(f"{name}: {module} is no module under {root}")
    statements = _reachable(_parsed(path.read_text(encoding="utf-8")), own)
    if not statements:
        raise LookupError(f"{name}: {path} has no {own}")
    reached = ast.Module(statements, [])
    return {name: reached, **_closure(_named_imports(reached), root)}


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:DIGITS]


def _source(module: str, root: Path) -> Path | None:
    """The file of a module or package, or None where there is no such file."""
    stem = root.joinpath(*module.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


class _Bare(ast.NodeTransformer):
    """Takes out what no result comes from: strings that stand alone, such as doc strings, what only a type checker reads, and the
    number of the release."""

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | None:
        named = any(isinstance(target, ast.Name) and target.id == "__version__" for target in node.targets)
        return None if named else node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


# Functions share most of their modules, and the gate asks again and again. Each file is parsed, walked and printed once. The keys
# are its content and the tree made of it, which nobody changes.
@functools.cache
def _parsed(text: str) -> ast.Module:
    return _Bare().visit(ast.parse(text))  # type: ignore[no-any-return]


@functools.cache
def _printed(tree: ast.Module) -> str:
    return ast.unparse(tree)


@functools.cache
def _named_imports(tree: ast.Module) -> frozenset[str]:
    """What of ours the statements of `tree` import, wherever in it: modules, and names in them."""
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(name for name in found if name.split(".")[0] in ROOMS)


def _closure(names: Collection[str], root: Path) -> dict[str, ast.Module]:
    """Those of these names that are modules and all of ours that they import, with their syntax trees; a package brings its
    `__init__`."""
    trees: dict[str, ast.Module] = {}
    seen, waiting = set[str](), set(names)
    while waiting:
        seen.add(name := waiting.pop())
        path = _source(name, root)
        if path is None:  # what a module holds
            continue
        trees[name] = _parsed(path.read_text(encoding="utf-8"))
        waiting |= {*_named_imports(trees[name]), name.rpartition(".")[0]} - seen - {""}
    return trees


def _binds(node: ast.stmt) -> set[str]:
    """The names that a top-level statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store)}


def _reachable(tree: ast.Module, name: str) -> list[ast.stmt]:
    """The top-level statements of a module that what is called `name` uses by name, directly or not, in the order of the file."""
    wanted, chosen = {name}, set[int]()
    while True:
        new = [i for i, node in enumerate(tree.body) if i not in chosen and _binds(node) & wanted]
        if not new:
            return [tree.body[i] for i in sorted(chosen)]
        chosen.update(new)
        for i in new:
            wanted |= {child.id for child in ast.walk(tree.body[i]) if isinstance(child, ast.Name)}
