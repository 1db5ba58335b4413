"""What the service keeps: reports, their cells, corrections, signatures, the messages that wait for the hospital's system, and
what readers are asked and say.

SQLite in WAL mode by default, PostgreSQL by URL. `Store.open` brings the tables up to date (serving/reports/migrations): the
models of serving/reports/tables.py and labelling_tables.py are always those of the database.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    ExceptionContext,
    create_engine,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

import serving.reports.labelling_tables  # noqa: F401 - so that the tables are all of them
from serving.contract.site import STORE_URL
from serving.reports.tables import Base
from serving.security.image_key import NO_KEYS, ImageKeys
from wbc_model.core.errors import WbcError
from wbc_model.core.files import make_folder
from wbc_model.core.lock import locked

if TYPE_CHECKING:
    import psycopg

IMAGE_KEYS: Final = "image_keys"  # where a session has the keys of the kept images
BUSY_SECONDS: Final = 30  # that a writer waits for another one
READ_SECONDS: Final = 10  # that a reader waits for anything
CONNECT_SECONDS: Final = 10
SILENT_SECONDS: Final = 5  # that nobody else waits for a server that has kept one waiting in vain
POOL: Final = 20  # connections to PostgreSQL that are kept open; making one takes longer than most of what is asked over it
HELD: Final = 0x7762635F68656C64  # "wbc_held": PostgreSQL's advisory lock of those who work with a store
DRIVERS: Final = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}

WAY_BACK: Final = "`wbc restore BACKUP --replace` puts it aside and brings the last backup back"

# A network that swallows packets must not make a call wait for ever.
_POSTGRES_LIMITS: Final = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": CONNECT_SECONDS,
    "keepalives_interval": CONNECT_SECONDS // 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 1000 * BUSY_SECONDS,
}


class StoreInUse(WbcError):
    """Others work with the store."""


class Store:
    """An open database. Sessions come from `reading` and `writing`; both may be used from several threads at once."""

    def __init__(self, engine: Engine, keys: ImageKeys = NO_KEYS) -> None:
        self._engine = engine
        self.image_keys = keys
        self.is_file = engine.dialect.name == "sqlite"
        self._mine = threading.local()  # the session of the thread that is within `writing`
        self._writer = engine.execution_options(writing=True)
        # A report is read with several SELECTs; on SQLite a transaction sees one state anyway.
        postgres = engine.dialect.name == "postgresql"
        self._reader = engine.execution_options(isolation_level="REPEATABLE READ") if postgres else engine

    @classmethod
    def open(cls, url: str, keys: ImageKeys = NO_KEYS) -> "Store":
        """Connect and bring the tables up to date; processes that open an empty database at once wait for each other.

        Raises WbcError for an address that is not understood or not reached, and for a database of a newer version. Its line
        has neither user nor password nor query of the URL.
        """
        from serving.reports.migrations.upgrade import upgrade

        parsed = _parsed(url)
        engine = _engine(parsed)
        store = cls(engine, keys)
        try:
            if parsed.get_backend_name() == "sqlite":
                _use_wal(engine)
            with store._upgrading() as connection:
                if parsed.get_backend_name() == "postgresql":  # large tables take their time
                    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                    _wait_for(connection, None)
                upgrade(connection, Base.metadata)
        except (SQLAlchemyError, sqlite3.Error) as error:
            engine.dispose()
            way_back = f": {WAY_BACK}" if type(error) is sqlite3.DatabaseError else ""
            raise WbcError(f"{describe(parsed)} cannot be used: {_reason(error, parsed)}{way_back}") from None
        except BaseException:
            engine.dispose()
            raise
        return store

    @classmethod
    def from_environment(cls) -> "Store | None":
        """The store that WBC_STORE_URL names; None where it is unset, and the service then keeps nothing."""
        url = os.environ.get(STORE_URL, "").strip()
        return cls.open(url, ImageKeys.from_environment()) if url else None

    @property
    def engine(self) -> Engine:
        """What the sessions work on, for whoever measures that."""
        return self._engine

    @property
    def folder(self) -> Path | None:
        """Where a SQLite file is; None for a database elsewhere."""
        file = self._engine.url.database if self._engine.dialect.name == "sqlite" else None
        return None if file is None else Path(file).resolve().parent

    @property
    def _info(self) -> dict[Any, Any]:
        return {IMAGE_KEYS: self.image_keys}

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def close_for_good(self) -> None:
        """Close, and leave nothing in a write-ahead log beside a SQLite file: the file can then be moved or copied."""
        if self.file is not None:
            raw = self._engine.raw_connection()
            try:
                raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                raw.close()
        self.close()

    @property
    def file(self) -> Path | None:
        """The SQLite file; None for PostgreSQL."""
        return Path(str(self._engine.url.database)) if self._engine.dialect.name == "sqlite" else None

    @contextmanager
    def _upgrading(self) -> Iterator[Connection]:
        """A connection in one write transaction, in which SQLite lets a table be made anew that others point to."""
        with self._writer.connect() as connection:
            raw = connection.connection.driver_connection
            if isinstance(raw, sqlite3.Connection):  # within a transaction this would have no effect
                raw.execute("PRAGMA foreign_keys = OFF")
            try:
                with connection.begin():
                    yield connection
            finally:
                if isinstance(raw, sqlite3.Connection):
                    raw.execute("PRAGMA foreign_keys = ON")

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection that sees one state of the database, for copying it."""
        with self._reader.connect() as connection:
            yield connection

    @contextmanager
    def filling(self) -> Iterator[Connection]:
        """A connection in one write transaction, for copying into it."""
        with self._writer.begin() as connection:
            yield connection

    def empty(self) -> None:
        """Remove all tables, and make them anew: the database refuses to delete rows of what people did."""
        from serving.reports.migrations.upgrade import upgrade

        with self._writer.begin() as connection:
            Base.metadata.drop_all(connection)
            connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")
            if self.file is None:
                for table in Base.metadata.tables:
                    for guard in ("only_added", "only_removed"):
                        connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS {table}_{guard}()")
            upgrade(connection, Base.metadata)

    def look_at(self, *tables: str) -> None:
        """Let the database look at tables that have just been filled, so that it finds good ways through them at once."""
        if self.file is None:
            with self._writer.begin() as connection:
                connection.exec_driver_sql(f"ANALYZE {', '.join(tables)}")

    @contextmanager
    def held(self, alone: bool = False) -> Iterator[None]:
        """Say that this process works with the store, as a service does while it runs; with `alone`, that no other one does.

        Raises StoreInUse where the others stand in the way of that.
        """
        with file_lock(self.file, alone) if self.file is not None else _advisory_lock(self._engine, alone) as taken:
            if not taken and alone:
                raise StoreInUse(f"a service is running (it works with {describe(self._engine.url)}): stop it first")
            if not taken:
                raise StoreInUse(
                    f"{describe(self._engine.url)} is being restored, or a report removed: wait until that has ended"
                )
            yield

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for looking only; sees one state of the database."""
        with Session(self._reader, expire_on_commit=False, info=self._info) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session in one transaction: committed at the end of the block, undone when the block raises.

        A block within a block of the same thread belongs to the outer one's transaction; `reading` does not see it.
        """
        outer: Session | None = getattr(self._mine, "session", None)
        if outer is not None:
            yield outer
            outer.flush()
            return
        with Session(self._writer, expire_on_commit=False, info=self._info) as session, session.begin():
            self._mine.session = session
            try:
                yield session
            finally:
                self._mine.session = None


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def file_of(url: str) -> Path | None:
    """The SQLite file that a URL names; None for PostgreSQL. Raises WbcError as `Store.open`."""
    parsed = _parsed(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


@contextmanager
def file_lock(file: Path, alone: bool) -> Iterator[bool]:
    """A lock of a store in a SQLite file; yields whether it is held.

    It lies beside the file: whoever opens and closes that one again takes away SQLite's own locks, and a restore replaces it."""
    lock = file.with_name(f"{file.name}.lock")
    with ExitStack() as stack:
        try:
            taken = stack.enter_context(locked(lock, shared=not alone, wait=False, mode=0o600))
        except OSError as error:
            raise WbcError(f"{lock} cannot be written: {error.strerror}") from None
        yield taken


@contextmanager
def _advisory_lock(engine: Engine, alone: bool) -> Iterator[bool]:
    """A lock of a PostgreSQL connection, which lasts as long as that does."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        take = "pg_try_advisory_lock" if alone else "pg_try_advisory_lock_shared"
        taken = connection.scalar(select(getattr(func, take)(HELD)))
        try:
            yield bool(taken)
        finally:
            connection.invalidate()  # ends the connection, and with it the lock


def describe(url: URL) -> str:
    """A database in words that may be printed: never user, password or query."""
    if url.get_backend_name() == "sqlite":
        return f"the store {url.database}"
    return f"the store {url.database or ''!r} on PostgreSQL at {url.host or 'the local socket'}"


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise WbcError(
            f"{STORE_URL} is not a database URL: give sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
        ) from None
    backend = parsed.drivername.partition("+")[0]
    if backend not in DRIVERS:
        raise WbcError(f"{STORE_URL} names a {backend!r} database: use sqlite or postgresql")
    if "@" in (parsed.host or ""):
        raise WbcError(f"{STORE_URL}: an @ in the password must be written as %40")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise WbcError(f"{STORE_URL} names no file: a store in memory would be lost; give sqlite:///FILE")
    return parsed.set(drivername=DRIVERS[backend])


def reason_of(error: Exception) -> str:
    """Why the database refused, in one line, without statement and values."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _reason(error: Exception, url: URL) -> str:
    text = reason_of(error)
    for secret in (url.password, *map(str, url.query.values())):
        text = text.replace(str(secret), "...") if secret else text
    return text


def _engine(url: URL) -> Engine:
    # hide_parameters: an error's traceback goes to the log, and the parameters hold specimen ids.
    if url.get_backend_name() != "sqlite":
        engine = create_engine(
            url,
            hide_parameters=True,
            pool_pre_ping=True,
            pool_size=POOL,
            pool_timeout=READ_SECONDS,
            connect_args=_POSTGRES_LIMITS,
        )
        _stay_patient(engine)
        event.listen(engine, "handle_error", _without_values)
        event.listen(engine, "begin", _begin_postgres)
        return engine
    _private_file(Path(str(url.database)))
    engine = create_engine(url, hide_parameters=True, pool_timeout=READ_SECONDS, connect_args={"timeout": READ_SECONDS})
    event.listen(engine, "handle_error", _name_damage)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


@cache
def _patient_connection() -> "type[psycopg.Connection[Any]]":
    """The class of the connections; it is made where psycopg is needed, since a store in a file needs none."""
    import psycopg

    class PatientConnection(psycopg.Connection[Any]):
        """A connection that waits for no answer for ever, and tells the others of a silent server.

        A server whose disk or machine stands still keeps its connections open, and no `statement_timeout`. Whoever would take a
        connection in the next seconds is refused at once. So a queue of people is not made to wait one after the other.
        """

        patience: float | None = CONNECT_SECONDS  # seconds; None: as long as it takes
        in_use = True
        silence: Silence

        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            """As psycopg has it; raises OperationalError, and closes the connection, where the patience is at its end."""
            if not self.in_use and self.silence.lasts():
                self.pgconn.finish()
                raise psycopg.OperationalError(self.silence.said)
            try:
                return super().wait(gen, interval, self.patience if timeout is None else timeout)
            except psycopg.OperationalError:
                if self.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
                    raise
                self.pgconn.finish()
                self.silence.begin()
                raise psycopg.OperationalError(self.silence.said) from None

    return PatientConnection


@dataclass
class Silence:
    """Whether a server is known to be silent: somebody has waited for it in vain, a few seconds ago."""

    until: float = 0.0  # by the monotonic clock
    said: str = "the server does not answer, though its connections stay open"

    def begin(self) -> None:
        """Somebody has waited in vain."""
        self.until = time.monotonic() + SILENT_SECONDS

    def lasts(self) -> bool:
        """Whether that was a moment ago."""
        return time.monotonic() < self.until


def _stay_patient(engine: Engine) -> None:
    """Have the connections of an engine wait for no answer for ever."""
    silence = Silence()

    def connect(_dialect: object, _record: object, arguments: Sequence[Any], parameters: Mapping[str, Any]) -> Any:
        import psycopg

        if silence.lasts():
            raise psycopg.OperationalError(silence.said)
        try:
            made: Any = _patient_connection().connect(*arguments, **parameters)
        except psycopg.errors.ConnectionTimeout:
            silence.begin()
            raise
        made.silence = silence
        return made

    def rest(connection: Any, _record: object) -> None:
        """Whoever takes this connection next looks first whether the server is still there."""
        if connection is not None:
            connection.patience, connection.in_use = CONNECT_SECONDS, False

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "checkin", rest)


def _wait_for(connection: Connection, seconds: float | None) -> None:
    """Wait so long for the answer to a statement of this transaction; None: as long as it takes."""
    used: Any = connection.connection.driver_connection
    used.patience, used.in_use = seconds, True


def _without_values(context: ExceptionContext) -> None:
    """PostgreSQL quotes the offending row in the lines after the first."""
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None and error.args:
            error.args = (str(error.args[0]).partition("\n")[0],)


def _name_damage(context: ExceptionContext) -> None:
    """A file that is no database any more is a store that cannot be used, as a full one is. There is a way back."""
    error = context.original_exception
    if type(error) is sqlite3.DatabaseError:  # what SQLite says of damage; all else has a class of its own
        said = sqlite3.OperationalError(f"{error}: {WAY_BACK}")
        raise OperationalError(None, None, said, hide_parameters=True) from error


def _private_file(path: Path) -> None:
    """Make the file for its owner's eyes only; SQLite gives the files beside it the same mode."""
    try:
        make_folder(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise WbcError(f"the store {path} cannot be written: {error.strerror}") from None


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions on its own: `_begin_sqlite` does
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # an image that was deleted is not left in free pages
    connection.execute("PRAGMA synchronous = FULL")  # what was answered as kept outlives a power cut


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later could not wait for another writer; so a writer says so at once.
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {1000 * (BUSY_SECONDS if writing else READ_SECONDS)}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _begin_postgres(connection: Connection) -> None:
    # Nor a table that somebody has locked. A server that can say so does, before it is no longer waited for.
    seconds = BUSY_SECONDS if connection.get_execution_options().get("writing", False) else READ_SECONDS
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {1000 * seconds}")
    _wait_for(connection, seconds + CONNECT_SECONDS / 2)


def _use_wal(engine: Engine) -> None:
    """Switch the file to a write-ahead log. SQLite does not wait here when another process is switching, so this does."""
    raw = engine.raw_connection()
    deadline = time.monotonic() + BUSY_SECONDS
    try:
        while True:
            try:
                [mode] = raw.cursor().execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
                continue
            if mode != "wal":
                raise WbcError(f"{describe(engine.url)}: SQLite has no write-ahead log there; choose a folder on a local disk")
            return
    finally:
        raw.close()
