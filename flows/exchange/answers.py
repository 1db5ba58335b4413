"""An answer that somebody gave for a cell, and what else a file may say of one."""

import json
from dataclasses import dataclass
from typing import Literal

from wbc_model.cells.manifest import unknown_label


@dataclass(frozen=True)
class Answer:
    """An answer that somebody gave: `place` in the file; `by`, `at` (ISO 8601, UTC) and `why` are empty where it does not say."""

    place: str
    sha256: str
    label: str
    by: str = ""
    at: str = ""
    why: str = ""


@dataclass(frozen=True)
class Refused:
    """A row or task that is not taken in, and the reason with the way on."""

    place: str
    sha256: str
    reason: str


@dataclass(frozen=True)
class Disagreement(Refused):
    """What several people say differently of one cell; `at`: when the last of them said it, empty where that is not known."""

    at: str = ""


@dataclass(frozen=True)
class Passed:
    """A row or task that says nothing about its cell: somebody skipped it, or only a model has spoken."""

    place: str
    sha256: str
    why: Literal["skipped", "predicted"]


Said = Answer | Refused | Passed


def one_choice(place: str, sha256: str, label: object, by: str, at: str, why: str = "") -> Answer | Refused:
    """The one choice that was made. Label Studio writes more than one as {"choices": [...]}, in its CSV as the JSON of it."""
    if isinstance(label, str) and label.startswith(("{", "[")):
        try:
            label = json.loads(label)
        except ValueError:
            return Refused(place, sha256, unknown_label(str(label)))
    if isinstance(label, dict):
        label = label.get("choices")
    choices = label if isinstance(label, list) else [label]
    if len(choices) != 1 or not isinstance(choices[0], str):
        return Refused(place, sha256, f"expected one choice, found {' and '.join(map(str, choices)) or 'none'}")
    return Answer(place, sha256, choices[0], by, at, why)


def person(value: object) -> str:
    """Who Label Studio says has answered: an address, or its own number for a user."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    if value is None:
        return ""
    return f"label studio {value}" if str(value).isdigit() else str(value)
