"""What readers may answer about a cell, and the JSON of the labelling routes (serving/http/labelling_routes.py)."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from wbc_model.core.classes import CLASSES

if TYPE_CHECKING:
    from serving.contract.site import Site

NOT_A_LEUKOCYTE: Final = "not a leukocyte"
UNSURE: Final = "unsure"
# What a page does with these keys; the classes have 1 to 5, in their order.
NOT_A_LEUKOCYTE_KEY, UNSURE_KEY = "0", "?"
RESERVED_KEYS: Final = frozenset([*"12345", NOT_A_LEUKOCYTE_KEY, UNSURE_KEY, *"uzhr+-"])
MOST_TASKS: Final = 100  # that a reader is given, or answers, at once
LONGEST_LOOK: Final = 86_400.0  # seconds

Way = Literal["single", "sweep"]


def answers_of(site: "Site") -> tuple[str, ...]:
    """All that a reader at this site may say of a cell: the classes, the site's further kinds, none of them, unsure."""
    return (*CLASSES, *(kind.name for kind in site.labelling.further_kinds), NOT_A_LEUKOCYTE, UNSURE)


def kinds_of(site: "Site") -> "list[Kind]":
    """The answers with their keys on the page, and LOINC's term for each in percent of the leukocytes, where there is one."""
    classes = [Kind(answer=name, key=str(number), loinc=site.loinc.percent[name]) for number, name in enumerate(CLASSES, 1)]
    further = [Kind(answer=one.name, key=one.key, loinc=one.loinc) for one in site.labelling.further_kinds]
    last = [Kind(answer=NOT_A_LEUKOCYTE, key=NOT_A_LEUKOCYTE_KEY), Kind(answer=UNSURE, key=UNSURE_KEY)]
    return [*classes, *further, *last]


# --- requests -------------------------------------------------------------------------------------------------------------


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


AnAnswer = Annotated[str, Field(min_length=1, max_length=100, description="One of the `kinds` of `GET /v1/labelling`.")]
TaskId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}\.[1-9][0-9]{0,8}$", description="As `GET /v1/labelling/tasks` gave it.")]
Seconds = Annotated[float | None, Field(ge=0, le=LONGEST_LOOK, description="How long the reader looked, where it is known.")]


class AnswerRequest(_Request):
    """A reader's answer about one cell."""

    answer: AnAnswer
    seconds: Seconds = None
    way: Way = "single"


class TaskAnswer(_Request):
    """One of several answers."""

    task: TaskId
    answer: AnAnswer


class AnswersRequest(_Request):
    """A reader's answers about several cells at once; `seconds` are those of all of them together."""

    answers: Annotated[list[TaskAnswer], Field(min_length=1, max_length=MOST_TASKS)]
    seconds: Seconds = None
    way: Way = "sweep"


class DecisionRequest(_Request):
    """A third person's word on a cell that two readers disagree about."""

    answer: AnAnswer
    seconds: Seconds = None


# --- answers --------------------------------------------------------------------------------------------------------------


class Kind(BaseModel):
    """Something that a cell can be said to be, and by which key."""

    answer: str
    key: str
    loinc: str | None = None


class OpenQueue(BaseModel):
    """The queue that readers are given cells of."""

    id: str
    workspace: str
    cycle: int
    published_at: datetime
    deadline: datetime | None


class Next(BaseModel):
    """A part of what happens next. `code` says what; the other members are its numbers and names."""

    model_config = ConfigDict(extra="allow")

    code: str


class LabellingState(BaseModel):
    """How far the labelling is, for one reader; `queue` is null while nothing is asked."""

    reader: str
    lead: bool = Field(description="Whether the reader adjudicates, and sees how often readers are wrong at known cells.")
    queue: OpenQueue | None
    kinds: list[Kind]
    pixel_um: float | None = Field(description="Micrometres for each pixel of an image, where the site says so.")
    done: int = Field(description="Tasks that this reader has answered in this queue.")
    left: int = Field(description="Tasks that this reader could still answer.")
    cells: int = Field(description="Cells that are asked for.")
    agreed: int
    disputed: int
    unnamed: int = Field(description="Cells that nobody can name.")
    median_seconds: float | None
    next_step: str = Field(description="What happens next, and by whom; in one line.")
    next_parts: list[Next] | None = Field(description="The same in parts, where the flow has said it so.")
    gain: dict[str, Any] | None = Field(description="What the next labels are expected to gain, where the flow has said it.")


class ReaderTask(BaseModel):
    """A cell for this reader to name; `width` and `height` are those of its image, in pixels."""

    task: str
    width: int
    height: int


class TaskList(BaseModel):
    """A reader's next tasks, in the reader's order; empty where there are none."""

    tasks: list[ReaderTask]


class Answered(BaseModel):
    """How far the reader is after an answer."""

    done: int
    left: int
    disputed: int


class Undone(BaseModel):
    """What waits for an answer again: the task, or the dispute."""

    task: str | None
    dispute: str | None = None


class SaidBefore(BaseModel):
    """An answer of this person to a task, or a decision on a dispute, that stands."""

    id: int
    task: str | None
    dispute: str | None
    answer: str
    at: datetime
    way: Literal["single", "sweep", "adjudicated"]
    image: bool = Field(description="Whether the picture of the cell is still kept.")
    left: bool = Field(description="Whether the cell is not to be named any more.")


class AnswerList(BaseModel):
    """What a person has said, the latest first; `next` is the `before` of those that follow, null where there are none."""

    answers: list[SaidBefore]
    next: int | None


class ReferenceGroup(BaseModel):
    """Cells that are known to be something; `images` are for `GET /v1/labelling/references/{id}`."""

    answer: str
    images: list[str]


class ReferenceList(BaseModel):
    """Reference cells of each kind: agreed ones of this site first, then published ones."""

    references: list[ReferenceGroup]


class Opinion(BaseModel):
    """What the model said of a cell."""

    label: str
    probability: float | None


class ReaderDispute(BaseModel):
    """A cell that readers disagree about: their answers, without names, in the order of the kinds."""

    dispute: str
    answers: list[str]
    width: int
    height: int
    opinion: Opinion | None
    left: int = Field(description="Disputes that this person can still decide.")


class Decided(BaseModel):
    """How many disputes are left for this person after a decision."""

    left: int


class DisputeList(BaseModel):
    """The next disputes that this person may decide."""

    disputes: list[ReaderDispute]
