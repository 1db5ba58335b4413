"""Whatever readers do, in whatever order: what a cell is can be told from the record of answers alone, and never too early."""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readers import cell, site_of
from sqlalchemy import select
from sqlalchemy.orm import Session

from serving.contract.labelling import UNSURE
from serving.contract.site import Site
from serving.labelling import answers, disputes, tasks
from serving.labelling.errors import NoAnswerToUndo, NoSuchDispute, OwnReading
from serving.labelling.overview import overview
from serving.labelling.queue import Notice, agreed, publish
from serving.labelling.settling import settled
from serving.labelling.tasks import LAPSE, Who
from serving.reports.labelling_tables import Answer, Asked, Reader, Task
from serving.reports.store import Store, sqlite_url

READERS, THIRD = ("Ada", "Ben", "Cid"), "Eve"
SAID = st.sampled_from(["Monocyte", "Lymphocyte", "Band", UNSURE])
CELLS = 4
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(READERS), st.integers(1, CELLS)),
        st.tuples(st.just("say"), st.sampled_from(READERS), st.integers(0, 7), SAID),
        st.tuples(st.just("undo"), st.sampled_from([*READERS, THIRD])),
        st.tuples(st.just("decide"), st.integers(0, 2), SAID),
        st.tuples(st.just("wait")),
    ),
    min_size=5,
    max_size=40,
)
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store.open(sqlite_url(Path(tmp_path_factory.mktemp("properties")) / "service.db"))
    yield opened
    opened.close()


class Room:
    """A queue of its own, readers, and a clock that can be moved on.

    Where readers act `at_once`, one may take an answer back between a decision and the next, and may decide then.
    """

    def __init__(self, store: Store, site: Site, patch: pytest.MonkeyPatch, at_once: bool = False) -> None:
        number = next(_NUMBERS)
        self.store, self.site, self.queue, self.at_once = store, site, f"{number:012x}", at_once
        self.known: dict[str, list[str]] = defaultdict(list)  # each reader's tasks
        self.ahead = timedelta(0)
        for module in (tasks, answers, disputes):
            patch.setattr(module, "now", lambda: datetime.now(UTC) + self.ahead)
        cells = [cell(1000 * number + place) for place in range(CELLS)]
        publish(store, self.queue, Notice("room", number, "m"), cells, site)

    def step(self, what: str, *given: Any) -> None:
        getattr(self, what)(*given)

    def ask(self, reader: str, count: int) -> None:
        for one in tasks.next_tasks(self.store, reader, count, self.site):
            if one.name not in self.known[reader]:
                self.known[reader].append(one.name)

    def say(self, reader: str, place: int, said: str) -> None:
        if self.known[reader]:
            name = self.known[reader][place % len(self.known[reader])]
            answers.answer(self.store, Who(reader, "k"), name, said, self.site)

    def undo(self, reader: str) -> None:
        try:
            answers.undo(self.store, Who(reader, "k"))
        except NoAnswerToUndo:
            return

    def decide(self, place: int, said: str) -> None:
        found = disputes.disputes(self.store, THIRD, 3, self.site)
        if not found:
            return
        name = found[place % len(found)].name
        disputes.decide(self.store, Who(THIRD, "k"), name, said, self.site)
        if not self.at_once:
            self._no_reader_decides(name, said)

    def _no_reader_decides(self, name: str, said: str) -> None:
        for reader in self._readers_of(name):
            with pytest.raises((OwnReading, NoSuchDispute)):
                disputes.decide(self.store, Who(reader, "k"), name, said, self.site)

    def _readers_of(self, name: str) -> set[str]:
        with self.store.reading() as session:
            here = (Asked.queue_id == self.queue) & (Asked.place == int(name[13:], 16))
            query = select(Task.reader).join(Asked, Asked.sha256 == Task.sha256).where(here, Task.state == "answered")
            return set(session.scalars(query))

    def wait(self) -> None:
        self.ahead += LAPSE + timedelta(seconds=1)


def replayed(session: Session, queue: str) -> dict[tuple[str, str, int | None], str]:
    """From the record of answers alone: what stands, by cell, reader and task."""
    rows = list(session.scalars(select(Answer).where(Answer.queue_id == queue).order_by(Answer.id)))
    undone = {row.undoes for row in rows}
    stands = [row for row in rows if row.undoes is None and row.id not in undone]
    return {(row.sha256, row.reader, row.number): row.answer for row in stands}


def check(room: Room) -> None:
    with room.store.reading() as session:
        stands = replayed(session, room.queue)
        given = list(session.scalars(select(Task).where(Task.queue_id == room.queue)))
        cells = list(session.scalars(select(Asked).where(Asked.queue_id == room.queue)))
        words = list(
            session.scalars(select(Answer).where(Answer.queue_id == room.queue, Answer.number.is_(None)).order_by(Answer.id))
        )
        done = dict(session.execute(select(Reader.reader, Reader.answered).where(Reader.queue_id == room.queue)).tuples().all())
    first = [(task.reader, task.sha256) for task in given if task.kind in ("first", "second")]
    assert len(first) == len(set(first)), "a reader reads no cell twice"
    assert {(task.sha256, task.reader, task.number): task.answer for task in given if task.state == "answered"} == {
        key: said for key, said in stands.items() if key[2] is not None
    }
    for reader, count in done.items():
        assert count == sum(task.reader == reader and task.state == "answered" for task in given)
    undone = {row.undoes for row in words}
    for one in cells:
        said = [
            stands[one.sha256, task.reader, task.number]
            for task in given
            if task.sha256 == one.sha256 and task.state == "answered" and task.kind in ("first", "second")
        ]
        last = [row.answer for row in words if row.sha256 == one.sha256 and row.undoes is None and row.id not in undone][-1:]
        check_cell(one, said, last, [task for task in given if task.sha256 == one.sha256])


def check_cell(one: Asked, said: list[str], last: list[str], given: list[Task]) -> None:
    """By words of our own, not by those of the rule: enough readers, no other voice, or a third person's."""
    third = last[0] if last else None
    if third == UNSURE:
        assert (one.state, one.answer, one.how) == ("unnamed", None, None)
    elif one.state == "agreed":
        enough = len(said) >= one.readers_least and set(said) == {one.answer} and one.answer != UNSURE
        assert third == one.answer or (third is None and enough)
        assert one.how == ("adjudicated" if third else "one" if len(said) == 1 else "two")
    elif one.state == "disputed":
        assert third is None
        assert len(set(said)) > 1 or (UNSURE in said and len(said) >= 2)
    else:
        assert third is None
        assert len(said) < one.readers_wanted
        assert one.answer is None
    assert one.readers_wanted == max(one.readers_least, 2 if UNSURE in said else 1)
    live = [task for task in given if task.state != "lapsed" and task.kind in ("first", "second")]
    assert one.given == len(live)
    assert one.vacant == (one.state == "open" and len(live) < one.readers_wanted)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, second=st.sampled_from([0.0, 0.5, 1.0]), repeat=st.sampled_from([0.0, 0.3]))
def test_whatever_readers_do_a_cell_is_what_the_record_says(
    light: Store, steps: list[tuple[Any, ...]], second: float, repeat: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        room = Room(light, site_of(second=second, repeat=repeat), patch)
        for step in steps:
            room.step(*step)
        check(room)
        told = {one.sha256: one.answer for one in agreed(light, "room") if one.queue_id == room.queue}
        with light.reading() as session:
            here = select(Asked.sha256, Asked.answer).where(Asked.queue_id == room.queue, Asked.state == "agreed")
            assert told == dict(session.execute(here).tuples().all())
        for reader in READERS:
            left = len(tasks.next_tasks(light, reader, 2 * CELLS, room.site))
            assert overview(light, reader).left == left


@given(st.lists(SAID, max_size=4), st.integers(1, 2), st.sampled_from([None, "Band", UNSURE]))
def test_the_rule_knows_no_order_and_needs_enough(said: list[str], least: int, third: str | None) -> None:
    found = settled(said, least, third)
    for other in itertools.permutations(said):
        assert settled(other, least, third) == found
    if found.state == "agreed" and third is None:
        assert len(said) >= least
        assert set(said) == {found.answer}
    if UNSURE in said:
        assert found.wanted == 2
    assert (found.state == "unnamed") == (third == UNSURE)
    assert (found.answer is not None) == (found.state == "agreed") == (found.how is not None)
