"""Names in any script; blanks of every kind and what turns the writing direction are none."""

import json
import re
import unicodedata
from datetime import UTC, datetime

import pytest
from fhir.resources.R4B.bundle import Bundle
from pydantic import ValidationError
from specimens import MODEL, counted, site

from serving.contract.names import NAME, trimmed, visible
from serving.contract.report_schemas import SignatureRequest
from serving.formats.fhir import Reported, bundle

BLANKS = [chr(code) for code in range(0x10000) if unicodedata.category(chr(code)) in ("Zs", "Zl", "Zp")]
NOTHING = [*BLANKS, "\u00ad", "\u200b", "\u200d", "\u200f", "\u2060", "\ufeff", "\u3164", "\u115f", "\uffa0", "\u2800", "\ufe0f"]


@pytest.mark.parametrize("blank", NOTHING)
def test_what_cannot_be_seen_is_no_name(blank: str) -> None:
    for text in (blank, blank * 3, f" {blank}\u00a0"):
        assert not visible(text)
        assert trimmed(text) == ""
        with pytest.raises(ValidationError):
            SignatureRequest(by=text)


@pytest.mark.parametrize("bad", ["\u202eadA .rD", "a\u2066b", "a\u2028b", "a\x85b", "a\nb", "a\x7fb", ""])
def test_line_ends_and_turned_directions_are_refused(bad: str) -> None:
    with pytest.raises(ValidationError):
        SignatureRequest(by=bad)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("Dr. Ada", "Dr. Ada"),
        ("\u00a0Dr.\u00a0Ada\u2003", "Dr. Ada"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("\u0645\u062d\u0645\u062f", "\u0645\u062d\u0645\u062f"),
        (
            "\u0646\u0645\u06cc\u200c\u062f\u0627\u0646\u0645",
            "\u0646\u0645\u06cc\u200c\u062f\u0627\u0646\u0645",
        ),  # joined in Persian
        ("\u5f35\u5049", "\u5f35\u5049"),
        ("\U0001f600", "\U0001f600"),
    ],
)
def test_names_of_every_script_are_taken_as_they_are_seen(given: str, kept: str) -> None:
    assert SignatureRequest(by=given).by == kept
    assert re.search(NAME, given)  # the pattern is in the OpenAPI document, too


@pytest.mark.parametrize("blank", ["\u00a0", "\u3000", " "])
def test_a_kept_name_of_blanks_makes_no_invalid_bundle(blank: str) -> None:
    of = site()
    of = of.model_copy(update={"identifiers": of.identifiers.model_copy(update={"facility": blank})})
    issued = datetime(2026, 11, 23, tzinfo=UTC)
    reported = Reported(model=MODEL, specimen_id="S", issued=issued, status="final", performer=blank)
    document = bundle(counted(["Neutrophil"] * 12, of), reported, of)
    assert Bundle.model_validate_json(json.dumps(document))
    kinds = {entry["resource"]["resourceType"] for entry in document["entry"]}
    assert not kinds & {"Practitioner", "Organization"}
