"""The JSON that the service answers with; these models are also its OpenAPI document."""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.differential import Differential
from serving.specimen import HIGHEST_COUNT, LOWEST_COUNT, REPORT_ID, SPECIMEN_ID, SPECIMEN_PATTERN, WBC_COUNT

Reason = Literal["ambiguous", "not_a_leukocyte", "site_unknown", "high_predicted_loss"]
AMBIGUOUS: Final = "ambiguous"  # the prediction set does not name exactly one class
NOT_A_LEUKOCYTE: Final = "not_a_leukocyte"  # unlike the site's cells of every class, or no nucleus was found
SITE_UNKNOWN: Final = "site_unknown"  # stain and light are not those of the site the model was calibrated for
HIGH_PREDICTED_LOSS: Final = "high_predicted_loss"  # LossNet expects a larger error than of almost all cells of the site
REVIEW_REASONS: Final[tuple[Reason, ...]] = (AMBIGUOUS, NOT_A_LEUKOCYTE, SITE_UNKNOWN, HIGH_PREDICTED_LOSS)


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
    probabilities: dict[str, float] = Field(description="Calibrated probability of every class; they sum to 1.")
    prediction_set: list[str] = Field(description="Classes the cell may be, at the model's stated coverage; most probable first.")
    predicted_loss: float | None = Field(description="What the model expects its own error to be; null where it has no LossNet.")
    review: Review
    sha256: str = Field(description="SHA-256 of the file as it was posted, in hexadecimal.")
    heat_map: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Only with `explain=true`: where the network looks, a PNG in base64.",
    )


class ImageProblem(BaseModel):
    """Why one image was rejected; `reason` is machine-readable."""

    type: str
    title: str
    detail: str
    reason: Literal["undecodable", "truncated", "too_large", "too_small"]


class Rejected(BaseModel):
    """One image that could not be used; the others of the request are not affected."""

    status: Literal["rejected"] = "rejected"
    problem: ImageProblem
    sha256: str


Result = Classified | Rejected


class Classification(BaseModel):
    """The answer of `POST /v1/classify`: one result an image, in the order posted."""

    model: ModelName
    results: list[Classified | Rejected]


class DifferentialAnswer(BaseModel):
    """The answer of `POST /v1/differential`; `results` has one an image, in the order posted."""

    model: ModelName
    report_id: str | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Where the service keeps reports."
    )
    specimen_id: str | None = Field(description="As given with the request.")
    differential: Differential
    results: list[Classified | Rejected]


class FhirBundle(BaseModel):
    """A FHIR R4 Bundle (https://hl7.org/fhir/R4/bundle.html): one DiagnosticReport, its Observations, Device and Specimen."""

    model_config = ConfigDict(extra="allow")
    resourceType: Literal["Bundle"]
    type: Literal["collection"]
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


def _body(**fields: Any) -> dict[str, Any]:
    """A multipart body of images and more fields. It is parsed by `serving.upload`, so FastAPI cannot describe it."""
    images = {
        "type": "array",
        "minItems": 1,
        "maxItems": 256,
        "items": {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"},
        "description": "JPEG, PNG, BMP or TIFF files of one cell each; their names do not matter.",
    }
    schema = {"type": "object", "required": ["images"], "additionalProperties": False, "properties": {"images": images, **fields}}
    encoding = {"images": {"contentType": "image/jpeg, image/png, image/bmp, image/tiff"}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema, "encoding": encoding}}}}


CLASSIFY_BODY: Final = _body()
DIFFERENTIAL_BODY: Final = _body(
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
            "The other two fields, where they are given again, must be those of the report.",
        },
    }
)
