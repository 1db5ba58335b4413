"""What Label Studio exports as JSON: its full form, with every annotation of a task, and JSON_MIN, with a row for each.

A prediction is no answer, nor is an annotation that somebody skipped or cancelled.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.exchange.answers import Passed, Refused, Said, one_choice, person
from flows.exchange.export import CONTROL
from flows.exchange.sheet import SHEETS
from wbc_model.core.errors import WbcError
from wbc_model.core.written import read_written


def read_tasks(file: Path) -> Iterator[Said]:
    """What is said in each task of an export; raises WbcError where the file is none."""
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
        yield from _task(place, str(data.get("sha256") or ""), task)


def _task(place: str, sha256: str, task: dict[str, Any]) -> Iterator[Said]:
    if "annotations" not in task:  # JSON_MIN
        if label := task.get(CONTROL):
            yield one_choice(place, sha256, label, person(task.get("annotator")), _moment(task))
        return
    annotations = task["annotations"]
    try:
        said = [_annotation(place, sha256, annotation) for annotation in annotations]
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else "its annotations are not in Label Studio's form"
        yield Refused(place, sha256, reason)
        return
    if not said and task.get("predictions"):
        yield Passed(place, sha256, "predicted")
    yield from (one for one in said if one is not None)


def _annotation(place: str, sha256: str, annotation: dict[str, Any]) -> Said | None:
    """What one person said of a task; None where that is nothing. Raises ValueError where only other controls were used."""
    who = person(annotation.get("completed_by"))
    if annotation.get("was_cancelled"):
        return Passed(place, sha256, "skipped")
    results = annotation["result"]
    ours = [part for part in results if part.get("from_name") == CONTROL]
    if results and not ours:
        names = sorted({str(part.get("from_name")) for part in results})
        raise ValueError(
            f"nothing was chosen in {CONTROL!r}, the name of the choices in the configuration; only in {', '.join(names)}"
        )
    choices = [str(choice) for part in ours for choice in part["value"]["choices"]]
    return one_choice(place, sha256, choices, who, _moment(annotation)) if choices else None


def _moment(said: dict[str, Any]) -> str:
    return str(said.get("updated_at") or said.get("created_at") or "")
