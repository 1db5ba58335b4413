"""`params.yaml` as typed parameters: every number a user may change, checked before anything runs."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wbc_model.classes import CLASSES
from wbc_model.errors import WbcError
from wbc_model.images import View

Share = Annotated[float, Field(ge=0, le=1)]
PresetName = Literal["small", "standard", "full"]
Attention = Literal["none", "eca", "srm", "cbam"]
Norm = Literal["batch", "group", "frozen"]
Pretraining = Literal["none", "simsiam", "vicreg", "dino"]


class Section(BaseModel):
    """A part of params.yaml: no unknown key, no silent conversion of a mistyped value."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataParams(Section):
    source: str
    rendered_cells: Annotated[int, Field(ge=50)]
    validation_share: Share
    test_share: Share
    initial_share: Share
    initial: Literal["colours", "random"]

    @model_validator(mode="after")
    def _some_training_cells(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave no training cells")
        return self


class CheckParams(Section):
    brightness: Annotated[list[float], Field(min_length=2, max_length=2)]
    min_contrast: Annotated[float, Field(ge=0)]
    min_sharpness: Annotated[float, Field(ge=0)]
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)]
    near_duplicate_correlation: Annotated[float, Field(gt=0, le=1)]
    max_quarantined_share: Share
    min_test_cells_per_class: Annotated[int, Field(ge=0)]


class Preset(Section):
    image_size: Annotated[int, Field(ge=32, le=512, multiple_of=32)]
    batch_size: Annotated[int, Field(ge=2)]
    updates: Annotated[int, Field(ge=1)]
    precision: Literal["32-true", "bf16-mixed"]


class ModelParams(Section):
    view: View
    attention: Attention
    lossnet: bool
    norm: Norm
    init_weights: str | None


class TrainParams(Section):
    pretraining: Pretraining
    pretraining_updates: Annotated[int, Field(ge=1)]
    augmentation: Literal["mild", "sites"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    label_smoothing: Share
    warmup_share: Share
    eval_every: Annotated[int, Field(ge=1)]
    patience: Annotated[float, Field(gt=0, le=1)]
    lossnet_weight: Annotated[float, Field(ge=0)]
    lossnet_margin: Annotated[float, Field(ge=0)]
    lossnet_gradient_share: Share
    hard_share: Annotated[float, Field(ge=0, lt=1)]
    hard_fraction: Annotated[float, Field(gt=0, le=1)]
    hard_start_share: Share
    rarity: Annotated[float, Field(ge=0)]
    strong_share: Share
    logit_adjustment: Annotated[float, Field(ge=0)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    unlabelled_ratio: Annotated[float, Field(ge=0)]
    unlabelled_start_share: Share
    pseudo_label_threshold: Share
    devices: Annotated[int, Field(ge=1)]
    accelerator: Literal["auto", "cpu", "cuda"]


class FewLabelsParams(Section):
    below: Annotated[int, Field(ge=0)]
    updates_share: Annotated[float, Field(gt=0, le=1)]
    strong_share: Share
    logit_adjustment: Annotated[float, Field(ge=0)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    unlabelled_ratio: Annotated[float, Field(ge=0)]
    unlabelled_start_share: Share


class AcquisitionParams(Section):
    strategy: str
    candidates: Annotated[int, Field(ge=0)]


class AdaptationParams(Section):
    updates: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    site_share: Annotated[float, Field(gt=0, lt=1)]
    rarity: Annotated[float, Field(ge=0)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    unlabelled_ratio: Annotated[float, Field(ge=0)]
    unlabelled_start_share: Share
    pseudo_label_threshold: Share


class OnboardParams(Section):
    labels: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=1)]
    first_strategy: str
    strategy: str
    max_home_loss: Share
    train: AdaptationParams


class RetrainParams(Section):
    until: Annotated[float, Field(gt=0)]
    cycles: Annotated[int, Field(ge=1)]
    after_cycle: Annotated[int, Field(ge=0)]
    annotator: Literal["oracle", "people"]


class GateParams(Section):
    recall_floor: dict[str, Share]
    max_recall_drop: Share
    max_accuracy_drop: Share
    alpha: Share

    @model_validator(mode="after")
    def _every_class_has_a_floor(self) -> Self:
        if set(self.recall_floor) != set(CLASSES):
            raise ValueError(f"recall_floor needs exactly the classes {', '.join(CLASSES)}")
        return self


class PackageParams(Section):
    int8: bool


class TrackingParams(Section):
    uri: str
    experiment: str
    model_name: str


class ScheduleParams(Section):
    cron: str
    min_new_labels: Annotated[int, Field(ge=1)]


class Params(Section):
    """The whole of params.yaml; `size` holds the numbers of the chosen preset."""

    preset: PresetName
    seed: Annotated[int, Field(ge=0)]
    data: DataParams
    checks: CheckParams
    presets: dict[PresetName, Preset]
    model: ModelParams
    train: TrainParams
    few_labels: FewLabelsParams
    acquisition: AcquisitionParams
    onboard: OnboardParams
    retrain: RetrainParams
    gate: GateParams
    package: PackageParams
    tracking: TrackingParams
    schedule: ScheduleParams

    @model_validator(mode="after")
    def _preset_is_there(self) -> Self:
        if self.preset not in self.presets:
            raise ValueError(f"preset {self.preset} is not among presets")
        return self

    @property
    def size(self) -> Preset:
        return self.presets[self.preset]

    def for_labels(self, labels: int) -> Self:
        """The parameters of a training with so many labelled cells: `train` and the preset with what `few_labels` says of few."""
        few = self.few_labels
        if labels >= few.below:
            return self
        train = self.train.model_copy(update=few.model_dump(exclude={"below", "updates_share"}))
        size = self.size.model_copy(update={"updates": max(1, round(few.updates_share * self.size.updates))})
        return self.model_copy(update={"train": train, "presets": {**self.presets, self.preset: size}})


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys that params.yaml may have in the section at `location`."""
    section: Any = Params
    for part in location:
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        if field is not None:
            section = field.annotation
        elif part in ("small", "standard", "full"):
            section = Preset
    return list(section.model_fields) if hasattr(section, "model_fields") else []


def _explain(path: Path, error: ValidationError) -> str:
    # A misspelt key is both unknown and missing: the unknown one is what the user wrote.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    location, key = first["loc"], ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _known_keys(location[:-1]), n=1, cutoff=0.4)
        hint = f"; did you mean {'.'.join([*map(str, location[:-1]), near[0]])}?" if near else ""
        return f"{path}: unknown key {key}{hint}"
    if first["type"] == "missing":
        return f"{path}: the key {key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
    if first["type"] == "literal_error":
        allowed = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        near = difflib.get_close_matches(str(first["input"]), allowed, n=1)
        got += f"; did you mean {near[0]}?" if near else ""
    return f"{path}: {key or 'params'}: {message}{got}"


def parse_params(text: str, path: Path = Path("params.yaml")) -> Params:
    """Parse the text of a params.yaml; raises WbcError naming the wrong key and the nearest right one."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise WbcError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(document, dict):
        raise WbcError(f"{path}: expected a mapping of sections, found {type(document).__name__}")
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        raise WbcError(_explain(path, error)) from None


def read_params(path: Path) -> Params:
    """Read and check a params.yaml; raises WbcError."""
    try:
        return parse_params(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise WbcError(f"{path} is missing: run this inside a workspace (`wbc init DIR` makes one)") from None
