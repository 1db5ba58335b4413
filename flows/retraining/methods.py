"""Parameters as they are typed: those of a method in one word, and single ones.

`wbc retrain --method paper --set KEY=VALUE` is where they are typed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from flows.workspace import template
from wbc_model.choices import Method
from wbc_model.core.errors import WbcError
from wbc_model.core.written import parse_yaml, read_yaml

# The arm of Jiang et al. 2024 with all of its parts: LossNet chooses and its gradient reaches the backbone in 60 % of the updates
# (their section on training), CBAM, and active iterative augmentation of the hardest samples. Decision 026.
PAPER: Final[dict[str, Any]] = {
    "model.view": "whole",
    "model.attention": "cbam",
    "model.lossnet": True,
    "train.lossnet_gradient_share": 0.6,
    "train.hard_share": 0.25,
    "few_labels.below": 0,
    "acquisition.strategy": "learning_loss",
    "data.initial": "random",
}


def of_method(method: Method) -> dict[str, Any]:
    """The values of a method by their dotted keys; `default` has those of a new workspace, and takes `paper` back."""
    if method == "paper":
        return dict(PAPER)
    shipped = read_yaml(template("params.yaml"))
    return {key: shipped[section][name] for key in PAPER for section, _, name in [key.partition(".")]}


def as_typed(settings: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE`, each value as params.yaml would read it, by their dotted keys.

    Raises WbcError for what is no such pair, and for a key that is given twice.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            raise WbcError(f"--set {setting}: give it as KEY=VALUE, for example --set train.learning_rate=0.0005")
        if key in values:
            raise WbcError(f"--set {key} is given twice: give it once")
        values[key] = parse_yaml(f"value: {value}", Path(f"--set {key}"))["value"]
    return values
