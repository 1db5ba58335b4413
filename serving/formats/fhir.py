"""The differential as a FHIR R4 Bundle: one DiagnosticReport, one Observation per class, and what they refer to.

Its resources refer to each other by urn:uuid, so it is complete in itself. It says nothing of a patient. The specimen number,
where there is one, is all that links it to anybody. Below the minimum of cells an Observation has the reason in place of a value:
no receiver can file a percentage that must not be reported.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, cast
from uuid import UUID, uuid4, uuid5

from serving.contract.differential import (
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

    def __init__(self, report_id: str | None) -> None:
        self._namespace = uuid5(REPORTS, report_id) if report_id else uuid4()
        self._resources: dict[str, Json] = {}

    def reference(self, name: str) -> Json:
        return {"reference": uuid5(self._namespace, name).urn}

    def add(self, name: str, resource: Json) -> Json:
        """Take a resource in and return the reference to it."""
        self._resources[name] = resource
        return self.reference(name)

    def listed(self) -> list[Json]:
        return [{"fullUrl": self.reference(name)["reference"], "resource": it} for name, it in self._resources.items()]


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What a Bundle says beside the differential.

    `issued` carries its time zone. `performer` is the person who signed, None where nobody has. `withdrawn` says of a withdrawn
    report who withdrew it and why. With a `report_id` the resources keep their identity from one Bundle to the next.
    """

    model: ModelName
    specimen_id: str | None
    issued: datetime
    status: Status
    performer: str | None = None
    report_id: str | None = None
    withdrawn: str | None = None


def bundle(differential: Differential, of: Reported, site: Site) -> Json:
    """The Bundle as plain JSON. Raises ValueError where the time of issue has no time zone."""
    if of.issued.tzinfo is None:
        raise ValueError("issued: a FHIR instant has a time zone")
    entries = _Entries(of.report_id)
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
        "device": entries.add("device", _device(of.model)),
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
        return {"text": f"Classified leukocytes, too few for a differential ({differential.cells} cells)"}
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
        yield entries.add("facility", {"resourceType": "Organization", "name": site.identifiers.facility})
    if person is not None and visible(person):  # a store may hold a name of blanks from before these were refused
        yield entries.add("person", {"resourceType": "Practitioner", "name": [{"text": person}]})


def _observations(differential: Differential, site: Site, entries: _Entries) -> Iterator[tuple[str, Json]]:
    """Name and content of each Observation; absolute ones follow their percentages and refer to them."""
    few = differential.kind == "too_few_cells"
    absent = f"{differential.cells} cells, {differential.minimum_cells} are needed" if few else None
    for name, share in differential.classes.items():
        counted = {"code": {"text": "Cells counted of this class"}, "valueInteger": share.count}
        code = _coded(LOINC, site.loinc.percent[name], text=f"{name}s/100 leukocytes in Blood")
        measured = _measured(share, PERCENT, absent, differential.reference_source)
        yield f"{name} percent", _observation(code, measured, [counted])
    for name, share in differential.classes.items():
        if share.absolute is not None:
            code = _coded(LOINC, site.loinc.absolute[name], text=f"{name}s [#/volume] in Blood")
            measured = _measured(share.absolute, THOUSANDS, absent, differential.reference_source)
            yield f"{name} absolute", _observation(code, measured) | {"derivedFrom": [entries.reference(f"{name} percent")]}
    for name, further in differential.further.items():
        if not few and further.per_100 is not None:
            text = f"{name}s/100 leukocytes in Blood, counted beside the differential"
            code = {"text": text} if further.loinc is None else _coded(LOINC, further.loinc, text=text)
            counted = {"code": {"text": "Cells counted of this kind"}, "valueInteger": further.count}
            yield f"{name} further", _observation(code, {"valueQuantity": _quantity(float(further.printed), PER_100)}, [counted])


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
