"""The model directory's `model.json`: what a model is, where it came from, and how far it can be trusted.

weights.safetensors   the network's parameters
model.onnx            uint8 images (N, size, size, 3) named `images` to float32 `logits` (N, classes) and
                      `predicted_loss` (N,); normalisation is inside the graph. Newer ones give `embedding` (N, 512).
model.json            this card
README.md             the card for a clinician
reference.npz         a few numbers of each cell that the model was chosen by; older models have none.
model-int8.xml, .bin  where it passed the gate of flows/pipeline/quantise.py: the graph in int8, which answers first in its place
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.files import file_sha256
from wbc_model.core.images import View
from wbc_model.core.out_of_distribution import OutOfDistribution
from wbc_model.core.probabilities import at_bound

PoolName = Literal["labelled", "validation", "test"]
WEIGHTS, ONNX, CARD, README = "weights.safetensors", "model.onnx", "model.json", "README.md"
REFERENCE = "reference.npz"
INT8 = ("model-int8.xml", "model-int8.bin")


class Architecture(BaseModel):
    """What rebuilds the network from its weights."""

    model_config = ConfigDict(extra="forbid")
    network: str = "AttentionResNet18"
    attention: str
    lossnet: bool
    norm: str = "batch"  # older cards do not say


class Normalisation(BaseModel):
    """(pixel / 255 - mean) / std per RGB channel; applied inside the network and the ONNX graph."""

    model_config = ConfigDict(extra="forbid")
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ModelCard(BaseModel):
    """`model.json`. `temperature` divides the logits before the softmax; `conformal_threshold` is the probability at or
    above which a class joins the prediction set (split conformal, calibrated on the validation pool)."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    name: str = "wbc"
    version: str
    created_at: str = ""  # when the newest label was given that it is made from; of cards made before: their commit's date
    classes: tuple[str, ...] = CLASSES
    input_size: int
    view: View = "whole"  # of the cell that the network was trained on: wbc_model/core/images.py
    normalisation: Normalisation
    architecture: Architecture
    temperature: float = 1.0
    uncalibrated: str = ""  # why the temperature is not one that was fitted; empty: it was
    conformal_coverage: float = 0.95
    conformal_threshold: float = 0.0
    calibrated_on: str = ""  # the cells that the three above, those below and the confusion are from; empty: the validation pool
    # What is no leukocyte, and what is of another site; None where there were too few cells. Older cards call it `doubt`.
    # A digest of a card is made by alias: the same model keeps the digest that it was registered with.
    out_of_distribution: OutOfDistribution | None = Field(
        default=None, validation_alias=AliasChoices("out_of_distribution", "doubt"), serialization_alias="doubt"
    )
    pool_version: str = ""
    data_source: str = ""
    rendered: bool = False
    git_commit: str = ""  # a champion's: the commit that its pools and it are tagged in, where there is one (decision 044)
    parameters: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    sha256: dict[str, str] = {}
    # By pool: `labelled` it learned from, `validation` chose its weights and its temperature, `test` is what its scores are from.
    cells: dict[PoolName, CellFilter] = {}

    @model_validator(mode="after")
    def _bounds_are_no_fit(self) -> Self:
        """Cards of before the field `uncalibrated` may have a bound for a temperature."""
        if not self.uncalibrated and at_bound(self.temperature):
            self.uncalibrated = "its temperature is a bound of those that were tried, so that nothing was fitted"
        return self


def read_card(directory: Path, verify: bool = True) -> ModelCard:
    """Read and check a model directory; raises WbcError naming the file that is missing, damaged or changed."""
    path = directory / CARD
    try:
        card = ModelCard.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise WbcError(f"{directory} is not a model directory: {CARD} is missing") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise WbcError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if card.classes != CLASSES:
        raise WbcError(f"{path}: classes are {list(card.classes)}, this version knows {list(CLASSES)}")
    for name, expected in card.sha256.items() if verify else ():
        file = directory / Path(name).name
        if not file.is_file():
            raise WbcError(f"{directory}: {name} is missing")
        if file_sha256(file) != expected:
            raise WbcError(f"{file} is damaged: its sha256 is not the one in {CARD}")
    return card
