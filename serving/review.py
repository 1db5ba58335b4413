"""What happens to a report in the store: it is taken in, its cells are corrected, it is signed.

A report is `preliminary` until a person signs it, then `final`. A correction of a signed report has to be asked for as an
amendment; the report is `preliminary` again until it is signed, and then `amended`. Every correction and every signature stays,
the latter with the differential as it was signed.
"""

import base64
import secrets
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session, selectinload

from serving.differential import Differential, count_differential
from serving.hl7 import Signed, oru_r01
from serving.problems import Problem, too_large
from serving.schemas import Classified, ModelName, Result
from serving.site import Site
from serving.specimen import Specimen
from serving.store import Cell, Correction, Message, Report, Signature, Status, Store
from wbc_model.errors import WbcError

MOST_CELLS: Final = 4096  # in one report: ten times a long differential
WHOLE = (
    selectinload(Report.cells),
    selectinload(Report.corrections),
    selectinload(Report.signatures),
    selectinload(Report.messages),
)


class Person(NamedTuple):
    """Who acts: `by` as the person is named in the request, `caller` the name of the key that it came with."""

    by: str
    caller: str


def take_in(
    store: Store,
    results: Sequence[Result],
    files: Sequence[bytes],
    differential: Differential,
    confusion: NDArray[np.int64] | None,
    model: ModelName,
    specimen: Specimen,
    site: Site,
) -> str:
    """Keep an answer as a preliminary report; returns its id. The files are kept only where the site says so."""
    now = datetime.now(UTC)
    report = Report(
        id=uuid.uuid4().hex,
        version=1,
        status="preliminary",
        specimen_id=specimen.specimen_id,
        wbc_count=specimen.wbc_count,
        model_name=model.name,
        model_version=model.version,
        confusion=None if confusion is None else confusion.tolist(),
        differential=differential.model_dump(mode="json"),
        created_at=now,
        changed_at=now,
    )
    report.cells = [_cell(place, result, data, site) for place, (result, data) in enumerate(zip(results, files, strict=True))]
    with store.writing() as session:
        session.add(report)
    return report.id


def add_cells(
    store: Store,
    report_id: str,
    results: Sequence[Result],
    files: Sequence[bytes],
    model: ModelName,
    specimen: Specimen,
    site: Site,
    site_unknown: bool = False,
) -> Report:
    """Add more cells of the same specimen to a report that nobody has signed; the differential is counted again. The mark
    `site_unknown` stays once one request's cells have earned it.

    Raises Problem: 404 for a report that is not there, 409 for one that was signed, was counted by another model, or is of
    another specimen where `specimen` names one, 413 for one that would hold more than MOST_CELLS.
    """
    with store.writing() as session:
        report = _locked(session, report_id, None)
        if report.signatures:
            raise Problem(409, "signed", "Signed", "The report was signed; cells cannot be added to it. Make a new one.")
        if (report.model_name, report.model_version) != (model.name, model.version):
            detail = f"The report's cells were classified by {report.model_name} {report.model_version}, which serves no longer."
            raise Problem(409, "another-model", "Another model", f"{detail} Post all images again as a new report.")
        for name, given in specimen._asdict().items():
            if given is not None and given != getattr(report, name):
                detail = f"The report has another {name} than the request; leave the field out or make a new report."
                raise Problem(409, "another-specimen", "Another specimen", detail, field=name)
        if len(report.cells) + len(results) > MOST_CELLS:
            raise too_large(f"A report holds at most {MOST_CELLS} images.", MOST_CELLS)
        first = len(report.cells)
        report.cells += [
            _cell(first + at, result, data, site) for at, (result, data) in enumerate(zip(results, files, strict=True))
        ]
        report.version += 1
        report.changed_at = datetime.now(UTC)
        report.differential = _count_again(report, site, site_unknown).model_dump(mode="json")
    return report


def _cell(position: int, result: Result, data: bytes, site: Site) -> Cell:
    label = result.label if isinstance(result, Classified) else None
    return Cell(
        position=position,
        sha256=result.sha256,
        result=result.model_dump(mode="json"),
        label=label,
        image=data if label is not None and site.keep_images else None,
    )


def _locked(session: Session, report_id: str, expected: int | None) -> Report:
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
    Problem: 404 for a report or cell that is not there, 409 for a rejected image, for a signed report unless `amend`, and where
    no cell would be left, 412.
    """
    with store.writing() as session:
        report = _locked(session, report_id, expected)
        if not 0 <= position < len(report.cells):
            detail = f"The report has {len(report.cells)} cells, numbered from 0: there is no cell {position}."
            raise Problem(404, "no-such-cell", "No such cell", detail)
        cell = report.cells[position]
        if cell.result["status"] != "ok":
            raise Problem(409, "rejected-image", "Rejected image", f"Image {position} was rejected; it cannot be counted.")
        if report.status != "preliminary" and not amend:
            detail = (
                "The report is signed. To correct it, send `amend: true`; it has to be signed again and is then an amended one."
            )
            raise Problem(409, "signed", "Signed", detail)
        now = datetime.now(UTC)
        report.version += 1
        report.status = "preliminary"
        report.changed_at = now
        report.corrections.append(
            Correction(
                position=position,
                from_label=cell.label,
                to_label=label,
                by=person.by,
                caller=person.caller,
                at=now,
                version=report.version,
            )
        )
        cell.label = label
        report.differential = _count_again(report, site).model_dump(mode="json")
        session.flush()
        session.refresh(cell, ["has_image"])  # computed by the database, so that a written row has lost it
    return report


def _count_again(report: Report, site: Site, site_unknown: bool = False) -> Differential:
    seen = {correction.position for correction in report.corrections}
    counted = [cell for cell in report.cells if cell.label is not None]
    to_review = sum(cell.result["review"]["required"] for cell in counted if cell.position not in seen)
    confusion = None if report.confusion is None else np.array(report.confusion, np.int64)
    try:
        return count_differential(
            [str(cell.label) for cell in counted],
            confusion,
            site,
            report.wbc_count,
            to_review,
            [cell.position in seen for cell in counted],
            site_unknown or report.differential["site_unknown"],
        )
    except WbcError as error:
        raise Problem(409, "no-cell-left", "No cell left", f"The correction cannot be made: {error}.") from None


def changed_cells(report: Report) -> int:
    """How many cells count as something else than what the model said."""
    return sum(cell.result["status"] == "ok" and cell.label != cell.result["label"] for cell in report.cells)


def sign(store: Store, report_id: str, person: Person, expected: int | None, site: Site) -> Report:
    """Sign the report as it is; where the site has a receiver, its message enters the outbox in the same transaction.

    Returns the report as it is then. Raises Problem: 404 for a report that is not there, 409 for one that is signed and
    unchanged since, 412.
    """
    with store.writing() as session:
        report = _locked(session, report_id, expected)
        if report.status != "preliminary":
            raise Problem(409, "signed", "Signed", "The report is signed and has not been changed since.")
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
