"""A visit to the page in headless Chromium: what a person does there, and what is seen."""

import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from linear_model import png
from live import Server
from playwright.sync_api import Browser, Locator, Page, Request, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from wbc_model.rendering.cells import render_cells

KEY = "a-key-of-the-ward"
PERSON = "Dr. A. Lindgren"
LARGE: dict[str, Any] = {"viewport": {"width": 1680, "height": 1200}}  # all of twelve cells are in view
SHARES = {"Basophil": 0.01, "Eosinophil": 0.09, "Lymphocyte": 0.26, "Monocyte": 0.07, "Neutrophil": 0.57}


def draw(folder: Path, count: int, seed: int = 7) -> Path:
    """A folder of `count` rendered cells."""
    folder.mkdir(parents=True)
    for index, cell in enumerate(render_cells(count, seed, 96, SHARES)):
        (folder / f"cell-{index}.png").write_bytes(png(cell.pixels))
    return folder


@dataclass
class Visit:
    """A page of the browser, and all that it asked for and complained about."""

    page: Page
    origin: str
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def check(self, *allowed: str) -> None:
        """No request to elsewhere, no name of a file in one, nothing on the console but what is `allowed`; none that writes
        without an Idempotency-Key."""
        elsewhere = [one.url for one in self.requests if not one.url.startswith((f"{self.origin}/", f"blob:{self.origin}/"))]
        assert not elsewhere
        assert all(one.method == "GET" or one.headers.get("idempotency-key") for one in self.requests)
        assert set(self.page.evaluate("window.sentNames")) <= {"cell"}
        assert not [text for text in self.complaints if not any(one in text for one in allowed)]


SENT_NAMES = """
    window.sentNames = [];
    const send = window.fetch;
    window.fetch = (path, options) => {
        if (options?.body instanceof FormData) window.sentNames.push(...options.body.getAll("images").map((file) => file.name));
        return send(path, options);
    };
"""


def visit(browser: Browser, server: Server, address: str = "", **options: Any) -> Visit:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", **options})
    context.add_init_script(SENT_NAMES)
    page = context.new_page()
    seen = Visit(page, server.url)
    page.on("request", lambda request: seen.requests.append(request))
    page.on("console", lambda message: seen.complaints.append(message.text))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.goto(f"{server.url}/{address}")
    return seen


def drop_folder(page: Page, folder: Path) -> None:
    """Drop a folder from outside the browser, as the desktop does."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}

    def dragged(*kinds: str, over: bool) -> bool:
        """Whether the page knows of it soon: the events of a drag are no answers to a call, and one may go by."""
        for kind in kinds:
            session.send("Input.dispatchDragEvent", {"type": kind, "x": 600, "y": 450, "data": data})
        try:
            page.wait_for_function("over => document.body.classList.contains('over') === over", arg=over, timeout=4_000)
        except PlaywrightTimeout:
            session.send("Input.dispatchDragEvent", {"type": "dragCancel", "x": 600, "y": 450, "data": data})
            return False
        return True

    assert any(dragged("dragEnter", "dragOver", over=True) and dragged("drop", over=False) for _ in range(5))


def message(page: Page) -> Locator:
    return page.locator("#message")


def focused(page: Page) -> dict[str, Any]:
    """Number (from 1), lane and spoken name of the cell that has the focus; there is one that Tab reaches, and it is this."""
    found: dict[str, Any] = page.evaluate(
        """() => {
            const tile = document.activeElement;
            const reachable = [...document.querySelectorAll(".tile")].filter((one) => one.tabIndex === 0);
            return { tile: tile.classList.contains("tile"), only: reachable.length === 1 && reachable[0] === tile,
                     number: Number(tile.id.split("-")[1]) + 1, lane: tile.closest(".lane")?.id.slice(5),
                     name: tile.getAttribute("aria-label") };
        }"""
    )
    assert found["tile"], found
    assert found["only"], found
    return found


def table(page: Page) -> dict[str, tuple[int, float]]:
    """Cells and percent of each class as the page shows them."""
    rows = page.locator("#differential-table tbody tr:not(.drawing)").all_inner_texts()
    parts = [row.split("\t") for row in rows]
    return {part[0]: (int(part[1]), float(part[2])) for part in parts}


def in_order(report: dict[str, Any]) -> dict[str, tuple[int, float]]:
    classes = report["differential"]["classes"]
    return {name: (share["count"], round(share["percent"], 1)) for name, share in classes.items()}


def give_key(page: Page) -> None:
    page.fill("#key-input", KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#model-line")).to_have_text("Model ridge-1")


def api_of(server: Server) -> httpx.Client:
    """A client with the key of the ward."""
    return httpx.Client(base_url=server.url, headers={"X-API-Key": KEY}, timeout=30)


def report_of(api: httpx.Client, specimen: str) -> dict[str, Any]:
    """The newest report of a specimen number, whole."""
    found = api.get("/v1/reports", params={"specimen_id": specimen}).json()["reports"]
    whole: dict[str, Any] = api.get(f"/v1/reports/{found[0]['id']}").json()
    return whole


def begin(browser: Browser, server: Server, specimen: str, folder: Path, **options: Any) -> Visit:
    """Give the key, the specimen number and a name, send a folder, and wait until all of it is read."""
    visited = visit(browser, server, f"#key={KEY}", **options)
    page = visited.page
    expect(page.locator("#model-line")).to_have_text("Model ridge-1")
    page.fill("#specimen-id", specimen)
    page.fill("#person", PERSON)
    page.set_input_files("#folder-input", folder)
    expect(message(page)).to_contain_text("read.", timeout=60_000)
    return visited


def reopened(page: Page, specimen: str) -> None:
    """Load the page again: it stays at the report."""
    page.reload()
    expect(page.locator("#specimen-line")).to_have_text(f"Specimen {specimen}")


def line_of(page: Page, specimen: str, shelf: str = "all") -> Locator:
    """The line of a specimen in the worklist, on one of its shelves."""
    if page.locator("#work").is_visible():
        page.click("#new")
    page.click(f"[data-shelf={shelf}]")
    return page.locator("#reports tr", has_text=specimen)


def press(page: Page, *keys: str) -> None:
    """Press keys one after the other, each when the cell that is looked at has been on the screen."""
    for key in keys:
        page.keyboard.press(key)
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 60)))")


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def download(page: Page, button: str) -> Path:
    with page.expect_download() as expected:
        page.click(button)
    return Path(expected.value.path())


def position(page: Page) -> tuple[int, int]:
    """Left and top of the tile with the focus, in the whole of the gallery."""
    left, top = page.evaluate(
        """() => {
            const [tile, lanes] = [document.activeElement.getBoundingClientRect(), document.getElementById("lanes")];
            return [tile.left, tile.top + lanes.scrollTop];
        }"""
    )
    return round(left), round(top)


def lose_answers(page: Page, which: Container[int], pattern: str = "*/v1/differential", method: str = "POST") -> None:
    """Let these of the requests of a method (from 1) reach the server, and their answers not the page."""
    session, posts = page.context.new_cdp_session(page), [0]

    def answered(event: dict[str, Any]) -> None:
        posts[0] += event["request"]["method"] == method
        if event["request"]["method"] == method and posts[0] in which:
            session.send("Fetch.failRequest", {"requestId": event["requestId"], "errorReason": "ConnectionReset"})
        else:
            session.send("Fetch.continueRequest", {"requestId": event["requestId"]})

    session.on("Fetch.requestPaused", answered)
    session.send("Fetch.enable", {"patterns": [{"urlPattern": pattern, "requestStage": "Response"}]})
