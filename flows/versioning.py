"""DVC and git as the flow uses them: running a stage, versioning the pools, and putting right what a SIGKILL left behind."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

import yaml

from flows.guard import FLOW, flow_token
from flows.workspace import ensure_dvc, environment, has_identity, is_git_repository
from wbc_model.errors import WbcError
from wbc_model.files import write_atomic
from wbc_model.pools import Pools

TRACKED: Final = ("data/images", "data/pools", "data/labels.csv", "data/oracle.csv", "data/rejected.csv")
VERSIONS: Final = "data/versions.csv"
COMMITTED: Final = (
    ".gitignore",
    "params.yaml",
    "dvc.yaml",
    "dvc.lock",
    "metrics.json",
    "models/code.json",
    "models/gate.json",
    "reports",
    VERSIONS,
    *(f"{path}.dvc" for path in TRACKED),
)
ERROR_FILE: Final = "WBC_ERROR_FILE"  # where a stage leaves the line that its user must read


class StageFailed(WbcError):
    """A stage ended badly in a way that another attempt may put right: killed, out of memory, the disk full, a lock busy."""


def run_dvc(
    workspace: Path,
    arguments: Sequence[str],
    log: Path | None = None,
    locks: Sequence[int] = (),
    heard: Callable[[str], None] = lambda line: None,
) -> str:
    """Run `dvc`, waiting for its lock; returns its output, of which each line goes to `log` and to `heard` as it is said.

    Raises WbcError with the one line that a stage of ours left for the user, StageFailed for anything else. The child
    inherits the descriptors `locks`, so that a lock of the caller is held until the child is gone too.
    """
    complaint = workspace / ".wbc" / f"error-{os.getpid()}.txt"
    complaint.parent.mkdir(exist_ok=True)
    complaint.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        hearers: list[Callable[[str], None]] = []
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            written = stack.enter_context(log.open("w", buffering=1))  # a line at a time, for whoever looks in meanwhile
            hearers.append(lambda line: print(line, file=written))
        code, output = _run_aloud(workspace, arguments, {ERROR_FILE: str(complaint)}, locks, [*hearers, heard])
    if code == 0:
        return output
    if complaint.exists():
        line = complaint.read_text(encoding="utf-8")
        complaint.unlink()
        raise WbcError(line)
    where = f" (see {log})" if log else ""
    raise StageFailed(f"dvc {' '.join(arguments)} failed: {_last_line(output) or code}{where}")


def _run_aloud(
    workspace: Path,
    arguments: Sequence[str],
    more: dict[str, str],
    locks: Sequence[int],
    hearers: Sequence[Callable[[str], None]],
) -> tuple[int, str]:
    """Exit code and output of `dvc`, of which every hearer is given each line as it is said."""
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments],
        cwd=workspace,
        env=environment() | {FLOW: flow_token()} | more,
        pass_fds=tuple(locks),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as child:
        try:
            for line in cast(IO[str], child.stdout):
                said.append(line)
                for heard in hearers:
                    heard(line.rstrip("\n"))
        except BaseException:  # Ctrl-C, or a full disk under the log: no child may outlive its caller
            child.kill()
            raise
    return child.returncode, "".join(said)


def _last_line(output: str) -> str:
    """What went wrong, by the output of a failed command: its last line that says so, else its last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"(ERROR|\w+(Error|Exception)\b)", line)]
    return next((line for line in [*reversed(telling), *reversed(lines)]), "")


@dataclass(frozen=True)
class StageRun:
    """A stage that was brought up to date; `ran` is false where nothing had changed."""

    stage: str
    ran: bool


def repro(
    workspace: Path,
    stage: str,
    log: Path | None = None,
    locks: Sequence[int] = (),
    heard: Callable[[str], None] = lambda line: None,
) -> StageRun:
    """Bring one stage up to date, its inputs as they are; those before it in the pipeline must be so already."""
    output = run_dvc(workspace, ["repro", "--single-item", stage], log, locks, heard)
    return StageRun(stage, ran=f"Running stage '{stage}'" in output or f"Stage '{stage}' is cached" in output)


# --- versions of the pools ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PoolsVersion:
    """A state of the pools: running `number` in this workspace, and the short hash of the content."""

    number: int
    version: str

    @property
    def name(self) -> str:
        return f"pools-v{self.number}"


def version_pools(workspace: Path, commit: bool, locks: Sequence[int] = ()) -> PoolsVersion:
    """Put the data under DVC and note the version of the pools; with `commit` commit it and tag it `pools-vN`.

    The same pools keep their number, so that this may be repeated. Raises WbcError.
    """
    ensure_dvc(workspace)
    pools = Pools.read(workspace / "data/pools")
    run_dvc(workspace, ["add", "--quiet", *(path for path in TRACKED if (workspace / path).exists())], locks=locks)
    current = _note_version(workspace, pools)
    if commit:
        counts = pools.counts()
        commit_all(workspace, f"{current.name}: {counts['labelled']} labelled, {counts['unlabelled']} waiting")
        tag(workspace, current.name)
    return current


def _note_version(workspace: Path, pools: Pools) -> PoolsVersion:
    path = workspace / VERSIONS
    rows = list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []
    if rows and rows[-1]["version"] == pools.version():
        return PoolsVersion(int(rows[-1]["number"]), rows[-1]["version"])
    number = int(rows[-1]["number"]) + 1 if rows else 1
    text = path.read_text() if rows else "number,version,labelled,unlabelled,validation,test\n"
    row = [number, pools.version(), *pools.counts().values()]
    write_atomic(path, text + ",".join(map(str, row)) + "\n")
    return PoolsVersion(number, pools.version())


def current_version(workspace: Path) -> PoolsVersion:
    """The last version that was noted; raises WbcError where there is none."""
    path = workspace / VERSIONS
    rows = list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []
    if not rows:
        raise WbcError(f"{path}: no version of the pools was noted yet")
    return PoolsVersion(int(rows[-1]["number"]), rows[-1]["version"])


def check_can_commit(workspace: Path) -> None:
    """Raises WbcError when a commit here cannot work."""
    if not is_git_repository(workspace):
        raise WbcError(f"{workspace} is not in a git repository, so that --commit has nowhere to commit to: run `git init`")
    if not has_identity(workspace):
        raise WbcError("git does not know who commits: set user.name and user.email with `git config`, or leave out --commit")


def commit_all(workspace: Path, message: str) -> None:
    """Commit the project's own files where they changed (nothing else that may be staged)."""
    check_can_commit(workspace)
    git = ["git", "-C", str(workspace)]
    files = [name for name in COMMITTED if (workspace / name).exists()]
    ignores = [path for path in sorted(workspace.glob("*/.gitignore")) if not path.parent.name.startswith(".")]  # DVC's
    files += [str(path.relative_to(workspace)) for path in ignores]
    _git([*git, "add", "--", *files])
    changed = subprocess.run([*git, "diff", "--cached", "--quiet", "--", *files], check=False).returncode
    if changed:
        tracked = _git([*git, "ls-files", "--", *files]).splitlines()
        _git([*git, "commit", "-q", "-m", message, "--", *tracked])


def tag(workspace: Path, name: str) -> None:
    """Tag HEAD, unless the tag is there."""
    git = ["git", "-C", str(workspace)]
    if not _git([*git, "tag", "--list", name]).strip():
        _git([*git, "tag", name])


def _git(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise WbcError(f"git {command[3]} failed: {lines[-1] if lines else result.returncode}")
    return result.stdout


# --- after a SIGKILL ---------------------------------------------------------------------------------------------------


def heal(workspace: Path) -> list[str]:
    """Put right what a kill may have left half written by DVC or a stage; returns what was done. Nobody else may be at work.

    DVC writes dvc.lock and *.dvc files in place. What cannot be read is removed: a stage without a record runs again, with
    the same result, and `dvc add` notes the data anew.
    """
    done = []
    lock = workspace / ".dvc/tmp/rwlock"
    if lock.exists() and not _readable(lock, json.loads):
        lock.unlink()
        done.append("removed DVC's damaged .dvc/tmp/rwlock")
    for path in [workspace / "dvc.lock", *(workspace / f"{name}.dvc" for name in TRACKED)]:
        if path.exists() and not _readable(path, yaml.safe_load):
            path.unlink()
            done.append(f"removed the damaged {path.relative_to(workspace)}; it is made again")
    for pattern in ("models/.candidate.*", "models/.champion.*", "build/.bento.*", "data/.docs.*"):
        for leftover in workspace.glob(pattern):
            shutil.rmtree(leftover)
    for folder in ("models", "reports"):  # where nobody else writes: temporary files of whole-file writes
        for leftover in (workspace / folder).glob(".*.*.????????"):
            leftover.unlink()
    git_lock = workspace / ".git/index.lock"
    if git_lock.exists() and time.time() - git_lock.stat().st_mtime > 60:  # no commit of ours takes that long
        git_lock.unlink()
        done.append("removed git's stale index.lock")
    return done


def _readable(path: Path, parse: object) -> bool:
    try:
        return isinstance(parse(path.read_text(encoding="utf-8")), dict)  # type: ignore[operator]
    except (ValueError, yaml.YAMLError):
        return False
