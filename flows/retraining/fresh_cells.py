"""Fresh cells for the test pool: drawn blind, labelled by people, never learned from; and how worn the test pool is.

Every comparison of the gate chooses a little by what the test cells happen to be. 1 / `gate.alpha` says after how many the
gate asks for fresh ones. Blind: by chance alone, whatever any model thinks of the cells, and shown without a prediction.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from flows.exchange.export import export_cells
from flows.labels import QUEUE, awaited, choices, oracle_answers, record
from flows.retraining.gate import read_log, test_pool_id
from flows.state import label_cycle
from wbc_model.cells.pools import Pools, update
from wbc_model.cells.rejections import quarantined
from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.errors import WbcError
from wbc_model.core.files import write_atomic
from wbc_model.params import read_params

CELLS: Final = "reports/gate_cells.json"  # by the name of a test pool, the cells that the gate has compared models on


def draw(workspace: Path, count: int) -> dict[str, Any]:
    """Draw unlabelled cells for the test pool at random, whole groups at a time; where the oracle answers (retrain.annotator),
    their labels are taken in at once. They are `count`, or a few more where groups do not add up to it. Raises WbcError where
    there are too few that can go there."""
    drawn: list[str] = []
    taken = quarantined(workspace / "data")
    if (workspace / "data/queue.csv").exists():
        taken |= set(awaited(workspace)["sha256"])

    def change(pools: Pools) -> Pools:
        units = _units(pools, taken | set(pools.drawn()["sha256"]))
        larger = []
        for place in np.random.default_rng().permutation(len(units)):
            if len(drawn) + len(units[place]) <= count:
                drawn.extend(units[place])
            else:
                larger.append(units[place])
        if larger and len(drawn) < count:
            smallest = min(larger, key=len)  # each of them is more than what is lacking
            drawn.extend(smallest)
        if len(drawn) < count:
            raise WbcError(
                f"only {len(drawn)} of the {count} cells that you ask for can go to the test pool: the others are in the queue, "
                "in quarantine, or of a group that training has labels of; ingest cells of other patients"
            )
        return pools.draw(set(drawn))

    update(workspace / "data/pools", change)
    labelled = 0
    if read_params(workspace / "params.yaml").retrain.annotator == "oracle":
        labelled = record(workspace, oracle_answers(workspace, waiting(workspace)), label_cycle(workspace))
    return {"drawn": len(drawn), "labelled": labelled, **state(workspace), "wrote": ["data/pools"]}


def _units(pools: Pools, taken: set[str]) -> list[list[str]]:
    """What can be drawn: single cells, and groups of which every cell waits and none is `taken`. Cells that are none of the five
    classes neither count nor stand in the way."""
    cells = pools.table()
    cells = cells[~cells["sha256"].isin(set(pools.none_of_five()["sha256"]))]
    free = (cells["pool"] == "unlabelled") & ~cells["sha256"].isin(taken)
    cells = cells.assign(unit=cells["group"].where(cells["group"] != "", cells["sha256"]), free=free)
    whole = cells.groupby("unit", sort=True)["free"].transform("all")
    return [rows["sha256"].tolist() for _, rows in cells[whole].groupby("unit", sort=True)]


def waiting(workspace: Path) -> pd.DataFrame:
    """The drawn cells that await a label, with the columns of a queue; nothing in it comes from a model."""
    cells = Pools.read(workspace / "data/pools").drawn()
    cells = cells.sort_values("sha256").reset_index(drop=True)
    cells = cells.assign(rank=range(1, len(cells) + 1), reason="test", score="", predicted="", probability="")
    return cells[QUEUE].astype(str)


def export(workspace: Path, out: Path, images: Path | None = None) -> int:
    """Write the drawn cells as `wbc labels export` writes the queue; `wbc labels import` takes their labels in."""
    return export_cells(workspace, waiting(workspace), out, choices(), images)


# --- how worn the test pool is ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wear:
    """A test pool of `cells` cells was compared on `comparisons` times, on average over its cells; `limit` is
    1 / gate.alpha."""

    cells: int
    comparisons: int
    limit: int

    @property
    def fresh(self) -> int:
        """How many fresh cells bring the comparisons down to half the limit; 0 below the limit."""
        if self.comparisons < self.limit:
            return 0
        return max(1, math.ceil(self.cells * (2 * self.comparisons / self.limit - 1)))

    @property
    def asks(self) -> str:
        """What the gate asks for; empty below the limit."""
        return (
            f"the test pool's {self.cells} cells were compared on {self.comparisons} times, and {self.limit} "
            "is the limit (1 / gate.alpha): scores on them flatter by now; "
            f"`wbc labels test --draw {self.fresh}` draws fresh ones"
            if self.fresh
            else ""
        )


def wear(workspace: Path, test: pd.DataFrame, limit: int) -> Wear:
    """How often the gate has compared models on these test cells (column sha256). A pool that gained cells keeps its past."""
    sha256s = test["sha256"].tolist()
    pool, known = test_pool_id(sha256s), _known(workspace)
    total = np.zeros(len(sha256s))
    for row in read_log(workspace):
        if row["test_pool"] == pool:
            total += 1
        elif row["test_pool"] in known:
            total += known[row["test_pool"]].knows(sha256s)
    return Wear(len(sha256s), int(total.mean() + 1e-9) if len(total) else 0, limit)


def note_cells(workspace: Path, test: pd.DataFrame) -> None:
    """Remember on which cells (sha256, label) the gate compares, by the name of the pool."""
    known, pool = _known(workspace), test_pool_id(test["sha256"].tolist())
    if pool not in known:
        known[pool] = CellFilter.of(test["sha256"].tolist(), test["label"].tolist())
        text = json.dumps({name: cells.model_dump() for name, cells in known.items()}, indent=1)
        write_atomic(workspace / CELLS, text + "\n")


def _known(workspace: Path) -> dict[str, CellFilter]:
    path = workspace / CELLS
    try:
        return {name: CellFilter(**cells) for name, cells in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        raise WbcError(f"{path} is damaged: bring it back with git, or remove it, and the count begins anew") from None


def state(workspace: Path) -> dict[str, Any]:
    """The test pool now: its cells, how worn it is, and how many drawn ones await a label."""
    from flows.pipeline.stages import usable_pools

    worn = wear(workspace, usable_pools(workspace).frames["test"], read_params(workspace / "params.yaml").gate.max_comparisons)
    return {
        "cells": worn.cells,
        "comparisons": worn.comparisons,
        "max_comparisons": worn.limit,
        "asks": worn.asks,
        "awaited": len(waiting(workspace)),
    }
