"""params.yaml: typed, and a mistake is named with the nearest right key."""

from pathlib import Path

import pytest

from wbc_model.errors import WbcError
from wbc_model.params import parse_params, read_params

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
        ("patience: 0.8", "patience: 8", "train.patience: .*less than or equal to 1.*8"),
        ("eval_every: 50", "eval_every: fifty", "train.eval_every: .*integer.*'fifty'"),
        ("lossnet: true", "lossnet: 'yes'", "model.lossnet: .*boolean"),
        ("    image_size: 64", "    image_sise: 64", "presets.small.image_sise; did you mean presets.small.image_size"),
        ("  alpha: 0.05", "  alpha: 5", "gate.alpha: .*less than or equal to 1"),
        ("Basophil: 0.8", "Basofil: 0.8", "recall_floor needs exactly the classes"),
        ("test_share: 0.2", "test_share: 0.9", "leave no training cells"),
    ],
)
def test_a_mistake_is_named(old: str, new: str, message: str):
    assert old in TEXT
    with pytest.raises(WbcError, match=message) as caught:
        parse_params(TEXT.replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path):
    with pytest.raises(WbcError, match="wbc init DIR"):
        read_params(tmp_path / "params.yaml")
    with pytest.raises(WbcError, match="not valid YAML"):
        parse_params("a: [")
    with pytest.raises(WbcError, match="expected a mapping"):
        parse_params("- a")
