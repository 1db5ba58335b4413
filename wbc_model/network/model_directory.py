"""The model directory: weights as safetensors, the network as ONNX, the card as JSON and as a page for a clinician."""

import logging
import warnings
from pathlib import Path

import onnx
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wbc_model.core.files import building, file_sha256, write_atomic
from wbc_model.core.model_card import CARD, ONNX, README, REFERENCE, WEIGHTS, ModelCard, read_card
from wbc_model.core.reference import Reference
from wbc_model.network.resnet import AttentionResNet18


class _Served(nn.Module):
    """The graph that is served: uint8 images (N, S, S, 3) to logits, predicted loss and embedding, normalisation
    inside."""

    def __init__(self, network: AttentionResNet18) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.network(images.permute(0, 3, 1, 2).float() / 255)
        return output.logits, output.predicted_loss, output.embedding


def export_onnx(network: AttentionResNet18, size: int, path: Path) -> None:
    """Write the network as ONNX with a dynamic batch: `images` uint8 to `logits`, `predicted_loss` and `embedding` float32."""
    outputs = ["logits", "predicted_loss", "embedding"]
    served = _Served(network).eval()
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            served,
            (example,),
            str(path),
            input_names=["images"],
            output_names=outputs,
            dynamo=False,
            dynamic_axes={name: {0: "batch"} for name in ("images", *outputs)},
            opset_version=18,
        )
    onnx.checker.check_model(str(path), full_check=True)


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


def save_model(directory: Path, network: AttentionResNet18, card: ModelCard, reference: Reference | None = None) -> ModelCard:
    """Write a whole model directory in the place of an older one; returns the card with the files' digests."""
    with building(directory) as temporary:
        network = network.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary / WEIGHTS)
        export_onnx(network, card.input_size, temporary / ONNX)
        digests = {name: file_sha256(temporary / name) for name in (WEIGHTS, ONNX)}
        card = card.model_copy(update={"sha256": digests, "version": card.version or digests[WEIGHTS][:12]})
        card = with_reference(temporary, card, reference)
        write_card(temporary, card)
    return card


def with_reference(directory: Path, card: ModelCard, reference: Reference | None) -> ModelCard:
    """Have this reference, or none, in a model directory; returns its card, which is not written yet."""
    digests = {name: digest for name, digest in card.sha256.items() if name != REFERENCE}
    if reference is None:
        (directory / REFERENCE).unlink(missing_ok=True)
    else:
        reference.write(directory / REFERENCE)
        digests[REFERENCE] = file_sha256(directory / REFERENCE)
    return card.model_copy(update={"sha256": digests})


def write_card(directory: Path, card: ModelCard) -> None:
    """(Re)write `model.json` and `README.md` of a model directory."""
    write_atomic(directory / CARD, card.model_dump_json(indent=2) + "\n")
    write_atomic(directory / README, render_readme(card))


def load_model(directory: Path) -> tuple[AttentionResNet18, ModelCard]:
    """The network in evaluation mode, on the CPU, and its card; raises WbcError when the directory is damaged."""
    card = read_card(directory)
    architecture = card.architecture
    network = AttentionResNet18(architecture.attention, architecture.lossnet, len(card.classes), architecture.norm)
    network.load_state_dict(load_file(directory / WEIGHTS))
    return network.eval(), card
