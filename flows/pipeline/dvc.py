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

from flows.complaints import FULL, says_full, takes_nothing
from flows.guard import FLOW, flow_token
from flows.site import OF_A_SITE, site_of
from flows.workspace import RETRAINING_FILE, ensure_dvc, environment, has_identity, is_git_repository
from wbc_model.cells.pools import Pools
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.files import write_atomic
from wbc_model.core.written import parse_yaml

TRACKED: Final = (
    "data/images",
    "data/pools",
    "data/labels.csv",
    "data/none_of_five.csv",
    "data/oracle.csv",
    "data/rejected.csv",
    "data/conflicts.csv",
)
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
    RETRAINING_FILE,
    *(f"{path}.dvc" for path in TRACKED),
)
ERROR_FILE: Final = "WBC_ERROR_FILE"  # where a stage leaves the line that its user must read

_AFTERWARDS: Final = "Run this again before any `dvc checkout`: it says how your labels are added to theirs"


class StageFailed(WbcError):
    """A stage ended badly in a way that another attempt may put right: killed, out of memory, a lock busy."""


def run_dvc(
    workspace: Path,
    arguments: Sequence[str],
    log: Path | None = None,
    locks: Sequence[int] = (),
    heard: Callable[[str], None] = lambda line: None,
) -> str:
    """Run `dvc`, waiting for its lock; returns its output, of which each line goes to `log` and to `heard` as it is said.

    Raises WbcError with the one line that a stage of ours left for the user, and where the disk is full; StageFailed for anything
    else. The child
    inherits the descriptors `locks`: a lock of the caller is held until the child is gone too.
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
    if says_full(output) or takes_nothing(workspace):
        raise WbcError(FULL)  # at once: what a person must do does not come of another attempt
    if complaint.exists() and (line := complaint.read_text(encoding="utf-8").strip()):
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
    ours = [line.removeprefix("wbc: error: ") for line in lines if line.startswith("wbc: error: ")]
    telling = [line for line in lines if re.match(r"(ERROR|\w+(Error|Exception)\b)", line)]
    return next((line for line in [*reversed(ours), *reversed(telling), *reversed(lines)]), "")


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
    force: bool = False,
) -> StageRun:
    """Bring one stage up to date, its inputs as they are; those before it in the pipeline must be so already. With `force` it
    runs though DVC takes it for up to date."""
    output = run_dvc(workspace, ["repro", "--single-item", *(["--force"] if force else []), stage], log, locks, heard)
    return StageRun(stage, ran=f"Running stage '{stage}'" in output or f"Stage '{stage}' is cached" in output)


# --- versions of the pools ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PoolsVersion:
    """A state of the pools: running `number` in this workspace, and the short hash of the content; of a `site` by its name."""

    number: int
    version: str
    site: str = ""

    @property
    def name(self) -> str:
        return f"{_series(self.site)}{self.number}"


def _series(site: str) -> str:
    """How tags of pools begin: a site has one git repository with its parent."""
    return f"{site}-pools-v" if site else "pools-v"


def _site_name(workspace: Path) -> str:
    site = site_of(workspace)
    return site.name if site else ""


def version_pools(workspace: Path, locks: Sequence[int] = ()) -> PoolsVersion:
    """Put the data under DVC and note the version of the pools in data/versions.csv.

    The same pools keep their number: this may be repeated. A number whose tag names other pools (of another branch, or
    of another workspace in the same repository) is passed over. Raises WbcError.
    """
    ensure_dvc(workspace)
    pools = Pools.read(workspace / "data/pools")
    run_dvc(workspace, ["add", *(path for path in TRACKED if (workspace / path).exists())], locks=locks)
    version, rows, site = pools.version(), _versions(workspace), _site_name(workspace)
    taken = _tagged(workspace, site)
    if rows and rows[-1].version == version and taken.get(rows[-1].number, version) == version:
        return rows[-1]
    number = max((row.number for row in rows), default=0) + 1
    while taken.get(number, version) != version:
        number += 1
    path = workspace / VERSIONS
    text = path.read_text() if rows else "number,version,labelled,unlabelled,validation,test\n"
    write_atomic(path, text + ",".join(map(str, [number, version, *pools.counts().values()])) + "\n")
    return PoolsVersion(number, version, site)


def _versions(workspace: Path) -> list[PoolsVersion]:
    path, site = workspace / VERSIONS, _site_name(workspace)
    return _parsed_versions(path.read_text(), site) if path.exists() else []


def _parsed_versions(text: str, site: str = "") -> list[PoolsVersion]:
    return [PoolsVersion(int(row["number"]), row["version"], site) for row in csv.DictReader(io.StringIO(text))]


def _tagged(workspace: Path, site: str) -> dict[int, str]:
    """The pools that each tag `pools-vN` of the repository names, by its number: their hash, empty where they are not this
    workspace's."""
    if not is_git_repository(workspace):
        return {}
    names = _git(workspace, "tag", "--list", f"{_series(site)}*").split()
    numbers = [int(match[1]) for name in names if (match := re.fullmatch(rf"{re.escape(_series(site))}(\d+)", name))]
    return {number: _pools_at(workspace, PoolsVersion(number, "", site).name) for number in numbers}


def _pools_at(workspace: Path, name: str) -> str:
    shown = _asked_git(workspace, "show", f"{name}:./{VERSIONS}")
    rows = _parsed_versions(shown.stdout) if shown.returncode == 0 else []
    return rows[-1].version if rows else ""


def check_git(workspace: Path, commit: bool) -> None:
    """Raises WbcError where git is in a state in which a retraining cannot note its data or, with `commit`, not commit: nothing
    has been done by then."""
    if commit and not is_git_repository(workspace):
        raise WbcError(f"{workspace} is not in a git repository: run `git init`, or leave out --commit")
    if not is_git_repository(workspace):
        return
    if commit and not has_identity(workspace):
        raise WbcError("git does not know who commits: set user.name and user.email with `git config`, or leave out --commit")
    folder = Path(_git(workspace, "rev-parse", "--absolute-git-dir").strip())
    if unmerged := _git(workspace, "diff", "--name-only", "--diff-filter=U", "--relative").split("\n")[:-1]:
        raise WbcError(_settling(unmerged, (folder / "rebase-merge").exists()))
    for name, word in (("MERGE_HEAD", "merge"), ("CHERRY_PICK_HEAD", "cherry-pick"), ("rebase-merge", "rebase")):
        if commit and (folder / name).exists():
            raise WbcError(f"a {word} is not finished in {workspace}: finish it, or leave out --commit")
    ignored = _asked_git(workspace, "check-ignore", "--verbose", "--no-index", *(f"{path}.dvc" for path in TRACKED), "dvc.lock")
    for line in ignored.stdout.splitlines():
        rule, _, path = line.partition("\t")
        if not rule.split(":", 2)[2].startswith("!"):
            raise WbcError(f"git ignores {path}, by {rule}: the history of the data lives there; take that line out")
    if held := _held_by_git(workspace):
        raise WbcError(f"git has {held[0]}, which DVC keeps, and DVC takes nothing that git has: `git rm -r -q --cached "
                       f"{' '.join(held)}` leaves the files, `git commit`, and run this again")  # fmt: skip


def _settling(unmerged: Sequence[str], rebased: bool) -> str:
    """The way out of a conflict that loses nobody's labels: the others' notes are taken, and `check_known` says then how the
    labels that lie here are added to them."""
    side, on = ("--ours", "git rebase --continue") if rebased else ("--theirs", "git commit --no-edit")
    return (
        f"{counted(len(unmerged), 'file is', 'files are')} in conflict by a {'rebase' if rebased else 'merge'}: "
        f"`git checkout {side} {' '.join(unmerged)}` takes theirs, `git add` of the same files and `{on}` settle it. "
        f"{_AFTERWARDS}"
    )


def _held_by_git(workspace: Path) -> list[str]:
    """What DVC is to keep and git tracks, as after `git add -A` where .gitignore does not name it."""
    kept = kept_by_dvc(workspace)
    tracked = [Path(line) for line in _git(workspace, "ls-files", "--", *kept).splitlines()]
    return [name for name in kept if any(path.is_relative_to(name) for path in tracked)]


def kept_by_dvc(workspace: Path) -> list[str]:
    """What lies in DVC's cache and not in git: the data, and what the stages of dvc.yaml make."""
    pipeline = workspace / "dvc.yaml"
    stages = (parse_yaml(pipeline.read_text(encoding="utf-8"), pipeline).get("stages") or {}).values()
    made = [(out, {}) if isinstance(out, str) else next(iter(out.items())) for stage in stages for out in stage.get("outs", [])]
    return [*TRACKED, *(path for path, flags in made if flags.get("cache", True))]


def commit_all(workspace: Path, message: str) -> None:
    """Commit the project's own files where they changed (nothing else that may be staged)."""
    check_git(workspace, commit=True)
    files = [name for name in COMMITTED if (workspace / name).exists()]
    ignores = [path for path in sorted(workspace.glob("*/.gitignore")) if not path.parent.name.startswith(".")]  # DVC's
    files += [str(path.relative_to(workspace)) for path in ignores]
    if (site := site_of(workspace)) is not None:
        within = workspace.is_relative_to(site.parent)  # whose .gitignore hid sites once
        shown = [os.path.relpath(site.parent / ".gitignore", workspace)] if within else []
        files += [name for name in (*OF_A_SITE, *shown) if (workspace / name).exists() and name not in files]
    _git(workspace, "add", "--", *files)
    if _asked_git(workspace, "diff", "--cached", "--quiet", "--", *files).returncode:
        tracked = _git(workspace, "ls-files", "--", *files).splitlines()
        _git(workspace, *["commit", "-q", "--no-gpg-sign", "-m", message, "--", *tracked])


def tag(workspace: Path, version: PoolsVersion) -> None:
    """Tag HEAD by the name of these pools, unless the tag is there. A machine signs nothing. Raises WbcError where the tag is
    another's."""
    if not _git(workspace, "tag", "--list", version.name).strip():
        _git(workspace, "tag", "--no-sign", version.name)
    elif _pools_at(workspace, version.name) != version.version:
        raise WbcError(f"the tag {version.name} came meanwhile and names other pools: rename it (`git tag NEW {version.name}; "
                       f"git tag -d {version.name}`), and run this again")  # fmt: skip


def commit_of(workspace: Path, tag: str) -> str:
    """The commit that a tag names; empty where there is no such tag."""
    return _asked_git(workspace, "rev-parse", "--verify", "--quiet", f"refs/tags/{tag}^{{commit}}").stdout.strip()


def commit_of_model(workspace: Path, version: str) -> str:
    """The commit that has the pools of this name and the model that dvc.lock names now: the tag's. The tag stays on the first
    model of these pools; one that was made of them since with other parameters is in HEAD. Empty where there is no such tag."""
    tagged, lock = commit_of(workspace, version), workspace / "dvc.lock"
    then = _asked_git(workspace, "show", f"{version}:./dvc.lock").stdout if tagged else ""
    if not tagged or _trained(then) == _trained(lock.read_text(encoding="utf-8") if lock.exists() else ""):
        return tagged
    return _git(workspace, "rev-parse", "HEAD").strip()


def _trained(lock: str) -> object:
    """What the stage `train` made, by the text of a dvc.lock."""
    return (parse_yaml(lock, Path("dvc.lock")).get("stages") or {}).get("train", {}).get("outs")


def _asked_git(workspace: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Git without anybody to answer it: no editor, no question, no terminal."""
    values = environment() | {"GIT_EDITOR": "true", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", "-C", str(workspace), *arguments]
    return subprocess.run(command, env=values, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _git(workspace: Path, *arguments: str) -> str:
    result = _asked_git(workspace, *arguments)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise WbcError(f"git {arguments[0]} failed: {lines[-1] if lines else result.returncode}")
    return result.stdout


# --- after a SIGKILL ---------------------------------------------------------------------------------------------------


def heal(workspace: Path) -> list[str]:
    """Put right what DVC or a stage left half written when it was killed; returns what was done. Nobody else may be at work.

    DVC writes dvc.lock and *.dvc files in place. What cannot be read is removed: a stage without a record runs again, with
    the same result, and `dvc add` notes the data anew.
    """
    done = []
    lock = workspace / ".dvc/tmp/rwlock"
    if lock.exists() and not _readable(lock, json.loads):
        lock.unlink()
        done.append("removed DVC's damaged .dvc/tmp/rwlock")
    for path in [workspace / "dvc.lock", *(workspace / f"{name}.dvc" for name in TRACKED)]:
        if path.exists() and _in_conflict(path):
            raise WbcError(f"{path} holds the conflict of a merge: keep the others' lines, without the marks. {_AFTERWARDS}")
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
    # No commit of ours takes that long; one that seems to lie ahead was left behind by a clock that was.
    if git_lock.exists() and abs(time.time() - git_lock.stat().st_mtime) > 60:
        git_lock.unlink()
        done.append("removed git's stale index.lock")
    return done


def _in_conflict(path: Path) -> bool:
    return re.search(rb"^<{7}( |$)", path.read_bytes(), re.MULTILINE) is not None


def _readable(path: Path, parse: object) -> bool:
    try:
        return isinstance(parse(path.read_text(encoding="utf-8")), dict)  # type: ignore[operator]
    except (ValueError, yaml.YAMLError):
        return False
