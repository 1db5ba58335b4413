"""What happens to a report in the store: it is taken in, its cells are corrected, it is signed.

A report is `preliminary` until a person signs it, then `final`. A correction of a signed report has to be asked for as an
amendment; the report is `preliminary` again until it is signed, and then `amended`. Every correction and every signature stays,
the latter with the differential as it was signed. An undo is a correction, too, that names the one it takes back.
"""

from datetime import UTC, datetime
from typing import Final, NamedTuple

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.orm.attributes import set_committed_value

from serving.contract.differential import Differential, count_differential
from serving.contract.problems import Problem
from serving.contract.schemas import ReportStatus
from serving.contract.site import Site
from serving.reports.messages import announce_signature
from serving.reports.repeats import site_unknown
from serving.reports.signing import blocked, cannot_sign, refuse_withdrawn, stand, standing, waiting
from serving.reports.store import Store
from serving.reports.tables import Cell, Correction, Report, Signature

WHOLE = (
    selectinload(Report.cells),
    selectinload(Report.corrections),
    selectinload(Report.changes),
    selectinload(Report.signatures),
    selectinload(Report.messages),
)
MOST_NAMED: Final = 100  # earlier reports of a specimen number


class Person(NamedTuple):
    """Who acts: `by` as the person is named in the request, `caller` the name of the key that it came with."""

    by: str
    caller: str


def locked(session: Session, report_id: str, expected: int | None) -> Report:
    """The report, for this transaction alone to change; Problem 404 where there is none, 412 where it is another version."""
    report = session.get(Report, report_id, options=WHOLE, with_for_update={"of": Report})
    if report is None:
        raise no_report()
    if expected is not None and report.version != expected:
        detail = f"The report was changed meanwhile: it is at version {report.version}, not {expected}. Read it again."
        raise Problem(412, "changed-meanwhile", "Changed meanwhile", detail, {"ETag": f'"{report.version}"'})
    return report


def look_for_images(session: Session, report: Report) -> None:
    """Know again which cells have an image: the database computes it, so that a written row has lost it."""
    query = select(Cell.position, Cell.image_key).where(Cell.report_id == report.id)
    keys = dict(session.execute(query).tuples().all())
    for cell in report.cells:
        set_committed_value(cell, "image_key", keys[cell.position])


def no_report() -> Problem:
    """404."""
    return Problem(404, "no-such-report", "No such report", "There is no report with this id.")


def find(store: Store, report_id: str) -> Report:
    """A whole report; Problem 404 where there is none."""
    with store.reading() as session:
        report = session.get(Report, report_id, options=WHOLE)
    if report is None:
        raise no_report()
    return report


def correct(
    store: Store, report_id: str, position: int, label: str | None, person: Person, expected: int | None, amend: bool, site: Site
) -> Report:
    """Let a cell count as another class, as none (None), or confirm the one that it has; the differential is counted again.

    Returns the report as it is then. `expected` is the version that the person saw, None to correct whatever is there. Raises
    Problem: 404 for a report or cell that is not there, 409 for a rejected image, for a signed report unless `amend`, and for one
    that was withdrawn, 412.
    """
    with store.writing() as session:
        report = locked(session, report_id, expected)
        cell = _counted(report, position)
        change(report, amend)
        _decide(session, report, cell, label, None, person, site)
    return report


def undo(store: Store, report_id: str, position: int, person: Person, expected: int | None, amend: bool, site: Site) -> Report:
    """Take back the last correction of a cell that stands: it counts as it did before, and waits for a person if it did then.

    Returns the report as it is then. Raises Problem as `correct`, and 409 where no correction of the cell stands.
    """
    with store.writing() as session:
        report = locked(session, report_id, expected)
        refuse_withdrawn(report)
        cell = _counted(report, position)
        stack = [one for one in stand(report.corrections) if one.position == position]
        if not stack:
            raise Problem(409, "nothing-to-undo", "Nothing to undo", f"No correction of cell {position} is left to be undone.")
        change(report, amend)
        label = stack[-2].to_label if len(stack) > 1 else cell.result["label"]
        _decide(session, report, cell, label, stack[-1].id, person, site)
    return report


def _counted(report: Report, position: int) -> Cell:
    """A cell that can be counted; Problem 404 for one that is not there, 409 for an image that was rejected."""
    if not 0 <= position < len(report.cells):
        detail = f"The report has {len(report.cells)} cells, numbered from 0: there is no cell {position}."
        raise Problem(404, "no-such-cell", "No such cell", detail)
    if report.cells[position].result["status"] != "ok":
        raise Problem(409, "rejected-image", "Rejected image", f"Image {position} was rejected; it cannot be counted.")
    return report.cells[position]


def change(report: Report, amend: bool) -> None:
    """Make the next version of a report, open for a signature; Problem 409 where it was withdrawn, or signed unless `amend`."""
    refuse_withdrawn(report)
    if report.status != "preliminary" and not amend:
        detail = "The report is signed. To change it, send `amend: true`; it has to be signed again and is then an amended one."
        raise Problem(409, "signed", "Signed", detail)
    report.version += 1
    report.status = "preliminary"
    report.changed_at = datetime.now(UTC)


def _decide(
    session: Session, report: Report, cell: Cell, label: str | None, undoes: int | None, person: Person, site: Site
) -> None:
    report.corrections.append(
        Correction(
            position=cell.position,
            from_label=cell.label,
            to_label=label,
            undoes=undoes,
            by=person.by,
            caller=person.caller,
            at=report.changed_at,
            version=report.version,
        )
    )
    cell.label = label
    session.flush()
    session.refresh(cell, ["image_key"])  # computed by the database, so that a written row has lost it
    report.differential = count_again(report, site).model_dump(mode="json")


def count_again(report: Report, site: Site, false_alarms: float | None = None) -> Differential:
    """The differential of a report as its cells and its specimen are now; with the model's `false_alarms` it is looked anew at
    whether the site is unknown, a mark that stays once it was earned."""
    decided = standing(report.corrections)
    counted = [cell for cell in report.cells if cell.label is not None]
    to_review = len(waiting(counted, decided, site))
    confusion = None if report.confusion is None else np.array(report.confusion, np.int64)
    return count_differential(
        [str(cell.label) for cell in counted],
        confusion,
        site,
        report.wbc_count,
        to_review,
        [cell.position in decided for cell in counted],
        report.differential["site_unknown"] or site_unknown([cell.result for cell in report.cells], false_alarms),
        report.rendered,
    )


def changed_cells(report: Report) -> int:
    """How many cells count as something else than what the model said."""
    return sum(cell.result["status"] == "ok" and cell.label != cell.result["label"] for cell in report.cells)


def sign(store: Store, report_id: str, person: Person, expected: int | None, site: Site) -> Report:
    """Sign the report as it is; where the site has a receiver, its message enters the outbox in the same transaction.

    Returns the report as it is then. Raises Problem: 404 for a report that is not there, 409 for one that `blocked` keeps from
    being signed, 412.
    """
    with store.writing() as session:
        report = locked(session, report_id, expected)
        if blocks := blocked(report, site):
            raise cannot_sign(blocks)
        status: ReportStatus = "amended" if report.signatures else "final"
        now = datetime.now(UTC)
        report.version += 1
        report.status = status
        report.changed_at = now
        report.signatures.append(
            Signature(
                status=status,
                differential=report.differential,
                by=person.by,
                caller=person.caller,
                at=now,
                version=report.version,
            )
        )
        announce_signature(report, person.by, changed_cells(report), now, site)
    return report
