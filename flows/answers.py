"""What people hand in as labels: a sheet with sha256 and label, or what Label Studio exports, in JSON or CSV.

One row or task that cannot be used refuses itself and spoils no other.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from wbc_model.cells.conflicts import MACHINES
from wbc_model.cells.manifest import known_label, unknown_label
from wbc_model.cells.pools import now
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.written import read_sheet, read_written

CONTROL: Final = "label"  # the name of our Choices in Label Studio's configuration
SHEETS: Final = (".csv", ".tsv", ".txt")
STUDIO_BY: Final = ("annotator", "completed_by")
AT: Final = ("labelled_at", "updated_at", "created_at")  # ours, then those of Label Studio's CSV


@dataclass(frozen=True)
class Answer:
    """A label that somebody gave: `place` in the file; `by`, `at` (ISO 8601, UTC) and `why` are empty where it does not say."""

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


def read_answers(file: Path, names: Mapping[str, str]) -> tuple[list[Answer], list[Refused]]:
    """The labels of a file and the rows that cannot be one; rows without a label are passed over. `names` are the site's own
    names for the classes. Raises WbcError where the file as a whole cannot be read."""
    if not file.is_file():
        raise WbcError(f"{file} does not exist")
    given = _sheet(file) if file.suffix.casefold() in SHEETS else _studio(file)
    answers: list[Answer] = []
    refused: list[Refused] = []
    for one in given:
        kept = one if isinstance(one, Refused) else _checked(one, names)
        (refused if isinstance(kept, Refused) else answers).append(kept)  # type: ignore[arg-type]
    return answers, refused


def _checked(answer: Answer, names: Mapping[str, str]) -> Answer | Refused:
    label = known_label(answer.label, names)
    if label not in CLASSES:
        return Refused(answer.place, answer.sha256, unknown_label(answer.label))
    if not answer.sha256:
        return Refused(answer.place, "", "the cell's sha256 is missing")
    at = _moment(answer.at)
    if answer.at and not at:
        return Refused(answer.place, answer.sha256, f"{answer.at!r} is no time: write it as {now()}, or leave it out")
    by = "" if answer.by in MACHINES else answer.by
    return Answer(answer.place, answer.sha256.casefold(), label, by, at, answer.why)


def _moment(text: str) -> str:
    """A time as ours: ISO 8601 in UTC, to the second, and never later than now, or no later label could follow it; empty where
    it is none."""
    try:
        moment = pd.Timestamp(text) if text[:4].isdigit() else pd.NaT
    except (ValueError, OverflowError):
        return ""
    if not isinstance(moment, pd.Timestamp):
        return ""
    moment = moment.tz_localize("UTC") if moment.tzinfo is None else moment.tz_convert("UTC")
    return min(str(moment.strftime("%Y-%m-%dT%H:%M:%SZ")), now())


def _sheet(file: Path) -> Iterator[Answer | Refused]:
    sheet = read_sheet(file, ("sha256", "label", "labelled_by", *STUDIO_BY, *AT))
    missing = [name for name in ("sha256", "label") if name not in sheet.header]
    if missing:
        has = ", ".join(sheet.header) or "none"
        raise WbcError(f"{file}: needs the columns sha256 and label, has {has}, read as separated by {sheet.said}")
    twice = [name for name in ("sha256", "label") if sheet.header.count(name) > 1]
    if twice:
        raise WbcError(f"{file}: the column {twice[0]!r} is there twice")
    for line, row in sheet.rows:
        fields = {
            name: text.strip() for name, text in itertools.zip_longest(sheet.header, row[: len(sheet.header)], fillvalue="")
        }
        place = f"line {line}"
        if len(row) > len(sheet.header):
            yield Refused(place, fields["sha256"], f"{len(row)} fields, the header has {len(sheet.header)}")
        elif fields["label"]:
            by = fields.get("labelled_by") or next((_person(fields[name]) for name in STUDIO_BY if fields.get(name)), "")
            at = next((fields[name] for name in AT if fields.get(name)), "")
            yield _one_choice(place, fields["sha256"], fields["label"], by, at, fields.get("why", ""))


def _one_choice(place: str, sha256: str, label: object, by: str, at: str, why: str = "") -> Answer | Refused:
    """Label Studio writes more than one choice as {"choices": [...]}, in its CSV as the JSON of it."""
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


def _studio(file: Path) -> Iterator[Answer | Refused]:
    try:
        tasks = json.loads(read_written(file))
    except json.JSONDecodeError as error:
        raise WbcError(f"{file}: neither {', '.join(SHEETS)} nor JSON: {error}") from None
    if not isinstance(tasks, list):
        raise WbcError(f"{file}: expected the list of tasks that Label Studio exports")
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, dict):
            yield Refused(f"task {number}", "", "it is no task of Label Studio")
            continue
        place, data = f"task {task.get('id', number)}", task.get("data", task)
        if not isinstance(data, dict):
            yield Refused(place, "", "its data is not there")
            continue
        found = _task(place, str(data.get("sha256") or ""), task)
        if found is not None:
            yield found


def _task(place: str, sha256: str, task: dict[str, Any]) -> Answer | Refused | None:
    """The label of one task, in Label Studio's full form or its JSON_MIN; None where it has none."""
    if "annotations" not in task:
        label = task.get(CONTROL)
        moment = str(task.get("updated_at") or task.get("created_at") or "")
        return _one_choice(place, sha256, label, _person(task.get("annotator")), moment) if label else None
    try:
        answers = [(choice, annotation) for annotation in task["annotations"] for choice in _choices(annotation)]
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else "its annotations are not in Label Studio's form"
        return Refused(place, sha256, reason)
    labels = sorted({choice for choice, _ in answers})
    if len(labels) > 1:
        return Refused(place, sha256, f"{' and '.join(labels)} were chosen; agree on one first")
    if not answers:
        return None
    last = max(
        (annotation for _, annotation in answers), key=lambda one: str(one.get("updated_at") or one.get("created_at") or "")
    )
    moment = str(last.get("updated_at") or last.get("created_at") or "")
    return Answer(place, sha256, labels[0], _person(last.get("completed_by")), moment)


def _choices(annotation: dict[str, Any]) -> list[str]:
    """The choices of the control `label`; raises ValueError where there are only others."""
    if annotation.get("was_cancelled"):
        return []
    results = annotation["result"]
    ours = [part for part in results if part.get("from_name") == CONTROL]
    if results and not ours:
        names = sorted({str(part.get("from_name")) for part in results})
        raise ValueError(
            f"nothing was chosen in {CONTROL!r}, the name of the choices in the configuration; only in {', '.join(names)}"
        )
    return [str(choice) for part in ours for choice in part["value"]["choices"]]


def _person(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    if value is None:
        return ""
    return f"label studio {value}" if str(value).isdigit() else str(value)
