"""The page for labelling, in headless Chromium against a real server: what readers see and answer, and that nothing is lost."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import axe
import pytest
from label_visits import (
    LABELLING,
    NEXT_STEP,
    QUEUE,
    WORKSPACE,
    Readers,
    answer_all,
    asking,
    in_sight,
    name_cells,
    rendered,
    sit_down,
)
from page_visits import eventually, lose_answers, message
from playwright.sync_api import Browser, Page, Route, expect

from serving.labelling.queue import close, say, withdraw_cells

COUNT = 80
PERSONS = {
    "ada": ("Dr Ada Lindgren", ("label",)),
    "bert": ("Bert Moreau", ("label",)),
    "cleo": ("Cleo Sand", ("adjudicate",)),
    "dora": ("Dora Weiss", ("label",)),
    "emil": ("Emil Berg", ("label",)),
    "fay": ("Fay Odum", ("label",)),
    "ward": ("", ("classify", "review")),
}
SETTINGS = {"second_reader_share": 1.0, "repeat_share": 0.0, "known_share": 0.0, "pixel_um": 0.1}
ANSWERS = "**/v1/labelling/tasks/*"  # and not those of their images


@pytest.fixture(scope="module")
def readers(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Readers]:
    """A server that asks about COUNT cells, each by two readers."""
    with asking(model_dir, tmp_path_factory.mktemp("readers"), PERSONS, rendered(COUNT), SETTINGS) as running:
        yield running


def shown(page: Page) -> str:
    """The address of the picture that is looked at; each cell has its own."""
    return str(page.locator("#picture img").get_attribute("src"))


def answers_of(page: Page) -> list[str]:
    """The names of the answers on the page, in order."""
    return [str(answer) for answer in page.locator("#kinds .kind").evaluate_all("all => all.map((one) => one.dataset.answer)")]


def done(readers: Readers, name: str) -> int:
    with readers.api(name) as api:
        return int(api.get(LABELLING).json()["done"])


def check_access(page: Page) -> None:
    """Those with a screen reader, a keyboard or weak eyes can use what is on the page, in both colour schemes."""
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert axe.complaints(page) == [], scheme


def test_a_reader_names_cells_by_key_and_nothing_leads(browser: Browser, readers: Readers) -> None:
    visited = sit_down(browser, readers, "ada")
    page = visited.page
    in_sight(page)
    expect(page.locator("#reader")).to_have_text("Dr Ada Lindgren")
    expect(page.locator("#done")).to_have_text(f"0 of {COUNT} cells")
    for width, height in ((1000, 600), (2560, 1440)):
        page.set_viewport_size({"width": width, "height": height})
        assert page.locator("#picture").evaluate("picture => Math.min(picture.clientWidth, picture.clientHeight)") >= 512
    expect(page.locator("#next-step")).to_have_text(NEXT_STEP)
    expect(page.locator("#kinds .classes .references img")).to_have_count(20)
    images = [one.url for one in visited.requests if re.search(r"/tasks/[^/]+/image$", one.url)]
    assert len(images) == 4, "this cell and the next three"
    seen = page.content()
    assert not [sha256 for sha256 in readers.truth if sha256[:12] in seen or any(sha256[:12] in url for url in images)]
    assert "0.64" not in seen
    assert "64%" not in seen

    pictures = []
    for key in ("3", "b", "0", "?"):
        pictures.append(shown(page))
        name_cells(page, key)
    assert len({*pictures, shown(page)}) == 5
    expect(message(page)).to_have_text(f"Unsure. 4 of {COUNT}.")
    expect(page.locator("#last")).to_have_text("Last: Unsure")
    eventually(lambda: done(readers, "ada") == 4)
    assert [answer for _, answer, _ in readers.said("Dr Ada Lindgren")] == ["Lymphocyte", "Band", "not a leukocyte", "unsure"]

    # Undo is one in the record, too, and the cell is there again.
    page.keyboard.press("u")
    expect(message(page)).to_have_text("Unsure is taken back. Name the cell again.")
    assert shown(page) == pictures[-1]
    eventually(lambda: done(readers, "ada") == 3)
    name_cells(page, "4")
    eventually(lambda: done(readers, "ada") == 4)
    said = readers.said("Dr Ada Lindgren")
    assert [answer for _, answer, _ in said[3:]] == ["unsure", "", "Monocyte"]
    assert said[4][2] is not None
    assert len({sha256 for sha256, _, _ in said[3:]}) == 1

    # A held key, and one that bounces, answer nothing unseen.
    in_sight(page)
    page.keyboard.down("1")
    page.keyboard.down("1")
    page.keyboard.up("1")
    page.keyboard.press("2")
    expect(message(page)).to_contain_text("Too soon")
    eventually(lambda: done(readers, "ada") == 5)
    visited.check()
    page.context.close()

    # Another day, another computer: it goes on, and the last answer can still be taken back.
    page = sit_down(browser, readers, "ada").page
    in_sight(page)
    check_access(page)
    expect(page.locator("#done")).to_have_text(f"5 of {COUNT} cells")
    page.keyboard.press("u")
    expect(message(page)).to_have_text("Your last answer is taken back. Name the cell again.")
    expect(page.locator("#done")).to_have_text(f"4 of {COUNT} cells")

    # What was said long ago is found again, said otherwise, or taken back.
    page.get_by_role("link", name="My answers").click()
    expect(page.locator("#said li")).to_have_count(4)
    expect(page.locator("#said li img")).to_have_count(4)
    check_access(page)
    page.get_by_role("button", name="Name again: Not a leukocyte").click()
    expect(page.locator("#answer-heading")).to_have_text("You said: Not a leukocyte. What is this cell?")
    name_cells(page, "5")
    eventually(lambda: readers.said("Dr Ada Lindgren")[-1][1] == "Neutrophil")
    expect(page.locator("#done")).to_have_text(f"4 of {COUNT} cells")
    page.get_by_role("link", name="My answers").click()
    page.get_by_role("button", name="Take back: Band neutrophil").click()
    expect(message(page)).to_have_text("Band neutrophil is taken back. The cell is asked again.")
    expect(page.locator("#said li")).to_have_count(3)
    assert done(readers, "ada") == 3
    page.context.close()


def test_a_bad_network_makes_nobody_wait_and_loses_nothing(browser: Browser, readers: Readers) -> None:
    visited = sit_down(browser, readers, "bert")
    page = visited.page
    name_cells(page, "1")
    expect(page.locator("#saved")).to_have_text("All saved")
    page.on("dialog", lambda dialog: dialog.accept())
    page.route(ANSWERS, lambda route: route.abort())
    before = shown(page)
    name_cells(page, "2", "3")
    assert shown(page) != before
    expect(page.locator("#saved")).to_have_text("2 answers on their way")
    expect(page.locator("#notices")).to_contain_text("not saved yet", timeout=10_000)
    assert done(readers, "bert") == 1
    name_cells(page, "4", "u")  # which has not left yet, and never does
    expect(page.locator("#saved")).to_have_text("2 answers on their way")
    page.reload()
    in_sight(page)
    expect(page.locator("#done")).to_have_text(f"3 of {COUNT} cells")
    page.unroute(ANSWERS)
    page.evaluate("window.dispatchEvent(new Event('online'))")
    eventually(lambda: done(readers, "bert") == 3)
    expect(page.locator("#notices")).to_be_empty()
    assert [answer for _, answer, _ in readers.said("Bert Moreau")] == ["Basophil", "Eosinophil", "Lymphocyte"]

    # An answer that arrived, but whose confirmation did not: it is sent again with its key, and counts once.
    lose_answers(page, {1}, "*/v1/labelling/tasks/*", "PUT")
    name_cells(page, "5")
    expect(page.locator("#saved")).to_have_text("All saved", timeout=10_000)
    assert Counter(answer for _, answer, _ in readers.said("Bert Moreau"))["Neutrophil"] == 1
    twice = [one.headers["idempotency-key"] for one in visited.requests if one.method == "PUT"][-2:]
    assert twice[0] == twice[1]
    page.context.close()


def test_a_refused_answer_brings_its_cell_back(browser: Browser, readers: Readers) -> None:
    visited = sit_down(browser, readers, "dora")
    page = visited.page
    in_sight(page)
    refusal = {"type": "urn:wbc:problem:of-a-later-version", "title": "No", "status": 422, "detail": "There is no such kind."}
    page.route(ANSWERS, lambda route: _refuse(route, refusal), times=1)
    first = shown(page)
    page.keyboard.press("1")
    expect(message(page)).to_have_text("Basophil was not kept: There is no such kind. Here is the cell again.")
    assert shown(page) == first
    name_cells(page, "2")
    eventually(lambda: [answer for _, answer, _ in readers.said("Dora Weiss")] == ["Eosinophil"])

    # Refused for good: the cell does not come back, and the page says why.
    gone = {**refusal, "type": "urn:wbc:problem:held-out", "status": 409, "detail": "The cell is one of the test cells."}
    page.route(ANSWERS, lambda route: _refuse(route, gone), times=1)
    in_sight(page)
    first = shown(page)
    page.keyboard.press("1")
    expect(message(page)).to_have_text("Basophil was not kept: The cell is one of the validation or test cells.")
    assert shown(page) != first
    visited.check("422", "409")
    page.context.close()


def _refuse(route: Route, problem: dict[str, object]) -> None:
    route.fulfill(status=int(str(problem["status"])), json=problem, content_type="application/problem+json")


def test_zoom_and_the_scale_bar(browser: Browser, readers: Readers) -> None:
    page = sit_down(browser, readers, "dora").page
    in_sight(page)
    zoom = "document.getElementById('picture').style.getPropertyValue('--zoom')"
    bar = page.locator(".scale-bar")
    expect(bar).to_have_text("2 µm")
    width = bar.evaluate("bar => bar.offsetWidth")
    drawn = page.evaluate("document.getElementById('picture').clientWidth / document.querySelector('#picture img').naturalWidth")
    assert width == pytest.approx(2 / 0.1 * drawn, abs=1)
    page.keyboard.press("z")
    assert float(page.evaluate(zoom)) == 2.5
    expect(bar).to_have_text("1 µm")
    page.keyboard.press("z")
    assert float(page.evaluate(zoom)) == 1
    page.locator("#picture").hover(position={"x": 100, "y": 100})
    page.mouse.wheel(0, -240)
    page.wait_for_function(f"Number({zoom}) > 1")
    left = page.locator("#picture img").evaluate("image => image.getBoundingClientRect().left")
    page.mouse.down()
    page.mouse.move(400, 300)
    page.mouse.up()
    assert page.locator("#picture img").evaluate("image => image.getBoundingClientRect().left") != left
    brightness = page.get_by_label("Brightness")
    brightness.fill("150")
    assert "brightness(1.5)" in page.locator("#picture img").evaluate("image => getComputedStyle(image).filter")
    brightness.focus()
    before = shown(page)
    page.keyboard.press("5")  # a slider does not keep the digits
    assert shown(page) != before
    page.context.close()


def test_alike_cells_are_named_together_and_the_odd_ones_by_themselves(browser: Browser, readers: Readers) -> None:
    visited = sit_down(browser, readers, "emil", "#/sweep")
    page = visited.page
    tiles = page.locator(".swept")
    expect(page.locator(".swept img")).to_have_count(25)
    page.wait_for_timeout(600)
    heading, marked = page.locator("#sweep-count"), page.locator(".swept[aria-selected=true]")
    tiles.nth(0).click()
    tiles.nth(3).click(modifiers=["Shift"])
    expect(marked).to_have_count(4)
    boxes = [tiles.nth(index).bounding_box() for index in (16, 22)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    page.mouse.move(boxes[0]["x"] + 20, boxes[0]["y"] + 20)
    page.mouse.down()
    page.mouse.move(boxes[1]["x"] + 30, boxes[1]["y"] + 30, steps=4)
    expect(page.locator(".rectangle")).to_be_visible()
    page.mouse.up()
    expect(marked).to_have_count(8)  # 16, 17, 21 and 22, too
    page.keyboard.press("z")
    assert tiles.nth(5).locator("img").evaluate("image => image.getBoundingClientRect().width") > boxes[0]["width"] * 1.5
    page.keyboard.press("z")
    tiles.nth(0).click()
    tiles.nth(16).focus()
    for key in (" ", "ArrowRight", " "):
        page.keyboard.press(key)
    expect(heading).to_have_text("Name 20 cells, 5 marked")
    check_access(page)
    page.keyboard.press("5")
    expect(message(page)).to_contain_text("20 cells are Neutrophil. 20 of ")
    eventually(lambda: done(readers, "emil") == 20)

    # An undo brings the grid back as it was named.
    expect(page.locator(".swept img")).to_have_count(25)
    page.keyboard.press("u")
    expect(heading).to_have_text("Name 20 cells, 0 marked")
    eventually(lambda: done(readers, "emil") == 0)
    page.wait_for_timeout(600)
    page.keyboard.press("4")
    eventually(lambda: done(readers, "emil") == 20)
    standing = {sha256: answer for sha256, answer, _ in readers.said("Emil Berg")}
    assert Counter(standing.values()) == {"Monocyte": 20}

    # The five odd ones are read one at a time, before all others.
    expect(page.locator(".swept img")).to_have_count(25)
    page.locator("#odd").click()
    expect(page.locator("#one")).to_be_visible()
    name_cells(page, "1", "2", "3", "1", "2")
    eventually(lambda: done(readers, "emil") == 25)
    visited.check()
    page.context.close()


def test_a_third_person_decides_and_sees_the_opinion_last(browser: Browser, readers: Readers) -> None:
    for name, answer in (("fay", "Lymphocyte"), ("bert", "Monocyte")):
        with readers.api(name) as api:
            answer_all(api, answer)
    page = sit_down(browser, readers, "cleo", "#/disputes").page
    in_sight(page)
    expect(page.locator("#both dd")).to_have_count(2)
    text = page.locator("body").inner_text()
    assert "Moreau" not in text
    assert "Odum" not in text
    expect(page.locator("#opinion")).to_be_empty()
    page.keyboard.press("h")
    expect(page.locator("#opinion")).to_contain_text("64%")
    check_access(page)
    disputed = int(page.locator("#disputed").inner_text())
    name_cells(page, "3")
    expect(message(page)).to_contain_text(f"Lymphocyte. {disputed - 1} cell")
    eventually(lambda: [answer for _, answer, _ in readers.said("Cleo Sand")] == ["Lymphocyte"])
    page.wait_for_timeout(300)
    page.keyboard.press("u")
    expect(page.locator("#opinion")).to_be_empty()
    name_cells(page, "4")
    eventually(lambda: [answer for _, answer, _ in readers.said("Cleo Sand")] == ["Lymphocyte", "", "Monocyte"])

    # Nobody can name one: it waits for nobody, is found again, and can be named all the same.
    name_cells(page, "?")
    expect(message(page)).to_contain_text(f"Cannot be named. {disputed - 2} cell")
    page.get_by_role("link", name="Agreement").click()
    page.get_by_role("link", name="Look at what nobody could name").click()
    expect(page.locator("#kinds .kind", has_text="Unsure")).to_have_count(0)
    name_cells(page, "1")
    eventually(lambda: readers.said("Cleo Sand")[-1][1] == "Basophil")
    expect(page.locator("#nothing-heading")).to_have_text("Nothing is left without a name")
    page.context.close()


def test_where_there_is_nothing_to_do_the_page_says_why(browser: Browser, readers: Readers) -> None:
    page = sit_down(browser, readers, "ward").page
    expect(page.locator("#nothing-heading")).to_have_text("This key does not label")
    expect(page.locator("#nothing-text")).to_contain_text("classify, review")
    check_access(page)
    page.click("#nothing-key")
    page.fill("#key-input", readers.keys["fay"])
    page.keyboard.press("Enter")
    expect(page.locator("#reader")).to_have_text("Fay Odum")
    with readers.api("fay") as api:
        answer_all(api, "Monocyte")
    page.reload()
    expect(page.locator("#nothing-heading")).to_have_text("You have read all your cells")
    expect(page.locator("#nothing-next")).to_have_text(f"Next: {NEXT_STEP}")
    page.evaluate("location.hash = '#/disputes'")
    expect(page.locator("#nothing-heading")).to_have_text("Not with this key")
    page.evaluate("location.hash = '#/'")
    state = page.evaluate(
        "async (key) => (await fetch('v1/labelling', { headers: { 'X-API-Key': key } })).json()", readers.keys["fay"]
    )
    no_store = {"type": "urn:wbc:problem:no-store", "title": "No", "status": 404, "detail": "This service keeps nothing."}
    page.route("**/v1/labelling", lambda route: _refuse(route, no_store))  # not once: a call of the view before may still come
    page.reload()
    expect(page.locator("#nothing-heading")).to_have_text("This service keeps nothing")
    page.unroute("**/v1/labelling")
    page.route("**/v1/labelling", lambda route: route.fulfill(json={**state, "queue": None, "left": 0}))
    page.click("#nothing-again")
    expect(page.locator("#nothing-heading")).to_have_text("Nothing is asked at the moment")
    page.unroute("**/v1/labelling")
    page.click("#nothing-again")
    expect(page.locator("#nothing-heading")).to_have_text("You have read all your cells")

    # A key that is taken away in the middle: the page asks who is there, and goes on for that person.
    page.wait_for_load_state("networkidle")  # reference cells are on their way, and would ask for a key, too
    page.evaluate("sessionStorage.setItem('wbc-api-key', 'an old one')")
    page.click("#nothing-again")
    expect(page.locator("#key-refused")).to_be_visible()
    page.fill("#key-input", readers.keys["dora"])
    page.keyboard.press("Enter")
    expect(page.locator("#reader")).to_have_text("Dora Weiss")
    page.click("#sign-out")
    expect(page.locator("#key-dialog")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    page.keyboard.press("Escape")
    expect(page.locator("#nothing-heading")).to_have_text("Who are you?")
    page.context.close()


def test_the_page_speaks_german(browser: Browser, readers: Readers) -> None:
    page = sit_down(browser, readers, "dora", locale="de-DE").page
    in_sight(page)
    expect(page.locator("#answer-heading")).to_have_text("Was ist das für eine Zelle?")
    expect(page.locator("#kinds .kind", has_text="Lymphozyt")).to_be_visible()
    page.keyboard.press("F1")
    expect(page.locator("#help-heading")).to_have_text("Tasten")
    check_access(page)
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 390, "height": 844})
    in_sight(page)
    check_access(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.context.close()


def test_what_happens_next_is_said_in_the_readers_language(browser: Browser, readers: Readers) -> None:
    left = [{"name": "Ada", "left": 40}, {"name": "Bo", "left": 12}]
    until = {"code": "enough_or_on", "enough": 30, "until": "2026-12-02T08:00:00+00:00"}
    parts = [{"code": "agreed", "agreed": 1, "count": 60}, {"code": "readers", "readers": left, "more": 2}, until]
    say(readers.store, QUEUE, NEXT_STEP, None, parts)
    german = sit_down(browser, readers, "fay", locale="de-DE").page
    expect(german.locator("#next-step")).to_have_text(
        "über 1 von 60 Zellen besteht Einigkeit; Ada hat noch 40 zu lesen, Bo 12, 2 weitere; "
        "bei 30 geht das Lernen weiter, oder am 02.12.2026, 08:00"
    )
    say(readers.store, QUEUE, NEXT_STEP, None)
    german.context.close()


def test_what_the_next_labels_gain_is_said_in_the_readers_language(browser: Browser, readers: Readers) -> None:
    gain = {"text": "in English", "labels": 20, "points": 4, "least": 3, "may_pause": False, "expected": 0.0081}
    say(readers.store, QUEUE, NEXT_STEP, {**gain, "low": 0.001, "high": 0.02})
    english, german = (sit_down(browser, readers, "fay", locale=locale).page for locale in ("en-GB", "de-DE"))
    rise = "20 more labels are expected to raise the accuracy by 0.8 points (95 % limits 0.1 to 2.0): worth going on."
    expect(english.locator("#gain")).to_have_text(rise)
    expect(german.locator("#gain")).to_contain_text("um 0,8 Punkte (95-%-Grenzen 0,1 bis 2,0): Es lohnt sich.")
    say(readers.store, QUEUE, NEXT_STEP, {**gain, "expected": None, "low": None, "high": None, "points": 1})
    german.reload()
    expect(german.locator("#gain")).to_contain_text("1 von mindestens 3 Runden")
    say(readers.store, QUEUE, NEXT_STEP, None)
    german.reload()
    expect(german.locator("#reader")).to_have_text("Fay Odum")
    expect(german.locator("#gain")).to_be_empty()
    for page in (english, german):
        page.context.close()


# ---------------------------------------------------------------- several windows, and a queue that changes meanwhile

FEW = {
    "ada": ("Ada", ("label",)),
    "bert": ("Bert", ("label",)),
    "cleo": ("Cleo", ("adjudicate",)),
    "dan": ("Dan", ("adjudicate",)),
}


@pytest.fixture
def few(model_dir: Path, tmp_path: Path) -> Iterator[Readers]:
    """A server that asks about twelve cells, each by two readers."""
    with asking(model_dir, tmp_path, FEW, rendered(12), SETTINGS) as running:
        yield running


@pytest.mark.slow
def test_undo_takes_back_what_this_window_has_said(browser: Browser, few: Readers) -> None:
    one = sit_down(browser, few, "ada").page
    name_cells(one, "1")
    eventually(lambda: done(few, "ada") == 1)
    other = sit_down(browser, few, "ada").page
    name_cells(other, "3")
    eventually(lambda: done(few, "ada") == 2)
    one.keyboard.press("u")
    eventually(lambda: done(few, "ada") == 1)
    expect(one.locator("#done")).to_have_text("1 of 12 cells")
    (first, *_), *_, back = few.said("Ada")
    assert back[:2] == (first, ""), "and not what the other window has said"

    # An answer that took the place of another leaves that one when it is taken back.
    one.get_by_role("link", name="My answers").click()
    one.get_by_role("button", name="Name again: Lymphocyte").click()
    name_cells(one, "4")
    eventually(lambda: few.said("Ada")[-1][1] == "Monocyte")
    one.keyboard.press("u")
    eventually(lambda: few.said("Ada")[-1][1] == "")
    expect(one.locator("#answer-heading")).to_have_text("You said: Lymphocyte. What is this cell?")
    expect(one.locator("#done")).to_have_text("1 of 12 cells")
    for page in (one, other):
        page.context.close()


@pytest.mark.slow
def test_disputes_that_others_decide_are_not_counted_on(browser: Browser, few: Readers) -> None:
    for name, answer in (("ada", "Lymphocyte"), ("bert", "Monocyte")):
        with few.api(name) as api:
            answer_all(api, answer)
    page = sit_down(browser, few, "cleo", "#/disputes").page
    in_sight(page)
    expect(page.locator("#disputed")).to_have_text("12")
    with few.api("dan") as api:
        last = api.get(f"{LABELLING}/disputes").json()["disputes"][-1]["dispute"]
        assert api.put(f"{LABELLING}/disputes/{last}", json={"answer": "Basophil"}).status_code == 200
    name_cells(page, "3")
    expect(page.locator("#disputed")).to_have_text("10")
    page.keyboard.press("u")
    expect(page.locator("#disputed")).to_have_text("11")
    close(few.store, QUEUE)
    page.reload()
    expect(page.locator("#disputed")).to_have_text("11")  # they outlive their queue
    page.context.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reader", "where", "key", "answer", "then"),
    [("ada", "", "1", "Basophil", "Nothing to read for you"), ("cleo", "#/disputes", "3", "Lymphocyte", "Nothing is disputed")],
)
def test_cells_that_left_the_queue_are_asked_about_no_more(
    browser: Browser, few: Readers, reader: str, where: str, key: str, answer: str, then: str
) -> None:
    if where:
        for name, said in (("ada", "Lymphocyte"), ("bert", "Monocyte")):
            with few.api(name) as api:
                answer_all(api, said)
    page = sit_down(browser, few, reader, where).page
    in_sight(page)
    withdraw_cells(few.store, WORKSPACE, few.truth)
    page.keyboard.press(key)
    expect(message(page)).to_contain_text(f"{answer} was not kept")
    in_sight(page)
    page.keyboard.press(key)  # the one that was there before the page knew
    expect(page.locator("#nothing-heading")).to_have_text(then)
    if where:
        expect(page.locator("#disputed")).to_be_empty()
    page.context.close()
