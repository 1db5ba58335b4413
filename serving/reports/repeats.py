"""The same image twice, and the same cell on two images: what counts once in a differential, and what a person must look at."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from serving.contract.differential import foreign_site
from serving.contract.problems import PREFIX
from serving.contract.schemas import NEAR_DUPLICATE, SITE_UNKNOWN, Classified, ImageProblem, Rejected, Result, Review
from serving.inference.classify import Seen
from serving.reports.tables import Cell
from wbc_model.core.twins import twins_of


class Held(NamedTuple):
    """What a report holds already.

    `places` and `usable` name an image by its SHA-256: the first place of each image, and of each usable one. `fingerprints`
    has by its place what a cell is known again by.
    """

    images: int
    places: Mapping[str, int]
    usable: Mapping[str, int]
    fingerprints: Mapping[int, bytes]


class Placed(NamedTuple):
    """The results of a request as they are answered, where each stands in the report, and which of them are new to it."""

    results: list[Result]
    positions: list[int]
    new: list[int]


NOTHING = Held(0, {}, {}, {})


def held(cells: Sequence[Cell], fingerprints: Mapping[int, bytes]) -> Held:
    """What the cells of a report hold."""
    newest_first = list(reversed(cells))
    usable = {cell.sha256: cell.position for cell in newest_first if cell.result["status"] == "ok"}
    return Held(len(cells), {cell.sha256: cell.position for cell in newest_first}, usable, fingerprints)


def place(seen: Sequence[Seen], before: Held = NOTHING, repetition: bool = False) -> Placed:
    """Each result at its place.

    A file that was usable before, in the report or in this request, is rejected as a duplicate. An image that shows the same cell
    as an earlier one counts, and names it. With `repetition` the request may be one that came already: a file that the
    report holds then gets no place of its own.
    """
    placed, usable = Placed([], [], []), dict(before.usable)
    for number, result in enumerate(one.result for one in seen):
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
    _name_twins(placed, seen, before.fingerprints)
    return placed


def _duplicate(result: Classified, first: int) -> Rejected:
    detail = f"the same file as image {first} (numbered from 0), which counts; a cell counts once"
    problem = ImageProblem(type=f"{PREFIX}image:duplicate", title="Image rejected", detail=detail, reason="duplicate")
    return Rejected(problem=problem, sha256=result.sha256, duplicate_of=first)


def _name_twins(placed: Placed, seen: Sequence[Seen], earlier: Mapping[int, bytes]) -> None:
    mine = {number: seen[number].fingerprint for number in placed.new if isinstance(placed.results[number], Classified)}
    known = {number: print_ for number, print_ in mine.items() if print_ is not None}
    places = [*earlier, *(placed.positions[number] for number in known)]
    for number, twin in zip(known, twins_of(list(known.values()), list(earlier.values())), strict=True):
        result = placed.results[number]
        if twin is not None and isinstance(result, Classified):
            placed.results[number] = with_twin(result, places[twin])


def site_unknown(results: Sequence[Mapping[str, Any]], false_alarms: float | None) -> bool:
    """Whether more of the cells than false alarms explain look like those of no site that the model was calibrated for.

    `results` as JSON, each file once: copies of one image prove nothing. `false_alarms` is None for a model that cannot tell.
    """
    reasons = [result["review"]["reasons"] for result in results if result["status"] == "ok"]
    return false_alarms is not None and foreign_site(sum(SITE_UNKNOWN in one for one in reasons), len(reasons), false_alarms)


def with_twin(result: Classified, twin: int) -> Classified:
    """The result of an image that shows the same cell as an earlier one: it counts, and a person must look at it."""
    review = Review(required=True, reasons=[*result.review.reasons, NEAR_DUPLICATE])
    return result.model_copy(update={"review": review, "twin": twin})
