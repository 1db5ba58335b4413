"""The browser that tests drive: the headless shell of Chromium where it is installed (half the processor time), else Chromium."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

_PROGRAMS = [Path("/usr/bin/chromium-headless-shell"), Path("/usr/bin/chromium")]
CHROMIUM = next((path for path in _PROGRAMS if path.exists()), None)


expect.set_options(timeout=20_000)  # the page shares two cores with three processes of the suite


@contextmanager
def headless_chromium(*arguments: str) -> Iterator[Browser]:
    """A browser with these arguments of the command line; skips the test where there is none."""
    if CHROMIUM is None:
        pytest.skip(f"there is no Chromium at {_PROGRAMS[-1]}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", *arguments])
        yield browser
        browser.close()
