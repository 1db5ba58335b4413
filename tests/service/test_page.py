"""The page: what is served, and the way of a morphologist through it in headless Chromium against a real server.

With WBC_SCREENSHOTS=DIR the last test writes its screenshots there, of drawn cells.
"""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import httpx
import pytest
from conftest import CELLS
from live import Server
from page_visits import (
    KEY,
    LARGE,
    PERSON,
    api_of,
    begin,
    download,
    draw,
    drop_folder,
    eventually,
    focused,
    give_key,
    in_order,
    message,
    position,
    press,
    reopened,
    report_of,
    table,
    visit,
)
from PIL import Image
from playwright.sync_api import Browser, expect
from test_keys_and_start import in_process

from serving.contract.differential import Flag
from serving.contract.schemas import Delivery, ImageProblem, Reason, Status
from serving.http.layer import COMPRESSED_FROM
from serving.http.limits import Limits
from serving.page.static import ADDRESSES, CONTENT_SECURITY_POLICY, FILES, FOLDER, MEDIA_TYPES
from wbc_model.core.classes import CLASSES

SPECIMEN = "24-118-0417"
PAGES = [name for name in FILES if name.endswith(".html")]
WORDS = [name for name in FILES if name.startswith("words/")]  # language.js asks for the one of its language
IMPORT = re.compile(r'^import .* from "\./(.+)";$', re.MULTILINE)


def path_of(name: str) -> str:
    return ADDRESSES.get(name, f"/page/{name}")


def source(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


# ---------------------------------------------------------------- what is served


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_with_its_type_and_policy(client: httpx.Client, name: str) -> None:
    answer = client.get(path_of(name))
    assert answer.status_code == 200
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"] == MEDIA_TYPES[Path(name).suffix]
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers.get_list("cache-control") == ["no-cache"]
    again = client.get(path_of(name), headers={"If-None-Match": f'W/"other", {answer.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]
    assert client.get(path_of(name), headers={"If-None-Match": '"other"'}).status_code == 200
    plain = client.head(path_of(name), headers={"Accept-Encoding": "identity"})
    assert (plain.headers["content-length"], plain.headers.get("content-encoding")) == (str(len(answer.content)), None)
    assert plain.headers["etag"] == answer.headers["etag"], "it is weak: the same file, however it travels"
    assert answer.headers["etag"].startswith('W/"')
    large = len(answer.content) >= COMPRESSED_FROM
    assert answer.headers.get("content-encoding") == ("gzip" if large else None)
    assert plain.headers.get("vary") == answer.headers.get("vary") == ("Accept-Encoding" if large else None)
    assert again.headers["vary"] == "Accept-Encoding"
    assert client.post(path_of(name)).status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/page",
        "/page/",
        "/page/index.html",
        "/page/label.html",
        "/page/../page.py",
        "/page/%2e%2e/page.py",
        "/page/..%2fpage.py",
        "/page.py",
    ],
)
def test_nothing_else_of_the_disk_can_be_reached(client: httpx.Client, path: str) -> None:
    request = httpx.Request("GET", f"{client.base_url}".rstrip("/") + path)
    request.url = request.url.copy_with(raw_path=path.encode())  # as it is, not made simple by the client
    answer = client.send(request)
    assert answer.status_code == 404
    assert b"StaticFile" not in answer.content


def test_the_policy_lets_nothing_inline_and_nothing_from_elsewhere() -> None:
    rules = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert {rules[kind] for kind in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY


def test_the_page_needs_no_key_and_what_it_asks_for_does(model_dir: Path) -> None:
    for client in in_process(model_dir, [KEY]):
        assert client.get("/").status_code == 200
        assert client.get("/page/page.js").status_code == 200
        assert client.get("/v1/model").status_code == 401


class Tags(HTMLParser):
    """Every tag of a document with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_list_is_what_is_there_and_what_refers_to_each_other() -> None:
    there = {
        path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert there == set(FILES)
    asked = {*PAGES, *WORDS}
    for page in PAGES:
        for _, attributes in Tags(source(page)).found:
            addresses = [str(attributes[name]) for name in ("src", "href") if attributes.get(name)]
            asked |= {address.removeprefix("page/") for address in addresses if address.startswith("page/")}
    for name in FILES:
        asked |= set(IMPORT.findall(source(name)))
    assert asked == set(FILES)


def test_no_file_holds_an_address_inline_code_or_a_way_to_make_code_of_text() -> None:
    for name in FILES:
        text = source(name).replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|wss?://|\burl\(|@import", text), name
        made_of_text = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function"
        kept = "cookie" if name == "language.js" else "localStorage|cookie"  # the language stays on the computer, and no more
        assert not re.search(f"{made_of_text}|{kept}", text), name
    for page in PAGES:
        for tag, attributes in Tags(source(page)).found:
            assert tag != "style"
            assert tag != "script" or (set(attributes), attributes["type"]) == ({"type", "src"}, "module")
            assert not [name for name in attributes if name == "style" or name.startswith("on")]


def test_every_constant_of_the_service_has_words() -> None:
    words = json.loads(source("words/en.json"))["report"]
    rejected = get_args(ImageProblem.model_fields["reason"].annotation)
    for group, names in {
        "why": get_args(Reason),
        "rejected": rejected,
        "flag": get_args(Flag),
        "status": get_args(Status),
        "delivery": get_args(Delivery),
    }.items():
        assert set(names) <= words[group].keys(), group


def test_a_file_that_would_spoil_its_batch_is_left_out() -> None:
    limit = re.search(r"MAX_FILE_BYTES = ([0-9 *]+);", source("files.js"))
    assert limit is not None
    assert eval(limit[1]) == Limits().image_bytes  # noqa: S307 - digits and stars only


# ---------------------------------------------------------------- in a browser


def test_from_a_dropped_folder_to_a_signed_report(browser: Browser, keeping: Server, cells: Path) -> None:
    visited = visit(browser, keeping)
    page = visited.page
    api = api_of(keeping)
    page.fill("#key-input", "a wrong key")
    page.keyboard.press("Enter")
    expect(page.locator("#key-refused")).to_be_visible()
    give_key(page)

    page.fill("#specimen-id", SPECIMEN)
    page.fill("#wbc-count", "6,8")
    drop_folder(page, cells)
    expect(message(page)).to_have_text(f"{CELLS + 1} images read. 1 other file was left out.", timeout=30_000)
    report = report_of(api, SPECIMEN)
    path = f"/v1/reports/{report['id']}"
    assert (report["specimen_id"], report["differential"]["wbc_count"], report["differential"]["cells"]) == (SPECIMEN, 6.8, CELLS)
    assert table(page) == in_order(report)
    assert page.locator(".tile").count() == CELLS + 1
    assert page.locator("#lane-unusable .tile").get_attribute("aria-label") == "Cell 1, not usable: cannot be read as an image"

    # Review comes first, by class and from the least certain cell on; the reasons are words.
    to_review = [cell for cell in report["cells"] if cell["result"]["status"] == "ok" and cell["result"]["review"]["required"]]
    to_review.sort(key=lambda cell: (cell["label"], cell["result"]["probabilities"][cell["label"]]))
    tiles = page.locator("#lane-review .tile").evaluate_all("tiles => tiles.map(tile => Number(tile.id.split('-')[1]))")
    assert tiles == [cell["index"] for cell in to_review]
    here = focused(page)
    assert here["number"] == tiles[0] + 1
    others = [name for name in to_review[0]["result"]["prediction_set"] if name != to_review[0]["label"]]
    expect(page.locator("#cell-why")).to_have_text(f"Could also be {' or '.join(others)}.".replace(" or ", ", ", len(others) - 2))

    # The first correction asks for a name; nothing is sent before.
    wrong = to_review[0]["label"]
    right = next(name for name in CLASSES if name != wrong)
    page.keyboard.press(str(CLASSES.index(right) + 1))
    expect(page.locator("#ask-dialog")).to_be_visible()
    assert api.get(path).json()["version"] == report["version"]
    page.keyboard.type(PERSON)
    page.keyboard.press("Enter")
    expect(message(page)).to_have_text(f"Cell {here['number']}: {wrong} → {right}.")
    expect(page.locator(f"#lane-{right} #cell-{tiles[0]} .caption")).to_contain_text("was")
    assert focused(page)["number"] == tiles[1] + 1

    # Accept, do not count; undo puts the cell back to where it was.
    press(page, "Enter")
    assert focused(page)["number"] == tiles[2] + 1
    press(page, "0")
    assert focused(page)["number"] == tiles[3] + 1
    press(page, "u")
    here = focused(page)
    assert (here["number"], here["lane"]) == (tiles[2] + 1, "review")
    expect(page.locator("#report-note")).to_contain_text(f"{len(to_review) - 2} cells to review.")
    expect(page.locator("#sign")).to_have_text(f"Sign: {len(to_review) - 2} left to review")
    expect(page.locator("#sign")).to_be_disabled()
    eventually(lambda: api.get(path).json()["version"] == report["version"] + 4)
    report = api.get(path).json()
    assert [(one["index"], one["from_label"], one["to_label"], one["by"], one["undo"]) for one in report["corrections"]] == [
        (tiles[0], wrong, right, PERSON, False),
        (tiles[1], to_review[1]["label"], to_review[1]["label"], PERSON, False),
        (tiles[2], to_review[2]["label"], None, PERSON, False),
        (tiles[2], None, to_review[2]["label"], PERSON, True),
    ]
    assert [report["cells"][index]["by_person"] for index in tiles[:3]] == [True, True, False]
    eventually(lambda: table(page) == in_order(report))

    # The heat map is the service's, and goes with the cell.
    page.keyboard.press("h")
    expect(page.locator("#cell-heat")).to_be_visible(timeout=30_000)
    assert page.locator("#cell-heat").evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") > 32
    press(page, "h")
    expect(page.locator("#cell-heat")).to_be_hidden()

    # By drag, to a lane's chip and to a lane.
    page.locator("#classes button", has_text="Neutrophil").click()
    dragged = page.locator("#lane-Neutrophil .tile").nth(1)
    identity = str(dragged.get_attribute("id"))
    dragged.drag_to(page.locator("#classes button", has_text="Monocyte"))
    expect(page.locator(f"#lane-Monocyte #{identity}")).to_be_attached()
    page.locator("#classes button", has_text="Monocyte").click()
    page.locator(f"#{identity}").drag_to(page.locator("#lane-Monocyte h3"))  # where it is already: nothing to send
    sent = len([one for one in visited.requests if one.method == "PUT"])
    page.locator("#classes button", has_text="Eosinophil").click()
    page.locator("#lane-Eosinophil .tile").first.drag_to(page.locator("#lane-Lymphocyte h3"))
    expect(message(page)).to_contain_text("Eosinophil → Lymphocyte.")
    assert len([one for one in visited.requests if one.method == "PUT"]) == sent + 1

    # Absolute counts, by keyboard alone.
    page.locator("input[name=unit]").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#differential-table thead")).to_contain_text("10⁹/L")
    eventually(lambda: api.get(path).json()["version"] == report["version"] + 2)
    neutrophils = api.get(path).json()["differential"]["classes"]["Neutrophil"]["absolute"]["value"]
    assert table(page)["Neutrophil"][1] == pytest.approx(neutrophils, abs=0.005)

    # Review the rest, sign, then what can be downloaded.
    press(page, "r")
    while page.locator("#lane-review .tile").count():
        press(page, "Enter")
    expect(page.locator("#sign")).to_have_text("Sign")
    expect(page.locator("#sign")).to_be_enabled()
    page.locator("#sign").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#ask-text")).to_have_text(f"{CELLS} cells.")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Signed")
    expect(page.locator("#report-note")).to_contain_text(f"Signed by {PERSON}")
    signed = api.get(path).json()
    assert (signed["status"], signed["signed_by"]) == ("final", PERSON)
    bundle = json.loads(download(page, "#fhir").read_text())
    assert bundle["resourceType"] == "Bundle"
    assert "final" in {entry["resource"].get("status") for entry in bundle["entry"]}
    assert download(page, "#pdf").read_bytes().startswith(b"%PDF-")

    # A signed report is corrected only as an amendment.
    page.locator("#lanes .tile[tabindex='0']").focus()
    press(page, "0")
    expect(page.locator("#ask-heading")).to_have_text("This report is signed")
    page.keyboard.press("Escape")
    assert api.get(path).json()["version"] == signed["version"]
    page.keyboard.press("0")
    expect(page.locator("#ask-dialog")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Not signed")
    expect(page.locator("#report-note")).to_contain_text("Changed since it was signed.")
    page.click("#sign")
    expect(page.locator("#ask-dialog")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Signed, amended")
    visited.check("401 (Unauthorized)")
    page.context.close()


def test_a_report_is_taken_up_again_after_a_reload(browser: Browser, forgetting: Server, tmp_path: Path) -> None:
    visited = begin(browser, forgetting, "taken-up-again", draw(tmp_path / "slide", 12, seed=9), **LARGE)
    page = visited.page
    expect(page.locator("#differential-note")).to_have_text("12 cells: too few. A differential needs 100.")
    expect(page.locator("#report-note")).to_have_text("2 cells to review.")
    first = focused(page)["number"]
    press(page, "1")
    expect(page.locator("#lane-Basophil")).to_contain_text("was")
    expect(page.locator("#report-note")).to_have_text("1 cell to review.")
    reopened(page, "taken-up-again")  # the key and the name stay while the tab is open
    expect(page.locator(f"#lane-Basophil #cell-{first - 1}")).to_be_attached()
    expect(page.locator(".no-picture .stand-in", has_text="no image")).to_have_count(13)  # every tile and the large one
    drop_folder(page, tmp_path / "slide")
    expect(message(page)).to_have_text("12 of 12 images belong to this specimen.")
    expect(page.locator(".no-picture")).to_have_count(0)

    # Somebody else corrects meanwhile: the page says so and shows what is there now.
    api = api_of(forgetting)
    path = f"/v1/reports/{report_of(api, 'taken-up-again')['id']}"
    other = {"label": "Monocyte", "by": "Dr. B"}
    assert api.put(f"{path}/cells/{first - 1}", json=other, headers={"If-Match": "*"}).status_code == 200
    press(page, "End", "5")
    expect(message(page)).to_contain_text("changed meanwhile")
    expect(page.locator(f"#lane-Monocyte #cell-{first - 1}")).to_be_attached()
    press(page, "End", "5")
    expect(message(page)).to_contain_text("Neutrophil.")
    press(page, "r")
    while page.locator("#lane-review .tile").count():
        press(page, "Enter")

    # Nobody signs what he has not seen.
    expect(page.locator("#sign")).to_be_enabled()
    index = next(one["index"] for one in api.get(path).json()["cells"] if one["label"] == "Neutrophil")
    assert api.put(f"{path}/cells/{index}", json=other, headers={"If-Match": "*"}).status_code == 200
    page.click("#sign")
    expect(page.locator("#ask-dialog")).to_be_visible()
    page.keyboard.press("Enter")
    expect(message(page)).to_contain_text("changed meanwhile")
    expect(page.locator(f"#lane-Monocyte #cell-{index}")).to_be_attached()
    expect(page.locator("#status")).to_have_text("Not signed")
    page.click("#sign")
    expect(page.locator("#ask-dialog")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Signed")
    visited.check("412 (Precondition Failed)")
    page.context.close()


def test_every_cell_is_reached_by_the_arrows(browser: Browser, keeping: Server, cells: Path) -> None:
    page = begin(browser, keeping, "walked", cells).page
    page.keyboard.press("End")
    last = focused(page)["number"]
    page.keyboard.press("Home")
    first = focused(page)["number"]
    walked = [first]
    for _ in range(CELLS):
        page.keyboard.press("ArrowRight")
        walked.append(focused(page)["number"])
    assert sorted(walked) == list(range(1, CELLS + 2))
    assert walked[-1] == last
    page.keyboard.press("ArrowRight")
    assert focused(page)["number"] == last
    page.keyboard.press("Home")
    rows = [position(page)]
    while len(rows) < 2 or rows[-1] != rows[-2]:
        page.keyboard.press("ArrowDown")
        rows.append(position(page))
    downward = [y for _, y in rows[:-1]]
    assert downward == sorted(set(downward)), "each step goes down"
    page.keyboard.press("ArrowUp")
    assert position(page)[1] < downward[-1]
    assert page.evaluate("document.getElementById('keys-hint').textContent").count("accept") == 1
    page.keyboard.press("F1")
    expect(page.locator("#help-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help-dialog")).to_be_hidden()
    page.context.close()


@pytest.mark.skipif("WBC_SCREENSHOTS" not in os.environ, reason="WBC_SCREENSHOTS names no folder")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (768, 1024)])
def test_screenshots(browser: Browser, keeping: Server, tmp_path: Path, scheme: str, size: tuple[int, int]) -> None:
    folder = Path(os.environ["WBC_SCREENSHOTS"])
    draw(tmp_path / "slide", 160)
    page = visit(browser, keeping, f"#key={KEY}", color_scheme=scheme, viewport={"width": size[0], "height": size[1]}).page
    expect(page.locator("#model-line")).to_have_text("Model ridge-1")
    page.screenshot(path=folder / f"start-{scheme}-{size[0]}.png")
    page.fill("#specimen-id", f"24-118-{size[0] + (scheme == 'dark')}")
    page.fill("#wbc-count", "6.8")
    page.fill("#person", PERSON)
    page.set_input_files("#folder-input", tmp_path / "slide")
    expect(message(page)).to_have_text("160 images read.", timeout=60_000)
    press(page, "3", "5", "3", "Enter", "h")
    expect(page.locator("#cell-heat")).to_be_visible(timeout=30_000)
    page.keyboard.press("h")
    expect(page.locator("#report-note")).to_have_text("24 cells to review.")
    page.screenshot(path=folder / f"review-{scheme}-{size[0]}.png")
    with Image.open(folder / f"review-{scheme}-{size[0]}.png") as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
    few.save(folder / f"review-{scheme}-{size[0]}.png", optimize=True)  # a quarter of the size
    page.context.close()
