"""The JSON that the service answers with; these models are also its OpenAPI document."""

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.contract.differential import Differential
from serving.contract.specimen import (
    EXPECTED_IMAGES,
    HIGHEST_COUNT,
    LOWEST_COUNT,
    MOST_IMAGES,
    REPORT_ID,
    SPECIMEN_ID,
    SPECIMEN_PATTERN,
    WBC_COUNT,
)
from wbc_model.core.model_card import ModelCard
from wbc_model.core.out_of_distribution import OutOfDistribution

Reason = Literal["ambiguous", "not_a_leukocyte", "site_unknown", "high_predicted_loss", "near_duplicate"]
AMBIGUOUS: Final = "ambiguous"  # the prediction set does not name exactly one class
NOT_A_LEUKOCYTE: Final = "not_a_leukocyte"  # unlike the site's cells of every class, or no nucleus was found
SITE_UNKNOWN: Final = "site_unknown"  # stain and light are not those of the site the model was calibrated for
HIGH_PREDICTED_LOSS: Final = "high_predicted_loss"  # LossNet expects a larger error than of almost all cells of the site
NEAR_DUPLICATE: Final = "near_duplicate"  # an earlier image of the specimen shows the same cell, cut or saved in another way
ReportStatus = Literal["preliminary", "final", "amended"]  # as FHIR's DiagnosticReport.status names them
Status = Literal["preliminary", "final", "amended", "withdrawn"]
Delivery = Literal["pending", "delivered", "failed", "retired"]  # retired: a later message says what it should have said
Step = Literal["asked", "answered", "taken_back"]  # of a second opinion
Why = Literal["incomplete", "unreviewed", "rendered_model", "no_cells", "withdrawn", "signed"]


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    version: str


class Review(BaseModel):
    """Whether a person must look at the cell, and why: a list of constants, empty where nobody must."""

    required: bool
    reasons: list[Reason]


class Classified(BaseModel):
    """One image that was classified."""

    status: Literal["ok"] = "ok"
    label: str = Field(description="The most probable class.")
    probabilities: dict[str, float] = Field(
        description="Probability of every class; they sum to 1. Calibrated, unless `uncalibrated` of the model says why not."
    )
    prediction_set: list[str] = Field(description="Classes the cell may be, at the model's stated coverage; most probable first.")
    predicted_loss: float | None = Field(description="What the model expects its own error to be; null where it has no LossNet.")
    review: Review
    sha256: str = Field(description="SHA-256 of the file as it was posted, in hexadecimal.")
    heat_map: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Only with `explain=true`: where the network looks, a PNG in base64.",
    )
    twin: int | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Only in a differential: the index of an earlier image of the same cell, cut or saved in another way.",
    )


class ImageProblem(BaseModel):
    """Why one image was rejected; `reason` is machine-readable."""

    type: str
    title: str
    detail: str
    reason: Literal["undecodable", "truncated", "too_large", "too_small", "duplicate"]


class Rejected(BaseModel):
    """One image that could not be used; the others of the request are not affected."""

    status: Literal["rejected"] = "rejected"
    problem: ImageProblem
    sha256: str
    duplicate_of: int | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="With the reason `duplicate`: the index of the same file, which counts.",
    )


Result = Classified | Rejected


class Classification(BaseModel):
    """The answer of `POST /v1/classify`: one result per image, in the order posted."""

    model: ModelName
    results: list[Classified | Rejected]


class Block(BaseModel):
    """Why a report cannot be signed as it is now."""

    kind: Why
    detail: str


class KeptImages(BaseModel):
    """How many of a report's images are kept, and until when."""

    kept: int
    encrypted: bool
    delete_after: datetime | None = Field(description="When they are deleted; null where the site sets no time or none is kept.")
    deleted_at: datetime | None = Field(description="When they were deleted; null while they have not been.")


class ReportState(BaseModel):
    """How far a report is."""

    version: int = Field(description="Goes up with every change; the report's ETag.")
    status: Status
    expected_images: int | None = Field(description="How many images the client means to send; null where it has not said.")
    sent_images: int = Field(description="How many have come, those that were rejected too.")
    complete: bool = Field(description="Whether all that were expected have come.")
    to_review: int = Field(description="How many of the cells counted a person must still look at.")
    withdrawn: bool
    images: KeptImages
    blocked: list[Block] = Field(description="Why it cannot be signed now; empty where it can.")


class Recounted(BaseModel):
    """The report was begun with another model and was counted again, whole, by the one that serves now."""

    from_version: str
    to_version: str
    cells: int = Field(description="How many images were classified again, beside those of the request.")


class DifferentialAnswer(BaseModel):
    """The answer of `POST /v1/differential`; `results` has one per image, in the order posted."""

    model: ModelName
    report_id: str | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Where the service keeps reports."
    )
    specimen_id: str | None = Field(description="As given with the request.")
    differential: Differential
    results: list[Classified | Rejected]
    positions: list[int] | None = Field(
        default=None, description="The index in the report of each result; null where the service keeps none."
    )
    report: ReportState | None = Field(default=None, description="How far the report is; null where the service keeps none.")
    same_specimen: list[str] = Field(
        default_factory=list,
        description="Ids of earlier reports of this specimen number that are not withdrawn, the oldest first.",
    )
    recounted: Recounted | None = Field(
        default=None, description="Where adding to a report of another model made the service count all of it again."
    )


class Me(BaseModel):
    """Who calls: the name of the key, whose it is (null: a system's, or nobody has said), and what it may do."""

    key: str
    person: str | None
    scopes: list[str]


class People(BaseModel):
    """The persons who may review reports, by name: those with a key of their own."""

    people: list[str]


class SiteKind(BaseModel):
    """A further kind of the site: what a cell may be called beside the five classes, and by which key of the page."""

    name: str
    key: str
    loinc: str | None
    leukocyte: bool


class SiteCard(BaseModel):
    """What a page has to know of the site."""

    name: str
    language: str = Field(description="Of printed reports.")
    minimum_cells: int
    pixel_um: float | None = Field(description="Micrometres for each pixel of the images, where it is known.")
    further_kinds: list[SiteKind]


class ServedCard(ModelCard):
    """The card of the model that answers, with the names that its fields have had."""

    out_of_distribution: OutOfDistribution | None = None
    doubt: OutOfDistribution | None = Field(default=None, deprecated=True, description="the same as `out_of_distribution`")

    @classmethod
    def of(cls, card: ModelCard) -> "ServedCard":
        """A model's card as it is served."""
        return cls(**dict(card), doubt=card.out_of_distribution)


class FhirBundle(BaseModel):
    """A FHIR R4 Bundle (https://hl7.org/fhir/R4/bundle.html): one DiagnosticReport, its Observations, Device and Specimen."""

    model_config = ConfigDict(extra="allow")
    resourceType: Literal["Bundle"]
    type: Literal["collection", "transaction"]
    timestamp: str
    entry: list[dict[str, Any]]


class ProblemDocument(BaseModel):
    """RFC 9457."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    status: int
    detail: str


class NoneUsable(ProblemDocument):
    """The 422 of a request in which no image was usable: it carries the reason for each."""

    results: list[Rejected]


def images_body(most: int = 256, /, **fields: Any) -> dict[str, Any]:
    """A multipart body of images and more fields. It is parsed by `serving.http.upload`, so FastAPI cannot describe it."""
    images = {
        "type": "array",
        "minItems": 1,
        "maxItems": most,
        "items": {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"},
        "description": "JPEG, PNG, BMP or TIFF files of one cell each; their names do not matter.",
    }
    schema = {"type": "object", "required": ["images"], "additionalProperties": False, "properties": {"images": images, **fields}}
    encoding = {"images": {"contentType": "image/jpeg, image/png, image/bmp, image/tiff"}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema, "encoding": encoding}}}}


CLASSIFY_BODY: Final = images_body()
DIFFERENTIAL_BODY: Final = images_body(
    256,
    **{
        WBC_COUNT: {
            "type": "number",
            "minimum": LOWEST_COUNT,
            "maximum": HIGHEST_COUNT,
            "description": "The leukocyte count in 10*3/uL (10^9/L); with it the answer has absolute counts.",
        },
        SPECIMEN_ID: {
            "type": "string",
            "pattern": SPECIMEN_PATTERN,
            "description": "The laboratory's number of the specimen: comes back in the answer and is never logged.",
        },
        REPORT_ID: {
            "type": "string",
            "description": "Adds the images to this report of the same specimen: it may have more cells than one request. "
            "The other fields, where they are given again, must be those of the report.",
        },
        EXPECTED_IMAGES: {
            "type": "integer",
            "minimum": 1,
            "maximum": MOST_IMAGES,
            "description": "How many images the client means to send for this specimen in all, in this request and in those that "
            "add to its report; rejected ones count as sent. A report that has fewer cannot be signed.",
        },
    },
)
