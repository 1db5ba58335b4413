"""The page /watch in a browser, against a real service: the words of both languages, the pictures, an alarm, no key."""

import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import axe
import pytest
from live import ROOT, Server, clean_environment, free_port, serve_command, started
from page_visits import KEY
from playwright.sync_api import Browser, expect
from test_watch import FIRST, serve

from flows.monitoring.in_use import limits
from flows.monitoring.watch import watch
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import InUse
from tests.code.test_drift import cells

pytestmark = pytest.mark.slow
SITE = "St. Anna / Süd"


@pytest.fixture(scope="module")
def watched(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service whose store has six days of a ward, the last with another stain, judged."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "ward").mkdir()
    shutil.copyfile(ROOT / "params.yaml", folder / "ward/params.yaml")
    url = sqlite_url(folder / "service.db")
    store = Store.open(url)
    for number in range(1, 7):
        serve(store, number, cells(500, number, shift=1.0 if number == 6 else 0.0), SITE)
    serve(store, 6, cells(90, 7), "Zweigstelle")
    with store.writing() as session:
        for label, (read, right) in {"": (200, 199), "Monocyte": (40, 20)}.items():
            low, high = limits([(1, 1)] * right + [(0, 1)] * (read - right), 0.005)
            numbers = {"cells": read, "right": right, "low": low, "high": high, "floor": high + 0.001 if label else None}
            session.add(InUse(site=SITE, model_version="m-1", label=label, alarm=bool(label), at=datetime.now(UTC), **numbers))
    store.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WBC_STORE_URL", url)
        watch(folder / "ward", FIRST + timedelta(days=6))
    port = free_port()
    with started(
        serve_command(linear_model, port), port, folder, clean_environment(WBC_STORE_URL=url, WBC_API_KEYS=KEY), ROOT
    ) as at:
        yield at


@pytest.mark.parametrize(
    ("language", "state", "since"),
    [
        ("en", "not as usual", "Stain: not as usual since Nov 6, 2026"),
        ("de", "nicht wie gewohnt", "Färbung: nicht wie gewohnt seit dem 06.11.2026"),
    ],
)
def test_an_alarm_is_seen_in_words_and_pictures(watched: Server, browser: Browser, language: str, state: str, since: str) -> None:
    for scheme in ("light", "dark"):
        # West of Greenwich, where the midnight of UTC is still the day before: the watch's days are UTC's everywhere.
        page = browser.new_page(color_scheme=scheme, timezone_id="America/New_York")  # type: ignore[arg-type]
        errors: list[str] = []
        page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
        page.goto(f"{watched.url}/watch?lang={language}#key={KEY}")
        expect(page.locator(".site h2")).to_have_text([SITE, "Zweigstelle"])
        assert KEY not in page.url
        expect(page.locator(".verdict").first).to_contain_text(since)
        expect(page.locator(".verdict").last).to_contain_text("90")  # and not that they are as usual
        expect(page.locator(".verdict").last).to_have_class("verdict open")
        expect(page.locator("td.alarm").first).to_have_text(state)
        expect(page.locator(".pictures img")).to_have_count(5)
        for picture in page.locator(".pictures img").all():
            expect(picture).to_have_attribute("src", re.compile("^blob:"))
            assert picture.evaluate("async (one) => { await one.decode(); return one.naturalWidth; }") > 100
        assert axe.complaints(page) == [], scheme
        assert errors == []
        page.close()


def test_without_a_key_the_page_asks_for_one(watched: Server, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{watched.url}/watch?lang=en")
    expect(page.locator("#key-dialog")).to_be_visible()
    page.locator("#key-input").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-refused")).to_be_visible()
    page.locator("#key-input").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator(".site h2").first).to_have_text(SITE)
    page.close()


def test_what_is_not_all_and_what_is_under_its_floor_is_written_so(watched: Server, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{watched.url}/watch?lang=en#key={KEY}")
    everything, monocytes = (page.locator("tr", has_text=text) for text in ("199 of 200", "20 of 40"))
    expect(everything).to_contain_text("99.5%")
    low, high = limits([(1, 1), (0, 1)] * 20, 0.005)
    expect(monocytes).to_contain_text(f"{low:.0%} to {high:.1%}")
    expect(monocytes.locator(".alarm")).to_have_text(f"under {high + 0.001:.1%}")
    page.close()
