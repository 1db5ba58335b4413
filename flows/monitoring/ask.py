"""What an alarm asks of people: labels of the site's cells since then, by `wbc onboard`."""

import csv
import shutil
from datetime import UTC, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flows.labelling.store import meeting_store
from flows.notify import announce
from flows.progress import Progress
from wbc_model.core.errors import WbcError, counted

if TYPE_CHECKING:
    from serving.reports.store import Store

LABELS: Final = 25
LEAST: Final = 60  # cells with an image that an onboarding needs to choose from
MOST: Final = 1000


def ask_for_labels(workspace: Path, site: str, day: str) -> str:
    """Take a site's cells since a day out of the store and onboard them; returns what people are asked, in a line.

    Raises WbcError where too few of the cells have an image.
    """
    from flows.sites.onboard import onboard

    with meeting_store(workspace) as store:
        data = _cells(store, workspace / ".wbc/watched" / _name(site), day)
    result = onboard(workspace, data, LABELS, None, None, Progress())
    line = (
        f"site {site}: {counted(result['awaited'], 'cell waits', 'cells wait')} for a label in {result['queue']}"
        if result["status"] == "waiting"
        else (f"site {site}: the champion was adapted, as {result['model']}")
    )
    announce(workspace, line)
    return line


def _name(site: str) -> str:
    """The folder of a site: `wbc onboard` names its workspace by it."""
    return "".join(one if one.isalnum() or one in "-_" else "-" for one in site) or "site"


def _cells(store: "Store", folder: Path, day: str) -> Path:
    """Write the images of the cells since a day into a folder, all of a report as one group; returns their manifest.

    The store does not say which of several services a report came to: where they share one, all are taken.
    """
    from sqlalchemy import select

    from serving.reports.kept_images import images_of
    from serving.reports.tables import Cell, Report

    since = datetime.combine(datetime.fromisoformat(day), time(), UTC)
    query = select(Cell.report_id, Cell.position, Cell.sha256).join(Report, Report.id == Cell.report_id)
    query = query.where(Report.created_at >= since, Report.withdrawn_at.is_(None), Cell.label.is_not(None), Cell.twin.is_(None))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows: list[list[str]] = []
    with store.reading() as session:
        for report, position, sha256 in session.execute(query.order_by(Cell.sha256).limit(MOST)).tuples().all():
            for data in images_of(session, report, [position]).values():
                name = f"{sha256}.png"
                (folder / name).write_bytes(data)
                rows.append([name, "", report])
    if len(rows) < LEAST:
        found = counted(len(rows), "cell has", "cells have")
        raise WbcError(f"{found} an image since {day}, {LEAST} are needed: see keep_images in the site's file")
    manifest = folder / f"{folder.name}.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["path", "label", "group"], *rows])
    return manifest
