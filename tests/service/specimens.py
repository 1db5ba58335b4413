"""Results, differentials and reports for the tests of what is kept."""

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from serving.contract.differential import Circumstances, Differential, count_differential
from serving.contract.schemas import Classified, ImageProblem, ModelName, Reason, Rejected, Result, Review
from serving.contract.site import Hl7Receiver, KeepImages, Site, read_site
from serving.contract.specimen import Specimen
from serving.inference.classify import Seen
from serving.inference.reading import Reading
from serving.reports.intake import take_in
from serving.reports.review import Person
from serving.reports.store import Store

MODEL = ModelName(name="wbc", version="tiny-1")
CONFUSION = np.eye(5, dtype=np.int64) * 20
PERSON = Person("Dr. Ada", "ward")
SPECIMEN = "S-4711"
_NUMBERS = itertools.count()


def site(hl7: Hl7Receiver | None = None, keep_images: bool = False, minimum_cells: int = 10, review: str = "nothing") -> Site:
    """The default site with small numbers, where a report can be signed without a look at any cell."""
    keep = KeepImages() if keep_images else None
    changes = {"hl7": hl7, "keep_images": keep, "minimum_cells": minimum_cells, "review_before_signature": review}
    return read_site().model_copy(update=changes)


def classified(label: str, review: bool = False, reason: Reason = "ambiguous") -> Classified:
    """A result as the service makes it, each time of another file."""
    return Classified(
        label=label,
        probabilities={label: 1.0},
        prediction_set=[label],
        predicted_loss=None,
        review=Review(required=review, reasons=[reason] if review else []),
        sha256=hashlib.sha256(str(next(_NUMBERS)).encode()).hexdigest(),
    )


def rejected() -> Rejected:
    """A result of an unusable image."""
    problem = ImageProblem(type="urn:wbc:problem:image:truncated", title="Image rejected", detail="x", reason="truncated")
    return Rejected(problem=problem, sha256="0" * 64)


def counted(labels: Sequence[str], of: Site, wbc_count: float | None = 5.0, to_review: int = 0) -> Differential:
    """The differential of labels that the model gave."""
    return count_differential(labels, CONFUSION, of, Circumstances(wbc_count=wbc_count, to_review=to_review))


def several(label: str, count: int, review: bool = False, reason: Reason = "ambiguous") -> list[Result]:
    """Results of as many files."""
    return [classified(label, review, reason) for _ in range(count)]


def read(results: Sequence[Result], false_alarms: float | None = None) -> Reading:
    """Results as a model gave them, of files of their own."""
    files = [f"image {number}".encode() for number in range(len(results))]
    return Reading([Seen(result, None) for result in results], files, MODEL, CONFUSION, false_alarms)


def reported(store: Store, of: Site | None = None, results: Sequence[Result] | None = None, wbc_count: float | None = 5.0) -> str:
    """A preliminary report in the store: 12 neutrophils, 7 lymphocytes to be looked at and a rejected image, unless told."""
    if results is None:
        results = [*several("Neutrophil", 12), *several("Lymphocyte", 7, review=True), rejected()]
    return take_in(store, read(results), Specimen(wbc_count, SPECIMEN), of or site()).report.id
