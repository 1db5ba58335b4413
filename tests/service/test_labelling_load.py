"""Many readers at once on PostgreSQL: no answer is lost or double, and none waits long."""

import itertools
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random
from typing import NamedTuple

import numpy as np
import pytest
from databases import new_database
from readers import PICTURE, QUEUE, asked, cell, site_of
from sqlalchemy import func, select
from test_labelling_properties import READERS, THIRD, Room
from test_labelling_properties import check as check_record

from serving.contract.labelling import UNSURE
from serving.contract.site import Site
from serving.labelling.answers import answer
from serving.labelling.errors import NoSuchDispute
from serving.labelling.overview import overview
from serving.labelling.queue import agreed, progress
from serving.labelling.tasks import Who, image_of, next_tasks
from serving.reports.labelling_tables import Answer, Asked, Task
from serving.reports.store import Store

SITE = site_of(second=0.2, repeat=0.05, known=0.05)
AHEAD = 4  # tasks that the page keeps ready


class Decision(NamedTuple):
    """What one decision cost, in seconds: the answer, and the next tasks."""

    answering: float
    asking: float


def queue_of(store: Store, cells: int) -> None:
    """A queue with embeddings, and known cells among it."""
    chance = np.random.default_rng(0)
    embeddings = chance.normal(size=(cells, 64)).astype(np.float16)
    known = [cell(10**6 + number, purpose="known", truth="Monocyte") for number in range(cells // 20)]
    asked(store, itertools.chain((cell(n, embedding=embeddings[n].tobytes()) for n in range(cells)), known), SITE)


def read(store: Store, reader: str, site: Site, pause: float, most: int) -> list[Decision]:
    """A reader as the page is one: some tasks ahead, an answer, a pause in which a person looks."""
    chance, spent = Random(reader), []
    time.sleep(chance.random() * pause)
    while len(spent) < most:
        began = time.perf_counter()
        waiting = next_tasks(store, reader, AHEAD, site)
        asking = time.perf_counter() - began
        if not waiting:
            break
        said = chance.choices(["Monocyte", "Lymphocyte", UNSURE], [90, 7, 3])[0]
        began = time.perf_counter()
        answer(store, Who(reader, "key"), waiting[0].name, said, site, 1.0)
        spent.append(Decision(time.perf_counter() - began, asking))
        time.sleep(pause * (0.5 + chance.random()))
    return spent


def all_read(store: Store, readers: int, pause: float, most: int) -> list[Decision]:
    with ThreadPoolExecutor(readers) as pool:
        runs = [pool.submit(read, store, f"reader {number}", SITE, pause, most) for number in range(readers)]
        return [decision for run in runs for decision in run.result()]


def check(store: Store, decisions: int) -> None:
    """Every answer is there once, nobody read a cell twice, no cell has more readers than it wanted."""
    with store.reading() as session:
        rows = list(session.execute(select(Answer.reader, Answer.number, Answer.sha256)).tuples())
        tasks = list(session.scalars(select(Task)))
        cells = {one.sha256: one for one in session.scalars(select(Asked))}
    assert len(rows) == len({(reader, number) for reader, number, _ in rows}) == decisions
    assert sum(task.state == "answered" for task in tasks) == decisions
    first = [task for task in tasks if task.kind in ("first", "second")]
    assert len({(task.reader, task.sha256) for task in first}) == len(first)
    given = Counter(task.sha256 for task in first)
    assert all(count <= cells[name].readers_wanted for name, count in given.items())
    assert all(cells[name].given == count for name, count in given.items())
    numbers = Counter(task.reader for task in tasks)
    assert all(sorted(t.number for t in tasks if t.reader == reader) == [*range(1, n + 1)] for reader, n in numbers.items())


def test_readers_at_once_lose_nothing_and_read_nothing_twice(postgres: str) -> None:
    """A small one: six readers without a pause, until nothing is left."""
    store = Store.open(new_database(postgres))
    queue_of(store, 120)
    decisions = all_read(store, 6, 0.0, 10**6)
    check(store, len(decisions))
    far = progress(store, "ward")
    assert far.open == 0
    assert far.agreed + far.disputed == 120
    assert len(agreed(store, "ward")) == far.agreed
    assert sum(far.readers.values()) == len(decisions)
    for number in range(6):
        seen = overview(store, f"reader {number}")
        assert (seen.left, seen.done) == (0, far.readers[f"reader {number}"])
    store.close()


def test_one_reader_at_two_windows_is_given_nothing_twice(postgres: str) -> None:
    store = Store.open(new_database(postgres))
    asked(store, 40)
    together = threading.Barrier(4)

    def window(_: int) -> set[str]:
        together.wait()
        return {one.name for one in next_tasks(store, "Ada", 5, site_of())}

    with ThreadPoolExecutor(4) as pool:
        found = set().union(*pool.map(window, range(4)))
    assert found == {f"{QUEUE}.{number}" for number in range(1, 6)}
    assert image_of(store, "Ada", min(found)) == PICTURE
    store.close()


def test_readers_who_change_their_minds_at_once_leave_a_record_that_is_whole(postgres: str) -> None:
    """Answers, undoing and decisions of five people at random, on the same few cells; then the record is replayed."""
    store = Store.open(new_database(postgres))
    with pytest.MonkeyPatch.context() as patch:
        room = Room(store, site_of(second=0.5), patch)

        def acts(who: str) -> None:
            chance = Random(who)
            for _ in range(25):
                said = chance.choice(["Monocyte", "Band", UNSURE])
                if who == THIRD:
                    with suppress(NoSuchDispute):  # somebody took an answer back meanwhile
                        room.decide(chance.randrange(3), said)
                    room.undo(who) if chance.random() < 0.3 else None
                    continue
                what = chance.choice(["ask", "say", "say", "say", "undo"])
                room.step(what, who, *{"ask": [chance.randrange(1, 4)], "say": [chance.randrange(8), said], "undo": []}[what])

        with ThreadPoolExecutor(5) as pool:
            for run in [pool.submit(acts, who) for who in (*READERS, "Dan", THIRD)]:
                run.result()
        check_record(room)
    store.close()


@pytest.mark.slow
def test_twenty_readers_in_a_queue_of_ten_thousand_do_not_wait(postgres: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A decision every 2 seconds each, for a minute: 20 readers, 30 decisions each."""
    store = Store.open(new_database(postgres))
    queue_of(store, 10_000)
    with store.reading() as session:
        assert session.scalar(select(func.count()).select_from(Asked)) == 10_500
    decisions = all_read(store, 20, 2.0, 30)
    check(store, len(decisions))
    assert len(decisions) == 600
    answering = np.array([one.answering for one in decisions])
    asking = np.array([one.asking for one in decisions])
    figures = {
        name: [round(1000 * float(np.percentile(values, at)), 1) for at in (50, 99, 100)]
        for name, values in (("answer", answering), ("next tasks", asking), ("both", answering + asking))
    }
    with capsys.disabled():
        print(f"\nms at the median, p99 and most: {figures}")
    assert np.percentile(answering, 99) < 0.1
    assert np.percentile(asking, 99) < 0.1
    store.close()
