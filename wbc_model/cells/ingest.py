"""From a manifest or folder into the image store and the pools: every row goes in, or is named with the reason why not.

A cell is the sha256 of its file. Ingesting the same data again changes nothing: rows that are in the pools are known, rows
that were refused are refused again in the same words, and every seeded choice depends on the seed and the cells alone.
"""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd
from tqdm import tqdm

from wbc_model.cells.conflicts import CONFLICTS, Conflict, conflicts_csv, read_conflicts, too_many
from wbc_model.cells.decoded import DecodedCells
from wbc_model.cells.manifest import known_label, printable, read_cell, read_manifest, root_of, unknown_label
from wbc_model.cells.pools import (
    COLUMNS,
    DRAWN,
    POOLS,
    QUARANTINE_COLUMNS,
    Pools,
    check_present,
    now,
    read_table,
    sides,
    to_csv,
    transaction,
)
from wbc_model.cells.split import choose_sides, reveal
from wbc_model.cells.store import ImageStore, StoredImage
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.core.images import decode
from wbc_model.params import Params

__all__ = ["IngestReport", "Rejection", "ingest", "known_label", "read_manifest"]

UNUSABLE: Final = ("missing", "outside_folder", "undecodable", "truncated", "too_large", "too_small", "unknown_label")
CONFLICT: Final = "label_conflict"
LEAST_FIRST: Final = 10  # labels to begin with: fewer may be of one class
# The `count` of these cells (columns sha256, path) to be labelled first, by a seed: a table with a column sha256.
FirstQuery = Callable[[DecodedCells, pd.DataFrame, int, int], pd.DataFrame]
_RANK: Final = {"train": 0, "validation": 1, "test": 2}
_SIDE_OF_SPLIT: Final = {"train": "train", "val": "validation", "test": "test", "": ""}


@dataclass(frozen=True, order=True)
class Rejection:
    """A row of rejected.csv. `sha256` is empty where the file could not be read; `detail` names the other row of a pair."""

    path: str
    sha256: str
    reason: str
    detail: str


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did. `added` and `pools`: cells per pool, new and in all; `known`: rows that were there already;
    `rejections`: the rows of this manifest that are not in use, with the reason; `conflicts`: those that give a cell of the pools
    another label, and wait for a person's decision; `read_as`: how a CSV was read."""

    rows: int
    added: dict[str, int]
    pools: dict[str, int]
    known: int
    rejections: list[Rejection]
    shards: list[Path]
    conflicts: list[Conflict] = field(default_factory=list)
    read_as: str = ""

    @property
    def reasons(self) -> dict[str, int]:
        """Rejected rows by reason."""
        return dict(sorted(Counter(rejection.reason for rejection in self.rejections).items()))

    @property
    def refused(self) -> bool:
        """Whether a row could not be used at all, or waits for a person's decision; repeats, leaks, and conflicts within the
        manifest are reported and count as dealt with."""
        return bool(self.conflicts) or any(rejection.reason in UNUSABLE for rejection in self.rejections)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "rows": self.rows,
            "read_as": self.read_as,
            "added": self.added,
            "pools": self.pools,
            "known": self.known,
            "rejected": self.reasons,
            "refused": self.refused,
            "rejections": [vars(rejection) for rejection in self.rejections],
            "conflicts": [vars(conflict) for conflict in self.conflicts],
            "shards": [shard.name for shard in self.shards],
        }


@dataclass
class _Row:
    """A row on its way: `side` is train, validation, test, or empty until it is chosen."""

    path: str
    sha256: str
    label: str
    group: str
    side: str
    existing: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.path, self.sha256


@dataclass
class _Present(_Row):
    """A cell of the pools: `label` is what is known of it, be it hidden in the oracle."""

    pool: str = ""
    labelled_by: str = ""

    def conflict(self, row: _Row, source: str, moment: str) -> Conflict:
        return Conflict(self.sha256, self.path, self.pool, self.label, self.labelled_by, row.label, row.path, source, moment)


def ingest(
    data: Path,
    workspace_data: Path,
    params: Params,
    source: str | None = None,
    reveal_labels: bool = True,
    list_conflicts: bool = False,
    *,
    first_query: FirstQuery,
) -> IngestReport:
    """Take a manifest CSV or a folder per class into the store and the pools under `workspace_data` (a workspace's `data`).

    `source` is written beside every cell; by default the manifest's name. Without `reveal_labels` all rows go to the unlabelled
    pool, whatever their split, and their labels to the oracle. `first_query` chooses the cells whose label is known from the
    start, unless chance does (`data.initial`). Nothing that is in a pool leaves it or changes its label: a row that says
    otherwise is listed in `conflicts.csv`. Raises WbcError, with nothing changed, when the manifest as a whole cannot be read or
    (without `list_conflicts`) too many of its rows disagree with the pools; a row that cannot be used is reported and the rest
    goes in.
    """
    manifest = read_manifest(data, params.data.label_names)
    if not reveal_labels:
        manifest["split"] = "train"
    name = source or (data.resolve().name if data.is_dir() else data.stem)
    check_present(workspace_data)
    if not list_conflicts:
        _compare_first(manifest, root_of(data), workspace_data, name, params)
    store = ImageStore(workspace_data / "images")
    accepted: list[_Row] = []
    rejections: list[Rejection] = []
    images = _examine(manifest, root_of(data), set(store.index()), name, accepted, rejections)
    shards = store.add(images)
    decoded = DecodedCells(store, workspace_data.parent / ".wbc/decoded", params.size.image_size, params.model.view)
    if reveal_labels and params.data.initial == "colours" and params.data.initial_share < 1:
        # not while the pools are locked; training needs it too
        decoded.prepare([row.sha256 for row in accepted if row.label and row.side in ("", "train")])
    merge = _Merge(workspace_data, params, name, accepted, rejections, reveal_labels, decoded, list_conflicts, first_query)
    pools = transaction(workspace_data / "pools", merge)
    return IngestReport(
        rows=len(manifest),
        added=merge.added,
        pools=pools.counts(),
        known=merge.known,
        rejections=sorted(merge.rejections),
        shards=shards,
        conflicts=sorted(one for one in merge.conflicts if not one.settled_at),
        read_as=str(manifest.attrs["read_as"]),
    )


# --- reading the files ---------------------------------------------------------------------------------------------


def _examine(
    manifest: pd.DataFrame, root: Path, stored: set[str], source: str, accepted: list[_Row], rejections: list[Rejection]
) -> Iterator[StoredImage]:
    """Read, hash and decode each row's file in threads; rows go to `accepted` or `rejections` in the manifest's order and
    the accepted images are given out. At most a few images are in memory."""
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[tuple[_Row, Future[StoredImage | Rejection]]] = deque()
        for entry in tqdm(manifest.itertuples(index=False), total=len(manifest), desc="ingest", unit="cell", disable=None):
            row = _Row(str(entry.path), "", str(entry.label), str(entry.group), _SIDE_OF_SPLIT[str(entry.split)])
            pending.append((row, pool.submit(_examine_row, row, root, stored, source)))
            if len(pending) > 2 * workers:
                yield from _settle(*pending.popleft(), accepted, rejections)
        while pending:
            yield from _settle(*pending.popleft(), accepted, rejections)


def _settle(
    row: _Row, future: "Future[StoredImage | Rejection]", accepted: list[_Row], rejections: list[Rejection]
) -> Iterator[StoredImage]:
    result = future.result()
    if isinstance(result, Rejection):
        rejections.append(result)
        return
    row.path, row.sha256 = result.path, result.sha256
    accepted.append(row)
    yield result


def _examine_row(row: _Row, root: Path, stored: set[str], source: str) -> StoredImage | Rejection:
    sha256 = ""
    path = printable(row.path)
    try:
        data = read_cell(row.path, root)
        sha256 = hashlib.sha256(data).hexdigest()
        width, height, image_format = 0, 0, ""
        if sha256 not in stored:  # what is stored was decoded when it came in, and is not stored again
            _, facts = decode(data)
            width, height, image_format = facts.width, facts.height, facts.format
        if row.label and row.label not in CLASSES:
            raise ImageRejected("unknown_label", unknown_label(row.label))
        if not row.label and row.side in ("validation", "test"):
            raise ImageRejected("unknown_label", f"the label is empty; a cell of the {row.side} pool needs one")
    except ImageRejected as rejected:
        return Rejection(path, sha256, rejected.reason, rejected.detail)
    return StoredImage(data, path, sha256, width, height, image_format, source)


# --- deciding where each row belongs ---------------------------------------------------------------------------------


@dataclass
class _Merge:
    """The change of the pools that an ingest makes; called with the present pools while no one else can write."""

    workspace_data: Path
    params: Params
    source: str
    accepted: list[_Row]
    rejections: list[Rejection]
    reveal_labels: bool
    decoded: DecodedCells
    list_conflicts: bool
    first_query: FirstQuery
    moment: str = field(default_factory=lambda: now())
    known: int = 0
    compared: int = 0  # rows with a label whose cell has one in the pools
    added: dict[str, int] = field(default_factory=dict)
    conflicts: list[Conflict] = field(default_factory=list)
    answers: dict[str, list[_Row]] = field(default_factory=dict)  # rows with a label for cells of the pools that had none

    def __call__(self, pools: Pools) -> tuple[Pools, Mapping[Path, str]]:
        recorded = read_rejections(self.workspace_data / "rejected.csv")
        oracle = _oracle(self.workspace_data / "oracle.csv")
        existing = _existing(pools.table(), oracle)
        decided = {(entry.path, entry.sha256): entry for entry in sorted(recorded) if entry.reason == "split_leak"}
        new = self._unknown(existing, decided)
        if not self.list_conflicts:
            _refuse_many([one for one in self.conflicts if not one.settled_at], self.compared, self.params)
        answered = self._answered(existing)
        rows = self._without_split_groups([*existing.values(), *self._without_conflicts(new)])
        new = self._sided(self._without_repeats([row for row in rows if not row.existing]))
        pools = self._revealed(pools.without({row.sha256 for row in answered}), [*answered, *new], oracle)
        return pools, self._files(recorded, oracle, pools)

    def _reject(self, row: _Row, reason: str, detail: str) -> None:
        self.rejections.append(Rejection(row.path, row.sha256, reason, detail))

    def _unknown(self, existing: dict[str, "_Present"], decided: dict[tuple[str, str], Rejection]) -> list[_Row]:
        """The rows of cells that no pool has; the others are known, or named with what they disagree with.

        Nothing that is in a pool changes by them, but a cell without a label gets the one that comes.
        """
        listed = {one.claim: one for one in read_conflicts(self.workspace_data / CONFLICTS)}
        seen: set[tuple[str, str]] = set()
        new = []
        for row in self.accepted:
            present = existing.get(row.sha256)
            again = row.key in seen
            seen.add(row.key)
            if present is None:
                if row.key in decided:
                    self.rejections.append(decided[row.key])
                else:
                    new.append(row)
                continue
            self.compared += bool(row.label and present.label)
            if row.label and present.label and row.label != present.label:
                self._reject(row, CONFLICT, present.path)
                conflict = present.conflict(row, self.source, self.moment)
                self.conflicts.append(listed.get(conflict.claim, conflict))
            elif row.side not in ("", present.side):
                self._reject(row, "split_leak", present.path)
            elif row.label and not present.label:
                self.answers.setdefault(row.sha256, []).append(row)
            elif present.path != row.path or again:
                self._reject(row, "duplicate", present.path)
            else:
                self.known += 1
        return new

    def _answered(self, existing: dict[str, "_Present"]) -> list[_Row]:
        """The cells of the pools that had no label and get one; two labels for one cell are a conflict, and it gets none."""
        answered = []
        for sha256, rows in self.answers.items():
            kept = self._without_conflicts(rows)
            for row in kept[1:]:
                self._reject(row, "duplicate", kept[0].path)
            if kept:
                present = existing[sha256]
                answered.append(_Row(present.path, sha256, kept[0].label, present.group, present.side))
        return answered

    def _without_conflicts(self, rows: list[_Row]) -> list[_Row]:
        """Take out every row of a cell that this manifest gives two labels."""
        by_cell: dict[str, list[_Row]] = {}
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

    def _without_split_groups(self, rows: list[_Row]) -> list[_Row]:
        """Keep each group on one side: where it is already, else the side nearest to the test; the rest of it goes."""
        home: dict[str, _Row] = {}
        for row in rows:
            if row.group and row.side:
                best = home.get(row.group)
                if best is None or (not best.existing and not row.existing and _RANK[row.side] > _RANK[best.side]):
                    home[row.group] = row
        kept = []
        for row in rows:
            best = home.get(row.group) if row.group else None
            if best is None or row.existing:
                kept.append(row)
            elif row.side in ("", best.side):
                row.side = best.side
                if row.label or row.side == "train":
                    kept.append(row)
                else:
                    self._reject(row, "unknown_label", f"the label is empty; its group {row.group} is in the {row.side} pool")
            else:
                self._reject(row, "split_leak", best.path)
        return kept

    def _without_repeats(self, rows: list[_Row]) -> list[_Row]:
        """Keep one row of each cell: that of the test pool before validation before training, then the first."""
        best: dict[str, _Row] = {}
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

    def _sided(self, rows: list[_Row]) -> list[_Row]:
        free = [row for row in rows if not row.side]
        if free:
            cells = pd.DataFrame([(row.sha256, row.label, row.group) for row in free], columns=["sha256", "label", "group"])
            shares = self.params.data
            sides = choose_sides(cells, shares.validation_share, shares.test_share, self.params.seed)
            for row, side in zip(free, sides, strict=True):
                row.side = side
        return rows

    def _revealed(self, pools: Pools, rows: list[_Row], oracle: dict[str, str]) -> Pools:
        """The pools with the new rows; labels that are not revealed go to `oracle`, labels of cells that left go from it."""
        waiting = set(pools.frames["unlabelled"]["sha256"])
        for sha256 in set(oracle) - waiting - set(pools.frames["labelled"]["sha256"]):
            del oracle[sha256]
        training = [row.sha256 for row in rows if row.side == "train" and row.label]
        at_least = LEAST_FIRST if pools.frames["labelled"].empty else 0
        shown = self._first(training, at_least) if self.reveal_labels else set()
        records: dict[str, list[list[Any]]] = {name: [] for name in POOLS}
        for row in rows:
            hidden = row.side == "train" and row.sha256 not in shown
            pool = "unlabelled" if hidden else "labelled" if row.side == "train" else row.side
            if hidden and row.label:
                oracle[row.sha256] = row.label
            given = ["", "", ""] if hidden else [0, "manifest", self.moment]
            label = "" if hidden else row.label
            records[pool].append([row.path, label, row.group, row.sha256, *given, self.source])
        self.added = {name: len(records[name]) for name in POOLS}
        return pools.plus({name: pd.DataFrame(records[name], columns=COLUMNS) for name in POOLS})

    def _first(self, training: list[str], at_least: int) -> set[str]:
        """The cells whose label is known from the start: a share of them, and at least so many (or all)."""
        data, seed = self.params.data, self.params.seed
        count = min(len(training), max(round(data.initial_share * len(training)), at_least))
        if data.initial == "random" or count in (0, len(training)):
            return reveal(training, count, seed)
        cells = pd.DataFrame({"sha256": sorted(training), "path": ""})
        return set(self.first_query(self.decoded, cells, count, seed)["sha256"])

    def _files(self, recorded: set[Rejection], oracle: dict[str, str], pools: Pools) -> Mapping[Path, str]:
        """The files that change with the pools. A path that could not be used earlier, or had two labels, is refused again or
        no longer."""
        examined = {row.path for row in self.accepted} | {entry.path for entry in self.rejections}
        again = {row.key for row in self.accepted}
        standing = {
            entry
            for entry in recorded
            if (entry.path not in examined if entry.reason in UNUSABLE else True)
            and (entry.reason != CONFLICT or (entry.path, entry.sha256) not in again)
        }
        rejected = standing | set(self.rejections)
        quarantine = self.workspace_data / "quarantine.csv"
        present = set(pools.table()["sha256"])
        found = {entry for entry in read_rejections(quarantine) - recorded if entry.sha256 in present}
        labels = pd.DataFrame(sorted(oracle.items()), columns=["sha256", "label"], dtype=str)
        listed = {one.claim: one for one in [*self.conflicts, *read_conflicts(self.workspace_data / CONFLICTS)]}
        conflicts = {self.workspace_data / CONFLICTS: conflicts_csv(listed.values())} if listed else {}
        return conflicts | {
            self.workspace_data / "oracle.csv": to_csv(labels),
            self.workspace_data / "rejected.csv": rejections_csv(rejected),
            quarantine: rejections_csv(rejected | found),
        }


def read_rejections(path: Path) -> set[Rejection]:
    """The rows of a rejected.csv or quarantine.csv; none where there is no such file."""
    if not path.exists():
        return set()
    return {Rejection(*row) for row in read_table(path, QUARANTINE_COLUMNS).to_numpy()}


def rejections_csv(rejections: Iterable[Rejection]) -> str:
    """The text of a rejected.csv or quarantine.csv, sorted, each row once."""
    rows = [(entry.path, entry.sha256, entry.reason, entry.detail) for entry in sorted(set(rejections))]
    return to_csv(pd.DataFrame(rows, columns=QUARANTINE_COLUMNS, dtype=str))


def _oracle(path: Path) -> dict[str, str]:
    """The labels that were set aside, by sha256."""
    return dict(read_table(path, ["sha256", "label"]).to_numpy()) if path.exists() else {}


def _existing(table: pd.DataFrame, oracle: dict[str, str]) -> dict[str, _Present]:
    """The cells of the pools by sha256, with the label that is known of them, be it hidden."""
    fields = table.assign(side=sides(table), labelled_by=table["labelled_by"].replace(["", DRAWN], "oracle"))
    return {
        sha256: _Present(path, sha256, label or oracle.get(sha256, ""), group, side, True, pool, by)
        for path, sha256, label, group, side, pool, by in fields[
            ["path", "sha256", "label", "group", "side", "pool", "labelled_by"]
        ].to_numpy()
    }


def _refuse_many(conflicts: list[Conflict], compared: int, params: Params) -> None:
    """Raises WbcError where so many rows disagree with the pools that the manifest itself is in doubt."""
    if not too_many(len(conflicts), compared, params.data.max_conflict_share):
        return
    some = "; ".join(f"{one.row}: {one.other}, there {one.label} by {one.labelled_by}" for one in conflicts[:3])
    raise WbcError(
        f"{len(conflicts)} of the {compared} rows whose cell is in the pools give it another label ({some}): were the labels "
        "shifted? Nothing was taken in. Correct the manifest; or, where it is right, run again with --list-conflicts and settle "
        "them with `wbc labels decide`"
    )


def _compare_first(manifest: pd.DataFrame, root: Path, workspace_data: Path, source: str, params: Params) -> None:
    """Look for too many conflicts before anything is stored: a manifest that is refused must leave nothing behind."""
    if not Pools.exist(workspace_data / "pools"):
        return
    existing = _existing(Pools.read(workspace_data / "pools").table(), _oracle(workspace_data / "oracle.csv"))
    if not existing:
        return
    settled = {one.claim for one in read_conflicts(workspace_data / CONFLICTS) if one.settled_at}
    labelled = manifest[manifest["label"].isin(CLASSES)]

    def digest(path: str) -> str:
        try:
            return hashlib.sha256(read_cell(path, root)).hexdigest()
        except ImageRejected:
            return ""

    conflicts, compared = [], 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, label, sha256 in zip(labelled["path"], labelled["label"], pool.map(digest, labelled["path"]), strict=True):
            present = existing.get(sha256)
            if present is not None and present.label:
                compared += 1
                conflict = present.conflict(_Row(printable(path), sha256, label, "", ""), source, "")
                if label != present.label and conflict.claim not in settled:
                    conflicts.append(conflict)
    _refuse_many(conflicts, compared, params)
