"""Who is given which cell: each reader a shuffled order of its own, two of them some cells, and now and then one that is known.

A task that is not answered lapses after LAPSE, and its cell is free for others. No step looks at all cells: a reader's next cell
is the first vacant one behind a place that is drawn for this reader and this task.
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, exists, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from serving.contract.site import Site
from serving.labelling.errors import NoImage, NotAsked
from serving.labelling.queue import COUNTED, free_cells, left_of, place_of, share_of, waiting
from serving.labelling.settling import settle
from serving.reports.labelling_tables import READ, Asked, AskedImage, Queue, Reader, Task, TaskKind
from serving.reports.store import IMAGE_KEYS, Store

LAPSE: Final = timedelta(minutes=30)
REPEAT_AFTER: Final = 10  # tasks between a cell and its repetition, at least
COUNT_AGAIN: Final = timedelta(seconds=10)  # after which what is left for a reader is counted, not carried on
LAPSED_AT_A_TIME: Final = 50
CELL_OF_TASK: Final = (Asked.queue_id == Task.queue_id) & (Asked.sha256 == Task.sha256)


class Who(NamedTuple):
    """Who answers: the reader, and the name of the key that the request came with."""

    reader: str
    caller: str


class Given(NamedTuple):
    """A task as a reader sees it: its name, and the size of its image as shown, in pixels."""

    name: str
    width: int
    height: int


def now() -> datetime:
    """The present moment; a test sets it."""
    return datetime.now(UTC)


# --- the queue and the reader ---------------------------------------------------------------------------------------------


def open_queues(session: Session) -> list[Queue]:
    """The queues that readers may be given cells of, the newest first."""
    query = select(Queue).where(Queue.published_at.is_not(None), Queue.closed_at.is_(None))
    return list(session.scalars(query.order_by(Queue.published_at.desc(), Queue.id)))


def current_queue(session: Session, reader: str) -> Queue | None:
    """The newest open queue that has something left for the reader, else the newest open one; None where none is open."""
    queues = open_queues(session)
    if len(queues) < 2:
        return queues[0] if queues else None
    return next((queue for queue in queues if _has_something_left(session, queue.id, reader)), queues[0])


def _has_something_left(session: Session, queue_id: str, reader: str) -> bool:
    waits = select(Task.number).where(waiting(queue_id, reader))
    free = select(Asked.place).where(free_cells(queue_id, reader))
    return session.scalar(waits.limit(1)) is not None or session.scalar(free.limit(1)) is not None


def known_reader(session: Session, queue_id: str, reader: str) -> Reader | None:
    """As `locked_reader`; None where the reader has no row, since this reader was never given anything of the queue."""
    query = select(Reader).where(Reader.queue_id == queue_id, Reader.reader == reader).with_for_update()
    return session.scalar(query.execution_options(populate_existing=True))


def locked_reader(session: Session, queue_id: str, reader: str) -> Reader:
    """The reader's row, for this transaction alone: what one reader does at two windows happens one after the other."""
    found = known_reader(session, queue_id, reader)
    if found is not None:
        return found
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    row = {"queue_id": queue_id, "reader": reader, "number": 0, "answered": 0, "unread": 0, "counted_at": now() - COUNT_AGAIN}
    session.execute(dialect.insert(Reader).values(row).on_conflict_do_nothing())
    made = known_reader(session, queue_id, reader)
    return made if made is not None else locked_reader(session, queue_id, reader)


def count_unread(session: Session, row: Reader, exactly: bool = False) -> int:
    """What is left for a reader: open tasks, and cells that are free for this reader. Counted from time to time only, unless
    `exactly`: between two counts an answer takes one off."""
    if exactly or now() - row.counted_at >= COUNT_AGAIN:
        session.flush()
        row.unread = left_of(session, row.queue_id, row.reader)
        row.counted_at = now()
    return row.unread


# --- giving -----------------------------------------------------------------------------------------------------------------


def next_tasks(store: Store, reader: str, count: int, site: Site) -> list[Given]:
    """The reader's next `count` tasks that wait for an answer, the earliest given first; fewer where there are no more.

    Only where no cell is free is it looked for tasks that have lapsed.
    """
    with store.writing() as session:
        queue = current_queue(session, reader)
        if queue is None:
            return []
        row = locked_reader(session, queue.id, reader)
        found = open_tasks(session, queue.id, reader, count)
        while len(found) < count and (task := _give_next(session, row, site)) is not None:
            found.append(task)
        if len(found) < count and free_lapsed(session, row):
            found = open_tasks(session, queue.id, reader, count)
            while len(found) < count and (task := _give_next(session, row, site)) is not None:
                found.append(task)
        return found


def open_tasks(session: Session, queue_id: str, reader: str, count: int, sweep: bool = False) -> list[Given]:
    """The reader's first `count` tasks that wait for an answer; with `sweep` only those of a grid."""
    query = select(Task.number, Asked.width, Asked.height).join(Asked, CELL_OF_TASK)
    query = query.where(waiting(queue_id, reader))
    query = query.where(Task.sweep.is_(True)) if sweep else query
    rows = session.execute(query.order_by(Task.number).limit(count))
    return [Given(f"{queue_id}.{number}", width, height) for number, width, height in rows]


def _give_next(session: Session, row: Reader, site: Site) -> Given | None:
    """Give the reader one more cell; None where there is none."""
    number = row.number + 1
    place, measure = place_of(f"{row.queue_id} {row.reader}", str(number)), measured_by(row, number, site)
    if measure == "repeat" and (cell := _to_repeat(session, row)) is not None:
        return give(session, row, cell, "repeat")
    if measure == "known":
        known = select(Asked).where(known_cells(row.queue_id, row.reader))
        if (cell := first_behind(session, known, place)) is not None:
            return give(session, row, cell, "known")
    cell = first_behind(session, select(Asked).where(free_cells(row.queue_id, row.reader)), place)
    return None if cell is None else give(session, row, cell, "second" if cell.given else "first")


def measured_by(row: Reader, number: int, site: Site) -> TaskKind | None:
    """Whether the reader's task of this number is to measure the reader: by a repetition, or by a cell that is known."""
    chance, settings = share_of("kind", row.queue_id, row.reader, number), site.labelling
    if chance < settings.repeat_share:
        return "repeat"
    return "known" if chance < settings.repeat_share + settings.known_share else None


def give(session: Session, row: Reader, cell: Asked, kind: TaskKind, sweep: bool = False) -> Given:
    """Make the reader's next task of a cell that this transaction has locked, where it counts for the cell."""
    row.number += 1
    task = Task(queue_id=row.queue_id, reader=row.reader, number=row.number, sha256=cell.sha256, kind=kind)
    task.sweep, task.state, task.given_at = sweep, "open", now()
    session.add(task)
    if kind in READ:
        cell.given += 1
        cell.vacant = cell.given < cell.readers_wanted
    else:
        row.unread += 1
    session.flush()
    return Given(f"{row.queue_id}.{row.number}", cell.width, cell.height)


def first_behind(session: Session, query: Select[tuple[Asked]], place: int) -> Asked | None:
    """The first cell of the query at or behind a place, else from the beginning; one that others are at is passed over."""
    for part in (Asked.place >= place, Asked.place < place):
        found = query.where(part).order_by(Asked.place).limit(1)
        cell = session.scalar(found.with_for_update(skip_locked=True, of=Asked).execution_options(populate_existing=True))
        if cell is not None:
            return cell
    return None


def known_cells(queue_id: str, reader: str) -> ColumnElement[bool]:
    """The cells of a queue whose kind is known, and that the reader has not had."""
    had = exists().where(Task.sha256 == Asked.sha256, Task.reader == reader)
    return and_(Asked.queue_id == queue_id, Asked.purpose == "known", ~had)


def _to_repeat(session: Session, row: Reader) -> Asked | None:
    """A cell that can be asked about again; which one is drawn."""
    query = repeatable(row).order_by(Task.number).limit(1)
    begin = 1 + int(share_of("repeat", row.queue_id, row.reader, row.number) * max(row.number - REPEAT_AFTER, 1))
    for part in (Task.number >= begin, Task.number < begin):
        if (sha256 := session.scalar(query.where(part))) is not None:
            return session.get_one(Asked, (row.queue_id, sha256))
    return None


def repeatable(row: Reader) -> Select[tuple[str]]:
    """The cells that the reader has named some tasks ago, and was not yet asked about again."""
    again = aliased(Task)
    repeated = exists().where(
        again.queue_id == Task.queue_id, again.reader == Task.reader, again.sha256 == Task.sha256, again.kind == "repeat"
    )
    query = select(Task.sha256).join(Asked, CELL_OF_TASK).where(Asked.state != "withdrawn", ~repeated)
    query = query.where(Task.queue_id == row.queue_id, Task.reader == row.reader, Task.number <= row.number - REPEAT_AFTER)
    return query.where(Task.kind.in_(READ), Task.state == "answered")


# --- lapsing ----------------------------------------------------------------------------------------------------------------


def free_lapsed(session: Session, row: Reader) -> bool:
    """Let tasks of the reader's queue lapse that were given too long ago; returns whether any had, now or before.

    The reader is given again what has lapsed of this reader's own and nobody else has taken. Cells that others are at just now
    are left for the next time.
    """
    old = select(Task).where(Task.queue_id == row.queue_id, Task.state == "open", Task.given_at < now() - LAPSE)
    old = old.where(Task.reader != row.reader).order_by(Task.given_at).limit(LAPSED_AT_A_TIME)
    tasks = list(session.scalars(old.with_for_update(skip_locked=True)))
    cells = _passed_over_if_held(session, row.queue_id, {task.sha256 for task in tasks})
    for task in tasks:
        if task.sha256 in cells:
            task.state = "lapsed"
    for cell in cells.values():
        if cell.purpose in COUNTED:
            settle(session, cell)
    return _take_up_again(session, row) or bool(tasks)


def _passed_over_if_held(session: Session, queue_id: str, names: Collection[str]) -> dict[str, Asked]:
    if not names:
        return {}
    query = select(Asked).where(Asked.queue_id == queue_id, Asked.sha256.in_(names)).order_by(Asked.sha256)
    found = session.scalars(query.with_for_update(skip_locked=True).execution_options(populate_existing=True))
    return {cell.sha256: cell for cell in found}


def _take_up_again(session: Session, row: Reader) -> bool:
    """Give the reader again what has lapsed and nobody else was given meanwhile; returns whether there was such a task."""
    query = select(Task).join(Asked, CELL_OF_TASK).where(Task.queue_id == row.queue_id, Task.reader == row.reader)
    query = query.where(Task.state == "lapsed", Asked.withdrawn.is_(None), (Asked.vacant.is_(True)) | Task.kind.not_in(READ))
    tasks = session.scalars(query.order_by(Task.number).limit(LAPSED_AT_A_TIME)).all()
    cells = _passed_over_if_held(session, row.queue_id, {task.sha256 for task in tasks})
    for task in tasks:
        cell = cells.get(task.sha256)
        if cell is not None and (cell.vacant or task.kind not in READ):
            task.state, task.given_at = "open", now()
            if task.kind in READ:
                settle(session, cell)
    return bool(tasks)


# --- a task of a reader -----------------------------------------------------------------------------------------------------


def parsed(name: str) -> tuple[str, int]:
    """Queue and number of a task's name; raises NotAsked for what is no name."""
    queue_id, _, number = name.partition(".")
    if len(queue_id) != 12 or not queue_id.isalnum() or not number.isdecimal() or not number.isascii() or len(number) > 9:
        raise NotAsked
    return queue_id, int(number)


def image_of(store: Store, reader: str, name: str) -> bytes:
    """The file of the cell of a reader's task; raises NotAsked where it is no task of this reader."""
    queue_id, number = parsed(name)
    with store.reading() as session:
        task = session.get(Task, (queue_id, reader, number))
        if task is None:
            raise NotAsked
        return file_of(session, queue_id, task.sha256)


def file_of(session: Session, queue_id: str, sha256: str) -> bytes:
    """The file of a cell of a queue. Raises NoImage where it is not kept any more, and WbcError where it is encrypted with a key
    that is not there."""
    image = session.get(AskedImage, (queue_id, sha256))
    if image is None:
        raise NoImage
    data = bytes(image.data)
    return data if image.key is None else bytes(session.info[IMAGE_KEYS].named(image.key).open(data, sha256))


def cells_locked(session: Session, queue_id: str, names: Collection[str]) -> dict[str, Asked]:
    """Cells of a queue, for this transaction alone; always in one order, so that two who want the same wait for each other."""
    query = select(Asked).where(Asked.queue_id == queue_id, Asked.sha256.in_(names)).order_by(Asked.sha256)
    found = session.scalars(query.with_for_update().execution_options(populate_existing=True))
    return {cell.sha256: cell for cell in found}
