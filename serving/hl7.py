"""HL7 v2.5.1: the signed report as an ORU^R01 message, its frame for MLLP, and the acknowledgement that comes back.

Fields are those of chapters 2, 3 and 7 of the HL7 v2.5.1 standard; the frame is that of HL7's Minimal Lower Layer Protocol,
release 1. Nothing about the patient is known here and nothing is made up: PID says `U` (unspecified) in the two fields that it
must have, and the receiver finds the patient by the specimen number.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

from hl7apy.consts import VALIDATION_LEVEL  # type: ignore[import-untyped]
from hl7apy.core import Group, Message  # type: ignore[import-untyped]

from serving.differential import SITE_UNKNOWN, Differential, Flag, Interval, ReferenceRange
from serving.schemas import ModelName
from serving.site import Site
from serving.store import Status

START, END = b"\x0b", b"\x1c\r"
RESULT_STATUS: Final[dict[Status, str]] = {"preliminary": "P", "final": "F", "amended": "C"}  # tables 0085 and 0123
NO_RESULT: Final = "X"  # table 0085: results cannot be obtained for this observation
FLAGS: Final[dict[Flag, str]] = {
    "low": "L",
    "normal": "N",
    "high": "H",
    "critical_low": "LL",
    "critical_high": "HH",
}  # table 0078
ESCAPES: Final = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"}
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
PERCENT: Final = "%^percent^UCUM"
ABSOLUTE: Final = "10*3/uL^thousand per microliter^UCUM"
METHOD: Final = "^Image classification, reviewed by a person"


class BadAcknowledgement(Exception):
    """What came back is no acknowledgement, or not of this message."""


class Acknowledgement(NamedTuple):
    """MSA-1, and for what is not accepted the receiver's reason."""

    code: str
    reason: str

    @property
    def accepted(self) -> bool:
        """Whether the receiver has taken the message."""
        return self.code in ("AA", "CA")


class Signed(NamedTuple):
    """What a message says beside the numbers. Times are aware; `corrected` counts cells whose class a person changed."""

    report_id: str
    status: Status
    specimen_id: str | None
    model: ModelName
    by: str
    analysed: datetime
    signed: datetime
    corrected: int


def escape(text: str) -> str:
    """Text for a field: delimiters as escape sequences (2.7 of the standard), control characters, which none has, as blanks."""
    return "".join(ESCAPES.get(character, character) for character in CONTROL.sub(" ", text))


def moment(time: datetime) -> str:
    """An aware time as TS, to the second and with its offset."""
    return time.strftime("%Y%m%d%H%M%S%z")


def oru_r01(differential: Differential, report: Signed, control_id: str, site: Site) -> str:
    """The message; segments end in a carriage return. `control_id` (20 characters at most) is MSH-10.

    Where the cells were too few for a differential, the observations carry no value and the status `X`, and a note says why.
    """
    message = Message("ORU_R01", version="2.5.1", validation_level=VALIDATION_LEVEL.TOLERANT)
    _header(message.msh, report, control_id, site)
    result = message.add_group("ORU_R01_PATIENT_RESULT")
    patient = result.add_group("ORU_R01_PATIENT").add_segment("PID")
    patient.pid_1, patient.pid_3, patient.pid_5 = "1", "^^^^U", "^^^^^^U"
    order = result.add_group("ORU_R01_ORDER_OBSERVATION")
    _request(order.add_segment("OBR"), report, site)
    for number, note in enumerate(_notes(differential, report), 1):
        _note(order, number, note)
    enough = differential.kind == "differential"
    for number, observation in enumerate(_observations(differential, site), 1):
        _observe(order.add_group("ORU_R01_OBSERVATION"), number, observation, report, enough)
    if report.specimen_id:
        specimen = order.add_group("ORU_R01_SPECIMEN").add_segment("SPM")
        specimen.spm_1, specimen.spm_2, specimen.spm_4 = "1", escape(report.specimen_id), "BLD^Whole blood^HL70487"
    text: str = message.to_er7()
    return text if text.endswith("\r") else text + "\r"


def _header(header: Any, report: Signed, control_id: str, site: Site) -> None:
    names = site.identifiers
    header.msh_3, header.msh_4 = escape(names.application), escape(names.facility)
    header.msh_5, header.msh_6 = escape(names.receiving_application), escape(names.receiving_facility)
    header.msh_7 = moment(report.signed)
    header.msh_9 = "ORU^R01^ORU_R01"
    header.msh_10 = control_id
    header.msh_11 = "P"
    header.msh_18 = "UNICODE UTF-8"


def _request(request: Any, report: Signed, site: Site) -> None:
    request.obr_1 = "1"
    request.obr_3 = f"{report.report_id}^{escape(site.identifiers.application)}"
    request.obr_4 = f"{site.loinc.panel}^Differential panel - Blood^LN"
    request.obr_22 = moment(report.signed)
    request.obr_25 = RESULT_STATUS[report.status]
    request.obr_32 = f"&{escape(report.by)}"  # NDL.1.2, the interpreter's name


def _notes(differential: Differential, report: Signed) -> Iterator[str]:
    yield f"{differential.note} Signed by {report.by}; cells corrected: {report.corrected}."
    if differential.site_unknown:
        yield SITE_UNKNOWN
    yield f"Pre-classified by {report.model.name} {report.model.version}. Reference ranges: {differential.reference_source}"


class _Observation(NamedTuple):
    code: str
    units: str
    value: str
    interval: str
    reference: str
    flag: Flag | None


def _observations(differential: Differential, site: Site) -> Iterator[_Observation]:
    for name, share in differential.classes.items():
        code = f"{site.loinc.percent[name]}^{name}s/100 leukocytes in Blood^LN"
        yield _Observation(code, PERCENT, f"{share.percent:.1f}", *_limits(share, 1), share.flag)
    for name, share in differential.classes.items():
        if share.absolute is not None:
            code = f"{site.loinc.absolute[name]}^{name}s [#/volume] in Blood^LN"
            yield _Observation(code, ABSOLUTE, f"{share.absolute.value:.2f}", *_limits(share.absolute, 2), share.absolute.flag)


def _limits(of: Any, digits: int) -> tuple[str, str]:
    interval: Interval = of.interval
    reference: ReferenceRange = of.reference
    return f"95 % limits {interval.low:.{digits}f} to {interval.high:.{digits}f}", f"{reference.low:g}-{reference.high:g}"


def _observe(group: Group, number: int, observation: _Observation, report: Signed, enough: bool) -> None:
    segment = group.add_segment("OBX")
    segment.obx_1, segment.obx_2, segment.obx_3 = str(number), "NM", observation.code
    segment.obx_6, segment.obx_7 = observation.units, observation.reference
    segment.obx_11 = RESULT_STATUS[report.status] if enough else NO_RESULT
    segment.obx_17 = METHOD
    segment.obx_18 = f"{escape(report.model.version)}^{escape(report.model.name)}"
    segment.obx_19 = moment(report.analysed)
    if enough:
        segment.obx_5 = observation.value
        _note(group, 1, observation.interval)
        if observation.flag is not None:
            segment.obx_8 = FLAGS[observation.flag]


def _note(group: Group, number: int, text: str) -> None:
    note = group.add_segment("NTE")
    note.nte_1, note.nte_3 = str(number), escape(text)


def frame(text: str) -> bytes:
    """A message as it goes over the wire."""
    return START + text.encode() + END


def unframe(received: bytes) -> str | None:
    """The first whole message in what was received so far, None while its end is missing; what is before its start is skipped."""
    start = received.find(START)
    end = received.find(END, start + 1)
    return None if start < 0 or end < 0 else received[start + 1 : end].decode(errors="replace")


def parse_acknowledgement(text: str, control_id: str) -> Acknowledgement:
    """Read MSA (and ERR) of an answer; raises BadAcknowledgement where there is none, or where MSA-2 names another message.

    Written by hand: a receiver whose answer is slightly off the standard has still taken the message.
    """
    lines = [line for line in text.replace("\n", "\r").split("\r") if line]
    if not lines or not lines[0].startswith("MSH") or len(lines[0]) < 4:
        raise BadAcknowledgement("the answer is not an HL7 message")
    separator = lines[0][3]
    segments = {fields[0]: fields for fields in (line.split(separator) for line in reversed(lines))}
    msa = [*segments.get("MSA", []), "", "", "", ""]
    code, of_message, words = (value.strip() for value in msa[1:4])
    if code not in ("AA", "AE", "AR", "CA", "CE", "CR"):
        raise BadAcknowledgement("the answer has no acknowledgement code")
    if of_message != control_id:
        raise BadAcknowledgement("the answer acknowledges another message")
    error = " ".join(field for field in segments.get("ERR", [])[1:] if field)
    return Acknowledgement(code, " ".join(part for part in (words, error) if part)[:500])
