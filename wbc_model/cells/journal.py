"""Files of a workspace that change together: the four pools, and what is written in one step with them.

A write first puts the new content of all files into a journal, then renames file by file, then removes the journal. Whoever comes
next finishes a write that was killed in between. Readers and writers exclude each other by a lock; nobody sees half a write.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from wbc_model.core.errors import WbcError
from wbc_model.core.files import write_atomic
from wbc_model.core.lock import locked

_STATE: Final = ".wbc"
_JOURNAL: Final = "pools.journal"
_LOCK: Final = "pools.lock"


def pools_lock(directory: Path, shared: bool = False) -> AbstractContextManager[bool]:
    """Hold the pools in `directory`: to write them, or `shared` to read them. Waits for those who stand in the way."""
    return locked(_workspace(directory) / _STATE / _LOCK, shared)


def is_unfinished(directory: Path) -> bool:
    """Whether a write of the pools in `directory` was interrupted, or is going on."""
    return _journal(directory).exists()


def write_together(directory: Path, texts: Mapping[Path, str]) -> None:
    """Give these files new content, all of them or, after a crash, none; those that have it already are left alone. Call it with
    the lock, after `roll_forward`."""
    changed = {path: text for path, text in texts.items() if not path.is_file() or path.read_bytes() != text.encode()}
    if not changed:
        return
    workspace = _workspace(directory)
    entries = [
        {"path": os.path.relpath(path.parent.resolve() / path.name, workspace), "before": _digest(path), "text": text}
        for path, text in changed.items()
    ]
    write_atomic(_journal(directory), json.dumps(entries))
    roll_forward(directory)


def roll_forward(directory: Path) -> None:
    """Bring the files to the state of the journal, then remove it: safe to be killed in and to repeat. Call it with the lock.

    Raises WbcError where a file is neither as it was before the write nor as it is to be.
    """
    journal = _journal(directory)
    if not journal.exists():
        return
    workspace = _workspace(directory)
    entries = json.loads(journal.read_text(encoding="utf-8"))
    for entry in entries:
        path = workspace / entry["path"]
        after = hashlib.sha256(entry["text"].encode()).hexdigest()
        if _digest(path) not in (entry["before"], after):
            raise WbcError(
                f"{path} was changed by hand or by a checkout while a write of the pools was unfinished: "
                f"remove {journal} to keep what is there now"
            )
    for leftover in directory.glob(".*.csv.*"):  # temporary files of the write that was killed
        leftover.unlink()
    for entry in entries:
        path = workspace / entry["path"]
        if _digest(path) != hashlib.sha256(entry["text"].encode()).hexdigest():
            write_atomic(path, entry["text"])
    journal.unlink()


def _workspace(directory: Path) -> Path:
    """`data/pools` lies two levels under its workspace, whose `.wbc` holds what is not versioned."""
    return directory.resolve().parent.parent


def _journal(directory: Path) -> Path:
    return _workspace(directory) / _STATE / _JOURNAL


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
