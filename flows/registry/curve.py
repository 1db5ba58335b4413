"""The learning curve of all cycles of a workspace, and which of its points rest on test labels that a person has corrected since.

`reports/cycles.json` keeps a row per cycle, and git keeps it with the rest. A point cannot be made again, as its model has been
followed by others: it is marked, in the table, in the picture and in MLflow.
"""

import csv
import io
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from flows.site import site_of
from flows.state import read_state
from flows.workspace import is_git_repository
from wbc_model.cells.pools import Pools
from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.files import write_atomic
from wbc_model.core.model_card import read_card

CURVE_CSV: Final = "reports/learning_curve.csv"
CURVE_PNG: Final = "reports/learning_curve.png"
CYCLES: Final = "reports/cycles.json"
SIZE: Final = "size"  # in a row: the preset that it was trained with, and its numbers
SCORED: Final = "scored"  # in a row: the test cells of its scores with the labels that they had, as a CellFilter
_KEPT: Final = ("retraining", "cycle", "labels", "accuracy", "macro_f1", "strategy", "pools", "champion")
MODEL: Final = ("pools", "labels", "accuracy", "macro_f1")  # of a row: alike where two cycles have one model
_SCORES: Final = ("accuracy", "macro_f1", "n", "intervals")


def scored_cells(workspace: Path) -> CellFilter | None:
    """The test cells that the candidate was evaluated on, with the labels that they had then."""
    path = workspace / "models/predictions.csv"
    if not path.exists():
        return None
    frame = pd.read_csv(path, usecols=["sha256", "label"], dtype=str)
    return CellFilter.of(frame["sha256"].tolist(), frame["label"].tolist())


# --- the record of all cycles ---------------------------------------------------------------------------------------------


def read_cycles(workspace: Path) -> list[dict[str, Any]]:
    """All cycles, those of one retraining together: `retraining`, `cycle`, `labels`, `accuracy`, `macro_f1`, `strategy`, `pools`,
    `champion` (whether its model became the champion), `metrics`, and perhaps SIZE and SCORED.

    A workspace that an earlier version made has no record: its cycles are read from the commits that are tagged `pools-vN`, and
    from the last retraining's state. Raises WbcError where the record is damaged.
    """
    path = workspace / CYCLES
    if not path.exists():
        return _cycles_before(workspace)
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        scored = noted[SCORED]
        return [{**row, SCORED: scored[row[SCORED]] if row[SCORED] else None} for row in noted["cycles"]]
    except (ValueError, KeyError, TypeError):
        raise WbcError(f"{path} is damaged: bring it back with git, or remove it, and it is made again") from None


def begin_record(workspace: Path) -> None:
    """Keep the cycles of an earlier version where no record is; the next retraining forgets the state of the last."""
    if not (workspace / CYCLES).exists() and (cycles := read_cycles(workspace)):
        _write(workspace, cycles)


def note_cycle(workspace: Path, retraining: str, row: dict[str, Any], champion: bool = False) -> list[dict[str, Any]]:
    """Keep a finished cycle of a retraining, in the place of an earlier word about it; returns all cycles. `row` has the fields
    of the state's rows, `champion` says whether its model became the champion."""
    named = {**row, "retraining": _moment(retraining), "champion": champion}
    new = {**{name: named[name] for name in _KEPT}, "metrics": _scores(row["metrics"])}
    new |= {name: row.get(name) for name in (SIZE, SCORED)}
    cycles = read_cycles(workspace)
    others = [old for old in cycles if any(old[name] != new[name] for name in ("retraining", "cycle"))]
    cycles = [*_without_idle(others, new), new]  # a word is repeated about the last cycle only
    _write(workspace, cycles)
    return cycles


def _without_idle(cycles: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The cycles before a `new` one. Of nights on which nothing was new, whose one cycle has the model of before, only the last
    is kept: the record of years of them is no longer than that of one."""
    last = [*cycles, new][-3:]
    if len({row["retraining"] for row in last}) < 3 or len({tuple(row[name] for name in MODEL) for row in last}) > 1:
        return cycles
    return [*cycles[:-2], {**last[0], "champion": last[0]["champion"] or last[1]["champion"]}]


def _moment(retraining: str) -> str:
    """A retraining by when it began, from its key; its key where that is no time."""
    day, _, time = retraining.partition("-")
    if not (len(day) == 8 and day.isdecimal() and time[:6].isdecimal()):
        return retraining
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {time[:2]}:{time[2:4]}:{time[4:6]}"


def _scores(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in _SCORES if name in metrics}


def _write(workspace: Path, cycles: Sequence[dict[str, Any]]) -> None:
    """The cells that scores are from are kept once, however many cycles were scored on them."""
    texts = [json.dumps(row[SCORED], sort_keys=True) if row.get(SCORED) else "" for row in cycles]
    names = {text: str(number) for number, text in enumerate(dict.fromkeys(filter(None, texts)), 1)}
    rows = [{**row, SCORED: names.get(text, "")} for row, text in zip(cycles, texts, strict=True)]
    noted = {"cycles": rows, SCORED: {name: json.loads(text) for text, name in names.items()}}
    write_atomic(workspace / CYCLES, json.dumps(noted, indent=1) + "\n")


def _cycles_before(workspace: Path) -> list[dict[str, Any]]:
    """The cycles of before the record: from the tagged commits, the last retraining's from its state."""
    state = read_state(workspace)
    last = [{**row, "retraining": _moment(state.key)} for row in state.rows] if state else []
    if last and state and state.gate and state.gate["promoted"] and not state.gate.get("in_place"):
        last[-1]["champion"] = True
    known = {(row["pools"], row["accuracy"]) for row in last}
    cycles = [row for row in _tagged(workspace) if (row["pools"], row["accuracy"]) not in known] + last
    return [
        {**{name: row.get(name, False) for name in _KEPT}, "metrics": _scores(row["metrics"])}
        | {name: row.get(name) for name in (SIZE, SCORED)}
        for row in cycles
    ]


def _tagged(workspace: Path) -> Iterator[dict[str, Any]]:
    """The cycle of each commit that is tagged `pools-vN`: the last row of its curve, with its metrics."""
    if not is_git_repository(workspace):
        return
    site = site_of(workspace)
    mine = f"{site.name}-pools-v*" if site else "pools-v*"
    for tag in _git(workspace, "tag", "--list", mine, "--merged", "HEAD", "--sort=version:refname").split():
        rows = list(csv.DictReader(io.StringIO(_git(workspace, "show", f"{tag}:./{CURVE_CSV}"))))
        metrics = _git(workspace, "show", f"{tag}:./metrics.json")
        if not rows or not metrics:
            continue
        row, scores = rows[-1], json.loads(metrics)
        yield {
            "retraining": f"with {rows[0]['pools']}",  # all rows of a curve are of one retraining, which the first names
            "cycle": int(row["cycle"]),
            "labels": int(row["labels"]),
            "strategy": row["strategy"],
            "pools": row["pools"],
            "metrics": scores,
            **{name: scores[name] for name in ("accuracy", "macro_f1")},
        }


def _git(workspace: Path, *arguments: str) -> str:
    """What git says; nothing where there is no such thing."""
    command = ["git", "-C", str(workspace), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


# --- the table and the picture --------------------------------------------------------------------------------------------


def out_of_date(scored: dict[str, Any] | None, test: pd.DataFrame) -> int:
    """How many labels that scores rest on are different in the test pool now; none where the row is of before this was noted."""
    if scored is None:
        return 0
    return int(CellFilter.model_validate(scored).relabelled(test["sha256"].tolist(), test["label"].tolist()).sum())


def write_curve(workspace: Path, rows: Sequence[dict[str, Any]]) -> int:
    """Write the table and the picture of these cycles; returns how many points rest on labels that were corrected since."""
    from wbc_model.evaluation.plots import plot_learning_curve

    test = Pools.read(workspace / "data/pools").named("test")
    marked = [row | {"out_of_date": out_of_date(row.get(SCORED), test)} for row in rows]
    table = pd.DataFrame(marked)[["cycle", "labels", "accuracy", "macro_f1", "strategy", "pools"]]
    for name in ("accuracy", "macro_f1"):
        for end, word in ((0, "low"), (1, "high")):
            table[f"{name}_{word}"] = [row["metrics"]["intervals"].get(name, [None, None])[end] for row in marked]
    table["out_of_date"] = [row["out_of_date"] for row in marked]
    table["retraining"] = [row.get("retraining", "") for row in marked]
    write_atomic(workspace / CURVE_CSV, table.to_csv(index=False, float_format="%.6f"))
    card = read_card(workspace / "models/candidate", verify=False)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(table["retraining"]), 1)}
    points = [row | {"retraining": numbers[row.get("retraining", "")]} for row in marked]
    plot_learning_curve(points, workspace / CURVE_PNG, card.rendered, card.version)
    return sum(row["out_of_date"] > 0 for row in marked)


def mark_curve(workspace: Path) -> list[str]:
    """Mark the points of the curve that is there by the labels as they are now; returns a line where there are such."""
    cycles = read_cycles(workspace) if (workspace / CURVE_CSV).exists() else []
    count = write_curve(workspace, cycles) if cycles else 0
    if not count:
        return []
    rest = "rests" if count == 1 else "rest"
    of = f"{count} of {counted(len(cycles), 'point')} of the learning curve {rest} on labels that were corrected since"
    return [f"{of}: they are open in {CURVE_PNG}, and {CURVE_CSV} counts these labels"]
