"""The loop of people and model through the real page, in headless Chromium: two readers of known error rates, and the lead."""

import base64
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.people_loop import Loop, Reader, Truth, go_round, named
from wbc_model.core.classes import CLASSES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

KEYS = {**{name: str(number) for number, name in enumerate(CLASSES, 1)}, "not a leukocyte": "0"}
# The pixels of the picture that is looked at, as it was sent: the page lets no script read the file behind it.
PIXELS = """(image) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
    return btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""));
}"""


@contextmanager
def seated(browser: Browser, loop: Loop, reader: Reader, view: str = "") -> Iterator[Page]:
    """A person at the page, with the key in the address as the terminal shows it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB")
    page = context.new_page()
    page.goto(f"{loop.url}/label#key={reader.key}")
    expect(page.locator("#reader")).to_have_text(reader.name, timeout=30_000)
    if view:
        page.evaluate("view => { location.hash = view; }", view)
        expect(page.locator("body")).to_have_attribute("data-view", view.removeprefix("#/"), timeout=30_000)
    yield page
    context.close()


def answer_by_key(page: Page, truth: Truth, says: Reader, chance: random.Random) -> int:
    """Answer by key whatever is on the screen, until nothing is left; returns how many cells there were."""
    done, last = 0, ""
    while True:
        picture = page.locator("#picture img")
        page.wait_for_function(
            "last => !document.querySelector('#nothing').hidden || "
            "(document.querySelector('#picture img')?.complete && document.querySelector('#picture img').src !== last)",
            arg=last,
            timeout=30_000,
        )
        if page.locator("#nothing").is_visible():
            return done
        last = str(picture.get_attribute("src"))
        pixels = np.frombuffer(base64.b64decode(picture.evaluate(PIXELS)), np.uint8).reshape(-1, 4)
        cell = truth[named(pixels[:, :3].tobytes())]
        page.wait_for_timeout(300)  # the page refuses a key that nobody can have thought about
        page.keyboard.press(KEYS[says.says(cell, chance)])
        done += 1


def test_people_label_on_the_page_and_a_worker_goes_on_with_it(browser: Browser, tmp_path: Path) -> None:
    def read(loop: Loop, reader: Reader, truth: Truth, chance: random.Random) -> int:
        with seated(browser, loop, reader) as page:
            done = answer_by_key(page, truth, reader, chance)
            expect(page.locator("#nothing-next")).to_contain_text("cells are agreed")
            return done

    def adjudicate(loop: Loop, lead: Reader, truth: Truth) -> int:
        with seated(browser, loop, lead, "#/disputes") as page:
            return answer_by_key(page, truth, lead, random.Random(0))

    go_round(tmp_path, read, adjudicate)
