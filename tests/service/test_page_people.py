"""Several people at the page, against a real service: the worklist, comments, second opinions, and what each has a right to see.

The keys of two persons and of a system are on the ring.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import axe
import httpx
import pytest
from live import ROOT, Server, clean_environment, free_port, serve_command, started
from page_visits import (
    KEY,
    LARGE,
    PERSON,
    Visit,
    api_of,
    begin,
    draw,
    eventually,
    focused,
    line_of,
    message,
    press,
    report_of,
    visit,
)
from playwright.sync_api import Browser, Page, expect

from serving.reports.store import sqlite_url
from serving.security.keys import add_key

ADA, BO = "Dr. Ada", "Dr. Bo"


class Ward(NamedTuple):
    """A server, and the key of each person."""

    server: Server
    keys: dict[str, str]


@pytest.fixture(scope="module")
def ward(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """A server with the keys of two persons, and with that of a system."""
    folder, port = tmp_path_factory.mktemp("people"), free_port()
    keys = {name: add_key(folder / "ring", name[-3:].strip(), ["classify", "review"], name) for name in (ADA, BO)}
    (folder / "site.yaml").write_text("keep_images: true\n")
    environment = clean_environment(
        WBC_STORE_URL=sqlite_url(folder / "service.db"),
        WBC_API_KEYS=KEY,
        WBC_API_KEYS_FILE=str(folder / "ring"),
        WBC_SITE_FILE=str(folder / "site.yaml"),
    )
    with started(serve_command(linear_model, port), port, folder, environment, ROOT) as server:
        yield Ward(server, keys)


def seen_by(browser: Browser, ward: Ward, who: str, address: str = "", **options: Any) -> Visit:
    """The page as a person sees it, at the worklist or at an address."""
    visited = visit(browser, ward.server, f"#key={ward.keys[who]}", **options)
    expect(visited.page.locator("#owner")).to_have_text(who)
    if address:
        visited.page.goto(address)
        expect(visited.page.locator("#specimen-line")).not_to_be_empty()
    return visited


def post(api: httpx.Client, specimen: str, folder: Path, **fields: str) -> str:
    """A report of a folder's images, posted by a system."""
    files = [("images", ("cell", path.read_bytes())) for path in sorted(folder.iterdir())]
    answer = api.post("/v1/differential", files=files, data={"specimen_id": specimen, **fields})
    return str(answer.json()["report_id"])


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("slides") / "slide", 12, seed=9)


# ---------------------------------------------------------------- the worklist and its addresses


def specimens(page: Page) -> list[str]:
    return page.locator("#reports a").all_inner_texts()


def test_reports_are_found_opened_and_left_by_their_address(browser: Browser, ward: Ward, slide: Path) -> None:
    api = api_of(ward.server)
    first = post(api, "26-FIND-1", slide)
    second = post(api, "26-FIND-2", slide, expected_images="13")
    visited = seen_by(browser, ward, ADA)
    page = visited.page
    page.fill("#search-number", "find-")
    page.click("[data-shelf=all]")
    expect(page.locator("#reports a")).to_have_count(2)
    assert specimens(page) == ["26-FIND-2", "26-FIND-1"]
    page.click("[data-shelf=incomplete]")
    expect(page.locator("#reports a")).to_have_count(1)
    expect(page.locator("#reports")).to_contain_text("12, 12 of 13 images")
    expect(page.locator("[data-shelf=incomplete]")).to_have_attribute("aria-pressed", "true")

    page.keyboard.press("Tab")  # the shelf has kept the focus; what follows are the shelves after it, then the lines
    page.locator("#reports a").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#specimen-line")).to_have_text("Specimen 26-FIND-2")
    assert page.url.endswith(f"#/report/{second}")
    page.reload()
    expect(page.locator("#specimen-line")).to_have_text("Specimen 26-FIND-2")
    page.go_back()
    expect(page.locator("#worklist")).to_be_visible()
    page.goto(f"{ward.server.url}/#/report/{first}")
    expect(page.locator("#specimen-line")).to_have_text("Specimen 26-FIND-1")
    page.go_back()
    expect(page.locator("#worklist")).to_be_visible()
    page.go_forward()
    expect(page.locator("#specimen-line")).to_have_text("Specimen 26-FIND-1")
    page.goto(f"{ward.server.url}/#/report/{'0' * 32}")
    expect(message(page)).to_contain_text("There is no report with this id.")
    expect(page.locator("#worklist")).to_be_visible()
    assert not [one.url for one in visited.requests if "FIND" in one.url], "a number is in no address"
    visited.check("404 (Not Found)")
    page.context.close()


def test_days_and_pages_narrow_the_list(browser: Browser, ward: Ward, tmp_path: Path) -> None:
    api = api_of(ward.server)
    one_cell = draw(tmp_path / "one", 1)
    for number in range(52):
        post(api, f"26-PAGES-{number:02}", one_cell)
    page = seen_by(browser, ward, ADA).page
    page.fill("#search-number", "26-pages")
    expect(page.locator("#reports a")).to_have_count(50)
    expect(page.locator("[data-shelf=to_do] b")).to_have_text("52")
    page.click("#older")
    expect(page.locator("#reports a")).to_have_count(2)
    assert specimens(page) == ["26-PAGES-01", "26-PAGES-00"]
    expect(page.locator("#older")).to_be_disabled()
    page.click("#newer")
    expect(page.locator("#reports a")).to_have_count(50)
    page.fill("#search-to", "2000-01-01")
    expect(page.locator("#none")).to_have_text("No report has this number, or was made on these days.")
    page.click("#search button[type=reset]")
    expect(page.locator("#none")).to_be_hidden()
    page.context.close()


# ---------------------------------------------------------------- what people say


def test_the_key_says_who_signs_and_the_page_asks_for_no_name(browser: Browser, ward: Ward, slide: Path) -> None:
    visited = seen_by(browser, ward, ADA)
    page = visited.page
    expect(page.locator("#person")).to_be_hidden()
    page.fill("#specimen-id", "26-OWNED")
    page.set_input_files("#folder-input", slide)
    expect(message(page)).to_have_text("12 images read.")
    while page.locator("#lane-review .tile").count():
        press(page, "Enter")
    expect(page.locator("#sign")).to_be_enabled()
    page.click("#sign")
    expect(page.locator("#ask-name")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Signed")
    report = report_of(api_of(ward.server), "26-OWNED")
    assert report["signed_by"] == ADA
    assert {one["by"] for one in report["corrections"]} == {ADA}
    expect(page.locator("#history")).to_contain_text(f"{ADA} signed the report")
    expect(page.locator("#history")).to_contain_text(f"{ADA} accepted 2 cells")
    page.click("#sign-out")
    expect(page.locator("#key-dialog")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    visited.check("401 (Unauthorized)")
    page.context.close()


def test_a_second_opinion_is_on_the_list_of_who_was_asked(browser: Browser, ward: Ward, slide: Path) -> None:
    report = post(api_of(ward.server), "26-OPINION", slide)
    mine = seen_by(browser, ward, ADA, f"{ward.server.url}/#/report/{report}").page
    mine.click("#ask-opinion")
    mine.fill("#say-asked", BO)
    names = mine.locator("#colleagues option").evaluate_all("all => all.map((one) => one.value)")
    assert BO in names, "whoever may review is offered, though there is no report of theirs"
    assert ADA not in names
    mine.fill("#say-text", "A blast?")
    mine.keyboard.press("Enter")
    expect(message(mine)).to_have_text(f"{BO} is asked, and finds it in the worklist.")
    expect(mine.locator("#opinions")).to_contain_text(f"{ADA} has asked {BO}: A blast?")

    other = seen_by(browser, ward, BO)
    page = other.page
    expect(page.locator("[data-shelf=asked] b")).to_have_text("1")
    line_of(page, "26-OPINION", "asked").click()
    expect(page.locator("#others")).to_have_text(f"{ADA} is looking at it")
    page.locator("#opinions button", has_text="Answer").click()
    expect(page.locator("#say-question")).to_have_text(f"{ADA} asks: A blast?")
    page.fill("#say-text", "A monocyte")
    page.keyboard.press("Enter")
    expect(page.locator("#opinions")).to_contain_text(f"{BO} answers: A monocyte")
    page.click("#new")
    expect(page.locator("[data-shelf=asked] b")).to_have_text("0")

    mine.evaluate("dispatchEvent(new Event('visibilitychange'))")  # the page looks whether it is behind
    expect(mine.locator("#opinions")).to_contain_text(f"{BO} answers: A monocyte")
    mine.click("#ask-opinion")
    mine.fill("#say-asked", "Dr. Cy")
    mine.keyboard.press("Enter")
    mine.locator("#opinions button", has_text="Take back").click()
    expect(mine.locator("#ask-heading")).to_have_text("Not ask Dr. Cy after all?")
    mine.keyboard.press("Enter")
    expect(mine.locator("#opinions li")).to_have_count(1)
    expect(mine.locator("#history")).to_contain_text("took back the question to Dr. Cy")
    other.check()
    for opened in (mine, page):
        opened.context.close()


def test_a_comment_is_about_the_report_or_about_the_cell(browser: Browser, ward: Ward) -> None:
    visited = begin(browser, ward.server, "26-SAID", draw_once(ward), **LARGE)
    page = visited.page
    page.fill("#comment-text", "Smudges at the edge")
    page.keyboard.press("Enter")
    expect(page.locator("#history .said")).to_contain_text(f"{PERSON} Smudges at the edge")
    number = int(page.locator("#cell-heading").inner_text().split()[1])
    page.check("#comment-cell")
    page.fill("#comment-text", "<b>A band?</b>")
    page.keyboard.press("Enter")
    expect(page.locator("#cell-comments")).to_have_text(f"{PERSON}: <b>A band?</b>")
    marked = page.locator(".tile.commented")
    expect(marked).to_have_count(1)
    assert str(marked.get_attribute("aria-label")).startswith(f"Cell {number}, 1 comment, ")
    press(page, "F6")
    page.locator("#lanes .tile[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#cell-comments")).to_be_empty()
    press(page, "Enter")  # the page knows the version that its comments have made
    expect(message(page)).to_contain_text("accepted")
    report = report_of(api_of(ward.server), "26-SAID")
    said = [(one["index"], one["text"]) for one in report["comments"]]
    assert said == [(None, "Smudges at the edge"), (number - 1, "<b>A band?</b>")]
    visited.check()
    page.context.close()


def draw_once(ward: Ward) -> Path:
    folder = ward.server.log.parent / "said"
    return folder if folder.exists() else draw(folder, 12, seed=9)


# ---------------------------------------------------------------- several cells at once


def chosen(page: Page) -> list[int]:
    return page.locator("#lanes .chosen").evaluate_all("tiles => tiles.map((tile) => Number(tile.id.split('-')[1]) + 1)")


def test_several_cells_are_selected_named_by_one_key_and_taken_back(browser: Browser, ward: Ward, tmp_path: Path) -> None:
    visited = begin(browser, ward.server, "26-SEVERAL", draw(tmp_path / "slide", 40, seed=12), **LARGE)
    page = visited.page
    page.locator("#classes button", has_text="Neutrophil").click()
    tiles = page.locator("#lane-Neutrophil .tile")
    ids = [int(str(tiles.nth(at).get_attribute("id")).split("-")[1]) + 1 for at in range(6)]
    tiles.nth(0).click()
    tiles.nth(3).click(modifiers=["Shift"])
    assert chosen(page) == ids[:4]
    tiles.nth(1).click(modifiers=["ControlOrMeta"])
    assert chosen(page) == [ids[0], *ids[2:4]]
    tiles.nth(5).click(modifiers=["ControlOrMeta"])
    picked = [ids[0], *ids[2:4], ids[5]]
    assert chosen(page) == picked
    expect(message(page)).to_contain_text("4 cells are selected")
    press(page, "3")
    expect(message(page)).to_have_text("4 cells: Lymphocyte.")
    api = api_of(ward.server)
    eventually(lambda: len(report_of(api, "26-SEVERAL")["corrections"]) == 4)
    labels = {cell["index"] + 1: cell["label"] for cell in report_of(api, "26-SEVERAL")["cells"]}
    assert {labels[number] for number in picked} == {"Lymphocyte"}
    assert labels[ids[1]] == "Neutrophil"
    assert chosen(page) == []
    press(page, "u")
    expect(message(page)).to_have_text("4 decisions taken back.")
    eventually(lambda: len(report_of(api, "26-SEVERAL")["corrections"]) == 8)
    assert not any(cell["by_person"] for cell in report_of(api, "26-SEVERAL")["cells"])

    # By keyboard, and by drag: all of them go to the class where one of them is dropped.
    tiles.nth(0).click()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert len(chosen(page)) == 3
    page.keyboard.press("Escape")
    assert chosen(page) == []
    page.keyboard.press("Shift+ArrowLeft")
    here = focused(page)["number"]
    tiles_chosen = chosen(page)
    assert here in tiles_chosen
    page.locator(f"#cell-{here - 1}").drag_to(page.locator("#classes button", has_text="Monocyte"))
    expect(message(page)).to_have_text("2 cells: Monocyte.")
    visited.check()
    page.context.close()


def test_a_rectangle_selects_and_what_was_never_shown_is_left_as_it_is(browser: Browser, ward: Ward, tmp_path: Path) -> None:
    visited = begin(browser, ward.server, "26-RECTANGLE", draw(tmp_path / "slide", 90, seed=13))
    page = visited.page
    first = page.locator("#lane-review .tile").first.bounding_box()
    assert first is not None
    page.mouse.move(first["x"] - 4, first["y"] - 4)
    page.mouse.down()
    page.mouse.move(first["x"] + 2 * first["width"], first["y"] + first["height"] / 2, steps=5)
    page.mouse.up()
    assert len(chosen(page)) >= 2
    page.keyboard.press("Escape")
    page.locator("#classes button", has_text="Neutrophil").click()
    page.keyboard.press("ControlOrMeta+a")
    count = len(chosen(page))
    assert count == page.locator("#lane-Neutrophil .tile").count()
    press(page, "Enter")
    expect(message(page)).to_contain_text("not shown")
    api = api_of(ward.server)
    eventually(lambda: report_of(api, "26-RECTANGLE")["corrections"] != [])
    page.wait_for_timeout(1000)
    decided = {one["index"] for one in report_of(api, "26-RECTANGLE")["corrections"]}
    drawn = page.locator("#lane-Neutrophil .tile").evaluate_all(
        """tiles => tiles.filter((tile) => tile.querySelector("img").naturalWidth > 0)
            .map((tile) => Number(tile.id.split("-")[1]))"""
    )
    assert 0 < len(decided) < count
    assert decided <= set(drawn)
    page.context.close()


def test_a_cell_of_a_further_kind_is_counted_beside_the_differential(browser: Browser, ward: Ward, tmp_path: Path) -> None:
    visited = begin(browser, ward.server, "26-BESIDE", draw(tmp_path / "slide", 12, seed=9), **LARGE)
    page = visited.page
    number = focused(page)["number"]
    press(page, "e")
    expect(message(page)).to_contain_text("→ Erythroblast.")
    expect(page.locator(f"#lane-beside #cell-{number - 1} .caption")).to_have_text("Erythroblast")
    expect(page.locator("#beside tbody tr")).to_have_text("Erythroblasts19.1")  # 1 to 11 leukocytes
    expect(page.locator("#differential-note")).to_contain_text("11 cells")
    page.locator(f"#cell-{number - 1}").click()
    page.locator("#cell-further button", has_text="Band").click()
    expect(page.locator("#beside tbody tr")).to_have_text("Band neutrophils18.3")  # a band is a leukocyte: 1 to 12
    page.locator(f"#cell-{number - 1}").click()
    assert page.locator("#cell-further [aria-pressed=true]").inner_text().endswith("Band neutrophil")
    press(page, "u", "u")
    expect(page.locator("#beside")).to_be_empty()
    expect(page.locator("#lane-beside")).to_be_hidden()

    # Closer by key and by wheel, and back: the picture is the same.
    frame = page.locator("#cell-picture")
    page.locator("#lanes .tile[tabindex='0']").focus()
    press(page, "z")
    assert float(frame.evaluate("(one) => one.style.getPropertyValue('--zoom')")) > 2
    press(page, "z")
    assert float(frame.evaluate("(one) => one.style.getPropertyValue('--zoom')")) == 1
    visited.check()
    page.context.close()


# ---------------------------------------------------------------- languages, and who cannot see or use a mouse


def test_in_german_words_numbers_and_days_are_german(browser: Browser, ward: Ward, slide: Path) -> None:
    post(api_of(ward.server), "26-DEUTSCH", slide, wbc_count="6.8")
    page = seen_by(browser, ward, ADA, locale="de-DE").page
    expect(page.locator("h1")).to_have_text("Differenzialblutbild")
    assert page.locator("html").get_attribute("lang") == "de"
    line_of(page, "26-DEUTSCH").click()
    expect(page.locator("#specimen-line")).to_have_text("Probe 26-DEUTSCH")
    expect(page.locator("#differential-table")).to_contain_text("Lymphozyten")
    expect(page.locator("#differential-table tbody tr").first).to_contain_text(",")
    assert not page.locator("#differential-table tbody").inner_text().count(".")
    expect(page.locator("#history")).to_contain_text("Befund angelegt")
    address = page.url
    page.goto(f"{ward.server.url}/#/report/{'0' * 32}")
    expect(message(page)).to_have_text("Es gibt keinen Befund mit dieser Kennung.")
    page.goto(address)
    expect(page.locator("#specimen-line")).to_have_text("Probe 26-DEUTSCH")
    page.click("#language")
    expect(page.locator("h1")).to_have_text("White cell differential")
    expect(page.locator("#specimen-line")).to_have_text("Specimen 26-DEUTSCH")  # it stays where it was
    page.reload()
    expect(page.locator("h1")).to_have_text("White cell differential")  # and in the language that was chosen
    page.context.close()


@pytest.mark.parametrize(("scheme", "locale"), [("light", "en-GB"), ("dark", "de-DE")])
def test_axe_finds_nothing(browser: Browser, ward: Ward, slide: Path, scheme: str, locale: str) -> None:
    report = post(api_of(ward.server), f"26-AXE-{scheme}", slide, wbc_count="6.8")
    page = seen_by(browser, ward, ADA, color_scheme=scheme, locale=locale).page
    line_of(page, f"26-AXE-{scheme}").wait_for()
    assert axe.complaints(page) == []
    page.goto(f"{ward.server.url}/#/report/{report}")
    expect(page.locator("#lanes .tile:not(.off) .no-picture")).to_have_count(0)
    page.fill("#comment-text", "Said")
    page.keyboard.press("Enter")
    expect(page.locator("#history .said")).to_have_count(1)
    assert axe.complaints(page) == []
    page.keyboard.press("F1")
    expect(page.locator("#help-dialog")).to_be_visible()
    assert axe.complaints(page) == []
    page.context.close()


@pytest.mark.parametrize(("width", "height", "share"), [(1280, 800, 0.95), (2560, 1440, 0.95), (390, 844, 0.9)])
def test_the_cell_that_is_looked_at_fills_its_column(
    browser: Browser, ward: Ward, slide: Path, width: int, height: int, share: float
) -> None:
    report = post(api_of(ward.server), f"26-SIZE-{width}", slide)
    address = f"{ward.server.url}/#/report/{report}"
    page = seen_by(browser, ward, ADA, address, viewport={"width": width, "height": height}).page
    expect(page.locator("#cell .no-picture")).to_have_count(0)
    picture, column = page.locator("#cell-image").bounding_box(), page.locator("#cell").bounding_box()
    assert picture is not None
    assert column is not None
    assert picture["width"] >= share * (column["width"] - 30)
    assert min(picture["width"], picture["height"]) >= (320 if width > 400 else 300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    page.context.close()


CUT_OFF = """() => {
    const names = "#specimen-line, #report-note, #unit span, #differential :is(th, td), :is(#report, #record, header) button";
    return [...document.querySelectorAll(names)].filter((one) => {
        const box = one.getBoundingClientRect();
        const panel = one.closest("#work > section")?.getBoundingClientRect() ?? { right: innerWidth };
        return box.width && (box.right > Math.min(panel.right, innerWidth) || one.scrollWidth > one.clientWidth + 1 && one.id);
    }).map((one) => one.textContent);
}"""


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["en-GB", "de-DE"])
def test_no_flag_number_or_button_is_cut_off(browser: Browser, ward: Ward, tmp_path: Path, locale: str) -> None:
    number = "26-4711/" + 55 * "8" + "1"  # the last sign may be all that tells two specimens apart
    report = post(api_of(ward.server), number, draw(tmp_path / "all", 110), wbc_count="0.6")
    comment = {"text": "//share/" + 200 * "W", "by": ADA}
    assert api_of(ward.server).post(f"/v1/reports/{report}/comments", headers={"If-Match": "*"}, json=comment).is_success
    page = seen_by(browser, ward, ADA, f"{ward.server.url}/#/report/{report}", locale=locale).page
    expect(page.locator("#specimen-line")).to_contain_text(number)
    expect(page.locator("#history .said")).to_have_count(1)
    for unit, flag in enumerate(("hoch ▲", "kritisch ▼") if locale == "de-DE" else ("high ▲", "critical ▼")):
        page.locator("#unit input").nth(unit).evaluate("one => one.click()")
        expect(page.locator("td.flag", has_text=flag)).not_to_have_count(0)
        elsewhere = ("kritisch ▼" if locale == "de-DE" else "critical ▼", "▲")[unit]
        expect(page.locator("#differential-table p")).to_contain_text(elsewhere)  # what the other unit would show
        for width in (1440, 1280, 1181, 1024, 720, 512, 390, 320):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate(CUT_OFF) == [], width
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()


@pytest.mark.slow
def test_a_list_that_is_of_before_says_so_until_the_service_answers(browser: Browser, ward: Ward, slide: Path) -> None:
    post(api_of(ward.server), "26-AWAY", slide)
    page = seen_by(browser, ward, ADA).page
    line_of(page, "26-AWAY").wait_for()
    page.route("**/v1/worklist", lambda route: route.abort())
    page.click("[data-shelf=final]")
    expect(page.locator("#notice-away")).to_have_text("The service cannot be reached. The list is as it was before.")
    expect(page.locator("#reports tr", has_text="26-AWAY")).to_be_visible()
    page.unroute("**/v1/worklist")
    page.click("[data-shelf=all]")
    expect(page.locator("#notice-away")).to_have_count(0)
    page.context.close()
