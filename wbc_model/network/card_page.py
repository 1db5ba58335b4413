"""The model card as it lies in a model directory: JSON, and a page for a clinician. Needs no PyTorch."""

from pathlib import Path

from wbc_model.core.files import write_atomic
from wbc_model.core.model_card import CARD, README, ModelCard


def write_card(directory: Path, card: ModelCard) -> None:
    """(Re)write `model.json` and `README.md` of a model directory."""
    write_atomic(directory / CARD, card.model_dump_json(indent=2) + "\n")
    write_atomic(directory / README, render_readme(card))


def render_readme(card: ModelCard) -> str:
    """The model card as Markdown, in the words of those who will rely on it."""
    drawn = (
        "\n> **Drawn cells.** This model was trained on cells that a program rendered. It knows nothing about real blood and its "
        "figures say nothing about accuracy on patients.\n"
        if card.rendered
        else ""
    )
    return f"""# {card.name} {card.version}

Classifies single-cell crops of stained peripheral blood smears into {len(card.classes)} leukocyte classes:
{", ".join(card.classes)}.
{drawn}
## Intended use

Pre-classification for a differential count that a qualified person reviews. It is not a diagnostic device by itself. It was
trained on crops with one leukocyte in the middle; it does not find cells in a field of view, and does not know immature
granulocytes, erythroblasts, platelets, artefacts or malignant cells: it will give them one of its {len(card.classes)} names.
{_flags(card)}
{_origin(card)}
{_scores(card)}
## What to be careful about

- Another stain, camera or magnification can bring accuracy down without warning. Measure on your own labelled cells first
  (`wbc evaluate --model DIR --data DATA`).
{_calibration(card)}
"""


def _origin(card: ModelCard) -> str:
    how = card.architecture
    network = (
        f"{how.network}, attention `{how.attention}`, normalisation `{how.norm}`, {'with' if how.lossnet else 'without'} LossNet"
    )
    return f"""## Where it came from

| | |
|---|---|
| training data | {card.data_source or "not stated"} |
| pool version | `{card.pool_version}`{f", in commit `{card.git_commit}`" if card.git_commit else ""} |
| newest label | {card.created_at or "without a time"} |
| network | {network} |
| input | {card.input_size} x {card.input_size} pixels, RGB |
| calibrated on | {card.calibrated_on or "its validation pool"} |
| temperature | {card.temperature:.3f}{f", not fitted: {card.uncalibrated}" if card.uncalibrated else ""} |
| prediction set | every class with probability {card.conformal_threshold:.3f} or more |
| coverage of the set | {card.conformal_coverage:.0%} of cells, at the site it was calibrated for |
"""


def _scores(card: ModelCard) -> str:
    validation = card.metrics.get("validation", {})
    rows = [
        f"| {name} | {_percent(values['recall'])} | {_percent(values['precision'])} | {values['support']} |"
        for name, values in validation.get("per_class", {}).items()
    ]
    chosen = "the best weights" if card.uncalibrated else "the best weights and the temperature"
    flattering = (
        "The temperature was fitted to these cells, so the figures flatter a little."
        if card.calibrated_on and not card.uncalibrated
        else f"These cells chose {chosen}, so the figures flatter a little; the test pool's are with\nthe registered version."
    )
    stale = validation.get("out_of_date", 0)
    flattering += f"\n{stale} of these labels were corrected since: the figures are out of date." if stale else ""
    whose = "its validation pool" if not card.calibrated_on else card.calibrated_on.partition("; ")[0]
    return f"""## How well it did on {whose}

{validation.get("n", 0)} cells, accuracy {_percent(validation.get("accuracy"))}, macro-F1 {_percent(validation.get("macro_f1"))}.
{flattering}

| class | recall | precision | cells |
|---|---|---|---|
{chr(10).join(rows)}
"""


def _calibration(card: ModelCard) -> str:
    if card.uncalibrated:
        return (
            f"- **Not calibrated.** No temperature was fitted: {card.uncalibrated}. Its probabilities do not say how often\n"
            "  it is right. `wbc calibrate` fits one on more cells."
        )
    return (
        "- The probabilities and the prediction set are calibrated for the site of these cells only; `wbc calibrate` makes them "
        "another\n  site's."
    )


def _flags(card: ModelCard) -> str:
    """The flags that the service raises beside a cell's name; nothing where the card has no thresholds for them."""
    known = card.out_of_distribution
    if known is None:
        return ""
    loss = "" if known.predicted_loss_threshold is None else "\n- `high_predicted_loss`: LossNet expects the name to be wrong."
    return f"""
The service flags such doubt for a person to review:

- `not_a_leukocyte`: the cell looks like none of the classes.
- `site_unknown`: stain, lamp or camera are not those of the site that it was calibrated for.{loss}

These are flags, not classes: a flagged cell still has a name, and a cell without a flag can still be none of the classes. Each
flag is also raised for about {known.false_alarms:.1%} of the site's own cells.
"""


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
