"""Real servers for the session, a browser, databases."""

import asyncio
import os
import shutil
from asyncio import AbstractEventLoop
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import new_database, postgres_server
from fpdf import FPDF
from linear_model import write_linear_model
from live import ROOT, Server, clean_environment, free_port, serve_command, started
from page_visits import KEY, draw
from PIL import Image
from playwright.sync_api import Browser
from tiny_model import write_model

from serving.reports.store import Store, file_of, sqlite_url
from tests.chromium import headless_chromium

# The host name that Starlette's TestClient calls a service in this process by.
os.environ["WBC_HOSTS"] = "testserver"
CELLS = 110  # images of the specimen `cells` that can be used


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


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SQLite file of a store that nobody has used: its migrations are carried out once."""
    file = tmp_path_factory.mktemp("store") / "service.db"
    Store.open(sqlite_url(file)).close()
    return file


@pytest.fixture(autouse=True)
def _new_stores_are_copies(empty_store: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new SQLite store is a copy of the empty one, which takes a tenth of the time of all migrations. Whoever asks for a
    `blank_url` gets what a site gets."""
    if "blank_url" in request.fixturenames:
        return
    opened = Store.open

    def copied(url: str, *more: Any, **named: Any) -> Store:
        file = file_of(url) if url.startswith("sqlite:///") else None
        if file is not None and file.parent.is_dir() and not file.exists():
            shutil.copy(empty_store, file)
        return opened(url, *more, **named)

    monkeypatch.setattr(Store, "open", copied)


@pytest.fixture(scope="session")
def empty_tables(postgres: str) -> str:
    """The name of such a database in PostgreSQL."""
    url = new_database(postgres)
    Store.open(url).close()
    return url.rpartition("/")[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def blank_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of either kind without any table."""
    return sqlite_url(tmp_path / "service.db") if request.param == "sqlite" else new_database(request.getfixturevalue("postgres"))


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of either kind that nobody has used."""
    if request.param == "postgresql":
        return new_database(request.getfixturevalue("postgres"), request.getfixturevalue("empty_tables"))
    return sqlite_url(shutil.copy(request.getfixturevalue("empty_store"), tmp_path / "service.db"))


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


@pytest.fixture(scope="session")
def chromium() -> Iterator[tuple[Browser, AbstractEventLoop | None]]:
    """Headless Chromium for all files, and the event loop of Playwright."""
    with headless_chromium() as started_browser:
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        yield started_browser, loop
        asyncio._set_running_loop(loop)


@pytest.fixture
def browser(chromium: tuple[Browser, AbstractEventLoop | None]) -> Iterator[Browser]:
    """Headless Chromium without pages. The loop of Playwright counts as running while a test drives it, and no longer: other
    tests run loops of their own."""
    opened, loop = chromium
    asyncio._set_running_loop(loop)
    yield opened
    for context in opened.contexts:
        context.close()
    asyncio._set_running_loop(None)


@pytest.fixture(scope="session")
def linear_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose reports can be signed."""
    directory = tmp_path_factory.mktemp("linear") / "model"
    write_linear_model(directory, rendered=False)
    return directory


def _ward(model: Path, folder: Path, site: str) -> AbstractContextManager[Server]:
    """A server that keeps reports and wants a key, with these settings of its site."""
    (folder / "site.yaml").write_text(site)
    environment = clean_environment(
        WBC_STORE_URL=sqlite_url(folder / "service.db"), WBC_API_KEYS=KEY, WBC_SITE_FILE=str(folder / "site.yaml")
    )
    port = free_port()
    return started(serve_command(model, port), port, folder, environment, ROOT)


@pytest.fixture(scope="session")
def keeping(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that keeps reports, with their images, and wants a key."""
    with _ward(linear_model, tmp_path_factory.mktemp("keeping"), "keep_images: true\n") as server:
        yield server


@pytest.fixture(scope="session")
def forgetting(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same, of a site that keeps no images."""
    with _ward(linear_model, tmp_path_factory.mktemp("forgetting"), "keep_images: false\n") as server:
        yield server


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A specimen's folder: CELLS images, the last two in a folder of their own, one of them TIFF; a broken one; a text."""
    folder = draw(tmp_path_factory.mktemp("cells") / "SMITH-JOHN-1950", CELLS)
    inner = folder / "second slide"
    inner.mkdir()
    shutil.move(folder / f"cell-{CELLS - 1}.png", inner / "a.png")
    with Image.open(folder / f"cell-{CELLS - 2}.png") as image:
        image.save(inner / "b.tiff")
    (folder / f"cell-{CELLS - 2}.png").unlink()
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "notes.txt").write_text("not an image")
    return folder
