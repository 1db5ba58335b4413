"""The FHIR Bundle: valid R4, complete in itself, and saying what the differential says."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from fhir.resources.R4B.bundle import Bundle
from tiny_model import CONFUSION

from serving.contract.differential import Circumstances, Differential, count_differential
from serving.contract.schemas import ModelName
from serving.contract.site import Site, read_site
from serving.formats.fhir import GivenUp, Reported, bundle, transaction
from wbc_model.core.classes import CLASSES

SITE = read_site()
ISSUED = datetime(2026, 11, 23, 4, 5, 6, tzinfo=UTC)
COUNTS = dict(zip(CLASSES, (1, 20, 60, 13, 106), strict=True))


def counted(scale: int = 1, wbc: float | None = 7.5) -> Differential:
    labels = [name for name, count in COUNTS.items() for _ in range(count // scale)]
    return count_differential(labels, np.array(CONFUSION), SITE, Circumstances(wbc_count=wbc, to_review=3))


def document(differential: Differential, **changes: Any) -> dict[str, Any]:
    """The Bundle as it goes over the wire, validated."""
    values: dict[str, Any] = {"specimen_id": "S-1", "issued": ISSUED, "status": "preliminary"} | changes
    site = values.pop("site", SITE)
    reported = Reported(model=ModelName(name="wbc", version="7"), **values)
    text = json.dumps(bundle(differential, reported, site), allow_nan=False)
    assert Bundle.model_validate_json(text).get_resource_type() == "Bundle"
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def resources(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry["resource"] for entry in document["entry"] if entry["resource"]["resourceType"] == kind]


def references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [found for item in node for found in references(item)]
    if isinstance(node, dict):
        own = [node["reference"]] if isinstance(node.get("reference"), str) else []
        return own + [found for item in node.values() for found in references(item)]
    return []


def test_one_report_and_an_observation_a_class() -> None:
    made = document(counted(wbc=None))
    [report] = resources(made, "DiagnosticReport")
    observations = resources(made, "Observation")
    assert (made["type"], made["entry"][0]["resource"], len(observations)) == ("collection", report, 5)
    assert report["code"]["coding"] == [{"system": "http://loinc.org", "code": "69738-3"}]
    assert (report["status"], report["issued"]) == ("preliminary", "2026-11-23T04:05:06.000+00:00")
    kind = {"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "HM", "display": "Hematology"}
    assert report["category"] == [{"coding": [kind]}]
    assert "3 of them to be looked at by a person" in report["conclusion"]
    for name, observation in zip(CLASSES, observations, strict=True):
        assert observation["code"]["coding"] == [{"system": "http://loinc.org", "code": SITE.loinc.percent[name]}]
        unit = {"unit": "%", "system": "http://unitsofmeasure.org", "code": "%"}
        assert observation["valueQuantity"] == {"value": COUNTS[name] / 2, **unit}
        assert observation["status"] == "preliminary"
        assert "not reviewed by a person" in observation["method"]["text"]
        count, exact, corrected = observation["component"]
        assert count["valueInteger"] == COUNTS[name]
        assert exact["valueRange"]["low"]["value"] < COUNTS[name] / 2 < exact["valueRange"]["high"]["value"]
        assert corrected["valueRange"]["high"]["unit"] == "%"
    assert observations[1]["interpretation"][0]["coding"][0]["code"] == "H"
    assert observations[2]["interpretation"][0]["coding"][0]["code"] == "N"
    assert observations[1]["referenceRange"][0]["high"]["value"] == 6
    assert "Dacie" in observations[1]["referenceRange"][0]["text"]


def test_absolute_observations_where_the_count_is_given() -> None:
    made = document(counted())
    observations = resources(made, "Observation")
    urls = {entry["fullUrl"]: entry["resource"] for entry in made["entry"]}
    assert len(observations) == 10
    for name, percent, absolute in zip(CLASSES, observations[:5], observations[5:], strict=True):
        assert absolute["code"]["coding"][0]["code"] == SITE.loinc.absolute[name]
        assert absolute["valueQuantity"]["code"] == "10*3/uL"
        assert absolute["valueQuantity"]["value"] == pytest.approx(7.5 * COUNTS[name] / 200, abs=6e-3)
        assert [urls[it["reference"]] for it in absolute["derivedFrom"]] == [percent]
    critical = resources(document(counted(wbc=0.5)), "Observation")[9]
    assert critical["interpretation"][0]["coding"][0]["code"] == "LL"


def test_limits_and_ranges_are_those_of_the_differential() -> None:
    """Of percentages with two decimals, of absolute counts with three; exact limits come first, corrected ones after them."""
    differential = counted()
    found = resources(document(differential), "Observation")
    shares = list(differential.classes.values())
    for observation, share, digits in [(one, of, 2) for one, of in zip(found[:5], shares, strict=True)] + [
        (one, of.absolute, 3) for one, of in zip(found[5:], shares, strict=True)
    ]:
        assert share is not None
        assert share.corrected is not None
        limits = [one["valueRange"] for one in observation["component"] if "valueRange" in one]
        expected = [[round(of.low, digits), round(of.high, digits)] for of in (share.interval, share.corrected)]
        assert [[one["low"]["value"], one["high"]["value"]] for one in limits] == expected
        [range_] = observation["referenceRange"]
        assert (range_["low"]["value"], range_["high"]["value"]) == (share.reference.low, share.reference.high)


def test_every_reference_is_resolvable_within_the_bundle() -> None:
    made = document(counted(), performer="Dr A", status="final", report_id="r-1")
    urls = [entry["fullUrl"] for entry in made["entry"]]
    assert len(set(urls)) == len(urls)
    assert all(url.startswith("urn:uuid:") for url in urls)
    found = references(made)
    assert len(found) > 30
    assert set(found) == set(urls) - {urls[0]}, "everything but the report is referred to"
    assert sorted(references(resources(made, "DiagnosticReport")[0]["result"])) == sorted(
        entry["fullUrl"] for entry in made["entry"] if entry["resource"]["resourceType"] == "Observation"
    )


def test_the_device_is_the_model_and_the_specimen_its_number() -> None:
    made = document(counted())
    [device], [specimen] = resources(made, "Device"), resources(made, "Specimen")
    assert device["deviceName"] == [{"name": "wbc", "type": "model-name"}]
    assert device["version"][0]["value"] == "7"
    assert specimen["identifier"] == [{"value": "S-1"}]
    urls = {entry["fullUrl"]: entry["resource"] for entry in made["entry"]}
    for observation in resources(made, "Observation"):
        assert urls[observation["device"]["reference"]] == device
        assert urls[observation["specimen"]["reference"]] == specimen


def typed_references(node: Any) -> list[tuple[str, str]]:
    if isinstance(node, list):
        return [found for item in node for found in typed_references(item)]
    if not isinstance(node, dict):
        return []
    own = [(node["reference"], node["type"])] if "reference" in node else []
    return own + [found for item in node.values() for found in typed_references(item)]


def test_every_reference_names_its_type() -> None:
    made = document(counted(), performer="Dr A", status="final", report_id="r-1")
    kinds = {entry["fullUrl"]: entry["resource"]["resourceType"] for entry in made["entry"]}
    assert typed_references(made) == [(url, kinds[url]) for url in references(made)]


def stored(differential: Differential, **changes: Any) -> dict[str, dict[str, Any]]:
    """What a server has after the POST of a transaction, by Type/id."""
    values: dict[str, Any] = {"specimen_id": "S-1", "issued": ISSUED, "status": "final", "report_id": "r-1"} | changes
    made = transaction(differential, Reported(model=ModelName(name="wbc", version="7"), **values), SITE)
    assert Bundle.model_validate_json(json.dumps(made)).type == "transaction"
    resources = {entry["request"]["url"]: entry["resource"] for entry in made["entry"]}
    assert len(resources) == len(made["entry"])
    assert {entry["request"]["method"] for entry in made["entry"]} == {"PUT"}
    assert set(references(made)) <= set(resources), "what is referred to is where the server has it"
    return resources


def test_a_transaction_says_what_the_bundle_says() -> None:
    model = ModelName(name="wbc", version="7")
    of = Reported(model=model, specimen_id="S-1", issued=ISSUED, status="final", report_id="r-1", performer="Dr A")
    made, sent = bundle(counted(), of, SITE), transaction(counted(), of, SITE)
    text = json.dumps([entry["resource"] for entry in made["entry"]])
    for entry, put in zip(made["entry"], sent["entry"], strict=True):
        text = text.replace(f'"{entry["fullUrl"]}"', f'"{put["request"]["url"]}"')
    said = [{name: value for name, value in put["resource"].items() if name != "id"} for put in sent["entry"]]
    assert said == json.loads(text)


def test_a_transaction_puts_each_resource_where_the_next_one_does() -> None:
    first, amended = stored(counted()), stored(counted(wbc=6.0), status="amended", performer="Dr B")
    assert set(first) <= set(amended)
    assert {url: f"{it['resourceType']}/{it['id']}" for url, it in first.items()} == {url: url for url in first}
    statuses = {it["status"] for url, it in amended.items() if url.startswith(("Observation", "DiagnosticReport"))}
    assert statuses == {"amended"}
    assert {url.partition("/")[0] for url in set(amended) - set(first)} == {"Practitioner"}
    other = stored(counted(), report_id="r-2", specimen_id="S-2")
    assert {url.partition("/")[0] for url in set(other) & set(first)} == {"Device"}, "of the same model"
    with pytest.raises(ValueError, match="report_id"):
        stored(counted(), report_id=None)


def test_what_a_report_has_no_longer_is_marked_at_the_server() -> None:
    first = stored(counted())
    later = stored(counted(wbc=None), status="amended", given_up=GivenUp(absolute=True, further=("Band",)))
    assert set(first) <= set(later)
    gone = [it for it in later.values() if it.get("status") == "entered-in-error"]
    assert len(gone) == 6
    assert all("valueQuantity" not in it for it in gone)
    assert {it["id"] for it in gone}.isdisjoint(
        url.partition("/")[2] for url in references(later["DiagnosticReport/" + report_id(later)])
    )
    assert [it["status"] for it in stored(counted(), given_up=GivenUp(absolute=True)).values() if "status" in it].count(
        "final"
    ) == 11


def report_id(resources: dict[str, dict[str, Any]]) -> str:
    return next(it["id"] for it in resources.values() if it["resourceType"] == "DiagnosticReport")


def test_drawn_cells_change_nothing_that_real_reports_share() -> None:
    drawn = counted().model_copy(update={"rendered": True})
    assert not set(stored(drawn)) & set(stored(counted(), report_id="r-2"))
    assert all("meta" in it for it in stored(drawn, given_up=GivenUp(further=("Band",))).values())


def test_nothing_is_made_up_about_a_patient() -> None:
    made = document(counted(), specimen_id=None)
    assert not resources(made, "Specimen")
    assert not resources(made, "Patient")
    for resource in resources(made, "DiagnosticReport") + resources(made, "Observation"):
        assert not {"subject", "specimen", "encounter", "performer", "effectiveDateTime"} & set(resource)


@pytest.mark.parametrize("status", ["final", "amended"])
def test_a_signed_report_names_who_signed_and_where(status: str) -> None:
    given = SITE.model_dump()
    given["identifiers"] |= {"facility": "St Elsewhere", "specimen_system": "urn:oid:1.2.3"}
    made = document(counted(), status=status, performer="Dr A", site=Site.model_validate(given))
    assert {it["status"] for it in resources(made, "Observation") + resources(made, "DiagnosticReport")} == {status}
    assert resources(made, "Practitioner")[0]["name"] == [{"text": "Dr A"}]
    assert resources(made, "Organization")[0]["name"] == "St Elsewhere"
    assert resources(made, "Specimen")[0]["identifier"] == [{"system": "urn:oid:1.2.3", "value": "S-1"}]
    assert len(resources(made, "DiagnosticReport")[0]["performer"]) == 2
    assert resources(made, "Observation")[0]["method"]["text"].endswith(", not reviewed by a person, 3 still to be reviewed")


def test_too_few_cells_are_filed_by_nobody() -> None:
    made = document(counted(scale=10))
    [report] = resources(made, "DiagnosticReport")
    assert "coding" not in report["code"]
    assert "too few" in report["code"]["text"]
    for observation in resources(made, "Observation"):
        assert not {"valueQuantity", "interpretation", "referenceRange"} & set(observation)
        assert observation["dataAbsentReason"]["text"] == "Too few cells: 19 cells, 100 are needed"
    assert resources(made, "Observation")[4]["component"][0]["valueInteger"] == 10


def test_an_unknown_site_is_noted_on_every_observation() -> None:
    unknown = count_differential(["Neutrophil"] * 100, None, SITE, Circumstances(site_unknown=True))
    for observation in resources(document(unknown), "Observation"):
        assert "no site that the model was calibrated for" in observation["note"][0]["text"]
    assert "note" not in resources(document(counted()), "Observation")[0]


def test_a_report_keeps_its_identity_and_two_requests_have_two() -> None:
    first, again = (document(counted(), report_id="r-1") for _ in range(2))
    assert first == again
    assert resources(first, "DiagnosticReport")[0]["identifier"] == [{"value": "r-1"}]
    urls = [{entry["fullUrl"] for entry in document(counted(), **more)["entry"]} for more in ({}, {}, {"report_id": "r-2"})]
    assert not urls[0] & urls[1]
    [device] = [entry["fullUrl"] for entry in first["entry"] if entry["resource"]["resourceType"] == "Device"]
    assert urls[2] & {entry["fullUrl"] for entry in first["entry"]} == {device}, "the same model, at a server one device"


def test_an_instant_has_a_time_zone() -> None:
    there = ISSUED.astimezone(timezone(timedelta(hours=9)))
    assert document(counted(), issued=there)["timestamp"] == "2026-11-23T13:05:06.000+09:00"
    with pytest.raises(ValueError, match="time zone"):
        document(counted(), issued=ISSUED.replace(tzinfo=None))
