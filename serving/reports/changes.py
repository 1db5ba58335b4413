"""Changes of a report as a whole, each with its reason: what was said of the specimen is put right; it is withdrawn, and the
withdrawal is taken back."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from serving.contract.problems import Problem
from serving.contract.site import Site
from serving.reports.messages import announce_withdrawal
from serving.reports.review import Person, change, count_again, locked
from serving.reports.signing import refuse_withdrawn
from serving.reports.store import Store
from serving.reports.tables import Change, Report

WITHDRAWAL = "withdrawal"  # what was changed
WITHDRAWN = "withdrawn"  # what it was changed to


class Why(NamedTuple):
    """Who changes a report, and for which reason."""

    person: Person
    reason: str


def put_right(
    store: Store, report_id: str, fields: Mapping[str, Any], why: Why, expected: int | None, amend: bool, site: Site
) -> Report:
    """Put fields right (`specimen_id`, `wbc_count`, `expected_images`), None where the value is not known; returns the report.

    Raises Problem: 404 for a report that is not there, 409 for one that says all of it already, is signed unless `amend`, has
    more images than it is to expect, or was withdrawn, 412.
    """
    with store.writing() as session:
        report = locked(session, report_id, expected)
        refuse_withdrawn(report)
        others = {name: value for name, value in fields.items() if value != getattr(report, name)}
        if not others:
            raise Problem(409, "nothing-to-change", "Nothing to change", "The report says so already.")
        images = others.get("expected_images")
        if images is not None and images < len(report.cells):
            detail = f"The report has {len(report.cells)} images already; it cannot expect {images}."
            raise Problem(409, "expected-images", "Another number of images", detail, field="expected_images")
        change(report, amend)
        for name, value in others.items():
            report.changes.append(record(report, name, getattr(report, name), value, why))
            setattr(report, name, value)
        report.differential = count_again(report, site).model_dump(mode="json")
        session.flush()
    return report


def withdraw(store: Store, report_id: str, why: Why, expected: int | None, amend: bool, site: Site) -> Report:
    """Withdraw a report: it stays as it is, and nothing in it can be changed unless it is reinstated; returns it. Where a
    receiver was told of it, the message that takes it back enters the outbox in the same transaction.

    Raises Problem: 404 for a report that is not there, 409 for one that was signed unless `amend`, or that was
    withdrawn, 412.
    """
    with store.writing() as session:
        report = locked(session, report_id, expected)
        refuse_withdrawn(report)
        if report.signatures and not amend:
            detail = "The report was signed. To withdraw it, send `amend: true`; who has received it must be told."
            raise Problem(409, "signed", "Signed", detail)
        report.version += 1
        report.changed_at = report.withdrawn_at = datetime.now(UTC)
        report.changes.append(record(report, WITHDRAWAL, report.status, WITHDRAWN, why))
        announce_withdrawal(report, why.person.by, why.reason, report.withdrawn_at, site)
        session.flush()
    return report


def reinstate(store: Store, report_id: str, why: Why, expected: int | None) -> Report:
    """Take back the withdrawal of a report: it is preliminary, and must be signed (again); returns it.

    No message is made: a withdrawal that was sent stands with its receiver until the next signature corrects it, one that was not
    waits until that signature takes its place. Raises Problem: 404 for a report that is not there, 409 for one that is not
    withdrawn, 412.
    """
    with store.writing() as session:
        report = locked(session, report_id, expected)
        if report.withdrawn_at is None:
            raise Problem(409, "not-withdrawn", "Not withdrawn", "The report is not withdrawn; there is nothing to take back.")
        report.withdrawn_at = None
        change(report, amend=True)
        report.changes.append(record(report, WITHDRAWAL, WITHDRAWN, report.status, why))
        session.flush()
    return report


def record(report: Report, what: str, before: Any, after: Any, why: Why) -> Change:
    """The entry for a change that makes the report's version."""
    return Change(
        what=what,
        from_value=before,
        to_value=after,
        reason=why.reason,
        by=why.person.by,
        caller=why.person.caller,
        at=report.changed_at,
        version=report.version,
    )
