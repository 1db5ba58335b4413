"""Why a reader's answer, or a queue, is not taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from serving.contract.errors import Refused
from serving.reports.labelling_tables import Why

_LEFT: Final[dict[Why, str]] = {
    "labelled": "The cell was labelled by another way meanwhile; nobody asks about it any more.",
    "held-out": "The cell is one of the validation or test cells; an answer here would be learned from by mistake.",
    "quarantined": "The cell is quarantined and must not be used; nobody asks about it any more.",
    "removed": "The cell was removed with its report; nobody asks about it any more.",
}


@dataclass(eq=False)
class NotAsked(Refused):
    """Nobody asked this reader about what the answer is for."""

    def __str__(self) -> str:
        return "Nobody asked this reader about this cell. Ask for the next tasks: GET /v1/labelling/tasks."


@dataclass(eq=False)
class UnknownKind(Refused):
    """The answer is none of those that the site knows."""

    answer: str
    known: Sequence[str]

    def __str__(self) -> str:
        return f"{self.answer!r} is no answer at this site; there are {', '.join(self.known)}."


@dataclass(eq=False)
class LeftTheQueue(Refused):
    """The cell is not asked for any more."""

    why: Why

    def __str__(self) -> str:
        return _LEFT[self.why]


@dataclass(eq=False)
class NoAnswerToUndo(Refused):
    """No answer of this reader stands in the queue."""

    def __str__(self) -> str:
        return "No answer of yours is left to be undone."


@dataclass(eq=False)
class NoSuchDispute(Refused):
    """There is no cell in dispute of this name."""

    def __str__(self) -> str:
        return "There is no such dispute; it may have been decided. Ask for those that are left: GET /v1/labelling/disputes."


@dataclass(eq=False)
class OwnReading(Refused):
    """The person has read the cell, and is not the one who adjudicates it."""

    def __str__(self) -> str:
        return "You have read this cell yourself; a third person decides."


@dataclass(eq=False)
class NoImage(Refused):
    """The image of the cell is not kept any more."""

    def __str__(self) -> str:
        return "The image of this cell is not kept any more: its queue was closed long ago, or its report removed."


@dataclass(eq=False)
class NoSuchReference(Refused):
    """There is no reference cell of this name."""

    def __str__(self) -> str:
        return "There is no such reference cell."
