"""Rows that are not in use, and why: `rejected.csv` has what an ingest refused, `quarantine.csv` that and what the data checks
found among the pools."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from wbc_model.cells.tables import read_table, to_csv
from wbc_model.core.errors import counted

UNUSABLE: Final = ("missing", "outside_folder", "undecodable", "truncated", "too_large", "too_small", "unknown_label")
CONFLICT: Final = "label_conflict"
MOST_LINES: Final = 6  # in which is told why rows are not used
COLUMNS: Final = ["path", "sha256", "reason", "detail"]


@dataclass(frozen=True, order=True)
class Rejection:
    """A row of rejected.csv. `sha256` is empty where the file could not be read; `detail` names the other row of a pair."""

    path: str
    sha256: str
    reason: str
    detail: str

    @property
    def told(self) -> dict[str, str]:
        """For `--json`, of data that are in no pool."""
        return {"path": self.path, "reason": self.reason, "detail": self.detail}


def not_used_lines(rejected: Iterable[Rejection]) -> list[str]:
    """Why rows are not used, each cause once with how many there are and the first of them, the most frequent first. What is
    beyond MOST_LINES is counted: of a pair each names another row."""
    rows = list(rejected)
    first = {(one.reason, one.detail): one.path for one in reversed(rows)}
    causes = Counter((one.reason, one.detail) for one in rows).most_common()
    lines = [
        f"{counted(count, 'row is', 'rows are')} not used ({reason}), {first[reason, detail]}{' for one' * (count > 1)}: {detail}"
        for (reason, detail), count in causes[:MOST_LINES]
    ]
    others = Counter[str]()
    for (reason, _), count in causes[MOST_LINES:]:
        others[reason] += count
    more = ", ".join(f"{count} {reason}" for reason, count in others.most_common())
    return [*lines, *([f"and {counted(others.total(), 'further row', 'further rows')}: {more}"] if others else [])]


def read_rejections(path: Path) -> set[Rejection]:
    """The rows of a rejected.csv or quarantine.csv; none where there is no such file."""
    if not path.exists():
        return set()
    return {Rejection(*row) for row in read_table(path, COLUMNS).to_numpy()}


def rejections_csv(rejections: Iterable[Rejection]) -> str:
    """The text of a rejected.csv or quarantine.csv, sorted, each row once."""
    rows = [(entry.path, entry.sha256, entry.reason, entry.detail) for entry in sorted(set(rejections))]
    return to_csv(pd.DataFrame(rows, columns=COLUMNS, dtype=str))


def quarantined(workspace_data: Path) -> set[str]:
    """The sha256 of the pool cells that `data/quarantine.csv` takes out of use.

    A refused row never got into a pool, but the cell that it repeats did, and has the same sha256. Only what `validate` found
    among the pools counts: the rows of quarantine.csv that are not in rejected.csv.
    """
    found = read_rejections(workspace_data / "quarantine.csv") - read_rejections(workspace_data / "rejected.csv")
    return {row.sha256 for row in found if row.sha256}
