"""A disk that loses its power: what of a folder outlives it is what was flushed, and perhaps some of the rest.

The strictest reading of POSIX: of a file outlives what `fsync` was called for, of a folder the names that it had when it was
flushed itself. Names that came or went since may have reached the disk or not, those of each folder for themselves.
"""

import contextlib
import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

NAMING: Final = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir")
FLUSHING: Final = ("fsync", "fdatasync")
Names = dict[str, int]  # of one folder: each name's inode
Files = dict[Path, bytes | None]  # a whole folder: what each file holds


@dataclass(frozen=True)
class Moment:
    """The power is cut here. `flushed` and `since` have by a folder's inode the names that it was flushed with, and those that it
    has had since; `data` has a file's flushed content by its inode. `done`: what had been acknowledged by then."""

    flushed: dict[int, Names]
    since: dict[int, tuple[Names, ...]]
    data: dict[int, bytes]
    done: tuple[Any, ...]


class Disk:
    """Watches a folder from now on; `moments` has one for each change of a name and each flush. What is there is flushed."""

    def __init__(self, root: Path) -> None:
        self.moments: list[Moment] = []
        self.done: tuple[Any, ...] = ()
        self._root = root
        self._root_inode = root.stat().st_ino
        self._held: dict[int, int] = {}  # open files: so that no inode is used a second time
        self._folders: set[int] = set()
        self._data: dict[int, bytes] = {}
        self._flushed = self._names()
        self._since: dict[int, tuple[Names, ...]] = {}
        for inode, descriptor in self._held.items():
            if inode not in self._folders:
                self._data[inode] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    @contextlib.contextmanager
    def watching(self) -> Iterator["Disk"]:
        """Note what is done to the folder while the block lasts."""
        with pytest.MonkeyPatch.context() as patch:
            for name in NAMING:
                patch.setattr(os, name, self._noted(getattr(os, name)))
            for name in FLUSHING:
                patch.setattr(os, name, self._flush(getattr(os, name)))
            yield self
        self._note()
        for descriptor in self._held.values():
            os.close(descriptor)

    def acknowledge(self, what: Any) -> None:
        """Somebody was told that this is done: from the next moment on it must not be lost."""
        self.done = (*self.done, what)
        self._note()

    def _noted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            answer = real(*arguments, **named)
            self._note()
            return answer

        return call

    def _flush(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            real(descriptor)
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                live = self._names().get(status.st_ino)
                if live is not None:
                    self._flushed = {**self._flushed, status.st_ino: live}
                    self._since = {inode: names for inode, names in self._since.items() if inode != status.st_ino}
            else:
                self._data = {**self._data, status.st_ino: Path(f"/proc/self/fd/{descriptor}").read_bytes()}
            self._note()

        return call

    def _note(self) -> None:
        for inode, names in self._names().items():
            seen = self._since.get(inode, ())
            if names != (seen[-1] if seen else self._flushed.get(inode, {})):
                self._since = {**self._since, inode: (*seen, names)}
        self.moments.append(Moment(self._flushed, self._since, self._data, self.done))

    def _names(self) -> dict[int, Names]:
        """The names in every folder now, by the folder's inode."""
        found: dict[int, Names] = {}
        for folder, _, _ in os.walk(self._root):
            inode = Path(folder).stat().st_ino
            self._hold(Path(folder), inode)
            found[inode] = {}
            for entry in os.scandir(folder):
                found[inode][entry.name] = entry.inode()
                self._hold(Path(entry.path), entry.inode())
            self._folders.add(inode)
        return found

    def _hold(self, path: Path, inode: int) -> None:
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_RDONLY)

    def after(self, moment: Moment, chance: random.Random | None = None, latest: bool = False) -> Files:
        """What a new start may find: no name that was not flushed, the `latest` ones, or some of them by `chance`. Empty folders
        are None."""
        found: Files = {}

        def lay(inode: int, place: Path) -> None:
            if inode not in self._folders:
                found[place] = moment.data.get(inode, b"")
                return
            choices = [moment.flushed.get(inode, {}), *moment.since.get(inode, ())]
            names = choices[-1] if latest else chance.choice(choices) if chance else choices[0]
            if not names:
                found[place] = None
            for name, within in names.items():
                lay(within, place / name)

        lay(self._root_inode, Path())
        return found

    def worlds(self) -> Iterator[tuple[str, Files, tuple[Any, ...]]]:
        """Every different state in which a cut may leave the folder: when, what is there, and what had been acknowledged."""
        chance, seen = random.Random(5), set()
        for number, moment in enumerate(self.moments):
            for kind in ("flushed", "latest", "chance"):
                found = self.after(moment, chance if kind == "chance" else None, kind == "latest")
                name = repr((sorted(found.items()), len(moment.done)))
                if name not in seen:
                    seen.add(name)
                    yield f"moment {number} of {len(self.moments)}, {kind}", found, moment.done


def laid(files: Files, target: Path) -> Path:
    """These files, in a folder."""
    for path, data in files.items():
        if data is None:
            (target / path).mkdir(parents=True, exist_ok=True)
        else:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(data)
    return target
