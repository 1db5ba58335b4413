"""ORU^R01 messages, read back by an independent parser and checked against the standard; frames and acknowledgements."""

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from hypothesis import example, given, settings
from hypothesis import strategies as st
from specimens import CONFUSION, MODEL, SPECIMEN, counted, site

from serving.contract.differential import SITE_UNKNOWN, Circumstances, Differential, count_differential
from serving.contract.schemas import ModelName, ReportStatus
from serving.contract.site import Identifiers, Site
from serving.formats.hl7 import (
    END,
    START,
    BadAcknowledgement,
    Signed,
    about,
    escape,
    frame,
    observations_of,
    oru_r01,
    parse_acknowledgement,
    unframe,
)

ANALYSED = datetime(2026, 11, 23, 9, 30, 1, tzinfo=UTC)
SIGNED = datetime(2026, 11, 23, 11, 4, 59, tzinfo=timezone(timedelta(hours=1)))
CONTROL_ID = "ABCDEFGHIJKLMNOPQRST"
REPORT = "0123456789abcdef" * 2
LABELS = ["Neutrophil"] * 63 + ["Lymphocyte"] * 30 + ["Monocyte"] * 5 + ["Eosinophil"] * 2  # 100 cells
COUNTED = counted(LABELS, site(), 4.0)
PRINTABLE = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)  # what no blank stands for


def message(of: Site | None = None, differential: Differential | None = None, **change: Any) -> str:
    """The message of a signed report of 100 cells and 4.0 10*3/uL."""
    signed = Signed(REPORT, "final", SPECIMEN, MODEL, "Dr. Ada", ANALYSED, SIGNED, 3)._replace(**change)
    return oru_r01(differential or (counted(LABELS, of, 4.0) if of else COUNTED), signed, CONTROL_ID, of or site())


def segments(text: str, name: str) -> list[list[str]]:
    """Fields of every segment of a kind; of MSH the numbers are one too low, as its first field is the separator itself."""
    return [line.split("|") for line in text.split("\r") if line.startswith(name)]


def unescape(text: str) -> str:
    """From left to right, as a receiver reads: the sequence of a backslash may stand before a T."""
    return re.sub(r"\\([FSTRE])\\", lambda found: "|^&~\\"["FSTRE".index(found[1])], text)


def test_it_is_valid_by_the_standard_and_survives_parsing() -> None:
    text = message()
    parsed = parse_message(text, validation_level=VALIDATION_LEVEL.STRICT, find_groups=True)
    assert parsed.validate()
    assert parsed.to_er7() + "\r" == text
    assert (parsed.name, parsed.version) == ("ORU_R01", "2.5.1")
    order = parsed.oru_r01_patient_result.oru_r01_order_observation
    assert len(order.oru_r01_observation) == 10
    assert text.endswith("\r")
    assert "\n" not in text


def test_the_head_says_from_whom_to_whom_and_when() -> None:
    names = Identifiers(
        facility="General | West",
        application="WBC",
        receiving_facility="Lab",
        receiving_application="LIS",
        specimen_system="",
    )
    [head] = segments(message(site().model_copy(update={"identifiers": names})), "MSH")
    assert head[1:6] == ["^~\\&", "WBC", "General \\F\\ West", "LIS", "Lab"]
    assert head[6] == "20261123110459+0100"
    assert head[8:12] == ["ORU^R01^ORU_R01", CONTROL_ID, "P", "2.5.1"]
    assert head[17] == "UNICODE UTF-8"


def test_the_patient_is_unknown_and_not_made_up() -> None:
    assert segments(message(), "PID") == [["PID", "1", "", "^^^^U", "", "^^^^^^U"]]  # tables 0203 and 0200: unspecified


def test_the_panel_the_specimen_and_the_signer() -> None:
    text = message()
    [request] = segments(text, "OBR")
    assert (request[3], request[4]) == (f"{REPORT}^WBC", f"{site().loinc.panel}^Differential panel - Blood^LN")
    assert (request[22], request[25], request[32]) == ("20261123110459+0100", "F", "&Dr. Ada")
    assert segments(text, "SPM") == [["SPM", "1", SPECIMEN, "", "BLD^Whole blood^HL70487"]]
    assert segments(message(specimen_id=None), "SPM") == []
    notes = [note[3] for note in segments(text.split("\rOBX")[0], "NTE")]
    assert [note[1] for note in segments(text.split("\rOBX")[0], "NTE")] == ["1", "2"]
    assert "Signed by Dr. Ada; cells corrected: 3." in notes[0]
    assert f"{MODEL.name} {MODEL.version}" in notes[1]


def test_every_class_has_its_percentage_and_its_count() -> None:
    found = segments(message(), "OBX")
    assert [one[1] for one in found] == [str(number) for number in range(1, 11)]
    values = {one[3].split("^")[0]: (one[5], one[6].split("^")[0], one[7], one[8]) for one in found}
    loinc = site().loinc
    # the default site's ranges; 5 of 100 is on neither limit, 2 % eosinophils of 4.0 are 0.08
    assert values == {
        loinc.percent["Basophil"]: ("0.0", "%", "0-2", "N"),
        loinc.percent["Eosinophil"]: ("2.0", "%", "1-6", "N"),
        loinc.percent["Lymphocyte"]: ("30.0", "%", "20-40", "N"),
        loinc.percent["Monocyte"]: ("5.0", "%", "2-10", "N"),
        loinc.percent["Neutrophil"]: ("63.0", "%", "40-80", "N"),
        loinc.absolute["Basophil"]: ("0.00", "10*3/uL", "0.02-0.1", "L"),
        loinc.absolute["Eosinophil"]: ("0.08", "10*3/uL", "0.02-0.5", "N"),
        loinc.absolute["Lymphocyte"]: ("1.20", "10*3/uL", "1-3", "N"),
        loinc.absolute["Monocyte"]: ("0.20", "10*3/uL", "0.2-1", "N"),
        loinc.absolute["Neutrophil"]: ("2.52", "10*3/uL", "2-7", "N"),
    }
    assert {(one[2], one[11], one[18], one[19]) for one in found} == {("NM", "F", "tiny-1^wbc", "20261123093001+0000")}
    assert "95 % limits 52.8 to 72.4" in message()  # Clopper-Pearson of 63 in 100
    assert "95 % limits 2.11 to 2.90" in message()  # the same of 4.0


def test_without_a_leukocyte_count_there_are_percentages_only() -> None:
    assert len(segments(message(differential=counted(LABELS, site(), None)), "OBX")) == 5


@pytest.mark.parametrize(
    ("count", "flag"), [(0.5, "LL"), (2.0, "L"), (4.0, "N"), (12.0, "H"), (90.0, "HH")]
)  # neutrophils are 63 %: 0.3, 1.3, 2.5, 7.6, 56.7 against 2-7, critical below 0.5 and above 50
def test_flags_are_those_of_table_0078(count: float, flag: str) -> None:
    found = segments(message(differential=counted(LABELS, site(), count)), "OBX")
    assert found[-1][8] == flag


@pytest.mark.parametrize(("status", "code"), [("preliminary", "P"), ("final", "F"), ("amended", "C")])
def test_the_status_is_that_of_the_report(status: ReportStatus, code: str) -> None:
    text = message(status=status)
    assert {one[11] for one in segments(text, "OBX")} == {code}
    assert segments(text, "OBR")[0][25] == code


def test_too_few_cells_have_no_values() -> None:
    of = site(minimum_cells=200)
    text = message(of)
    for one in segments(text, "OBX"):
        assert (one[5], one[8], one[11]) == ("", "", "X")
    assert "Too few for a differential" in text
    assert parse_message(text, validation_level=VALIDATION_LEVEL.STRICT, find_groups=True).validate()


def test_an_unknown_site_is_said() -> None:
    differential = count_differential(LABELS, CONFUSION, site(), Circumstances(site_unknown=True))
    notes = [note[3] for note in segments(message(differential=differential), "NTE")]
    assert SITE_UNKNOWN in notes


@settings(max_examples=12, deadline=None)
@given(specimen=PRINTABLE.filter(str.strip), by=PRINTABLE.filter(str.strip))  # of blanks alone neither is taken
@example(specimen="\\T\\", by="\\E\\F|")
def test_what_people_write_comes_back_as_they_wrote_it(specimen: str, by: str) -> None:
    text = message(differential=COUNTED, specimen_id=specimen, by=by)
    [one] = segments(text, "SPM")
    assert unescape(one[2]) == about(text).specimen == specimen
    assert unescape(segments(text, "OBR")[0][32].removeprefix("&")) == by
    assert len(segments(text, "OBX")) == 10


def test_control_characters_cannot_end_a_segment_or_a_message() -> None:
    text = message(specimen_id="a\rOBX|1\nb\x1c\x0b\x00c", by="x\ry")
    assert len(segments(text, "OBX")) == 10
    assert segments(text, "SPM")[0][2] == r"a OBX\F\1 b   c"
    assert unframe(frame(text)) == text


def test_long_names_do_not_stand_in_the_way_of_a_signature() -> None:
    text = message(specimen_id="S" * 64, by="x" * 100, model=ModelName(name="wbc", version="v" * 80))
    assert segments(text, "SPM")[0][2] == "S" * 64


@given(PRINTABLE)
@example("\\T\\")
def test_escaping_hides_every_delimiter(text: str) -> None:
    assert not set("|^&~") & set(escape(text))
    assert unescape(escape(text)) == text


@given(PRINTABLE, st.integers(0, 10**6), st.binary(max_size=5).filter(lambda noise: START not in noise))
def test_a_frame_is_read_back_wherever_it_is_cut(text: str, cut: int, noise: bytes) -> None:
    data = noise + frame(text)
    part = data[: cut % (len(data) - 1)]
    assert unframe(part) is None
    assert unframe(data[:-1]) == text, "the carriage return behind the end is not waited for"
    assert unframe(data + b"more") == text


def test_a_frame_is_that_of_mllp() -> None:
    assert frame("MSH|é") == b"\x0bMSH|\xc3\xa9\x1c\x0d"
    assert (START, END) == (b"\x0b", b"\x1c\x0d")


def acknowledge(code: str, control_id: str = CONTROL_ID, more: str = "") -> str:
    return f"MSH|^~\\&|LIS||WBC||20261123||ACK^R01^ACK|1|P|2.5.1\rMSA|{code}|{control_id}{more}\r"


@pytest.mark.parametrize(
    ("code", "accepted"), [("AA", True), ("CA", True), ("AE", False), ("AR", False), ("CE", False), ("CR", False)]
)
def test_acknowledgement_codes(code: str, accepted: bool) -> None:
    assert parse_acknowledgement(acknowledge(code), CONTROL_ID).accepted is accepted


def test_the_reason_of_a_refusal_is_kept() -> None:
    text = acknowledge("AE", more="|Unknown specimen") + "ERR||SPM^1^2|204^Unknown key identifier^HL70357|E\r"
    answer = parse_acknowledgement(text, CONTROL_ID)
    assert answer.reason == "Unknown specimen SPM^1^2 204^Unknown key identifier^HL70357 E"
    assert len(parse_acknowledgement(acknowledge("AR", more="|" + "x" * 9999), CONTROL_ID).reason) == 500


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "MSH",
        "MSH|^~\\&|x",
        acknowledge("AA", "ANOTHER"),
        acknowledge("AA", ""),
        acknowledge("OK"),
        acknowledge("AA").replace("MSA", "MSB"),
    ],
)
def test_what_is_no_acknowledgement_of_this_message_is_none(text: str) -> None:
    with pytest.raises(BadAcknowledgement):
        parse_acknowledgement(text, CONTROL_ID)


@given(st.text(max_size=60))
def test_any_answer_is_read_or_refused(text: str) -> None:
    try:
        parse_acknowledgement(text, CONTROL_ID)
    except BadAcknowledgement:
        return


def test_other_separators_and_line_ends_are_read() -> None:
    assert parse_acknowledgement(f"MSH#^~\\&#LIS\nMSA#AA#{CONTROL_ID}\n", CONTROL_ID).accepted


def test_what_is_taken_back_stands_at_the_end_as_it_was_told() -> None:
    """Names of the site, model and specimen have delimiters in them; a term that the message has anew is not taken back."""
    odd = {"model": ModelName(name="w&b", version="1|2^3"), "specimen_id": "S^1"}
    before = message(**odd)
    known = observations_of(before, {})
    after = message(differential=counted(LABELS, site(), None), told=list(known.values()), **odd)
    assert parse_message(after, validation_level=VALIDATION_LEVEL.STRICT).validate()
    told, said = segments(before, "OBX"), segments(after, "OBX")
    assert [fields[:11] + fields[12:] for fields in said] == [fields[:11] + fields[12:] for fields in told]
    assert [fields[11] for fields in said] == ["F"] * 5 + ["W"] * 5
    assert about(after) == ("S^1", False)
    assert list(observations_of(after, known)) == [fields[3].split("^")[0] for fields in told[:5]]
