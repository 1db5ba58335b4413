"""The worklist: which reports wait for whom, by a part of the specimen number and by date, and how many each shelf has."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import aliased

from serving.contract.report_schemas import SHELVES, Shelf
from serving.reports.listing import sent_images
from serving.reports.store import Store
from serving.reports.tables import Opinion, Report


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is looked for; None narrows nothing. `person` is whose second opinions the shelf `asked` holds."""

    shelf: Shelf = "all"
    specimen: str | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    person: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """What SQL asks of each report."""
        return [*self._found(), *([] if self.shelf == "all" else [on_shelf(self.shelf, self.person)])]

    def _found(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.specimen is not None:
            found.append(Report.specimen_id.icontains(self.specimen, autoescape=True))
        if self.created_from is not None:
            found.append(Report.created_at >= self.created_from)
        if self.created_before is not None:
            found.append(Report.created_at < self.created_before)
        return found

    def counts(self, store: Store) -> dict[Shelf, int]:
        """How many reports each shelf has of those that the search finds."""
        on_each = [func.count() if one == "all" else func.count().filter(on_shelf(one, self.person)) for one in SHELVES]
        with store.reading() as session:
            [row] = session.execute(select(*on_each).select_from(Report).where(*self._found()))
        return dict(zip(SHELVES, row, strict=True))


def on_shelf(shelf: Shelf, person: str | None) -> ColumnElement[bool]:
    """Whether a report belongs on a shelf other than `all`; on `asked` it is there beside its own."""
    if shelf == "asked":
        return _asked_of(person)
    if shelf == "withdrawn":
        return Report.withdrawn_at.is_not(None)
    stands = Report.withdrawn_at.is_(None)
    if shelf in ("final", "amended"):
        return stands & (Report.status == shelf)
    lacks_images = func.coalesce(Report.expected_images, 0) > sent_images()
    return stands & (Report.status == "preliminary") & (lacks_images if shelf == "incomplete" else ~lacks_images)


def _asked_of(person: str | None) -> ColumnElement[bool]:
    """Whether a person was asked for a second opinion, and neither has answered nor was told that it is not needed."""
    later = aliased(Opinion)
    ended = select(later.id).where(later.request == Opinion.id).exists()
    asked = (Opinion.report_id == Report.id) & (Opinion.step == "asked") & (Opinion.asked == (person or "")) & ~ended
    return select(Opinion.id).where(asked).correlate(Report).exists()
