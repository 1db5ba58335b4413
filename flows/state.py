"""What a retraining remembers between its steps, so that one that was killed goes on where it was.

`.wbc/retrain.json` is replaced in one step after each step that counts; every step may be repeated. One retraining at a time
has a workspace to itself, by a lock that the kernel frees when its holder and the holder's DVC children are gone.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from flows.guard import alive
from wbc_model.errors import WbcError
from wbc_model.files import write_atomic
from wbc_model.pools import Pools

_ORPHAN_SECONDS: Final = 60  # for the children of a killed flow to end by themselves
_held: dict[Path, int] = {}


class Busy(WbcError):
    """Another retraining has the workspace."""


@dataclass
class State:
    """A retraining: `key` names it; `params` is the hash of the parameters it began with; `after_cycle` the last cycle whose
    labels were there before; `cycle` (0, 1, ...) the one it is in. `rows` are finished cycles, `answers` labels that are on
    their way into the label log, `status` running, waiting (for people) or done."""

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

    @property
    def label_cycle(self) -> int:
        """The number that labels of the present round carry."""
        return self.after_cycle + self.cycle + 1

    def write(self, workspace: Path) -> None:
        write_atomic(_path(workspace), json.dumps(asdict(self), indent=1) + "\n")


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


def label_cycle(workspace: Path) -> int:
    """The number that labels given now carry: that of the round which a retraining waits for, else of the one to come."""
    state = read_state(workspace)
    if state is None:
        return max(1, last_cycle(workspace))
    return state.label_cycle


@contextlib.contextmanager
def hold_lock(workspace: Path) -> Iterator[int]:
    """Have the workspace's retraining lock for the block; yields its descriptor, for children to inherit.

    Within the process that holds it already this does nothing. Raises WbcError naming the holder.
    """
    path = (workspace / ".wbc/retrain.lock").resolve()
    if path in _held:
        yield _held[path]
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor)
        _held[path] = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        yield descriptor
    finally:
        _held.pop(path, None)
        os.close(descriptor)


def _myself() -> dict[str, Any]:
    import psutil

    return {"pid": os.getpid(), "created": psutil.Process().create_time(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}


def _take(descriptor: int) -> None:
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        holder = _holder(descriptor)
        if holder and alive(holder["pid"], holder["created"]):
            raise Busy(
                f"a retraining runs in this workspace already (pid {holder['pid']}, since {holder['since']}): "
                "wait for it, or stop that process; the next `wbc retrain` goes on where it was"
            )
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
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
