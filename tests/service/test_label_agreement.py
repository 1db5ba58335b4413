"""The view of agreement, in headless Chromium against a real server: before there is enough to say, and after."""

from collections.abc import Iterator
from pathlib import Path

import axe
import pytest
from label_visits import Readers, asking, rendered, sit_down
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select

from serving.contract.site import read_site
from serving.labelling.answers import answer_several
from serving.labelling.confusion import MIN_COMPARED
from serving.labelling.disputes import decide, disputes
from serving.labelling.tasks import Who, next_tasks
from serving.reports.labelling_tables import Task

ADA, BERT, CLEO = "Dr Ada Lindgren", "Bert Moreau", "Cleo Sand"
PERSONS = {"ada": (ADA, ("label",)), "bert": (BERT, ("label",)), "cleo": (CLEO, ("label", "adjudicate"))}
pytestmark = pytest.mark.slow
SETTINGS = {"second_reader_share": 1.0, "repeat_share": 0.0, "known_share": 0.0}
VIEW = "#/agreement"


@pytest.fixture(scope="module")
def readers(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Readers]:
    """A server that asks about a few cells more than a confusion needs."""
    folder = tmp_path_factory.mktemp("agreement")
    with asking(linear_model, folder, PERSONS, rendered(MIN_COMPARED + 10, side=32), SETTINGS) as running:
        yield running


def read(readers: Readers, person: str, count: int, mistaken: str = "") -> list[bool]:
    """Let a person name the next cells rightly, but about half of the class `mistaken` neutrophils; tells which of that class."""
    site, who, wrong = read_site(), Who(person, "key"), list[bool]()
    while count > 0 and (tasks := next_tasks(readers.store, person, min(count, 100), site)):
        names = [task.name for task in tasks]
        with readers.store.reading() as session:
            given = dict(session.execute(select(Task.number, Task.sha256).where(Task.reader == person)).tuples().all())
        truths = {name: (given[int(name.partition(".")[2])], readers.truth[given[int(name.partition(".")[2])]]) for name in names}
        said = {name: "Neutrophil" if true == mistaken and int(sha, 16) % 2 else true for name, (sha, true) in truths.items()}
        answer_several(readers.store, who, said, site)
        wrong += [said[name] != true for name, (_, true) in truths.items() if true == mistaken]
        count -= len(names)
    return wrong


def cells(page: Page, region: str) -> list[list[str]]:
    """The texts of a table, row by row; that of a limit is after its value."""
    rows = page.get_by_role("region", name=region).locator("tbody tr").all()
    return [[text.replace("\n", " ") for text in row.locator("th, td").all_inner_texts()] for row in rows]


def test_it_says_what_is_missing_and_then_who_errs_where(browser: Browser, readers: Readers) -> None:
    visited = sit_down(browser, readers, "ada", VIEW)
    page = visited.page
    expect(page.get_by_text("No cell has been read by two readers yet.")).to_be_visible()
    expect(page.get_by_text("Nobody has answered yet.")).to_be_visible()
    page.context.close()

    read(readers, ADA, 40)
    wrong = read(readers, BERT, 1000, "Monocyte")
    visited = sit_down(browser, readers, "ada", VIEW)
    page = visited.page
    expect(page.get_by_text(f"{MIN_COMPARED - 40} more answers are needed").first).to_be_visible()
    page.context.close()

    read(readers, ADA, 1000)
    while found := disputes(readers.store, CLEO, 100, read_site()):
        for one in found:
            decide(readers.store, Who(CLEO, "key"), one.name, "Monocyte", read_site())
    visited = sit_down(browser, readers, "ada", VIEW)
    page = visited.page
    pair = f"{BERT} and {ADA}"
    expect(page.locator("summary", has_text=pair)).to_be_visible()
    by_kind = {row[0]: row[1:4] for row in cells(page, pair)}
    assert by_kind["All kinds"][0] == str(len(readers.truth) - 20)  # but the reference cells
    assert float(by_kind["Monocyte"][1]) < float(by_kind["All kinds"][1]) < float(by_kind["Lymphocyte"][1]) == 1
    rows = {row[0]: row for row in cells(page, f"What {BERT} takes cells for")}
    heads = page.get_by_role("region", name=f"What {BERT} takes cells for").locator("thead th").all_inner_texts()
    share, _, limits = rows["Monocyte"][heads.index("Neutrophil")].partition("% ")
    assert float(share) == pytest.approx(100 * sum(wrong) / len(wrong), abs=3)
    low, high = (float(end.strip("% ")) for end in limits.split("to"))
    assert low < float(share) < high
    assert float(rows["Lymphocyte"][heads.index("Lymphocyte")].partition("%")[0]) >= 95
    assert page.get_by_text("Right at known cells").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert axe.complaints(page) == []
    visited.check()
    page.context.close()


def test_the_lead_sees_known_cells_and_it_speaks_german_on_a_telephone(browser: Browser, readers: Readers) -> None:
    visited = sit_down(browser, readers, "cleo", VIEW, locale="de-DE", viewport={"width": 390, "height": 844})
    page = visited.page
    expect(page.get_by_text("Richtig bei bekannten Zellen")).to_have_count(1)
    expect(page.get_by_role("heading", name="Wer wie viel zu tun hat")).to_be_attached()
    assert axe.complaints(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visited.check()
    page.context.close()
