"""A backup of what the service keeps, and bringing it back: store, audit log and keys, as they belong together.

It is a folder: `service.db`, a SQLite file whichever database the service has; the audit log's files; the keyring; and
`backup.json`, which says what is in it. It is taken while the service runs. The store is copied as it is at one moment. The
audit log is copied after that. Its copy ends before the first outcome of a call that the store's copy does not have. So every
deed in the store has its line, and no line speaks of a deed that is not there. See docs/decisions/031.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, func, insert, select, text
from sqlalchemy.exc import SQLAlchemyError

from serving.reports.labelling_tables import Answer, AskedImage
from serving.reports.store import Store, file_lock, file_of, sqlite_url
from serving.reports.tables import Base, BelievedTime, Deed, KeptImage, Report
from serving.security.chain import Link, head_path, lines, read_head, read_record, rotated_files, verify
from wbc_model import __version__
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.files import building
from wbc_model.core.lock import take

STORE: Final = "service.db"
AUDIT: Final = "audit.jsonl"
KEYS: Final = "service.keys"
CONTENTS: Final = "backup.json"
FORMAT: Final = 1
ROWS: Final = 200  # copied at a time


class Places(NamedTuple):
    """Where the service keeps what a backup holds: the store's URL, its audit log and its keyring; None where it has none."""

    store: str
    audit: Path | None
    keys: Path | None


# --- taking one ------------------------------------------------------------------------------------------------------------


def back_up(places: Places, out: Path) -> dict[str, Any]:
    """Write a backup into the new folder `out`; returns what is in it.

    Raises WbcError where the folder is there, where there is nothing to back up, and where the audit log's chain is broken.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WbcError(f"{out} is there already: give the name of a new folder")
    try:
        with building(out) as folder:
            before = read_head(places.audit) if places.audit and places.audit.is_file() else None
            reports, deeds = _copy_store(places.store, folder / STORE)
            audit = None if places.audit is None or before is None else _copy_log(places.audit, folder / AUDIT, before, deeds)
            if places.keys is not None and places.keys.is_file():
                shutil.copyfile(places.keys, folder / KEYS)
            found = {
                "format": FORMAT,
                "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "program": __version__,
                "reports": reports,
                "audit": audit,
                "image_keys": _image_keys(folder / STORE),
                "keys": (folder / KEYS).is_file(),
                "files": {one.name: _sha256(one) for one in sorted(folder.iterdir())},
            }
            for one in folder.iterdir():
                one.chmod(0o600)
            (folder / CONTENTS).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise WbcError(f"{out}: the backup cannot be written: {error.strerror or error}") from None
    out.chmod(0o700)
    return found


def _copy_store(url: str, target: Path) -> tuple[int, set[str]]:
    """Copy the store as it is at one moment; returns how many reports it holds, and the intentions of its deeds."""
    source = Store.open(url)
    try:
        if source.file is not None:
            _copy_sqlite(source.file, target)
            copy = Store.open(sqlite_url(target))
        else:
            copy = Store.open(sqlite_url(target))
            with source.snapshot() as reading, copy.filling() as writing:
                _copy_rows(reading, writing)
        with copy.reading() as session:
            reports = session.scalar(select(func.count()).select_from(Report)) or 0
            deeds = set(session.scalars(select(Deed.intention)))
        copy.close_for_good()
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise WbcError(f"the store cannot be copied: {' '.join(str(getattr(error, 'orig', None) or error).split())}") from None
    finally:
        source.close()
    return reports, deeds


def _image_keys(copy: Path) -> list[str]:
    """The names of the keys that images are encrypted with; the keys themselves lie outside the store, and stay there."""
    store = Store.open(sqlite_url(copy))
    try:
        with store.reading() as session:
            columns = (KeptImage.key, AskedImage.key)
            names = {name for column in columns for name in session.scalars(select(column).where(column.is_not(None)).distinct())}
            return sorted(map(str, names))
    finally:
        store.close_for_good()


def _copy_sqlite(source: Path, target: Path) -> None:
    """SQLite's own online backup, in one step: what others write meanwhile is all in it or not at all."""
    with sqlite3.connect(source, timeout=30) as reading, sqlite3.connect(target) as writing:
        reading.backup(writing)
    reading.close()
    writing.close()


def _copy_rows(source: Connection, target: Connection) -> None:
    """All rows of all tables, those that others refer to first."""
    for table in Base.metadata.sorted_tables:
        found = source.execute(select(table).execution_options(yield_per=ROWS))
        for rows in found.mappings().partitions(ROWS):
            target.execute(insert(table), [dict(row) for row in rows])


def _copy_log(log: Path, target: Path, before: Link, deeds: set[str]) -> dict[str, Any]:
    """Copy the audit log's files up to the first outcome of a deed that is not among `deeds`; `before` is where it was before the
    store was copied."""
    names = {one.name: target.with_name(target.name + one.name.removeprefix(log.name)) for one in [*rotated_files(log), log]}
    last = Link()
    made: dict[Path, Any] = {}
    try:
        for path, _, line in lines(log):
            record = read_record(line)
            if record is not None and record["n"] > before.number and _not_yet(record, deeds):
                break
            name = names.get(path.name, target)
            if name not in made:
                made[name] = name.open("wb")
            made[name].write(line + b"\n")
            last = last if record is None else Link(record["n"], record["hash"])
    finally:
        for file in made.values():
            file.close()
    target.touch()
    _without_torn_end(target)
    head_path(target).write_text(f"{last.number:020d} {last.digest}\n", encoding="ascii")
    found = verify(target, archived=True)
    return {"records": found.records, "first": found.first, "last": found.last}


def _not_yet(record: Mapping[str, Any], deeds: set[str]) -> bool:
    """Whether a record is the outcome of a deed that was done after the store was copied."""
    status, name = record.get("status"), record.get("intention")
    return name is not None and "intends" not in record and status is not None and 200 <= status < 300 and name not in deeds


def _without_torn_end(path: Path) -> None:
    """The writer may have been at its last line."""
    data = path.read_bytes()
    kept = data.split(b"\n")[:-1]
    while kept and read_record(kept[-1]) is None:
        kept.pop()
    path.write_bytes(b"".join(line + b"\n" for line in kept))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- bringing it back ------------------------------------------------------------------------------------------------------


def read_contents(backup: Path) -> dict[str, Any]:
    """What a backup says of itself; raises WbcError where it is none, is of a newer version, or was changed or broken."""
    try:
        found: dict[str, Any] = json.loads((backup / CONTENTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise WbcError(f"{backup} is no backup: {CONTENTS} is missing or damaged") from None
    if found.get("format") != FORMAT:
        raise WbcError(f"{backup}: is of format {found.get('format')}, which a newer version has written: install that version")
    for name, digest in found["files"].items():
        if not (backup / name).is_file() or _sha256(backup / name) != digest:
            raise WbcError(f"{backup}: {name} is missing or damaged: its sha256 is not the one in {CONTENTS}")
    if found["audit"] is not None:
        verify(backup / AUDIT, archived=True)
    return found


def bring_back(backup: Path, places: Places, replace: bool) -> dict[str, Any]:
    """Put a backup into the service's places; what was there is backed up beside it first.

    Returns what the backup says of itself, and under `aside` where the former content is. Raises WbcError where a service is
    running, where the backup is damaged, and, unless `replace`, where what is there is newer than the backup.
    """
    found = read_contents(backup)
    damaged = _damaged_put_aside(backup, places, replace)
    # On a copy: opening a database may bring its tables up to date.
    with _alone(places.audit), _alone_with(places.store), tempfile.TemporaryDirectory(prefix="wbc-restore-") as name:
        copy = Path(name) / STORE
        _private_copy(backup / STORE, copy)
        present = damaged is None and _present(places)
        newer = _newer(backup, copy, places) if present else []
        if newer and not replace:
            raise WbcError(f"what is here is newer than the backup: {'; '.join(newer)}. Say --replace to put it aside")
        aside = _put_aside(backup, places) if present else damaged
        try:
            _fill_store(copy, places.store)
            _fill_log(backup, places.audit, found["audit"] is not None)
            if places.keys is not None and found["keys"]:
                _private_copy(backup / KEYS, places.keys)
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())
            where = f"; what was here is in {aside}: restore that" if aside else ""
            raise WbcError(f"the backup could not be brought back: {reason}{where}") from None
    return {**found, "aside": None if aside is None else str(aside), "newer": newer}


@contextmanager
def _alone(log: Path | None) -> Iterator[None]:
    """Hold the audit log's lock, as the service does while it runs."""
    if log is None or not head_path(log).is_file():
        yield
        return
    with head_path(log).open("rb") as file:
        if not take(file, wait=False):
            raise WbcError(f"a service is running (it writes to {log}): stop it first")
        yield


@contextmanager
def _alone_with(url: str) -> Iterator[None]:
    """Hold the store, which a service with or without an audit log holds while it runs."""
    store = Store.open(url)
    try:
        with store.held(alone=True):
            store.close()  # of its connections the file has none while it is replaced
            yield
    finally:
        store.close()


def is_damaged(file: Path) -> bool:
    """Whether a file is no SQLite database any more, or one with damaged pages; not one that is missing or empty."""
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",))
    except sqlite3.DatabaseError as error:
        return type(error) is sqlite3.DatabaseError  # one that is locked or not there has a class of its own


def _damaged_put_aside(backup: Path, places: Places, replace: bool) -> Path | None:
    """A damaged store cannot say what is newer in it, nor be backed up: its files go beside the backup as they are, with a copy
    of the audit log. Returns the folder; None where nothing is damaged. Raises WbcError unless `replace`."""
    file = file_of(places.store)
    if file is None or not is_damaged(file):
        return None
    if not replace:
        raise WbcError(f"the store {file} is damaged: say --replace to put it aside, and what is newer in it")
    with _alone(places.audit), file_lock(file, alone=True) as alone:
        if not alone:
            raise WbcError(f"a service is running (it works with the store {file}): stop it first")
        out = _free_name(backup)
        out.mkdir()
        log = places.audit
        for one in (*rotated_files(log), log, head_path(log)) if log is not None else ():
            if one.is_file():
                _private_copy(one, out / one.name)
        for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
            if file.with_name(name).exists():
                shutil.move(file.with_name(name), out / name)
    return out


def _present(places: Places) -> bool:
    """Whether there is anything here that would be lost."""
    if places.audit is not None and places.audit.is_file() and places.audit.stat().st_size:
        return True
    store = Store.open(places.store)
    try:
        with store.reading() as session:
            tables = [table for table in Base.metadata.sorted_tables if table is not BelievedTime.__table__]
            return any(session.scalar(select(func.count()).select_from(table)) for table in tables)
    finally:
        store.close()


def _newer(backup: Path, copy: Path, places: Places) -> list[str]:
    """What is here and not in the backup, whose store is `copy`, in words."""
    here, there = _versions(places.store), _versions(sqlite_url(copy))
    found = []
    if others := [name for name in here if name not in there]:
        found.append(f"{counted(len(others), 'report is', 'reports are')} not in it")
    if later := [name for name in here if name in there and here[name] > there[name]]:
        found.append(f"{counted(len(later), 'report was', 'reports were')} changed since")
    if said := _answers(places.store) - _answers(sqlite_url(copy)):
        found.append(f"{counted(len(said), 'answer of a reader is', 'answers of readers are')} not in it")
    log, kept = places.audit, backup / AUDIT
    if log is not None and log.is_file() and (ours := read_head(log)) is not None and ours.number:
        theirs = read_head(kept) if kept.is_file() else None
        known = theirs is not None and any(ours.digest.encode() in line for _, _, line in lines(kept))
        if not known:
            found.append(f"the audit log's record {ours.number} is not in it")
    return found


def _versions(url: str) -> dict[str, int]:
    """By its id, the version of each report."""
    store = Store.open(url)
    try:
        with store.reading() as session:
            return dict(session.execute(select(Report.id, Report.version)).tuples().all())
    finally:
        store.close_for_good()


def _answers(url: str) -> set[tuple[str, str, str, datetime]]:
    """What readers said: of which cell, who, what and when."""
    store = Store.open(url)
    try:
        with store.reading() as session:
            return set(session.execute(select(Answer.sha256, Answer.reader, Answer.answer, Answer.at)).tuples())
    finally:
        store.close_for_good()


def _put_aside(backup: Path, places: Places) -> Path:
    """Back up what is here, beside the backup that is brought back."""
    out = _free_name(backup)
    back_up(places, out)
    return out


def _free_name(backup: Path) -> Path:
    number = 1
    while (out := backup.with_name(f"{backup.name}.before-{number}")).exists():
        number += 1
    return out


def _fill_store(file: Path, url: str) -> None:
    """Let the store hold what a SQLite file does, and nothing else."""
    target = Store.open(url)
    if target.file is not None:
        path = target.file
        target.close_for_good()
        Store.open(sqlite_url(file)).close_for_good()  # brings the tables up to date
        part = path.with_name(f".{path.name}.restored")
        _private_copy(file, part)
        for beside in ("-wal", "-shm"):
            path.with_name(path.name + beside).unlink(missing_ok=True)
        part.replace(path)
        return
    source = Store.open(sqlite_url(file))
    try:
        target.empty()
        with source.snapshot() as reading, target.filling() as writing:
            _copy_rows(reading, writing)
            _go_on_counting(writing)
    finally:
        source.close_for_good()
        target.close()


def _go_on_counting(connection: Connection) -> None:
    """PostgreSQL does not count the rows that come with their numbers."""
    for table in Base.metadata.sorted_tables:
        if table.autoincrement_column is not None:
            column = table.autoincrement_column.name
            connection.execute(
                text(
                    f"SELECT setval(pg_get_serial_sequence('{table.name}', '{column}'), "  # noqa: S608 - names of our own tables
                    f"(SELECT COALESCE(MAX({column}), 0) + 1 FROM {table.name}), false)"
                )
            )


def _fill_log(backup: Path, log: Path | None, there: bool) -> None:
    if log is None:
        return
    for old in (*rotated_files(log), log, head_path(log)):
        old.unlink(missing_ok=True)
    if there:
        for one in (*rotated_files(backup / AUDIT), backup / AUDIT, head_path(backup / AUDIT)):
            _private_copy(one, log.with_name(log.name + one.name.removeprefix(AUDIT)))


def _private_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with source.open("rb") as reading, open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as writing:
        shutil.copyfileobj(reading, writing)
        writing.flush()
        os.fsync(writing.fileno())
    part.replace(target)
