"""What happens to a report in the store: it is taken in, its cells are corrected, it is signed.

A report is `preliminary` until a person signs it, then `final`. A correction of a signed report has to be asked for as an
amendment; the report is `preliminary` again until it is signed, and then `amended`. Every correction and every signature stays,
the latter with the differential as it was signed. An undo is a correction, too, that names the one it takes back. A change of a
report as a whole has its reason: what was said of the specimen is put right; it is withdrawn, and the withdrawal is taken back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import numpy as np
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.orm.attributes import set_committed_value

from serving.contract.differential import Circumstances, Differential, count_differential
from serving.contract.schemas import ReportStatus
from serving.contract.site import Site
from serving.reports.errors import (
    AlreadySigned,
    ChangedMeanwhile,
    FewerThanHeld,
    NoSuchCell,
    NoSuchReport,
    NothingToChange,
    NothingToUndo,
    NotSignable,
    NotWithdrawn,
    RejectedCell,
    UnknownLabel,
)
from serving.reports.messages import announce_signature, announce_withdrawal
from serving.reports.repeats import site_unknown
from serving.reports.signing import blocked, refuse_withdrawn, stand, standing, waiting
from serving.reports.store import Store
from serving.reports.tables import Cell, Change, Correction, Report, Signature
from wbc_model.core.classes import CLASS_INDEX, CLASSES

WHOLE = (
    selectinload(Report.cells),
    selectinload(Report.corrections),
    selectinload(Report.changes),
    selectinload(Report.signatures),
    selectinload(Report.messages),
    selectinload(Report.comments),
    selectinload(Report.opinions),
)
SETTINGS: Final = "settings"  # beside a kept differential: the digest of those that it was counted by
# The draws behind these limits may differ in their last digits from one processor to the next; no setting changes them.
BY_THE_PROCESSOR: Final[Any] = {"classes": {"__all__": {"corrected": True, "absolute": {"corrected"}}}}
MOST_NAMED: Final = 100  # earlier reports of a specimen number
WITHDRAWAL = "withdrawal"  # what was changed
WITHDRAWN = "withdrawn"  # what it was changed to


class Person(NamedTuple):
    """Who acts: `by` as the person is named in the request, `caller` the name of the key that it came with."""

    by: str
    caller: str


@dataclass(frozen=True)
class Action:
    """What a person asks of a report.

    `expected` is the version that the person saw, None to act on whatever is there. `amend` lets a signed report be changed.
    `reason` stays with the changes that need one.
    """

    report_id: str
    person: Person
    expected: int | None = None
    amend: bool = False
    reason: str = ""


def locked(session: Session, report_id: str, expected: int | None) -> Report:
    """The report, for this transaction alone to change; raises NoSuchReport, and ChangedMeanwhile unless it is as `expected`."""
    report = session.get(Report, report_id, options=WHOLE, with_for_update={"of": Report})
    if report is None:
        raise NoSuchReport
    if expected is not None and report.version != expected:
        raise ChangedMeanwhile(report.version, expected)
    return report


def look_for_images(session: Session, report: Report) -> None:
    """Read anew which cells have an image: the database computes it, and a row that was written has lost it."""
    query = select(Cell.position, Cell.image_key).where(Cell.report_id == report.id)
    keys = dict(session.execute(query).tuples().all())
    for cell in report.cells:
        set_committed_value(cell, "image_key", keys[cell.position])


def find(store: Store, report_id: str) -> Report:
    """A whole report; raises NoSuchReport."""
    with store.reading() as session:
        report = session.get(Report, report_id, options=WHOLE)
    if report is None:
        raise NoSuchReport
    return report


def correct(store: Store, action: Action, position: int, label: str | None, site: Site) -> Report:
    """Let a cell count as another class, as none (None), or confirm the one that it has; the differential is counted again.

    One of the site's further kinds is counted beside it. Returns the report as it is then. Raises UnknownLabel, NoSuchReport,
    ChangedMeanwhile, NoSuchCell, RejectedCell, AlreadyWithdrawn, and AlreadySigned unless it is an amendment.
    """
    if label is not None and label not in CLASS_INDEX and site.further_kind(label) is None:
        raise UnknownLabel(label, [*CLASSES, *(kind.name for kind in site.labelling.further_kinds)])
    with store.writing() as session:
        report = locked(session, action.report_id, action.expected)
        cell = _counted(report, position)
        change(report, action.amend)
        _decide(session, report, cell, _correction(report, cell, action.person, label), site)
    return report


def undo(store: Store, action: Action, position: int, site: Site) -> Report:
    """Take back the last correction of a cell that stands: it counts as it did before, and waits for a person if it did then.

    Returns the report as it is then. Raises as `correct`, and NothingToUndo where no correction of the cell stands.
    """
    with store.writing() as session:
        report = locked(session, action.report_id, action.expected)
        refuse_withdrawn(report)
        cell = _counted(report, position)
        stack = [one for one in stand(report.corrections) if one.position == position]
        if not stack:
            raise NothingToUndo(position)
        change(report, action.amend)
        label = stack[-2].to_label if len(stack) > 1 else cell.result["label"]
        _decide(session, report, cell, _correction(report, cell, action.person, label, undoes=stack[-1].id), site)
    return report


def _counted(report: Report, position: int) -> Cell:
    """A cell that can be counted; raises NoSuchCell and RejectedCell."""
    if not 0 <= position < len(report.cells):
        raise NoSuchCell(position, len(report.cells))
    if report.cells[position].result["status"] != "ok":
        raise RejectedCell(position)
    return report.cells[position]


def change(report: Report, amend: bool) -> None:
    """Make the next version of a report, open for a signature; raises AlreadyWithdrawn, and AlreadySigned unless `amend`."""
    refuse_withdrawn(report)
    if report.status != "preliminary" and not amend:
        raise AlreadySigned("change")
    report.version += 1
    report.status = "preliminary"
    report.changed_at = datetime.now(UTC)


def _correction(report: Report, cell: Cell, person: Person, label: str | None, undoes: int | None = None) -> Correction:
    return Correction(
        position=cell.position,
        from_label=cell.label,
        to_label=label,
        undoes=undoes,
        by=person.by,
        caller=person.caller,
        at=report.changed_at,
        version=report.version,
    )


def _decide(session: Session, report: Report, cell: Cell, correction: Correction, site: Site) -> None:
    report.corrections.append(correction)
    cell.label = correction.to_label
    session.flush()
    session.refresh(cell, ["image_key"])  # the database computes it, and a row that was written has lost it
    let_count(report, site)


def count_again(report: Report, site: Site, false_alarms: float | None = None) -> Differential:
    """The differential of a report as its cells and its specimen are now.

    With the model's `false_alarms` it is asked again whether the site is unknown; a report that earned this mark keeps it.
    """
    decided = standing(report.corrections)
    counted = [cell for cell in report.cells if cell.label in CLASS_INDEX]
    circumstances = Circumstances(
        wbc_count=report.wbc_count,
        to_review=len(waiting(counted, decided, site)),
        by_person=[cell.position in decided for cell in counted],
        site_unknown=report.differential["site_unknown"] or site_unknown([cell.result for cell in report.cells], false_alarms),
        rendered=report.rendered,
        further=[cell.label for cell in report.cells if cell.label is not None and cell.label not in CLASS_INDEX],
    )
    confusion = None if report.confusion is None else np.array(report.confusion, np.int64)
    return count_differential([str(cell.label) for cell in counted], confusion, site, circumstances)


def let_count(report: Report, site: Site, false_alarms: float | None = None) -> None:
    """Count a report again as `count_again` does, and keep by which settings of the site that was."""
    counted = count_again(report, site, false_alarms)
    report.differential = {**counted.model_dump(mode="json"), SETTINGS: site.digest()}


def by_other_settings(site: Site) -> Sequence[ColumnElement[bool]]:
    """That nobody has signed a report as it is, and that it was counted by other settings than these."""
    others = Report.differential[SETTINGS].as_string().is_distinct_from(site.digest())
    return Report.status == "preliminary", Report.withdrawn_at.is_(None), others


def follow(store: Store, report_id: str, site: Site) -> bool:
    """Count a report again that nobody has signed as it is, where the settings of the site have changed since.

    Returns whether it came out otherwise. It then has a new version, so that nobody signs it who saw the one before.
    """
    wanted = select(Report).where(Report.id == report_id, *by_other_settings(site))
    with store.reading() as session:  # which is all that most need
        if session.scalar(wanted) is None:
            return False
    with store.writing() as session:
        report = session.scalar(wanted.with_for_update())
        if report is None:  # meanwhile somebody else has seen to it
            return False
        before = Differential.model_validate(report.differential)
        let_count(report, site)
        now = Differential.model_validate(report.differential)
        changed = now.model_dump(exclude=BY_THE_PROCESSOR) != before.model_dump(exclude=BY_THE_PROCESSOR)
        if changed:
            report.version += 1
            report.changed_at = datetime.now(UTC)
    return changed


def changed_cells(report: Report) -> int:
    """How many cells count as something else than what the model said."""
    return sum(cell.result["status"] == "ok" and cell.label != cell.result["label"] for cell in report.cells)


def sign(store: Store, action: Action, site: Site) -> Report:
    """Sign the report as it is; where the site has a receiver, its message enters the outbox in the same transaction.

    Returns the report as it is then. Raises NoSuchReport, ChangedMeanwhile, and NotSignable where `blocked` has reasons.
    """
    with store.writing() as session:
        report = locked(session, action.report_id, action.expected)
        if blocks := blocked(report, site):
            raise NotSignable(blocks)
        status: ReportStatus = "amended" if report.signatures else "final"
        now = datetime.now(UTC)
        report.version += 1
        report.status = status
        report.changed_at = now
        report.signatures.append(
            Signature(
                status=status,
                differential=report.differential,
                by=action.person.by,
                caller=action.person.caller,
                at=now,
                version=report.version,
            )
        )
        announce_signature(report, action.person.by, changed_cells(report), now, site)
    return report


# --- changes of a report as a whole -----------------------------------------------------------------------------------------


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
        let_count(report, site)
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
