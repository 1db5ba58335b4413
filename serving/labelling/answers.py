"""What a reader says of cells, and takes back. Each answer is a row that stays; tasks and cells have what stands."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from serving.contract.labelling import Way
from serving.contract.site import Site
from serving.labelling.disputes import name_of, named, refuse_unknown
from serving.labelling.errors import LeftTheQueue, NoAnswerToUndo, NotAsked
from serving.labelling.settling import judge, settle, settle_elsewhere, stands
from serving.labelling.tasks import (
    CELL_OF_TASK,
    LAPSE,
    Who,
    cells_locked,
    count_unread,
    current_queue,
    known_reader,
    locked_reader,
    now,
    open_queues,
    parsed,
)
from serving.reports.labelling_tables import READ, Answer, Asked, Queue, Reader, Task
from serving.reports.store import Store


class HowFar(NamedTuple):
    """How far the reader is after an answer; `cells` are those that the answers are about."""

    done: int
    left: int
    disputed: int
    cells: tuple[str, ...]


def answer(store: Store, who: Who, name: str, said: str, site: Site, seconds: float | None = None) -> HowFar:
    """Take a reader's answer to a task. A later one to the same task supersedes it; the same once more changes nothing.

    Raises NotAsked, UnknownKind, and LeftTheQueue where the cell is not to be named any more.
    """
    return answer_several(store, who, {name: said}, site, seconds, "single")


def answer_several(
    store: Store, who: Who, said: Mapping[str, str], site: Site, seconds: float | None = None, way: Way = "sweep"
) -> HowFar:
    """Take a reader's answers to several tasks of one queue, by their names: all, or none. `seconds` are those of all together.

    Raises as `answer`.
    """
    queue_ids = {parsed(name)[0] for name in said}
    if len(queue_ids) != 1:
        raise NotAsked
    [queue_id] = queue_ids
    each = None if seconds is None else seconds / len(said)
    with store.writing() as session:
        row = known_reader(session, queue_id, who.reader)
        if row is None:
            raise NotAsked
        asked = _asked(session, row, [parsed(name)[1] for name in said])
        for one in said.values():
            refuse_unknown(one, site)
        for name, one in said.items():
            task, cell, _ = asked[parsed(name)[1]]
            _take(session, row, task, cell, _Said(who, one, each, way))
        for _, cell, closed in asked.values():
            if closed:
                settle_elsewhere(session, cell)
        if way == "sweep":
            _leave_the_grid(session, row)
        return _how_far(session, row, tuple(sorted(one.cell.sha256 for one in asked.values())))


class _Said(NamedTuple):
    who: Who
    answer: str
    seconds: float | None
    way: Way


class _Asked(NamedTuple):
    task: Task
    cell: Asked
    closed: bool


def _asked(session: Session, row: Reader, numbers: Sequence[int]) -> dict[int, _Asked]:
    """By number, the reader's tasks with their cells, and whether their queue was closed meanwhile; raises NotAsked.

    The cells are then for this transaction alone, and in the order of `cells_locked`.
    """
    query = select(Task, Asked, Queue.closed_at.is_not(None)).join(Asked, CELL_OF_TASK).join(Queue, Queue.id == Task.queue_id)
    query = query.where(Task.queue_id == row.queue_id, Task.reader == row.reader, Task.number.in_(numbers))
    locked = query.order_by(Asked.sha256).with_for_update(of=Asked).execution_options(populate_existing=True)
    found = {task.number: _Asked(task, cell, closed) for task, cell, closed in session.execute(locked).tuples()}
    if set(found) != set(numbers):
        raise NotAsked
    return found


def _take(session: Session, row: Reader, task: Task, cell: Asked, said: _Said) -> None:
    if cell.withdrawn is not None:
        raise LeftTheQueue(cell.withdrawn)
    if task.state == "answered" and task.answer == said.answer:
        return
    moment = now()
    new = Answer(queue_id=task.queue_id, sha256=task.sha256, reader=said.who.reader, caller=said.who.caller, answer=said.answer)
    new.seconds, new.at, new.number, new.way = said.seconds, moment, task.number, said.way
    session.add(new)
    session.flush()
    if task.state != "answered":
        row.answered += 1
        row.unread = max(0, row.unread - 1)
    task.state, task.answered_at, task.answer, task.answer_id = "answered", moment, said.answer, new.id
    if task.kind in READ:
        settle(session, cell)


def _leave_the_grid(session: Session, row: Reader) -> None:
    """What the reader has not named of a grid is odd: it comes by itself, and the next grid is another one."""
    here = (Task.queue_id == row.queue_id) & (Task.reader == row.reader) & (Task.state == "open") & Task.sweep.is_(True)
    session.execute(update(Task).where(here).values(sweep=False))


def _how_far(session: Session, row: Reader, cells: tuple[str, ...]) -> HowFar:
    query = select(func.count()).select_from(Asked).where(Asked.queue_id == row.queue_id, Asked.state == "disputed")
    left = count_unread(session, row)
    return HowFar(row.answered, left, session.scalar(query) or 0, cells)


# --- taking back ------------------------------------------------------------------------------------------------------------


class Undone(NamedTuple):
    """The task that waits again, or the dispute where the answer was an adjudication; and the cell."""

    task: str | None
    dispute: str | None
    cell: str


def undo(store: Store, who: Who) -> Undone:
    """Take back the reader's last answer that stands, in the newest queue that has one; both stay in the record.

    In a queue that has closed an answer can be taken back for as long as a task would wait for one.
    Where the answer had superseded an earlier one, that one stands again; the task waits in any case. Raises NoAnswerToUndo.
    """
    with store.writing() as session:
        _lock_where_something_stands(session, who.reader)
        last = _last_standing(session, who.reader)
        if last is None:
            raise NoAnswerToUndo
        return _take_back(session, who, last)


def take_back_answer(store: Store, who: Who, name: str) -> Undone:
    """Take back what the reader said last of a task, whenever that was; both stay in the record.

    Raises NotAsked where it is no task of this reader, and NoAnswerToUndo where none of the answers to it stands.
    """
    queue_id, number = parsed(name)
    with store.writing() as session:
        if known_reader(session, queue_id, who.reader) is None or session.get(Task, (queue_id, who.reader, number)) is None:
            raise NotAsked
        return _take_back_of(session, who, (Answer.queue_id == queue_id) & (Answer.number == number))


def take_back_decision(store: Store, who: Who, name: str) -> Undone:
    """Take back what a third person decided on a dispute, whenever that was; both stay in the record.

    Raises NoSuchDispute, and NoAnswerToUndo where no decision of this person on it stands.
    """
    with store.writing() as session:
        cell = named(session, name)
        locked_reader(session, cell.queue_id, who.reader)
        here = (Answer.queue_id == cell.queue_id) & (Answer.sha256 == cell.sha256) & Answer.number.is_(None)
        return _take_back_of(session, who, here)


def _take_back_of(session: Session, who: Who, which: ColumnElement[bool]) -> Undone:
    query = select(Answer).where(which, Answer.reader == who.reader, stands())
    last = session.scalar(query.order_by(Answer.id.desc()).limit(1))
    if last is None:
        raise NoAnswerToUndo
    return _take_back(session, who, last)


def _take_back(session: Session, who: Who, last: Answer) -> Undone:
    row = locked_reader(session, last.queue_id, who.reader)
    cell = cells_locked(session, last.queue_id, [last.sha256])[last.sha256]
    back = Answer(queue_id=last.queue_id, sha256=last.sha256, reader=who.reader, caller=who.caller, answer="")
    back.at, back.number, back.way, back.undoes = now(), last.number, last.way, last.id
    session.add(back)
    session.flush()
    if last.number is None:
        judge(session, cell)
        if session.get_one(Queue, last.queue_id).closed_at is not None:
            settle_elsewhere(session, cell)
        return Undone(None, name_of(cell), cell.sha256)
    _reopen(session, row, last, cell)
    return Undone(f"{last.queue_id}.{last.number}", None, cell.sha256)


def _lock_where_something_stands(session: Session, reader: str) -> None:
    """Only then it is looked again what that is: another window of this reader may be taking it back."""
    if (last := _last_standing(session, reader)) is not None:
        locked_reader(session, last.queue_id, reader)


def _last_standing(session: Session, reader: str) -> Answer | None:
    queue = current_queue(session, reader)
    others = [one.id for one in open_queues(session) if queue is None or one.id != queue.id]
    for queue_id in ([] if queue is None else [queue.id]) + others:
        query = select(Answer).where(Answer.queue_id == queue_id, Answer.reader == reader, stands())
        if (found := session.scalar(query.order_by(Answer.id.desc()).limit(1))) is not None:
            return found
    just = (Queue.closed_at.is_not(None)) & (Answer.at > now() - LAPSE)
    query = select(Answer).join(Queue, Queue.id == Answer.queue_id).where(Answer.reader == reader, just, stands())
    return session.scalar(query.order_by(Answer.id.desc()).limit(1))


def _reopen(session: Session, row: Reader, last: Answer, cell: Asked) -> None:
    task = session.get_one(Task, (last.queue_id, last.reader, last.number))
    query = select(Answer).where(Answer.queue_id == last.queue_id, Answer.reader == last.reader, Answer.number == last.number)
    earlier = session.scalar(query.where(stands()).order_by(Answer.id.desc()).limit(1))
    if earlier is not None:
        task.answered_at, task.answer, task.answer_id = earlier.at, earlier.answer, earlier.id
    else:
        task.state, task.given_at, task.answered_at, task.answer, task.answer_id = "open", now(), None, None, None
        row.answered -= 1
        row.unread += 1
    if task.kind in READ:
        settle(session, cell)
        if session.get_one(Queue, last.queue_id).closed_at is not None:
            settle_elsewhere(session, cell)
