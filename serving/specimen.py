"""What a request says of its specimen, in text fields: checked here, kept out of every log and error message."""

import re
from typing import Final, NamedTuple

from serving.problems import bad_field

WBC_COUNT, SPECIMEN_ID, REPORT_ID = "wbc_count", "specimen_id", "report_id"
FIELDS: Final = (WBC_COUNT, SPECIMEN_ID, REPORT_ID)
LOWEST_COUNT, HIGHEST_COUNT = 0.01, 1000.0  # 10*3/uL: what a counter can resolve, and twice what leukaemia has been seen to reach
SPECIMEN_PATTERN: Final = r"^[!-~]([ -~]{0,62}[!-~])?$"
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{0,20})?([eE][-+]?[0-9]{1,3})?")


class Specimen(NamedTuple):
    """`wbc_count` in 10*3/uL and `specimen_id`; None where the request does not give them."""

    wbc_count: float | None
    specimen_id: str | None


def read_specimen(texts: dict[str, str]) -> Specimen:
    """The specimen that the text fields of a form describe; raises a 422 Problem that names the field and what it takes."""
    count, number = texts.get(WBC_COUNT), texts.get(SPECIMEN_ID)
    if number is not None and not re.fullmatch(SPECIMEN_PATTERN[1:-1], number):
        raise bad_field(SPECIMEN_ID, f"{SPECIMEN_ID!r} takes 1 to 64 printable ASCII characters, no space at either end.")
    return Specimen(None if count is None else _wbc_count(count), number)


def _wbc_count(text: str) -> float:
    value = float(text) if _NUMBER.fullmatch(text) else 0.0
    if not LOWEST_COUNT <= value <= HIGHEST_COUNT:
        takes = f"a number in 10*3/uL from {LOWEST_COUNT:g} to {HIGHEST_COUNT:g}, such as 7.1"
        raise bad_field(WBC_COUNT, f"{WBC_COUNT!r} takes {takes}; leave it out where it is not known.")
    return value
