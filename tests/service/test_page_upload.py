"""Images on their way from the page to a real service: each is counted once, and a report that lacks some says so."""

import re
import shutil
from pathlib import Path
from typing import Any

import httpx
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
    line_of,
    lose_answers,
    message,
    press,
    reopened,
    report_of,
    visit,
)
from PIL import Image
from playwright.sync_api import Browser, Page, Request, Route, expect
from sqlalchemy import update

from serving.reports.store import Store, sqlite_url
from serving.reports.tables import Report

POST = "**/v1/differential"
NO_SUBTLE = "Object.defineProperty(Object.getPrototypeOf(crypto), 'subtle', { value: undefined });"


def keys(requests: list[Request], part: str) -> list[str]:
    """The Idempotency-Keys of the requests to addresses with `part`."""
    return [one.headers["idempotency-key"] for one in requests if part in one.url and one.method != "GET"]


def began_by(server: Server, specimen: str, version: str) -> None:
    """Let a report be one that another model has begun."""
    store = Store.open(sqlite_url(server.log.parent / "service.db"))
    with store.writing() as session:
        session.execute(update(Report).where(Report.specimen_id == specimen).values(model_version=version))
    store.close()


def break_off(page: Page, after: int) -> None:
    """Let so many requests to /v1/differential through, and lose all that follow on the way to the service."""
    posts = [0]

    def lost(route: Route) -> None:
        posts[0] += 1
        if posts[0] > after:
            route.abort("connectionreset")
        else:
            route.continue_()

    page.route(POST, lost)


def sent_names(page: Page) -> int:
    count: int = page.evaluate("window.sentNames.length")
    return count


def tiles_are_cells(page: Page, report: dict[str, Any]) -> bool:
    """Whether the page has a tile for each image of the report, in the lane that the report gives it, and no other."""
    tiles: dict[str, str] = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".tile")].map((tile) =>
            [tile.id.slice(5), tile.closest(".lane").id.slice(5)]))"""
    )

    def lane(cell: dict[str, Any]) -> str:
        if cell["result"]["status"] != "ok":
            return "unusable"
        if cell["label"] is None:
            return "uncounted"
        return "review" if cell["result"]["review"]["required"] and not cell["by_person"] else str(cell["label"])

    return tiles == {str(cell["index"]): lane(cell) for cell in report["cells"]}


def test_a_batch_whose_answer_was_lost_is_the_same_deed_when_it_is_sent_again(
    browser: Browser, keeping: Server, tmp_path: Path
) -> None:
    """The service has counted the second batch, and the page never heard of it: no cell is missing, none there twice."""
    visited = visit(browser, keeping, f"#key={KEY}")
    page = visited.page
    lose_answers(page, (2, 3))
    expect(page.locator("#model-line")).to_have_text("Model ridge-1")
    page.fill("#specimen-id", "lost-answer")
    page.set_input_files("#folder-input", draw(tmp_path / "slide", 140))
    expect(message(page)).to_have_text("140 images read.", timeout=60_000)
    report = report_of(api_of(keeping), "lost-answer")
    assert len({cell["result"]["sha256"] for cell in report["cells"]}) == len(report["cells"]) == 140
    assert (report["differential"]["cells"], report["expected_images"], report["complete"]) == (140, 140, True)
    assert tiles_are_cells(page, report)
    posted = keys(visited.requests, "/v1/differential")
    assert posted[1] == posted[2] == posted[3]  # the second batch, three times
    assert len(set(posted)) == 3
    page.context.close()


@pytest.mark.parametrize(
    "subtle",
    [pytest.param(True, id="as over https"), pytest.param(False, id="as over http", marks=pytest.mark.slow)],
)
def test_an_upload_that_broke_off_is_incomplete_until_the_rest_is_sent(
    browser: Browser, keeping: Server, tmp_path: Path, subtle: bool
) -> None:
    folder = draw(tmp_path / "slide", 70, seed=11 + subtle)
    shutil.copy(folder / "cell-3.png", folder / "zz-copy.png")  # in the second batch; it has no cell, and it counts as sent
    specimen = f"broken-off-{subtle}"
    visited = visit(browser, keeping, f"#key={KEY}")
    page = visited.page
    if not subtle:
        page.add_init_script(NO_SUBTLE)
        page.reload()
    break_off(page, after=1)
    expect(page.locator("#model-line")).to_have_text("Model ridge-1")
    page.fill("#specimen-id", specimen)
    page.fill("#person", PERSON)
    page.set_input_files("#folder-input", folder)
    expect(message(page)).to_have_text("The service cannot be reached.", timeout=60_000)
    expect(page.locator("#report-note")).to_have_text("7 images not sent yet. Nothing can be signed before.")
    expect(page.locator("#sign")).to_be_disabled()
    posted = keys(visited.requests, "/v1/differential")
    assert len(posted) > 2
    assert len(set(posted[1:])) == 1  # however often it was tried

    # The next day: everywhere it is said that images are missing, and nobody can sign.
    page.unroute(POST)
    page.on("dialog", lambda dialog: dialog.accept())
    page.reload()
    expect(page.locator("#specimen-line")).to_have_text(f"Specimen {specimen}")
    line = line_of(page, specimen, "incomplete")
    expect(line).to_contain_text("64 of 71 images")
    line.click()
    expect(message(page)).to_have_text("64 of 71 images have come. Drop the folder of this specimen to send the rest.")
    expect(page.locator("#report-note")).to_contain_text("64 of 71 images have come.")
    expect(page.locator("#sign")).to_be_disabled()

    # A folder of another specimen: nothing is sent without a question, and nothing that cannot be the rest.
    drop_folder(page, draw(tmp_path / "another", 5, seed=21))
    expect(page.locator("#ask-text")).to_have_text(
        "None of these 5 images is in the report so far. Do they show the same specimen?"
    )
    page.keyboard.press("Escape")
    drop_folder(page, draw(tmp_path / "larger", 9, seed=22))
    expect(message(page)).to_contain_text(
        "9 images in this folder are not in the report, and only 7 are missing. Nothing was sent."
    )
    assert sent_names(page) == 0

    # Only what is missing is sent. Another model began the report, as where one was promoted overnight.
    began_by(keeping, specimen, "ridge-0")
    expect(page.locator("#notice-recounted")).to_have_count(0)
    drop_folder(page, folder)
    expect(message(page)).to_have_text("7 images added, 71 in all.", timeout=60_000)
    expect(page.locator("#notice-recounted")).to_have_text(
        "The model was changed meanwhile. All cells were counted again by model ridge-1."
    )
    assert sent_names(page) == 7
    report = report_of(api_of(keeping), specimen)
    assert [(one["what"], one["from_value"], one["to_value"]) for one in report["changes"]] == [("model", "ridge-0", "ridge-1")]
    assert (report["complete"], report["sent_images"], report["differential"]["cells"]) == (True, 71, 70)
    assert tiles_are_cells(page, report)
    expect(page.locator("#lanes .tile:not(.off) .no-picture")).to_have_count(0)
    drop_folder(page, folder)
    expect(message(page)).to_have_text("71 of 71 images belong to this specimen.")
    assert sent_names(page) == 7
    page.context.close()


def test_images_that_are_lost_for_good_can_be_written_off_with_a_reason(
    browser: Browser, keeping: Server, tmp_path: Path
) -> None:
    visited = visit(browser, keeping, f"#key={KEY}")
    page = visited.page
    break_off(page, after=1)
    expect(page.locator("#model-line")).to_have_text("Model ridge-1")
    page.fill("#specimen-id", "written-off")
    page.set_input_files("#folder-input", draw(tmp_path / "slide", 66, seed=31))
    expect(message(page)).to_have_text("The service cannot be reached.", timeout=60_000)
    page.unroute(POST)
    page.on("dialog", lambda dialog: dialog.accept())
    reopened(page, "written-off")
    page.click("#amend")
    page.fill("#amend-images", "64")
    page.fill("#amend-reason", "Two files were damaged on the microscope's disk")
    page.fill("#amend-person", PERSON)
    page.keyboard.press("Enter")
    expect(message(page)).to_have_text("Put right.")
    expect(page.locator("#report-note")).not_to_contain_text("have come")
    report = report_of(api_of(keeping), "written-off")
    assert report["complete"]
    assert [(one["what"], one["from_value"], one["to_value"], one["by"]) for one in report["changes"]] == [
        ("expected_images", 66, 64, PERSON)
    ]
    page.context.close()


def add_from_elsewhere(api: httpx.Client, report: dict[str, Any], folder: Path) -> None:
    """Six more images for a report, by another client."""
    more = report["sent_images"] + 6
    body = {"expected_images": more, "reason": "a second slide", "by": "Dr. B"}
    api.patch(f"/v1/reports/{report['id']}", json=body, headers={"If-Match": "*"}).raise_for_status()
    files = [("images", ("cell", path.read_bytes())) for path in sorted(folder.iterdir())]
    fields = {"report_id": report["id"], "expected_images": str(more)}
    api.post("/v1/differential", files=files, data=fields, headers={"Idempotency-Key": report["id"]}).raise_for_status()


@pytest.mark.parametrize("way", ["decide", "sign"])
def test_cells_that_come_from_elsewhere_get_their_tiles(browser: Browser, keeping: Server, tmp_path: Path, way: str) -> None:
    """The page learns of them at its next call: their tiles are there with what they count, never after it."""
    specimen, api = f"from-elsewhere-{way}", api_of(keeping)
    page = begin(browser, keeping, specimen, draw(tmp_path / "slide", 12, seed=9), **LARGE).page
    page.locator(".tile").first.wait_for()
    while page.locator("#lane-review .tile").count():
        press(page, "Enter")
    expect(page.locator("#sign")).to_be_enabled()
    add_from_elsewhere(api, report_of(api, specimen), draw(tmp_path / "more", 6, seed=41))
    if way == "sign":
        page.click("#sign")
        expect(page.locator("#ask-dialog")).to_be_visible()
        page.keyboard.press("Enter")
    else:
        press(page, "End", "1")
    expect(message(page)).to_contain_text("changed meanwhile")
    expect(page.locator(".tile")).to_have_count(18)
    expect(page.locator("#differential-note")).to_contain_text("18 cells")
    expect(page.locator("#status")).to_have_text("Not signed")
    assert tiles_are_cells(page, report_of(api, specimen))
    eventually(lambda: page.locator("#lanes .no-picture").count() == 0)  # their images come from the service
    page.context.close()


def test_copies_of_an_image_count_once_and_say_whose_they_are(browser: Browser, keeping: Server, tmp_path: Path) -> None:
    folder = draw(tmp_path / "slide", 10, seed=51)
    for number in range(3):
        shutil.copy(folder / f"cell-{number}.png", folder / f"copy-{number}.png")
    page = begin(browser, keeping, "copies", folder).page
    expect(message(page)).to_have_text("13 images read.")
    expect(page.locator("#differential-note")).to_contain_text("10 cells")
    expect(page.locator("#lane-unusable .tile")).to_have_count(3)
    page.keyboard.press("End")
    expect(page.locator("#cell-why")).to_have_text("This image was left out: the same file was sent before, as cell 3.")
    expect(page.locator("#accept")).to_be_disabled()
    page.click("#twin")
    expect(page.locator("#cell-heading")).to_have_text("Cell 3")
    assert tiles_are_cells(page, report_of(api_of(keeping), "copies"))
    page.context.close()


def test_a_cell_that_was_cut_again_names_its_twin(browser: Browser, keeping: Server, tmp_path: Path) -> None:
    folder = draw(tmp_path / "slide", 10, seed=52)
    with Image.open(folder / "cell-3.png") as image:
        image.save(folder / "saved-again.jpg", quality=85)
    page = begin(browser, keeping, "twins", folder).page
    twin = page.locator("#lane-review #cell-10")
    expect(twin).to_have_attribute("aria-label", re.compile("Looks like cell 4 once more."))
    twin.click()
    expect(page.locator("#cell-why")).to_contain_text("Looks like cell 4 once more.")
    page.click("#twin")
    expect(page.locator("#cell-heading")).to_have_text("Cell 4")
    expect(page.locator("#differential-note")).to_contain_text("11 cells")  # it counts until a person says otherwise
    expect(page.locator("#sign")).to_be_disabled()
    page.context.close()
