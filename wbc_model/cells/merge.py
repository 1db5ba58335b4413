"""Where each row of a manifest belongs: into a pool, or out with a reason. The change of the pools that an ingest makes."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from wbc_model.cells.conflicts import CONFLICTS, Conflict, conflicts_csv, read_conflicts, too_many
from wbc_model.cells.journal import Content
from wbc_model.cells.manifest import Load, Source, each_file, group_name, printable
from wbc_model.cells.pools import COLUMNS, DRAWN, POOLS, Pools, Reading, now, sides, taken_out_as
from wbc_model.cells.rejections import CONFLICT, UNUSABLE, Rejection, read_rejections, rejections_csv
from wbc_model.cells.split import choose_sides, reveal
from wbc_model.cells.tables import all_differ, among, csv_blocks, in_order, read_table
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.params import Params

LEAST_FIRST: Final = 10  # labels to begin with: fewer may be of one class
_COMING: Final = ["path", "label", "group", "sha256"]  # columns of a pool that a row brings
_AT_A_TIME: Final = 16_384  # rows that become columns in one step
_RANK: Final = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Terms:
    """How a manifest is taken in. `source` is written beside its cells; `reveal_labels`: the learner knows its labels at once;
    `list_conflicts`: they are listed, however many there are."""

    source: str
    reveal_labels: bool = True
    list_conflicts: bool = False


@dataclass(slots=True)
class Row:
    """A row on its way: `side` is train, validation, test, or empty until it is chosen."""

    path: str
    sha256: str
    label: str
    group: str
    side: str
    existing: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What the row is known by."""
        return self.path, self.sha256


Homes = dict[str, dict[str, Row]]  # for each group, by the side, one of its cells there


@dataclass
class Examined:
    """The rows of a manifest whose files were read, in its order, and those that could not be used."""

    accepted: list[Row] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)


@dataclass(slots=True)
class Present(Row):
    """A cell of the pools: `label` is what is known of it, even if it is hidden in the oracle."""

    pool: str = ""
    labelled_by: str = ""

    def conflict(self, row: Row, source: str, moment: str) -> Conflict:
        """That `row` of the manifest `source` gives this cell another label, seen at `moment`."""
        return Conflict(
            sha256=self.sha256,
            path=self.path,
            pool=self.pool,
            label=self.label,
            labelled_by=self.labelled_by,
            other=row.label,
            row=row.path,
            source=source,
            seen_at=moment,
        )


@dataclass
class Merge:
    """The change of the pools that an ingest makes; called with the present pools while no one else can write."""

    workspace_data: Path
    params: Params
    terms: Terms
    rows: Examined
    first_query: Callable[[pd.DataFrame, int, int], pd.DataFrame]  # of cells (sha256, path), how many, seed: the first to label
    moment: str = field(default_factory=lambda: now())
    known: int = 0
    compared: int = 0  # rows with a label whose cell has one in the pools
    added: dict[str, int] = field(default_factory=dict)
    conflicts: list[Conflict] = field(default_factory=list)
    answers: dict[str, list[Row]] = field(default_factory=dict)  # rows with a label for cells of the pools that had none
    answered: int = 0  # cells of these that got it
    came: set[str] = field(default_factory=set)  # cells that no pool had, and that a row was refused of before
    groups: dict[str, str] = field(default_factory=dict)  # of cells of the pools that had none, by sha256
    said: dict[tuple[str, str, str], Rejection] = field(default_factory=dict)  # what was refused before, by row and reason
    split_groups: int = 0  # groups of these rows that have cells of the pools on several sides

    def __call__(self, pools: Pools) -> tuple[Pools, Mapping[Path, Content]]:
        recorded = read_rejections(self.workspace_data / "rejected.csv")
        self.said = {(entry.path, entry.sha256, entry.reason): entry for entry in sorted(recorded)}
        oracle = _oracle(self.workspace_data / "oracle.csv")
        existing = _existing(pools.cells({row.sha256 for row in self.rows.accepted}), oracle)
        homes = _homes(pools, self.rows.accepted, existing)
        self.split_groups = sum(len(sides) > 1 for sides in homes.values())
        new = self._unknown(existing, homes)
        refused = {entry.path for entry in recorded}
        self.rows.accepted = [row for row in self.rows.accepted if row.path in refused]  # a million others take 0.3 GB
        if not self.terms.list_conflicts:
            _refuse_many([one for one in self.conflicts if not one.settled_at], self.compared)
        answered = self._answered(existing)
        new = _completed(self._without_conflicts(new))
        new = self._without_split_groups(homes, new)
        new = [*answered, *self._sided(self._without_repeats(new))]
        waited = {row.sha256 for row in answered}
        recorded_cells = {entry.sha256 for entry in recorded if entry.sha256}
        self.came = {row.sha256 for row in new if row.sha256 in recorded_cells} - waited
        pools, oracle = self._revealed(_grouped(pools.without(waited), self.groups), new, oracle, waited)
        return pools, self._files(recorded, oracle, pools)

    def _reject(self, row: Row, reason: str, detail: str) -> None:
        """Name a row with the reason, in the words of the last time: of several rows of a group it may be another that is met
        first."""
        now_said = Rejection(row.path, row.sha256, reason, detail)
        self.rows.rejections.append(self.said.get((*row.key, reason), now_said))

    def _unknown(self, existing: dict[str, Present], homes: Homes) -> list[Row]:
        """The rows of cells that no pool has; the others are known, or named with what they disagree with.

        Nothing that is in a pool changes by them, but a cell without a label, or without a group, gets the one that comes.
        """
        listed = {one.claim: one for one in read_conflicts(self.workspace_data / CONFLICTS)}
        seen: set[tuple[str, str]] = set()
        new = []
        for row in self.rows.accepted:
            present = existing.get(row.sha256)
            if present is None:
                new.append(row)
                continue
            again = row.key in seen
            seen.add(row.key)
            self.compared += bool(row.label and present.label)
            if row.label and present.label and row.label != present.label:
                self._reject(row, CONFLICT, present.path)
                conflict = present.conflict(row, self.terms.source, self.moment)
                before = listed.get(conflict.claim, conflict)
                self.conflicts.append(replace(conflict, seen_at=before.seen_at, settled_at=before.settled_at))
            elif row.side not in ("", present.side):
                self._reject(row, "split_leak", present.path)
            else:
                self._add_to(present, row, homes, again)
        return new

    def _add_to(self, present: Present, row: Row, homes: Homes, again: bool) -> None:
        """Give a cell of the pools what it lacks and this row of it has; nothing of it contradicts but the group, perhaps."""
        why_not = self._why_no_group(row, present, homes)
        if row.label and not present.label:
            self.answers.setdefault(row.sha256, []).append(row)
        elif present.path != row.path or again:
            self._reject(row, "duplicate", present.path)
        elif why_not:
            self._reject(row, "split_leak", why_not)
        else:
            self.known += 1

    def _why_no_group(self, row: Row, present: Present, homes: Homes) -> str:
        """Why a cell of the pools cannot be of the row's group: it is of another one, or this one has cells on another side.
        Empty where it can, and is from now on."""
        if row.group in ("", group_name(present.group)):
            return ""
        elsewhere = [cell.path for side, cell in homes[row.group].items() if side != present.side]
        if present.group or elsewhere:
            return _on_several(elsewhere[0]) if elsewhere else "its cell is of another group in the pools"
        given = self.groups.setdefault(present.sha256, row.group)
        return "" if given == row.group else "its cell is of another group in a row before"

    def _answered(self, existing: dict[str, Present]) -> list[Row]:
        """The cells of the pools that had no label and get one; two labels for one cell are a conflict, and it gets none."""
        answered = []
        for sha256, rows in self.answers.items():
            kept = self._without_conflicts(rows)
            for row in kept[1:]:
                self._reject(row, "duplicate", kept[0].path)
            if kept:
                present = existing[sha256]
                group = self.groups.get(sha256, present.group)
                answered.append(Row(present.path, sha256, kept[0].label, group, present.side))
        self.answered = len(answered)
        return answered

    def _without_conflicts(self, rows: list[Row]) -> list[Row]:
        """Take out every row of a cell that this manifest gives two labels."""
        if _each_once(rows):
            return rows
        by_cell: dict[str, list[Row]] = {}
        for row in rows:
            by_cell.setdefault(row.sha256, []).append(row)
        kept = []
        for row in rows:
            others = [other for other in by_cell[row.sha256] if other is not row]
            if len({other.label for other in by_cell[row.sha256] if other.label}) > 1:
                different = [other for other in others if other.label and other.label != row.label]
                self._reject(row, CONFLICT, (different or others)[0].path)
            else:
                kept.append(row)
        return kept

    def _without_split_groups(self, homes: Homes, rows: list[Row]) -> list[Row]:
        """Keep each group on one side: where it is already (`homes`), else the side nearest to the test; the rest of it goes. Of
        a group that is on several sides already nothing can be added to any."""
        home = {group: next(iter(sides.values())) for group, sides in homes.items()}
        for row in rows:
            if row.group and row.side:
                best = home.get(row.group)
                if best is None or (not best.existing and _RANK[row.side] > _RANK[best.side]):
                    home[row.group] = row
        kept = []
        for row in rows:
            best = home.get(row.group) if row.group else None
            if best is None:
                kept.append(row)
            elif len(homes.get(row.group, ())) > 1:
                self._reject(row, "split_leak", _on_several(best.path))
            elif row.side in ("", best.side):
                row.side = best.side
                if row.label or row.side == "train":
                    kept.append(row)
                else:
                    self._reject(row, "unknown_label", f"the label is empty; its group {row.group} is in the {row.side} pool")
            else:
                self._reject(row, "split_leak", best.path)
        return kept

    def _without_repeats(self, rows: list[Row]) -> list[Row]:
        """Keep one row of each cell: that of the test pool before validation before training, then the first."""
        if _each_once(rows):
            return rows
        best: dict[str, Row] = {}
        for row in rows:
            present = best.get(row.sha256)
            if present is None or _RANK.get(row.side, -1) > _RANK.get(present.side, -1):
                best[row.sha256] = row
        kept = []
        for row in rows:
            winner = best[row.sha256]
            if row is winner:
                kept.append(row)
            elif row.side in ("", winner.side):
                self._reject(row, "duplicate", winner.path)
            else:
                self._reject(row, "split_leak", winner.path)
        return kept

    def _sided(self, rows: list[Row]) -> list[Row]:
        free = [row for row in rows if not row.side]
        if free:
            fields = {name: [getattr(row, name) for row in free] for name in ("sha256", "label", "group")}
            cells = pd.DataFrame(fields, dtype=object)  # the rows' own texts, not copied
            shares = self.params.data
            sides = choose_sides(cells, shares.validation_share, shares.test_share, self.params.seed)
            for row, side in zip(free, sides, strict=True):
                row.side = side
        return rows

    def _revealed(self, pools: Pools, rows: list[Row], oracle: pd.DataFrame, waited: set[str]) -> tuple[Pools, pd.DataFrame]:
        """The pools with these rows, of which some `waited` there, and the oracle with their labels that are not revealed; labels
        of cells that left go from it. The list of rows is emptied: as columns they take less."""
        training = [row.sha256 for row in rows if row.side == "train" and row.label]
        at_least = LEAST_FIRST if pools.frames["labelled"].empty else 0
        shown = self._first(training, at_least) if self.terms.reveal_labels else set()
        parts = _by_pool(rows, shown)
        known = [pools.frames[name]["sha256"] for name in ("unlabelled", "labelled")]
        hidden = parts["unlabelled"].loc[parts["unlabelled"]["label"] != "", list(oracle)]
        oracle = pd.concat([oracle[among(oracle["sha256"], pd.concat(known))], hidden], ignore_index=True)
        self.added = {name: int((~among(part["sha256"], waited)).sum()) for name, part in parts.items()}
        return pools.plus({name: self._frame(parts.pop(name), name) for name in POOLS}), oracle

    def _frame(self, cells: pd.DataFrame, pool: str) -> pd.DataFrame:
        """New rows of a pool (path, label, group, sha256), with the columns of a pool."""
        waits = pool == "unlabelled"
        label = "" if waits else cells["label"]
        cycle, by, at = ("", "", "") if waits else (0, "manifest", self.moment)
        return cells.assign(label=label, cycle=cycle, labelled_by=by, labelled_at=at, source=self.terms.source)[COLUMNS]

    def _first(self, training: list[str], at_least: int) -> set[str]:
        """The cells whose label is known from the start: a share of them, and at least so many (or all)."""
        data, seed = self.params.data, self.params.seed
        count = min(len(training), max(round(data.initial_share * len(training)), at_least))
        if data.initial == "random" or count in (0, len(training)):
            return reveal(training, count, seed)
        cells = pd.DataFrame({"sha256": sorted(training), "path": ""})
        return set(self.first_query(cells, count, seed)["sha256"])

    def _files(self, recorded: set[Rejection], oracle: pd.DataFrame, pools: Pools) -> Mapping[Path, Content]:
        """The files that change with the pools. A row that was refused earlier is refused again or no longer; so is a path that
        could not be used, and one whose cell has come by another path now."""
        accepted = self.rows.accepted
        examined = {row.path for row in accepted} | {entry.path for entry in self.rows.rejections}
        again = {row.key for row in accepted}
        standing = {
            entry
            for entry in recorded
            if (entry.path not in examined and entry.sha256 not in self.came if entry.reason in UNUSABLE else True)
            and (entry.path, entry.sha256) not in again
        }
        rejected = standing | set(self.rows.rejections)
        quarantine = self.workspace_data / "quarantine.csv"
        found = read_rejections(quarantine) - recorded
        present = set(pools.cells({entry.sha256 for entry in found})["sha256"])
        found = {entry for entry in found if entry.sha256 in present}
        listed = {one.claim: one for one in [*self.conflicts, *read_conflicts(self.workspace_data / CONFLICTS)]}
        conflicts = {self.workspace_data / CONFLICTS: conflicts_csv(listed.values())} if listed else {}
        return conflicts | {
            self.workspace_data / "oracle.csv": csv_blocks(in_order(oracle, ["sha256"])),
            self.workspace_data / "rejected.csv": rejections_csv(rejected),
            quarantine: rejections_csv(rejected | found),
        }


def _on_several(path: str) -> str:
    """Why a row cannot be of its group, in words. The path alone is what the checks of the pools say of one picture in two pools,
    and that takes a cell out of use."""
    return f"its group is in several pools already, there with {path}"


def _by_pool(rows: list[Row], shown: set[str]) -> dict[str, pd.DataFrame]:
    """For each pool its rows as columns (_COMING). What is to train with is labelled where it is `shown`, or waits. The list is
    emptied on the way: rows take three times as much memory."""
    parts: dict[str, list[pd.DataFrame]] = {name: [pd.DataFrame(columns=_COMING, dtype=str)] for name in POOLS}
    rows.reverse()
    while rows:
        some = [rows.pop() for _ in range(min(len(rows), _AT_A_TIME))]
        cells = pd.DataFrame({name: [getattr(row, name) for row in some] for name in _COMING}, dtype=str)
        train = ["labelled" if row.sha256 in shown else "unlabelled" for row in some]
        pool = np.array([name if row.side == "train" else row.side for row, name in zip(some, train, strict=True)])
        for name, part in parts.items():
            part.append(cells[pool == name])
    return {name: pd.concat(part, ignore_index=True) for name, part in parts.items()}


def _each_once(rows: list[Row]) -> bool:
    """Whether no cell stands in two of these rows."""
    return all_differ([[row.sha256 for row in rows]])


def _oracle(path: Path) -> pd.DataFrame:
    """The labels that were set aside: sha256, label."""
    columns = ["sha256", "label"]
    return read_table(path, columns) if path.exists() else pd.DataFrame(columns=columns, dtype=str)


def _completed(rows: list[Row]) -> list[Row]:
    """The rows, where those of one cell all have the label and the group that one of them has: whichever of them stays."""
    if _each_once(rows):
        return rows
    said: dict[str, Row] = {}
    for row in rows:
        first = said.setdefault(row.sha256, row)
        first.label, first.group = first.label or row.label, first.group or row.group
    for row in rows:
        row.label, row.group = said[row.sha256].label, row.group or said[row.sha256].group
    return rows


def _homes(pools: Pools, rows: list[Row], existing: dict[str, Present]) -> Homes:
    """For each group of these rows a cell of it on each side where it has any: in the pools, and among the cells of the pools
    that are of it by these rows."""
    names = {row.group for row in rows} - {""}
    kept = {name: frame["group"].unique() for name, frame in pools.frames.items()}  # earlier versions kept them as they came
    theirs = {name: [group for group in groups if group_name(group) in names] for name, groups in kept.items()}
    table = Pools({name: frame[frame["group"].isin(theirs[name])] for name, frame in pools.frames.items()}).table()
    table = table.assign(side=sides(table), group=table["group"].map(group_name)).drop_duplicates(["group", "side"])
    homes: Homes = {}
    for path, sha256, label, group, side in table[["path", "sha256", "label", "group", "side"]].to_numpy():
        homes.setdefault(group, {})[side] = Row(path, sha256, label, group, side, existing=True)
    for row in rows:
        if row.group and (present := existing.get(row.sha256)) is not None:
            homes.setdefault(row.group, {}).setdefault(present.side, present)
    return homes


def _grouped(pools: Pools, groups: Mapping[str, str]) -> Pools:
    """The pools with these groups of cells that had none, by sha256."""
    if not groups:
        return pools
    frames = {}
    for name, frame in pools.frames.items():
        coming = among(frame["sha256"], groups)
        frames[name] = frame.assign(group=frame["group"].mask(coming, frame["sha256"].map(groups)).astype(str))
    return Pools(frames)


def known_cells(pools: Pools, sha256s: set[str], workspace_data: Path) -> dict[str, Present]:
    """Those of these cells that are in a pool, with the label that is known of them, even if it is set aside."""
    return _existing(pools.cells(sha256s), _oracle(workspace_data / "oracle.csv"))


def _existing(table: pd.DataFrame, oracle: pd.DataFrame) -> dict[str, Present]:
    """The cells of a table of the pools by sha256, with the label that is known of them, even if it is hidden."""
    hidden = dict(oracle[among(oracle["sha256"], table["sha256"])].to_numpy())
    by, called = table["labelled_by"].replace(["", DRAWN], "oracle"), taken_out_as(table)
    fields = table.assign(
        side=sides(table), label=table["label"].where(called == "", called), labelled_by=by.where(called == "", "a person")
    )
    return {
        sha256: Present(path, sha256, label or hidden.get(sha256, ""), group, side, existing=True, pool=pool, labelled_by=by)
        for path, sha256, label, group, side, pool, by in fields[
            ["path", "sha256", "label", "group", "side", "pool", "labelled_by"]
        ].to_numpy()
    }


def _refuse_many(conflicts: list[Conflict], compared: int) -> None:
    """Raises WbcError where so many rows disagree with the pools that the manifest itself is in doubt."""
    if not too_many(len(conflicts), compared):
        return
    some = "; ".join(f"{one.row}: {one.other}, there {one.label} by {one.labelled_by}" for one in conflicts[:3])
    raise WbcError(
        f"{len(conflicts)} of the {compared} rows whose cell is in the pools give it another label ({some}): were the labels "
        "shifted? Nothing was taken in. Correct the manifest; or, where it is right, run again with --list-conflicts and settle "
        "them with `wbc labels decide`"
    )


def compare_first(manifest: pd.DataFrame, origin: Source, workspace_data: Path, terms: Terms) -> Reading | None:
    """Look for too many conflicts before anything is stored: a manifest that is refused must leave nothing behind. Returns the
    pools as they were read for it. Raises WbcError as `ingest` does."""
    if terms.list_conflicts or not Pools.exist(workspace_data / "pools"):
        return None
    reading = Reading.of(workspace_data / "pools")
    pools = reading.pools
    if not sum(pools.counts().values()):
        return reading
    settled = {one.claim for one in read_conflicts(workspace_data / CONFLICTS) if one.settled_at}
    labelled = manifest[manifest["label"].isin(CLASSES)]
    paths, labels = labelled["path"].tolist(), labelled["label"].tolist()
    names = list(_digests(origin, paths))
    existing = known_cells(pools, {sha256 for _, sha256 in names}, workspace_data)
    conflicts, compared = [], 0
    for place, sha256 in names:
        present = existing.get(sha256)
        if present is not None and present.label:
            compared += 1
            conflict = present.conflict(Row(printable(paths[place]), sha256, labels[place], "", ""), terms.source, "")
            if labels[place] != present.label and conflict.claim not in settled:
                conflicts.append(conflict)
    _refuse_many(conflicts, compared)
    return reading


def _digests(origin: Source, paths: list[str]) -> Iterator[tuple[int, str]]:
    """The sha256 of the file behind each path, with the path's position; empty where it cannot be read."""

    def digest(_place: int, load: Load) -> str:
        try:
            return hashlib.sha256(load()).hexdigest()
        except ImageRejected:
            return ""

    return each_file(origin, paths, digest)
