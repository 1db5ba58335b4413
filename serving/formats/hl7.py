"""HL7 v2.5.1: the signed report as an ORU^R01 message, its frame for MLLP, and the acknowledgement that comes back.

Fields are those of chapters 2, 3 and 7 of the HL7 v2.5.1 standard; the frame is that of HL7's Minimal Lower Layer Protocol,
release 1. Nothing about the patient is known here and nothing is made up: PID says `U` (unspecified) in the two fields that it
must have, and the receiver finds the patient by the specimen number.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from hl7apy.consts import VALIDATION_LEVEL  # type: ignore[import-untyped]
from hl7apy.core import Group, Message  # type: ignore[import-untyped]

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
    plain,
)
from serving.contract.schemas import ModelName, ReportStatus
from serving.contract.site import Site
from wbc_model.core.errors import counted

START, END = b"\x0b", b"\x1c\r"
Sent = ReportStatus | Literal["withdrawn"]
RESULT_STATUS: Final[dict[Sent, str]] = {"preliminary": "P", "final": "F", "amended": "C", "withdrawn": "C"}  # table 0123
OBSERVATION_STATUS: Final = RESULT_STATUS | {"withdrawn": "W"}  # table 0085: post original as wrong
NO_RESULT: Final = "X"  # table 0085: results cannot be obtained for this observation
FLAGS: Final[dict[Flag, str]] = {
    "low": "L",
    "normal": "N",
    "high": "H",
    "critical_low": "LL",
    "critical_high": "HH",
}  # table 0078
ESCAPES: Final = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"}
OBSERVED, STATUS = 3, 11  # fields of an OBX
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
PERCENT: Final = "%^percent^UCUM"
ABSOLUTE: Final = "10*3/uL^thousand per microliter^UCUM"
PER_100: Final = "/100{WBCs}^per 100 white blood cells^UCUM"


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


Told = Sequence[str]  # the fields of an OBX as it was sent, escaped as they are


class Signed(NamedTuple):
    """What a message says beside the numbers. Times are aware; `corrected` counts cells whose class a person changed.

    Of a withdrawal `by`, `signed` and `reason` are who withdrew the report, when and why. `told` are observations that the
    receiver may hold, as `observations_of` reads them: what the message does not say anew it takes back.
    """

    report_id: str
    status: Sent
    specimen_id: str | None
    model: ModelName
    by: str
    analysed: datetime
    signed: datetime
    corrected: int
    reason: str = ""
    told: Sequence[Told] = ()


def escape(text: str) -> str:
    """Text for a field: delimiters as escape sequences (2.7 of the standard), control characters, which none has, as blanks."""
    return "".join(ESCAPES.get(character, character) for character in CONTROL.sub(" ", text))


def moment(time: datetime) -> str:
    """An aware time as TS, to the second and with its offset."""
    return time.strftime("%Y%m%d%H%M%S%z")


def oru_r01(differential: Differential, report: Signed, control_id: str, site: Site) -> str:
    """The message; segments end in a carriage return. `control_id` (20 characters at most) is MSH-10.

    Where the cells were too few for a differential, the observations carry no value and the status `X`, and a note says why. A
    withdrawal repeats the observations with the status `W`, so that the receiver marks what it has as wrong. So does any message
    with what the receiver was told and the report has no longer. Raises ValueError for a model of drawn cells, of which no
    message may leave.
    """
    if differential.rendered:
        raise ValueError(RENDERED)
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
    observations = list(_observations(differential, site))
    for number, observation in enumerate(observations, 1):
        _observe(order.add_group("ORU_R01_OBSERVATION"), number, observation, report, enough)
    here = {_term(observation.code) for observation in observations}
    gone = [fields for fields in report.told if _term(fields[OBSERVED]) not in here]
    for number, fields in enumerate(gone, len(observations) + 1):
        _take_back(order.add_group("ORU_R01_OBSERVATION"), number, fields)
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
    if report.status == "withdrawn":
        yield f"Withdrawn, not valid. By {report.by}: {report.reason}"
    else:
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
    method: str


def _observations(differential: Differential, site: Site) -> Iterator[_Observation]:
    method = f"Image classification, {how_reviewed(differential)}"
    for name, share in differential.classes.items():
        code = f"{site.loinc.percent[name]}^{name}s/100 leukocytes in Blood^LN"
        yield _Observation(code, PERCENT, share.printed, *_limits(share, 1), share.flag, method)
    for name, share in differential.classes.items():
        if share.absolute is not None:
            code = f"{site.loinc.absolute[name]}^{name}s [#/volume] in Blood^LN"
            absolute = share.absolute
            yield _Observation(code, ABSOLUTE, absolute.printed, *_limits(absolute, 2), absolute.flag, method)
    for name, further in differential.further.items():
        if further.loinc is not None and further.per_100 is not None:
            code = f"{further.loinc}^{escape(name)}s/100 leukocytes in Blood^LN"
            of = counted(differential.leukocytes or 0, "leukocyte")
            said = f"{further.count} counted beside the differential, to {of}"
            yield _Observation(code, PER_100, further.printed, said, "", None, NAMED_BY_PERSONS)


def _limits(of: ClassShare | AbsoluteCount, digits: int) -> tuple[str, str]:
    interval: Interval = of.interval
    limits = f"95 % limits {interval.low:.{digits}f} to {interval.high:.{digits}f}"
    return limits, f"{plain(of.reference.low)}-{plain(of.reference.high)}"


def _observe(group: Group, number: int, observation: _Observation, report: Signed, enough: bool) -> None:
    segment = group.add_segment("OBX")
    segment.obx_1, segment.obx_2, segment.obx_3 = str(number), "NM", observation.code
    segment.obx_6, segment.obx_7 = observation.units, observation.reference
    segment.obx_11 = OBSERVATION_STATUS[report.status] if enough or report.status == "withdrawn" else NO_RESULT
    segment.obx_18 = f"{escape(report.model.version)}^{escape(report.model.name)}"
    segment.obx_19 = moment(report.analysed)
    if enough:
        segment.obx_5 = observation.value
        _note(group, 1, observation.interval)
        if observation.flag is not None:
            segment.obx_8 = FLAGS[observation.flag]
    segment.obx_17 = f"^{observation.method}"


def _take_back(group: Group, number: int, fields: Told) -> None:
    """Mark as wrong what the receiver was told, in the words in which it was told."""
    segment = group.add_segment("OBX")
    for place, value in enumerate(fields[1:], 1):
        setattr(segment, f"obx_{place}", value)
    segment.obx_1, segment.obx_11 = str(number), OBSERVATION_STATUS["withdrawn"]


def _term(code: str) -> str:
    """The term of an OBX-3, by which a receiver files a result; its words may change."""
    return code.partition("^")[0]


def _note(group: Group, number: int, text: str) -> None:
    note = group.add_segment("NTE")
    note.nte_1, note.nte_3 = str(number), escape(text)


class About(NamedTuple):
    """Of which specimen a message of ours is, None where it names none, and whether it takes a result back."""

    specimen: str | None
    withdrawn: bool


def about(text: str) -> About:
    """Read again what `oru_r01` has written."""
    specimen = next((fields[2] for fields in _segments(text, "SPM")), None)
    first = next(_segments(text, "OBX"))  # of a result that takes something back, too, the first is what it says anew
    return About(None if specimen is None else _unescape(specimen), first[STATUS] == OBSERVATION_STATUS["withdrawn"])


def observations_of(text: str, known: Mapping[str, Told]) -> dict[str, Told]:
    """By its term each observation that a receiver holds after it has taken the message, `known` before it: those with a value
    that was not taken back."""
    said = {_term(fields[OBSERVED]): fields for fields in _segments(text, "OBX")}
    held = {term: fields for term, fields in said.items() if fields[STATUS] not in (NO_RESULT, OBSERVATION_STATUS["withdrawn"])}
    return {term: fields for term, fields in known.items() if term not in said} | held


def _segments(text: str, name: str) -> Iterator[list[str]]:
    return (fields for fields in (line.split("|") for line in text.split("\r")) if fields[0] == name)


def _unescape(text: str) -> str:
    back = {sequence: character for character, sequence in ESCAPES.items()}
    return re.sub(r"\\[EFSTR]\\", lambda found: back[found[0]], text)


def frame(text: str) -> bytes:
    """A message as it goes over the wire."""
    return START + text.encode() + END


def unframe(received: bytes) -> str | None:
    """The first whole message in what was received so far, None while its end is missing.

    What is before its start is skipped. Neither the start nor the carriage return behind the end has to be there.
    """
    start = received.find(START)
    end = received.find(END[:1], start + 1)
    if end < 0 or (start < 0 and not may_be_whole(received[:end])):
        return None
    return received[start + 1 : end].decode(errors="replace")


def may_be_whole(received: bytes) -> bool:
    """Whether an answer without the end of a frame may be all that comes: it has an acknowledgement in it."""
    return b"MSA" in received


def _bare(line: str) -> str:
    """A line of an answer without what a receiver may have put around it: bytes of the frame, a byte order mark, blanks."""
    return line.strip("\x0b\x1c\ufeff\0 \t")


def parse_acknowledgement(text: str, control_id: str) -> Acknowledgement:
    """Read MSA (and ERR) of an answer; raises BadAcknowledgement, saying what is wrong with it, where there is none or where
    MSA-2 names another message. The receiver's own words are not in what is said: they may name a patient.

    Written by hand: a receiver whose answer is slightly off the standard has still taken the message.
    """
    length = f"the answer of {len(text)} characters"
    lines = [line for line in map(_bare, re.split(r"[\r\n]+", text)) if line]
    found = next((line for line in lines if re.match(r"MSA[^\w\s]", line)), None)
    if found is None:
        what = "no MSA segment" if any(line.startswith("MSH") for line in lines) else "no HL7 segment MSH or MSA in it"
        raise BadAcknowledgement(f"{length} has {what}")
    separator = found[3]
    segments = {fields[0]: fields for fields in (line.split(separator) for line in reversed(lines))}
    msa = [*segments["MSA"], "", "", "", ""]
    code, of_message, words = (value.strip() for value in msa[1:4])
    if code.upper() not in ("AA", "AE", "AR", "CA", "CE", "CR"):
        raise BadAcknowledgement(f"{length} has no acknowledgement code in MSA-1")
    if of_message != control_id:
        what = "acknowledges another message" if of_message else "does not say in MSA-2 which message it acknowledges"
        raise BadAcknowledgement(f"{length} {what}")
    error = " ".join(field for field in segments.get("ERR", [])[1:] if field)
    return Acknowledgement(code.upper(), " ".join(part for part in (words, error) if part)[:500])
