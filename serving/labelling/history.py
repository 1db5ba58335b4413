"""What a person has said so far, the latest first: it can be said otherwise or be taken back at any time.

Cells that were given to measure the reader are left out: what was said of them decides nothing.
"""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, exists, select
from sqlalchemy.orm import aliased

from serving.labelling.disputes import name_of
from serving.labelling.settling import stands
from serving.reports.labelling_tables import READ, Answer, Asked, AskedImage, ReadingWay, Task
from serving.reports.store import Store


class Said(NamedTuple):
    """A standing answer, or a decision on a dispute: one of `task` and `dispute` names it. `image` says whether its picture is
    kept, `left` whether the cell is not to be named any more."""

    id: int
    task: str | None
    dispute: str | None
    answer: str
    at: datetime
    way: ReadingWay
    image: bool
    left: bool


def said(store: Store, person: str, count: int, before: int | None = None) -> list[Said]:
    """The person's answers and decisions that stand, `count` at most, the latest first; those from before the one with the id
    `before`."""
    pictured = exists().where(AskedImage.queue_id == Asked.queue_id, AskedImage.sha256 == Asked.sha256)
    cell = and_(Asked.queue_id == Answer.queue_id, Asked.sha256 == Answer.sha256)
    query = select(Answer, Asked, pictured).join(Asked, cell).where(Answer.reader == person, _counts() | _decides())
    if before is not None:
        query = query.where(Answer.id < before)
    with store.reading() as session:
        rows = session.execute(query.order_by(Answer.id.desc()).limit(count)).tuples().all()
    return [_said(*row) for row in rows]


def _said(answer: Answer, cell: Asked, image: bool) -> Said:
    task = None if answer.number is None else f"{answer.queue_id}.{answer.number}"
    dispute = name_of(cell) if answer.number is None else None
    what = (answer.id, task, dispute, answer.answer, answer.at, answer.way)
    return Said(*what, image=image, left=cell.withdrawn is not None)


def _counts() -> ColumnElement[bool]:
    """That an answer is the one that stands for its task, and counts for what the cell is."""
    of_task = (Task.queue_id == Answer.queue_id) & (Task.reader == Answer.reader) & (Task.number == Answer.number)
    return exists().where(of_task, Task.answer_id == Answer.id, Task.kind.in_(READ))


def _decides() -> ColumnElement[bool]:
    """That it is the person's last word on a dispute."""
    later, undo = aliased(Answer), aliased(Answer)
    same = (later.queue_id == Answer.queue_id) & (later.sha256 == Answer.sha256) & (later.reader == Answer.reader)
    follows = same & (later.id > Answer.id) & later.number.is_(None) & later.undoes.is_(None)
    superseded = exists().where(follows, ~exists().where(undo.undoes == later.id))
    return and_(Answer.number.is_(None), stands(), ~superseded)
