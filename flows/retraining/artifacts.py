"""What a retraining shows in Prefect's web interface: its progress, a table per cycle, and the gate's decision with its reasons.

Import this only where Prefect's settings are in the environment already, as flows.retraining.flow.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.descriptions import curve_table, percent
from flows.identity import workspace_name
from flows.registry.curve import CURVE_PNG
from flows.retraining.gate import Decision
from wbc_model.core.classes import CLASSES


class ProgressBar:
    """How far a retraining is, from 0 to 1."""

    def __init__(self, workspace: Path, retraining: str) -> None:
        key, words = f"retrain-progress-{workspace_name(workspace)}", f"Retraining {retraining} of {workspace}"
        self.artifact = cast(UUID, create_progress_artifact(progress=0.0, key=key, description=words))

    def show(self, share: float) -> None:
        """Move on to this share."""
        update_progress_artifact(artifact_id=self.artifact, progress=100.0 * share)


def show_cycle(workspace: Path, retraining: str, row: Mapping[str, Any]) -> None:
    """The table of a finished cycle."""
    names = {"cycle": "cycle", "labels": "labels", "accuracy": "accuracy", "macro_f1": "macro-F1", "pools": "pools"}
    table = {word: percent(row[name]) if name in ("accuracy", "macro_f1") else row[name] for name, word in names.items()}
    create_table_artifact(
        table=[{**table, "seconds": row["seconds"]}],
        key=f"retrain-cycle-{workspace_name(workspace)}",
        description=f"Cycle {row['cycle']} of retraining {retraining}",
    )


def show_waiting(workspace: Path, retraining: str, said: Sequence[str]) -> None:
    """What a retraining waits for, what happens next and by whom, and what the labels are expected to gain."""
    create_markdown_artifact(
        "\n\n".join(["# Waiting for people", *said]) + "\n",
        key=f"retrain-waiting-{workspace_name(workspace)}",
        description=f"What retraining {retraining} waits for",
    )


def show_gate(workspace: Path, retraining: str, decision: Decision, rows: Sequence[Mapping[str, Any]]) -> None:
    """The gate's decision as a page: the reasons, the recalls, the confusion matrix and the learning curve."""
    create_markdown_artifact(
        gate_page(decision, rows, workspace / CURVE_PNG),
        key=f"gate-{workspace_name(workspace)}",
        description=f"The gate's decision on retraining {retraining}",
    )


def gate_page(decision: Decision, rows: Sequence[Mapping[str, Any]], picture: Path) -> str:
    """The page in Markdown; `rows` are the retraining's cycles, the last of them that of the model decided on."""
    word = "the champion stays" if decision.in_place else "promoted to champion" if decision.promoted else "not promoted"
    parts = [f"# Gate: {word}", "\n".join(f"- {reason}" for reason in decision.reasons)]
    parts += [f"**{decision.question}**"] if decision.question else []
    parts += [decision.fresh] if decision.fresh else []
    parts.append(f"Earlier comparisons of models on test pool {decision.test_pool}: {decision.asked_before}.")
    if decision.recalls:
        lines = [f"| {name} | {percent(mine)} | {percent(theirs)} |" for name, (mine, theirs) in decision.recalls.items()]
        parts += ["## Recall per class", "\n".join(["| class | challenger | champion |", "|---|---:|---:|", *lines])]
    if confusion := rows[-1]["metrics"].get("confusion"):
        parts += ["## Confusion matrix of the challenger on the test pool", _matrix(confusion)]
    parts += ["## Learning curve", curve_table(rows)]
    if picture.exists():
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f"![learning curve of all cycles](data:image/png;base64,{data})")
    return "\n\n".join(parts) + "\n"


def _matrix(confusion: Sequence[Sequence[int]]) -> str:
    head = f"| label, predicted as | {' | '.join(CLASSES)} |"
    rows = [f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(CLASSES, confusion, strict=True)]
    return "\n".join([head, "|---|" + "---:|" * len(CLASSES), *rows])
