"""Where a study's numbers come from: the learner's code, and the commit."""

import ast
import functools
import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flows.pipeline.fingerprint import closure, imported_modules, reachable, source_path

if TYPE_CHECKING:
    from wbc_model.studies.runner import Provenance


_NO_NUMBERS: Final = ("wbc_model.params", "wbc_model.core.errors", "wbc_model.core.files")  # code that no number comes from


@functools.cache
def code_of(function: str) -> str:
    """The fingerprint of a function's code, as that of a stage (decision 006), with two differences: versions of packages are
    written beside a result and make no other one of it, so that records can go from one machine to another; and a new
    parameter or file helper is no reason to train again."""
    root = Path(__file__).resolve().parents[2]
    module, name = function.split(":")
    path = source_path(module, root)
    assert path is not None  # noqa: S101 - it is a module of ours
    body = ast.Module(reachable(ast.parse(path.read_text(encoding="utf-8")), name), [])
    trees = {"": body, **closure(imported_modules(body, root), root)}
    digest = hashlib.sha256()
    for place, tree in sorted(trees.items()):
        if place not in _NO_NUMBERS:
            digest.update(f"{place}\n{ast.unparse(tree)}\0".encode())
    return digest.hexdigest()[:16]


def provenance() -> "Provenance":
    """What the learner's code is, here and now."""
    import torch

    from wbc_model.studies.runner import Provenance

    train = code_of("wbc_model.studies.runner:fit") + code_of("wbc_model.studies.runner:evaluate")
    query = code_of("wbc_model.studies.runner:ask") + code_of("wbc_model.studies.runner:untrained")
    facts = {"torch": torch.__version__, "commit": _commit(), "code": train[:8] + query[:8]}
    return Provenance(train, query, facts)


def _commit() -> str:
    """The commit of the project that this code is of; `-dirty` when the learner differs from it."""
    if shutil.which("git") is None:
        return ""
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode or not (root / "pyproject.toml").exists():
        return ""
    changed = subprocess.run([*git, "status", "--porcelain", "--", "wbc_model"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
