"""Cells that readers disagree about, or that both are unsure of: a third person decides, and sees the answers without names.

A third person who is unsure, too, says that nobody can name the cell. It then waits for nobody, and can be named all the same.
"""

from typing import NamedTuple

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from serving.contract.labelling import answers_of
from serving.contract.site import Site
from serving.labelling.errors import LeftTheQueue, NoSuchDispute, OwnReading, UnknownKind
from serving.labelling.queue import COUNTED, PLACE_DIGITS
from serving.labelling.settling import judge, readings, settle_elsewhere
from serving.labelling.tasks import Who, cells_locked, file_of, now
from serving.reports.labelling_tables import READ, Answer, Asked, AskedImage, Queue, Task
from serving.reports.store import Store


class Dispute(NamedTuple):
    """A cell to decide on: what its readers said, in the order of the site's answers, and what the model says."""

    name: str
    answers: tuple[str, ...]
    width: int
    height: int
    predicted: str
    probability: float | None
    left: int


def name_of(cell: Asked) -> str:
    """By what a dispute is asked for; it says nothing of the cell."""
    return f"{cell.queue_id}.{cell.place:0{PLACE_DIGITS}x}"


def disputes(store: Store, person: str, count: int, site: Site, unnamed: bool = False) -> list[Dispute]:
    """The next disputes that this person may decide; not those of cells that the person has read. With `unnamed` they are the
    cells that nobody could name so far.

    A queue that has closed leaves its disputes behind: what two readers said is not lost because the model went on. A cell that
    a later queue of the workspace asks about is decided there.
    """
    order = {answer: place for place, answer in enumerate(answers_of(site))}
    with store.reading() as session:
        undecided, left, found = _for(person, unnamed), _left(session, person, unnamed), []
        for cell in session.scalars(select(Asked).where(undecided).order_by(Asked.place).limit(count)):
            said = [str(task.answer) for task in readings(session, cell) if task.state == "answered"]
            said.sort(key=lambda answer: (order.get(answer, len(order)), answer))
            shown = (tuple(said), cell.width, cell.height, cell.predicted, cell.probability)
            found.append(Dispute(name_of(cell), *shown, left))
    return found


def _left(session: Session, person: str, unnamed: bool = False) -> int:
    return session.scalar(select(func.count()).select_from(Asked).where(_for(person, unnamed))) or 0


def _for(person: str, unnamed: bool) -> ColumnElement[bool]:
    later, again = aliased(Queue), aliased(Asked)
    follows = and_(later.id == again.queue_id, later.workspace == Queue.workspace, later.published_at > Queue.published_at)
    asked_again = exists().where(again.sha256 == Asked.sha256, follows).correlate(Asked, Queue)
    here = exists().where(Queue.id == Asked.queue_id, ~asked_again).correlate(Asked)
    read = exists().where(Task.sha256 == Asked.sha256, Task.reader == person, Task.kind.in_(READ), Task.state == "answered")
    seen = exists().where(AskedImage.queue_id == Asked.queue_id, AskedImage.sha256 == Asked.sha256)
    queues = select(Queue.id).where(Queue.published_at.is_not(None))  # by whose names the cells have an index
    return and_(Asked.queue_id.in_(queues), Asked.state == ("unnamed" if unnamed else "disputed"), here, ~read, seen)


def dispute_image(store: Store, name: str) -> bytes:
    """The file of a dispute's cell; raises NoSuchDispute."""
    with store.reading() as session:
        cell = named(session, name)
        return file_of(session, cell.queue_id, cell.sha256)


class Decided(NamedTuple):
    """The cell that was decided on, and how many disputes are left for the person."""

    cell: str
    left: int


def decide(store: Store, who: Who, name: str, said: str, site: Site, seconds: float | None = None) -> Decided:
    """Let a third person decide. A later decision supersedes. `unsure` says that nobody can name the cell.

    Raises UnknownKind, NoSuchDispute where there is nothing to decide, OwnReading, and LeftTheQueue.
    """
    with store.writing() as session:
        found = named(session, name)
        refuse_unknown(said, site)
        cell = cells_locked(session, found.queue_id, [found.sha256])[found.sha256]
        if cell.withdrawn is not None:
            raise LeftTheQueue(cell.withdrawn)
        if cell.state != "disputed" and cell.adjudicated is None:
            raise NoSuchDispute
        if any(task.reader == who.reader and task.state == "answered" for task in readings(session, cell)):
            raise OwnReading
        new = Answer(queue_id=cell.queue_id, sha256=cell.sha256, reader=who.reader, caller=who.caller, answer=said)
        new.seconds, new.at, new.way = seconds, now(), "adjudicated"
        session.add(new)
        judge(session, cell)
        if session.get_one(Queue, cell.queue_id).closed_at is not None:
            settle_elsewhere(session, cell)
        return Decided(cell.sha256, _left(session, who.reader))


def refuse_unknown(said: str, site: Site) -> None:
    """Raises UnknownKind for an answer that the site does not know."""
    known = answers_of(site)
    if said not in known:
        raise UnknownKind(said, known)


def named(session: Session, name: str) -> Asked:
    """The cell of a dispute, decided or not; raises NoSuchDispute."""
    cell = session.scalar(_named(name))
    if cell is None:
        raise NoSuchDispute
    return cell


def _named(name: str) -> Select[tuple[Asked]]:
    """The query of a dispute's cell; raises NoSuchDispute for what is no name."""
    queue_id, _, place = name.partition(".")
    if len(queue_id) != 12 or len(place) != PLACE_DIGITS or not set(queue_id + place) <= set("0123456789abcdef"):
        raise NoSuchDispute
    disputed = or_(Asked.state == "disputed", Asked.adjudicated.is_not(None), Asked.withdrawn.is_not(None))
    here = (Asked.queue_id == queue_id) & (Asked.place == int(place, 16)) & Asked.purpose.in_(COUNTED)
    return select(Asked).join(Queue, Queue.id == Asked.queue_id).where(here, disputed)
