"""What an alarm asks of people: labels of the site's cells since then, by `wbc onboard`."""

import csv
import shlex
import shutil
import sys
from datetime import UTC, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flows.labelling.store import meeting_store
from flows.notify import announce
from flows.progress import Progress
from wbc_model.core.errors import WbcError, counted

if TYPE_CHECKING:
    from serving.contract.site import KeepImages
    from serving.reports.store import Store

LABELS: Final = 25
LEAST: Final = 60  # cells with an image that an onboarding needs to choose from
MOST: Final = 1000
COPIES: Final = ".wbc/watched"  # a folder for each alarm


def ask_for_labels(workspace: Path, site: str, day: str) -> str:
    """Take a site's cells since a day out of the store and onboard them; returns what people are asked, in a line.

    Each alarm is a site of its own for `wbc onboard`: the labels that an earlier one has are of cells as they were then.
    Raises WbcError where too few of the cells have an image.
    """
    from flows.sites.onboard import onboard

    folder = workspace / COPIES / f"{_name(site)}-{day}"
    with meeting_store(workspace) as store:
        data = _cells(store, folder, day)
    result = onboard(workspace, data, LABELS, None, None, Progress())
    if result["status"] == "waiting":
        again = shlex.join(["wbc", "onboard", str(data.relative_to(workspace)), "--answers", result["queue"]])
        line = f"{counted(result['awaited'], 'cell waits', 'cells wait')} for a label in {result['queue']}; `{again}` takes them"
    else:
        line = f"the champion was adapted, as {result['model']}"
        shutil.rmtree(folder)  # nobody asks for its images again
    announce(workspace, f"site {site}: {line}")
    return f"site {site}: {line}"


def let_copies_go(workspace: Path, keep: "KeepImages | None") -> None:
    """Delete the images that were taken out of the store for an alarm, once the store itself would not keep them any longer."""
    kept_since = datetime.now(UTC).timestamp() - 86_400 * (0 if keep is None else keep.days or sys.maxsize)
    for folder in (workspace / COPIES).glob("*/"):
        if folder.stat().st_mtime < kept_since:
            shutil.rmtree(folder)


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
        shutil.rmtree(folder)
        found = counted(len(rows), "cell has", "cells have")
        raise WbcError(f"{found} an image since {day}, {LEAST} are needed: see keep_images in the site's file")
    manifest = folder / f"{folder.name}.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["path", "label", "group"], *rows])
    return manifest
