"""The errors a user can act on, and words that their lines are made of; everything else is a defect and keeps its traceback."""

import difflib
from collections.abc import Iterable
from typing import Final

SLIP: Final = (
    0.75  # how much of two words must be alike for one to be a slip of the other: `cbma` for `cbam`, not `magic` for `margin`
)


def nearest(word: str, known: Iterable[str], alike: float = SLIP) -> str | None:
    """The known name that `word` is a slip of the pen for; None where it is near to none: a wrong guess is worse than none."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=alike)
    return near[0] if near else None


def counted(count: int, noun: str, nouns: str = "") -> str:
    """A number with its noun, and what goes with it: 1 label, 2 labels; by `nouns` what is not made by an s."""
    return f"{count} {noun if count == 1 else nouns or f'{noun}s'}"


class WbcError(Exception):
    """One clear line that names the file, row or field and what to do; the command line prints it and exits with 1."""


class ImageRejected(WbcError):
    """An image that cannot be used. `reason` is one of the quarantine reasons of the design (`undecodable`, ...)."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
