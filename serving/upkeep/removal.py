"""Removing a report: nothing of it stays but the record that it was removed, by whom and why.

The audit log names images by their digests and reports by their ids, never a specimen: its chain stays as it is.
"""

import asyncio
import re
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from serving.contract.names import NAME, trimmed
from serving.reports.errors import NoSuchReport
from serving.reports.kept_images import let_cells_leave
from serving.reports.store import Store
from serving.reports.tables import Base, Cell, Deed, Message, Removal, Report
from serving.security.audit import AuditLog, InUse, outcome
from serving.upkeep.deeds import complete
from wbc_model.core.errors import WbcError

GONE: Final = 410  # the status of an answer that spoke of a removed report; it has no body
OPERATOR: Final = "operator"  # who acts on the command line
AT_A_TIME: Final = 100  # answers that are looked through


def reports_of(store: Store, specimen_id: str) -> list[str]:
    """The ids of all reports of a specimen number, the oldest first."""
    with store.reading() as session:
        query = select(Report.id).where(Report.specimen_id == specimen_id).order_by(Report.created_at, Report.id)
        return list(session.scalars(query))


def cells_of(store: Store, reports: Sequence[str]) -> set[str]:
    """The SHA-256 of all images of these reports."""
    with store.reading() as session:
        return set(session.scalars(select(Cell.sha256).where(Cell.report_id.in_(reports))))


class Removed(NamedTuple):
    """The record of a removal, and how many messages of the report went with it that had not reached the hospital's system."""

    record: Removal
    unsent: int


def remove(store: Store, report_id: str, by: str, reason: str) -> Removed:
    """Remove a report with its cells, images, signatures and messages, in one transaction. Its cells leave the queues that
    readers are asked from, and their images with them.

    Answers that were kept for a repetition of a call and that speak of the report are GONE. Raises NoSuchReport.
    """
    with store.writing() as session:
        report = session.get(Report, report_id, with_for_update=True)
        if report is None:
            raise NoSuchReport
        session.expunge(report)
        if store.file is not None:
            session.connection().exec_driver_sql("PRAGMA secure_delete = ON")  # what is deleted is overwritten with zeros
        removal = Removal(report_id=report_id, reason=reason, by=by, at=datetime.now(UTC))
        session.add(removal)
        unsent = _unsent(session, report_id)
        let_cells_leave(session, report)
        session.flush()  # the database deletes what people did only after this
        for table in reversed(Base.metadata.sorted_tables):
            if table.name != Removal.__tablename__ and "report_id" in table.columns:
                session.execute(delete(table).where(table.c.report_id == report_id))
        session.execute(delete(Report).where(Report.id == report_id))
        _forget_answers(session, report_id)
    return Removed(removal, unsent)


def _unsent(session: Session, report_id: str) -> int:
    waits = (Message.report_id == report_id) & Message.state.in_(["pending", "failed"])
    return session.scalar(select(func.count()).select_from(Message).where(waits)) or 0


def remove_here(store: Store, log: Path, reports: Sequence[str], by: str, reason: str) -> list[Removed]:
    """Remove reports while no service runs, each with its lines in the audit log: the intention first, then the deed, then the
    outcome with who and why.

    Raises WbcError where the log or the store is in use and where a name or a reason is none. Of its kind are NoSuchReport and
    LogNotWritable.
    """
    for what, given in (("--by", by), ("--reason", reason)):
        if not re.search(NAME, given):
            raise WbcError(f"{what}: give a line with something to see in it")
    try:
        audit = AuditLog(log)
    except InUse:
        raise WbcError(f"a service is running (it writes to {log}): stop it, or ask it: DELETE /v1/reports/ID") from None
    try:
        with store.held(alone=True):
            complete(audit, store)
            return [asyncio.run(_audited(store, audit, report, trimmed(by), trimmed(reason))) for report in reports]
    finally:
        audit.close()
        store.close_for_good()  # nothing of it stays in SQLite's write-ahead log either


async def _audited(store: Store, audit: AuditLog, report: str, by: str, reason: str) -> Removed:
    call = f"DELETE /v1/reports/{report}"
    intention = await audit.intend(OPERATOR, call)
    record = outcome(OPERATOR, call, None, (), None, None)
    try:
        with store.writing() as session:
            removed = remove(store, report, by, reason)
            done = {**outcome(OPERATOR, call, 200, (), None, None), "by": by, "reason": reason}
            session.add(_deed(intention, done))
        record = done
    finally:
        await audit.conclude(intention, record)
    return removed


def _deed(intention: str, record: dict[str, Any]) -> Deed:
    now = datetime.now(UTC)
    return Deed(intention=intention, caller=OPERATOR, digest="", status=200, headers={}, body=b"", record=record, at=now)


def _forget_answers(session: Session, report_id: str) -> None:
    for deed in _deeds(session):
        if report_id in deed.record["call"] or (deed.body and report_id.encode() in zlib.decompress(deed.body)):
            deed.status, deed.headers, deed.body = GONE, {}, zlib.compress(b"")
    session.flush()


def _deeds(session: Session) -> Iterator[Deed]:
    names = list(session.scalars(select(Deed.intention).where(Deed.key.is_not(None))))
    for start in range(0, len(names), AT_A_TIME):
        yield from session.scalars(select(Deed).where(Deed.intention.in_(names[start : start + AT_A_TIME])))
