"""Whether the next labels are worth their while: the learning curve of the workspace, and what it expects of the next batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from flows.registry.curve import MODEL, SCORED, SIZE, read_cycles
from wbc_model.evaluation.expected_gain import MIN_POINTS, Gain, Point, expected_gain, expected_wrong
from wbc_model.params import Params


@dataclass(frozen=True)
class Worth:
    """The expected gain of the next labels; `wrong`: how many of the cells that are asked about the model expects to have wrong;
    `worth`: the gain in accuracy below which labelling may pause."""

    gain: Gain
    wrong: float
    worth: float

    @property
    def text(self) -> str:
        """In one sentence, for people."""
        gain = self.gain
        if gain.expected is None or gain.low is None or gain.high is None:
            have = f"{gain.points} of at least {MIN_POINTS} rounds of this preset were scored on the same test cells"
            return f"what the next labels gain cannot be said yet: {have}"
        by = f"{gain.more} more labels are expected to raise the accuracy by {100 * gain.expected:.1f} points"
        limits = f"95 % limits {100 * gain.low:.1f} to {100 * gain.high:.1f}"
        pause = "labelling may pause" if gain.may_pause(self.worth) else "labelling goes on being of use"
        return f"{by} ({limits}): {pause}"

    def to_dict(self) -> dict[str, Any]:
        """For the page, the run and `--json`: shares of 1."""
        gain, wrong = self.gain, round(self.wrong, 1)
        pause = gain.may_pause(self.worth)
        numbers = {"expected": gain.expected, "low": gain.low, "high": gain.high}
        return {
            "text": self.text,
            "labels": gain.more,
            "points": gain.points,
            "least": MIN_POINTS,
            **numbers,
            "may_pause": pause,
            "expected_wrong": wrong,
        }


def worth_of(workspace: Path, params: Params, queue: pd.DataFrame) -> Worth:
    """What the answers to this `queue` (columns QUEUE) are worth. It goes by the cycles of the last one's preset and test cells.

    A gain that the gate would not even notice as a loss (`gate.max_accuracy_drop`) is not worth a batch.
    """
    cycles = read_cycles(workspace)
    points = [_point(row) for row in _models([row for row in cycles if _comparable(row, cycles[-1])])]
    known = [float(text) for text in queue["probability"] if text]
    return Worth(expected_gain(points, len(queue)), expected_wrong(known), params.gate.max_accuracy_drop)


def _models(cycles: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cycles, those of one model once: a night without a new label trains nothing, and its point says nothing new."""
    return list({tuple(row[name] for name in MODEL): row for row in cycles}.values())


def _comparable(row: dict[str, Any], last: dict[str, Any]) -> bool:
    """Whether a cycle was trained in the same size, and scored on the same cells with the same labels."""
    same = all(row.get(name) == last.get(name) for name in (SIZE, SCORED))
    return row["labels"] > 0 and same and row["metrics"].get("n") == last["metrics"].get("n")


def _point(row: dict[str, Any]) -> Point:
    cells = int(row["metrics"]["n"])
    return Point(int(row["labels"]), round(row["accuracy"] * cells), cells)


def gain_tags(worth: Worth) -> dict[str, str]:
    """What a run in MLflow says of it, to search by."""
    gain = worth.gain
    numbers = {"expected": gain.expected, "low": gain.low, "high": gain.high}
    tags = {f"wbc.gain.{name}": f"{value:.6f}" for name, value in numbers.items() if value is not None}
    return {"wbc.gain": worth.text, "wbc.gain.labels": str(gain.more), **tags}
