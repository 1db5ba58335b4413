"""What is wrong with single rows of the pools: crops that show too little, and cells that are there twice.

Pure functions of the pools and the measurements; `flows/pipeline/checks.py` validates and documents the same table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from wbc_model.cells.pools import Pools, sides
from wbc_model.cells.rejections import Rejection
from wbc_model.cells.tables import all_differ, in_order, places_in
from wbc_model.checks.compared import compared
from wbc_model.checks.near_duplicates import Pair
from wbc_model.checks.quality import Measured
from wbc_model.core.images import MIN_SIDE
from wbc_model.params import CheckParams

REPEATS: Final = ("duplicate", "label_conflict", "split_leak", "near_duplicate")
MIN_CONTRAST: Final = 6.0  # standard deviation of the grey value under which a crop is blank
SAME_PLACE: Final = 0.25  # crops whose centres are farther apart than this share of their side may be centred on two cells
_RANK: Final = {"train": 0, "validation": 1, "test": 2}


def describe(pools: Pools, measured: pd.DataFrame) -> pd.DataFrame:
    """The rows of all pools, in the order in which their images came into the store, with what was measured.

    Adds `stored` (is there an image), `places` (pool rows of this cell), `side`, and `group_sides`: in how many of training,
    validation and test the row's group is. Measurements are missing (NaN, None) where no image is stored.
    """
    cells = pools.table()
    cells["side"] = sides(cells)
    once = all_differ([cells["sha256"]])
    cells["places"] = 1 if once else cells.groupby("sha256")["sha256"].transform("size")
    split = cells[cells["group"].isin(list(pools.split_groups()))]
    cells["group_sides"] = split.groupby("group")["side"].transform("nunique").reindex(cells.index, fill_value=1).astype(int)
    order = places_in(cells["sha256"], measured["sha256"])
    facts = measured.drop(columns="sha256").assign(order=np.arange(len(measured)))
    facts = facts.reindex(np.where(order < 0, len(measured), order)).reset_index(drop=True)
    cells = pd.concat([cells, facts.assign(stored=order >= 0)], axis=1)
    return in_order(cells, ["order", "pool", "path"]).reset_index(drop=True)


def poor(cells: pd.DataFrame, checks: CheckParams) -> pd.Series:
    """`too_small`, `blank` or `blurred` for each row of `describe`, empty where the crop is good."""
    low, high = checks.brightness
    reasons = pd.Series("", index=cells.index, dtype=str)
    sound = cells["stored"] & (cells["damage"] == "")
    reasons[sound & (cells["sharpness"] < checks.min_sharpness)] = "blurred"
    reasons[sound & ((cells["contrast"] < MIN_CONTRAST) | ~cells["brightness"].between(low, high))] = "blank"
    reasons[sound & (cells[["width", "height"]].min(axis=1) < MIN_SIDE)] = "too_small"
    return reasons


def poor_detail(row: pd.Series) -> str:
    """The numbers behind a reason of `poor`."""
    return (
        f"{row['width']:.0f}x{row['height']:.0f} pixels, brightness {row['brightness']:.1f}, "
        f"contrast {row['contrast']:.1f}, sharpness {row['sharpness']:.1f}"
    )


@dataclass(frozen=True)
class _Meeting:
    """Two rows of the table that show the same: the same pixels, or (`near`) nearly, with centres `offset` apart."""

    first: int
    second: int
    near: bool
    offset: float = 0.0


def repeats(cells: pd.DataFrame, labels: pd.Series, pairs: list[Pair], usable: pd.Series) -> dict[int, tuple[str, int]]:
    """Which rows of `describe` must go because another shows the same cell: row to (reason, the other row).

    `labels`: what is known of each row, even if it is hidden from the learner; `usable`: rows that are good otherwise. Two labels
    for one cell take both rows out. Across pools the row in the training pool goes (of validation and test that in validation);
    in one pool the one that was ingested later. Crops of one field that are centred on two cells of different classes
    stay, unless they are in different pools.
    """
    meetings = [meeting for meeting in _meetings(cells, pairs) if usable[meeting.first] and usable[meeting.second]]
    gone: dict[int, tuple[str, int]] = {}
    for meeting in meetings:
        a, b = labels[meeting.first], labels[meeting.second]
        if a and b and a != b and meeting.offset <= SAME_PLACE:
            gone.setdefault(meeting.first, ("label_conflict", meeting.second))
            gone.setdefault(meeting.second, ("label_conflict", meeting.first))
    sides = cells["side"]
    for meeting in sorted(meetings, key=lambda pair: sides[pair.first] == sides[pair.second]):
        first, second = meeting.first, meeting.second
        if first in gone or second in gone or cells["sha256"][first] == cells["sha256"][second]:
            continue
        ranks = _RANK[sides[first]], _RANK[sides[second]]
        if ranks[0] == ranks[1]:
            neighbours = meeting.offset > SAME_PLACE and labels[first] and labels[second] and labels[first] != labels[second]
            if not neighbours:
                gone[second] = ("near_duplicate" if meeting.near else "duplicate", first)
        else:
            loser, winner = (first, second) if ranks[0] < ranks[1] else (second, first)
            gone[loser] = ("near_duplicate" if meeting.near else "split_leak", winner)
    return gone


def _meetings(cells: pd.DataFrame, pairs: list[Pair]) -> Iterator[_Meeting]:
    """Rows with the same pixels, then near-duplicates; in each the row that was ingested first is `first`."""
    pixels = cells.loc[cells["stored"] & (cells["damage"] == ""), "pixels"]
    pixels = pixels[pixels.duplicated(keep=False)]
    for _, group in pixels.groupby(pixels, sort=False):
        rows = group.index.tolist()
        for place, first in enumerate(rows):
            yield from (_Meeting(first, second, near=False) for second in rows[place + 1 :])
    for pair in pairs:
        if cells["pixels"][pair.first] != cells["pixels"][pair.second]:
            yield _Meeting(pair.first, pair.second, near=True, offset=pair.offset)


def find_pairs(cells: pd.DataFrame, measured: Measured, cache: Path) -> list[Pair]:
    """Near-duplicates among the rows of `describe`, as positions in it."""
    sound = cells.loc[cells["stored"] & (cells["damage"] == ""), "order"].to_numpy(np.int64)
    places = np.unique(sound)  # a cell may be in the pools twice, which is a fault of its own
    order = cells["order"].to_numpy(np.float64)  # ascending; what is not stored is at the end

    def rows(number: int) -> range:
        return range(*np.searchsorted(order, [places[number], places[number] + 1]).tolist())

    pairs = [
        Pair(first, second, pair.correlation, pair.offset)
        for pair in compared(measured, places, cache)
        for first in rows(pair.first)
        for second in rows(pair.second)
    ]
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def find(
    cells: pd.DataFrame, measured: Measured, labels: pd.Series, checks: CheckParams, cache: Path
) -> tuple[pd.DataFrame, list[Rejection]]:
    """All row findings: the table with `poor` and a column per reason of REPEATS (the other row's path, or None), and the rows
    for quarantine.csv."""
    reasons = poor(cells, checks)
    gone = repeats(cells, labels, find_pairs(cells, measured, cache), reasons == "")
    found = cells.assign(poor=reasons)
    rejections = []
    for row in reasons[reasons != ""].index:
        rejections.append(Rejection(cells["path"][row], cells["sha256"][row], reasons[row], poor_detail(cells.loc[row])))
    for name in REPEATS:
        others = {row: cells["path"][other] for row, (reason, other) in gone.items() if reason == name}
        found[name] = pd.Series(others, dtype=object).reindex(found.index) if others else None
        rejections += [Rejection(cells["path"][row], cells["sha256"][row], name, path) for row, path in others.items()]
    return found, sorted(rejections)
