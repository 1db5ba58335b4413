"""Rows of a manifest that give a cell of the pools another label: `data/conflicts.csv`, until a person decides.

An ingest changes nothing that is in a pool. What disagrees with it is listed here, and `wbc labels decide` settles it.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Final

import pandas as pd

from wbc_model.cells.tables import read_table, to_csv

CONFLICTS: Final = "conflicts.csv"
MACHINES: Final = frozenset({"", "manifest", "oracle"})  # who gives labels and is no person
MANY_SHARE: Final = 0.05  # of the rows that were compared; more conflicts stop an ingest
FEW: Final = 10  # conflicts that never stop an ingest, whatever share of a small manifest they are


@dataclass(frozen=True, order=True)
class Conflict:
    """A row of conflicts.csv: the cell, its path, pool and label there and by whom; `other`, the label that came, in the row
    `row` of the manifest `source`, `seen_at`. `settled_at` is empty until a person has decided."""

    sha256: str
    path: str
    pool: str
    label: str
    labelled_by: str
    other: str
    row: str
    source: str
    seen_at: str
    settled_at: str = ""

    @property
    def claim(self) -> tuple[str, str, str]:
        """What is the same when the same manifest comes again."""
        return self.sha256, self.other, self.source

    @property
    def by_a_person(self) -> bool:
        """Whether the label in the pools is a person's."""
        return self.labelled_by not in MACHINES


COLUMNS: Final = [field.name for field in fields(Conflict)]


def read_conflicts(path: Path) -> list[Conflict]:
    """The rows of a conflicts.csv, settled ones too; none where there is no such file. Raises WbcError where it is damaged."""
    if not path.exists():
        return []
    return [Conflict(*row) for row in read_table(path, COLUMNS).to_numpy()]


def open_conflicts(path: Path) -> list[Conflict]:
    """Those that wait for a decision."""
    return [conflict for conflict in read_conflicts(path) if not conflict.settled_at]


def conflicts_csv(conflicts: Iterable[Conflict]) -> str:
    """The text of a conflicts.csv, sorted."""
    return to_csv(pd.DataFrame([astuple(one) for one in sorted(conflicts)], columns=COLUMNS, dtype=str))


def settled(conflicts: Iterable[Conflict], sha256s: set[str], moment: str) -> list[Conflict]:
    """The list after a person decided on these cells at `moment`."""
    return [replace(one, settled_at=moment) if one.sha256 in sha256s and not one.settled_at else one for one in conflicts]


def too_many(conflicts: int, compared: int) -> bool:
    """Whether so many of the rows that could be compared with the pools disagree that the manifest as a whole is in doubt."""
    return conflicts > FEW and conflicts > MANY_SHARE * compared
