"""What a retraining remembers between its steps: one that was killed goes on where it was.

`.wbc/retrain.json` is replaced in one step after each step that counts; every step may be repeated. One retraining at a time, or
one stage that a person typed, has a workspace to itself. The kernel frees that lock when its holder and the holder's DVC children
are gone. Whoever holds it works on one version of the pools: what comes meanwhile waits (`at_work`).
"""

import contextlib
import csv
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pandas as pd

from flows.guard import alive, began
from flows.site import site_of
from wbc_model.cells.pools import POOLS, Pools
from wbc_model.cells.rejections import quarantined
from wbc_model.cells.tables import read_table, to_csv
from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.errors import WbcError
from wbc_model.core.files import file_sha256, make_folder, write_atomic
from wbc_model.core.lock import locked, take
from wbc_model.core.model_card import CARD, read_card
from wbc_model.core.written import read_yaml
from wbc_model.params import Params

_ORPHAN_SECONDS: Final = 60  # for the children of a killed flow to end by themselves
TURNSTILE: Final = ".wbc/incoming.lock"  # between asking whether somebody works on the pools, and changing them
RETRAINING: Final = "a retraining"
_LEARNED: Final = ".wbc/learned.csv"
_SCHEME: Final = "2-"  # of the name of a retraining's parameters
_held: dict[Path, int] = {}


class Busy(WbcError):
    """Another retraining, or a stage, has the workspace."""


@dataclass
class State:
    """A retraining: `key` names it; `params` is the hash of the parameters it began with; `after_cycle` the last cycle whose
    labels were there before; `cycle` (0, 1, ...) the one it is in. `rows` are finished cycles, `answers` labels that are on
    their way into the label log, `status` running, waiting (for people) or done. At `asked_at` the present round's cells were
    given to people as the `queue` of that name; both are empty before. `scheduled`: it goes on by itself when enough are
    agreed."""

    key: str
    params: str
    started: str
    after_cycle: int
    commit: bool
    cycle: int = 0
    status: str = "running"
    rows: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, str]] | None = None
    gate: dict[str, Any] | None = None
    queue: str = ""
    asked_at: str = ""
    scheduled: bool = False

    @property
    def label_cycle(self) -> int:
        """The number that labels of the present round carry."""
        return self.after_cycle + self.cycle + 1

    def goes_on_with(self, params: Params) -> bool:
        """Whether it has these parameters, so that an unfinished one goes on. One that an earlier version began goes on, too: its
        parameters are named in the way of that version."""
        return not self.params.startswith(_SCHEME) or self.params == params_name(params)

    def write(self, workspace: Path) -> None:
        write_atomic(_path(workspace), json.dumps(asdict(self), indent=1) + "\n")


def params_name(params: Params) -> str:
    """A name of the parameters that make a retraining what it is; when one is started, and where it works, is not among them."""
    apart: Any = {"schedule": True, "retrain": {"runner"}}
    return _SCHEME + hashlib.sha256(params.model_dump_json(exclude=apart).encode()).hexdigest()[:16]


def _path(workspace: Path) -> Path:
    return workspace / ".wbc/retrain.json"


def read_state(workspace: Path) -> State | None:
    """The last retraining of this workspace, or None; raises WbcError when its file is damaged."""
    path = _path(workspace)
    if not path.exists():
        return None
    try:
        return State(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError):
        raise WbcError(f"{path} is damaged or of another version: remove it to begin a new retraining") from None


def last_cycle(workspace: Path) -> int:
    """The highest cycle among the labelled cells, 0 where there is none."""
    labelled = Pools.read(workspace / "data/pools").frames["labelled"]
    return int(labelled["cycle"].max()) if len(labelled) else 0


def note_learned(workspace: Path, pools: Pools) -> None:
    """Note which labels the last training has learned from: what differs later is new."""
    write_atomic(workspace / _LEARNED, to_csv(_to_learn(workspace, pools)))


def _to_learn(workspace: Path, pools: Pools) -> pd.DataFrame:
    """The labelled cells that are not in quarantine: sha256, label."""
    return pools.without(quarantined(workspace / "data")).frames["labelled"][["sha256", "label"]]


def new_labels(workspace: Path) -> int:
    """Cells whose label has come, or become another, since the last training of this workspace. What a retraining on another
    machine has learned, whose candidate came by DVC, is not new either. Where nothing was trained they are all."""
    if not Pools.exist(workspace / "data/pools"):
        return 0
    labelled, path = _to_learn(workspace, Pools.read(workspace / "data/pools")), workspace / _LEARNED
    candidate = _learned_by_candidate(workspace, here=path.exists())
    if not path.exists() and candidate is None:  # it was trained before this was noted, or never
        state = read_state(workspace)
        return len(labelled) - (state.rows[-1]["labelled"] if state and state.rows else 0)
    learned = set(map(tuple, read_table(path, ["sha256", "label"]).to_numpy())) if path.exists() else set()
    new = [cell for cell in map(tuple, labelled.to_numpy()) if cell not in learned]
    if candidate is None or not new:
        return len(new)
    cells, names = [cell for cell, _ in new], [name for _, name in new]
    return int((~candidate.knows(cells) | candidate.relabelled(cells, names)).sum())


def taken_back(workspace: Path) -> int:
    """How many cells the last training has learned from that have no label any more. A person has called them none of the five
    classes since, say."""
    path = workspace / _LEARNED
    if not path.exists() or not Pools.exist(workspace / "data/pools"):
        return 0
    labelled = set(Pools.read(workspace / "data/pools").frames["labelled"]["sha256"])
    gone = [cell for cell in read_table(path, ["sha256", "label"])["sha256"] if cell not in labelled]
    candidate = _learned_by_candidate(workspace, here=True)
    return len(gone) if candidate is None or not gone else int(candidate.knows(gone).sum())


def _learned_by_candidate(workspace: Path, here: bool) -> CellFilter | None:
    """The cells that the candidate has learned from. With `here` only of one that a retraining has made: the gate was asked about
    no other, and its labels wait for that."""
    folder, versions = workspace / "models/candidate", workspace / "data/versions.csv"
    if not (folder / CARD).exists():
        return None
    card = read_card(folder, verify=False)
    rows = csv.DictReader(versions.read_text().splitlines()) if versions.exists() else ()
    return card.cells.get("labelled") if not here or card.pool_version in {row["version"] for row in rows} else None


def last_retraining(workspace: Path) -> State | None:
    """The state of the last retraining. None in a site that was only onboarded: without a validation cell one that was tried
    there came to nothing, and none goes on."""
    state = read_state(workspace)
    if state is None or site_of(workspace) is None or Pools.read(workspace / "data/pools", check=False).counts()["validation"]:
        return state
    return None


def label_cycle(workspace: Path) -> int:
    """The number that labels given now carry: that of the round which a retraining waits for, else of the one to come."""
    state = last_retraining(workspace)
    if state is None:
        return onboarding_round(workspace) if site_of(workspace) else max(1, last_cycle(workspace))
    return state.label_cycle


def onboarding_round(site: Path) -> int:
    """The round of onboarding that labels given now belong to: that of the queue's cells which have a label, else the next."""
    from flows.labels import read_queue

    labelled = Pools.read(site / "data/pools").frames["labelled"]
    asked = set(read_queue(site)["sha256"]) if (site / "data/queue.csv").exists() else set()
    begun = labelled[labelled["sha256"].isin(asked)]
    return int(begun["cycle"].max()) if len(begun) else last_cycle(site) + 1


@contextlib.contextmanager
def hold_lock(workspace: Path, what: str = RETRAINING, waiting: Callable[[str], None] | None = None) -> Iterator[int]:
    """Have the workspace's lock for the block; yields its descriptor, for children to inherit.

    Within the process that holds it already this does nothing. `what` is who holds it, in words. Raises Busy naming the holder;
    with `waiting` that is told instead, once, and the lock is waited for.
    """
    path = (workspace / ".wbc/retrain.lock").resolve()
    if path in _held:
        yield _held[path]
        return
    make_folder(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, waiting)
        with locked(workspace / TURNSTILE):  # whoever saw the lock free has changed the pools by now
            _held[path] = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"what": what, **_myself()}).encode(), 0)
        yield descriptor
    finally:
        _held.pop(path, None)
        os.close(descriptor)


def _myself() -> dict[str, Any]:
    import psutil

    return {"pid": os.getpid(), "created": began(psutil.Process()), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}


@contextlib.contextmanager
def stage_lock(workspace: Path, stage: str) -> Iterator[None]:
    """The lock for a stage: that of the flow which runs it, or of the stage's first process where there are several, else its
    own. Raises Busy."""
    if _of_an_ancestor(workspace):
        yield
        return
    with hold_lock(workspace, f"`wbc {stage}`"):
        yield


def _of_an_ancestor(workspace: Path) -> bool:
    import psutil

    path = workspace / ".wbc/retrain.lock"
    if not path.exists():
        return False
    with path.open("rb") as file:
        holder = _holder(file.fileno())
    above = {parent.pid: began(parent) for parent in psutil.Process().parents()}
    return holder is not None and abs(above.get(holder["pid"], 0.0) - holder["created"]) < 1 and is_locked(workspace)


def at_work(workspace: Path) -> str | None:
    """Who works on the pools as they are now; they must stay so. It is a retraining, a stage, or DVC. DVC notes after a stage
    what the stage's inputs are, and its next stage must have the same. None where nobody works on them, or this process does."""
    path = (workspace / ".wbc/retrain.lock").resolve()
    if path in _held:
        return None
    if is_locked(workspace):
        with path.open("rb") as file:
            holder = _holder(file.fileno())
        return f"{holder.get('what', RETRAINING)} (pid {holder['pid']})" if holder else RETRAINING
    return _dvc_works(workspace)


def _dvc_works(workspace: Path) -> str | None:
    """The `dvc` command that makes something of this workspace's pools, by DVC's own files. It runs a stage that reads them, or
    it is a `dvc repro` between two stages."""
    for folder in (parent / ".dvc" for parent in (workspace.resolve(), *workspace.resolve().parents)):
        if folder.is_dir():
            return _reader(folder / "tmp/rwlock", workspace.resolve() / "data/pools") or _reproducing(folder / "tmp/lock")
    return None


def _reader(rwlock: Path, path: Path) -> str | None:
    import psutil

    with contextlib.suppress(OSError, ValueError):
        for reader in json.loads(rwlock.read_text(encoding="utf-8")).get("read", {}).get(str(path), []):
            if psutil.pid_exists(int(reader["pid"])):
                return f"`dvc {reader['cmd']}` (pid {reader['pid']})"
    return None


def _reproducing(lock: Path) -> str | None:
    """The `dvc repro` that DVC's lock names: who had it last, and has it again as soon as its stage has ended."""
    import psutil

    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int(lock.read_text(encoding="utf-8")))
        if "repro" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
            return f"`dvc repro` (pid {process.pid})"
    return None


@contextlib.contextmanager
def one_version(workspace: Path, stage: str = "") -> Iterator[None]:
    """The block works on the pools as they are at its start, and with what params.yaml says of the `stage` then: DVC notes both
    when the stage has ended. Raises WbcError at the block's end where they have changed."""
    before, numbers = _pool_digests(workspace), _numbers(workspace, stage)
    yield
    if _pool_digests(workspace) != before:
        raise WbcError("data/pools was changed meanwhile, by a checkout or by hand: what was made does not count; run it again")
    now = _numbers(workspace, stage)
    if changed := sorted(key for key in numbers.keys() | now.keys() if numbers.get(key) != now.get(key)):
        raise WbcError(f"params.yaml was changed meanwhile ({', '.join(changed)}): what was made does not count; run it again")


def _numbers(workspace: Path, stage: str) -> dict[str, Any]:
    """The values of params.yaml that a stage depends on by dvc.yaml."""
    pipeline = workspace / "dvc.yaml"
    document = read_yaml(pipeline) if stage and pipeline.is_file() else {}
    wanted = (document.get("stages", {}).get(stage) or {}).get("params", [])
    given = read_yaml(workspace / "params.yaml") if wanted else {}
    keys = [key.replace("${preset}", str(given.get("preset"))) for key in wanted if isinstance(key, str)]
    return {key: _at(given, key) for key in keys}


def _at(document: Any, key: str) -> Any:
    for name in key.split("."):
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _pool_digests(workspace: Path) -> list[str]:
    files = [workspace / "data/pools" / f"{name}.csv" for name in POOLS]
    return [file_sha256(path) if path.exists() else "" for path in files]


@contextlib.contextmanager
def writing(workspace: Path, what: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Have the workspace for a change of its data: nobody learns from them, and no `dvc` notes them as what it has just used.
    `waiting` is told who is waited for."""
    with hold_lock(workspace, what, waiting):
        worker = _dvc_works(workspace)
        if worker:
            waiting(f"{worker} runs in this workspace: waiting for its end; after Ctrl-C nothing has changed")
        while _dvc_works(workspace):
            time.sleep(0.2)
        yield


def _take(descriptor: int, waiting: Callable[[str], None] | None = None) -> None:
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while not take(descriptor, wait=False):
        holder = _holder(descriptor)
        if holder and alive(holder["pid"], holder["created"]):
            what = holder.get("what", RETRAINING)
            here = f"{what} runs in this workspace already (pid {holder['pid']}, since {holder['since']})"
            if waiting is None:
                on = "; the next `wbc retrain` goes on where it was" if what == RETRAINING else ""
                raise Busy(f"{here}: wait for it, or stop that process{on}")
            waiting(f"{here}: waiting for its end; after Ctrl-C nothing has changed")
            waiting, deadline = lambda line: None, time.monotonic() + _ORPHAN_SECONDS
        if time.monotonic() > deadline:
            raise WbcError(
                "a retraining was killed and its children do not end: look for a `dvc repro` process in this workspace"
            )
        time.sleep(0.2)


def _holder(descriptor: int) -> dict[str, Any] | None:
    try:
        return dict(json.loads(os.pread(descriptor, 4096, 0)))
    except ValueError:  # it has the lock and is about to write its name
        return None


def is_locked(workspace: Path) -> bool:
    """Whether a retraining runs in the workspace."""
    path = workspace / ".wbc/retrain.lock"
    if not path.exists():
        return False
    with locked(path, wait=False) as free:
        return not free
