"""Links to the code that the workspace runs by. DVC looks through them, so that `dvc status` and `dvc repro` see a change.

`models/installed` holds a link to each of our packages. For each package of others that a number depends on, it holds a link to a
file that differs in each version. The stage `code` has them as outputs: where what lies behind them has changed, it runs again,
and only then. Without links it would have to run always, and `dvc status` would always say so. See docs/decisions/006.
"""

import contextlib
import csv
import functools
import os
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import Final

from flows.pipeline.fingerprint import STAGES
from wbc_model.code_version import ROOMS, ROOT
from wbc_model.core.files import write_atomic

FOLDER: Final = "models/installed"
PACKAGES: Final = "packages"
WEIGHTS: Final = "init_weights"
NOTHING: Final = ""  # what stands where there is nothing to link to


def link_code(workspace: Path, weights: Path | None) -> None:
    """Make the links, each to where its code lies now; `weights` is the file that a training begins with."""
    folder = workspace / FOLDER
    write_atomic(folder / ".gitignore", "*\n")  # each machine has its own
    relink(workspace)
    for package in _others():
        _put(folder / PACKAGES / package, _telling_file(package))
    _put(folder / WEIGHTS, weights)


def relink(workspace: Path) -> None:
    """Put right the links of ours that lead nowhere or elsewhere, as in a copy of the workspace or after a move of the
    installation: DVC fails on them. Does nothing where there are no links: the stage `code` makes them."""
    folder = workspace / FOLDER
    if not folder.is_dir():
        return
    with contextlib.suppress(PermissionError):  # who may only read here runs no stage
        for room in ROOMS:
            _put(folder / room, ROOT / room)
        for link in [folder / WEIGHTS, *(folder / PACKAGES / package for package in _others())]:
            if link.is_symlink() and not link.exists():
                _put(link, None)


def _others() -> list[str]:
    return sorted({package for entry in STAGES.values() for package in entry.packages})


def _put(link: Path, target: Path | None) -> None:
    """Have a link to `target` at `link` in one step, or an empty file where there is nothing to lead to."""
    if target is None or not target.exists():
        if link.is_symlink() or not link.exists():
            link.unlink(missing_ok=True)
            write_atomic(link, NOTHING)
        return
    if link.is_symlink() and link.readlink() == target:
        return
    if link.is_dir() and not link.is_symlink():  # a copy that was made through the link
        shutil.rmtree(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)


@functools.cache
def _telling_file(package: str) -> Path | None:
    """A file of a package whose content is another in every version and whose path is not: one that names the version, else
    compiled code; None where the package is not installed."""
    try:
        known = distribution(package)
    except PackageNotFoundError:
        return None
    # From the text: `known.files` makes an object of each file, and torch has 14,702.
    names = [row[0] for row in csv.reader((known.read_text("RECORD") or "").splitlines()) if row and row[0].count("/") <= 2]
    files = [file for file in map(PurePosixPath, names) if not file.parts[0].endswith((".dist-info", ".."))]
    named = sorted(
        (file for file in files if file.suffix in (".py", ".info")), key=lambda file: ("version" not in file.name, file)
    )
    for file in named:
        path = Path(str(known.locate_file(file)))
        if path.is_file() and known.version in path.read_text(encoding="utf-8", errors="replace"):
            return path
    compiled = [Path(str(known.locate_file(file))) for file in files if file.suffix == ".so"]
    return min((path for path in compiled if path.is_file()), key=lambda path: (len(path.parts), str(path)), default=None)
