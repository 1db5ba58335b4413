"""The workspace: the folder with `dvc.yaml` and `params.yaml` that every command acts on, and how a new one is made."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from configobj import ConfigObj

from wbc_model.core.errors import WbcError
from wbc_model.core.files import write_atomic

if TYPE_CHECKING:
    from wbc_model.params import Params

MARKS: Final = ("params.yaml", "dvc.yaml")
RETRAINING_FILE: Final = "data/retraining.yaml"
_NAMELESS: Final = "unnamed"  # a key of that file
SITES: Final = "sites"  # the folder in which onboarded sites lie, each a workspace
STORE: Final = "data/service.db"  # what `wbc serve` keeps
KEYRING: Final = "data/service.keys"
AUDIT: Final = "data/audit.jsonl"
GITIGNORE: Final = """\
# caches, checkpoints, locks and the state of flows
/.wbc/
# MLflow's default store
/mlflow.db*
/mlartifacts/
# the champion is kept by the registry
/models/champion/
/models/.champion.*
# what the service keeps: reports of patients' specimens
/data/service.db*
/reports/*.png
/build/
# the service's keys (digests only) and its audit log
/data/service.keys
/data/audit.jsonl*
# what DVC keeps: it takes nothing that git has
/data/images
/data/pools
/data/labels.csv
/data/none_of_five.csv
/data/oracle.csv
/data/rejected.csv
/data/conflicts.csv
/data/quarantine.csv
/data/queue.csv
/data/docs
/models/candidate
/models/history.csv
/models/predictions.csv
/plots
"""
DVCIGNORE: Final = """\
# what DVC need not look through
.wbc
mlartifacts
__pycache__
"""


def is_workspace(folder: Path) -> bool:
    """Whether a folder is a workspace."""
    return all((folder / name).is_file() for name in MARKS)


def find_workspace(start: Path | None = None) -> Path:
    """The nearest folder at or above `start` (the current one) that is a workspace. Raises WbcError where there is none. So it
    does in the folder of a site that is no workspace yet: nothing meant for the site befalls its parent."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if is_workspace(folder):
            return folder
        if folder.parent.name == SITES and (folder / "data/pools").is_dir() and is_workspace(folder.parent.parent):
            raise WbcError(f"{folder} was onboarded when sites were no workspaces: `wbc onboard` with its data makes it one")
    raise WbcError(f"{here} is not inside a workspace (no params.yaml and dvc.yaml): run `wbc init DIR` and go there")


def workspace_or_none() -> Path | None:
    """The workspace that we stand in; None where we stand in none."""
    try:
        return find_workspace()
    except WbcError:
        return None


def label_names(start: Path | None = None) -> Mapping[str, str]:
    """What the workspace at or above `start` calls the classes beside their usual names; nothing outside a workspace."""
    from wbc_model.params import read_params

    here = (start or Path.cwd()).resolve()
    inside = any(is_workspace(folder) for folder in (here, *here.parents))
    return read_params(find_workspace(here) / "params.yaml").data.label_names if inside else {}


def template(name: str) -> Path:
    """`params.yaml` or `dvc.yaml` as the package ships them; in an editable install they lie at the project's root."""
    package = Path(__file__).resolve().parent
    for path in (package / "template" / name, package.parent / name):
        if path.is_file():
            return path
    raise WbcError(f"this installation of wbc lacks its template {name}: install it again")


def environment() -> dict[str, str]:
    """The environment of every child process: our own commands are found, nothing is reported to anyone, DVC uses plain sh."""
    values = dict(os.environ)
    values["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), values.get("PATH", os.defpath)])
    values["SHELL"] = "/bin/sh"
    values |= {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "BENTOML_DO_NOT_TRACK": "True"}
    return values


def bypass_proxies() -> None:
    """See to it that this process and its children never reach loopback through a proxy, whatever the environment says."""
    for name in ("NO_PROXY", "no_proxy"):
        given = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
        os.environ[name] = ",".join(dict.fromkeys([*given, "127.0.0.1", "localhost", "::1"]))


def machine_name() -> str:
    """This machine's name, as a part of other names."""
    return slug(socket.gethostname())


def slug(text: str) -> str:
    """Lower-case letters, digits and hyphens that stand for a text in other names."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "workspace"


def is_git_repository(folder: Path) -> bool:
    """Whether git is installed and `folder` lies in a working tree."""
    if shutil.which("git") is None:
        return False
    answer = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "--is-inside-work-tree"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() == "true"


def is_committed(path: Path) -> bool:
    """Whether git has a file as it is now."""
    if not is_git_repository(path.parent):
        return False
    git = ["git", "-C", str(path.parent), "-c", "core.quotepath=false"]
    known = subprocess.run([*git, "ls-files", "--", path.name], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--", path.name], capture_output=True, text=True, check=False)
    return bool(known) and changed.returncode == 0 and not changed.stdout.strip()


def has_identity(workspace: Path) -> bool:
    """Whether git knows who commits here."""
    question = ["git", "-C", str(workspace), "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT"]
    return subprocess.run(question, capture_output=True, check=False).returncode == 0


@dataclass
class Created:
    """What `wbc init` did: files written, and what the user should know."""

    workspace: Path
    wrote: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def init_workspace(directory: Path, ignored: str = "", within: Path | None = None) -> Created:
    """Make `directory` a workspace under git and DVC; what is there already is kept. Raises WbcError.

    `ignored` are more lines for its .gitignore. A workspace `within` another has that one's git repository, where there is one,
    and nothing is committed.
    """
    if directory.exists() and not directory.is_dir():
        raise WbcError(f"{directory} is a file: choose a folder for the workspace")
    directory.mkdir(parents=True, exist_ok=True)
    created = Created(directory.resolve())
    if within is None and not is_git_repository(directory):
        if shutil.which("git") is None:
            created.notes.append("git is not installed: the workspace works, but its history is not kept")
        else:
            _run(["git", "init", "-q", "-b", "main", str(directory)])
            created.wrote.append(".git/")
    for name in MARKS:
        if not (directory / name).exists():
            write_atomic(directory / name, template(name).read_bytes())
            created.wrote.append(name)
    created.notes += narrow_query(directory)
    if not (directory / RETRAINING_FILE).exists():
        note_after_cycle(directory, after_cycle(directory))
        created.wrote.append(RETRAINING_FILE)
    _add_lines(directory / ".gitignore", GITIGNORE + ignored, created)
    _add_lines(directory / ".dvcignore", DVCIGNORE, created)
    ensure_dvc(created.workspace, created)
    if within is None:
        _first_commit(created)
    return created


def _keep_dvc_silent(config: Path) -> None:
    """Settings of DVC that no run may do without: it reports its use to nobody, and asks nobody for a newer version."""
    settings = ConfigObj(str(config), encoding="utf-8")  # what DVC itself reads and writes the file with
    settings.setdefault("core", {}).update({"analytics": "false", "check_update": "false"})
    settings.write()


def ensure_dvc(workspace: Path, created: Created | None = None) -> None:
    """Make DVC work here: in a git repository with its history, in a source archive without git without."""
    in_git = is_git_repository(workspace)
    local = workspace / ".dvc/config.local"
    if not (workspace / ".dvc").is_dir():
        top = in_git and (workspace / ".git").exists()
        _dvc(workspace, "init", *([] if top else ["--subdir"] if in_git else ["--no-scm"]))
        _keep_dvc_silent(workspace / ".dvc/config")
        if created:
            created.wrote.append(".dvc/")
    elif not in_git and not (local.exists() and "no_scm = true" in local.read_text()):
        config = workspace / ".dvc/config"
        if not (config.exists() and "no_scm = true" in config.read_text().lower()):
            _dvc(workspace, "config", "--local", "core.no_scm", "true")
    elif in_git and local.exists() and "no_scm = true" in local.read_text():
        _dvc(workspace, "config", "--local", "--unset", "core.no_scm")


def _dvc(workspace: Path, *arguments: str) -> None:
    _run([sys.executable, "-m", "dvc", *arguments], cwd=workspace)


def _run(command: list[str], cwd: Path | None = None) -> str:
    result = subprocess.run(
        command, cwd=cwd, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        raise WbcError(f"{' '.join(command[:3])} failed: {lines[-1] if lines else result.returncode}")
    return result.stdout


def _add_lines(path: Path, text: str, created: Created) -> None:
    """Add the lines that are not there yet."""
    present = path.read_text() if path.exists() else ""
    missing = [line for line in text.splitlines() if line not in present.splitlines()]
    if missing:
        joint = "" if not present or present.endswith("\n") else "\n"
        write_atomic(path, present + joint + "\n".join(missing) + "\n")
        created.wrote.append(path.name)


def _first_commit(created: Created) -> None:
    workspace = created.workspace
    if not created.wrote or not is_git_repository(workspace):
        return
    if not has_identity(workspace):
        created.notes.append("nothing is committed yet, as git knows no user.name and user.email here")
        return
    names = (*MARKS, RETRAINING_FILE, ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore")
    files = [name for name in names if (workspace / name).exists()]
    git = ["git", "-C", str(workspace)]
    _run([*git, "add", "--", *files])
    if subprocess.run([*git, "diff", "--cached", "--quiet", "--", *files], check=False).returncode:
        _run([*git, "commit", "-q", "--no-gpg-sign", "-m", "A workspace for leukocyte classification", "--", *files])
        created.notes.append("committed as the workspace's first version")


# --- params.yaml -----------------------------------------------------------------------------------------------------


def set_params(workspace: Path, changes: Mapping[str, Any]) -> list[str]:
    """Write values into the workspace's params.yaml, comments kept; returns `key: old -> new` for each that changed.

    Keys are dotted (`retrain.until`). Raises WbcError, and writes nothing, when the result would not be valid.
    """
    text, lines = changed_params(workspace, changes)
    if lines:
        write_atomic(workspace / "params.yaml", text)
    return lines


def after_cycle(workspace: Path) -> int:
    """The last cycle before this retraining; workspaces made before have it in params.yaml. Raises WbcError."""
    path = workspace / RETRAINING_FILE
    if path.exists():
        number = _retraining_file(workspace).get("after_cycle")
        if not isinstance(number, int) or number < 0:
            raise WbcError(f"{path}: after_cycle is no number: `git checkout {RETRAINING_FILE}` brings it back")
        return number
    before = _retrain_section(workspace).get("after_cycle", 0)
    return before if isinstance(before, int) else 0


def nameless(workspace: Path) -> set[str]:
    """The cells that nobody could name so far, as `note_nameless` has noted them: the stage `query` asks about others. Raises
    WbcError."""
    found = _retraining_file(workspace).get(_NAMELESS, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise WbcError(f"{workspace / RETRAINING_FILE}: {_NAMELESS} is no list of cells: take it out, `wbc query` notes it again")
    return set(found)


def note_nameless(workspace: Path, sha256s: Collection[str]) -> None:
    """Note the cells that nobody can name, in the place of those before. What the stage `query` asks for depends on them."""
    if set(sha256s) != nameless(workspace):
        _write_retraining_file(workspace, after_cycle(workspace), sha256s)


def _retraining_file(workspace: Path) -> Mapping[str, Any]:
    from wbc_model.core.written import read_yaml

    path = workspace / RETRAINING_FILE
    document = read_yaml(path) if path.exists() else None
    return document if isinstance(document, dict) else {}


def _write_retraining_file(workspace: Path, cycle: int, sha256s: Collection[str]) -> None:
    lines = [f"after_cycle: {cycle}", *([f"{_NAMELESS}:"] if sha256s else []), *(f"  - {one}" for one in sorted(sha256s))]
    write_atomic(workspace / RETRAINING_FILE, "\n".join(lines) + "\n")


def _retrain_section(workspace: Path) -> Mapping[str, Any]:
    """The section `retrain` of params.yaml as it stands there; empty where it is none."""
    from wbc_model.core.written import read_yaml

    section = read_yaml(workspace / "params.yaml").get("retrain")
    return section if isinstance(section, dict) else {}


def note_after_cycle(workspace: Path, cycle: int) -> None:
    """Begin a retraining after this cycle: what the stage `query` asks for depends on it."""
    _write_retraining_file(workspace, cycle, nameless(workspace))
    # A dvc.yaml made before has the stage depend on the key in params.yaml.
    if "after_cycle" in _retrain_section(workspace):
        set_params(workspace, {"retrain.after_cycle": cycle})


ASKED_BY: Final = ("retrain.until", "retrain.ask", "retrain.cycles")  # what the stage `query` depends on
_WHOLE: Final = re.compile(r"^(\s+)- retrain$", re.MULTILINE)


def narrow_query(workspace: Path) -> list[str]:
    """Have the stage `query` of a dvc.yaml made before depend on what it reads of the section `retrain`, not on all of it.

    So a change of `retrain.runner` runs no stage again. What dvc.lock says of the stage goes along. Returns what was done."""
    pipeline = workspace / "dvc.yaml"
    text = pipeline.read_text(encoding="utf-8") if pipeline.is_file() else ""
    whole = _WHOLE.search(text) is not None
    if (whole or ASKED_BY[1] in text) and "ask" not in _retrain_section(workspace):
        set_params(workspace, {"retrain.ask": None})  # DVC fails on a key that is not there
    if not whole:
        return []
    _narrow_lock(workspace / "dvc.lock")
    write_atomic(pipeline, _WHOLE.sub(lambda found: "\n".join(f"{found[1]}- {key}" for key in ASKED_BY), text))
    return ["dvc.yaml: the stage `query` depends on retrain.until, .ask and .cycles, no longer on all of retrain"]


def _narrow_lock(lock: Path) -> None:
    from ruamel.yaml import YAML

    if not lock.is_file():
        return
    yaml = YAML()
    yaml.width = 4096
    document = yaml.load(lock.read_text(encoding="utf-8"))
    stage = ((document or {}).get("stages") or {}).get("query") or {}
    known = (stage.get("params") or {}).get("params.yaml") or {}
    if isinstance(section := known.pop("retrain", None), dict):
        known |= {key: section.get(key.rpartition(".")[2]) for key in ASKED_BY}
        yaml.dump(document, buffer := io.StringIO())
        write_atomic(lock, buffer.getvalue())


def gone_line(workspace: Path) -> str:
    """The line that names the keys of params.yaml which have no effect any more; empty where there is none."""
    from wbc_model.core.written import read_yaml
    from wbc_model.params import gone_keys

    gone = gone_keys(read_yaml(workspace / "params.yaml"))
    return f"params.yaml: without effect since they are constants now, and may be deleted: {', '.join(gone)}" if gone else ""


def params_with(workspace: Path, changes: Mapping[str, Any]) -> "Params":
    """The workspace's parameters as `set_params` would make them; nothing is written. Raises WbcError."""
    from wbc_model.params import parse_params

    return parse_params(changed_params(workspace, changes)[0], workspace / "params.yaml")


def changed_params(workspace: Path, changes: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The text of the workspace's params.yaml with these values, and the lines of `set_params`; nothing is written."""
    from ruamel.yaml import YAML

    from wbc_model.params import GONE, params_text, parse_params

    path = workspace / "params.yaml"
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 4096, True
    yaml.representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null"))
    text = params_text(path)
    parse_params(text, path)
    document = yaml.load(text)
    lines = []
    for key, value in changes.items():
        if key in GONE and key != "retrain.after_cycle":
            raise WbcError(f"{path}: {key} went: it is a constant now, and no longer a parameter")
        *sections, name = key.split(".")
        place = document
        for section in sections:  # one that is missing is judged with the rest
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise WbcError(f"{path}: {key}: {section} is a value and has nothing below it")
        if name not in place or place[name] != value:
            lines.append(f"{key}: {place.get(name, 'not there')} -> {value}")
            place[name] = value
    if not lines:
        return text, []
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    parse_params(buffer.getvalue(), path)
    return buffer.getvalue(), lines
