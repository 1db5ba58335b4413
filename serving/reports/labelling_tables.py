"""The tables of the labelling: queues of cells that the model asks about, who was given which of them, and what readers said.

They are as the newest migration makes them. Answers are only ever added; the database itself refuses to change or delete one.
What `tasks` and `asked_cells` say of them can be derived from the answers again (serving/labelling/settling.py).
"""

from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import JSON, BigInteger, ForeignKey, ForeignKeyConstraint, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from serving.reports.tables import Base, one_of

Purpose = Literal["asked", "test", "known", "reference"]
Why = Literal["labelled", "held-out", "quarantined", "removed"]  # a cell left without its readers
CellState = Literal["open", "disputed", "agreed", "unnamed", "withdrawn"]
How = Literal["one", "two", "adjudicated"]
TaskKind = Literal["first", "second", "repeat", "known"]
TaskState = Literal["open", "answered", "lapsed"]
ReadingWay = Literal["single", "sweep", "adjudicated"]
READ: Final[tuple[TaskKind, ...]] = ("first", "second")  # the tasks whose answers count for what a cell is


class Queue(Base):
    """Cells that one cycle of a workspace asks about. `published_at` is null while it is being filled."""

    __tablename__ = "queues"
    __table_args__ = (Index(None, "workspace", "published_at"),)

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    workspace: Mapped[str]
    cycle: Mapped[int]
    model_version: Mapped[str]
    published_at: Mapped[datetime | None]
    closed_at: Mapped[datetime | None]
    deadline: Mapped[datetime | None]
    gain: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    next_step: Mapped[str] = mapped_column(default="")
    next_parts: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))


class Asked(Base):
    """A cell of a queue.

    `place` is its place in a shuffled order, made of queue and cell. `readers_least` readers are wanted whatever they say, and
    `readers_wanted` by what they said. `given` are the tasks that count for it and have not lapsed. It is `vacant` while one
    more reader could be given it. `taken_answer` is what the flow has taken out. A cell is `unnamed` where a third person is
    `unsure`, too: nobody can name it, and nobody is asked about it.
    """

    __tablename__ = "asked_cells"
    __table_args__ = (
        one_of("purpose", Purpose),
        one_of("state", CellState),
        one_of("how", How),
        one_of("withdrawn", Why),
        Index(None, "queue_id", "vacant", "place"),
        Index(None, "queue_id", "purpose", "place"),
        Index(None, "queue_id", "state"),
        Index(None, "answer", "agreed_at"),
        Index(None, "sha256"),
    )

    queue_id: Mapped[str] = mapped_column(ForeignKey("queues.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    place: Mapped[int] = mapped_column(BigInteger)
    rank: Mapped[int]
    reason: Mapped[str]
    purpose: Mapped[Purpose] = mapped_column(String(16))
    truth: Mapped[str] = mapped_column(default="")
    predicted: Mapped[str] = mapped_column(default="")
    probability: Mapped[float | None]
    width: Mapped[int]
    height: Mapped[int]
    readers_least: Mapped[int]
    readers_wanted: Mapped[int]
    given: Mapped[int] = mapped_column(default=0)
    state: Mapped[CellState] = mapped_column(String(16), default="open")
    vacant: Mapped[bool]
    withdrawn: Mapped[Why | None] = mapped_column(String(16))
    adjudicated: Mapped[str | None]
    adjudicated_by: Mapped[str | None]
    answer: Mapped[str | None]
    how: Mapped[How | None] = mapped_column(String(16))
    agreed_at: Mapped[datetime | None]
    taken_at: Mapped[datetime | None]
    taken_answer: Mapped[str | None]


class AskedImage(Base):
    """The file of a cell of a queue, and its embedding (float16) where the flow gave one. It is apart from the cell, as a
    report's image is. `key` is the name of the key that the file is encrypted with; null where it is not."""

    __tablename__ = "asked_images"
    __table_args__ = (
        ForeignKeyConstraint(
            ["queue_id", "sha256"],
            ["asked_cells.queue_id", "asked_cells.sha256"],
            ondelete="CASCADE",
            name="fk_asked_images_cell",
        ),
        Index(None, "key"),
    )

    queue_id: Mapped[str] = mapped_column(String(12), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str | None] = mapped_column(String(16))
    data: Mapped[bytes]
    embedding: Mapped[bytes | None] = mapped_column(deferred=True)


class Reader(Base):
    """How far a reader is in a queue. `number` is that of the last task given, `answered` counts tasks, `unread` what is left."""

    __tablename__ = "readers"

    queue_id: Mapped[str] = mapped_column(ForeignKey("queues.id"), primary_key=True)
    reader: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(default=0)
    answered: Mapped[int] = mapped_column(default=0)
    unread: Mapped[int] = mapped_column(default=0)
    counted_at: Mapped[datetime]  # when `unread` was counted; between two counts it is only carried on


class Task(Base):
    """A cell that a reader was given: the reader's `number`th. `answer` is the one that stands, `answer_id` its row."""

    __tablename__ = "tasks"
    __table_args__ = (
        ForeignKeyConstraint(["queue_id", "sha256"], ["asked_cells.queue_id", "asked_cells.sha256"], name="fk_tasks_cell"),
        one_of("kind", TaskKind),
        one_of("state", TaskState),
        Index(None, "queue_id", "state", "given_at"),
        Index(None, "queue_id", "reader", "state", "number"),
        Index(None, "sha256"),
        Index(None, "reader", "sha256"),
    )

    queue_id: Mapped[str] = mapped_column(String(12), primary_key=True)
    reader: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    kind: Mapped[TaskKind] = mapped_column(String(16))
    sweep: Mapped[bool] = mapped_column(default=False)
    state: Mapped[TaskState] = mapped_column(String(16), default="open")
    given_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]
    answer: Mapped[str | None]
    answer_id: Mapped[int | None]


class Answer(Base):
    """What a reader said of a cell; never changed or deleted.

    A later answer of the same reader to the same task supersedes. A row that `undoes` an earlier one takes that back, and has
    no answer of its own. `number` is the task's; null where a third person adjudicated.
    """

    __tablename__ = "answers"
    __table_args__ = (
        ForeignKeyConstraint(["queue_id", "sha256"], ["asked_cells.queue_id", "asked_cells.sha256"], name="fk_answers_cell"),
        one_of("way", ReadingWay),
        Index(None, "queue_id", "sha256"),
        Index(None, "queue_id", "reader", "id"),
        Index(None, "undoes"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    queue_id: Mapped[str] = mapped_column(String(12))
    sha256: Mapped[str] = mapped_column(String(64))
    reader: Mapped[str]
    caller: Mapped[str]  # the name of the key that the request came with
    answer: Mapped[str]
    seconds: Mapped[float | None]
    at: Mapped[datetime]
    number: Mapped[int | None]
    way: Mapped[ReadingWay] = mapped_column(String(16))
    undoes: Mapped[int | None]
