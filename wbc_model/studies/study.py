"""A study as its author writes it: `studies/*.yaml`, checked like params.yaml before anything runs.

name: low-budget
data: pbc_raabin_like.csv       # a manifest or folder, or `rendered`
preset: small
seeds: 5                        # 0 to 4, or a list of seeds
budgets: [0.01, 0.02, 0.05]     # shares of the training cells (all up to 1), or counts (all above 1); increasing
initial: random                 # how the labels of the first budget are chosen
base: {train.strong_share: 0.5} # parameters that hold for all arms
arms:                           # name: the parameters that make the arm, and how it begins: `initial`, `start`
  plain: {model.lossnet: false, acquisition.strategy: random}
  full: {}
  warm: {start: warm}           # fresh: each budget from new weights | warm: from the weights of the budget before, heads too
grid: {model.attention: [none, cbam]}   # every combination of values, of every arm
reference: plain                # what the others are compared with
parts: {attention: [full, bare]}   # what a part adds by itself: the arm with it, and the arm that lacks only it
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wbc_model.acquisition.strategies import STRATEGIES
from wbc_model.choices import PresetName
from wbc_model.core.errors import WbcError, nearest
from wbc_model.core.written import read_yaml
from wbc_model.params import GONE, NEEDS_LOSSNET, Params, Share, checked_params

INITIAL: Final = "initial"  # this and START are the keys of an arm that are no keys of params.yaml
START: Final = "start"
FRESH: Final = "fresh"
WARM: Final = "warm"
HOME: Final = "home"  # the name of the pool's own test split among the evaluation sets
_NO_EFFECT: Final = ("seed", "checks", "few_labels", "retrain", "onboard", "gate", "package", "tracking", "schedule")
_NO_EFFECT_DATA: Final = ("source", "rendered_cells", "validation_share", "test_share", "initial_share", "initial")
# the last is for tuning: what is chosen by a score must not be the score that is reported
Metric = Literal["macro_f1", "balanced_accuracy", "accuracy", "validation_macro_f1"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class StudyFile(BaseModel):
    """The whole of a study file. Curves, areas and tests are about `metric`, and the tests ask the `alternative`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Name
    description: str = ""
    data: str
    preset: PresetName
    seeds: Annotated[int, Field(ge=1)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    budgets: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
    initial: str = "random"
    also_test: dict[Name, str] = {}
    base: dict[str, Any] = {}
    arms: dict[str, dict[str, Any]] = {}
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    reference: str
    parts: dict[str, Annotated[list[str], Field(min_length=2, max_length=2)]] = {}
    metric: Metric = "macro_f1"
    targets: list[Share] = [0.95, 0.98, 0.99]
    log_budget: bool = True
    alternative: Literal["two-sided", "greater"] = "two-sided"
    keep_history: bool = False

    @field_validator("arms", "base", "grid", "also_test", "parts", mode="before")
    @classmethod
    def _nothing_is_empty(cls, value: Any) -> Any:
        """`arms: {plain:}` and an empty section are YAML's null: no overrides."""
        if value is None:
            return {}
        return {key: {} if one is None else one for key, one in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if len(set(self.seed_list)) != len(self.seed_list):
            raise ValueError("a seed stands in seeds twice")
        if any(later <= earlier for earlier, later in itertools.pairwise(self.budgets)):
            raise ValueError("budgets must increase")
        if self.budgets[0] <= 1 < self.budgets[-1]:
            raise ValueError("budgets are all shares (up to 1) or all counts (above 1)")
        if self.budgets[0] > 1 and any(budget != int(budget) for budget in self.budgets):
            raise ValueError("a budget above 1 is a count of cells and must be a whole number")
        if not self.arms and not self.grid:
            raise ValueError("there is no arm: give arms, a grid, or both")
        if HOME in self.also_test:
            raise ValueError(f"also_test: {HOME} is the name of the data's own test split")
        return self

    @property
    def seed_list(self) -> list[int]:
        """The seeds, one by one."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


@dataclass(frozen=True)
class Arm:
    """One arm: what it changes, the whole parameters that result, how its first labels are chosen, and what its trainings after
    the first start from."""

    name: str
    overrides: dict[str, Any]
    params: Params
    initial: str
    start: str


@dataclass(frozen=True)
class Study:
    """A study that can be run: `base` are the parameters that the data are prepared with."""

    path: Path
    file: StudyFile
    base: Params
    arms: tuple[Arm, ...]

    @property
    def varied(self) -> list[str]:
        """The keys of params.yaml that some arm changes, in the order in which they first occur."""
        return list(dict.fromkeys(key for arm in self.arms for key in arm.overrides if key not in (INITIAL, START)))

    def counts(self, cells: int) -> list[int]:
        """The budgets as numbers of labels of a pool of `cells`. Raises WbcError where two are the same or one is too large."""
        shares = self.file.budgets[-1] <= 1
        counts = [round(budget * cells) if shares else int(budget) for budget in self.file.budgets]
        if counts[-1] > cells:
            raise WbcError(f"{self.path}: budgets: {counts[-1]} labels are asked for, the data have {cells} training cells")
        if counts[0] < 2 or any(later <= earlier for earlier, later in itertools.pairwise(counts)):
            raise WbcError(f"{self.path}: budgets: of {cells} training cells they are {counts}: too few, or twice the same")
        return counts

    def trainings(self) -> int:
        """The most trainings that a run needs: arms that differ only in what they ask share the first budget's."""
        first = {trained_on(arm.params) + arm.initial for arm in self.arms}
        return len(self.file.seed_list) * (len(first) + len(self.arms) * (len(self.file.budgets) - 1))


def trained_on(params: Params) -> str:
    """The parameters that a training depends on, as text. Those that say what to ask, where data come from and what happens to a
    finished model are not among them. The seed is not either."""
    dump = params.model_dump(exclude={"preset", "presets", "acquisition", *_NO_EFFECT})
    for name in _NO_EFFECT_DATA:
        dump["data"].pop(name, None)
    return repr(sorted(dump.items())) + repr(params.size.model_dump())


def value_of(params: Params, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = params
    for part in key.split("."):
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return value


def read_study(path: Path, params: Path) -> Study:
    """Read a study file; `params` is the params.yaml that its overrides start from. Raises WbcError naming the wrong key."""
    if not path.exists():
        raise WbcError(f"{path} does not exist: name a study file (YAML; see studies/)")
    document = read_yaml(path)
    try:
        file = StudyFile.model_validate(document)
    except ValidationError as error:
        raise WbcError(_explain(path, error)) from None
    start = read_yaml(params)
    start["preset"] = file.preset
    base = _overridden(start, file.base, f"{path}: base")
    prepared = _parsed(base, f"{path}: base")
    arms = tuple(_arm(name, overrides, base, file, path) for name, overrides in _expanded(file, path))
    names = [arm.name for arm in arms]
    named = [("reference", file.reference), *((f"parts: {part}", arm) for part, pair in file.parts.items() for arm in pair)]
    for where, arm in named:
        if arm not in names:
            near = nearest(arm, names)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(names)}"
            raise WbcError(f"{path}: {where}: there is no arm {arm!r}; {hint}")
    return Study(path, file, prepared, arms)


def _expanded(file: StudyFile, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every arm with every combination of the grid, by a name that one can read."""
    lasts = [key.rsplit(".", 1)[-1] for key in file.grid]
    short = {key: last if lasts.count(last) == 1 else key for key, last in zip(file.grid, lasts, strict=True)}
    expanded = []
    for name, overrides in (file.arms or {"": {}}).items():
        for values in itertools.product(*file.grid.values()):
            chosen = dict(zip(file.grid, values, strict=True))
            twice = sorted(set(chosen) & set(overrides))
            if twice:
                raise WbcError(f"{path}: {twice[0]} is set by the arm {name} and by the grid: leave it to one of them")
            parts = [name, *(f"{short[key]}={value}" for key, value in chosen.items())]
            expanded.append((", ".join(part for part in parts if part), {**overrides, **chosen}))
    return expanded


def _arm(name: str, overrides: dict[str, Any], base: Mapping[str, Any], file: StudyFile, path: Path) -> Arm:
    for key in overrides:
        first, _, rest = key.partition(".")
        if first in _NO_EFFECT or (first == "data" and rest in _NO_EFFECT_DATA) or key == "preset":
            raise WbcError(f"{path}: arm {name}: {key} is the same for all arms; set it under base or by the study's own keys")
    where = f"{path}: arm {name}"
    initial, start = overrides.get(INITIAL, file.initial), overrides.get(START, FRESH)
    if start not in (FRESH, WARM):
        raise WbcError(f"{where}: {START}: {start!r} is unknown; there are {FRESH}, {WARM}")
    document = _overridden(base, {key: value for key, value in overrides.items() if key not in (INITIAL, START)}, where)
    params = _parsed(document, where)
    for key, strategy in (("acquisition.strategy", params.acquisition.strategy), (INITIAL, str(initial))):
        if strategy not in STRATEGIES:
            raise WbcError(f"{where}: {key}: {strategy!r} is unknown; there are {', '.join(sorted(STRATEGIES))}")
        if strategy in NEEDS_LOSSNET and not params.model.lossnet:
            raise WbcError(f"{where}: {key}: {strategy} needs LossNet, and model.lossnet is false")
    if params.train.devices != 1:
        raise WbcError(f"{where}: train.devices: a study trains on one device at a time; share out its seeds with --jobs")
    return Arm(name, dict(overrides), params, str(initial), str(start))


def _overridden(document: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy of a params document with dotted keys set; a key that does not exist is left for the parser to name."""
    result = {key: _copied(value) for key, value in document.items()}
    for key, value in overrides.items():
        if key in GONE:
            raise WbcError(f"{where}: {key} went: it is a constant now, and no longer a parameter")
        *sections, last = str(key).split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise WbcError(f"{where}: {key}: {section} is a value and has no keys below it")
        place[last] = value
    return result


def _copied(value: Any) -> Any:
    return {key: _copied(one) for key, one in value.items()} if isinstance(value, dict) else value


def _parsed(document: Mapping[str, Any], where: str) -> Params:
    return checked_params(document, Path(where))


def _explain(path: Path, error: ValidationError) -> str:
    """The first fault of a study file in one line; an unknown key before a missing one, since a misspelt key is both."""
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        near = nearest(key, StudyFile.model_fields)
        return f"{path}: unknown key {key}" + (f"; did you mean {near}?" if near else "")
    if first["type"] == "missing":
        return f"{path}: the key {key} is missing"
    got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
    return f"{path}: {key or 'study'}: {first['msg'].removeprefix('Value error, ')}{got}"


def shown(overrides: Mapping[str, Any]) -> str:
    """Overrides as one readable line."""
    return ", ".join(f"{key}={_yaml(value)}" for key, value in overrides.items()) or "as params.yaml"


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()
    return text


def seeds_of(study: Study, wanted: Sequence[int] | None) -> list[int]:
    """The seeds to run: all of the study's, or those asked for. Raises WbcError for one that the study does not have."""
    seeds = study.file.seed_list
    unknown = sorted(set(wanted or []) - set(seeds))
    if unknown:
        raise WbcError(f"{study.path}: seed {unknown[0]} is not one of its seeds ({', '.join(map(str, seeds))})")
    return [seed for seed in seeds if not wanted or seed in wanted]
