"""Writing files so that a crash at any moment leaves either the old content or the new, never a half."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Of a file, or of a directory: its names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, so that a power cut does not take it away with what it holds."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def remove_durably(path: Path) -> None:
    """Remove a file so that no power cut brings it back."""
    path.unlink()
    sync(path.parent)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file: temporary name in the same directory, fsync, rename."""
    write_atomic_by(path, lambda temporary: temporary.write_bytes(data.encode() if isinstance(data, str) else data))


def write_atomic_by(path: Path, write: Callable[[Path], object]) -> None:
    """The same for what `write` puts into the file that it is given: a library that streams needs no copy in memory."""
    make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        write(Path(name))
        sync(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    sync(path.parent)


def append_durably(path: Path, text: str) -> None:
    """Append whole lines and fsync; a torn last line that an earlier crash left is cut off first."""
    make_folder(path.parent)
    with path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            file.truncate(whole)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


def replace_directory(temporary: Path, final: Path) -> None:
    """Put a finished directory in the place of another on the same file system.

    The files of `temporary` and their names are fsynced first. Between the two renames `final` is missing for an instant, never
    half written; what it held is deleted last.
    """
    for path in [temporary, *sorted(temporary.rglob("*"))]:
        if path.is_file() or path.is_dir():
            sync(path)
    make_folder(final.parent)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def building(final: Path) -> Iterator[Path]:
    """A folder beside `final` to build it in, which takes its place when the block ends; where the block raises it is gone, and
    `final` as it was."""
    make_folder(final.parent)
    temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        replace_directory(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


Signature = tuple[int, ...]


def signature(path: Path) -> Signature:
    """What tells a file from another that was put in its place or written over it; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
