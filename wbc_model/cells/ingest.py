"""From a manifest or folder into the image store and the pools: every row goes in, or is named with the reason why not.

A cell is the sha256 of its file. Ingesting the same data again changes nothing. Rows that are in the pools are known; rows that
were refused are refused again in the same words; every seeded choice depends on the seed and the cells alone.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd
from tqdm import tqdm

from wbc_model.cells.conflicts import Conflict
from wbc_model.cells.decoded import DecodedCells
from wbc_model.cells.manifest import Load, Source, each_file, printable, source_of, unknown_label
from wbc_model.cells.merge import Examined, Merge, Row, Terms, compare_first
from wbc_model.cells.pools import check_present, transaction
from wbc_model.cells.rejections import UNUSABLE, Rejection
from wbc_model.cells.store import ImageStore, StoredImage
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import ImageRejected
from wbc_model.core.images import decode
from wbc_model.params import Params
from wbc_model.spread import each, is_spread

# The `count` of these cells (columns sha256, path) to be labelled first, by a seed: a table with a column sha256.
FirstQuery = Callable[[DecodedCells, pd.DataFrame, int, int], pd.DataFrame]
_SIDE_OF_SPLIT: Final = {"train": "train", "val": "validation", "test": "test", "": ""}


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


def ingest(
    data: Path | Source,
    workspace_data: Path,
    params: Params,
    source: str | None = None,
    reveal_labels: bool = True,
    list_conflicts: bool = False,
    *,
    first_query: FirstQuery,
) -> IngestReport:
    """Take a manifest CSV, a folder per class or another source into the store and the pools under `workspace_data` (a
    workspace's `data`).

    `source` is written beside every cell; by default the manifest's name. Without `reveal_labels` all rows go to the unlabelled
    pool, whatever their split, and their labels to the oracle. `first_query` chooses the cells whose label is known from the
    start, unless chance does (`data.initial`). Nothing that is in a pool leaves it or changes its label: a row that says
    otherwise is listed in `conflicts.csv`. A row that cannot be used is reported, and the rest goes in. Raises WbcError, with
    nothing changed, when the manifest as a whole cannot be read; so where too many of its rows disagree with the pools, unless
    `list_conflicts` lists them.
    """
    origin = source_of(data)
    manifest = origin.manifest(params.data.label_names)
    if not reveal_labels:
        manifest["split"] = "train"
    terms = Terms(source or origin.name, reveal_labels, list_conflicts)
    check_present(workspace_data)
    compare_first(manifest, origin, workspace_data, params, terms)
    store, rows = ImageStore(workspace_data / "images"), Examined()
    shards = store.add(_examine(manifest, origin, store, terms.source, rows))
    decoded = DecodedCells(store, workspace_data.parent / ".wbc/decoded", params.size.image_size, params.model.view)
    if reveal_labels and params.data.initial == "colours" and params.data.initial_share < 1:
        # not while the pools are locked; training needs it too
        decoded.prepare([row.sha256 for row in rows.accepted if row.label and row.side in ("", "train")])
    merge = Merge(workspace_data, params, terms, rows, functools.partial(first_query, decoded))
    pools = transaction(workspace_data / "pools", merge)
    return IngestReport(
        rows=len(manifest),
        added=merge.added,
        pools=pools.counts(),
        known=merge.known,
        rejections=sorted(rows.rejections),
        shards=shards,
        conflicts=sorted(one for one in merge.conflicts if not one.settled_at),
        read_as=str(manifest.attrs["read_as"]),
    )


# --- reading the files ---------------------------------------------------------------------------------------------

Judged = StoredImage | Rejection


def _examine(manifest: pd.DataFrame, origin: Source, store: ImageStore, source: str, rows: Examined) -> Iterator[StoredImage]:
    """Read, hash and decode each row's file. The accepted images are given out as they come; all rows go to `rows` in the
    manifest's order. At most a few images are in memory."""
    paths, labels, groups, splits = (manifest[name].tolist() for name in ("path", "label", "group", "split"))
    listed = [
        Row(str(path), "", str(label), str(group), _SIDE_OF_SPLIT[str(split)])
        for path, label, group, split in zip(paths, labels, groups, splits, strict=True)
    ]
    judged = _judged_elsewhere if is_spread() else _judged_here
    accepted: list[int] = []
    for place, found in judged(origin, listed, store, source):
        if isinstance(found, Rejection):
            rows.rejections.append(found)
            continue
        listed[place].path, listed[place].sha256 = found.path, found.sha256
        accepted.append(place)
        yield found
    rows.accepted += [listed[place] for place in sorted(accepted)]


def _judged_here(origin: Source, listed: list[Row], store: ImageStore, source: str) -> Iterator[tuple[int, Judged]]:
    """Each row's position and what was found."""
    stored = store.index()
    found = each_file(origin, [row.path for row in listed], lambda place, load: _examine_row(listed[place], load, stored, source))
    yield from tqdm(found, total=len(listed), desc="ingest", unit="cell", disable=None)


def _judged_elsewhere(origin: Source, listed: list[Row], store: ImageStore, source: str) -> Iterator[tuple[int, Judged]]:
    """The same by the runner of shards. It is told of each part what the files are; the bytes of those that are new are read here
    once more, since the store is written in one place and in one order."""
    parts = [(places, [listed[place] for place in places]) for places in origin.parts([row.path for row in listed])]
    work = functools.partial(_judged_part, origin, store.directory, source)
    found = {place: judged for chunk in each(work, parts) for place, judged in chunk}
    present, known = store.index(), set[str]()
    for place, load in origin.files([row.path for row in listed]):
        judged = found[place]
        if isinstance(judged, StoredImage) and judged.sha256 not in present and judged.sha256 not in known:
            known.add(judged.sha256)
            judged = replace(judged, data=load())
        yield place, judged


def _judged_part(origin: Source, directory: Path, source: str, part: tuple[list[int], list[Row]]) -> list[tuple[int, Judged]]:
    """What was found of a part of the rows, without their bytes."""
    places, rows = part
    found = _judged_here(origin, rows, ImageStore(directory), source)
    return [(places[at], judged if isinstance(judged, Rejection) else replace(judged, data=b"")) for at, judged in found]


def _examine_row(row: Row, load: Load, stored: Container[str], source: str) -> Judged:
    sha256 = ""
    path = printable(row.path)
    try:
        data = load()
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
