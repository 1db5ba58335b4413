"""The code as an input of the pipeline: one hash a stage, so that a change of the learner makes the stages run again.

A stage's fingerprint covers its function, the functions and modules of ours that it imports, directly or not, and the
versions of the packages that its result depends on. Comments and layout do not count. See docs/decisions/006.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from wbc_model.core.files import file_sha256, write_atomic
from wbc_model.params import read_params

ROOMS: Final = ("wbc_model", "flows", "serving")
_NUMERIC: Final = ("numpy", "pillow", "torch", "torchvision", "lightning-fabric", "scikit-learn", "scipy")


@dataclass(frozen=True)
class Entry:
    """Where a stage's code starts: `module:function`, packages that it takes along whole (with the files in them that are no
    Python), and versions that matter."""

    function: str
    whole: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


STAGES: Final = {
    "validate": Entry("flows.pipeline.checks:validate", packages=("great-expectations", "jinja2", "numpy", "pandas", "pillow")),
    "train": Entry("flows.pipeline.stages:train", packages=(*_NUMERIC, "safetensors", "onnx", "lightly")),
    "evaluate": Entry("flows.pipeline.stages:evaluate", packages=(*_NUMERIC, "matplotlib")),
    "query": Entry("flows.pipeline.stages:query", packages=_NUMERIC),
    "package": Entry(
        "flows.pipeline.package:package", ("serving",), ("bentoml", "openvino", "nncf", "numpy", "pillow", "fastapi")
    ),
}

# What the gate decides by (flows/retraining/gate.py remembers its answers): no stage of the pipeline.
GATE: Final = (
    Entry("flows.retraining.gate:decide", packages=("numpy", "pandas")),
    Entry("wbc_model.evaluation.evaluate:predict_directory", packages=_NUMERIC),
)


def source_path(module: str, root: Path) -> Path | None:
    """The file of one of our modules or packages, or None where there is no such file."""
    stem = root.joinpath(*module.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


# Stages share most of their modules, and the gate asks again and again. Each file is parsed, walked and printed once; the keys
# are its content and the tree made of it, which nobody changes.
@functools.cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


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


def imported_modules(tree: ast.Module, root: Path) -> set[str]:
    """Our modules that the statements of `tree` import, wherever in it."""
    return {name for name in _named_imports(tree) if source_path(name, root)}


def closure(modules: set[str], root: Path) -> dict[str, ast.Module]:
    """These modules and all of ours that they import, with their syntax trees; a package brings its `__init__`."""
    trees: dict[str, ast.Module] = {}
    waiting = set(modules)
    while waiting:
        module = waiting.pop()
        path = source_path(module, root)
        if module in trees or path is None:
            continue
        trees[module] = _parsed(path.read_text(encoding="utf-8"))
        waiting |= imported_modules(trees[module], root)
        if "." in module:
            waiting.add(module.rpartition(".")[0])
    return trees


def _binds(node: ast.stmt) -> set[str]:
    """The names that a top-level statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store)}


def reachable(tree: ast.Module, function: str) -> list[ast.stmt]:
    """The top-level statements of a module that `function` uses by name, directly or not, in the order of the file."""
    wanted, chosen = {function}, set[int]()
    while True:
        new = [i for i, node in enumerate(tree.body) if i not in chosen and _binds(node) & wanted]
        if not new:
            return [tree.body[i] for i in sorted(chosen)]
        chosen.update(new)
        for i in new:
            wanted |= {child.id for child in ast.walk(tree.body[i]) if isinstance(child, ast.Name)}


def _parts(entry: Entry, root: Path) -> Iterator[str]:
    module, function = entry.function.split(":")
    path = source_path(module, root)
    if path is not None:
        body = ast.Module(reachable(_parsed(path.read_text(encoding="utf-8")), function), [])
        yield f"{entry.function}\n{ast.unparse(body)}"
        files = [file for package in entry.whole for file in sorted((root / package).rglob("*")) if file.is_file()]
        python = {".".join(file.relative_to(root).with_suffix("").parts) for file in files if file.suffix == ".py"}
        whole = {name.removesuffix(".__init__") for name in python}
        for name, tree in sorted(closure(imported_modules(body, root) | whole, root).items()):
            yield f"{name}\n{_printed(tree)}"
        for file in files:
            if file.suffix not in (".py", ".pyc"):
                yield f"{file.relative_to(root)}\n{hashlib.sha256(file.read_bytes()).hexdigest()}"
    for package in entry.packages:
        try:
            yield f"{package}=={version(package)}"
        except PackageNotFoundError:
            yield f"{package} is not installed"


def fingerprint(entry: Entry, root: Path | None = None) -> str:
    """Sixteen hex digits of a stage's code; `root` is the folder that holds `wbc_model`, `flows` and `serving`."""
    root = root or Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for part in _parts(entry, root):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def write_fingerprints(workspace: Path) -> dict[str, str]:
    """Write `models/code.json`, the fingerprint of each stage, and the links by which DVC sees when these are others. That of
    `train` has the weights in it that a training begins with: params.yaml names their file only."""
    from flows.pipeline.installed import link_code

    values = {stage: fingerprint(entry) for stage, entry in STAGES.items()}
    weights = read_params(workspace / "params.yaml").model.init_weights
    if weights and (workspace / weights).is_file():  # one that is missing is named when it is read
        content = values["train"] + file_sha256(workspace / weights)
        values["train"] = hashlib.sha256(content.encode()).hexdigest()[:16]
    link_code(workspace, (workspace / weights).resolve() if weights else None)
    write_atomic(workspace / "models/code.json", json.dumps(values, indent=2) + "\n")
    return values
