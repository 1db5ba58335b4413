"""What a request says of its specimen, in text fields: checked here, kept out of every log and error message."""

import re
from typing import Final, NamedTuple

from serving.contract.problems import bad_field

WBC_COUNT, SPECIMEN_ID, REPORT_ID, EXPECTED_IMAGES = "wbc_count", "specimen_id", "report_id", "expected_images"
FIELDS: Final = (WBC_COUNT, SPECIMEN_ID, REPORT_ID, EXPECTED_IMAGES)
MOST_IMAGES: Final = 4096  # of one report: ten times a long differential
LOWEST_COUNT, HIGHEST_COUNT = 0.01, 1000.0  # 10*3/uL: what a counter can resolve, and twice what leukaemia has been seen to reach
SPECIMEN_PATTERN: Final = r"^[!-~]([ -~]{0,62}[!-~])?$"
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{0,20})?([eE][-+]?[0-9]{1,3})?")


class Specimen(NamedTuple):
    """`wbc_count` in 10*3/uL, `specimen_id`, and how many images the client means to send in all; None where not given."""

    wbc_count: float | None
    specimen_id: str | None
    expected_images: int | None = None


def read_specimen(texts: dict[str, str]) -> Specimen:
    """The specimen that the text fields of a form describe; raises a 422 Problem that names the field and what it takes."""
    count, number = texts.get(WBC_COUNT), texts.get(SPECIMEN_ID)
    if number is not None and not re.fullmatch(SPECIMEN_PATTERN[1:-1], number):
        raise bad_field(SPECIMEN_ID, f"{SPECIMEN_ID!r} takes 1 to 64 printable ASCII characters, no space at either end.")
    expected = texts.get(EXPECTED_IMAGES)
    return Specimen(None if count is None else _wbc_count(count), number, None if expected is None else _expected(expected))


def _expected(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text, re.ASCII) or not 1 <= int(text) <= MOST_IMAGES:
        takes = f"a whole number from 1 to {MOST_IMAGES}: how many images will be sent for this specimen in all"
        raise bad_field(EXPECTED_IMAGES, f"{EXPECTED_IMAGES!r} takes {takes}.")
    return int(text)


def _wbc_count(text: str) -> float:
    value = float(text) if _NUMBER.fullmatch(text) else 0.0
    if not LOWEST_COUNT <= value <= HIGHEST_COUNT:
        takes = f"a number in 10*3/uL from {LOWEST_COUNT:g} to {HIGHEST_COUNT:g}, such as 7.1"
        raise bad_field(WBC_COUNT, f"{WBC_COUNT!r} takes {takes}; leave it out where it is not known.")
    return value
