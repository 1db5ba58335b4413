"""The JSON of reports: what the store holds, as the routes of serving/http/report_routes.py give and take it."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from serving.contract.differential import Differential
from serving.contract.names import LINE, NAME, By, Reason, Remark, trimmed
from serving.contract.schemas import Classified, Delivery, ModelName, Rejected, ReportState, Status, Step
from serving.contract.specimen import HIGHEST_COUNT, LOWEST_COUNT, MOST_IMAGES, SPECIMEN_PATTERN
from wbc_model.core.classes import CLASSES

Amend = Annotated[bool, Field(description="Needed where the report was signed: it must then be signed again.")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CorrectionRequest(_Request):
    """A person's class for one cell."""

    label: Annotated[str, Field(min_length=1, max_length=40, examples=list(CLASSES))] | None = Field(
        description="The class; the one it has confirms it. One of the site's further kinds (`GET /v1/site`), which is counted "
        "beside the differential; null where the cell is not to be counted at all."
    )
    by: By | None = None
    amend: Amend = False


class UndoRequest(_Request):
    """A person takes back the last correction of a cell that still stands."""

    by: By | None = None
    amend: Amend = False


def _whole_number(value: object) -> object:
    """JSON has one kind of number, and JSON Schema takes 3.0 for an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class PatchRequest(_Request):
    """A person puts right what was said of the specimen. A field that is left out stays; null says that it is not known."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [name]} for name in ("specimen_id", "wbc_count", "expected_images")]}
    )
    reason: Reason
    by: By | None = None
    amend: Amend = False
    specimen_id: Annotated[str, Field(pattern=SPECIMEN_PATTERN)] | None = None
    wbc_count: Annotated[float, Field(ge=LOWEST_COUNT, le=HIGHEST_COUNT, description="In 10*3/uL.")] | None = None
    expected_images: Annotated[int, Field(ge=1, le=MOST_IMAGES), BeforeValidator(_whole_number)] | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.given():
            raise ValueError("give at least one of specimen_id, wbc_count and expected_images")
        return self

    def given(self) -> dict[str, Any]:
        """The fields that are to be put right, and as what."""
        return {
            name: getattr(self, name) for name in ("specimen_id", "wbc_count", "expected_images") if name in self.model_fields_set
        }


class WithdrawalRequest(_Request):
    """A person withdraws the report: it does not count any more."""

    reason: Reason
    by: By | None = None
    amend: bool = Field(default=False, description="Needed where the report was signed: its receivers are told.")


class ReinstatementRequest(_Request):
    """A person takes the withdrawal of the report back: it is open for a signature again."""

    reason: Reason
    by: By | None = None


class RemovalRequest(_Request):
    """A person removes the report for good: only the record of that stays."""

    reason: Reason
    by: By | None = None


class ReportRemoval(BaseModel):
    """That a report was removed."""

    report_id: str
    reason: str
    by: str
    at: datetime
    unsent: int = Field(description="messages to the hospital's system that waited, and are never sent")


class SignatureRequest(_Request):
    """A person signs the report as it is."""

    by: By | None = None


class CommentRequest(_Request):
    """A person says something of the report, or of one of its cells; it is in the record and in no result."""

    text: Remark
    index: Annotated[int, Field(ge=0, description="The cell that it is about, from 0.")] | None = None
    by: By | None = None


class OpinionRequest(_Request):
    """A person asks another one for a second opinion."""

    of: Annotated[str, Field(min_length=1, max_length=100, pattern=NAME, description="Who is asked."), AfterValidator(trimmed)]
    note: Annotated[str, Field(max_length=1000, pattern=LINE, description="What the question is.")] = ""
    by: By | None = None


class OpinionAnswerRequest(_Request):
    """Who was asked answers; a later answer stands beside the earlier one."""

    text: Remark
    by: By | None = None


class TakenBackRequest(_Request):
    """A person takes back that somebody was asked."""

    by: By | None = None


class PresenceRequest(_Request):
    """Who looks at the report now, or has `left` it. It is kept in memory for a minute, and in no record."""

    by: By | None = None
    left: bool = False


Shelf = Literal["to_do", "incomplete", "final", "amended", "withdrawn", "asked", "all"]
SHELVES: Final[tuple[Shelf, ...]] = get_args(Shelf)


class SearchRequest(_Request):
    """Which reports are looked for. It is a body, since proxies log addresses, and a specimen's number must be in no log."""

    shelf: Shelf = Field(
        default="all",
        description="`to_do` and `incomplete` wait for a signature; `asked` are those on which `person` was asked for an opinion "
        "and has not answered.",
    )
    specimen: Annotated[str, Field(pattern=SPECIMEN_PATTERN, description="A part of the specimen number.")] | None = None
    created_from: Annotated[AwareDatetime, Field(description="Made at this moment or later.")] | None = None
    created_before: Annotated[AwareDatetime, Field(description="Made before this moment.")] | None = None
    person: By | None = Field(default=None, description="Whose second opinions `asked` holds; by default the key's person.")
    limit: Annotated[int, Field(ge=1, le=200), BeforeValidator(_whole_number)] = 50
    before: str | None = Field(default=None, description="Only reports older than this one: `next` of the answer before.")


class ReportCell(BaseModel):
    """One posted image: `result` is what the model said, `label` what it counts as now."""

    index: int
    result: Classified | Rejected
    label: str | None
    by_person: bool = Field(description="Whether a person has given or confirmed the label.")
    has_image: bool = Field(description="Whether the image is kept and can be asked for.")


class ReportCorrection(BaseModel):
    """One change of one cell; all of them stay."""

    index: int
    from_label: str | None
    to_label: str | None
    by: str
    caller: str = Field(description="The name of the key that the request came with.")
    at: datetime
    undo: bool = Field(description="Whether this took back the correction before it.")


class ReportChange(BaseModel):
    """One change of the report as a whole, with its reason; all of them stay."""

    what: str = Field(
        description="The field that was put right; `withdrawal`, to `withdrawn` or back; or `model` where it was counted again "
        "by another one."
    )
    from_value: Any
    to_value: Any
    reason: str
    by: str
    caller: str
    at: datetime


class ReportSignature(BaseModel):
    """One signature; all of them stay, with the differential that was signed."""

    status: Literal["final", "amended"]
    by: str
    caller: str
    at: datetime
    differential: Differential


class ReportMessage(BaseModel):
    """A message to the hospital's system: `failed` means that it was refused, with the reason in `error`."""

    control_id: str
    state: Delivery
    attempts: int
    created_at: datetime
    finished_at: datetime | None
    error: str | None


class ReportComment(BaseModel):
    """What a person said of the report, or of the cell `index`; all of them stay."""

    index: int | None
    text: str
    by: str
    caller: str
    at: datetime


class OpinionStep(BaseModel):
    """One step of a second opinion; all of them stay."""

    step: Step
    text: str
    by: str
    caller: str
    at: datetime


class ReportOpinion(BaseModel):
    """A second opinion: who was asked, and every step since, the first one the question."""

    id: int
    of: str = Field(description="Who was asked.")
    state: Literal["open", "answered", "taken_back"]
    steps: list[OpinionStep]


class Presence(BaseModel):
    """Who else looks at the report now, and at which version it is."""

    here: list[str]
    version: int


class ReportSummary(BaseModel):
    """A line of the list of reports."""

    id: str
    version: int = Field(description="Goes up with every change; the report's ETag.")
    status: Status
    specimen_id: str | None
    model: ModelName
    created_at: datetime
    changed_at: datetime
    cells: int
    to_review: int
    expected_images: int | None
    sent_images: int
    complete: bool
    withdrawn: bool
    signed_by: str | None = Field(description="Who signed it as it is; null while nobody has.")
    comments: int
    asked: list[str] = Field(description="Who was asked for a second opinion and has not answered.")
    here: list[str] = Field(default_factory=list, description="Who looks at it now.")


class ReportList(BaseModel):
    """Reports, the newest first; `next` is what to give as `before` for those that follow, null at the end."""

    reports: list[ReportSummary]
    next: str | None


class Worklist(ReportList):
    """The reports of a search, and how many of those that it finds each shelf has."""

    counts: dict[Shelf, int]


class ReportAnswer(ReportState):
    """A whole report."""

    id: str
    specimen_id: str | None
    model: ModelName
    created_at: datetime
    changed_at: datetime
    signed_by: str | None = Field(description="Who signed it as it is; null while nobody has.")
    corrected: int = Field(description="How many cells count as something else than what the model said.")
    differential: Differential
    cells: list[ReportCell]
    corrections: list[ReportCorrection]
    changes: list[ReportChange]
    signatures: list[ReportSignature]
    messages: list[ReportMessage]
    comments: list[ReportComment]
    opinions: list[ReportOpinion]


class ReportDelta(ReportState):
    """With `Prefer: return=minimal`, what a change has made of a report: all but what it has left alone."""

    id: str
    specimen_id: str | None
    changed_at: datetime
    signed_by: str | None
    corrected: int
    differential: Differential
    cells: list[ReportCell] = Field(description="Only those that the call changed.")
    corrections: list[ReportCorrection] = Field(description="Only what the call added.")
    changes: list[ReportChange] = Field(description="Only what the call added.")
    signature: ReportSignature | None = Field(description="The last one.")
    messages: list[ReportMessage]
    comments: list[ReportComment] = Field(description="Only what the call added.")
    opinions: list[ReportOpinion]


def withdrawal(answer: ReportAnswer) -> str | None:
    """Who withdrew the report and why, in words; None where it is not withdrawn."""
    if not answer.withdrawn:
        return None
    last = next((change for change in reversed(answer.changes) if change.what == "withdrawal"), None)
    return None if last is None else f"Withdrawn, not valid. By {last.by}: {last.reason}"
