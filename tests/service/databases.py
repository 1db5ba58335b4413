"""A real PostgreSQL server for the tests of the store."""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from live import free_port

PROGRAMS = ("initdb", "pg_ctl")


def _account() -> str | None:
    """PostgreSQL refuses to run as root; then the account that its packages make runs it."""
    return "postgres" if os.geteuid() == 0 else None


@contextmanager
def postgres_server() -> Iterator[str]:
    """A server on loopback in a temporary folder; yields its URL without a database, password and all."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} of PostgreSQL not found: the store is tested on SQLite only")
    account, password, port = _account(), secrets.token_hex(8), free_port()
    with tempfile.TemporaryDirectory(prefix="wbc-pg-") as name:
        folder = Path(name)
        (folder / "password").write_text(password)
        if account:
            for path in (folder, folder / "password"):
                shutil.chown(path, account)

        def run(*command: str) -> None:
            output = folder / "output"
            with output.open("ab") as file:
                done = subprocess.run(command, user=account, cwd=folder, stdout=file, stderr=file, timeout=60, check=False)
            assert done.returncode == 0, output.read_text()

        data = str(folder / "data")
        run(
            "initdb", "-D", data, "-U", "wbc", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "-E", "UTF8", "--no-sync"
        )
        quick = (
            "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c autovacuum=off"  # it need not outlive the tests
        )
        options = f"{quick} -c listen_addresses=127.0.0.1 -p {port} -k {folder}"
        run("pg_ctl", "-D", data, "-w", "-o", options, "-l", str(folder / "log"), "start")
        try:
            yield f"postgresql://wbc:{password}@127.0.0.1:{port}"
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")


def new_database(server: str, template: str = "template1") -> str:
    """The URL of a new database, a copy of this one; of PostgreSQL's own, which is empty, by default."""
    import psycopg

    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    return f"{server}/{name}"
