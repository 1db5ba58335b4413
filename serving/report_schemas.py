"""The JSON of reports: what the store holds, as the routes of serving/reports.py give and take it."""

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.differential import Differential
from serving.review import changed_cells
from serving.schemas import Classified, ModelName, Rejected
from serving.store import Delivery, Report, Status

Wanted = Literal["open", "preliminary", "final", "amended", "all"]
WANTED: Final[dict[Wanted, tuple[Status, ...]]] = {
    "open": ("preliminary",),
    "preliminary": ("preliminary",),
    "final": ("final",),
    "amended": ("amended",),
    "all": ("preliminary", "final", "amended"),
}
# A name, with at least one character that can be seen; no control characters, which neither HL7 nor PostgreSQL takes.
By = Annotated[
    str,
    Field(
        min_length=1,
        max_length=100,
        pattern=r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$",
        description="Who does this, as it is to stand in the report.",
    ),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CorrectionRequest(_Request):
    """A person's class for one cell."""

    label: Literal["Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil"] | None = Field(
        description="The class; the one it has confirms it; null where the cell is none of the five and is not to be counted."
    )
    by: By
    amend: bool = Field(default=False, description="Needed where the report is signed: it must then be signed again.")


class SignatureRequest(_Request):
    """A person signs the report as it is."""

    by: By


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
    signed_by: str | None = Field(description="Who signed it as it is; null while nobody has.")


class ReportList(BaseModel):
    """Reports, the newest first; `next` is what to give as `before` for those that follow, null at the end."""

    reports: list[ReportSummary]
    next: str | None


class ReportAnswer(BaseModel):
    """A whole report."""

    id: str
    version: int = Field(description="Goes up with every change; the report's ETag.")
    status: Status
    specimen_id: str | None
    model: ModelName
    created_at: datetime
    changed_at: datetime
    signed_by: str | None = Field(description="Who signed it as it is; null while nobody has.")
    corrected: int = Field(description="How many cells count as something else than what the model said.")
    differential: Differential
    cells: list[ReportCell]
    corrections: list[ReportCorrection]
    signatures: list[ReportSignature]
    messages: list[ReportMessage]


def signer(report: Report) -> str | None:
    """Who signed the report as it is."""
    return None if report.status == "preliminary" else report.signatures[-1].by


def summary(report: Report) -> ReportSummary:
    """A line about a report whose cells need not be loaded."""
    return ReportSummary(
        id=report.id,
        version=report.version,
        status=report.status,
        specimen_id=report.specimen_id,
        model=ModelName(name=report.model_name, version=report.model_version),
        created_at=report.created_at,
        changed_at=report.changed_at,
        cells=report.differential["cells"],
        to_review=report.differential["to_review"],
        signed_by=signer(report),
    )


def whole(report: Report) -> ReportAnswer:
    """All that is known of a report."""
    seen = {correction.position for correction in report.corrections}
    head = summary(report).model_dump(exclude={"cells", "to_review"})
    return ReportAnswer(
        **head,
        corrected=changed_cells(report),
        differential=Differential.model_validate(report.differential),
        cells=[
            ReportCell(
                index=cell.position,
                result=cell.result,  # type: ignore[arg-type]  # pydantic makes the model of it
                label=cell.label,
                by_person=cell.position in seen,
                has_image=cell.has_image,
            )
            for cell in report.cells
        ],
        corrections=[
            ReportCorrection(
                index=one.position, from_label=one.from_label, to_label=one.to_label, by=one.by, caller=one.caller, at=one.at
            )
            for one in report.corrections
        ],
        signatures=[ReportSignature.model_validate(one, from_attributes=True) for one in report.signatures],
        messages=[ReportMessage.model_validate(one, from_attributes=True) for one in report.messages],
    )
