"""Content negotiation: which of the forms that a call offers the caller wants (RFC 9110, section 12.5.1)."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from serving.contract.problems import Problem

_QUALITY = re.compile(r"(0(\.[0-9]{0,3})?|1(\.0{0,3})?)")
_FHIR_VERSION = "4.0"


class _Wish(NamedTuple):
    """One media range of the header; a range that cannot be read is no wish."""

    kind: str
    quality: float


def _wish(text: str) -> _Wish | None:
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    values = {name.strip(): value.strip().strip('"') for name, _, value in (item.partition("=") for item in parameters)}
    quality = values.get("q", "1")
    if kind.count("/") != 1 or not _QUALITY.fullmatch(quality) or values.get("fhirversion", _FHIR_VERSION) != _FHIR_VERSION:
        return None
    return _Wish(kind, float(quality))


def _rank(offer: str, wishes: Sequence[_Wish]) -> tuple[float, bool, int]:
    """How much an offer is wanted: by the quality of the most specific range for it, named outright or not, and how early."""
    ranges = (offer, offer.partition("/")[0] + "/*", "*/*")
    fitting = [(-ranges.index(wish.kind), -place, wish.quality) for place, wish in enumerate(wishes) if wish.kind in ranges]
    if not fitting:
        return 0.0, False, 0
    generality, place, quality = max(fitting)
    return (quality, True, place) if generality == 0 else (quality, False, 0)


def negotiate(accept: Sequence[str], offered: Sequence[str]) -> str:
    """The media type to answer with, from the Accept headers of a request and what is offered, the usual one first.

    The most specific range that names an offer decides on it; of offers wanted alike the one that the header names outright, and
    first, wins. Without a header it is the first. Raises a 406 Problem where nothing offered is acceptable.
    """
    text = ",".join(accept)
    if not text.strip():
        return offered[0]
    wishes = [wish for wish in map(_wish, text.split(",")) if wish is not None]
    best = max(offered, key=lambda offer: _rank(offer, wishes))
    if not _rank(best, wishes)[0]:
        detail = f"This call answers with {' or '.join(offered)}; the Accept header allows none of them."
        raise Problem(406, "not-acceptable", "Not acceptable", detail, offered=list(offered))
    return best
