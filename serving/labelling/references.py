"""Cells that are known to be something, for the strip on the page: agreed ones of this site first, then published ones."""

from typing import Final

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from serving.contract.labelling import UNSURE, answers_of
from serving.contract.site import Site
from serving.labelling.errors import NoSuchReference
from serving.labelling.queue import COUNTED, PLACE_DIGITS
from serving.labelling.tasks import file_of
from serving.reports.labelling_tables import Asked, AskedImage, Queue, Task
from serving.reports.store import Store

EACH: Final = 6  # cells of a kind


def references(store: Store, reader: str, site: Site) -> dict[str, list[str]]:
    """By answer, the names of reference cells, EACH at most: the latest that readers agreed on, then those of the flow.

    A cell that this reader has named, in a queue that is still open, is none for this reader: it may be asked about again.
    """
    with store.reading() as session:
        return {answer: _of(session, answer, reader) for answer in answers_of(site) if answer != UNSURE}


def _of(session: Session, answer: str, reader: str) -> list[str]:
    mine = exists().where(
        Task.sha256 == Asked.sha256, Task.reader == reader, Task.queue_id == Queue.id, Queue.closed_at.is_(None)
    )
    ours = select(Asked.queue_id, Asked.place).join(Queue, Queue.id == Asked.queue_id)
    ours = (
        ours.where(_agreed(), Asked.answer == answer, ~mine, _kept()).order_by(Asked.agreed_at.desc(), Asked.sha256).limit(EACH)
    )
    found = [_name(*one) for one in session.execute(ours).tuples()]
    published = select(Asked.queue_id, Asked.place).where(Asked.purpose == "reference", Asked.answer == answer, _kept())
    published = published.order_by(Asked.sha256, Asked.queue_id).limit(EACH - len(found))
    return found + [_name(*one) for one in session.execute(published).tuples()]


def _agreed() -> ColumnElement[bool]:
    return (Asked.state == "agreed") & Asked.purpose.in_(COUNTED)


def _kept() -> ColumnElement[bool]:
    return exists().where(AskedImage.queue_id == Asked.queue_id, AskedImage.sha256 == Asked.sha256)


def _name(queue_id: str, place: int) -> str:
    return f"{queue_id}.{place:0{PLACE_DIGITS}x}"


def reference_image(store: Store, name: str) -> bytes:
    """The file of a reference cell; raises NoSuchReference."""
    queue_id, _, place = name.partition(".")
    if len(queue_id) != 12 or len(place) != PLACE_DIGITS or not set(queue_id + place) <= set("0123456789abcdef"):
        raise NoSuchReference
    with store.reading() as session:
        here = (Asked.queue_id == queue_id) & (Asked.place == int(place, 16)) & Asked.purpose.in_((*COUNTED, "reference"))
        found = session.scalar(select(Asked.sha256).where(here, _agreed() | (Asked.purpose == "reference")))
        if found is None:
            raise NoSuchReference
        return file_of(session, queue_id, found)
