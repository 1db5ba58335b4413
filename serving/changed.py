"""Noticing that a file was replaced or rewritten, without reading it."""

from pathlib import Path

Signature = tuple[int, ...]


def signature(path: Path) -> Signature:
    """What tells a file from another that was put in its place or written over it; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
