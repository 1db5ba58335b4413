"""What readers said so far, out of the store, as the agreement counts it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from serving.contract.labelling import UNSURE
from serving.labelling.confusion import Reading
from serving.reports.labelling_tables import Asked, Queue, Task


@dataclass
class Readings:
    """The answers that stand in all queues of a workspace.

    `blind` has one reading for each cell and reader, also of known cells. `adjudicated` is by cell. `twice` and `known` are, by
    reader, whether each repeated answer was the same, and each answer to a known cell right.
    """

    blind: list[Reading] = field(default_factory=list)
    adjudicated: dict[str, str] = field(default_factory=dict)
    twice: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    known: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))

    def pairs(self) -> dict[tuple[str, str], tuple[list[str], list[str]]]:
        """The answers of each two readers to the cells that both read, known cells left out; readers in alphabetical order."""
        by_cell: dict[str, list[Reading]] = defaultdict(list)
        for reading in self.blind:
            if not reading.truth:
                by_cell[reading.cell].append(reading)
        found: dict[tuple[str, str], tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for readings in by_cell.values():
            ordered = sorted(readings, key=lambda reading: reading.reader)
            for at, one in enumerate(ordered):
                for other in ordered[at + 1 :]:
                    first, second = found[one.reader, other.reader]
                    first.append(one.answer)
                    second.append(other.answer)
        return dict(sorted(found.items()))


def readings_of(session: Session, workspace: str) -> Readings:
    """The readings of a workspace."""
    answered = (
        select(Task.queue_id, Task.sha256, Task.reader, Task.kind, Task.answer, Asked.truth, Asked.adjudicated)
        .join(Asked, (Asked.queue_id == Task.queue_id) & (Asked.sha256 == Task.sha256))
        .join(Queue, Queue.id == Task.queue_id)
        .where(Queue.workspace == workspace, Task.state == "answered", Task.answer.is_not(None))
        .order_by(Task.answered_at, Task.reader, Task.number)
    )
    return gathered(tuple(row) for row in session.execute(answered))


def gathered(rows: Iterable[tuple[str, str, str, str, str, str, str | None]]) -> Readings:
    """Readings of rows (queue, cell, reader, kind of the task, answer, truth, adjudicated)."""
    readings, first = Readings(), {}
    repeats = []
    for _, cell, reader, kind, answer, truth, adjudicated in rows:
        if kind == "repeat":
            repeats.append((cell, reader, answer))
            continue
        if kind == "known":
            readings.known[reader].append(answer == truth)
        if (cell, reader) in first:
            continue  # asked again in a later queue
        first[cell, reader] = answer
        readings.blind.append(Reading(cell, reader, answer, truth if kind == "known" else ""))
        if adjudicated is not None and adjudicated != UNSURE:
            readings.adjudicated[cell] = adjudicated
    for cell, reader, answer in repeats:
        if (cell, reader) in first:
            readings.twice[reader].append(answer == first[cell, reader])
    return readings
