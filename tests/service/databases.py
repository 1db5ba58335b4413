"""A real PostgreSQL server for the tests of the store."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from live import free_port

PROGRAMS = ("initdb", "pg_ctl")


def _account() -> str | None:
    """PostgreSQL refuses to run as root; then the account that its packages make runs it."""
    return "postgres" if os.geteuid() == 0 else None


# What need not outlive the tests. A commit that was acknowledged outlives a stop of the server, not of the machine.
KEEPING: Final = "-c fsync=off"
QUICK: Final = f"{KEEPING} -c synchronous_commit=off -c full_page_writes=off -c autovacuum=off"


class PostgresMachine:
    """A server on loopback in a folder, that can be stopped and started again; `url` is without a database, password and all."""

    def __init__(self, folder: Path, password: str, options: str) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"postgresql://wbc:{password}@127.0.0.1:{self.port}"
        self.options = f"{options} -c listen_addresses=127.0.0.1 -p {self.port} -k {folder}"

    def run(self, *command: str) -> None:
        output = self.folder / "output"
        with output.open("ab") as file:
            done = subprocess.run(command, user=_account(), cwd=self.folder, stdout=file, stderr=file, timeout=60, check=False)
        assert done.returncode == 0, output.read_text()

    def start(self) -> None:
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-o", self.options, "-l", f"{self.folder}/log", "start")

    def stop(self) -> None:
        """At once, as after a kill: the next start recovers."""
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-m", "immediate", "stop")

    @contextmanager
    def silent(self) -> Iterator[None]:
        """For as long as the block lasts its processes stand still, as when its disk does not answer: connections stay open, and
        nothing comes over them."""
        first = int((self.folder / "data/postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        processes = [first, *map(int, children)]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)


@contextmanager
def postgres_machine(options: str = KEEPING) -> Iterator[PostgresMachine]:
    """A server that was started, in a temporary folder: where pytest's are, in memory if there is room."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} of PostgreSQL not found: the store is tested on SQLite only")
    account, password = _account(), secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="wbc-pg-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")) as name:
        folder = Path(name)
        (folder / "password").write_text(password)
        if account:
            for path in (folder, folder / "password"):
                shutil.chown(path, account)
        machine = PostgresMachine(folder, password, options)
        where = ["-D", f"{folder}/data", f"--pwfile={folder / 'password'}"]
        machine.run("initdb", *where, "-U", "wbc", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync")
        machine.start()
        try:
            yield machine
        finally:
            machine.stop()


@contextmanager
def postgres_server() -> Iterator[str]:
    """The same, for who never stops it: its URL without a database."""
    with postgres_machine(QUICK) as machine:
        yield machine.url


def new_database(server: str, template: str = "template1") -> str:
    """The URL of a new database, a copy of this one; of PostgreSQL's own, which is empty, by default."""
    import psycopg

    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    return f"{server}/{name}"
