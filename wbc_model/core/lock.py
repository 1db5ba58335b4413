"""Locks between processes: the kernel's flock, which ends with its holder however that ends. See docs/decisions/046."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from wbc_model.core.files import make_folder


@contextmanager
def locked(path: Path, shared: bool = False, wait: bool = True, mode: int = 0o666) -> Iterator[bool]:
    """Hold a lock file, which is made where it is missing; yields whether it is held.

    `shared`: together with all who hold it so; `wait`: for whoever holds it, else the answer may be no; `mode`: of a new file,
    less the umask. What is in the file stays as it is. Raises OSError where it cannot be opened.
    """
    make_folder(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, mode)
    try:
        yield take(descriptor, shared, wait)
    finally:
        os.close(descriptor)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder alone, waiting for whoever holds it: for folders in which a lock file would be in the way, and for files that
    are replaced. Raises OSError where it cannot be opened."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        take(descriptor)
        yield
    finally:
        os.close(descriptor)


def take(file: int | IO[bytes], shared: bool = False, wait: bool = True) -> bool:
    """Lock an opened file; answers whether it is held now. All who inherit it hold it too, until the last of them closes it."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
