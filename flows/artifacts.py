"""Where MLflow's files lie: relative to the workspace. It can be moved, and a copy never writes into the original.

MLflow itself makes every local path absolute when an experiment is created. A database in the workspace is put right after that;
so is one that an earlier version made, wherever its workspace lay then.
"""

import contextlib
import hashlib
import os
import re
import sqlite3
from pathlib import Path
from typing import Final

from wbc_model.core.errors import WbcError
from wbc_model.core.files import make_folder, write_atomic_by
from wbc_model.core.lock import locked_folder

FOLDER: Final = "mlartifacts"
_SQLITE: Final = "sqlite:///"
_PLACES: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
_SECONDS: Final = 60  # to wait for another process that writes


def database_of(uri: str, workspace: Path) -> Path | None:
    """The file of an SQLite tracking URI, where it lies in the workspace; else None."""
    path = Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None
    return path if path is not None and path.resolve().is_relative_to(workspace.resolve()) else None


def make_database(uri: str) -> None:
    """Make the file of an SQLite tracking URI where it is missing, whole. MLflow makes its tables one by one, and takes no file
    in which a kill has left some of them. Raises MlflowException."""
    if not uri.startswith(_SQLITE) or "?" in uri:
        return
    from mlflow import MlflowClient

    database = Path(uri.removeprefix(_SQLITE))
    make_folder(database.parent)
    with locked_folder(database.parent):
        if database.exists() and database.stat().st_size:
            return
        for leftover in database.parent.glob(f".{database.name}.????????*"):
            leftover.unlink()
        write_atomic_by(database, lambda temporary: MlflowClient(f"{_SQLITE}{temporary}").search_experiments(max_results=1))


def make_relative(database: Path) -> bool:
    """Let an MLflow database name the files in its workspace's `mlartifacts` relative to the workspace; returns whether it named
    them otherwise. Raises WbcError when the file is damaged."""
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=_SECONDS)) as connection, connection:
            names = [row[0] or "" for row in connection.execute("select artifact_location from experiments")]
            roots = {name for name in names if re.fullmatch(rf"(file://)?/.*/{FOLDER}", name)}
            for root in roots:
                for table, column in _PLACES:
                    _rename(connection, table, column, root)
            return bool(roots)
    except sqlite3.DatabaseError as error:
        raise WbcError(f"{database}: {error}; bring back a backup, or move it away; it holds runs and models") from None


def _rename(connection: sqlite3.Connection, table: str, column: str, root: str) -> None:
    """Replace a folder at the start of a column by FOLDER, where the table has such a column."""
    columns = {row[1] for row in connection.execute(f"pragma table_info({table})")}
    if column in columns:
        connection.execute(
            f"update {table} set {column} = ? || substr({column}, ?) where {column} = ? or substr({column}, 1, ?) = ?",  # noqa: S608 - names of ours
            (FOLDER, len(root) + 1, root, len(root) + 1, f"{root}/"),
        )


def located(uri: str, workspace: Path) -> str:
    """An artifact URI for this process, wherever it stands: relative paths are the workspace's. What has a scheme is no path, as
    `mlflow-artifacts:/1/...`, by which a server names what goes through it."""
    return uri if uri.startswith("/") or re.match(r"[a-z][a-z0-9+.-]*:", uri) else str(workspace / uri)


CACHE: Final = ".dvc/cache/files/md5"


_LARGE: Final = 2**20


def share(folder: Path, workspace: Path) -> None:
    """Let large files below `folder` that DVC's cache has too be one with those: hard links, where the file system has them."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size >= _LARGE:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            kept = cached(workspace, digest)
            if kept.is_file() and kept.stat().st_size == path.stat().st_size and not kept.samefile(path):
                with contextlib.suppress(OSError):  # another file system, or one without links: then it is stored twice
                    _link(kept, path)


def _link(kept: Path, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.link")
    temporary.unlink(missing_ok=True)
    os.link(kept, temporary)
    os.replace(temporary, path)


def cached(workspace: Path, digest: str) -> Path:
    """Where DVC's cache has a file, by its MD5."""
    return workspace / CACHE / digest[:2] / digest[2:]
