"""Files that are written for people to fill in or change: what somebody has put in is never written over.

The workspace remembers, in `.wbc/handed_out.json`, the SHA-256 of what it wrote where. Before a write the file has both, that of
the old content and that of the new: a kill in between makes neither a stranger. A file that is no longer that, byte for byte, is
somebody's work.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from wbc_model.core.errors import WbcError
from wbc_model.core.files import write_atomic
from wbc_model.core.lock import locked

_RECORD: Final = ".wbc/handed_out.json"


def _record(workspace: Path) -> dict[str, str]:
    path = workspace / _RECORD
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except ValueError:  # a record that cannot be read makes every file somebody's work
        return {}


def _key(path: Path, workspace: Path) -> str:
    """A name that holds when the workspace is moved."""
    place, root = path.resolve(), workspace.resolve()
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else place.as_posix()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _as_bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data


def is_ours(path: Path, workspace: Path) -> bool:
    """Whether `path` is byte for byte what the workspace wrote there, or is not there."""
    if not path.exists():
        return True
    return path.is_file() and _digest(path.read_bytes()) in _record(workspace).get(_key(path, workspace), "").split()


def was_handed_out(path: Path, workspace: Path) -> bool:
    """Whether the workspace remembers to have written there."""
    return _key(path, workspace) in _record(workspace)


def adopt(paths: Iterable[Path], workspace: Path) -> None:
    """Remember files as they are, for instance those that git keeps: what takes their place takes nothing from anybody."""
    with locked(workspace / ".wbc/handed_out.lock"):
        kept = _record(workspace)
        kept |= {_key(path, workspace): _then_and_now(path, path.read_bytes()) for path in paths if not is_ours(path, workspace)}
        write_atomic(workspace / _RECORD, json.dumps(kept, indent=1, sort_keys=True) + "\n")


def hand_out_bytes(path: Path, data: bytes) -> None:
    """Write a file whose name says what is in it; raises WbcError where something else is there."""
    _refuse_other([(path, data)])
    if not path.exists():
        write_atomic(path, data)


def _refuse_other(files: Iterable[tuple[Path, bytes]]) -> None:
    for path, data in files:
        if path.exists() and not (path.is_file() and path.read_bytes() == data):
            raise WbcError(f"{path} is another file than the one to be written: it is left as it is. Move it away")


def refuse_edited(files: Iterable[tuple[Path, bytes | str]], workspace: Path) -> None:
    """Raises WbcError naming those of these files that hold anything but what was written there, or what is to be."""
    _refuse(
        path
        for path, data in files
        if not is_ours(path, workspace) and not (path.is_file() and path.read_bytes() == _as_bytes(data))
    )


def refuse_foreign(paths: Iterable[Path], workspace: Path) -> None:
    """As `refuse_edited`, before it is known what is to be written: long work is not begun for nothing."""
    _refuse(path for path in paths if not is_ours(path, workspace))


def _refuse(paths: Iterable[Path]) -> None:
    names = [str(path) for path in paths]
    if names:
        others = f" (so are {', '.join(names[1:])})" if names[1:] else ""
        raise WbcError(
            f"{names[0]} was not written here, or was changed since: it is left as it is{others}. "
            "Give another name, or move it away"
        )


def hand_out(files: Iterable[tuple[Path, bytes | str]], workspace: Path) -> None:
    """Write these files and remember them; raises WbcError as `refuse_edited`, before the first is written."""
    content = [(path, _as_bytes(data)) for path, data in files]
    with locked(workspace / ".wbc/handed_out.lock"):
        refuse_edited(content, workspace)
        kept = _record(workspace) | {_key(path, workspace): _then_and_now(path, data) for path, data in content}
        write_atomic(workspace / _RECORD, json.dumps(kept, indent=1, sort_keys=True) + "\n")
        for path, data in content:
            if not path.is_file() or path.read_bytes() != data:
                write_atomic(path, data)


def _then_and_now(path: Path, data: bytes) -> str:
    digests = [_digest(path.read_bytes())] if path.is_file() else []
    return " ".join(dict.fromkeys([*digests, _digest(data)]))


def hand_out_folder(built: Path, folder: Path, workspace: Path | None) -> None:
    """Put the files of a folder that was built elsewhere into `folder`, as `hand_out` does; outside a workspace, which could
    remember them, nothing is written over but the same."""
    files = [(folder / path.name, path.read_bytes()) for path in sorted(built.iterdir())]
    if workspace is not None:
        hand_out(files, workspace)
        return
    _refuse_other(files)
    for path, data in files:
        hand_out_bytes(path, data)


def move_aside(path: Path) -> Path:
    """Give a file that somebody changed another name beside its own, one that is free; returns it."""
    number = 1
    while (other := path.with_name(f"{path.stem}.edited-{number}{path.suffix}")).exists():
        number += 1
    path.rename(other)
    return other
