"""The differential as a FHIR R4 Bundle: one DiagnosticReport, one Observation per class, and what they refer to.

Its resources refer to each other by urn:uuid, so it is complete in itself. It says nothing of a patient. The specimen number,
where there is one, is all that links it to anybody. Below the minimum of cells an Observation has the reason in place of a value:
no receiver can file a percentage that must not be reported.

`bundle` makes a collection. `transaction` makes of it what a FHIR server stores by one POST (R4, http.html#transaction): each
resource is put under the id that it has in every Bundle of the report, so that an amendment updates what is there.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, cast
from uuid import UUID, uuid4, uuid5

from serving.contract.differential import (
    NAMED_BY_PERSONS,
    RENDERED,
    SITE_UNKNOWN,
    AbsoluteCount,
    ClassShare,
    Differential,
    Flag,
    Interval,
    how_reviewed,
)
from serving.contract.names import visible
from serving.contract.schemas import ModelName
from serving.contract.site import Site
from wbc_model.core.errors import counted

MEDIA_TYPE: Final = "application/fhir+json"
Status = Literal["preliminary", "final", "amended", "entered-in-error", "cancelled"]
Json = dict[str, Any]

LOINC: Final = "http://loinc.org"
UCUM: Final = "http://unitsofmeasure.org"
SNOMED: Final = "http://snomed.info/sct"
HL7: Final = "http://terminology.hl7.org/CodeSystem"
PERCENT: Final = "%"
THOUSANDS: Final = "10*3/uL"
PER_100: Final = "/100{WBCs}"
DECIMALS: Final = {PERCENT: 2, THOUSANDS: 3}  # of limits
TEST_DATA: Final = {"system": f"{HL7}/v3-ActReason", "code": "HTEST", "display": "test health data"}
INTERPRETATION: Final[dict[Flag, tuple[str, str]]] = {
    "low": ("L", "Low"),
    "normal": ("N", "Normal"),
    "high": ("H", "High"),
    "critical_low": ("LL", "Critical low"),
    "critical_high": ("HH", "Critical high"),
}
REPORTS: Final = UUID("6f0dd8c4-2b0f-5f0a-9c55-0d6c1a7d3b52")  # the namespace of this service's reports


class _Entries:
    """The Bundle's resources by a name that is theirs within it, and the urn:uuid of each."""

    def __init__(self, report_id: str | None, rendered: bool) -> None:
        self._namespace = uuid5(REPORTS, report_id) if report_id else uuid4()
        self._alone = report_id is None or rendered  # what is marked as test data is nothing that real reports share
        self._resources: dict[str, tuple[UUID, Json]] = {}

    def reference(self, name: str) -> Json:
        """The reference to a resource that was added; with its type, by which receivers check it without following it."""
        identity, resource = self._resources[name]
        return {"reference": identity.urn, "type": resource["resourceType"]}

    def add(self, name: str, resource: Json) -> Json:
        """Take a resource in and return the reference to it."""
        self._resources[name] = uuid5(self._namespace, name), resource
        return self.reference(name)

    def add_shared(self, name: str, resource: Json) -> Json:
        """As `add`, for what is the same in several reports: its identity is what it says."""
        if self._alone:
            return self.add(name, resource)
        self._resources[name] = uuid5(REPORTS, json.dumps(resource, sort_keys=True)), resource
        return self.reference(name)

    def listed(self) -> list[Json]:
        return [{"fullUrl": identity.urn, "resource": resource} for identity, resource in self._resources.values()]


class GivenUp(NamedTuple):
    """Of what a report had Observations at an earlier time; what it still has may be among it."""

    absolute: bool = False
    further: tuple[str, ...] = ()


NOTHING: Final = GivenUp()


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What a Bundle says beside the differential.

    `issued` carries its time zone. `performer` is the person who signed, None where nobody has. `withdrawn` says of a withdrawn
    report who withdrew it and why. With a `report_id` the resources keep their identity from one Bundle to the next. `given_up`
    says of what Observations were made once and are no longer: absolute counts, and further kinds by their names.
    """

    model: ModelName
    specimen_id: str | None
    issued: datetime
    status: Status
    performer: str | None = None
    report_id: str | None = None
    withdrawn: str | None = None
    given_up: GivenUp = NOTHING


def bundle(differential: Differential, of: Reported, site: Site) -> Json:
    """The Bundle as plain JSON. Raises ValueError where the time of issue has no time zone."""
    if of.issued.tzinfo is None:
        raise ValueError("issued: a FHIR instant has a time zone")
    entries = _Entries(of.report_id, differential.rendered)
    instant = of.issued.isoformat(timespec="milliseconds")
    report: Json = {"resourceType": "DiagnosticReport", "status": of.status, "issued": instant}
    entries.add("report", report)  # the first entry; filled in below, when there is something to refer to
    about: Json = {
        "resourceType": "Observation",
        "status": of.status,
        "issued": instant,
        "method": {"text": _method(differential)},
    }
    about |= {
        "category": [_coded(f"{HL7}/observation-category", "laboratory")],
        "device": entries.add_shared("device", _device(of.model)),
    }
    if of.specimen_id is not None:
        about["specimen"] = entries.add("specimen", _specimen(of.specimen_id, site))
        report["specimen"] = [about["specimen"]]
    if notes := list(_notes(differential, of.withdrawn)):
        about["note"] = [{"text": note} for note in notes]  # on each, for receivers that file Observations one by one
    if performers := list(_performers(entries, of.performer, site)):
        about["performer"] = report["performer"] = performers
    if of.report_id is not None:
        report["identifier"] = [{"value": of.report_id}]
    report |= {
        "category": [_coded(f"{HL7}/v2-0074", "HM", "Hematology")],
        "code": _panel(differential, site),
        "result": [entries.add(name, about | it) for name, it in _observations(differential, site, entries)],
        "conclusion": " ".join([*_notes(differential, of.withdrawn), _conclusion(differential)]),
    }
    document = {"resourceType": "Bundle", "type": "collection", "timestamp": instant, "entry": entries.listed()}
    if differential.rendered:
        for resource in (document, *(entry["resource"] for entry in entries.listed())):
            resource["meta"] = {"security": [TEST_DATA]}  # on each resource, by which receivers know it on its own
    return document


def transaction(differential: Differential, of: Reported, site: Site) -> Json:
    """The Bundle as a transaction, by which a FHIR server makes or updates all of its resources, or none.

    What the report had once and has no longer is marked `entered-in-error`: a server would go on showing it. Raises ValueError as
    `bundle`, and without a `report_id`, by which the resources are known again.
    """
    if of.report_id is None:
        raise ValueError("report_id: without one the resources would be new ones at each call")
    document = bundle(differential, of, site)
    document["type"] = "transaction"
    document["entry"] += _taken_back(document, differential, of, site)
    places = {entry["fullUrl"]: f"{entry['resource']['resourceType']}/{UUID(entry['fullUrl'])}" for entry in document["entry"]}
    for entry in document["entry"]:
        resource, url = entry["resource"], places[entry["fullUrl"]]
        entry["resource"] = {"resourceType": resource["resourceType"], "id": url.partition("/")[2], **_led_to(resource, places)}
        entry["request"] = {"method": "PUT", "url": url}
    return document


def _led_to(node: Any, places: dict[str, str]) -> Any:
    """The same JSON with each reference led to where the server will have the resource."""
    if isinstance(node, list):
        return [_led_to(item, places) for item in node]
    if not isinstance(node, dict):
        return node
    return {name: places[value] if name == "reference" else _led_to(value, places) for name, value in node.items()}


def _taken_back(document: Json, differential: Differential, of: Reported, site: Site) -> list[Json]:
    """An entry for each Observation that the report had once and that is not in the Bundle."""
    codes = {f"{name} further": _further_code(name, _term(name, site)) for name in of.given_up.further}
    if of.given_up.absolute:
        codes |= {f"{name} absolute": _absolute_code(name, site) for name in differential.classes}
    marked = {"status": "entered-in-error", "note": [{"text": "No longer part of the report."}]}
    marked |= {"meta": document["meta"]} if "meta" in document else {}
    here, namespace = {entry["fullUrl"] for entry in document["entry"]}, uuid5(REPORTS, str(of.report_id))
    found = [
        {"fullUrl": uuid5(namespace, name).urn, "resource": {"resourceType": "Observation", "code": code, **marked}}
        for name, code in codes.items()
    ]
    return [entry for entry in found if entry["fullUrl"] not in here]


def _term(name: str, site: Site) -> str | None:
    kind = site.further_kind(name)
    return None if kind is None else kind.loinc


def status_of(status: str, signed: bool) -> Status:
    """The status of a report in FHIR's words: one that was withdrawn is an error where it had been signed, else cancelled."""
    if status == "withdrawn":
        return "entered-in-error" if signed else "cancelled"
    return cast(Status, status)


def _notes(differential: Differential, withdrawn: str | None) -> Iterator[str]:
    if withdrawn is not None:
        yield withdrawn
    if differential.rendered:
        yield RENDERED
    if differential.site_unknown:
        yield SITE_UNKNOWN


def _coded(system: str, code: str, display: str | None = None, text: str | None = None) -> Json:
    coding = {"system": system, "code": code} | ({"display": display} if display else {})
    return {"coding": [coding]} | ({"text": text} if text else {})


def _method(differential: Differential) -> str:
    return f"Classification of images of single leukocytes by a neural network, {how_reviewed(differential)}"


def _panel(differential: Differential, site: Site) -> Json:
    if differential.kind == "too_few_cells":
        return {"text": f"Classified leukocytes, too few for a differential ({counted(differential.cells, 'cell')})"}
    return _coded(LOINC, site.loinc.panel, text="Leukocyte differential, 5 classes")


def _conclusion(differential: Differential) -> str:
    few = differential.kind == "too_few_cells"
    return differential.note if few else f"{differential.note} {differential.correction.explanation}"


def _device(model: ModelName) -> Json:
    return {
        "resourceType": "Device",
        "status": "active",
        "deviceName": [{"name": model.name, "type": "model-name"}],
        "type": {"text": "Leukocyte classification software"},
        "version": [{"type": {"text": "Model"}, "value": model.version}],
    }


def _specimen(specimen_id: str, site: Site) -> Json:
    system = {"system": site.identifiers.specimen_system} if site.identifiers.specimen_system else {}
    return {
        "resourceType": "Specimen",
        "identifier": [{**system, "value": specimen_id}],
        "type": _coded(SNOMED, "119297000", "Blood specimen"),
    }


def _performers(entries: _Entries, person: str | None, site: Site) -> Iterator[Json]:
    if visible(site.identifiers.facility):
        yield entries.add_shared("facility", {"resourceType": "Organization", "name": site.identifiers.facility})
    if person is not None and visible(person):  # a store may hold a name of blanks from before these were refused
        yield entries.add_shared("person", {"resourceType": "Practitioner", "name": [{"text": person}]})


def _observations(differential: Differential, site: Site, entries: _Entries) -> Iterator[tuple[str, Json]]:
    """Name and content of each Observation; absolute ones follow their percentages and refer to them."""
    few = differential.kind == "too_few_cells"
    absent = f"{counted(differential.cells, 'cell')}, {differential.minimum_cells} are needed" if few else None
    for name, share in differential.classes.items():
        cell_count = {"code": {"text": "Cells counted of this class"}, "valueInteger": share.count}
        code = _coded(LOINC, site.loinc.percent[name], text=f"{name}s/100 leukocytes in Blood")
        measured = _measured(share, PERCENT, absent, differential.reference_source)
        yield f"{name} percent", _observation(code, measured, [cell_count])
    for name, share in differential.classes.items():
        if share.absolute is not None:
            code = _absolute_code(name, site)
            measured = _measured(share.absolute, THOUSANDS, absent, differential.reference_source)
            yield f"{name} absolute", _observation(code, measured) | {"derivedFrom": [entries.reference(f"{name} percent")]}
    for name, further in differential.further.items():
        if not few and further.per_100 is not None:
            code = _further_code(name, further.loinc)
            cell_count = {"code": {"text": "Cells counted of this kind"}, "valueInteger": further.count}
            measured = {"valueQuantity": _quantity(float(further.printed), PER_100), "method": {"text": NAMED_BY_PERSONS}}
            yield f"{name} further", _observation(code, measured, [cell_count])


def _absolute_code(name: str, site: Site) -> Json:
    return _coded(LOINC, site.loinc.absolute[name], text=f"{name}s [#/volume] in Blood")


def _further_code(name: str, loinc: str | None) -> Json:
    text = f"{name}s/100 leukocytes in Blood, counted beside the differential"
    return {"text": text} if loinc is None else _coded(LOINC, loinc, text=text)


def _observation(code: Json, measured: Json, components: list[Json] | None = None) -> Json:
    both = [*(components or []), *measured.get("component", [])]
    return {"code": code, **measured} | ({"component": both} if both else {})


def _measured(share: ClassShare | AbsoluteCount, unit: str, absent: str | None, source: str) -> Json:
    """Value, flag, reference range and 95 % limits of an Observation, or why it has none."""
    if absent is not None:
        return {"dataAbsentReason": _coded(f"{HL7}/data-absent-reason", "not-performed", text=f"Too few cells: {absent}")}
    limits = [_component("Exact 95 % confidence limits (Clopper-Pearson)", share.interval, unit)]
    if share.corrected is not None:
        limits.append(_component("95 % limits corrected for the classifier's confusion", share.corrected, unit))
    measured: Json = {"valueQuantity": _quantity(float(share.printed), unit), "component": limits}
    reference = {"low": _quantity(share.reference.low, unit), "high": _quantity(share.reference.high, unit)}
    measured["referenceRange"] = [reference | ({"text": source} if source.strip() else {})]
    if share.flag is not None:
        measured["interpretation"] = [_coded(f"{HL7}/v3-ObservationInterpretation", *INTERPRETATION[share.flag])]
    return measured


def _component(text: str, limits: Interval, unit: str) -> Json:
    low, high = (_quantity(round(value, DECIMALS[unit]), unit) for value in (limits.low, limits.high))
    return {"code": {"text": text}, "valueRange": {"low": low, "high": high}}


def _quantity(value: float, unit: str) -> Json:
    return {"value": value, "unit": unit, "system": UCUM, "code": unit}
