"""What people say of a report and of its cells: in the record and in no result, so that a signed report stays signed."""

from datetime import UTC, datetime

from serving.reports.errors import NoSuchCell
from serving.reports.review import Action, locked
from serving.reports.store import Store
from serving.reports.tables import Comment, Report


def comment(store: Store, action: Action, text: str, position: int | None = None) -> Report:
    """Add a comment to a report, or to the cell at `position`; returns the report.

    Raises NoSuchReport, ChangedMeanwhile and NoSuchCell.
    """
    with store.writing() as session:
        report = locked(session, action.report_id, action.expected)
        if position is not None and position >= len(report.cells):
            raise NoSuchCell(position, len(report.cells))
        report.version += 1
        report.comments.append(
            Comment(
                position=position,
                text=text,
                by=action.person.by,
                caller=action.person.caller,
                at=datetime.now(UTC),
                version=report.version,
            )
        )
        session.flush()
    return report
