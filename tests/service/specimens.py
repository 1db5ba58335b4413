"""Results, differentials and reports for the tests of what is kept."""

import hashlib
from collections.abc import Sequence

import numpy as np

from serving.differential import Differential, count_differential
from serving.review import Person, take_in
from serving.schemas import Classified, ImageProblem, ModelName, Rejected, Result, Review
from serving.site import Hl7Receiver, Site, read_site
from serving.specimen import Specimen
from serving.store import Store

MODEL = ModelName(name="wbc", version="tiny-1")
CONFUSION = np.eye(5, dtype=np.int64) * 20
PERSON = Person("Dr. Ada", "ward")
SPECIMEN = "S-4711"


def site(hl7: Hl7Receiver | None = None, keep_images: bool = False, minimum_cells: int = 10) -> Site:
    """The default site with small numbers."""
    return read_site().model_copy(update={"hl7": hl7, "keep_images": keep_images, "minimum_cells": minimum_cells})


def classified(label: str, review: bool = False) -> Classified:
    """A result as the service makes it."""
    return Classified(
        label=label,
        probabilities={label: 1.0},
        prediction_set=[label],
        predicted_loss=None,
        review=Review(required=review, reasons=["ambiguous"] if review else []),
        sha256=hashlib.sha256(label.encode()).hexdigest(),
    )


def rejected() -> Rejected:
    """A result of an unusable image."""
    problem = ImageProblem(type="urn:wbc:problem:image:truncated", title="Image rejected", detail="x", reason="truncated")
    return Rejected(problem=problem, sha256="0" * 64)


def counted(labels: Sequence[str], of: Site, wbc_count: float | None = 5.0, to_review: int = 0) -> Differential:
    """The differential of labels that the model gave."""
    return count_differential(labels, CONFUSION, of, wbc_count, to_review)


def reported(store: Store, of: Site | None = None, results: Sequence[Result] | None = None, wbc_count: float | None = 5.0) -> str:
    """A preliminary report in the store: 12 neutrophils, 7 lymphocytes to be looked at and a rejected image, unless told."""
    of = of or site()
    if results is None:
        results = [classified("Neutrophil")] * 12 + [classified("Lymphocyte", review=True)] * 7 + [rejected()]
    good = [result for result in results if isinstance(result, Classified)]
    differential = counted([one.label for one in good], of, wbc_count, sum(one.review.required for one in good))
    files = [f"image {number}".encode() for number in range(len(results))]
    return take_in(store, results, files, differential, CONFUSION, MODEL, Specimen(wbc_count, SPECIMEN), of)
