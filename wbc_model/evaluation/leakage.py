"""Whether cells that a model is measured on, or calibrated on, are cells that it was made from: then the figures flatter."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

from wbc_model.cells.manifest import Load, Source, each_file
from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.errors import ImageRejected
from wbc_model.core.model_card import PoolName


@dataclass(frozen=True)
class Leakage:
    """Of `cells` cells `trained_on` are among those that the model learned from, `chosen_by` among those that chose its weights
    or its calibration; None where nobody knows. `said_by`: the model's card, or the pools of the workspace, which may have
    grown since."""

    cells: int
    trained_on: int | None
    chosen_by: int | None
    said_by: Literal["card", "workspace", "nobody"]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """What a person must know of it before reading the figures."""
        if self.trained_on is None:
            yield "note: the model's card does not say which cells it was made from; these may be among them"
        pools = ", by this workspace's pools" if self.said_by == "workspace" else ""
        if self.trained_on:
            share = f"{self.trained_on} of these {self.cells} cells"
            yield f"warning: the model was trained on {share}{pools}: the figures flatter it"
        if self.chosen_by:
            share = f"{self.chosen_by} of these {self.cells} cells"
            yield f"warning: {share} chose the model's weights or calibration{pools}: the figures flatter it"


def leakage(sha256s: Sequence[str], card: Mapping[PoolName, CellFilter], pools: Mapping[PoolName, CellFilter]) -> Leakage:
    """What is known of these cells: by the cells of the model's `card` or, where it has none, by those of `pools`."""
    known = card or pools
    if not known:
        return Leakage(len(sha256s), None, None, "nobody")
    names: tuple[PoolName, PoolName] = ("labelled", "validation")
    trained, chose = (int(known[name].knows(sha256s).sum()) if name in known else None for name in names)
    return Leakage(len(sha256s), trained, chose, "card" if card else "workspace")


def digests(rows: pd.DataFrame, origin: Source) -> pd.DataFrame:
    """The rows of a manifest whose file can be read, with a column `sha256`."""

    def one(_place: int, load: Load) -> str:
        try:
            return hashlib.sha256(load()).hexdigest()
        except ImageRejected:
            return ""  # it is among those that could not be used

    found = dict(each_file(origin, rows["path"].tolist(), one))
    read = rows.assign(sha256=[found[place] for place in range(len(rows))])
    return read[read["sha256"] != ""]
