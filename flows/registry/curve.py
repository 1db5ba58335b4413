"""The learning curve of the last retraining, and which of its points rest on test labels that a person has corrected since.

A point cannot be made again, as its model has been followed by others: it is marked, in the table, in the picture and in MLflow.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from flows.state import read_state
from wbc_model.cells.pools import Pools
from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.files import write_atomic
from wbc_model.core.model_card import read_card

CURVE_CSV: Final = "reports/learning_curve.csv"
CURVE_PNG: Final = "reports/learning_curve.png"
SCORED: Final = "scored"  # in a row: the test cells of its scores with the labels that they had, as a CellFilter


def scored_cells(workspace: Path) -> CellFilter | None:
    """The test cells that the candidate was evaluated on, with the labels that they had then."""
    path = workspace / "models/predictions.csv"
    if not path.exists():
        return None
    frame = pd.read_csv(path, usecols=["sha256", "label"], dtype=str)
    return CellFilter.of(frame["sha256"].tolist(), frame["label"].tolist())


def out_of_date(scored: dict[str, Any] | None, test: pd.DataFrame) -> int:
    """How many labels that scores rest on are others in the test pool now; none where the row is of before this was noted."""
    if scored is None:
        return 0
    return int(CellFilter.model_validate(scored).relabelled(test["sha256"].tolist(), test["label"].tolist()).sum())


def write_curve(workspace: Path, rows: Sequence[dict[str, Any]]) -> int:
    """Write the table and the picture of these cycles; returns how many points rest on labels that were corrected since."""
    from wbc_model.evaluation.plots import plot_learning_curve

    test = Pools.read(workspace / "data/pools").frames["test"]
    marked = [row | {"out_of_date": out_of_date(row.get(SCORED), test)} for row in rows]
    table = pd.DataFrame(marked)[["cycle", "labels", "accuracy", "macro_f1", "strategy", "pools"]]
    for name in ("accuracy", "macro_f1"):
        for end, word in ((0, "low"), (1, "high")):
            table[f"{name}_{word}"] = [row["metrics"]["intervals"].get(name, [None, None])[end] for row in marked]
    table["out_of_date"] = [row["out_of_date"] for row in marked]
    write_atomic(workspace / CURVE_CSV, table.to_csv(index=False, float_format="%.6f"))
    card = read_card(workspace / "models/candidate", verify=False)
    plot_learning_curve(marked, workspace / CURVE_PNG, card.rendered, card.version)
    return sum(row["out_of_date"] > 0 for row in marked)


def mark_curve(workspace: Path) -> list[str]:
    """Mark the points of the curve that is there by the labels as they are now; returns a line where there are such."""
    state = read_state(workspace)
    if state is None or not state.rows or not (workspace / CURVE_CSV).exists():
        return []
    count = write_curve(workspace, state.rows)
    if not count:
        return []
    of = f"{count} of {len(state.rows)} points of the learning curve rest on labels that were corrected since"
    return [f"{of}: they are open in {CURVE_PNG}, and {CURVE_CSV} counts these labels"]
