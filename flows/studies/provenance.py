"""Where a study's numbers come from: the learner's code, and the commit."""

import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from wbc_model.code_version import ROOT, code_version

if TYPE_CHECKING:
    from wbc_model.studies.records import Provenance


# code that no number comes from
_NO_NUMBERS: Final = ("wbc_model.params", "wbc_model.core.errors", "wbc_model.core.files", "wbc_model.core.lock")


def code_of(function: str) -> str:
    """The version of a function's code, without the modules that no number comes from: a new parameter or file helper is no
    reason to train again. Versions of packages are written beside a result, and are not part of its name. So records can go from
    one machine to another."""
    return code_version(function, apart_from=_NO_NUMBERS)


def provenance() -> "Provenance":
    """What the learner's code is, here and now."""
    import torch

    from wbc_model.studies.records import Provenance

    train = code_of("wbc_model.studies.learner:fit") + code_of("wbc_model.studies.learner:evaluate")
    query = code_of("wbc_model.studies.learner:ask") + code_of("wbc_model.studies.learner:untrained")
    facts = {"torch": torch.__version__, "commit": _commit(), "code": train[:8] + query[:8]}
    return Provenance(train, query, facts)


def _commit() -> str:
    """The commit of the project that this code is of; `-dirty` when the learner differs from it."""
    if shutil.which("git") is None:
        return ""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode or not (ROOT / "pyproject.toml").exists():
        return ""
    changed = subprocess.run([*git, "status", "--porcelain", "--", "wbc_model"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
