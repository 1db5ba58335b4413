"""Images become a report, or more cells of one: each file once, as many as the client means to send, of one specimen."""

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from serving.contract.schemas import Classified, Recounted, Result
from serving.contract.site import Site
from serving.contract.specimen import MOST_IMAGES, Specimen
from serving.inference.classify import Seen
from serving.inference.reading import Reading
from serving.reports.errors import (
    AnotherExpectation,
    AnotherModel,
    AnotherSpecimen,
    MoreThanAnnounced,
    MoreThanExpected,
    ReportFull,
)
from serving.reports.kept_images import fingerprints_of, keep, know_again
from serving.reports.recount import model_of, recount
from serving.reports.repeats import Placed, held, place
from serving.reports.review import Person, let_count, locked, look_for_images
from serving.reports.signing import refuse_added_to
from serving.reports.store import Store
from serving.reports.tables import Cell, Report

MOST_NAMED: Final = 100  # earlier reports of a specimen number


class Taken(NamedTuple):
    """A report that took in a request's images.

    `placed` says where they are. `recounted` is there where another model counted the whole report again.
    """

    report: Report
    placed: Placed
    recounted: Recounted | None = None


class Call(NamedTuple):
    """A request that adds to a report.

    `person` is whose key it came with, or the key's name. It may be a `repetition` of a request that came already: then what the
    report holds is not taken in again. Where another model began the report, `again` is what the model says of its images.
    """

    person: Person = Person("local", "local")
    repetition: bool = True
    again: Mapping[int, Seen] | None = None


REPEATED: Final = Call()


def take_in(store: Store, reading: Reading, specimen: Specimen, site: Site) -> Taken:
    """Keep what a model said as a preliminary report. The files are kept only where the site says so.

    Raises MoreThanAnnounced where there are more images than `specimen.expected_images`.
    """
    placed, now = place(reading.seen), datetime.now(UTC)
    refuse_too_many(len(placed.new), specimen)
    report = Report(
        id=uuid.uuid4().hex,
        version=1,
        status="preliminary",
        specimen_id=specimen.specimen_id,
        wbc_count=specimen.wbc_count,
        expected_images=specimen.expected_images,
        rendered=reading.rendered,
        model_name=reading.model.name,
        model_version=reading.model.version,
        confusion=None if reading.confusion is None else reading.confusion.tolist(),
        differential={"site_unknown": False},
        created_at=now,
        changed_at=now,
        corrections=[],
        changes=[],
        signatures=[],
        messages=[],
        comments=[],
        opinions=[],
    )
    report.cells = _cells(placed)
    let_count(report, site, reading.false_alarms)
    with store.writing() as session:
        session.add(report)
        _keep(session, report.cells, placed, reading, site)
        look_for_images(session, report)
    return Taken(report, placed)


def refuse_too_many(images: int, specimen: Specimen) -> None:
    """Raises MoreThanAnnounced for a first request of more images than it says that there are."""
    expected = specimen.expected_images
    if expected is not None and images > expected:
        raise MoreThanAnnounced(images, expected)


def add_cells(store: Store, report_id: str, reading: Reading, specimen: Specimen, site: Site, call: Call = REPEATED) -> Taken:
    """Add more cells of the same specimen to a report that nobody has signed; the differential is counted again.

    Raises NoSuchReport, AlreadySigned, AlreadyWithdrawn, AnotherSpecimen, AnotherExpectation and MoreThanExpected. Raises
    AnotherModel where the model has not seen the report's images again, and ReportFull beyond MOST_IMAGES.
    """
    with store.writing() as session:
        report = locked(session, report_id, None)
        refuse_added_to(report)
        _same_specimen(report, specimen)
        report.version += 1
        report.changed_at = datetime.now(UTC)
        recounted = None
        if (report.model_name, report.model_version) != (reading.model.name, reading.model.version):
            if call.again is None:
                raise AnotherModel(model_of(report), reading.model, report.id)
            recounted = recount(report, call.again, reading, call.person)
            know_again(session, report, {at: seen.fingerprint for at, seen in call.again.items()})
            session.flush()
        report.rendered = report.rendered or reading.rendered  # of one made before this was kept
        placed = place(reading.seen, held(report.cells, fingerprints_of(session, report.id)), call.repetition)
        _enough_room(report, len(placed.new))
        new = _cells(placed)
        report.cells += new
        let_count(report, site, reading.false_alarms)
        _keep(session, new, placed, reading, site)
        look_for_images(session, report)
    return Taken(report, placed, recounted)


def _same_specimen(report: Report, specimen: Specimen) -> None:
    """Take on how many images the report expects, where it does not know; raises AnotherSpecimen and AnotherExpectation."""
    for name in ("wbc_count", "specimen_id"):
        given = getattr(specimen, name)
        if given is not None and given != getattr(report, name):
            raise AnotherSpecimen(name)
    if specimen.expected_images is None:
        return
    if report.expected_images not in (None, specimen.expected_images):
        raise AnotherExpectation(report.expected_images, specimen.expected_images)
    report.expected_images = specimen.expected_images


def _enough_room(report: Report, more: int) -> None:
    images, expected = len(report.cells) + more, report.expected_images
    if images > MOST_IMAGES:
        raise ReportFull(MOST_IMAGES)
    if expected is not None and images > expected:
        raise MoreThanExpected(expected, len(report.cells), more)


def _cells(placed: Placed) -> list[Cell]:
    """The rows of the results that are new to the report."""
    return [_cell(placed.positions[number], placed.results[number]) for number in placed.new]


def _cell(position: int, result: Result) -> Cell:
    said = result if isinstance(result, Classified) else None
    return Cell(
        position=position,
        sha256=result.sha256,
        result=result.model_dump(mode="json"),
        label=None if said is None else said.label,
        twin=None if said is None else said.twin,
    )


def _keep(session: Session, cells: Sequence[Cell], placed: Placed, reading: Reading, site: Site) -> None:
    """Keep the images of the results that are new to the report."""
    files = [reading.files[number] for number in placed.new]
    keep(session, cells, files, [reading.seen[number].fingerprint for number in placed.new], site)
    session.flush()


def same_specimen(store: Store, report: Report) -> list[str]:
    """Ids of the reports that were made before of the same specimen number and are not withdrawn, the oldest first."""
    if report.specimen_id is None:
        return []
    query = select(Report.id).where(Report.specimen_id == report.specimen_id, Report.withdrawn_at.is_(None))
    query = query.where(Report.id != report.id)
    if report.version > 1:  # a new one is the last, even where the clock was ahead when another was made
        query = query.where(Report.created_at <= report.created_at)
    with store.writing() as session:  # of the transaction that the report is in
        return list(session.scalars(query.order_by(Report.created_at, Report.id).limit(MOST_NAMED)))
