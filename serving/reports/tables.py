"""The tables of the store: reports, their cells, corrections, signatures, and the messages that wait for the hospital's system;
also what the watch keeps (serving/watch).

They are as the newest migration makes them. Corrections, signatures and changes are only ever added; the database itself refuses
to change one, and to delete one of a report whose removal was not written down first.
"""

from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import (
    JSON,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    func,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column, relationship

from serving.contract.schemas import Delivery, ReportStatus, Step

DriftState = Literal["usual", "alarm", "differs", "few", "unknown"]


class UtcDateTime(TypeDecorator[datetime]):
    """A moment with its time zone: SQLite keeps none, so it is UTC on the way in and on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a time without a zone rather than guess it."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a time zone")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """UTC, whatever the database has made of it."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """All tables; constraints are named so that a migration can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON, bytes: LargeBinary, str: Text}  # noqa: RUF012


def one_of(column: str, values: Any) -> CheckConstraint:
    """That a column has one of these words (a Literal)."""
    listed = ", ".join(f"'{value}'" for value in get_args(values))
    return CheckConstraint(f"{column} IN ({listed})", name=column)


class Report(Base):
    """The differential of one specimen. `version` goes up with every change and is the ETag of the report."""

    __tablename__ = "reports"
    __table_args__ = (
        one_of("status", ReportStatus),
        Index(None, "status", "created_at"),
        Index(None, "specimen_id"),
        Index(None, "model_version"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    version: Mapped[int] = mapped_column(default=1)
    status: Mapped[ReportStatus] = mapped_column(String(16), default="preliminary")
    specimen_id: Mapped[str | None]
    wbc_count: Mapped[float | None]
    expected_images: Mapped[int | None]  # how many the client means to send; null where it has not said
    rendered: Mapped[bool] = mapped_column(default=False)  # whether the model learned from drawn cells
    withdrawn_at: Mapped[datetime | None]
    images_deleted_at: Mapped[datetime | None]  # when the kept images ran out
    model_name: Mapped[str]
    model_version: Mapped[str]
    confusion: Mapped[list[list[int]] | None] = mapped_column(
        JSON(none_as_null=True)
    )  # of the model that answered: a correction may come when another one serves
    differential: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    changed_at: Mapped[datetime]

    cells: Mapped[list["Cell"]] = relationship(order_by="Cell.position")
    corrections: Mapped[list["Correction"]] = relationship(order_by="Correction.id")
    signatures: Mapped[list["Signature"]] = relationship(order_by="Signature.id")
    changes: Mapped[list["Change"]] = relationship(order_by="Change.id")
    messages: Mapped[list["Message"]] = relationship(order_by="Message.id")
    comments: Mapped[list["Comment"]] = relationship(order_by="Comment.id")
    opinions: Mapped[list["Opinion"]] = relationship(order_by="Opinion.id")


class KeptImage(Base):
    """The file of a cell as it was posted. It is apart from the cell: who reads cells does not read their files.

    `key` is the name of the key that the file and the cell's fingerprint are encrypted with; null where they are not.
    """

    __tablename__ = "images"
    __table_args__ = (
        ForeignKeyConstraint(
            ["report_id", "position"], ["cells.report_id", "cells.position"], ondelete="CASCADE", name="fk_images_cell"
        ),
        Index(None, "key"),
    )

    report_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str | None] = mapped_column(String(16))
    data: Mapped[bytes]


class Cell(Base):
    """One posted image: what the model said, what it counts as now (`label`, null where it is not counted)."""

    __tablename__ = "cells"

    report_id: Mapped[str] = mapped_column(ForeignKey("reports.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    result: Mapped[dict[str, Any]]
    label: Mapped[str | None]
    twin: Mapped[int | None]  # the position of an earlier cell of the report that shows the same cell
    fingerprint: Mapped[bytes | None] = mapped_column(deferred=True)  # by which a twin is known; kept with the image
    # The name of the key that its image is encrypted with, empty where it is not; null where no image is kept.
    image_key: Mapped[str | None] = column_property(
        select(func.coalesce(KeptImage.key, ""))
        .where(KeptImage.report_id == report_id, KeptImage.position == position)
        .correlate_except(KeptImage)
        .scalar_subquery()
    )

    @property
    def has_image(self) -> bool:
        """Whether its image is kept."""
        return self.image_key is not None


class Correction(Base):
    """One change of one cell's label by a person; never changed or deleted. `version` is the report's after it.

    `undoes` is the id of an earlier correction of the same cell that this one takes back.
    """

    __tablename__ = "corrections"
    __table_args__ = (Index(None, "report_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    report_id: Mapped[str] = mapped_column(ForeignKey("reports.id"))
    position: Mapped[int]
    from_label: Mapped[str | None]
    to_label: Mapped[str | None]
    undoes: Mapped[int | None]
    by: Mapped[str]
    caller: Mapped[str]  # the name of the key that the request came with
    at: Mapped[datetime]
    version: Mapped[int]


class Signature(Base):
    """Who signed which version of a report and what it said then; never changed or deleted."""

    __tablename__ = "signatures"
    __table_args__ = (one_of("status", Literal["final", "amended"]), Index(None, "report_id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    report_id: Mapped[str] = mapped_column(ForeignKey("reports.id"))
    status: Mapped[str] = mapped_column(String(16))
    differential: Mapped[dict[str, Any]]
    by: Mapped[str]
    caller: Mapped[str]
    at: Mapped[datetime]
    version: Mapped[int]


class Change(Base):
    """One change of a report as a whole, with its reason: a field put right, a withdrawal; never changed or deleted."""

    __tablename__ = "changes"
    __table_args__ = (Index(None, "report_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    report_id: Mapped[str] = mapped_column(ForeignKey("reports.id"))
    what: Mapped[str] = mapped_column(String(32))
    from_value: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    to_value: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    reason: Mapped[str]
    by: Mapped[str]
    caller: Mapped[str]
    at: Mapped[datetime]
    version: Mapped[int]


class Comment(Base):
    """What a person said of a report, or of the cell at `position`; never changed or deleted."""

    __tablename__ = "comments"
    __table_args__ = (Index(None, "report_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    report_id: Mapped[str] = mapped_column(ForeignKey("reports.id"))
    position: Mapped[int | None]
    text: Mapped[str]
    by: Mapped[str]
    caller: Mapped[str]
    at: Mapped[datetime]
    version: Mapped[int]


class Opinion(Base):
    """A step of a second opinion; never changed or deleted.

    The first step asks the person `asked`. Every later one names the first in `request`: an answer of that person, or that the
    request was taken back. `text` is the note or the answer.
    """

    __tablename__ = "opinions"
    __table_args__ = (one_of("step", Step), Index(None, "report_id"), Index(None, "asked"), Index(None, "request"))

    id: Mapped[int] = mapped_column(primary_key=True)
    report_id: Mapped[str] = mapped_column(ForeignKey("reports.id"))
    request: Mapped[int | None]
    step: Mapped[Step] = mapped_column(String(16))
    asked: Mapped[str]
    text: Mapped[str]
    by: Mapped[str]
    caller: Mapped[str]
    at: Mapped[datetime]
    version: Mapped[int]


class Deed(Base):
    """A call that wrote, in the transaction of what it wrote: the audit log's intention that it carries out, and its answer.

    `key` is the caller's Idempotency-Key, `digest` the SHA-256 of what was asked; a repetition gets the answer kept here, whose
    `body` is compressed. `record` is what the audit log says of the outcome. A status of 0 says that it was not done and never
    will be.
    """

    __tablename__ = "deeds"
    __table_args__ = (UniqueConstraint("caller", "key"), Index(None, "at"))

    intention: Mapped[str] = mapped_column(String(32), primary_key=True)
    caller: Mapped[str]
    key: Mapped[str | None]
    digest: Mapped[str] = mapped_column(String(64))
    status: Mapped[int]
    headers: Mapped[dict[str, Any]]
    body: Mapped[bytes]
    record: Mapped[dict[str, Any]]
    at: Mapped[datetime]


class Removal(Base):
    """That a report was removed, by whom and why; it allows the database to delete what people did to it."""

    __tablename__ = "removals"
    __table_args__ = (Index(None, "report_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    report_id: Mapped[str] = mapped_column(String(32))
    reason: Mapped[str]
    by: Mapped[str]
    at: Mapped[datetime]


class BelievedTime(Base):
    """The time that was believed last; see serving/upkeep/clock.py.

    Also how long the service has run since the clock was found too far ahead of it.
    """

    __tablename__ = "clock"

    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    at: Mapped[datetime]
    waited_seconds: Mapped[float]


class Message(Base):
    """A message of the outbox, in the order of `id`; see serving/reports/outbox.py for what its columns mean to the sender."""

    __tablename__ = "outbox"
    __table_args__ = (
        one_of("state", Delivery),
        Index(None, "state", "id"),
        Index(None, "report_id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    report_id: Mapped[str] = mapped_column(ForeignKey("reports.id"))
    control_id: Mapped[str] = mapped_column(String(20), unique=True)
    text: Mapped[str]
    state: Mapped[Delivery] = mapped_column(String(16), default="pending")
    attempts: Mapped[int] = mapped_column(default=0)
    unanswered: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    error: Mapped[str | None]


# --- the watch ------------------------------------------------------------------------------------------------------------


class WatchedCells(Base):
    """What was measured of the cells of one request, (cells, WIDTH) float32 of wbc_model/core/reference.py; nothing says whose
    they are. They are kept for the time that the site states."""

    __tablename__ = "watched_cells"
    __table_args__ = (Index(None, "site", "day"), Index(None, "day"))

    id: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str]
    day: Mapped[str] = mapped_column(String(10))  # of UTC, as 2026-11-29
    model_version: Mapped[str]
    cells: Mapped[int]
    measures: Mapped[bytes]


class UsualCells(Base):
    """Which cells of a site are its usual state under a model, as `measures` of WatchedCells with the request of each before.

    They are of the days from `since`, for a person's `word` where there was one. All days up to `through` were judged.
    """

    __tablename__ = "usual_cells"

    site: Mapped[str] = mapped_column(primary_key=True)
    model_version: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[str] = mapped_column(String(10))
    through: Mapped[str] = mapped_column(String(10))
    word: Mapped[int | None]
    cells: Mapped[int]
    measures: Mapped[bytes]


class Drift(Base):
    """How far one measure of a site's day was from its usual state, or from training on the first day; see flows/monitoring.

    `effective` is what the cells are worth as independent ones. `effect` and `from_training` are the largest difference of two
    shares, 0 to 1.
    """

    __tablename__ = "drift"
    __table_args__ = (one_of("state", DriftState), one_of("against", Literal["training", "site"]), Index(None, "site", "day"))

    site: Mapped[str] = mapped_column(primary_key=True)
    model_version: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    measure: Mapped[str] = mapped_column(String(16), primary_key=True)
    against: Mapped[str] = mapped_column(String(16))
    cells: Mapped[int]
    effective: Mapped[float | None]
    p: Mapped[float | None]
    effect: Mapped[float | None]
    from_training: Mapped[float | None]
    state: Mapped[DriftState] = mapped_column(String(16))


class WatchPicture(Base):
    """A picture of /watch, as SVG."""

    __tablename__ = "watch_pictures"

    site: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    data: Mapped[bytes]


class InUse(Base):
    """How often the model was right in use, by cells that were drawn and read blind: of a class its recall, of `` all cells.

    `low` and `high` are 99 % limits; a recall whose `high` is under the `floor` is an alarm.
    """

    __tablename__ = "accuracy_in_use"

    site: Mapped[str] = mapped_column(primary_key=True)
    model_version: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    cells: Mapped[int]
    right: Mapped[int]
    low: Mapped[float]
    high: Mapped[float]
    floor: Mapped[float | None]
    alarm: Mapped[bool]
    at: Mapped[datetime]


class WatchWord(Base):
    """A person's word that a site's cells from a day on are its usual state; never changed or deleted.

    One that `undoes` an earlier word takes it back.
    """

    __tablename__ = "watch_words"

    id: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str]
    model_version: Mapped[str]
    since: Mapped[str] = mapped_column(String(10))
    reason: Mapped[str]
    by: Mapped[str]
    at: Mapped[datetime]
    undoes: Mapped[int | None]


class WatchAlarm(Base):
    """An alarm of the watch, written together with the verdict that it follows from; `told_at` is empty until it was told.

    `what` names the measures that are not as usual, or the classes whose recall is under its floor.
    """

    __tablename__ = "watch_alarms"

    id: Mapped[int] = mapped_column(primary_key=True)
    event: Mapped[str] = mapped_column(String(32))
    site: Mapped[str]
    model_version: Mapped[str]
    day: Mapped[str] = mapped_column(String(10))
    what: Mapped[list[str]] = mapped_column(JSON)
    told_at: Mapped[datetime | None]
