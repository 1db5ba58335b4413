"""What a cell is, by what its readers said: the one rule, and its place in the store.

One answer is enough where one reader is wanted; two readers must say the same; a third person's word decides. Two different
answers are a dispute, and so is an `unsure` that stands when all wanted readers have answered. An `unsure` asks for a second.
A third person who is `unsure` says that the cell cannot be named (docs/decisions/058).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, exists, select
from sqlalchemy.orm import Session, aliased

from serving.contract.labelling import UNSURE
from serving.reports.labelling_tables import READ, Answer, Asked, CellState, How, Queue, Task


class Settled(NamedTuple):
    """What is known of a cell: its state, its answer where it is agreed and how, and how many readers are wanted."""

    state: CellState
    answer: str | None
    how: How | None
    wanted: int


def settled(answers: Sequence[str], least: int, adjudicated: str | None = None) -> Settled:
    """By the standing answers of different readers, of whom `least` are wanted at least, and by a third person's word."""
    wanted = max(least, 2) if UNSURE in answers else least
    if adjudicated == UNSURE:
        return Settled("unnamed", None, None, wanted)
    if adjudicated is not None:
        return Settled("agreed", adjudicated, "adjudicated", wanted)
    if len(answers) < wanted and len(set(answers)) < 2:
        return Settled("open", None, None, wanted)
    if len(set(answers)) > 1 or UNSURE in answers:
        return Settled("disputed", None, None, wanted)
    return Settled("agreed", answers[0], "one" if len(answers) == 1 else "two", wanted)


def readings(session: Session, cell: Asked) -> list[Task]:
    """The tasks of a cell that count for it, in all queues of its workspace, the earliest first.

    They are those that were answered, and those that wait for an answer in a queue that is open: in a closed one nobody does.
    """
    workspace = select(Queue.workspace).where(Queue.id == cell.queue_id).scalar_subquery()
    waits = (Task.state == "open") & Queue.closed_at.is_(None)
    query = select(Task).join(Queue, Queue.id == Task.queue_id)
    query = query.where(Task.sha256 == cell.sha256, Task.kind.in_(READ), Queue.workspace == workspace)
    query = query.where((Task.state == "answered") | waits)
    return list(session.scalars(query.order_by(Task.answered_at, Task.reader)))


def settle(session: Session, cell: Asked) -> None:
    """Let a cell, which this transaction has locked, be what its readers said; tells, too, whether one more could be given it."""
    session.flush()
    tasks = readings(session, cell)
    said = {task.reader: str(task.answer) for task in tasks if task.state == "answered"}
    now = settled(list(said.values()), cell.readers_least, cell.adjudicated)
    cell.given, cell.readers_wanted = len({task.reader for task in tasks}), now.wanted
    if cell.state != "withdrawn":
        if (now.state, now.answer) != (cell.state, cell.answer):
            cell.agreed_at = datetime.now(UTC) if now.state == "agreed" else None
        cell.state, cell.answer, cell.how = now.state, now.answer, now.how
    asked = cell.purpose in ("asked", "test")
    cell.vacant = asked and cell.state == "open" and cell.given < cell.readers_wanted


def judge(session: Session, cell: Asked) -> None:
    """Let a cell be what the last decision that stands says, in whichever queue of its workspace it was made. Where there is
    none, the readers' answers count."""
    session.flush()
    workspace = select(Queue.workspace).where(Queue.id == cell.queue_id).scalar_subquery()
    query = select(Answer).join(Queue, Queue.id == Answer.queue_id)
    query = query.where(Answer.sha256 == cell.sha256, Answer.way == "adjudicated", Queue.workspace == workspace)
    word = session.scalar(query.where(stands()).order_by(Answer.id.desc()).limit(1))
    cell.adjudicated, cell.adjudicated_by = (word.answer, word.reader) if word is not None else (None, None)
    settle(session, cell)


def stands() -> ColumnElement[bool]:
    """That an answer is no undo and was not undone."""
    later = aliased(Answer)
    return and_(Answer.undoes.is_(None), ~exists().where(later.undoes == Answer.id))


def settle_elsewhere(session: Session, cell: Asked) -> None:
    """Let the same cell be what was said of it in the workspace's open queues, too: this one's queue was closed meanwhile."""
    workspace = select(Queue.workspace).where(Queue.id == cell.queue_id).scalar_subquery()
    query = select(Asked).join(Queue, Queue.id == Asked.queue_id)
    query = query.where(Asked.sha256 == cell.sha256, Queue.workspace == workspace, Queue.closed_at.is_(None))
    for same in session.scalars(query.where(Asked.purpose.in_(("asked", "test"))).with_for_update(of=Asked)):
        judge(session, same)
