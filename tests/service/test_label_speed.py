"""A hundred cells by key: the page never makes a reader wait, and a network that fails at random loses nothing."""

import hashlib
import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from label_visits import LABELLING, asking, in_sight, name_cells, rendered, sit_down
from page_visits import eventually
from playwright.sync_api import Browser, Page, Route, expect
from test_page_speed import FRAME_MS, work

from serving.labelling.queue import AskedCell
from tests.realdata import real_data
from wbc_model.core.classes import CLASSES

CELLS, SECONDS = 100, 2.0  # a decision takes SECONDS
PERSONS = {"ada": ("Dr Ada Lindgren", ("label",))}
ONE_READER = {"second_reader_share": 0.0, "repeat_share": 0.0, "known_share": 0.0}

# For each key the time until the frame is out that shows another picture, which is there in full.
WATCH = """() => {
    window.waits = [];
    const picture = () => document.querySelector("#picture img");
    addEventListener("keydown", (event) => {
        const before = picture();
        const look = () => {
            const now = picture();
            if (now === before || !now?.complete || !now.naturalWidth) { requestAnimationFrame(look); return; }
            const { port1, port2 } = new MessageChannel(); // comes after the frame is drawn
            port1.onmessage = () => window.waits.push(performance.now() - event.timeStamp);
            port2.postMessage(0);
        };
        requestAnimationFrame(look);
    }, { capture: true });
}"""


def cells(count: int) -> dict[AskedCell, str]:
    """Real cells, of 320 x 320 pixels."""
    folder = real_data()
    found = pd.read_csv(folder / "pbc.csv").query("split == 'test'").sample(count, random_state=3)
    read = [((folder / path).read_bytes(), label) for path, label in zip(found["path"], found["label"], strict=True)]
    return {AskedCell(hashlib.sha256(data).hexdigest(), data, rank, "test"): label for rank, (data, label) in enumerate(read)}


def read_them(page: Page, count: int, seconds: float) -> float:
    """Name `count` cells, each `seconds` after it came on the screen; returns how long it took in all."""
    begun = time.perf_counter()
    for number in range(count):
        time.sleep(seconds)
        page.keyboard.press(str(1 + number % 5))
        if number < count - 1:
            page.wait_for_function("count => window.waits.length === count", arg=number + 1, polling=5)
    return time.perf_counter() - begun


@pytest.mark.slow
def test_a_hundred_cells_by_key_take_as_long_as_the_decisions(browser: Browser, model_dir: Path, tmp_path: Path) -> None:
    """The next cell is on the screen within 50 ms of the key, and the page adds less than 5 s to 100 decisions of 2 s.

    What a computer that is busy otherwise adds is not the page's: there the median is judged by the clock, and the page's work by
    the time of the processor.
    """
    busy = os.getloadavg()[0] > (os.cpu_count() or 1) / 2
    with asking(model_dir, tmp_path, PERSONS, cells(CELLS + 1), ONE_READER) as readers:
        page = sit_down(browser, readers, "ada").page
        in_sight(page)
        page.evaluate(WATCH)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        before = work(session)
        took = read_them(page, CELLS, SECONDS)
        cost = (work(session) - before) / CELLS
        waits = np.array(page.evaluate("window.waits"))
        eventually(lambda: len(readers.said("Dr Ada Lindgren")) == CELLS)
        page.context.close()
    median, most, longest = np.quantile(waits, (0.5, 0.95, 1))
    print(f"{CELLS} cells took {took:.1f} s, of which the page added {waits.sum() / 1000:.1f} s and {cost:.1f} ms of work a cell")
    print(f"the next cell after {median:.0f} ms (median), {most:.0f} ms (95 %), {longest:.0f} ms (longest)")
    assert took < 240
    assert waits.sum() < 5000
    assert (median if busy else most) < 50
    assert cost < FRAME_MS


@pytest.mark.slow
def test_a_network_that_fails_at_random_loses_no_answer(browser: Browser, model_dir: Path, tmp_path: Path) -> None:
    """A third of the calls never arrive, and of a third the service's word is lost. Some answers are taken back, and the page is
    loaded again."""
    chance = random.Random(8)

    def bad(route: Route) -> None:
        fate = chance.random()
        if fate < 1 / 3:
            route.abort()
            return
        if fate < 2 / 3:
            route.fetch()
            route.abort()
            return
        route.continue_()

    with asking(model_dir, tmp_path, PERSONS, rendered(60), ONE_READER) as readers:
        page = sit_down(browser, readers, "ada").page
        page.on("dialog", lambda dialog: dialog.accept())
        in_sight(page)
        page.route(re.compile(r"/v1/labelling/(tasks/[^/]+|undo)$"), bad)
        expected: list[str] = []
        for number in range(40):
            if number == 25:
                page.reload()
            if number not in (0, 25, 26) and chance.random() < 0.2:
                name_cells(page, "u")
                expected.pop()
            else:
                name_cells(page, str(1 + number % 5))
                expected.append(CLASSES[number % 5])
        hurry = "() => { window.dispatchEvent(new Event('online')); return !sessionStorage.getItem('wbc-label-answers'); }"
        page.wait_for_function(hurry, timeout=120_000, polling=300)
        with readers.api("ada") as api:
            state = api.get(LABELLING).json()
        assert state["done"] == len(expected)
        said = readers.said("Dr Ada Lindgren")
        standing = {sha256: answer for sha256, answer, _ in said}
        assert Counter(answer for answer in standing.values() if answer) == Counter(expected)
        expect(page.locator("#done")).to_have_text(f"{len(expected)} of 60 cells")
        page.context.close()
