"""How far the labelling is, as one reader sees it."""

from statistics import median
from typing import Final, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from serving.labelling.queue import states_of
from serving.labelling.tasks import count_unread, current_queue, locked_reader
from serving.reports.labelling_tables import Answer, Queue
from serving.reports.store import Store

RECENT: Final = 50  # answers whose median time is the reader's pace


class Overview(NamedTuple):
    """The reader's queue, and how far the reader and all readers are; `median_seconds` is of the reader's latest answers."""

    queue: Queue | None = None
    done: int = 0
    left: int = 0
    cells: int = 0
    agreed: int = 0
    disputed: int = 0
    unnamed: int = 0
    median_seconds: float | None = None


def overview(store: Store, reader: str) -> Overview:
    """How far the labelling is, in the queue that this reader is given cells of."""
    with store.reading() as session:
        queue = current_queue(session, reader)
        if queue is None:
            return Overview()
        states = states_of(session, queue.id)
        pace = _pace(session, queue.id, reader)
    with store.writing() as session:
        row = locked_reader(session, queue.id, reader)
        left = count_unread(session, row, exactly=True)
        done = row.answered
    counts = (states["agreed"], states["disputed"], states["unnamed"])
    return Overview(queue, done, left, sum(states.values()), *counts, pace)


def _pace(session: Session, queue_id: str, reader: str) -> float | None:
    query = select(Answer.seconds).where(Answer.queue_id == queue_id, Answer.reader == reader, Answer.undoes.is_(None))
    latest = session.scalars(query.order_by(Answer.id.desc()).limit(RECENT))
    known = [seconds for seconds in latest if seconds is not None]
    return median(known) if known else None
