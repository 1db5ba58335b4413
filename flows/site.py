"""A site that was onboarded is a workspace of its own in its parent's folder `sites/NAME`, and says whose it is (decision 043).

It lies in the parent's git repository, with a DVC of its own. Tags, experiment and registered model carry the site's name, as
they share a repository or an MLflow with the parent's.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from flows.workspace import (
    RETRAINING_FILE,
    Created,
    changed_params,
    find_workspace,
    init_workspace,
    is_git_repository,
    is_workspace,
    note_after_cycle,
)
from wbc_model.core.errors import WbcError
from wbc_model.core.files import write_atomic
from wbc_model.core.written import read_written, read_yaml
from wbc_model.params import RENDERED, read_params

PARENT: Final = "parent.yaml"
REPORT: Final = "report.json"
ADAPTED: Final = "models/adapted"
# What git keeps of a site beside what it keeps of every workspace.
OF_A_SITE: Final = ("params.yaml", "dvc.yaml", PARENT, REPORT, ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore")
_IGNORED: Final = """\
# what the next `wbc onboard` makes again, and sheets that people fill in
/models/start/
/models/adapted/
/models/home/
/answers-*.csv
/data/queue.csv
/data/passed_over.csv
/data/quarantine.csv
"""
# As `wbc init` wrote it when sites had no history.
_HIDDEN: Final = ("# sites that the champion was adapted to", "/sites/")


@dataclass(frozen=True)
class Site:
    """Whose site a workspace is: its `name` as tags and registered models carry it, and the `parent` workspace."""

    name: str
    parent: Path


def site_of(workspace: Path) -> Site | None:
    """Whose site this workspace is, or None; raises WbcError where its parent.yaml is not as it was written."""
    path = workspace / PARENT
    if not path.exists():
        return None
    said = read_yaml(path)
    if not isinstance(said, dict) or set(said) != {"name", "parent"} or not all(isinstance(one, str) for one in said.values()):
        raise WbcError(
            f"{path}: it must have two lines, `name: NAME` of the site and `parent: FOLDER` of its parent, for example ../.."
        )
    if said["name"] != _plain(said["name"]):
        raise WbcError(f"{path}: the name {said['name']!r} may have letters, digits, _ and - only")
    return Site(said["name"], Path(os.path.normpath(workspace / said["parent"])))


def parent_workspace(start: Path | None = None) -> Path:
    """The workspace that takes sites in, from wherever in it or in one of its sites we stand; raises WbcError."""
    here = (start or Path.cwd()).resolve()
    workspace = next((folder for folder in (here, *here.parents) if is_workspace(folder)), None)
    site = site_of(workspace) if workspace is not None else None
    if workspace is None or site is None:
        return workspace or find_workspace(here)
    if not is_workspace(site.parent):
        raise WbcError(
            f"{workspace / PARENT} names {site.parent}, which is no workspace: write there where the parent workspace lies"
        )
    return site.parent


def complete(parent: Path, site: Path) -> Created:
    """Make the folder of a site a workspace; what is there already is kept, as by `wbc init`, and nothing is committed.

    Raises WbcError where git is told to ignore it.
    """
    made = Created(site)
    name = _plain(site.name)
    _show_to_git(parent, site, made)
    site.mkdir(parents=True, exist_ok=True)
    if not (site / PARENT).exists():
        said = {"name": name, "parent": Path(os.path.relpath(parent, site)).as_posix()}
        head = "# The workspace whose champion was adapted to this site, seen from here.\n"
        write_atomic(site / PARENT, head + yaml.safe_dump(said, sort_keys=False, allow_unicode=True))
        made.wrote.append(PARENT)
    if not (site / "params.yaml").exists():
        write_atomic(site / "params.yaml", changed_params(parent, _changes(parent, site, name))[0])
        note_after_cycle(site, 0)
        made.wrote += ["params.yaml", RETRAINING_FILE]
    more = init_workspace(site, _IGNORED, within=parent)
    return Created(site, [*made.wrote, *more.wrote], more.notes)


def _plain(name: str) -> str:
    """A name that git takes in a tag and MLflow in a model's name."""
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "site"


def _changes(parent: Path, site: Path, name: str) -> dict[str, Any]:
    """What differs in a site's params.yaml from its parent's: names of its own, and paths as seen from the site."""
    params = read_params(parent / "params.yaml")

    def seen_from_here(path: str) -> str:
        return path if Path(path).is_absolute() else Path(os.path.relpath(parent / path, site)).as_posix()

    changes: dict[str, Any] = {
        "tracking.experiment": f"{params.tracking.experiment}-{name}",
        "tracking.model_name": f"{params.tracking.model_name}-{name}",
    }
    if params.retrain.ask is not None:
        changes["retrain.ask"] = None
    if params.data.source != RENDERED:
        changes["data.source"] = seen_from_here(params.data.source)
    if params.model.init_weights is not None:
        changes["model.init_weights"] = seen_from_here(params.model.init_weights)
    return changes


def _show_to_git(parent: Path, site: Path, made: Created) -> None:
    """Take out of the parent's .gitignore how earlier versions hid sites; raises WbcError where another line hides them."""
    if not is_git_repository(parent):
        return
    path = parent / ".gitignore"
    lines = read_written(path).splitlines() if path.exists() else []
    if _HIDDEN[1] in lines:
        write_atomic(path, "".join(f"{line}\n" for line in lines if line not in _HIDDEN))
        made.wrote.append(os.path.relpath(path, site))
    asked = ["git", "-C", str(parent), "check-ignore", "--verbose", "--no-index", str(site / ".dvc")]
    rule = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.partition("\t")[0]
    if rule and not rule.split(":", 2)[2].startswith("!"):
        raise WbcError(f"git ignores {site}, by {rule}: the site's history would not be kept; take that line out")
