"""Names and other lines that people write, in any script: what can be seen counts, blanks and hidden characters do not.

Unicode has some twenty blanks beside the space, and characters that are drawn as nothing. A name made of these is no name, and
FHIR refuses it. Marks that turn the writing direction could show another name than the one that was typed; they are refused, like
line ends of every kind.
"""

import re
import unicodedata
from typing import Annotated, Final

from pydantic import AfterValidator, Field

# As they stand in a regular expression's brackets: for `re`, for pydantic's Rust and for JSON Schema alike.
_REFUSED: Final = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
_BLANK: Final = r"\x20\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"
_DRAWN_AS_NOTHING: Final = (
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f\u2800\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
)
_HIDDEN: Final = _REFUSED + _BLANK + _DRAWN_AS_NOTHING
LINE: Final = f"^[^{_REFUSED}]*$"
NAME: Final = f"^[^{_REFUSED}]*[^{_HIDDEN}][^{_REFUSED}]*$"
REFUSED: Final = re.compile(f"[{_REFUSED}]")
BLANKS: Final = re.compile(f"[{_BLANK}]")
_ENDS: Final = re.compile(f"^[{_HIDDEN}]+|[{_HIDDEN}]+$")
_VISIBLE: Final = re.compile(f"[^{_HIDDEN}]")


def trimmed(text: str) -> str:
    """The text composed (NFC), each blank as a space, nothing hidden at its ends; empty where there was nothing to see."""
    return _ENDS.sub("", BLANKS.sub(" ", unicodedata.normalize("NFC", text)))


def visible(text: str | None) -> bool:
    """Whether there is something to see in it."""
    return text is not None and _VISIBLE.search(text) is not None


By = Annotated[
    str,
    Field(
        min_length=1,
        max_length=100,
        pattern=NAME,
        description="Who does this, as it is to stand in the report; may be left out with the key of a person.",
    ),
    AfterValidator(trimmed),
]
Reason = Annotated[
    str,
    Field(min_length=1, max_length=200, pattern=NAME, description="Why, in a line; it stays with the report."),
    AfterValidator(trimmed),
]
Remark = Annotated[
    str,
    Field(min_length=1, max_length=1000, pattern=NAME, description="What is said, in a line; it stays with the report."),
    AfterValidator(trimmed),
]
