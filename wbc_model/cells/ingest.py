"""From a manifest or folder into the image store and the pools: every row goes in, or is named with the reason why not.

A cell is the sha256 of its file. Ingesting the same data again changes no pool. Rows that are in the pools are known; rows that
were refused are refused again, or no longer where they were put right. Every seeded choice depends on the seed and the cells
alone.
"""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from wbc_model.cells.conflicts import Conflict
from wbc_model.cells.decoded import DecodedCells
from wbc_model.cells.examine import Examination
from wbc_model.cells.manifest import Source, source_of
from wbc_model.cells.merge import Examined, Merge, Terms, compare_first
from wbc_model.cells.pools import check_present, transaction
from wbc_model.cells.rejections import UNUSABLE, Rejection
from wbc_model.cells.store import ImageStore
from wbc_model.params import Params

# The `count` of these cells (columns sha256, path) to be labelled first, by a seed: a table with a column sha256.
FirstQuery = Callable[[DecodedCells, pd.DataFrame, int, int], pd.DataFrame]


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did. `added` and `pools`: cells per pool, new and in all; `known`: rows that were there already;
    `rejections`: the rows of this manifest that are not in use, with the reason; `conflicts`: those that give a cell of the pools
    another label, and wait for a person's decision; `read_as`: how a CSV was read; `answered` and `grouped`: cells of the pools
    that had no label, or no group, and have one now; `split_groups`: groups of this manifest that have cells of the pools on
    several sides, so that no row can be of them."""

    rows: int
    added: dict[str, int]
    pools: dict[str, int]
    known: int
    rejections: list[Rejection]
    shards: list[Path]
    conflicts: list[Conflict] = field(default_factory=list)
    read_as: str = ""
    answered: int = 0
    grouped: int = 0
    split_groups: int = 0

    @property
    def reasons(self) -> dict[str, int]:
        """Rejected rows by reason."""
        return dict(sorted(Counter(rejection.reason for rejection in self.rejections).items()))

    @property
    def refused(self) -> bool:
        """Whether a row could not be used at all, or waits for a person's decision; repeats, leaks, and conflicts within the
        manifest are reported and count as dealt with."""
        return bool(self.conflicts or self.split_groups) or any(rejection.reason in UNUSABLE for rejection in self.rejections)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "rows": self.rows,
            "read_as": self.read_as,
            "added": self.added,
            "pools": self.pools,
            "known": self.known,
            "answered": self.answered,
            "grouped": self.grouped,
            "split_groups": self.split_groups,
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
    reading = compare_first(manifest, origin, workspace_data, terms)
    store, rows = ImageStore(workspace_data / "images"), Examined()
    pieces = workspace_data.absolute().parent / ".wbc/ingest"  # the same folder for processes that stand in others
    report = functools.partial(IngestReport, rows=len(manifest), read_as=str(manifest.attrs["read_as"]))
    images = Examination(origin, store, terms.source, pieces).images(manifest, rows)
    del manifest  # its rows become objects, and their texts are let go with these
    shards = store.add(images)
    decoded = DecodedCells(store, workspace_data.parent / ".wbc/decoded", params.size.image_size, params.model.view)
    if reveal_labels:
        _prepare_first(decoded, rows, params)
    merge = Merge(workspace_data, params, terms, rows, functools.partial(first_query, decoded))
    pools = transaction(workspace_data / "pools", merge, reading)
    return report(
        added=merge.added,
        pools=pools.counts(),
        known=merge.known,
        rejections=sorted(rows.rejections),
        shards=shards,
        conflicts=sorted(one for one in merge.conflicts if not one.settled_at),
        answered=merge.answered,
        grouped=len(merge.groups),
        split_groups=merge.split_groups,
    )


def _prepare_first(decoded: DecodedCells, rows: Examined, params: Params) -> None:
    """Decode what the first labels are chosen among: not while the pools are locked, and training needs it too."""
    if params.data.initial == "colours" and params.data.initial_share < 1:
        decoded.prepare([row.sha256 for row in rows.accepted if row.label and row.side in ("", "train")])
