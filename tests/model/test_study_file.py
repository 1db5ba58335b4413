"""A study file is checked before anything runs, and every fault is named."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from wbc_model.core.errors import WbcError
from wbc_model.studies.study import Study, read_study, seeds_of, shown, trained_on, value_of

ROOT = Path(__file__).parents[2]
GOOD: dict[str, Any] = {
    "name": "good",
    "data": "rendered",
    "preset": "small",
    "seeds": 2,
    "budgets": [0.1, 0.2],
    "arms": {"plain": {"acquisition.strategy": "random"}, "full": None},
    "reference": "plain",
}


def study(folder: Path, **changes: Any) -> Study:
    document = {key: value for key, value in {**GOOD, **changes}.items() if value != "absent"}
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return read_study(path, ROOT / "params.yaml")


def test_arms_are_the_base_with_their_overrides(tmp_path: Path) -> None:
    read = study(
        tmp_path,
        base={"train.strong_share": 0.3},
        arms={"a": {"model.lossnet": False, "acquisition.strategy": "margin"}, "plain": None},
    )
    a, plain = read.arms
    assert (a.name, a.params.model.lossnet, a.params.acquisition.strategy) == ("a", False, "margin")
    assert a.params.train.strong_share == plain.params.train.strong_share == 0.3
    assert plain.params.model.lossnet is True
    assert read.varied == ["model.lossnet", "acquisition.strategy"]
    assert value_of(a.params, "presets.small.batch_size") == 64


def test_what_an_arm_starts_from_is_no_parameter(tmp_path: Path) -> None:
    read = study(tmp_path, grid={"start": ["fresh", "warm"]}, reference="plain, start=fresh")
    assert [arm.start for arm in read.arms] == ["fresh", "warm"] * 2
    assert read.arms[0].params == read.arms[1].params
    assert read.varied == ["acquisition.strategy"]
    assert study(tmp_path).arms[0].start == "fresh"


def test_a_grid_is_every_combination_by_a_readable_name(tmp_path: Path) -> None:
    grid = {"model.attention": ["none", "eca"], "train.hard_share": [0.0, 0.25]}
    read = study(tmp_path, arms="absent", grid=grid, reference="attention=none, hard_share=0.0")
    assert [arm.name for arm in read.arms] == [
        "attention=none, hard_share=0.0",
        "attention=none, hard_share=0.25",
        "attention=eca, hard_share=0.0",
        "attention=eca, hard_share=0.25",
    ]
    assert [(arm.params.model.attention, arm.params.train.hard_share) for arm in read.arms][2] == ("eca", 0.0)
    both = study(tmp_path, grid={"train.strong_share": [0.1, 0.2]}, reference="plain, strong_share=0.1")
    assert [arm.name for arm in both.arms] == [
        f"{arm}, strong_share={share}" for arm in ("plain", "full") for share in (0.1, 0.2)
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget": [1]}, "unknown key budget; did you mean budgets"),
        ({"data": "absent"}, "the key data is missing"),
        ({"budgets": [0.2, 0.1]}, "budgets must increase"),
        ({"budgets": [0.5, 20]}, "all shares"),
        ({"budgets": [20.5, 30]}, "whole number"),
        ({"budgets": [0, 0.1]}, "budgets"),
        ({"seeds": [1, 1]}, "twice"),
        ({"seeds": 0}, "seeds"),
        ({"preset": "smal"}, "preset"),
        ({"name": "a/b"}, "name"),
        ({"arms": "absent"}, "there is no arm"),
        ({"reference": "plane"}, "did you mean 'plain'"),
        ({"reference": "baseline"}, "reference: there is no arm 'baseline'; there are plain"),
        ({"parts": {"a": ["full", "plane"]}}, "parts: a: there is no arm 'plane'; did you mean 'plain'"),
        ({"parts": {"a": ["full"]}}, "parts.a"),
        ({"arms": {"plain": {"model.atention": "none"}}}, "arm plain: unknown key model.atention; did you mean model.attention"),
        ({"arms": {"plain": {"modle.attention": "none"}}}, "arm plain: unknown key modle; did you mean model"),
        ({"arms": {"plain": {"model.attention": "cbma"}}}, "did you mean cbam"),
        ({"arms": {"plain": {"seed.x": 1}}}, "seed.x is the same for all arms"),
        ({"arms": {"plain": {"preset.x": 1}}}, "preset is a value"),
        ({"arms": {"plain": {"seed": 1}}}, "seed is the same for all arms"),
        ({"arms": {"plain": {"retrain.until": 1}}}, "retrain.until is the same for all arms"),
        ({"arms": {"plain": {"data.test_share": 0.1}}}, "data.test_share is the same for all arms"),
        ({"arms": {"plain": {"acquisition.strategy": "magic"}}}, "(got 'magic')"),
        ({"arms": {"plain": {"initial": "magic"}}}, "initial: 'magic' is unknown"),
        ({"arms": {"plain": {"start": "hot"}}}, "arm plain: start: 'hot' is unknown; there are fresh, warm"),
        ({"base": {"start": "warm"}}, "base: unknown key start"),
        ({"arms": {"plain": {"model.lossnet": False, "acquisition.strategy": "learning_loss"}}}, "needs LossNet"),
        ({"base": {"train.devices": 2}}, "one device at a time"),
        ({"base": {"train.patience": 0.3}}, "base: train.patience went"),
        ({"arms": {"plain": {"train.rarity": 1.0}}}, "arm plain: train.rarity went"),
        ({"base": {"train.strong_share": "many"}}, "base: train.strong_share"),
        ({"grid": {"acquisition.strategy": ["random", "margin"]}}, "set by the arm plain and by the grid"),
        ({"also_test": {"home": "x.csv"}}, "home is the name"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(WbcError) as caught:
        study(tmp_path, **changes)
    assert says in str(caught.value)
    assert str(tmp_path / "s.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_study_is_named(tmp_path: Path) -> None:
    for text, says in (("[1, 2]", "must be a YAML mapping"), ("a: [", "line 1"), ("name: a\nname: b", "'name' stands twice")):
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(WbcError, match=says):
            read_study(tmp_path / "s.yaml", ROOT / "params.yaml")
    with pytest.raises(WbcError, match="does not exist"):
        read_study(tmp_path / "none.yaml", ROOT / "params.yaml")


def test_budgets_become_counts(tmp_path: Path) -> None:
    read = study(tmp_path, budgets=[0.01, 0.05, 1])
    assert read.counts(3086) == [31, 154, 3086]
    with pytest.raises(WbcError, match="too few, or twice"):
        read.counts(50)
    assert study(tmp_path, budgets=[10, 25]).counts(30) == [10, 25]
    with pytest.raises(WbcError, match="25 labels are asked for, the data have 20"):
        study(tmp_path, budgets=[10, 25]).counts(20)


def test_trainings_are_counted_with_what_arms_share(tmp_path: Path) -> None:
    arms = {
        "plain": {"acquisition.strategy": "random"},
        "margin": {"acquisition.strategy": "margin"},
        "none": {"model.attention": "none"},
    }
    # two ways to train at the first budget, then each arm for itself, for each of three seeds
    assert study(tmp_path, arms=arms, seeds=3, budgets=[0.1, 0.2, 0.3]).trainings() == 3 * (2 + 3 * 2)


def test_what_a_training_depends_on(tmp_path: Path) -> None:
    arms = {
        "plain": {"acquisition.strategy": "random"},
        "margin": {"acquisition.strategy": "margin"},
        "attention": {"model.attention": "none"},
        "updates": {"presets.small.updates": 7},
        "rate": {"train.learning_rate": 0.1},
    }
    texts = {arm.name: trained_on(arm.params) for arm in study(tmp_path, arms=arms).arms}
    assert texts["plain"] == texts["margin"]
    assert len({texts[name] for name in ("plain", "attention", "updates", "rate")}) == 4


def test_seeds_can_be_picked(tmp_path: Path) -> None:
    read = study(tmp_path, seeds=[3, 5, 8])
    assert seeds_of(read, ()) == [3, 5, 8]
    assert seeds_of(read, (8, 3)) == [3, 8]
    with pytest.raises(WbcError, match="seed 4 is not one"):
        seeds_of(read, (4,))


def test_overrides_are_shown_as_yaml() -> None:
    assert shown({"a.b": None, "c": False, "d": [1, 2], "e": "x"}) == "a.b=null, c=false, d=[1, 2], e=x"
    assert shown({}) == "as params.yaml"


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_project_s_studies_can_be_read(path: Path) -> None:
    read = read_study(path, ROOT / "params.yaml")
    assert read.file.name == path.stem
    assert read.file.description
