"""The report as a whole on the page, against a real service: what is wrong can be put right, and what cannot be done says why."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from linear_model import write_linear_model
from live import ROOT, Server, clean_environment, free_port, serve_command, started
from page_visits import KEY, PERSON, api_of, begin, draw, eventually, message, press, report_of, visit
from playwright.sync_api import Browser, Page, Route, expect

from serving.reports.store import sqlite_url


def review_all(page: Page) -> None:
    press(page, "r")
    while page.locator("#lane-review .tile").count():
        press(page, "Enter")


def sign(page: Page) -> None:
    expect(page.locator("#sign")).to_be_enabled()
    page.click("#sign")
    expect(page.locator("#ask-dialog")).to_be_visible()
    page.keyboard.press("Enter")


def test_a_wrong_number_is_put_right_with_a_reason(browser: Browser, keeping: Server, tmp_path: Path) -> None:
    page = begin(browser, keeping, "mistyped", draw(tmp_path / "slide", 12, seed=9)).page
    review_all(page)
    sign(page)
    expect(page.locator("#status")).to_have_text("Signed")
    page.click("#amend")
    expect(page.locator("#amend-signed")).to_be_visible()
    page.fill("#amend-specimen", "right-number")
    page.fill("#amend-count", "6,8")
    page.keyboard.press("Enter")
    expect(page.locator("#amend-dialog")).to_be_visible()  # the reason is missing
    page.fill("#amend-reason", "Typed from the wrong tube")
    page.keyboard.press("Enter")
    expect(page.locator("#specimen-line")).to_have_text("Specimen right-number")
    expect(page.locator("#status")).to_have_text("Not signed")
    expect(page.locator("#unit")).to_be_visible()
    report = report_of(api_of(keeping), "right-number")
    assert {(one["what"], one["from_value"], one["to_value"], one["reason"], one["by"]) for one in report["changes"]} == {
        ("specimen_id", "mistyped", "right-number", "Typed from the wrong tube", PERSON),
        ("wbc_count", None, 6.8, "Typed from the wrong tube", PERSON),
    }
    sign(page)
    expect(page.locator("#status")).to_have_text("Signed, amended")
    page.context.close()


def test_a_report_is_withdrawn_with_a_reason_and_nothing_in_it_changes_until_it_is_taken_back(
    browser: Browser, keeping: Server, tmp_path: Path
) -> None:
    visited = begin(browser, keeping, "of-nobody", draw(tmp_path / "slide", 12, seed=9))
    page = visited.page
    page.click("#withdraw")
    page.fill("#withdraw-reason", "Not this patient's slide")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Withdrawn")
    expect(page.locator("#report-note")).to_have_text("This report was withdrawn. It counts no more.")
    for button in ("#sign", "#amend", "#withdraw"):
        expect(page.locator(button)).to_be_hidden()
    sent = len(visited.requests)
    press(page, "Enter")
    expect(message(page)).to_have_text("This report was withdrawn; nothing in it can be changed.")
    assert len(visited.requests) == sent
    report = report_of(api_of(keeping), "of-nobody")
    assert (report["status"], report["changes"][0]["reason"]) == ("withdrawn", "Not this patient's slide")
    page.click("#reinstate")
    page.fill("#say-text", "It was this patient's after all")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Not signed")
    expect(page.locator("#history")).to_contain_text("took the withdrawal back: It was this patient's after all")
    visited.check()
    page.context.close()


def test_a_second_report_of_a_specimen_is_made_only_after_a_question(browser: Browser, keeping: Server, tmp_path: Path) -> None:
    visited = begin(browser, keeping, "twice", draw(tmp_path / "slide", 3, seed=81))
    page = visited.page
    page.click("#new")
    page.fill("#specimen-id", "twice")
    page.set_input_files("#folder-input", draw(tmp_path / "other", 4, seed=82))
    expect(page.locator("#ask-text")).to_contain_text("There is a report of specimen twice already; the last one: 3 cells,")
    posts = len([one for one in visited.requests if one.method == "POST"])
    page.keyboard.press("Escape")
    expect(page.locator("#worklist")).to_be_visible()
    assert len([one for one in visited.requests if one.method == "POST"]) == posts
    page.set_input_files("#folder-input", tmp_path / "other")
    expect(page.locator("#ask-dialog")).to_be_visible()
    page.keyboard.press("Enter")
    expect(message(page)).to_have_text("4 images read.")
    assert len(api_of(keeping).get("/v1/reports", params={"specimen_id": "twice"}).json()["reports"]) == 2
    page.context.close()


def test_a_late_answer_moves_no_focus_from_where_somebody_types(browser: Browser, keeping: Server, tmp_path: Path) -> None:
    page = begin(browser, keeping, "left-behind", draw(tmp_path / "slide", 3, seed=83)).page
    late: list[Route] = []
    page.route("**/v1/worklist", lambda route: late.append(route))
    with page.expect_request("**/v1/worklist"):
        page.click("#new")
    expect(page.locator("#search-number")).to_be_focused()
    page.focus("#specimen-id")
    page.keyboard.type("ty")
    with page.expect_response("**/v1/worklist"):
        late.pop().continue_()
    page.unroute("**/v1/worklist")
    expect(page.locator("#reports")).to_contain_text("left-behind")
    page.keyboard.type("ped")
    assert (page.input_value("#specimen-id"), page.input_value("#search-number")) == ("typed", "")
    page.click("[data-shelf=all]")
    expect(page.locator("[data-shelf=all]")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("[data-shelf=all]")).to_be_focused()  # the tabs are drawn anew with the answer
    page.context.close()


def test_a_lost_answer_to_a_signature_is_no_second_signature(browser: Browser, keeping: Server, tmp_path: Path) -> None:
    """The service signs and the connection breaks, every time: asked again, the page sends the same deed."""
    visited = begin(browser, keeping, "signed-once", draw(tmp_path / "slide", 12, seed=9))
    page = visited.page
    review_all(page)
    expect(page.locator("#sign")).to_be_enabled()
    page.route("**/signature", lambda route: (route.fetch(), route.abort("connectionreset")))
    sign(page)
    expect(message(page)).to_have_text("The service cannot be reached.", timeout=30_000)
    page.unroute("**/signature")
    sign(page)
    expect(page.locator("#status")).to_have_text("Signed")
    expect(message(page)).to_have_text("Signed.")
    assert len({one.headers["idempotency-key"] for one in visited.requests if "/signature" in one.url}) == 1
    assert len(report_of(api_of(keeping), "signed-once")["signatures"]) == 1
    page.context.close()


def inactive(page: Page, why: str) -> None:
    """No button of the report can be pressed, and the page says why."""
    for button in ("#sign", "#pdf", "#fhir"):
        expect(page.locator(button)).to_be_disabled()
    expect(page.locator("#report-note")).to_have_text(why)


@pytest.mark.parametrize("count", [1, 70])
def test_images_none_of_which_can_be_used(browser: Browser, keeping: Server, tmp_path: Path, count: int) -> None:
    """All in one request, which makes no report; and more than one request, which makes one without a cell."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(b"no image %d" % number)
    visited = visit(browser, keeping, f"#key={KEY}")
    page = visited.page
    expect(page.locator("#model-line")).to_have_text("Model ridge-1")
    page.set_input_files("#folder-input", folder)
    expect(page.locator("#lane-unusable .tile")).to_have_count(count, timeout=30_000)
    if count == 1:
        expect(message(page)).to_have_text("None of these images could be used.")
        inactive(page, "No image could be used: there is nothing to sign.")
    else:
        expect(message(page)).to_have_text("70 images read.")
        inactive(page, "No image counts as a leukocyte: there is nothing to sign. No cell left to review.")
    for key in ("Enter", "1", "u", "r", "ArrowRight", "h"):
        press(page, key)
    page.click("#new")
    expect(page.locator("#worklist")).to_be_visible()
    visited.check("422 (Unprocessable")
    page.context.close()


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model learned from drawn cells."""
    folder, port = tmp_path_factory.mktemp("drawing"), free_port()
    write_linear_model(folder / "model")
    environment = clean_environment(WBC_STORE_URL=sqlite_url(folder / "service.db"), WBC_API_KEYS=KEY)
    with started(serve_command(folder / "model", port), port, folder, environment, ROOT) as server:
        yield server


@pytest.mark.slow
def test_a_report_by_a_model_of_drawn_cells_cannot_be_signed(browser: Browser, drawing: Server, tmp_path: Path) -> None:
    page = begin(browser, drawing, "drawn", draw(tmp_path / "slide", 12, seed=9)).page
    expect(page.locator("#notices")).to_contain_text("not for patients: nothing can be signed")
    review_all(page)
    eventually(lambda: report_of(api_of(drawing), "drawn")["to_review"] == 0)
    expect(page.locator("#sign")).to_be_disabled()
    expect(page.locator("#report-note")).to_contain_text("Not to be signed: its model learned from drawn cells.")
    page.context.close()


def test_a_service_without_a_store_says_what_it_cannot_do(browser: Browser, server: Server, tmp_path: Path) -> None:
    visited = visit(browser, server)
    page = visited.page
    expect(page.locator("#model-line")).to_have_text("Model tiny-1")
    page.set_input_files("#folder-input", draw(tmp_path / "slide", 4))
    expect(page.locator("#report-note")).to_contain_text("keeps no reports", timeout=30_000)
    for button in ("#sign", "#pdf", "#fhir"):
        expect(page.locator(button)).to_be_disabled()
    press(page, "1")
    expect(message(page)).to_contain_text("cannot be corrected here")
    visited.check("404 (Not Found)")
    page.context.close()


def test_folders_without_an_image_and_services_that_refuse_are_told(browser: Browser, server: Server, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    page = visit(browser, server).page
    expect(page.locator("#model-line")).to_have_text("Model tiny-1")
    page.set_input_files("#folder-input", tmp_path / "empty")
    expect(message(page)).to_have_text("There is no image among this 1 file.")
    draw(tmp_path / "slide", 1)
    page.fill("#wbc-count", "many")
    page.set_input_files("#folder-input", tmp_path / "slide")
    expect(message(page)).to_have_text("The white cell count takes a number, in 10⁹/L, such as 6.8.")
    expect(page.locator("#worklist")).to_be_visible()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    page.fill("#wbc-count", "")
    page.set_input_files("#folder-input", tmp_path / "broken")
    expect(message(page)).to_have_text("None of these images could be used.")
    expect(page.locator("#lane-unusable .tile")).to_have_count(1)
    page.context.close()
