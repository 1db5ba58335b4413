"""params.yaml: typed, and a mistake is named with the nearest right key."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from dvc.utils.serialize import load_yaml
from pydantic import BaseModel

from wbc_model.acquisition.strategies import STRATEGIES
from wbc_model.choices import Acquisition
from wbc_model.core.errors import WbcError
from wbc_model.params import (
    GONE,
    NEEDS_LOSSNET,
    Params,
    Preset,
    check_paths,
    checked_params,
    gone_keys,
    parse_params,
    read_params,
)

TEXT = (Path(__file__).parents[2] / "params.yaml").read_text()


def test_the_projects_own_file_is_right():
    params = parse_params(TEXT)
    assert params.size == params.presets[params.preset]
    assert set(params.presets) == {"small", "standard", "full"}
    assert [params.presets[name].image_size for name in ("small", "standard", "full")] == [64, 128, 224]


def test_few_labels_change_the_training_and_nothing_else():
    params = parse_params(TEXT)
    few = params.for_labels(params.few_labels.below - 1)
    assert (few.train.ema, few.train.unlabelled_ratio, few.train.strong_share) == (0.99, 1.0, 0.5)
    assert few.train.learning_rate == params.train.learning_rate
    assert (params.size.updates, few.size.updates) == (1500, 500)
    assert few.size.model_copy(update={"updates": 1500}) == params.size
    assert few.presets["full"] == params.presets["full"]
    assert few.model_dump(exclude={"train", "presets"}) == params.model_dump(exclude={"train", "presets"})
    assert params.for_labels(params.few_labels.below) == params
    never = parse_params(TEXT.replace("  below: 500 ", "  below: 0 "))
    assert never.for_labels(0) == never


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  learning_rate:", "  lerning_rate:", "unknown key train.lerning_rate; did you mean train.learning_rate?"),
        ("seed: 0", "sede: 0", "seed"),
        ("attention: cbam", "attention: cbma", "model.attention: .*'cbma'.*did you mean cbam"),
        ("norm: batch", "norm: gruop", "model.norm: .*'gruop'.*did you mean group"),
        ("preset: small", "preset: smal", "did you mean small"),
        ("  learning_rate:", "  length:", "unknown key train.length$"),
        ("  norm: batch", "  momentum: 0.9", "unknown key model.momentum$"),
        ("strategy: badge           # random", "strategy: magic # random", r"acquisition.strategy: .*\(got 'magic'\)$"),
        ("timezone: null", "timezone: Atlantis", "is no time zone that is known here; such as America/Los_Angeles"),
        ("strong_share: 0.0", "strong_share: 8", "train.strong_share: .*less than or equal to 1.*8"),
        ("eval_every: 50", "eval_every: fifty", "train.eval_every: .*integer.*'fifty'"),
        ("lossnet: true", "lossnet: 'yes'", "model.lossnet: .*boolean"),
        ("    image_size: 64", "    image_sise: 64", "presets.small.image_sise; did you mean presets.small.image_size"),
        ("  alpha: 0.05", "  alpha: 5", "gate.alpha: .*less than or equal to 1"),
        ("Basophil: 0.8", "Basofil: 0.8", "recall_floor needs exactly the classes"),
        ("test_share: 0.2", "test_share: 0.9", "leave no training cells"),
        ("strategy: badge           # random", "strategy: bagde # random", "acquisition.strategy: .*'bagde'.*did you mean badge"),
        ("first_strategy: typiclust", "first_strategy: typicluts", "onboard.first_strategy: .*did you mean typiclust"),
        ('cron: "0 2 * * *"', 'cron: "every night"', "schedule.cron: is no cron line: it has five fields.*'every night'"),
        ('cron: "0 2 * * *"', 'cron: "0 25 * * *"', "schedule.cron: is no cron line: Bad hour"),
        ('cron: "0 2 * * *"', 'cron: "@nightly"', "schedule.cron: is no cron line"),
        ("timezone: null", "timezone: America/Los_Angles", "schedule.timezone: .*did you mean America/Los_Angeles"),
        ("timezone: null", "timezone: ../etc/passwd", "schedule.timezone: is no time zone"),
        ("brightness: [40, 250]", "brightness: [250, 40]", "checks.brightness: the lower bound comes first"),
        ("model_name: wbc", "model_name: a/b", "tracking.model_name"),
        ("seed: 0", "seed: 0\nseed: 1", "line 4: 'seed' stands twice"),
        ("learning_rate: 0.001", "learning_rate: .inf", "inf is no finite number"),
        ("lossnet: true", "lossnet: yes", "model.lossnet: .*boolean.*'yes'"),
    ],
)
def test_a_mistake_is_named(old: str, new: str, message: str):
    assert old in TEXT
    with pytest.raises(WbcError, match=message) as caught:
        parse_params(TEXT.replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_a_strategy_that_needs_lossnet_has_it():
    wrong = TEXT.replace("lossnet: true", "lossnet: false").replace(
        "  strategy: badge           # r", "  strategy: learning_loss # r"
    )
    with pytest.raises(WbcError, match="learning_loss needs LossNet"):
        parse_params(wrong)


def test_the_choices_are_the_strategies_that_there_are():
    assert set(get_args(Acquisition)) == set(STRATEGIES)
    assert set(NEEDS_LOSSNET) == {name for name, strategy in STRATEGIES.items() if "predicted_loss" in strategy.needs}


def test_a_power_of_ten_is_a_number_for_us_and_for_dvc(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace("learning_rate: 0.001", "learning_rate: 1e-3", 1), encoding="utf-8-sig")
    assert read_params(path).train.learning_rate == load_yaml(path)["train"]["learning_rate"] == 0.001


def test_a_file_without_the_later_keys_is_right():
    older = "\n".join(line for line in TEXT.splitlines() if not line.startswith("  timezone:"))
    assert parse_params(older).schedule.timezone is None


def test_a_path_that_is_not_there_is_named_before_anything_starts(tmp_path: Path):
    source = parse_params(TEXT.replace("source: rendered ", "source: cells.csv "))
    with pytest.raises(WbcError, match=r"data\.source cells\.csv"):
        check_paths(source, tmp_path, fills_pools=True)
    check_paths(source, tmp_path, fills_pools=False)
    (tmp_path / "cells.csv").touch()
    check_paths(source, tmp_path, fills_pools=True)
    with pytest.raises(WbcError, match=r"model\.init_weights: resnet\.pth does not exist"):
        check_paths(parse_params(TEXT.replace("init_weights: null", "init_weights: resnet.pth")), tmp_path, fills_pools=False)


def test_missing_and_broken_files(tmp_path: Path):
    with pytest.raises(WbcError, match="wbc init DIR"):
        read_params(tmp_path / "params.yaml")
    with pytest.raises(WbcError, match=r"params\.yaml line 1"):
        parse_params("a: [")
    with pytest.raises(WbcError, match="must be a YAML mapping"):
        parse_params("- a")
    (tmp_path / "params.yaml").write_text(TEXT, encoding="utf-16")
    with pytest.raises(WbcError, match="save it as UTF-8"):  # DVC does not read it
        read_params(tmp_path / "params.yaml")


def test_a_processor_without_bf16_is_told_of_before_it_trains(tmp_path: Path) -> None:
    from flows.pipeline.precision import slow_precision

    params, nowhere = parse_params(TEXT), tmp_path / "nowhere"
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("model name : old\nflags\t\t: fpu sse avx2\n")
    new.write_text("model name : new\nflags\t\t: fpu sse avx2 avx512_bf16\n")
    assert "--set presets.small.precision=32-true" in slow_precision(params, cpuinfo=old, gpu=nowhere)
    assert [slow_precision(params, cpuinfo=new, gpu=nowhere), slow_precision(params, cpuinfo=nowhere, gpu=nowhere)] == ["", ""]
    assert slow_precision(params, cpuinfo=old, gpu=tmp_path) == "", "a GPU trains in bf16"
    exact = params.size.model_copy(update={"precision": "32-true"})
    assert (
        slow_precision(params.model_copy(update={"presets": params.presets | {"small": exact}}), cpuinfo=old, gpu=nowhere) == ""
    )


def keys_of(section: type[BaseModel], place: str = "") -> Iterator[str]:
    """Every parameter, dotted; those of the presets once."""
    for name, field in section.model_fields.items():
        kind = Preset if name == "presets" else field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys_of(kind, f"{place}{name}.")
        else:
            yield f"{place}{name}"


def test_there_are_no_more_parameters_than_a_user_turns() -> None:
    keys = list(keys_of(Params))
    assert len(keys) <= 60
    assert not GONE & set(keys)


def test_a_file_of_before_still_works_and_the_keys_that_went_are_named() -> None:
    before = load_yaml(Path(__file__).parent / "before/params.yaml")
    assert checked_params(before) == parse_params(TEXT.replace("candidates: auto", "candidates: 0"))
    gone = gone_keys(before)
    assert len(gone) == len(GONE) - 1, "after_cycle is the program's own"
    assert gone[:3] == ["data.max_conflict_share", "checks.min_contrast", "checks.near_duplicate_bits"]
    assert gone_keys(load_yaml(Path(__file__).parents[2] / "params.yaml")) == []


def test_without_the_gates_test_there_is_no_limit_of_comparisons() -> None:
    assert parse_params(TEXT).gate.max_comparisons == 20
    assert parse_params(TEXT.replace("alpha: 0.05", "alpha: 0")).gate.max_comparisons > 10**9
