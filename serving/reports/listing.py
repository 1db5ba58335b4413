"""Which reports there are: by status, specimen number and model, the newest first."""

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple, Protocol

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import defer, selectinload

from serving.contract.schemas import ModelName, ReportStatus
from serving.reports.errors import NoSuchReport
from serving.reports.store import Store
from serving.reports.tables import Cell, Report, Signature

Wanted = Literal["open", "preliminary", "final", "amended", "withdrawn", "all"]
AT_A_TIME: Final = 200
_STATUSES: Final[dict[Wanted, tuple[ReportStatus, ...]]] = {
    "open": ("preliminary",),
    "preliminary": ("preliminary",),
    "final": ("final",),
    "amended": ("amended",),
}


class Conditions(Protocol):
    """What narrows a list of reports."""

    def conditions(self) -> list[ColumnElement[bool]]:
        """What SQL asks of each report."""
        ...


class Filter(NamedTuple):
    """Which reports; None filters nothing, but that without any filter only those that wait for a signature are meant.

    `model`: a version. `signed`: whether somebody ever signed it, even if it was changed or withdrawn since.
    """

    status: Wanted | None = None
    specimen_id: str | None = None
    model: str | None = None
    signed: bool | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """What SQL asks of each report."""
        found: list[ColumnElement[bool]] = []
        status = self.status or ("open" if self == Filter() else "all")
        if status == "withdrawn":
            found.append(Report.withdrawn_at.is_not(None))
        elif status != "all":
            found += [Report.status.in_(_STATUSES[status]), Report.withdrawn_at.is_(None)]
        if self.specimen_id is not None:
            found.append(Report.specimen_id == self.specimen_id)
        if self.model is not None:
            found.append(Report.model_version == self.model)
        if self.signed is not None:
            signed = select(Signature.id).where(Signature.report_id == Report.id).exists()
            found.append(signed if self.signed else ~signed)
        return found


def listed(
    store: Store, wanted: Conditions, limit: int, before: str | None = None
) -> tuple[list[tuple[Report, int]], str | None]:
    """At most `limit` reports, each with how many images it has, and the id to give as `before` for those that follow.

    Raises NoSuchReport where `before` is no report.
    """
    query: Select[tuple[Report, int]] = select(Report, sent_images()).where(*wanted.conditions())
    query = query.order_by(Report.created_at.desc(), Report.id.desc())
    loaded = (selectinload(Report.signatures), selectinload(Report.comments), selectinload(Report.opinions))
    query = query.options(*loaded, defer(Report.confusion)).limit(limit + 1)
    with store.reading() as session:
        if before is not None:
            last = session.get(Report, before)
            if last is None:
                raise NoSuchReport
            same_time = (Report.created_at == last.created_at) & (Report.id < last.id)
            query = query.where((Report.created_at < last.created_at) | same_time)
        found = [(report, images) for report, images in session.execute(query)]
    return found[:limit], found[limit - 1][0].id if len(found) > limit else None


def all_listed(store: Store, wanted: Filter) -> Iterator[tuple[Report, int]]:
    """All reports, some at a time, each with how many images it has."""
    before = None
    while True:
        found, before = listed(store, wanted, AT_A_TIME, before)
        yield from found
        if before is None:
            return


def models_of_open_reports(store: Store) -> list[ModelName]:
    """The models of the reports to which cells may still be added."""
    signed = select(Signature.id).where(Signature.report_id == Report.id).exists()
    query = select(Report.model_name, Report.model_version).where(Report.withdrawn_at.is_(None), ~signed).distinct()
    with store.reading() as session:
        return [ModelName(name=name, version=version) for name, version in session.execute(query)]


def sent_images() -> ColumnElement[int]:
    """How many images of a report have come."""
    return select(func.count()).select_from(Cell).where(Cell.report_id == Report.id).correlate(Report).scalar_subquery()
