"""One real server for the session, with the tiny model."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import new_database, postgres_server
from fpdf import FPDF
from live import ROOT, Server, clean_environment, free_port, serve_command, started
from tiny_model import write_model

from serving.store import Store, sqlite_url

# The host name that Starlette's TestClient calls a service in this process by.
os.environ["WBC_HOSTS"] = "testserver"


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    write_model(directory)
    return directory


@pytest.fixture(scope="session")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`python -m serving.run`, which is what `wbc serve` does, without keys and with small limits."""
    port = free_port()
    environment = clean_environment(WBC_MAX_BODY_MIB="40", WBC_READ_SECONDS="3")
    with started(serve_command(model_dir, port), port, tmp_path_factory.mktemp("server"), environment, ROOT) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A real PostgreSQL server; skips where there is none."""
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    return sqlite_url(tmp_path / "service.db") if request.param == "sqlite" else new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store.open(store_url)
    yield opened
    opened.close()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All text that is put on pages, as it comes."""
    texts: list[str] = []
    for name, place in (("cell", 2), ("multi_cell", 2)):
        original = getattr(FPDF, name)

        def spy(page: FPDF, *given: Any, _original: Any = original, _place: int = place, **named: Any) -> Any:
            texts.append(str(named.get("text", given[_place] if len(given) > _place else "")))
            return _original(page, *given, **named)

        monkeypatch.setattr(FPDF, name, spy)
    return texts
