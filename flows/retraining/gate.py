"""The gate: whether the challenger becomes champion, and the promotion itself.

The comparison is on the test pool as it is now, both models on the same cells. Each comparison wears the test pool out a
little, so how often this very pool has been asked is counted and said.
"""

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.files import append_durably, building, write_atomic
from wbc_model.core.model_card import ModelCard
from wbc_model.params import GateParams

LOG: Final = "reports/gate.csv"
_KEPT: Final = ".wbc/gate.json"
LOG_COLUMNS: Final = ["retraining", "test_pool", "asked_before", "champion", "challenger", "promoted", "reason"]


@dataclass(frozen=True)
class Comparison:
    """Challenger against champion on the same cells. `lost`: cells only the champion has right, `won`: only the challenger;
    `p_worse`: one-sided exact McNemar p-value of the hypothesis that the challenger is no worse."""

    cells: int
    champion_accuracy: float
    challenger_accuracy: float
    lost: int
    won: int
    p_worse: float


@dataclass(frozen=True)
class Decision:
    """What the gate says, and why; `comparison` is None where there was no champion to compare with."""

    promoted: bool
    reasons: list[str]
    comparison: Comparison | None = None
    test_pool: str = ""
    asked_before: int = 0
    asked: bool = True  # false where the answer was known without looking at the test pool
    in_place: bool = False  # whether it is the champion already, file for file: there is nothing to promote
    champion: str = ""
    challenger: str = ""
    weights: str = ""  # sha256 of the challenger's weights
    asked_for: str = ""  # what the answer depends on: `question_key`
    question: str = ""  # what a person is to decide, and how
    fresh: str = ""  # that the test pool is worn, and how to draw fresh cells
    recalls: dict[str, list[float | None]] = field(default_factory=dict)  # class: [challenger's, champion's]

    @property
    def reason(self) -> str:
        return "; ".join(self.reasons)

    @property
    def new_champion(self) -> bool:
        """Whether the model becomes champion by this, and is not so already."""
        return self.promoted and not self.in_place

    def to_dict(self) -> dict[str, Any]:
        """For `--json` and models/gate.json."""
        return asdict(self) | {"reason": self.reason}


def mcnemar_worse(lost: int, won: int) -> float:
    """One-sided exact McNemar test: P(at least `lost` of the `lost + won` cells that one model alone has right go to the
    champion) if neither were better. Small means that the challenger is worse. 1 where the models never differ."""
    from scipy.stats import binomtest  # slow to load, and most commands compare nothing

    return float(binomtest(lost, lost + won, alternative="greater").pvalue) if lost + won else 1.0


def compare(champion_right: NDArray[np.bool_], challenger_right: NDArray[np.bool_]) -> Comparison:
    """Compare two models by which of the same cells (N,) each has right."""
    lost = int((champion_right & ~challenger_right).sum())
    won = int((~champion_right & challenger_right).sum())
    return Comparison(
        cells=len(champion_right),
        champion_accuracy=float(champion_right.mean()),
        challenger_accuracy=float(challenger_right.mean()),
        lost=lost,
        won=won,
        p_worse=mcnemar_worse(lost, won),
    )


def recalls(labels: Sequence[str], predicted: Sequence[str]) -> dict[str, float | None]:
    """Recall of each class; None where the labels hold no cell of it."""
    pairs = pd.DataFrame({"label": list(labels), "right": np.asarray(labels) == np.asarray(predicted)})
    by_class = pairs.groupby("label")["right"].mean()
    return {name: float(by_class[name]) if name in by_class.index else None for name in CLASSES}


def decide(challenger: pd.DataFrame, champion: pd.DataFrame | None, gate: GateParams) -> Decision:
    """The gate's rules on prediction frames (columns sha256, label, predicted) of the same cells.

    Every rule is looked at: the reasons name all that is wrong.
    """
    against: list[str] = []
    mine = recalls(challenger["label"].tolist(), challenger["predicted"].tolist())
    theirs: Mapping[str, float | None] = {}
    comparison = None
    if champion is not None:
        champion = champion.set_index("sha256").loc[challenger["sha256"]].reset_index()
        right = [frame["label"].to_numpy() == frame["predicted"].to_numpy() for frame in (champion, challenger)]
        comparison = compare(right[0], right[1])
        theirs = recalls(champion["label"].tolist(), champion["predicted"].tolist())
        against += _worse(comparison, gate)
    for name in CLASSES:
        against += _class_reasons(name, mine[name], theirs.get(name), gate)
    reasons = against or [_for(comparison)]
    table = {name: [mine[name], theirs.get(name)] for name in CLASSES}
    return Decision(promoted=not against, reasons=reasons, comparison=comparison, recalls=table)


def _worse(comparison: Comparison, gate: GateParams) -> list[str]:
    reasons = []
    drop = comparison.champion_accuracy - comparison.challenger_accuracy
    if comparison.p_worse < gate.alpha:
        reasons.append(
            f"worse than the champion (exact McNemar p = {comparison.p_worse:.3g} < {gate.alpha:g}: "
            f"{comparison.lost} cells lost, {comparison.won} won of {comparison.cells})"
        )
    if drop > gate.max_accuracy_drop + 1e-12:
        reasons.append(
            f"accuracy {comparison.challenger_accuracy:.2%} is {drop:.2%} under the champion's "
            f"{comparison.champion_accuracy:.2%}, and at most {gate.max_accuracy_drop:.2%} is allowed"
        )
    return reasons


def _class_reasons(name: str, mine: float | None, theirs: float | None, gate: GateParams) -> list[str]:
    if mine is None:
        needs = f"the test pool has no {name} to measure its recall on, which gate.recall_floor asks for: 0 there does without"
        return [needs] if gate.recall_floor[name] > 0 else []
    reasons = []
    if mine < gate.recall_floor[name]:
        reasons.append(f"recall of {name} {mine:.1%} is below its floor {gate.recall_floor[name]:.1%}")
    if theirs is not None and theirs - mine > gate.max_recall_drop + 1e-12:
        reasons.append(
            f"recall of {name} fell from {theirs:.1%} to {mine:.1%}, by more than the {gate.max_recall_drop:.1%} allowed"
        )
    return reasons


def _for(comparison: Comparison | None) -> str:
    if comparison is None:
        return "the first champion: every class's recall is at or above its floor"
    return (
        f"not worse than the champion: accuracy {comparison.challenger_accuracy:.2%} against "
        f"{comparison.champion_accuracy:.2%}, exact McNemar p = {comparison.p_worse:.3g} ({comparison.lost} cells lost, "
        f"{comparison.won} won of {comparison.cells}), no class's recall fell too far"
    )


# --- what was asked before --------------------------------------------------------------------------------------------


def test_pool_id(sha256s: Sequence[str]) -> str:
    """Twelve hex digits that name a set of test cells."""
    return hashlib.sha256("\n".join(sorted(sha256s)).encode()).hexdigest()[:12]


def question_key(challenger: ModelCard, champion: ModelCard | None, test: pd.DataFrame, rules: GateParams) -> str:
    """Sixteen hex digits of all that the gate's answer depends on: both models, the test cells (sha256, label), the rules of
    params.yaml and the code that predicts and decides. A remembered answer is good for the same question only."""
    from flows.pipeline.fingerprint import GATE, fingerprint

    parts: list[object] = [sorted(test[["sha256", "label"]].to_numpy().tolist()), rules.model_dump()]
    parts += [_answers_by(card) if card else None for card in (challenger, champion)]
    parts += [fingerprint(entry) for entry in GATE]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _answers_by(card: ModelCard) -> str:
    return card.model_dump_json(
        include={"classes", "input_size", "view", "normalisation", "architecture", "temperature", "sha256"}
    )


def read_log(workspace: Path) -> list[dict[str, str]]:
    """The gate's decisions so far, oldest first."""
    path = workspace / LOG
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))


def note_decision(workspace: Path, retraining: str, decision: Decision) -> None:
    """Append a decision to the log."""
    path = workspace / LOG
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if not read_log(workspace) and not (path.exists() and path.read_text().endswith("\n")):
        writer.writerow(LOG_COLUMNS)
    promoted = "yes" if decision.promoted else "no"
    names = [decision.champion, decision.challenger]
    writer.writerow([retraining, decision.test_pool, decision.asked_before, *names, promoted, decision.reason])
    append_durably(path, buffer.getvalue())


# --- promotion ---------------------------------------------------------------------------------------------------------


def promote(
    packaged: Path, champion: Path, test_metrics: Mapping[str, Any], test: CellFilter | None = None, commit: str = ""
) -> None:
    """Put a copy of the candidate as packaged in the champion's place in one step.

    Its card gets the test metrics, the `test` cells that they are from, and the `commit` that has its pools.
    """
    from wbc_model.core.model_card import read_card
    from wbc_model.network.card_page import write_card

    card = read_card(packaged)
    cells = {**card.cells, "test": test} if test is not None else card.cells
    metrics = {**card.metrics, "test": dict(test_metrics)}
    with building(champion) as temporary:
        shutil.copytree(packaged, temporary, dirs_exist_ok=True)
        write_card(temporary, card.model_copy(update={"metrics": metrics, "cells": cells, "git_commit": commit}))


def mend(champion: Path) -> None:
    """Finish a promotion that was killed between its two renames: the old champion comes back (and is replaced again)."""
    old = champion.with_name(f".{champion.name}.old")
    if old.exists() and not champion.exists():
        old.rename(champion)


def keep_decision(workspace: Path, retraining: str, decision: Decision) -> None:
    """Keep the decision until it is carried out, whatever happens in between."""
    write_atomic(workspace / _KEPT, json.dumps({"retraining": retraining, **decision.to_dict()}, indent=1) + "\n")


def kept_decision(workspace: Path) -> tuple[str, Decision] | None:
    """The last decision that was kept, with the retraining it belongs to, or None; raises WbcError when it is damaged."""
    path = workspace / _KEPT
    if not path.exists():
        return None
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        retraining, comparison = noted.pop("retraining"), noted.pop("comparison")
        del noted["reason"]
        return retraining, Decision(**noted, comparison=Comparison(**comparison) if comparison else None)
    except (json.JSONDecodeError, KeyError, TypeError):
        raise WbcError(f"{path} is damaged: delete it, and the gate decides again") from None
