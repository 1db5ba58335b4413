"""Changes of a report as a whole, each with its reason: what was said of the specimen is put right; it is withdrawn, and the
withdrawal is taken back."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from serving.contract.site import Site
from serving.reports.errors import AlreadySigned, FewerThanHeld, NothingToChange, NotWithdrawn
from serving.reports.messages import announce_withdrawal
from serving.reports.review import Action, change, count_again, locked
from serving.reports.signing import refuse_withdrawn
from serving.reports.store import Store
from serving.reports.tables import Change, Report

WITHDRAWAL = "withdrawal"  # what was changed
WITHDRAWN = "withdrawn"  # what it was changed to


def put_right(store: Store, action: Action, fields: Mapping[str, Any], site: Site) -> Report:
    """Put fields right (`specimen_id`, `wbc_count`, `expected_images`), None where the value is not known; returns the report.

    Raises NoSuchReport, ChangedMeanwhile, AlreadyWithdrawn, NothingToChange, FewerThanHeld, and AlreadySigned unless it is an
    amendment.
    """
    with store.writing() as session:
        report = locked(session, action.report_id, action.expected)
        refuse_withdrawn(report)
        others = {name: value for name, value in fields.items() if value != getattr(report, name)}
        if not others:
            raise NothingToChange
        images = others.get("expected_images")
        if images is not None and images < len(report.cells):
            raise FewerThanHeld(len(report.cells), images)
        change(report, action.amend)
        for name, value in others.items():
            report.changes.append(record(report, action, name, getattr(report, name), value))
            setattr(report, name, value)
        report.differential = count_again(report, site).model_dump(mode="json")
        session.flush()
    return report


def withdraw(store: Store, action: Action, site: Site) -> Report:
    """Withdraw a report: it stays as it is, and nothing in it can be changed unless it is reinstated; returns it.

    Where a receiver was told of it, the message that takes it back enters the outbox in the same transaction. Raises
    NoSuchReport, ChangedMeanwhile, AlreadyWithdrawn, and AlreadySigned unless it is an amendment.
    """
    with store.writing() as session:
        report = locked(session, action.report_id, action.expected)
        refuse_withdrawn(report)
        if report.signatures and not action.amend:
            raise AlreadySigned("withdraw")
        report.version += 1
        report.changed_at = report.withdrawn_at = datetime.now(UTC)
        report.changes.append(record(report, action, WITHDRAWAL, report.status, WITHDRAWN))
        announce_withdrawal(report, action.person.by, action.reason, report.withdrawn_at, site)
        session.flush()
    return report


def reinstate(store: Store, action: Action) -> Report:
    """Take back the withdrawal of a report: it is preliminary, and must be signed (again); returns it.

    No message is made. A withdrawal that was sent stands with its receiver until the next signature corrects it. One that was
    not sent waits until that signature takes its place. Raises NoSuchReport, ChangedMeanwhile and NotWithdrawn.
    """
    with store.writing() as session:
        report = locked(session, action.report_id, action.expected)
        if report.withdrawn_at is None:
            raise NotWithdrawn
        report.withdrawn_at = None
        change(report, amend=True)
        report.changes.append(record(report, action, WITHDRAWAL, WITHDRAWN, report.status))
        session.flush()
    return report


def record(report: Report, action: Action, what: str, before: Any, after: Any) -> Change:
    """The entry for a change that makes the report's version."""
    return Change(
        what=what,
        from_value=before,
        to_value=after,
        reason=action.reason,
        by=action.person.by,
        caller=action.person.caller,
        at=report.changed_at,
        version=report.version,
    )
