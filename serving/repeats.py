"""The same image twice, and the same cell on two images: what counts once in a differential, and what a person must look at."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from serving.problems import PREFIX
from serving.schemas import NEAR_DUPLICATE, Classified, ImageProblem, Rejected, Result, Review
from serving.store import Cell


class Held(NamedTuple):
    """What a report holds already: how many images, and by their SHA-256 the first place of each, and of each that was usable."""

    images: int
    places: Mapping[str, int]
    usable: Mapping[str, int]


class Placed(NamedTuple):
    """The results of a request as they are answered, where each stands in the report, and which of them are new to it."""

    results: list[Result]
    positions: list[int]
    new: list[int]


NOTHING = Held(0, {}, {})


def held(cells: Sequence[Cell]) -> Held:
    """What the cells of a report hold."""
    newest_first = list(reversed(cells))
    usable = {cell.sha256: cell.position for cell in newest_first if cell.result["status"] == "ok"}
    return Held(len(cells), {cell.sha256: cell.position for cell in newest_first}, usable)


def place(results: Sequence[Result], before: Held = NOTHING, repetition: bool = False) -> Placed:
    """Each result at its place. A file that was usable before, in the report or in this request, is rejected as a duplicate.

    With `repetition` the request may be one that came already, so that a file which the report holds gets no place of its own.
    """
    placed, usable = Placed([], [], []), dict(before.usable)
    for number, result in enumerate(results):
        first, known = usable.get(result.sha256), before.places.get(result.sha256)
        answered = result if first is None or isinstance(result, Rejected) else _duplicate(result, first)
        if repetition and known is not None and isinstance(answered, Rejected):
            placed.positions.append(known)
        else:
            placed.positions.append(before.images + len(placed.new))
            placed.new.append(number)
        if isinstance(answered, Classified):
            usable[result.sha256] = placed.positions[-1]
        placed.results.append(answered)
    return placed


def _duplicate(result: Classified, first: int) -> Rejected:
    detail = f"the same file as image {first} (numbered from 0), which counts; a cell counts once"
    problem = ImageProblem(type=f"{PREFIX}image:duplicate", title="Image rejected", detail=detail, reason="duplicate")
    return Rejected(problem=problem, sha256=result.sha256, duplicate_of=first)


def with_twin(result: Classified, twin: int) -> Classified:
    """The result of an image that shows the same cell as an earlier one: it counts, and a person must look at it."""
    review = Review(required=True, reasons=[*result.review.reasons, NEAR_DUPLICATE])
    return result.model_copy(update={"review": review, "twin": twin})
