"""Why the record of reports does not do what it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serving.contract.errors import Refused
from serving.contract.schemas import Block, ModelName
from wbc_model.core.errors import counted


@dataclass(eq=False)
class NoSuchReport(Refused):
    """There is no report with the id."""

    def __str__(self) -> str:
        return "There is no report with this id."


@dataclass(eq=False)
class ChangedMeanwhile(Refused):
    """The report is at `version`, and the person saw the version `expected`."""

    version: int
    expected: int

    def __str__(self) -> str:
        return f"The report was changed meanwhile: it is at version {self.version}, not {self.expected}. Read it again."


@dataclass(eq=False)
class NoSuchCell(Refused):
    """The report has `cells` cells, and none at `position`."""

    position: int
    cells: int

    def __str__(self) -> str:
        return f"The report has {counted(self.cells, 'cell')}, numbered from 0: there is no cell {self.position}."


@dataclass(eq=False)
class RejectedCell(Refused):
    """The image at `position` was rejected and has no class."""

    position: int

    def __str__(self) -> str:
        return f"Image {self.position} was rejected; it cannot be counted."


@dataclass(eq=False)
class UnknownLabel(Refused):
    """A cell is to count as `label`, which is neither a class nor one of the site's further kinds, `known`."""

    label: str
    known: Sequence[str]

    def __str__(self) -> str:
        return f"label: {self.label!r} is no class and none of the site's further kinds: give {', '.join(self.known)} or null."


@dataclass(eq=False)
class NothingToUndo(Refused):
    """No correction of the cell at `position` stands."""

    position: int

    def __str__(self) -> str:
        return f"No correction of cell {self.position} is left to be undone."


@dataclass(eq=False)
class NothingToChange(Refused):
    """The report has all values already that it is to have."""

    def __str__(self) -> str:
        return "The report says so already."


@dataclass(eq=False)
class AlreadySigned(Refused):
    """The report was signed. It takes no more cells; the other acts must be said to be an amendment."""

    asked: Literal["change", "withdraw", "add cells"]

    def __str__(self) -> str:
        return f"The report was signed; to {self.asked} is " + ("not possible." if self.asked == "add cells" else "an amendment.")


@dataclass(eq=False)
class AlreadyWithdrawn(Refused):
    """The report was withdrawn, and nothing happens to it until the withdrawal is taken back."""

    report_id: str

    def __str__(self) -> str:
        return "The report was withdrawn, and nothing in it can be changed."


@dataclass(eq=False)
class NotWithdrawn(Refused):
    """A withdrawal is to be taken back that is not there."""

    def __str__(self) -> str:
        return "The report is not withdrawn; there is nothing to take back."


@dataclass(eq=False)
class NotSignable(Refused):
    """The report cannot be signed as it is, for all the reasons in `blocked`, one at least."""

    blocked: Sequence[Block]

    def __str__(self) -> str:
        return self.blocked[0].detail


@dataclass(eq=False)
class AnotherModel(Refused):
    """The report was counted by the model `before`; `now` serves, and cannot count its cells again."""

    before: ModelName
    now: ModelName
    report_id: str

    def __str__(self) -> str:
        return (
            f"The report's cells were classified by {self.before.name} {self.before.version}, which serves no longer, and not "
            f"all of their images are kept, so that {self.now.name} {self.now.version} cannot count them again."
        )


@dataclass(eq=False)
class CellsCameMeanwhile(Refused):
    """Cells were added to the report while its cells were counted again."""

    def __str__(self) -> str:
        return "The report was changed while its cells were counted again; nothing was added. Try again."


@dataclass(eq=False)
class AnotherSpecimen(Refused):
    """The report has another value of the specimen's field `field` than the request."""

    field: str

    def __str__(self) -> str:
        return f"The report has another {self.field} than the request; leave the field out or make a new report."


@dataclass(eq=False)
class MoreThanAnnounced(Refused):
    """A first request has `images` images and announces `expected`."""

    images: int
    expected: int

    def __str__(self) -> str:
        return f"'expected_images' is {self.expected}, and the request has {counted(self.images, 'image')}."


@dataclass(eq=False)
class AnotherExpectation(Refused):
    """The report expects `expected` images, and a request that adds to it announces `announced`."""

    expected: int
    announced: int

    def __str__(self) -> str:
        return f"The report expects {counted(self.expected, 'image')} and the request says {self.announced}."


@dataclass(eq=False)
class MoreThanExpected(Refused):
    """The report expects `expected` images and has `held`; `more` are too many."""

    expected: int
    held: int
    more: int

    def __str__(self) -> str:
        return f"The report expects {counted(self.expected, 'image')} and has {self.held}; {self.more} more would be too many."


@dataclass(eq=False)
class FewerThanHeld(Refused):
    """The report has `held` images and is to expect `expected`."""

    held: int
    expected: int

    def __str__(self) -> str:
        return f"The report has {counted(self.held, 'image')} already; it cannot expect {self.expected}."


@dataclass(eq=False)
class ReportFull(Refused):
    """The report would have more images than the `most` that one may have."""

    most: int

    def __str__(self) -> str:
        return f"A report holds at most {self.most} images."
