"""How right the model is in use: cells of reports are drawn at random, read blind, and counted once."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from readers import next_of, says
from sqlalchemy import select, update

from flows.monitoring import in_use
from flows.monitoring.in_use import draw, limits, measure
from serving.contract.site import Site, Watching
from serving.labelling.queue import agreed
from serving.reports.labelling_tables import Asked, Queue
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import Cell, InUse, Report
from serving.upkeep.removal import remove
from tests.code.test_export import KEPT, reported
from tests.data.test_from_reports import FILES
from wbc_model.core.classes import CLASSES

ADA = "Dr. Ada"
FLOORS = dict.fromkeys(CLASSES, 0.8)
SAID = [CLASSES[number % 5] for number in range(len(FILES))]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """SQLite: the queries are those of the labelling, which are tested on both."""
    opened = Store.open(sqlite_url(tmp_path / "light.db"))
    yield opened
    opened.close()


def ward(share: float) -> Site:
    quiet = KEPT.labelling.model_copy(update={"second_reader_share": 0.0, "repeat_share": 0.0, "known_share": 0.0})
    return KEPT.model_copy(update={"watching": Watching(share=share), "labelling": quiet})


def drawn(store: Store) -> dict[str, str]:
    """The cells of all queues and what the model said of them."""
    with store.reading() as session:
        return dict(session.execute(select(Asked.sha256, Asked.predicted)).tuples().all())


def read_all(store: Store, site: Site, wrong: tuple[str, ...] = ()) -> int:
    """Have a reader name all cells as the model did, but those that it calls one of `wrong`, which are eosinophils."""
    count = 0
    while (task := next_of(store, ADA, site)) is not None:
        with store.reading() as session:
            predicted = session.scalar(
                select(Asked.predicted).where(Asked.queue_id == task[:12], Asked.sha256 == _cell_of(store, task))
            )
        says(store, ADA, task, "Eosinophil" if predicted in wrong else str(predicted), site)
        count += 1
    return count


def _cell_of(store: Store, task: str) -> str:
    from serving.reports.labelling_tables import Task

    with store.reading() as session:
        return session.get_one(Task, (task[:12], ADA, int(task[13:]))).sha256


def found(store: Store) -> dict[str, tuple[int, int, bool]]:
    with store.reading() as session:
        return {row.label: (row.cells, row.right, row.alarm) for row in session.scalars(select(InUse))}


def test_a_share_is_drawn_and_no_more(store: Store) -> None:
    reported(store, FILES, SAID)
    assert draw(store, ward(0.0)) == 0
    assert drawn(store) == {}
    some = draw(store, ward(0.5))
    assert 8 <= some <= 32, "about half of forty"
    assert draw(store, ward(0.5)) == 0, "they are asked already"
    with store.reading() as session:
        [queue] = session.scalars(select(Queue))
        assert queue.workspace == f"in use: {KEPT.name}: v1"
        assert set(session.scalars(select(Asked.purpose))) == {"test"}, "no picture of them stands beside others"
        said = {cell.sha256: cell.result["label"] for cell in session.scalars(select(Cell))}
    assert all(said[sha256] == predicted for sha256, predicted in drawn(store).items())


def test_what_is_left_is_asked_again_with_what_is_new_and_what_was_read_is_not(store: Store) -> None:
    site = ward(1.0)
    reported(store, FILES[:10], SAID[:10])
    assert draw(store, site) == 10
    first = next_of(store, ADA, site)
    assert first is not None
    says(store, ADA, first, "Monocyte", site)
    reported(store, FILES[10:15], SAID[10:15])
    assert draw(store, site) == 5
    with store.reading() as session:
        states = Counter(bool(closed) for closed in session.scalars(select(Queue.closed_at)))
        open_ = select(Queue.id).where(Queue.closed_at.is_(None)).scalar_subquery()
        assert len(session.scalars(select(Asked.sha256).where(Asked.queue_id == open_)).all()) == 14
    assert states == {True: 1, False: 1}
    assert read_all(store, site) == 14
    assert draw(store, site) == 0
    measure(store, site.name, FLOORS)
    assert found(store)[""][0] == 15, "each counts once"


def test_old_and_withdrawn_reports_are_not_drawn_from(store: Store) -> None:
    site = ward(1.0)
    old, gone, kept = (reported(store, FILES[at : at + 3], SAID[at : at + 3]) for at in (0, 3, 6))
    with store.writing() as session:
        long_ago = datetime.now(UTC) - in_use.WINDOW - timedelta(hours=1)
        session.execute(update(Report).where(Report.id == old).values(created_at=long_ago))
        session.execute(update(Report).where(Report.id == gone).values(withdrawn_at=datetime.now(UTC)))
    assert draw(store, site) == 3
    remove(store, kept, "Dr. Ada", "asked for")
    assert draw(store, site) == 0


def test_a_class_that_is_missed_for_certain_is_an_alarm_once(store: Store) -> None:
    site = ward(1.0)
    for at in range(0, len(FILES), 5):
        reported(store, FILES[at : at + 5], SAID[at : at + 5])
    draw(store, site)
    assert read_all(store, site, wrong=("Neutrophil", "Monocyte")) == 40
    assert measure(store, site.name, FLOORS) == [("v1", ("Eosinophil",))]
    assert measure(store, site.name, FLOORS) == [], "it is told once"
    now = found(store)
    assert now[""] == (40, 24, False)
    assert now["Eosinophil"] == (24, 8, True)
    assert now["Basophil"] == (8, 8, False)
    assert now["Neutrophil"] == (0, 0, False), "nothing is known of a class without a cell"
    assert agreed(store, "ward") == [], "no retraining takes what tests the model"


def test_a_class_that_is_missed_in_one_specimen_only_is_no_alarm(store: Store) -> None:
    """Its cells are alike: a second specimen of the ward may have none of them. Two reports of one number are one specimen."""
    site = ward(1.0)
    for at in (0, 20):
        reported(store, FILES[at : at + 20], SAID[at : at + 20], specimen="S-1")
    draw(store, site)
    assert read_all(store, site, wrong=("Neutrophil", "Monocyte")) == 40
    assert measure(store, site.name, FLOORS) == []
    assert found(store)["Eosinophil"] == (24, 8, False)


@pytest.mark.parametrize(("right", "cells"), [(0, 0), (0, 5), (5, 5), (37, 40), (1, 200)])
def test_limits_are_exact_where_each_specimen_has_one_cell(right: int, cells: int) -> None:
    """At its own limit a share would give as many right, or more (fewer), with the chance that it is missed with."""
    from scipy.stats import binom

    low, high = limits([(int(place < right), 1) for place in range(cells)], 0.005)
    assert low <= (right / cells if cells else 0.5) <= high
    if right:
        assert binom.sf(right - 1, cells, low) == pytest.approx(0.005)
    if right < cells:
        assert binom.cdf(right, cells, high) == pytest.approx(0.005)
    assert (low, high) == (0, 1) or cells


@pytest.mark.parametrize(("alike", "specimens", "size", "share"), [(0.8, 4, 4, 0.8), (0.3, 10, 10, 0.8), (0.2, 60, 6, 0.9)])
def test_limits_hold_where_cells_of_a_specimen_are_alike(alike: float, specimens: int, size: int, share: float) -> None:
    """Each limit may be missed in 5 of 1000 cases. Were the cells taken as independent, the upper one would be in 30 or more."""
    rng, missed = np.random.default_rng(7), np.zeros(3)
    a, b = (one * (1 - alike) / alike for one in (share, 1 - share))
    for _ in range(1000):
        cells = 1 + rng.poisson(size - 1, specimens)
        right = rng.binomial(cells, rng.beta(a, b, specimens))
        low, high = limits(list(zip(right.tolist(), cells.tolist(), strict=True)), 0.005)
        _, as_independent = limits([(int(at < right.sum()), 1) for at in range(cells.sum())], 0.005)
        missed += (low > share, high < share, as_independent < share)
    assert missed[:2].max() <= 10
    assert missed[2] >= 30


def test_of_few_specimens_that_agree_nobody_concludes_as_from_many_cells() -> None:
    """Nothing says how alike their cells are, so they count as little more than one each."""
    assert limits([(0, 10)], 0.005)[1] > 0.99
    assert limits([(0, 10)] * 2, 0.005)[1] > 0.8
    assert limits([(10, 10)] * 3, 0.005)[0] < 0.3
