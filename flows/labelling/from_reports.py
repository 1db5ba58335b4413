"""What the service saw and people decided in reports, as cells of the pools: corrections with their labels, and cells that the
service was unsure of without one.

They come to the training side only, all cells of a specimen as one group. Validation and test stay as they are.
"""

import csv
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd

from flows import labels
from wbc_model.cells.pools import Pools, sides
from wbc_model.cells.rejections import read_rejections
from wbc_model.core.errors import counted
from wbc_model.params import Params

if TYPE_CHECKING:
    from serving.reports.store import Store
    from serving.upkeep.export import Decided, Unsure

SOURCE: Final = "reports"  # of these cells, in the pools


@dataclass(frozen=True)
class FromReports:
    """How many `cells` came new into the pools, and how many `labels` of people's decisions; `refused` are those of either that
    the pools do not take."""

    cells: int
    labels: int
    refused: int

    @property
    def line(self) -> str:
        """In words; empty where nothing came."""
        if not self.cells and not self.labels:
            return ""
        left = f", {self.refused} refused (data/rejected.csv says of cells why)" if self.refused else ""
        return f"from the service's reports came {counted(self.cells, 'new cell')} and {counted(self.labels, 'label')}{left}"


def take_from_reports(workspace: Path, store: "Store", params: Params, cycle: int) -> FromReports:
    """Take the decisions of signed reports, and the cells that the service was unsure of, into the pools; what is there already
    changes nothing."""
    from serving.upkeep.export import decisions, unsure

    found = [(one, kept) for one, kept in decisions(store, signed=True) if one.label]
    decided = {one.sha256: (one, kept) for one, kept in sorted(found, key=lambda pair: pair[0].at)}
    known = set(Pools.read(workspace / "data/pools").table()["sha256"])
    known |= {entry.sha256 for entry in read_rejections(workspace / "data/rejected.csv")}
    wanted: dict[str, Decided | Unsure] = {one.sha256: one for one in unsure(store)}
    wanted |= {sha256: one for sha256, (one, kept) in decided.items() if kept}
    new = [one for sha256, one in wanted.items() if sha256 not in known]
    added, refused = _ingest(workspace, store, params, new) if new else (0, 0)
    taken = _label(workspace, [one for one, _ in decided.values()], cycle)
    return FromReports(added, taken.new if taken else 0, refused + (len(taken.refused) if taken else 0))


def _ingest(workspace: Path, store: "Store", params: Params, cells: "list[Decided | Unsure]") -> tuple[int, int]:
    """Take cells into the unlabelled pool, by a manifest as `wbc ingest` takes it; returns how many went in, and how many not."""
    from serving.upkeep.export import write_image
    from wbc_model.acquisition.queue import first_query
    from wbc_model.cells.ingest import ingest

    scratch = workspace / ".wbc"
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="reports-", dir=scratch) as place:
        folder = Path(place)
        (folder / "images").mkdir()
        with (folder / "cells.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "label", "split", "group"])
            for cell in cells:
                with store.reading() as session:
                    writer.writerow([write_image(session, cell, folder), "", "train", cell.group])
        report = ingest(folder / "cells.csv", workspace / "data", params, source=SOURCE, first_query=first_query)
    return sum(report.added.values()), len(report.rejections)


def _label(workspace: Path, decided: "list[Decided]", cycle: int) -> labels.Taken | None:
    """The labels of those cells that are on the training side: no report changes what a model is tested on."""
    table = Pools.read(workspace / "data/pools").table()
    training = set(table.loc[sides(table) == "train", "sha256"])
    rows = [
        [one.sha256, one.label, one.by, f"{one.at:%Y-%m-%dT%H:%M:%SZ}", f"decided in report {one.report}"]
        for one in decided
        if one.sha256 in training
    ]
    frame = pd.DataFrame(rows, columns=[*labels.COLUMNS[:4], "why"], dtype=str)
    return labels.take_in(workspace, frame, cycle) if rows else None
