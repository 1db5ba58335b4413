"""What happens to a report in the store: it is taken in, its cells are corrected, it is signed.

A report is `preliminary` until a person signs it, then `final`. A correction of a signed report has to be asked for as an
amendment; the report is `preliminary` again until it is signed, and then `amended`. Every correction and every signature stays,
the latter with the differential as it was signed. An undo is a correction, too, that names the one it takes back.
"""

import base64
import secrets
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from serving.differential import Differential, count_differential
from serving.hl7 import Signed, oru_r01
from serving.problems import Problem, bad_field, too_large
from serving.repeats import Placed, held, place
from serving.schemas import Classified, ModelName, Result
from serving.signing import blocked, cannot_sign, refuse_withdrawn
from serving.site import Site
from serving.specimen import EXPECTED_IMAGES, MOST_IMAGES, Specimen
from serving.store import Cell, Correction, Message, Report, Signature, Status, Store

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


class Reading(NamedTuple):
    """What a model said of the files of one request. `site_unknown`: too many of them look like no site that it knows."""

    results: Sequence[Result]
    files: Sequence[bytes]
    model: ModelName
    confusion: NDArray[np.int64] | None
    site_unknown: bool = False
    rendered: bool = False


def take_in(store: Store, reading: Reading, specimen: Specimen, site: Site) -> tuple[Report, Placed]:
    """Keep what a model said as a preliminary report. The files are kept only where the site says so.

    Raises Problem 422 where there are more images than `specimen.expected_images`.
    """
    placed, now = place(reading.results), datetime.now(UTC)
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
        differential={"site_unknown": reading.site_unknown},
        created_at=now,
        changed_at=now,
        corrections=[],
        changes=[],
        signatures=[],
        messages=[],
    )
    report.cells = _cells(placed, reading, site)
    report.differential = count_again(report, site).model_dump(mode="json")
    with store.writing() as session:
        session.add(report)
        session.flush()
        for cell in report.cells:
            session.refresh(cell, ["has_image"])
    return report, placed


def refuse_too_many(images: int, specimen: Specimen) -> None:
    """Raises Problem 422 for a first request of more images than it says that there are."""
    expected = specimen.expected_images
    if expected is not None and images > expected:
        raise bad_field(EXPECTED_IMAGES, f"{EXPECTED_IMAGES!r} is {expected}, and the request has {images} images.")


def add_cells(
    store: Store, report_id: str, reading: Reading, specimen: Specimen, site: Site, repetition: bool = True
) -> tuple[Report, Placed]:
    """Add more cells of the same specimen to a report that nobody has signed; the differential is counted again. The mark
    `site_unknown` stays once one request's cells have earned it. With `repetition` the request may be one that came already:
    what the report holds is not taken in again.

    Raises Problem: 404 for a report that is not there, 409 for one that was signed or withdrawn, was counted by another model, is
    of another specimen where `specimen` names one, or expects fewer images, 413 for one that would hold more than MOST_IMAGES.
    """
    with store.writing() as session:
        report = locked(session, report_id, None)
        refuse_withdrawn(report)
        if report.signatures:
            raise Problem(409, "signed", "Signed", "The report was signed; cells cannot be added to it. Make a new one.")
        if (report.model_name, report.model_version) != (reading.model.name, reading.model.version):
            detail = f"The report's cells were classified by {report.model_name} {report.model_version}, which serves no longer."
            raise Problem(409, "another-model", "Another model", f"{detail} Post all images again as a new report.")
        _same_specimen(report, specimen)
        placed = place(reading.results, held(report.cells), repetition)
        _enough_room(report, len(placed.new))
        report.cells += _cells(placed, reading, site)
        report.version += 1
        report.changed_at = datetime.now(UTC)
        report.differential = count_again(report, site, reading.site_unknown).model_dump(mode="json")
        session.flush()
        for cell in report.cells[len(report.cells) - len(placed.new) :]:
            session.refresh(cell, ["has_image"])
    return report, placed


def _same_specimen(report: Report, specimen: Specimen) -> None:
    """Take on what the report does not know of the specimen yet: how many images it expects; Problem 409 where they differ."""
    for name in ("wbc_count", "specimen_id"):
        given = getattr(specimen, name)
        if given is not None and given != getattr(report, name):
            detail = f"The report has another {name} than the request; leave the field out or make a new report."
            raise Problem(409, "another-specimen", "Another specimen", detail, field=name)
    if specimen.expected_images is None:
        return
    if report.expected_images not in (None, specimen.expected_images):
        detail = f"The report expects {report.expected_images} images and the request says {specimen.expected_images}."
        raise Problem(
            409, "expected-images", "Another number of images", f"{detail} Put it right with PATCH.", field=EXPECTED_IMAGES
        )
    report.expected_images = specimen.expected_images


def _enough_room(report: Report, more: int) -> None:
    images, expected = len(report.cells) + more, report.expected_images
    if images > MOST_IMAGES:
        raise too_large(f"A report holds at most {MOST_IMAGES} images.", MOST_IMAGES)
    if expected is not None and images > expected:
        detail = (
            f"The report expects {expected} images and has {len(report.cells)}; {more} more are too many. Send only those that "
            f"it does not hold, or put {EXPECTED_IMAGES} right with PATCH."
        )
        raise _other_number(detail)


def _other_number(detail: str) -> Problem:
    return Problem(409, "expected-images", "Another number of images", detail, field=EXPECTED_IMAGES)


def _cells(placed: Placed, reading: Reading, site: Site) -> list[Cell]:
    """The rows of the results that are new to the report."""
    return [_cell(placed.positions[number], placed.results[number], reading.files[number], site) for number in placed.new]


def _cell(position: int, result: Result, data: bytes, site: Site) -> Cell:
    label = result.label if isinstance(result, Classified) else None
    return Cell(
        position=position,
        sha256=result.sha256,
        result=result.model_dump(mode="json"),
        label=label,
        twin=result.twin if isinstance(result, Classified) else None,
        image=data if label is not None and site.keep_images else None,
    )


def same_specimen(store: Store, report: Report) -> list[str]:
    """Ids of the reports that were made before of the same specimen number and are not withdrawn, the oldest first."""
    if report.specimen_id is None:
        return []
    query = select(Report.id).where(Report.specimen_id == report.specimen_id, Report.withdrawn_at.is_(None))
    query = query.where(Report.created_at <= report.created_at, Report.id != report.id)
    with store.writing() as session:  # of the transaction that the report is in
        return list(session.scalars(query.order_by(Report.created_at, Report.id).limit(MOST_NAMED)))


def locked(session: Session, report_id: str, expected: int | None) -> Report:
    """The report, for this transaction alone to change; Problem 404 where there is none, 412 where it is another version."""
    report = session.get(Report, report_id, options=WHOLE, with_for_update={"of": Report})
    if report is None:
        raise no_report()
    if expected is not None and report.version != expected:
        detail = f"The report was changed meanwhile: it is at version {report.version}, not {expected}. Read it again."
        raise Problem(412, "changed-meanwhile", "Changed meanwhile", detail, {"ETag": f'"{report.version}"'})
    return report


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
        cell = _counted(report, position)
        stack = [one for one in _stand(report.corrections) if one.position == position]
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
    session.refresh(cell, ["has_image"])  # computed by the database, so that a written row has lost it
    report.differential = count_again(report, site).model_dump(mode="json")


def _stand(corrections: Iterable[Correction]) -> list[Correction]:
    """Those that are no undo and were not undone, in their order."""
    corrections = list(corrections)
    undone = {one.undoes for one in corrections}
    return [one for one in corrections if one.undoes is None and one.id not in undone]


def standing(corrections: Iterable[Correction]) -> dict[int, Correction]:
    """By the position of a cell, the correction that its label comes from: only these cells were decided by a person."""
    return {one.position: one for one in _stand(corrections)}


def count_again(report: Report, site: Site, site_unknown: bool = False) -> Differential:
    """The differential of a report as its cells and its specimen are now."""
    decided = standing(report.corrections)
    counted = [cell for cell in report.cells if cell.label is not None]
    to_review = sum(cell.result["review"]["required"] for cell in counted if cell.position not in decided)
    confusion = None if report.confusion is None else np.array(report.confusion, np.int64)
    return count_differential(
        [str(cell.label) for cell in counted],
        confusion,
        site,
        report.wbc_count,
        to_review,
        [cell.position in decided for cell in counted],
        site_unknown or report.differential["site_unknown"],
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
        status: Status = "amended" if report.signatures else "final"
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
        if site.hl7 is not None:
            report.messages.append(_message(report, person, now, site))
    return report


def _message(report: Report, person: Person, now: datetime, site: Site) -> Message:
    control_id = base64.b32encode(secrets.token_bytes(12)).decode().rstrip("=")
    signed = Signed(
        report_id=report.id,
        status=report.status,
        specimen_id=report.specimen_id,
        model=ModelName(name=report.model_name, version=report.model_version),
        by=person.by,
        analysed=report.created_at,
        signed=now,
        corrected=changed_cells(report),
    )
    text = oru_r01(Differential.model_validate(report.differential), signed, control_id, site)
    return Message(control_id=control_id, text=text, not_before=now, created_at=now)
