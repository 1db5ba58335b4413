"""Disk: what a training keeps is stored once, and `wbc gc` gives back what a policy no longer keeps (decision 040).

Models only, and what was decoded or measured of cells and is read no more. Images, pools and label logs are never deleted, of
whatever version, and whether a commit names it or not.
"""

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from flows.artifacts import CACHE, cached
from flows.registry.verdicts import ROLLED_BACK, verdicts
from flows.state import hold_lock
from flows.tracking import BEFORE, CHAMPION, open_tracker, registry_exists
from flows.workspace import environment, is_git_repository
from wbc_model.cells import decoded
from wbc_model.checks import quality
from wbc_model.core.errors import counted
from wbc_model.params import read_params

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from flows.tracking import Tracker

MODELS: Final = ("models/candidate", "build/bento")  # the outputs of stages that are large, and made again by `dvc repro`
KEEP: Final = "wbc.keep"  # a tag that people set in MLflow
LAST: Final = 5
_RUNS: Final = ".dvc/cache/runs"


# --- the policy ---------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What would be deleted: registered `versions`, the model files of MLflow's `runs`, and `objects` of DVC's cache with the
    `notes` of the runs that made them. So many bytes of the runs' files lie `elsewhere`. `lines` says it in words, `frees` is how
    many bytes it gives back."""

    versions: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    elsewhere: int = 0
    objects: list[Path] = field(default_factory=list)
    notes: list[Path] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def frees(self) -> int:
        """Bytes of files that no name is left of; a file with two names counts once both go."""
        files = {path for folder in self.folders for path in folder.rglob("*") if path.is_file()} | set(self.objects)
        stats = [path.stat() for path in files]
        names = Counter((one.st_dev, one.st_ino) for one in stats)
        sizes = {(one.st_dev, one.st_ino): one.st_size for one in stats if names[one.st_dev, one.st_ino] == one.st_nlink}
        return sum(sizes.values()) + self.elsewhere


def collect(workspace: Path, last: int = LAST, champions: int | None = None, delete: bool = False) -> dict[str, Any]:
    """Say what the policy no longer keeps, and with `delete` delete it.

    Kept are the models with an alias, and those that were champion: the last `champions` of them, or all. Kept are those that
    somebody tagged `wbc.keep`, and the `last` ones registered. Kept is what any branch or tag of git names. Raises WbcError.
    """
    params = read_params(workspace / "params.yaml")
    with hold_lock(workspace):
        tracker = open_tracker(workspace, params) if registry_exists(workspace, params) else None
        plan = Plan()
        if tracker is not None:
            _plan_registry(plan, tracker, last, champions)
        _plan_cache(plan, workspace, last)
        _plan_caches(plan, workspace)
        frees = plan.frees
        if delete:
            _delete(plan, tracker)
    return {"deleted": delete, "frees": frees, "versions": plan.versions, "lines": plan.lines}


def _plan_registry(plan: Plan, tracker: "Tracker", last: int, champions: int | None) -> None:
    found = tracker.versions()
    kept = _kept(tracker, found, last, champions)
    for version in found:
        if str(version.version) not in kept:
            plan.versions.append(str(version.version))
            plan.lines.append(f"registered version {version.version} ({version.tags.get('wbc.model', '')})")
    sources = {str(version.run_id) for version in found if str(version.version) in kept}
    orphans = {str(version.run_id): None for version in found if str(version.version) not in kept}
    for run in dict.fromkeys([*orphans, *tracker.runs_with_models(last)]):
        if run in sources:
            continue
        if (folder := tracker.folder(run, "model")) is not None:
            plan.folders.append(folder)
        elif sizes := tracker.sizes(run, "model"):  # at an MLflow server, which may keep them in a bucket
            plan.elsewhere += sum(sizes)
        else:
            continue
        plan.runs.append(run)
        plan.lines.append(f"model files of MLflow's run {run}")


def _kept(tracker: "Tracker", found: "list[ModelVersion]", last: int, champions: int | None) -> set[str]:
    """The numbers of the versions that stay; `found` is newest first."""
    kept = {str(version.version) for version in found[:last]}
    promoted = {one.version for one in verdicts(tracker) if one.word == "promoted"}
    was = [str(one.version) for one in found if one.tags.get("wbc.gate") == "promoted" or str(one.version) in promoted]
    kept |= set(was if champions is None else was[:champions])
    for version in found:
        if version.tags.get(KEEP) or ROLLED_BACK in version.tags:
            kept.add(str(version.version))
    aliases = tracker.aliases()
    kept |= set(aliases.values())
    present = aliases.get(CHAMPION)
    before = tracker.version_tags(present).get(BEFORE) if present else None
    return kept | ({before} if before else set())  # what a rollback needs


def _plan_cache(plan: Plan, workspace: Path, last: int) -> None:
    made = sorted((workspace / _RUNS).glob("*/*/*"), key=lambda path: path.stat().st_mtime, reverse=True)
    outputs = {path: _models(_yaml(path.read_text(encoding="utf-8")).get("outs", [])) for path in made}
    keep = {name for text in _locks(workspace) for name in _locked_models(text)}
    for output in MODELS:  # the last ones of each, by when they were made
        keep |= {made[output] for made in [one for one in outputs.values() if output in one][:last]}
    gone = {name for one in outputs.values() for name in one.values()} - keep
    spared = _members(workspace, _directories(workspace) - gone)
    for name in sorted(gone):
        files = [cached(workspace, name), *(cached(workspace, digest) for digest in _members(workspace, {name}) - spared)]
        plan.objects += [path for path in files if path.is_file() and path not in plan.objects]
        plan.lines.append(
            f"{', '.join(sorted({o for one in outputs.values() for o, n in one.items() if n == name}))} {name[:12]}"
        )
    plan.notes += [path for path, one in outputs.items() if one and set(one.values()) <= gone]


def _plan_caches(plan: Plan, workspace: Path) -> None:
    images = workspace / "data/images"
    caches = {
        "decoded cells": decoded.of_no_use(workspace / ".wbc/decoded", images),
        "measurements of cells": quality.of_no_use(workspace / ".wbc/cache", images),
    }
    for what, gone in caches.items():
        if gone:
            plan.objects += gone
            plan.lines.append(f"{counted(len(gone), 'file')} of {what} that nothing reads any more")


def _yaml(text: str) -> dict[str, Any]:
    found = yaml.safe_load(text)
    return found if isinstance(found, dict) else {}


def _models(outs: Iterable[dict[str, Any]]) -> dict[str, str]:
    return {out["path"]: out["md5"] for out in outs if out.get("path") in MODELS and str(out.get("md5", "")).endswith(".dir")}


def _locked_models(text: str) -> Iterator[str]:
    for stage in _yaml(text).get("stages", {}).values():
        yield from _models(stage.get("outs", [])).values()


def _locks(workspace: Path) -> Iterator[str]:
    """The text of dvc.lock here, and at every branch and tag."""
    here = workspace / "dvc.lock"
    if here.exists():
        yield here.read_text(encoding="utf-8")
    if is_git_repository(workspace):
        for ref in ("HEAD", *_git(workspace, "for-each-ref", "--format=%(refname)").split()):
            yield _git(workspace, "show", f"{ref}:./dvc.lock")


def _git(workspace: Path, *arguments: str) -> str:
    """What git says; nothing where there is no such thing."""
    command = ["git", "-C", str(workspace), *arguments]
    done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def _directories(workspace: Path) -> set[str]:
    """The names of all folders in DVC's cache."""
    return {path.parent.name + path.name for path in (workspace / CACHE).glob("*/*.dir")}


def _members(workspace: Path, directories: Iterable[str]) -> set[str]:
    """The digests of the files in folders of DVC's cache."""
    paths = [path for name in directories if (path := cached(workspace, name)).is_file()]
    return {str(entry["md5"]) for path in paths for entry in json.loads(path.read_text(encoding="utf-8"))}


def _delete(plan: Plan, tracker: "Tracker | None") -> None:
    """The names go first, then the files: what a kill leaves has no name and goes the next time."""
    if tracker is not None:
        for version in plan.versions:
            tracker.client.delete_model_version(tracker.model_name, version)
        for run in plan.runs:
            tracker.drop(run, "model")
    for path in plan.notes:
        path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):  # DVC trips over an empty folder
            path.parent.rmdir()
    for path in plan.objects:
        path.unlink(missing_ok=True)
