"""From a manifest or folder into the image store and the pools: every row goes in, or is named with the reason why not.

A cell is the sha256 of its file. Ingesting the same data again changes nothing: rows that are in the pools are known, rows
that were refused are refused again in the same words, and every seeded choice depends on the seed and the cells alone.
"""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd
from tqdm import tqdm

from wbc_model.classes import CLASSES
from wbc_model.decoded import DecodedCells
from wbc_model.errors import ImageRejected
from wbc_model.images import decode
from wbc_model.manifest import known_label, printable, read_cell, read_manifest, root_of, unknown_label
from wbc_model.params import Params
from wbc_model.pools import (
    COLUMNS,
    POOLS,
    QUARANTINE_COLUMNS,
    SIDES,
    Pools,
    now,
    read_table,
    to_csv,
    transaction,
)
from wbc_model.split import choose_sides, reveal
from wbc_model.store import ImageStore, StoredImage

__all__ = ["IngestReport", "Rejection", "ingest", "known_label", "read_manifest"]

UNUSABLE: Final = ("missing", "outside_folder", "undecodable", "truncated", "too_large", "too_small", "unknown_label")
LEAST_FIRST: Final = 10  # labels to begin with: fewer may be of one class
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
    `rejections`: the rows of this manifest (or pool rows, for a conflict with one) that are not in use, with the reason."""

    rows: int
    added: dict[str, int]
    pools: dict[str, int]
    known: int
    rejections: list[Rejection]
    shards: list[Path]

    @property
    def reasons(self) -> dict[str, int]:
        """Rejected rows by reason."""
        return dict(sorted(Counter(rejection.reason for rejection in self.rejections).items()))

    @property
    def refused(self) -> bool:
        """Whether a row could not be used at all; repeats, conflicts and leaks are reported and count as dealt with."""
        return any(rejection.reason in UNUSABLE for rejection in self.rejections)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "rows": self.rows,
            "added": self.added,
            "pools": self.pools,
            "known": self.known,
            "rejected": self.reasons,
            "refused": self.refused,
            "rejections": [vars(rejection) for rejection in self.rejections],
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


def ingest(
    data: Path, workspace_data: Path, params: Params, source: str | None = None, reveal_labels: bool = True
) -> IngestReport:
    """Take a manifest CSV or a folder per class into the store and the pools under `workspace_data` (a workspace's `data`).

    `source` is written beside every cell; by default the manifest's name. Without `reveal_labels` all rows go to the unlabelled
    pool, whatever their split, and their labels to the oracle. Raises WbcError when the manifest as a whole
    cannot be read; a row that cannot be used is reported and the rest goes in.
    """
    manifest = read_manifest(data)
    if not reveal_labels:
        manifest["split"] = "train"
    store = ImageStore(workspace_data / "images")
    name = source or (data.resolve().name if data.is_dir() else data.stem)
    accepted: list[_Row] = []
    rejections: list[Rejection] = []
    images = _examine(manifest, root_of(data), set(store.index()), name, accepted, rejections)
    shards = store.add(images)
    decoded = DecodedCells(store, workspace_data.parent / ".wbc/decoded", params.size.image_size, params.model.view)
    if reveal_labels and params.data.initial == "colours" and params.data.initial_share < 1:
        # not while the pools are locked; training needs it too
        decoded.prepare([row.sha256 for row in accepted if row.label and row.side in ("", "train")])
    merge = _Merge(workspace_data, params, name, accepted, rejections, reveal_labels, decoded)
    pools = transaction(workspace_data / "pools", merge)
    return IngestReport(
        rows=len(manifest),
        added=merge.added,
        pools=pools.counts(),
        known=merge.known,
        rejections=sorted(merge.rejections),
        shards=shards,
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
    known: int = 0
    added: dict[str, int] = field(default_factory=dict)

    def __call__(self, pools: Pools) -> tuple[Pools, Mapping[Path, str]]:
        recorded = read_rejections(self.workspace_data / "rejected.csv")
        oracle = _oracle(self.workspace_data / "oracle.csv")
        table = pools.table()
        existing = _existing(table, oracle)
        decided = {(entry.path, entry.sha256): entry for entry in sorted(recorded) if entry.reason not in UNUSABLE}
        rows = self._undecided(existing, table, decided)
        rows = self._without_conflicts([*existing.values(), *rows], recorded)
        rows = self._without_split_groups(rows)
        rows = self._without_repeats(rows)
        kept = {row.sha256 for row in rows if row.existing}
        pools = pools.without(set(table["sha256"]) - kept)
        new = self._sided([row for row in rows if not row.existing])
        pools = self._revealed(pools, new, oracle)
        return pools, self._files(recorded, oracle, pools)

    def _reject(self, row: _Row, reason: str, detail: str) -> None:
        self.rejections.append(Rejection(row.path, row.sha256, reason, detail))

    def _undecided(self, existing: dict[str, _Row], table: pd.DataFrame, decided: dict[tuple[str, str], Rejection]) -> list[_Row]:
        """The rows that need a decision; those in a pool already, or taken out before, got theirs.

        A label for a cell that had none makes its row new: it is taken out of `existing`.
        """
        by_people = set(table.loc[~table["labelled_by"].isin(["", "manifest"]), "sha256"])
        seen: set[tuple[str, str]] = set()
        rows = []
        for row in self.accepted:
            present = existing.get(row.sha256)
            first_at_home = present is not None and present.path == row.path and row.key not in seen
            seen.add(row.key)
            if present and first_at_home and (row.label in ("", present.label) or row.sha256 in by_people):
                self.known += 1
            elif present and first_at_home and not present.label:
                del existing[row.sha256]
                row.side, row.group = present.side, present.group
                rows.append(row)
            elif row.key in decided:
                self.rejections.append(decided[row.key])
            else:
                rows.append(row)
        return rows

    def _without_conflicts(self, rows: list[_Row], recorded: set[Rejection]) -> list[_Row]:
        """Take out every row of a cell that comes with two labels, now or in an earlier ingest."""
        in_doubt = {entry.sha256: entry.path for entry in sorted(recorded) if entry.reason == "label_conflict"}
        by_cell: dict[str, list[_Row]] = {}
        for row in rows:
            by_cell.setdefault(row.sha256, []).append(row)
        kept = []
        for row in rows:
            others = [other for other in by_cell[row.sha256] if other is not row]
            conflicting = len({other.label for other in by_cell[row.sha256] if other.label}) > 1
            if conflicting:
                different = [other for other in others if other.label and other.label != row.label]
                self._reject(row, "label_conflict", (different or others)[0].path)
            elif row.sha256 in in_doubt:
                self._reject(row, "label_conflict", in_doubt[row.sha256])
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
        moment = now()
        records: dict[str, list[list[Any]]] = {name: [] for name in POOLS}
        for row in rows:
            hidden = row.side == "train" and row.sha256 not in shown
            pool = "unlabelled" if hidden else "labelled" if row.side == "train" else row.side
            if hidden and row.label:
                oracle[row.sha256] = row.label
            given = ["", "", ""] if hidden else [0, "manifest", moment]
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
        from wbc_model.query import first_query  # brings torch, which an ingest can do without

        cells = pd.DataFrame({"sha256": sorted(training), "path": ""})
        return set(first_query(self.decoded, cells, count, seed)["sha256"])

    def _files(self, recorded: set[Rejection], oracle: dict[str, str], pools: Pools) -> Mapping[Path, str]:
        """The files that change with the pools. A path that could not be used earlier is refused again or no longer."""
        examined = {row.path for row in self.accepted} | {entry.path for entry in self.rejections}
        standing = {entry for entry in recorded if entry.reason not in UNUSABLE or entry.path not in examined}
        rejected = standing | set(self.rejections)
        quarantine = self.workspace_data / "quarantine.csv"
        present = set(pools.table()["sha256"])
        found = {entry for entry in read_rejections(quarantine) - recorded if entry.sha256 in present}
        labels = pd.DataFrame(sorted(oracle.items()), columns=["sha256", "label"], dtype=str)
        return {
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


def _existing(table: pd.DataFrame, oracle: dict[str, str]) -> dict[str, _Row]:
    """The cells of the pools by sha256, with the label that is known of them, be it hidden."""
    fields = table[["path", "sha256", "label", "group", "pool"]].to_numpy()
    return {
        sha256: _Row(path, sha256, label or oracle.get(sha256, ""), group, SIDES[pool], existing=True)
        for path, sha256, label, group, pool in fields
    }
