"""Content negotiation as RFC 9110 has it."""

import time

import pytest

from serving.contract.negotiate import negotiate
from serving.contract.problems import Problem

JSON, FHIR = "application/json", "application/fhir+json"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ([], JSON),
        ([""], JSON),
        (["*/*"], JSON),
        (["application/*"], JSON),
        ([JSON], JSON),
        ([FHIR], FHIR),
        (["Application/FHIR+JSON; charset=utf-8"], FHIR),
        (["application/fhir+json; fhirVersion=4.0"], FHIR),
        ([f"{FHIR}, {JSON}"], FHIR),
        ([f"{JSON}, {FHIR}"], JSON),
        ([JSON, FHIR], JSON),
        ([f"*/*, {FHIR}"], FHIR),
        ([f"{JSON};q=0.5, {FHIR};q=0.6"], FHIR),
        ([f"{JSON};q=0.6, {FHIR};q=0.5"], JSON),
        ([f"{FHIR};q=0, */*"], JSON),
        ([f"{JSON};q=0, */*"], FHIR),
        ([f"{JSON};q=0, application/*;q=0.1"], FHIR),
        (["text/html, application/xhtml+xml, */*;q=0.8"], JSON),
        ([f"rubbish, ;;, {JSON};q=2, {FHIR};q=0.3"], FHIR),
    ],
)
def test_the_form_that_is_wanted(accept: list[str], expected: str) -> None:
    assert negotiate(accept, (JSON, FHIR)) == expected


@pytest.mark.parametrize(
    "accept", ["text/html", "application/fhir+xml", f"{JSON};q=0", "*/*;q=0", "rubbish", "application/fhir+json; fhirVersion=5.0"]
)
def test_nothing_acceptable_is_406(accept: str) -> None:
    with pytest.raises(Problem) as caught:
        negotiate([accept], (JSON, FHIR))
    assert caught.value.status == 406
    assert caught.value.document["offered"] == [JSON, FHIR]


def test_a_hostile_header_costs_no_time() -> None:
    started = time.perf_counter()
    for text in ("," * 60_000, '"\\' * 30_000, "a/b;" * 15_000, "*/*;q=0.1," * 6_000):
        negotiate([f"{text},{JSON}"], (JSON, FHIR))
    assert time.perf_counter() - started < 2
