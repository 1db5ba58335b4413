"""Files of a workspace that change together: the four pools, and what is written in one step with them.

A write first puts each new file beside the one that it replaces, whole and on the disk. Then the journal names them all with
their hashes, and from then on the write has happened. Each takes its place by a rename, and the journal goes. Whoever comes next
finishes a write that was killed in between. Readers and writers exclude each other by a lock; nobody sees half a write.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from wbc_model.core.errors import WbcError
from wbc_model.core.files import file_sha256, make_folder, remove_durably, sync, write_atomic
from wbc_model.core.lock import locked

Content = str | Iterable[bytes]  # of a file: its text, or what it is made of, piece by piece
_STATE: Final = ".wbc"
_JOURNAL: Final = "pools.journal"
_LOCK: Final = "pools.lock"
_NEW: Final = ".csv.new"
_COPIED: Final = 2**20  # bytes of an old file that are copied at a time


def pools_lock(directory: Path, shared: bool = False) -> AbstractContextManager[bool]:
    """Hold the pools in `directory`: to write them, or `shared` to read them. Waits for those who stand in the way."""
    return locked(_workspace(directory) / _STATE / _LOCK, shared)


def is_unfinished(directory: Path) -> bool:
    """Whether a write of the pools in `directory` has happened and is not carried out: it was interrupted, or is going on."""
    return _journal(directory).exists()


def is_untidy(directory: Path) -> bool:
    """Whether `roll_forward` has something to do: an unfinished write, or new files of one that never happened."""
    return is_unfinished(directory) or any(_leftovers(directory))


def write_together(directory: Path, contents: Mapping[Path, Content]) -> None:
    """Give these files new content, all of them or, after a crash, none; those that have it already are left alone. Call it with
    the lock, after `roll_forward`."""
    workspace = _workspace(directory)
    entries = []
    try:
        for path, content in contents.items():
            after = _write_beside(path, [content.encode()] if isinstance(content, str) else content)
            if after is not None:
                name = os.path.relpath(path.parent.resolve() / path.name, workspace)
                entries.append({"path": name, "before": _digest(path), "after": after})
    except BaseException:
        for path in contents:
            _beside(path).unlink(missing_ok=True)
        raise
    if entries:
        write_atomic(_journal(directory), json.dumps(entries))
        _take_places([workspace / entry["path"] for entry in entries], _journal(directory))


def _write_beside(path: Path, blocks: Iterable[bytes]) -> str | None:
    """Write the new content of a file beside it and return its hash; None, and no file, where it is what there is."""
    new, digest, same = _beside(path), hashlib.sha256(), 0
    make_folder(path.parent)
    blocks = iter(blocks)
    first = b""
    with (path if path.is_file() else Path(os.devnull)).open("rb") as old:
        for first in blocks:
            digest.update(first)
            if old.read(len(first)) != first:
                break
            same += len(first)
        else:
            if path.is_file() and not old.read(1):
                return None
            first = b""
        with new.open("wb") as file:
            old.seek(0)
            for start in range(0, same, _COPIED):
                file.write(old.read(min(_COPIED, same - start)))
            file.write(first)
            for block in blocks:
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    sync(path.parent)
    return digest.hexdigest()


def roll_forward(directory: Path) -> None:
    """Bring the files to the state of the journal, then remove it: safe to be killed in and to repeat. Call it with the lock.

    Raises WbcError where a file is neither as it was before the write nor as it is to be.
    """
    journal, workspace = _journal(directory), _workspace(directory)
    if journal.exists():
        entries = [_with_new_file(entry, workspace) for entry in json.loads(journal.read_text(encoding="utf-8"))]
        due = []
        for entry in entries:
            path = workspace / entry["path"]
            found = _digest(path)
            if found == entry["after"]:
                continue
            if found != entry["before"] or _digest(_beside(path)) != entry["after"]:
                raise WbcError(
                    f"{path} was changed by hand or by a checkout while a write of the pools was unfinished: "
                    f"remove {journal} to keep what is there now"
                )
            due.append(path)
        _take_places(due, journal)
    for leftover in _leftovers(directory):
        leftover.unlink()


def _take_places(due: Collection[Path], journal: Path) -> None:
    """Put the new files of `due` in the places of the old ones, and remove the journal."""
    for path in due:
        _beside(path).chmod(0o644)
        os.replace(_beside(path), path)
    for folder in {path.parent for path in due}:
        sync(folder)
    remove_durably(journal)  # one that came back would want the files as they were then


def _with_new_file(entry: dict[str, Any], workspace: Path) -> dict[str, Any]:
    """An entry of the journal whose new file is there. Earlier versions had its text in the journal."""
    if "text" in entry:
        _write_beside(workspace / entry["path"], [entry["text"].encode()])
        entry["after"] = hashlib.sha256(entry["text"].encode()).hexdigest()
    return entry


def _leftovers(directory: Path) -> Iterator[Path]:
    """New files of writes that were killed, in the pools' folder and the one above, where all lie that changes with them."""
    yield from directory.glob(".*.csv.*")
    yield from directory.parent.glob(f".*{_NEW}")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name.removesuffix('.csv')}{_NEW}")


def _workspace(directory: Path) -> Path:
    """`data/pools` lies two levels under its workspace, whose `.wbc` holds what is not versioned."""
    return directory.resolve().parent.parent


def _journal(directory: Path) -> Path:
    return _workspace(directory) / _STATE / _JOURNAL


def _digest(path: Path) -> str:
    return file_sha256(path) if path.is_file() else ""
