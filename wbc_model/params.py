"""`params.yaml` as typed parameters: every number a user may change, checked before anything runs."""

import re
import sys
import zoneinfo
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from wbc_model.choices import AUTO, RUNNERS, Acquisition, Annotator, Candidates, PresetName
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError, nearest
from wbc_model.core.images import View
from wbc_model.core.written import decode_written, parse_yaml

Share = Annotated[float, Field(ge=0, le=1)]
NEEDS_LOSSNET: Final = ("learning_loss", "diverse_loss")  # strategies that look at the loss which LossNet predicts
RENDERED: Final = "rendered"
Attention = Literal["none", "eca", "srm", "cbam"]
Norm = Literal["batch", "group"]
Pretraining = Literal["none", "simsiam", "vicreg", "dino"]


# What differs from the section `train` while few cells are labelled, and the share of the preset's updates (decisions 026, 027).
FEW_LABELS: Final = {"strong_share": 0.5, "logit_adjustment": 1.0, "ema": 0.99, "unlabelled_ratio": 1.0}
FEW_LABELS_UPDATES: Final = 0.3333

# Keys that a params.yaml made before may have. They became constants (decision 048), or a file of the workspace (`after_cycle`).
GONE: Final = frozenset(
    {
        "data.max_conflict_share",
        "checks.near_duplicate_bits",
        "checks.near_duplicate_correlation",
        "checks.min_contrast",
        *(f"train.{name}" for name in ("weight_decay", "label_smoothing", "warmup_share", "patience", "rarity")),
        *(f"train.{name}" for name in ("lossnet_weight", "lossnet_margin", "hard_fraction", "hard_start_share")),
        *(f"train.{name}" for name in ("unlabelled_start_share", "pseudo_label_threshold")),
        *(f"few_labels.{name}" for name in ("updates_share", *FEW_LABELS, "unlabelled_start_share")),
        *(f"onboard.train.{name}" for name in ("learning_rate", "site_share", "rarity", "ema", "unlabelled_ratio")),
        *(f"onboard.train.{name}" for name in ("unlabelled_start_share", "pseudo_label_threshold")),
        "onboard.strategy",
        "retrain.after_cycle",
        "gate.max_comparisons",
        "train.accelerator",
    }
)


class Section(BaseModel):
    """A part of params.yaml: no unknown key, no silent conversion of a mistyped value."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


_SHORT: Final = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")


def _cron(text: str) -> str:
    if text in _SHORT:
        return text
    if len(text.split()) != 5:
        raise ValueError("is no cron line: it has five fields, minute, hour, day, month and weekday, such as 0 2 * * *")
    try:
        CronSim(text, datetime.now(UTC))
    except CronSimError as error:
        raise ValueError(f"is no cron line: {error}; such as 0 2 * * * for two o'clock every night") from None
    return text


def _timezone(name: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        near = nearest(name, zoneinfo.available_timezones())
        hint = f"; did you mean {near}?" if near else "; such as America/Los_Angeles"
        raise ValueError(f"is no time zone that is known here{hint}") from None
    return name


NOTIFY: Final = re.compile(r"https?://[^\s/]+(/\S*)?|[a-z0-9-]+/[a-z0-9-]+")


def _notify(where: str) -> str:
    if not NOTIFY.fullmatch(where):
        raise ValueError("is neither a webhook's address (https://...) nor a Prefect block (slack-webhook/NAME)")
    return where


SCHEDULER: Final = re.compile(r"(tcp|tls)://[^\s/:]+:\d{1,5}")


def _runner(named: str) -> str:
    if named not in RUNNERS and not SCHEDULER.fullmatch(named):
        raise ValueError("is neither local nor dask, nor the address of a Dask scheduler, such as tcp://10.0.0.5:8786")
    return named


Cron = Annotated[str, AfterValidator(_cron)]
Timezone = Annotated[str, AfterValidator(_timezone)]
Text = Annotated[str, Field(min_length=1)]


Named = Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]  # 0 is as YAML has it


class DataParams(Section):
    source: Text
    rendered_cells: Annotated[int, Field(ge=50)]
    validation_share: Share
    test_share: Share
    initial_share: Share
    initial: Literal["colours", "random"]
    label_names: dict[Named, str] = {}

    @field_validator("label_names")
    @classmethod
    def _names_of_classes(cls, names: dict[str, str]) -> dict[str, str]:
        for name, label in names.items():
            if label not in CLASSES:
                raise ValueError(f"{name}: {label!r} is not one of {', '.join(CLASSES)}")
        return names

    @model_validator(mode="after")
    def _some_training_cells(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave no training cells")
        return self


def _rising(bounds: list[float]) -> list[float]:
    if bounds[0] >= bounds[1]:
        raise ValueError("the lower bound comes first, and is less than the upper one")
    return bounds


class CheckParams(Section):
    brightness: Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_rising)]
    min_sharpness: Annotated[float, Field(ge=0)]
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
    augmentation: Literal["mild", "sites", "both"]
    learning_rate: Annotated[float, Field(gt=0)]
    eval_every: Annotated[int, Field(ge=1)]
    lossnet_gradient_share: Share
    hard_share: Annotated[float, Field(ge=0, lt=1)]
    strong_share: Share
    logit_adjustment: Annotated[float, Field(ge=0)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    unlabelled_ratio: Annotated[float, Field(ge=0)]
    devices: Annotated[int, Field(ge=1)]


class FewLabelsParams(Section):
    below: Annotated[int, Field(ge=0)]


class AcquisitionParams(Section):
    strategy: Acquisition
    candidates: Candidates

    @field_validator("candidates", mode="before")
    @classmethod
    def _candidates(cls, value: object) -> object:
        if value != AUTO and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ValueError("is neither auto nor a whole number from 0 on")
        return value


class AdaptationParams(Section):
    updates: Annotated[int, Field(ge=1)]


class OnboardParams(Section):
    labels: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=1)]
    first_strategy: Acquisition
    max_home_loss: Share
    train: AdaptationParams


class RetrainParams(Section):
    until: Annotated[float, Field(gt=0)]
    ask: Annotated[int, Field(ge=1)] | None = None
    cycles: Annotated[int, Field(ge=1)]
    annotator: Annotator
    runner: Annotated[str, AfterValidator(_runner)] = "local"

    @property
    def scheduler(self) -> str | None:
        """The address of the Dask scheduler that `runner` names; None where it names none."""
        return None if self.runner in RUNNERS else self.runner


class GateParams(Section):
    recall_floor: dict[str, Share]
    max_recall_drop: Share
    max_accuracy_drop: Share
    alpha: Share

    @property
    def max_comparisons(self) -> int:
        """Comparisons on the same test cells, after which one of them is expected to be wrong by chance: 1 / alpha. Without the
        test (alpha 0) there is no limit."""
        return round(1 / self.alpha) if self.alpha else sys.maxsize

    @model_validator(mode="after")
    def _every_class_has_a_floor(self) -> Self:
        if set(self.recall_floor) != set(CLASSES):
            raise ValueError(f"recall_floor needs exactly the classes {', '.join(CLASSES)}")
        return self


class PackageParams(Section):
    int8: bool


class TrackingParams(Section):
    uri: Text
    experiment: Text
    model_name: Annotated[str, Field(pattern=r"^[^/:'\"]+$")]  # what MLflow takes


class ScheduleParams(Section):
    cron: Cron
    timezone: Timezone | None = None
    notify: Annotated[str, AfterValidator(_notify)] | None = None
    min_new_labels: Annotated[int, Field(ge=1)]
    wait_hours: Annotated[float, Field(gt=0)] | None = None


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

    @model_validator(mode="after")
    def _lossnet_is_there(self) -> Self:
        if self.acquisition.strategy in NEEDS_LOSSNET and not self.model.lossnet:
            raise ValueError(f"acquisition.strategy {self.acquisition.strategy} needs LossNet, and model.lossnet is false")
        return self

    @property
    def size(self) -> Preset:
        return self.presets[self.preset]

    def for_labels(self, labels: int) -> Self:
        """The parameters of a training with so many labelled cells: fewer than `few_labels.below` are trained as FEW_LABELS says,
        with a third of the updates."""
        if labels >= self.few_labels.below:
            return self
        train = self.train.model_copy(update=FEW_LABELS)
        size = self.size.model_copy(update={"updates": max(1, round(FEW_LABELS_UPDATES * self.size.updates))})
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
        near = nearest(str(location[-1]), _known_keys(location[:-1]))
        hint = f"; did you mean {'.'.join([*map(str, location[:-1]), near])}?" if near else ""
        return f"{path}: unknown key {key}{hint}"
    if first["type"] == "missing":
        return f"{path}: the key {key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
    if first["type"] == "literal_error":
        allowed = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        near = nearest(str(first["input"]), allowed)
        got += f"; did you mean {near}?" if near else ""
    return f"{path}: {key or 'params'}: {message}{got}"


def parse_params(text: str, path: Path = Path("params.yaml")) -> Params:
    """Parse the text of a params.yaml; raises WbcError naming the wrong key and the nearest right one."""
    return checked_params(parse_yaml(text, path), path)


def checked_params(document: Mapping[str, Any], path: Path = Path("params.yaml")) -> Params:
    """The same of what the YAML says, which came from `path`. Keys that went are left out."""
    try:
        return Params.model_validate(_without_gone(document))
    except ValidationError as error:
        raise WbcError(_explain(path, error)) from None


def _without_gone(section: Any, place: str = "") -> Any:
    """The document without the keys of GONE."""
    if not isinstance(section, Mapping):
        return section
    return {key: _without_gone(value, f"{place}{key}.") for key, value in section.items() if f"{place}{key}" not in GONE}


def gone_keys(document: Mapping[str, Any]) -> list[str]:
    """The keys of a params.yaml made before that have no effect any more, dotted, in its order; the program's own state apart."""
    found: list[str] = []

    def look_into(section: Mapping[str, Any], place: str) -> None:
        for key, value in section.items():
            if f"{place}{key}" in GONE - {"retrain.after_cycle"}:
                found.append(f"{place}{key}")
            elif isinstance(value, Mapping):
                look_into(value, f"{place}{key}.")

    look_into(document, "")
    return found


def params_text(path: Path) -> str:
    """The text of a params.yaml. DVC reads the file too, and as UTF-8 only. Raises WbcError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise WbcError(f"{path} is missing: run this inside a workspace (`wbc init DIR` makes one)") from None
    except OSError as error:
        raise WbcError(f"{path}: cannot be read: {error.strerror}") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise WbcError(f"{path}: is no UTF-8 text: save it as UTF-8")
    return decode_written(data, path)


def read_params(path: Path) -> Params:
    """Read and check a params.yaml; raises WbcError."""
    return parse_params(params_text(path), path)


def check_paths(params: Params, workspace: Path, fills_pools: bool) -> None:
    """Raises WbcError naming the key whose file is not there: of the weights that a training begins with and, where the pools
    are to be filled, of the data."""
    weights, source = params.model.init_weights, params.data.source
    if weights is not None and not (workspace / weights).is_file():
        raise WbcError(f"params.yaml: model.init_weights: {weights} does not exist")
    if fills_pools and source != RENDERED and "://" not in source and not (workspace / source).exists():
        raise WbcError(f"params.yaml: data.source {source}: there is no such file or folder; ingest data, or use `rendered`")
