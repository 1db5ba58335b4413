"""A promotion in the middle of a report: its cells are classified again by the model that serves now, from their kept images.

What people decided stays. Where images are not kept, the report goes on with the model that began it. That lasts as long as the
service holds that model in memory; see docs/decisions/029.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from starlette.concurrency import run_in_threadpool

from serving.contract.schemas import Classified, ModelName, Recounted, Result
from serving.inference.classify import Classifier, Seen
from serving.inference.reading import Reading
from serving.reports.errors import CellsCameMeanwhile
from serving.reports.kept_images import images_of
from serving.reports.repeats import place
from serving.reports.review import Action, Person, find, record
from serving.reports.signing import refuse_added_to, standing
from serving.reports.store import Store
from serving.reports.tables import Cell, Report

MODEL: Final = "model"
AT_A_TIME: Final = 64  # images read from the store
REASON: Final = "cells were added when another model served; all cells were counted again by it, from their kept images"


class Begun(NamedTuple):
    """The model that a report was counted by, where the cells with an image are, and whether all usable ones have one."""

    model: ModelName
    places: list[int]
    all_kept: bool


def begun(store: Store, report_id: str) -> Begun:
    """By which model a report was begun; raises NoSuchReport, and AlreadySigned or AlreadyWithdrawn where it takes no cells."""
    report = find(store, report_id)
    refuse_added_to(report)
    usable = [cell for cell in report.cells if cell.result["status"] == "ok"]
    kept = [cell.position for cell in usable if cell.has_image]
    return Begun(model_of(report), kept, len(kept) == len(usable))


def model_of(report: Report) -> ModelName:
    """By which model it was counted."""
    return ModelName(name=report.model_name, version=report.model_version)


async def read_again(store: Store, report_id: str, places: Sequence[int], classifier: Classifier) -> dict[int, Seen]:
    """What a model says of a report's kept images, by their places."""
    again: dict[int, Seen] = {}
    for start in range(0, len(places), AT_A_TIME):
        files = await run_in_threadpool(_files, store, report_id, places[start : start + AT_A_TIME])
        again |= zip(files, await classifier.see(list(files.values())), strict=True)
    return again


def _files(store: Store, report_id: str, places: Sequence[int]) -> dict[int, bytes]:
    with store.reading() as session:
        return images_of(session, report_id, places)


def recount(report: Report, again: Mapping[int, Seen], reading: Reading, person: Person) -> Recounted:
    """Let a report, whole and locked, be one of the model that gave `reading` and says `again` of its cells.

    The differential is left to be counted. Raises CellsCameMeanwhile where other cells have come: nothing is changed then.
    """
    usable = [cell for cell in report.cells if cell.result["status"] == "ok"]
    if any(cell.position not in again for cell in usable):
        raise CellsCameMeanwhile
    decided, places = standing(report.corrections), [cell.position for cell in usable]
    for cell, result in zip(usable, place([again[at] for at in places]).results, strict=True):
        if isinstance(result, Classified) and result.twin is not None:
            result = result.model_copy(update={"twin": places[result.twin]})
        _say(cell, result, cell.position in decided)
    now = reading.model
    action = Action(report.id, person, reason=REASON)
    report.changes.append(record(report, action, MODEL, report.model_version, now.version))
    recounted = Recounted(from_version=report.model_version, to_version=now.version, cells=len(usable))
    report.model_name, report.model_version, report.rendered = now.name, now.version, reading.rendered
    report.confusion = None if reading.confusion is None else reading.confusion.tolist()
    report.differential = {**report.differential, "site_unknown": False}  # as the model before saw it
    return recounted


def _say(cell: Cell, result: Result, decided: bool) -> None:
    """What a model says of a cell; its label is a person's where one has decided."""
    said = result if isinstance(result, Classified) else None
    cell.result = result.model_dump(mode="json")
    cell.twin = None if said is None else said.twin
    if not decided:
        cell.label = None if said is None else said.label
