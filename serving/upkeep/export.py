"""What people decided, as images and a manifest: the way of corrections back to `wbc ingest` and `wbc calibrate`.

A retraining takes the same decisions by itself where the site says so, and the cells that the service was unsure of.
"""

import csv
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from serving.reports.kept_images import images_of
from serving.reports.review import WHOLE
from serving.reports.signing import standing
from serving.reports.store import Store
from serving.reports.tables import Report
from wbc_model.core.classes import CLASS_INDEX
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.files import building
from wbc_model.core.structure import one_picture

MANIFEST: Final = "cells.csv"
COLUMNS: Final = ("path", "label", "group", "labelled_by", "labelled_at", "sha256", "model_label", "model_version", "report")
_ENDINGS: Final = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "TIFF": "tif"}


class Decided(NamedTuple):
    """A cell and the last decision of a person on it; `group` is the first report of its specimen."""

    sha256: str
    label: str
    group: str
    by: str
    at: datetime
    model_label: str
    model_version: str
    report: str
    position: int


class Unsure(NamedTuple):
    """A cell that the service wanted a person to look at, and nobody has decided on; `group` as in `Decided`."""

    sha256: str
    group: str
    report: str
    position: int


class Exported(NamedTuple):
    """How many cells were written, and how many of them a person only `confirmed`.

    The others were left out. `none`: a person counts them as none of the classes, or as one of the site's further kinds.
    `no_image`: their image is not kept. `superseded`: there is a later decision on their file.
    """

    cells: int
    confirmed: int
    none: int
    no_image: int
    superseded: int


def export(store: Store, out: Path, signed: bool = False) -> Exported:
    """Write the folder `out`: the manifest `cells.csv` and the images of all cells that a person gave a label, corrected or
    confirmed.

    An undone decision is none, and a withdrawn report has none; with `signed` only reports that are signed count. Raises
    WbcError where `out` is there already, and where nobody has decided on a cell whose image is kept.
    """
    if out.exists():
        raise WbcError(f"{out} is there already: name a folder that is not, so that nothing in it is lost")
    found, none, no_image = [], 0, 0
    for decided, kept in decisions(store, signed):
        if decided.label == "":
            none += 1
        elif not kept:
            no_image += 1
        else:
            found.append(decided)
    latest = {one.sha256: one for one in sorted(found, key=lambda one: one.at)}
    if not latest:
        raise WbcError(_nothing(none, no_image, signed))
    with building(out) as folder:
        _write(store, folder, [one for one in found if latest[one.sha256] is one])
    confirmed = sum(one.label == one.model_label for one in latest.values())
    return Exported(len(latest), confirmed, none, no_image, len(found) - len(latest))


def _nothing(none: int, no_image: int, signed: bool) -> str:
    if no_image:
        cells = counted(no_image, "cell")
        return f"the images of {cells} that a person gave a label are not kept: see keep_images in the site's file"
    which = "signed reports" if signed else "reports that are not withdrawn"
    left = f"; {none} were said to be none" if none else ""
    return f"no person has given a cell a label in {which}{left}: correct or confirm cells first"


def decisions(store: Store, signed: bool) -> Iterator[tuple[Decided, bool]]:
    """Each standing decision, and whether the image is kept; the earliest report first, one at a time.

    `label` is empty where the cell was said to be none of the classes.
    """
    for report, group in _reports(store):
        if signed and report.status == "preliminary":
            continue
        for position, decision in sorted(standing(report.corrections).items()):
            cell = report.cells[position]
            said, version = cell.result["label"], report.model_version
            label = decision.to_label if decision.to_label in CLASS_INDEX else ""
            decided = (cell.sha256, str(label), group, decision.by, decision.at, said, version, report.id, position)
            yield Decided(*decided), cell.has_image


def unsure(store: Store) -> Iterator[Unsure]:
    """The cells that the service wanted a person to look at, that nobody has decided on, and whose image is kept. They are of
    reports that are not withdrawn, signed or not."""
    for report, group in _reports(store):
        decided = standing(report.corrections)
        for cell in report.cells:
            if cell.label is not None and cell.has_image and cell.position not in decided and cell.result["review"]["required"]:
                yield Unsure(cell.sha256, group, report.id, cell.position)


def _reports(store: Store) -> Iterator[tuple[Report, str]]:
    """The reports that are not withdrawn, the earliest first, one at a time, each with the first report of its specimen."""
    first_of: dict[str, str] = {}
    with store.reading() as session:
        ids = list(session.scalars(select(Report.id).where(Report.withdrawn_at.is_(None)).order_by(Report.created_at, Report.id)))
    for id_ in ids:
        with store.reading() as session:
            report = session.get(Report, id_, options=WHOLE)
        if report is not None:
            yield report, first_of.setdefault(report.specimen_id, report.id) if report.specimen_id else report.id


def _write(store: Store, folder: Path, cells: list[Decided]) -> None:
    (folder / "images").mkdir()
    with (folder / MANIFEST).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for cell in cells:
            with store.reading() as session:
                path = write_image(session, cell, folder)
            moment = cell.at.isoformat(timespec="seconds")
            row = (path, cell.label, cell.group, cell.by, moment, cell.sha256, cell.model_label, cell.model_version, cell.report)
            writer.writerow(row)


def write_image(session: Session, cell: Decided | Unsure, folder: Path) -> str:
    """Write the kept file of a cell into `images/` of a folder, named by its content; returns its path there."""
    [data] = images_of(session, cell.report, [cell.position]).values()
    name = f"images/{cell.sha256}.{_ENDINGS[one_picture(data)]}"
    (folder / name).write_bytes(data)
    return name
