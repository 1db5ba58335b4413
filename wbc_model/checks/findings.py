"""What is wrong with single rows of the pools: crops that show too little, and cells that are there twice.

Pure functions of the pools and the measurements; `flows/pipeline/checks.py` validates and documents the same table.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wbc_model.cells.pools import POOLS, Pools, sides, taken_out_as
from wbc_model.cells.rejections import Rejection
from wbc_model.cells.tables import all_differ, names_of, places_by, places_in
from wbc_model.checks.compared import compared
from wbc_model.checks.near_duplicates import Pair
from wbc_model.checks.quality import Measured
from wbc_model.core.images import MIN_SIDE
from wbc_model.params import CheckParams

REPEATS: Final = ("duplicate", "label_conflict", "split_leak", "near_duplicate")
MIN_CONTRAST: Final = 6.0  # standard deviation of the grey value under which a crop is blank
SAME_PLACE: Final = 0.25  # crops whose centres are farther apart than this share of their side may be centred on two cells
_RANK: Final = {"train": 0, "validation": 1, "test": 2}


def rows_of(pools: Pools) -> pd.DataFrame:
    """The rows of all pools: pool, path, sha256 and label.

    Adds `side`, `taken_out` (is it none of the five classes), `places` (pool rows of this cell), and `group_sides`: in how many
    of training, validation and test the row's group is. Columns of a few words are categories, since there is a row for each of
    millions of cells.
    """
    frames = pools.frames
    cells = pd.DataFrame({name: _one_after_the_other(pools, name) for name in ("path", "sha256")})
    cells["pool"] = _in_words(np.repeat(np.arange(len(POOLS)), [len(frames[name]) for name in POOLS]), POOLS)
    cells["label"] = _one_after_the_other(pools, "label").astype("category")
    sided = [pd.Categorical(sides(frames[name].assign(pool=name)), list(_RANK)).codes for name in POOLS]
    cells["side"] = _in_words(np.concatenate(sided), _RANK)
    cells["taken_out"] = np.concatenate([taken_out_as(frames[name]).to_numpy() != "" for name in POOLS])
    cells["places"] = _pool_rows(cells["sha256"])
    cells["group_sides"] = _group_sides(pools, cells["side"])
    return cells


def describe(cells: pd.DataFrame, measured: Measured) -> pd.DataFrame:
    """The table of `rows_of` in the order in which the images came into the store, with what was measured.

    Adds `order` (the place in `measured`, its length where no image is stored) and `stored`. Measurements are missing (NaN)
    where no image is stored.
    """
    order = places_in(names_of(cells["sha256"]), measured.names)
    order[order < 0] = len(measured.names)
    pool = np.argsort(np.argsort(POOLS))[cells["pool"].cat.codes]  # in the order of their names
    rows = places_by(pd.DataFrame({"order": order, "pool": pool, "path": cells["path"]}))
    cells, order = cells.take(rows).reset_index(drop=True), order[rows].astype(np.int32)
    facts = measured.facts.drop(columns="format").reindex(order)
    measurements = {str(name): facts[name].array for name in facts}
    return cells.assign(order=order, stored=order < len(measured.names), **measurements)


def _in_words(codes: NDArray[Any], words: Iterable[str]) -> "pd.Categorical[str]":
    """A column of few words by their numbers; -1 is missing."""
    return pd.Categorical.from_codes(codes, pd.Index(list(words)))


def _one_after_the_other(pools: Pools, column: str) -> pd.Series:
    """A column of all pools, in the order of POOLS."""
    return pd.concat([pools.frames[name][column] for name in POOLS], ignore_index=True)


def _pool_rows(sha256s: "pd.Series[str]") -> NDArray[np.int32]:
    """For each row in how many rows its cell is."""
    if all_differ([sha256s]):
        return np.ones(len(sha256s), np.int32)
    return sha256s.groupby(sha256s).transform("size").to_numpy(np.int32)


def _group_sides(pools: Pools, side: pd.Series) -> NDArray[np.int8]:
    """For each row on how many sides its group is; 1 where it has none."""
    found = np.ones(len(side), np.int8)
    split = pools.split_groups()
    if split:
        groups = _one_after_the_other(pools, "group")
        groups = groups[groups.isin(list(split))]
        found[groups.index] = side[groups.index].astype(str).groupby(groups).transform("nunique")
    return found


def poor(cells: pd.DataFrame, checks: CheckParams) -> pd.Series:
    """`too_small`, `blank` or `blurred` for each row of `describe`, empty where the crop is good."""
    low, high = checks.brightness
    sound = cells["stored"] & (cells["damage"] == "")
    small = (cells["width"] < MIN_SIDE) | (cells["height"] < MIN_SIDE)
    blank = (cells["contrast"] < MIN_CONTRAST) | ~cells["brightness"].between(low, high)
    found = np.select([~sound, small, blank, cells["sharpness"] < checks.min_sharpness], [0, 3, 2, 1])
    return pd.Series(_in_words(found, ["", "blurred", "blank", "too_small"]), cells.index)


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
    order = cells["order"].to_numpy()  # ascending; what is not stored is at the end
    sound = order[cells["stored"] & (cells["damage"] == "")]
    places = sound[np.diff(sound, prepend=-1) > 0]  # a cell may be in the pools twice, a fault of its own

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
    """All row findings: the table with `repeats` (which of REPEATS a row is out of use as, or NaN), and the rows for
    quarantine.csv."""
    reasons = poor(cells, checks)
    gone = repeats(cells, labels, find_pairs(cells, measured, cache), reasons == "")
    rejections = []
    for row in np.flatnonzero(reasons != "").tolist():
        rejections.append(Rejection(cells["path"][row], cells["sha256"][row], reasons[row], poor_detail(cells.iloc[row])))
    found = np.full(len(cells), -1, np.int8)
    for row, (reason, other) in gone.items():
        found[row] = REPEATS.index(reason)
        rejections.append(Rejection(cells["path"][row], cells["sha256"][row], reason, cells["path"][other]))
    return cells.assign(repeats=_in_words(found, REPEATS)), sorted(rejections)
