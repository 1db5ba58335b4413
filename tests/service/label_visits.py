"""A server that asks readers about rendered cells, and visits of readers to its page."""

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from linear_model import png
from live import ROOT, Server, clean_environment, free_port, serve_command, started
from page_visits import Visit, visit
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select

from serving.contract.site import read_site
from serving.labelling.queue import AskedCell, Notice, publish
from serving.reports.labelling_tables import Answer
from serving.reports.store import Store, sqlite_url
from serving.security.keys import add_key
from wbc_model.core.classes import CLASSES
from wbc_model.rendering.cells import render_cells

LABELLING = "/v1/labelling"
QUEUE, WORKSPACE = "0123456789ab", "home"
REFERENCES = 4  # cells of each class
NEXT_STEP = "When 20 cells are agreed the model learns again."
Persons = Mapping[str, tuple[str, tuple[str, ...]]]  # by the name of a key: whose it is, and its scopes
Settings = dict[str, float]


@dataclass
class Readers:
    """The server, the keys of its readers by their names, its store, and the true class of each cell by its SHA-256."""

    server: Server
    keys: dict[str, str]
    store: Store
    truth: dict[str, str]

    def api(self, name: str) -> httpx.Client:
        headers = {"X-API-Key": self.keys[name]}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=30)

    def said(self, person: str) -> list[tuple[str, str, int | None]]:
        """What a person has answered, in order: the cell, the answer (empty for an undo), the row that it takes back."""
        with self.store.reading() as session:
            rows = session.scalars(select(Answer).where(Answer.reader == person).order_by(Answer.id))
            return [(row.sha256, row.answer, row.undoes) for row in rows]


def rendered(count: int, side: int = 96) -> dict[AskedCell, str]:
    """Cells to ask about, with their true class, and REFERENCES of each class. Embeddings are alike within a class."""
    rng, references, found = np.random.default_rng(5), Counter[str](), dict[AskedCell, str]()
    for rank, cell in enumerate(render_cells(count + 12 * REFERENCES, 11, side, dict.fromkeys(CLASSES, 0.2))):
        data, number = png(cell.pixels), CLASSES.index(cell.label)
        sha256 = hashlib.sha256(data).hexdigest()
        if rank < count:
            alike = (np.eye(len(CLASSES))[number] + rng.normal(0, 0.05, len(CLASSES))).astype(np.float16)
            wrong = CLASSES[(number + 1) % len(CLASSES)]
            opinion = {"predicted": wrong, "probability": 0.64, "embedding": alike.tobytes()}
            found[AskedCell(sha256, data, rank, "uncertain", **opinion)] = cell.label
        elif references[cell.label] < REFERENCES:
            references[cell.label] += 1
            found[AskedCell(sha256, data, rank, "reference", "reference", cell.label)] = cell.label
    return found


@contextlib.contextmanager
def asking(model: Path, folder: Path, persons: Persons, cells: Mapping[AskedCell, str], settings: Settings) -> Iterator[Readers]:
    """A server with keys for these persons that asks about `cells`; `settings` are those of `labelling` that differ from the
    default."""
    keys = {name: add_key(folder / "keys", name, scopes, person) for name, (person, scopes) in persons.items()}
    block = read_site().labelling.model_dump(mode="json") | settings
    (folder / "site.yaml").write_text(json.dumps({"labelling": block}))  # which is YAML, too
    url = sqlite_url(folder / "service.db")
    store = Store.open(url)
    notice = Notice(WORKSPACE, 3, "model-1", next_step=NEXT_STEP)
    publish(store, QUEUE, notice, cells, read_site(folder / "site.yaml"))
    environment = clean_environment(
        WBC_STORE_URL=url, WBC_API_KEYS_FILE=str(folder / "keys"), WBC_SITE_FILE=str(folder / "site.yaml")
    )
    port = free_port()
    with started(serve_command(model, port), port, folder, environment, ROOT) as server:
        yield Readers(server, keys, store, {cell.sha256: label for cell, label in cells.items()})
    store.close()


def answer_all(api: httpx.Client, answer: str) -> None:
    """Let a reader give one answer to everything that is left."""
    while tasks := api.get(f"{LABELLING}/tasks", params={"count": 100}).json()["tasks"]:
        body = {"answers": [{"task": one["task"], "answer": answer} for one in tasks]}
        assert api.put(f"{LABELLING}/tasks", json=body).status_code == 200


def sit_down(browser: Browser, readers: Readers, name: str, view: str = "", **options: object) -> Visit:
    """A reader opens the page, with the key in the address, and goes to a view."""
    visited = visit(browser, readers.server, f"label#key={readers.keys[name]}", **options)
    if view:
        expect(visited.page.locator("#reader")).not_to_be_empty()
        visited.page.evaluate("view => { location.hash = view; }", view)
    return visited


def in_sight(page: Page) -> None:
    """Wait until the cell can be named: it has been on the screen for a glance."""
    expect(page.locator("#picture img")).to_be_visible()
    page.wait_for_timeout(250)


def name_cells(page: Page, *keys: str) -> None:
    """Press keys, each when its cell is in sight; once more where a busy computer shows it later than a person would think."""
    for key in keys:
        in_sight(page)
        page.keyboard.press(key)
        while re.match("Too soon|Nothing can be said", page.locator("#message").inner_text()):
            in_sight(page)
            page.keyboard.press(key)
