"""How far readers agree, over HTTP: by hand where a hand can count it, and what only the lead is told."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from readers import asked, cell, sha_of, site_of
from sqlalchemy import select
from test_labelling import Desk
from test_reports import assert_problem

from serving.contract.site import Site
from serving.inference.classify import Classifier
from serving.labelling.agreement import hits
from serving.labelling.confusion import MIN_COMPARED
from serving.labelling.queue import close
from serving.reports.labelling_tables import Task

ADA, BEN, EVE = "Dr. Ada", "Dr. Ben", "Dr. Eve"
KNOWN = 1000  # numbers of known cells begin here


@pytest.fixture(scope="module")
def classifier(model_dir: Path) -> Iterator[Classifier]:
    made = Classifier.open(model_dir)
    yield made
    made.close()


@pytest.fixture
def desks(classifier: Classifier, tmp_path: Path) -> Iterator[Callable[[Site], Desk]]:
    made: list[Desk] = []

    def one(site: Site) -> Desk:
        made.append(Desk(classifier, tmp_path, site))
        return made[-1]

    yield one
    for desk in made:
        desk.close()


def read_all(desk: Desk, who: str, reader: str, say: Callable[[int, str], str], at_once: int = 100) -> None:
    """Answer until nothing is left; `say(number, kind)` has the answer to a cell in a task of a kind."""
    numbers = {sha_of(number): number for number in [*range(400), *range(KNOWN, KNOWN + 100)]}
    while tasks := desk.tasks(who, at_once):
        given = select(Task.number, Task.sha256, Task.kind).where(Task.reader == reader)
        with desk.store.reading() as session:
            cells = {number: (numbers[sha256], kind) for number, sha256, kind in session.execute(given).tuples()}
        answers = [{"task": task, "answer": say(*cells[int(task.partition(".")[2])])} for task in tasks]
        assert desk.call(who, "PUT", "/tasks", {"answers": answers}).status_code == 200


def reader_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in found["readers"] if one["reader"] == name)


def test_nothing_was_asked(desks: Callable[[Site], Desk]) -> None:
    found = desks(site_of()).get("ada", "/agreement")
    nothing: dict[str, Any] = {"workspace": None, "pairs": [], "readers": [], "disputed": 0, "unnamed": 0, "lead": False}
    assert found == {**nothing, "needed_for_confusion": MIN_COMPARED}


def test_kappa_of_two_readers_is_what_it_is_by_hand(desks: Callable[[Site], Desk]) -> None:
    """Of 20 cells both call 8 monocytes and 6 bands; 2 and 4 they differ in. Agreed 0.7, by chance 0.5. Two more are unsure."""
    desk = desks(site_of(second=1.0))
    asked(desk.store, 22, site_of(second=1.0))
    ada = ["Monocyte"] * 10 + ["Band"] * 10 + ["unsure", "Monocyte"]
    ben = ["Monocyte"] * 8 + ["Band"] * 2 + ["Monocyte"] * 4 + ["Band"] * 6 + ["Monocyte", "unsure"]
    read_all(desk, "ada", ADA, lambda number, _: ada[number])
    half = desk.get("ada", "/agreement")
    assert (half["pairs"], [one["reader"] for one in half["readers"]]) == ([], [ADA])
    read_all(desk, "ben", BEN, lambda number, _: ben[number])
    found = desk.get("ben", "/agreement")
    [pair] = found["pairs"]
    assert (pair["readers"], pair["n"]) == ([ADA, BEN], 20)
    assert pair["kappa"] == pytest.approx(0.4)
    assert pair["low"] < 0.1
    assert 0.6 < pair["high"] < 0.8
    assert {one["answer"]: (round(one["kappa"], 6), one["named"]) for one in pair["per_class"]} == {
        "Monocyte": (0.4, 14),
        "Band": (0.4, 12),
    }
    assert (found["disputed"], found["workspace"]) == (8, "ward")
    numbers = [(one["reader"], one["answered"], one["left"], one["compared"], one["confusion"]) for one in found["readers"]]
    assert numbers == [(ADA, 22, 0, 22, None), (BEN, 22, 0, 22, None)]


def test_a_change_of_mind_counts_and_a_decision_does_not(desks: Callable[[Site], Desk]) -> None:
    desk = desks(site_of(second=1.0))
    asked(desk.store, 4, site_of(second=1.0))
    tasks = desk.tasks("ada")
    read_all(desk, "ada", ADA, lambda number, _: ["Monocyte", "Band"][number % 2])
    read_all(desk, "ben", BEN, lambda number, _: ["Monocyte", "Band"][number // 2])
    assert desk.get("ada", "/agreement")["pairs"][0]["kappa"] == pytest.approx(0)
    for dispute in desk.get("eve", "/disputes")["disputes"]:
        assert desk.call("eve", "PUT", f"/disputes/{dispute['dispute']}", {"answer": "Monocyte"}).status_code == 200
    found = desk.get("eve", "/agreement")
    assert (found["pairs"][0]["kappa"], found["disputed"]) == (pytest.approx(0), 0)
    assert {one["reader"] for one in found["readers"]} == {ADA, BEN}
    for task in tasks:
        assert desk.say("ada", task, "Band").status_code == 200
    assert desk.get("eve", "/agreement")["pairs"][0]["n"] == 4
    assert desk.get("eve", "/agreement")["pairs"][0]["kappa"] == pytest.approx(0)
    assert [one["answer"] for one in desk.get("eve", "/agreement")["pairs"][0]["per_class"]] == ["Monocyte", "Band"]


def test_only_the_lead_sees_who_is_wrong_at_known_cells(desks: Callable[[Site], Desk]) -> None:
    site = site_of(known=0.4)
    desk = desks(site)
    known = [cell(KNOWN + number, purpose="known", truth="Basophil") for number in range(10)]
    asked(desk.store, [*map(cell, range(40)), *known], site)
    read_all(desk, "ada", ADA, lambda number, _: "Basophil" if number >= KNOWN + 3 else "Monocyte")
    assert reader_of(desk.get("ada", "/agreement"), ADA)["known"] is None
    found = desk.get("eve", "/agreement")
    assert found["lead"]
    known_of = reader_of(found, ADA)["known"]
    assert known_of["asked"] > 5
    right = hits(known_of["right"], known_of["asked"])
    assert right
    assert known_of["asked"] - known_of["right"] <= 3
    assert (known_of["low"], known_of["high"]) == pytest.approx((right.low, right.high))
    assert found["pairs"] == []


def test_what_a_reader_says_twice(desks: Callable[[Site], Desk]) -> None:
    site = site_of(repeat=0.3)
    desk = desks(site)
    asked(desk.store, 60, site)
    said: list[bool] = []

    def say(number: int, kind: str) -> str:
        if kind == "repeat":
            said.append(number % 4 > 0)
        return "Band" if kind == "repeat" and number % 4 == 0 else "Monocyte"

    read_all(desk, "ada", ADA, say, at_once=5)
    assert len(said) > 5
    again = reader_of(desk.get("ada", "/agreement"), ADA)["self_agreement"]
    assert (again["right"], again["asked"]) == (sum(said), len(said))
    assert again["low"] < again["right"] / again["asked"] <= again["high"]


def test_what_readers_take_cells_for_once_there_are_enough(desks: Callable[[Site], Desk]) -> None:
    """Ben takes one monocyte in five for a lymphocyte; a third person says so. Basophils are too few for a row."""
    site = site_of(second=1.0)
    desk = desks(site)
    asked(desk.store, MIN_COMPARED, site)
    truth = ["Basophil" if number < 5 else "Monocyte" if number % 2 else "Lymphocyte" for number in range(MIN_COMPARED)]

    def by_ben(number: int) -> str:
        return "Lymphocyte" if truth[number] == "Monocyte" and number % 10 == 1 else truth[number]

    read_all(desk, "ada", ADA, lambda number, _: truth[number])
    read_all(desk, "ben", BEN, lambda number, _: by_ben(number))
    while disputes := desk.get("eve", "/disputes")["disputes"]:
        for one in disputes:
            assert desk.call("eve", "PUT", f"/disputes/{one['dispute']}", {"answer": "Monocyte"}).status_code == 200
    found = desk.get("ada", "/agreement")
    ben, ada = reader_of(found, BEN), reader_of(found, ADA)
    assert ben["compared"] == MIN_COMPARED
    assert ben["confusion"]["answers"] == ["Basophil", "Lymphocyte", "Monocyte"]
    assert ben["confusion"]["few"] == ["Basophil"]
    rows = {row["truth"]: row for row in ben["confusion"]["rows"]}
    monocytes = truth.count("Monocyte")
    wrong = sum(by_ben(number) != truth[number] for number in range(MIN_COMPARED)) / monocytes
    assert rows["Monocyte"]["rates"][1] == pytest.approx(wrong, abs=0.03)
    assert rows["Monocyte"]["low"][1] < wrong < rows["Monocyte"]["high"][1]
    assert rows["Monocyte"]["cells"] == pytest.approx(monocytes, abs=1)
    assert {row["truth"]: row["rates"][2] for row in ada["confusion"]["rows"]}["Monocyte"] > 0.95


def test_a_closed_queue_counts_and_leaves_nothing_to_do(desks: Callable[[Site], Desk]) -> None:
    desk = desks(site_of(second=1.0))
    asked(desk.store, 6, site_of(second=1.0))
    read_all(desk, "ada", ADA, lambda number, _: ["Monocyte", "Band"][number % 2])
    assert desk.say("ben", desk.tasks("ben")[0], "Band").status_code == 200
    assert [reader_of(desk.get("ada", "/agreement"), name)["left"] for name in (ADA, BEN)] == [0, 5]
    close(desk.store, "0123456789ab")
    found = desk.get("ada", "/agreement")
    assert [reader_of(found, name)["left"] for name in (ADA, BEN)] == [0, 0]
    assert found["pairs"][0]["n"] == 1


def test_who_may_ask(desks: Callable[[Site], Desk]) -> None:
    desk = desks(site_of())
    assert desk.call("eve", "GET", "/agreement").status_code == 200
    assert_problem(desk.call("ward", "GET", "/agreement"), 403, "forbidden")
