"""A queue as the flow sees it: it puts cells in, asks how far the readers are, and takes out what they agree on."""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from PIL import Image
from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from serving.contract.labelling import UNSURE, answers_of
from serving.contract.site import Site
from serving.labelling.settling import judge, settle
from serving.reports.kept_images import key_of
from serving.reports.labelling_tables import READ, Asked, AskedImage, How, Purpose, Queue, Reader, Task, Why
from serving.reports.store import Store
from serving.security.image_key import ImageKey
from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.core.structure import one_picture

AT_A_TIME: Final = 200  # cells that are written in one transaction, so that a service on the same file is not held up
PLACE_DIGITS: Final = 15  # of a cell's place, in hexadecimal
SHOWN_SIDE: Final = 1024  # pixels of the longer side of an image, at most, as it is shown
_TURNED: Final = range(5, 9)  # EXIF orientations that exchange width and height
_ORIENTATION: Final = 0x0112
COUNTED: Final = ("asked", "test")  # the purposes of cells that readers are to name


@dataclass(frozen=True)
class AskedCell:
    """A cell to be put into a queue: the file, why it is asked for, and what the model said of it.

    `truth` is what a `known` or `reference` cell is. `embedding` is float16, of one length for all cells of a queue.
    """

    sha256: str
    data: bytes
    rank: int
    reason: str
    purpose: Purpose = "asked"
    truth: str = ""
    predicted: str = ""
    probability: float | None = None
    embedding: bytes | None = None


@dataclass(frozen=True)
class Notice:
    """What stands over a queue: whose it is, until when it is open, what its labels are expected to gain, what happens next."""

    workspace: str
    cycle: int
    model_version: str
    deadline: datetime | None = None
    gain: dict[str, Any] | None = None
    next_step: str = ""
    next_parts: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Agreed:
    """A cell that readers agree on. `changed` says that another answer of it was taken before; `taken` is that one."""

    queue_id: str
    sha256: str
    answer: str
    how: How
    readers: tuple[str, ...]
    at: datetime
    changed: bool
    purpose: Purpose = "asked"
    cycle: int = 0
    taken: str = ""


@dataclass(frozen=True)
class Progress:
    """How far the readers of a workspace's newest queue are; all numbers but those of `readers` are of cells.

    `unsure` are those that a reader is unsure of, `second_waiting` those that only wait for a second reader. `unnamed` are those
    that nobody can name, `removed` those that left with a report that was removed. `readers` is the number of tasks that each has
    answered, `left` of those that each could still answer. `queue_id` is empty where nothing was ever asked.
    """

    queue_id: str = ""
    cycle: int = 0
    cells: int = 0
    agreed: int = 0
    disputed: int = 0
    open: int = 0
    unsure: int = 0
    second_waiting: int = 0
    unnamed: int = 0
    removed: int = 0
    readers: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    deadline: datetime | None = None
    closed: bool = False
    next_step: str = ""
    gain: dict[str, Any] | None = None


# --- putting in ------------------------------------------------------------------------------------------------------------


def publish(store: Store, queue_id: str, notice: Notice, cells: Iterable[AskedCell], site: Site) -> int:
    """Put a queue in, or what is missing of it; returns how many cells were new.

    It may be called again with the same `queue_id`, and go on where it was killed. Readers see the queue once all cells are in;
    the earlier open queues of the workspace are then closed. What was said of a cell in one of them counts in this one, too.
    Raises WbcError for an id that is none, for a cell that stands twice, and for a file that is no picture. It is also raised
    for a truth that is missing or unknown.
    """
    if len(queue_id) != 12 or not set(queue_id) <= set("0123456789abcdef"):
        raise WbcError(f"{queue_id!r} cannot name a queue: give 12 hexadecimal digits")
    key, seen, new = key_of(store.image_keys, site), set[str](), 0
    with store.writing() as session:
        _entitle(session, queue_id, notice)
    for batch in _batches(cells):
        for cell in batch:
            _check(cell, seen, site)
        with store.writing() as session:
            new += _put_in(session, queue_id, batch, key, site)
    with store.writing() as session:
        now = datetime.now(UTC)
        queue = session.get_one(Queue, queue_id)
        queue.published_at = queue.published_at or now
        earlier = (Queue.workspace == notice.workspace) & (Queue.id != queue_id) & Queue.closed_at.is_(None)
        session.execute(update(Queue).where(earlier).values(closed_at=now))
        _free_unread(session, queue)
    if new:
        store.look_at(Asked.__tablename__)
    return new


def _free_unread(session: Session, queue: Queue) -> None:
    """Let the cells of a queue be free that readers were given in an earlier one and have not answered."""
    session.flush()
    elsewhere = (
        select(Task.sha256)
        .join(Queue, Queue.id == Task.queue_id)
        .where(Queue.workspace == queue.workspace, Queue.id != queue.id, Task.state == "open", Task.kind.in_(READ))
    )
    cells = select(Asked).where(Asked.queue_id == queue.id, Asked.sha256.in_(elsewhere), Asked.purpose.in_(COUNTED))
    for cell in session.scalars(cells.order_by(Asked.sha256).with_for_update(of=Asked)):
        settle(session, cell)


def _entitle(session: Session, queue_id: str, notice: Notice) -> None:
    queue = session.get(Queue, queue_id)
    if queue is not None and queue.workspace != notice.workspace:
        raise WbcError(f"the queue {queue_id} is of the workspace {queue.workspace!r}, not of {notice.workspace!r}")
    if queue is None:
        queue = Queue(id=queue_id, workspace=notice.workspace)
        session.add(queue)
    queue.cycle, queue.model_version, queue.deadline = notice.cycle, notice.model_version, notice.deadline
    queue.gain, queue.closed_at = notice.gain, None
    queue.next_step, queue.next_parts = notice.next_step, notice.next_parts


def _batches(cells: Iterable[AskedCell]) -> Iterator[list[AskedCell]]:
    waiting = iter(cells)
    while batch := list(islice(waiting, AT_A_TIME)):
        yield batch


def _check(cell: AskedCell, seen: set[str], site: Site) -> None:
    if cell.sha256 in seen:
        raise WbcError(f"the cell {cell.sha256} stands twice in the queue")
    seen.add(cell.sha256)
    if cell.purpose in ("known", "reference") and cell.truth not in answers_of(site)[:-1]:
        raise WbcError(f"the cell {cell.sha256} is a {cell.purpose} one, and {cell.truth!r} is nothing that a cell can be here")


def _put_in(session: Session, queue_id: str, cells: Sequence[AskedCell], key: ImageKey | None, site: Site) -> int:
    """Add those cells that the queue does not have yet; returns how many."""
    names = [cell.sha256 for cell in cells]
    there = set(session.scalars(select(Asked.sha256).where(Asked.queue_id == queue_id, Asked.sha256.in_(names))))
    read_before = set(session.scalars(select(Task.sha256).where(Task.sha256.in_(names)).distinct()))
    new = [cell for cell in cells if cell.sha256 not in there]
    rows = [_row(queue_id, cell, site) for cell in new]
    session.add_all(rows)
    session.flush()
    for cell in new:
        data = cell.data if key is None else key.seal(cell.data, cell.sha256)
        name = None if key is None else key.name
        session.add(AskedImage(queue_id=queue_id, sha256=cell.sha256, key=name, data=data, embedding=cell.embedding))
    for row in rows:
        if row.sha256 in read_before and row.purpose in COUNTED:
            judge(session, row)
    return len(new)


def _row(queue_id: str, cell: AskedCell, site: Site) -> Asked:
    width, height = _shown(cell)
    place = place_of(queue_id, cell.sha256)
    least = 2 if share_of(queue_id, cell.sha256, "second reader") < site.labelling.second_reader_share else 1
    asked = cell.purpose in COUNTED
    return Asked(
        queue_id=queue_id,
        sha256=cell.sha256,
        place=place,
        rank=cell.rank,
        reason=cell.reason,
        purpose=cell.purpose,
        truth=cell.truth,
        predicted=cell.predicted,
        probability=cell.probability,
        width=width,
        height=height,
        readers_least=least,
        readers_wanted=least,
        state="open" if asked else "agreed",
        answer=None if asked else cell.truth,
        vacant=asked,
    )


def _shown(cell: AskedCell) -> tuple[int, int]:
    """Width and height, in pixels, of the image as it is shown; raises WbcError."""
    try:
        with Image.open(io.BytesIO(cell.data), formats=(one_picture(cell.data),)) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _TURNED
    except (ImageRejected, OSError, ValueError) as error:
        raise WbcError(f"the cell {cell.sha256} is no picture: {error}") from None
    scale = min(1.0, SHOWN_SIDE / max(width, height))
    shown = max(1, round(width * scale)), max(1, round(height * scale))
    return shown[::-1] if turned else shown


def place_of(queue_id: str, sha256: str) -> int:
    """A cell's place in the queue's shuffled order: 60 bits that say nothing of its rank."""
    return int(hashlib.sha256(f"place {queue_id} {sha256}".encode()).hexdigest()[:PLACE_DIGITS], 16)


def share_of(*parts: object) -> float:
    """A number in [0, 1) that these parts always give."""
    text = " ".join(map(str, parts))
    return int(hashlib.sha256(text.encode()).hexdigest()[:PLACE_DIGITS], 16) / 16**PLACE_DIGITS


# --- taking out ------------------------------------------------------------------------------------------------------------


def agreed(store: Store, workspace: str) -> list[Agreed]:
    """All cells of a workspace that readers agree on and that were not taken yet, or were taken with another answer."""
    untaken = or_(Asked.taken_answer.is_(None), Asked.taken_answer != Asked.answer)
    here = (Queue.workspace == workspace) & (Asked.state == "agreed") & Asked.purpose.in_(COUNTED) & untaken
    with store.reading() as session:
        query = select(Asked, Queue.cycle).join(Queue, Queue.id == Asked.queue_id).where(here)
        cells = session.execute(query.order_by(Asked.agreed_at, Asked.sha256)).tuples().all()
        names = select(Asked.sha256).join(Queue, Queue.id == Asked.queue_id).where(here)
        readers = _readers(session, workspace, names)
    return [_agreed(cell, cycle, readers[cell.sha256, cell.answer]) for cell, cycle in cells]


def _readers(session: Session, workspace: str, names: Select[tuple[str]]) -> dict[tuple[str, str | None], list[str]]:
    """By cell and answer, who gave it and stands by it, the earliest first."""
    query = select(Task.sha256, Task.answer, Task.reader).join(Queue, Queue.id == Task.queue_id)
    query = query.where(Queue.workspace == workspace, Task.kind.in_(READ), Task.state == "answered", Task.sha256.in_(names))
    found = defaultdict[tuple[str, str | None], list[str]](list)
    for sha256, answer, reader in session.execute(query.order_by(Task.answered_at, Task.reader)):
        found[sha256, answer].append(reader)
    return found


def _agreed(cell: Asked, cycle: int, readers: Sequence[str]) -> Agreed:
    who = [cell.adjudicated_by or ""] if cell.how == "adjudicated" else readers
    return Agreed(
        queue_id=cell.queue_id,
        sha256=cell.sha256,
        answer=str(cell.answer),
        how=cell.how or "one",
        readers=tuple(dict.fromkeys(who)),
        at=cell.agreed_at or datetime.now(UTC),
        changed=cell.taken_answer is not None,
        purpose=cell.purpose,
        cycle=cycle,
        taken=cell.taken_answer or "",
    )


def taken_back(store: Store, workspace: str, answers: Collection[str]) -> list[str]:
    """The cells of a workspace of which one of these answers was taken, and that nobody stands by any more, in no queue."""
    again, other = aliased(Asked), aliased(Queue)
    same = (other.id == again.queue_id) & (other.workspace == workspace) & (again.sha256 == Asked.sha256)
    stands = exists().where(same, again.state == "agreed").correlate(Asked)
    here = (Queue.workspace == workspace) & Asked.taken_answer.in_(answers) & Asked.state.in_(("open", "disputed", "unnamed"))
    with store.reading() as session:
        query = select(Asked.sha256).join(Queue, Queue.id == Asked.queue_id).where(here, ~stands)
        return sorted(set(session.scalars(query)))


def untaken(store: Store, workspace: str, sha256s: Iterable[str]) -> None:
    """Note that the flow has let go of what it had taken of these cells; one that is agreed on again by now is not noted."""
    queues = select(Queue.id).where(Queue.workspace == workspace)
    with store.writing() as session:
        for batch in _groups(sha256s):
            here = Asked.queue_id.in_(queues) & Asked.sha256.in_(batch) & (Asked.state != "agreed")
            session.execute(update(Asked).where(here).values(taken_answer=None, taken_at=None))


def taken(store: Store, agreed: Sequence[Agreed]) -> None:
    """Note that the flow has these; one that says something else by now is not noted, and comes again."""
    now = datetime.now(UTC)
    with store.writing() as session:
        for one in agreed:
            same = (Asked.queue_id == one.queue_id) & (Asked.sha256 == one.sha256) & (Asked.answer == one.answer)
            values = {"taken_at": now, "taken_answer": one.answer}
            session.execute(update(Asked).where(same, Asked.state == "agreed").values(values))


def asked_now(store: Store, workspace: str) -> list[str]:
    """The cells that stand in a workspace's open queues for readers to name, be they agreed on or not; withdrawn ones do not."""
    open_ones = (Queue.workspace == workspace) & Queue.closed_at.is_(None) & Queue.published_at.is_not(None)
    here = open_ones & Asked.purpose.in_(COUNTED) & (Asked.state != "withdrawn")
    with store.reading() as session:
        query = select(Asked.sha256).join(Queue, Queue.id == Asked.queue_id).where(here)
        return list(session.scalars(query.order_by(Asked.sha256)))


def given_up(store: Store, workspace: str) -> set[str]:
    """The cells of a workspace's newest queue that nobody can name, and those that left it with a report that was removed."""
    newest = select(Queue.id).where(Queue.workspace == workspace, Queue.published_at.is_not(None))
    newest = newest.order_by(Queue.published_at.desc(), Queue.id).limit(1)
    lost = (Asked.state == "unnamed") | (Asked.withdrawn == "removed")
    with store.reading() as session:
        return set(session.scalars(select(Asked.sha256).where(Asked.queue_id.in_(newest), lost)))


def nameless(store: Store, workspace: str) -> set[str]:
    """The cells of a workspace that nobody can name. Of a cell that was asked about in several queues the last one counts."""
    of_workspace = (Queue.workspace == workspace) & Queue.published_at.is_not(None)
    unnamed = select(Asked.sha256).join(Queue, Queue.id == Asked.queue_id).where(of_workspace, Asked.state == "unnamed")
    query = select(Asked.sha256, Asked.state).join(Queue, Queue.id == Asked.queue_id)
    query = query.where(of_workspace, Asked.sha256.in_(unnamed)).order_by(Queue.published_at, Queue.id)
    with store.reading() as session:
        last = dict(session.execute(query).tuples().all())
    return {sha256 for sha256, state in last.items() if state == "unnamed"}


def withdraw_cells(store: Store, workspace: str, sha256s: Iterable[str], why: Why = "labelled") -> int:
    """Let cells leave the open queues of a workspace, since they are not to be named any more; returns how many left.

    What readers said of them stays in the record. A reader who answers one of them later is told why it is not taken.
    """
    left = 0
    with store.writing() as session:
        for batch in _groups(sha256s):
            cells = session.scalars(_in_open_queues(workspace, batch).order_by(Asked.sha256).with_for_update(of=Asked))
            for cell in cells:
                cell.state, cell.withdrawn, cell.vacant = "withdrawn", why, False
                cell.answer = cell.how = cell.agreed_at = None
                left += 1
    return left


def _groups(names: Iterable[str]) -> Iterator[list[str]]:
    waiting = iter(sorted(set(names)))
    while group := list(islice(waiting, AT_A_TIME)):
        yield group


def _in_open_queues(workspace: str, names: Sequence[str]) -> Select[tuple[Asked]]:
    query = select(Asked).join(Queue, Queue.id == Asked.queue_id)
    return query.where(
        Queue.workspace == workspace,
        Queue.closed_at.is_(None),
        Asked.sha256.in_(names),
        Asked.purpose.in_(COUNTED),
        Asked.state != "withdrawn",
    )


def close(store: Store, queue_id: str) -> None:
    """Close a queue: nobody is given its cells any more; answers that are still on their way are taken."""
    with store.writing() as session:
        still = (Queue.id == queue_id) & Queue.closed_at.is_(None)
        session.execute(update(Queue).where(still).values(closed_at=datetime.now(UTC)))


def say(
    store: Store, queue_id: str, next_step: str, gain: dict[str, Any] | None, parts: list[dict[str, Any]] | None = None
) -> None:
    """Let the page show what happens next, and what the next labels are expected to gain. `parts` are what `next_step` says: each
    has a `code` and its numbers, so that a page can say it in its own language."""
    with store.writing() as session:
        values = {"next_step": next_step, "gain": gain, "next_parts": parts}
        session.execute(update(Queue).where(Queue.id == queue_id).values(values))


# --- what is left for a reader ------------------------------------------------------------------------------------------------


def waiting(queue_id: str, reader: str) -> ColumnElement[bool]:
    """The reader's tasks of a queue that wait for an answer.

    No answer is taken about a cell that has left the queue, so that its task waits for none.
    """
    cell = aliased(Asked)
    left = exists().where(cell.queue_id == Task.queue_id, cell.sha256 == Task.sha256, cell.withdrawn.is_not(None))
    return and_(Task.queue_id == queue_id, Task.reader == reader, Task.state == "open", ~left)


def free_cells(queue_id: str, reader: str) -> ColumnElement[bool]:
    """The cells of a queue that the reader could be given: vacant, not given to this reader in it, nor read in an earlier one."""
    workspace = select(Queue.workspace).where(Queue.id == queue_id).scalar_subquery()
    ours = Task.queue_id.in_(select(Queue.id).where(Queue.workspace == workspace))
    counts = (Task.queue_id == queue_id) | ((Task.state == "answered") & ours)
    had = exists().where(Task.sha256 == Asked.sha256, Task.reader == reader, counts)
    return and_(Asked.queue_id == queue_id, Asked.vacant.is_(True), ~had)


def left_of(session: Session, queue_id: str, reader: str) -> int:
    """How many answers the reader could still give in a queue: to tasks that wait, and to cells that are free for this reader."""
    tasks = select(func.count()).select_from(Task).where(waiting(queue_id, reader))
    free = select(func.count()).select_from(Asked).where(free_cells(queue_id, reader))
    return (session.scalar(tasks) or 0) + (session.scalar(free) or 0)


# --- how far -----------------------------------------------------------------------------------------------------------------


def progress(store: Store, workspace: str) -> Progress:
    """How far the readers of the workspace's newest queue are."""
    with store.reading() as session:
        query = select(Queue).where(Queue.workspace == workspace, Queue.published_at.is_not(None))
        queue = session.scalar(query.order_by(Queue.published_at.desc(), Queue.id).limit(1))
        if queue is None:
            return Progress()
        states = states_of(session, queue.id)
        answered = (Task.queue_id == Asked.queue_id) & (Task.sha256 == Asked.sha256) & (Task.state == "answered")
        waits = (Asked.state == "open") & (Asked.readers_wanted > 1) & exists().where(answered)
        rows = select(Reader.reader, Reader.answered).where(Reader.queue_id == queue.id, Reader.number > 0)
        readers = dict(session.execute(rows.order_by(Reader.reader)).tuples().all())
        return Progress(
            queue_id=queue.id,
            cycle=queue.cycle,
            cells=sum(states.values()),
            agreed=states["agreed"],
            disputed=states["disputed"],
            open=states["open"],
            unsure=_count(session, queue.id, exists().where(answered, Task.answer == UNSURE)),
            second_waiting=_count(session, queue.id, waits),
            unnamed=states["unnamed"],
            removed=_count(session, queue.id, Asked.withdrawn == "removed"),
            readers=readers,
            left={reader: 0 if queue.closed_at else left_of(session, queue.id, reader) for reader in readers},
            deadline=queue.deadline,
            closed=queue.closed_at is not None,
            next_step=queue.next_step,
            gain=queue.gain,
        )


def states_of(session: Session, queue_id: str) -> Counter[str]:
    """How many of the cells that readers are to name are in which state; those that were withdrawn are left out."""
    query = select(Asked.state, func.count()).where(Asked.queue_id == queue_id, Asked.purpose.in_(COUNTED))
    return Counter(dict(session.execute(query.where(Asked.state != "withdrawn").group_by(Asked.state)).tuples().all()))


def _count(session: Session, queue_id: str, which: ColumnElement[bool]) -> int:
    query = select(func.count()).select_from(Asked).where(Asked.queue_id == queue_id, Asked.purpose.in_(COUNTED), which)
    return session.scalar(query) or 0
