"""Decisions on the page, against a real service: none without its basis, each kept as it was made, an undo included."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from live import Server
from page_visits import (
    KEY,
    LARGE,
    PERSON,
    api_of,
    begin,
    draw,
    drop_folder,
    eventually,
    focused,
    message,
    press,
    reopened,
    report_of,
    visit,
)
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from serving.reports.kept_images import delete_expired
from serving.reports.store import Store, sqlite_url


def changes(requests: list) -> list[str]:
    """Methods of the requests that change a report."""
    return [one.method for one in requests if "/cells/" in one.url and one.method != "GET"]


def hold(page: Page, key: str, times: int, ms: int = 33) -> None:
    """Hold a key down as a keyboard does it: the first press, then repetitions."""
    for _ in range(times):
        page.keyboard.down(key)
        page.wait_for_timeout(ms)
    page.keyboard.up(key)


@pytest.mark.parametrize("key", ["Enter", "0", "other class"])
def test_undo_leaves_the_cell_as_nobody_had_touched_it(browser: Browser, keeping: Server, tmp_path: Path, key: str) -> None:
    specimen = f"undone-{key}"
    page = begin(browser, keeping, specimen, draw(tmp_path / "slide", 12, seed=9)).page
    before = report_of(api_of(keeping), specimen)
    here = focused(page)
    assert here["lane"] == "review"
    label = before["cells"][here["number"] - 1]["label"]
    press(page, key if key != "other class" else "1" if label != "Basophil" else "2")
    expect(page.locator("#lane-review .tile")).to_have_count(1)
    press(page, "u")
    assert focused(page) == here
    expect(page.locator("#undo")).to_be_disabled()
    eventually(lambda: report_of(api_of(keeping), specimen)["version"] == before["version"] + 2)
    after = report_of(api_of(keeping), specimen)
    assert after["cells"] == before["cells"]
    assert after["to_review"] == before["to_review"] == 2
    assert [one["undo"] for one in after["corrections"]] == [False, True]
    reopened(page, specimen)
    expect(page.locator("#lane-review .tile")).to_have_count(2)
    page.context.close()


def test_nothing_is_decided_about_a_cell_that_is_not_shown(browser: Browser, forgetting: Server, tmp_path: Path) -> None:
    """The next day, where the site keeps no images: no key and no mouse decides, until the folder is dropped again."""
    folder = draw(tmp_path / "slide", 12, seed=9)
    visited = begin(browser, forgetting, "not-shown", folder, **LARGE)
    page = visited.page
    reopened(page, "not-shown")
    expect(page.locator("#lanes .no-picture .stand-in", has_text="no image")).to_have_count(12)
    expect(page.locator("#cell-why")).to_contain_text("nothing can be decided about a cell that is not shown")
    expect(page.locator("#accept")).to_be_disabled()
    expect(page.locator(".choice:enabled")).to_have_count(0)
    for key in ("Enter", "1", "0"):
        press(page, key)
        expect(message(page)).to_contain_text("is not shown. Drop its folder")
    page.locator("#lane-Neutrophil .tile").first.drag_to(page.locator("#classes button", has_text="Monocyte"))
    expect(message(page)).to_contain_text("is not shown")
    assert not changes(visited.requests)
    page.locator("#lane-review .tile").first.click()
    drop_folder(page, folder)
    expect(message(page)).to_have_text("12 of 12 images belong to this specimen.")
    press(page, "Enter")
    expect(message(page)).to_contain_text("accepted")
    assert changes(visited.requests) == ["PUT"]
    page.context.close()


def test_images_that_the_service_keeps_come_back_after_a_reload(browser: Browser, keeping: Server, tmp_path: Path) -> None:
    """A decision that is asked for while the picture is on its way is taken when it has been seen, and not before."""
    page = begin(browser, keeping, "kept", draw(tmp_path / "slide", 12, seed=9)).page
    waiting: list[Route] = []
    arrived = []

    def late(route: Route) -> None:
        if arrived:
            route.continue_()
        else:
            waiting.append(route)

    page.route("**/image", late)
    reopened(page, "kept")
    expect(page.locator("#cell-why")).to_contain_text("Its picture is on its way.")
    press(page, "Enter")
    expect(message(page)).to_contain_text("is not shown. Its picture is on its way.")
    arrived.append(True)
    for route in waiting:
        route.continue_()
    expect(page.locator(".no-picture")).to_have_count(0)
    press(page, "Enter")
    expect(message(page)).to_contain_text("accepted")
    page.context.close()


def test_tiff_is_shown_and_decided_like_any_other(browser: Browser, keeping: Server, tmp_path: Path) -> None:
    folder = draw(tmp_path / "slide", 6, seed=61)
    for path in list(folder.iterdir()):
        with Image.open(path) as image:
            image.save(path.with_suffix(".tif"))
        path.unlink()
    (folder / "broken.tif").write_bytes(b"II*\0 and no more")
    visited = begin(browser, keeping, "tiff", folder)
    page = visited.page
    expect(page.locator("#lanes .lane:not(#lane-unusable) .no-picture")).to_have_count(0)
    expect(page.locator("#lane-unusable .no-picture .stand-in")).to_have_text("TIF")
    assert page.locator("#cell-image").evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") == 96
    press(page, "Enter")
    expect(message(page)).to_contain_text("accepted")
    reopened(page, "tiff")
    expect(page.locator("#lanes .lane:not(#lane-unusable) .no-picture")).to_have_count(0)
    visited.check()
    page.context.close()


def test_the_page_says_that_images_were_deleted(
    browser: Browser, keeping: Server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    page = begin(browser, keeping, "deleted", draw(tmp_path / "slide", 3, seed=71)).page
    store = Store.open(sqlite_url(tmp_path_factory.getbasetemp() / "keeping0" / "service.db"))
    assert delete_expired(store, 0, datetime.now(UTC)) >= 1
    store.close()
    reopened(page, "deleted")
    expect(page.locator("#notices")).to_contain_text("The service deleted the images of this report on ")
    page.context.close()


def test_a_key_that_is_held_down_decides_what_is_seen_and_stops_at_the_end_of_the_lane(
    browser: Browser, keeping: Server, tmp_path: Path
) -> None:
    visited = begin(browser, keeping, "held", draw(tmp_path / "slide", 60))
    page = visited.page
    to_review = page.locator("#lane-review .tile").count()
    assert to_review > 3
    hold(page, "Enter", 3)
    few = len(changes(visited.requests))
    assert few in (1, 2)  # one for the press, and then none faster than a person can see
    hold(page, "Enter", 20 * to_review)
    expect(page.locator("#lane-review .tile")).to_have_count(0)
    eventually(lambda: report_of(api_of(keeping), "held")["to_review"] == 0)
    assert len(changes(visited.requests)) == to_review  # and none in another lane
    press(page, "u")
    expect(page.locator("#lane-review .tile")).to_have_count(1)

    # In the lane of a class it goes on as fast as the cells are shown, and each is decided once.
    page.locator("#classes button", has_text="Neutrophil").click()
    neutrophils = page.locator("#lane-Neutrophil .tile").count()
    before = len(report_of(api_of(keeping), "held")["corrections"])
    hold(page, "Enter", 12)
    eventually(lambda: len(report_of(api_of(keeping), "held")["corrections"]) - before >= 3)
    page.wait_for_timeout(500)
    decided = report_of(api_of(keeping), "held")["corrections"][before:]
    assert len({one["index"] for one in decided}) == len(decided) <= min(12, neutrophils)
    visited.check()
    page.context.close()


def test_while_the_picture_has_not_been_drawn_a_held_key_decides_nothing(
    browser: Browser, keeping: Server, tmp_path: Path
) -> None:
    visited = begin(browser, keeping, "held-blind", draw(tmp_path / "slide", 12, seed=9))
    page = visited.page
    page.route("**/image", lambda _: None)
    reopened(page, "held-blind")
    expect(page.locator("#cell-why")).to_contain_text("Its picture is on its way.")
    hold(page, "Enter", 20)
    hold(page, "3", 20)
    assert not changes(visited.requests)
    page.context.close()


def test_the_key_that_wbc_serve_prints_opens_the_page(browser: Browser, keeping: Server) -> None:
    """It is taken off the address, so that it is in no history, and stays while the tab is open."""
    visited = visit(browser, keeping, f"#key={KEY}")
    page = visited.page
    expect(page.locator("#model-line")).to_have_text("Model ridge-1")
    assert page.url == f"{keeping.url}/"
    page.reload()
    expect(page.locator("#model-line")).to_have_text("Model ridge-1")
    page.fill("#person", PERSON)
    visited.check()
    page.context.close()
