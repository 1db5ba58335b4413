"""What MLflow shows of a run or a model beside its numbers: who made it from what, a description, and tags to search by."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import counted
from wbc_model.core.model_card import ModelCard

LOADER: Final = "flows.registry.pyfunc"  # every MLmodel file names it: it must stay
NOTE: Final = "mlflow.note.content"  # MLflow's description of a run, in Markdown
RENDERED: Final = "rendered cells, not real"
# A tag of an experiment: MLflow's interface opens at its pages for trained models, not at those for chat.
EXPERIMENT_KIND: Final = ("mlflow.experimentKind", "custom_model_development")
REGISTERED_MODEL: Final = f"""\
Leukocyte classification: {", ".join(CLASSES)}.

The alias `champion` names the model that is served, `challenger` the last one that the gate was asked about. Each version says
what it was trained on and what the gate decided. In the workspace's folder:

```python
import mlflow

mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model("models:/wbc@champion")
model.predict(["cell.png"])  # paths or bytes of image files; one row each, as the service answers
```
"""


def source_tags(workspace: Path) -> dict[str, str]:
    """Who starts a run, by which command and at which commit of the workspace: the tags that MLflow's own clients set."""
    from mlflow.tracking.context.registry import resolve_tags

    program = Path(sys.argv[0])
    by_hand = program.name in ("wbc", "__main__.py") and len(sys.argv) > 1
    name = f"wbc {sys.argv[1]}" if by_hand else "wbc schedule" if "prefect" in program.parts else program.name
    git = {"commit": _git(workspace, "rev-parse", "HEAD"), "branch": _git(workspace, "branch", "--show-current")}
    said = {"mlflow.source.name": name, **{f"mlflow.source.git.{key}": value for key, value in git.items()}}
    kept = {key: str(value) for key, value in resolve_tags().items() if not key.startswith("mlflow.source.git.")}
    return kept | {key: value for key, value in said.items() if value}


def _git(workspace: Path, *arguments: str) -> str:
    """What git says; nothing without git, and before the first commit."""
    command = ["git", "-C", str(workspace), *arguments]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def mlmodel(run: str, card: ModelCard) -> str:
    """The text of a model's MLmodel file, by which MLflow loads the model directory that the file lies in."""
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array

    names = Array(DataType.string)
    answer: list[ColSpec | TensorSpec] = [
        ColSpec("string", "label", required=False),
        *(ColSpec("double", f"probability_{name}", required=False) for name in card.classes),
        ColSpec(names, "prediction_set"),
        ColSpec("double", "predicted_loss", required=False),
        ColSpec("boolean", "review"),
        ColSpec(names, "reasons"),
        ColSpec("boolean", "out_of_distribution", required=False),
        ColSpec("string", "rejected", required=False),
    ]
    signature = ModelSignature(inputs=Schema([ColSpec("binary")]), outputs=Schema(answer))
    model = Model(artifact_path="model", run_id=run, signature=signature, metadata={"wbc.model": card.version})
    mlflow.pyfunc.add_to_model(model, loader_module=LOADER)
    return str(model.to_yaml())


def percent(value: float | None) -> str:
    """A share in per cent, with one decimal."""
    return "-" if value is None else f"{100 * value:.1f} %"


def _score(metrics: Mapping[str, Any], name: str) -> str:
    interval = metrics.get("intervals", {}).get(name)
    around = f" (95 % interval {percent(interval[0])} to {percent(interval[1])})" if interval else ""
    return f"{percent(metrics.get(name))}{around}"


def model_note(card: ModelCard, metrics: Mapping[str, Any] | None = None, pools: str = "") -> str:
    """What a model was trained on and how it scores on the test pool, in Markdown. `metrics` are those of metrics.json."""
    learned, seen = card.cells.get("labelled"), metrics or card.metrics.get("test", {})
    cells = f"{learned.count} labelled cells" if learned else "labelled cells"
    named = pools or (f"pools {card.pool_version}" if card.pool_version else "")
    source = ", ".join(part for part in (named, f"source {card.data_source}" if card.data_source else "") if part)
    lines = [f"Model {card.version}, trained on {cells}{f' ({source})' if source else ''}."]
    lines += [f"**{RENDERED.capitalize()}:** the scores say nothing about real blood."] if card.rendered else []
    if seen:
        scores = f"accuracy {_score(seen, 'accuracy')}, macro-F1 {_score(seen, 'macro_f1')}"
        lines.append(f"{counted(seen['n'], 'test cell')}: {scores}." if "n" in seen else f"Test cells: {scores}.")
    lines += [f"Its probabilities are not calibrated: {card.uncalibrated}."] if card.uncalibrated else []
    lines += [f"Calibrated on {card.calibrated_on}."] if card.calibrated_on else []
    return "\n\n".join(lines)


def gate_note(promoted: bool, reasons: Sequence[str]) -> str:
    """The gate's decision and its reasons, in Markdown."""
    head = f"**Gate: {'promoted to champion' if promoted else 'not promoted'}**"
    return f"{head}\n\n" + "\n".join(f"- {reason}" for reason in reasons)


def curve_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The cycles of a retraining as a Markdown table: labels, scores on the test pool, pools."""
    head = "| cycle | labels | accuracy | macro-F1 | pools |\n|---:|---:|---:|---:|---|"
    lines = [
        f"| {row['cycle']} | {row['labels']} | {percent(row['accuracy'])} | {percent(row['macro_f1'])} | {row['pools']} |"
        for row in rows
    ]
    return "\n".join([head, *lines])
