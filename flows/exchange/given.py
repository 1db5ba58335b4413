"""What people hand in as answers: a sheet with sha256 and label, or what Label Studio exports, in JSON or CSV.

One row or task that cannot be used refuses itself and spoils no other. Several people may answer for one cell. Where they agree
the answer is of them all; where they do not, nobody's is taken.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import pandas as pd

from flows.exchange.answers import Answer, Disagreement, Passed, Refused, Said
from flows.exchange.label_studio import read_tasks
from flows.exchange.sheet import SHEETS, read_rows
from wbc_model.cells.conflicts import MACHINES
from wbc_model.cells.manifest import known_label, unknown_label
from wbc_model.cells.pools import now
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError


@dataclass
class Given:
    """What a file says: the `answers`, one for each cell, and what is `refused`. Cells that stay asked are counted: people are
    `unsure` of them or have `skipped` them, or there is only what a model `predicted`."""

    answers: list[Answer] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    unsure: int = 0
    skipped: int = 0
    predicted: int = 0


@dataclass(frozen=True)
class Vocabulary:
    """What may be answered beside the classes: `kinds` that are none of them, and the word `unsure` for no answer. `names` are
    the site's own for the classes; they come first."""

    kinds: tuple[str, ...] = ()
    unsure: str = ""
    names: Mapping[str, str] = field(default_factory=dict)

    def known(self, text: str) -> str:
        """The answer that a text means; what is none is given back as it is."""
        return known_label(text, {word: word for word in (*self.kinds, self.unsure) if word} | dict(self.names))

    def why_unknown(self, answer: str) -> str:
        """The line that explains an answer which is none."""
        kinds = f"; none of the five classes are {', '.join(self.kinds)}" if self.kinds else ""
        return unknown_label(answer) + kinds


def read_answers(file: Path, words: Vocabulary) -> Given:
    """The answers of a file, and the rows that cannot be one; rows without an answer are passed over. Raises WbcError where the
    file as a whole cannot be read."""
    if not file.is_file():
        raise WbcError(f"{file} does not exist")
    said = [_checked(one, words) for one in (read_rows(file) if file.suffix.casefold() in SHEETS else read_tasks(file))]
    given = Given(refused=[one for one in said if isinstance(one, Refused)])
    by_cell: dict[str, list[Answer]] = {}
    for one in said:
        if isinstance(one, Answer):
            by_cell.setdefault(one.sha256, []).append(one)
    for answers in by_cell.values():
        agreed = _agreed(answers, words.unsure)
        if isinstance(agreed, Refused):
            given.refused.append(agreed)
        elif agreed is None:
            given.unsure += 1
        else:
            given.answers.append(agreed)
    given.skipped = len(_only(said, "skipped") - by_cell.keys())
    given.predicted = len(_only(said, "predicted") - by_cell.keys())
    return given


def _only(said: Iterable[Said], why: str) -> set[str]:
    return {one.sha256 for one in said if isinstance(one, Passed) and one.why == why}


def _checked(said: Said, words: Vocabulary) -> Said:
    if not isinstance(said, Answer):
        return said
    label = words.known(said.label)
    if label not in (*CLASSES, *words.kinds, words.unsure):
        return Refused(said.place, said.sha256, words.why_unknown(said.label))
    if not said.sha256:
        return Refused(said.place, "", "the cell's sha256 is missing")
    at = _moment(said.at)
    if said.at and not at:
        return Refused(said.place, said.sha256, f"{said.at!r} is no time: write it as {now()}, or leave it out")
    by = "" if said.by in MACHINES else said.by
    return Answer(said.place, said.sha256.casefold(), label, by, at, said.why)


_NO_DAY: Final = re.compile(r"\d{4}[-/. ]?Q?\d{0,2}")


def _moment(text: str) -> str:
    """A time as ISO 8601 in UTC, to the microsecond, and never later than now, or no later label could follow it; empty where it
    is none. A year, quarter or month alone is none: its first day might come before a label that it follows."""
    try:
        moment = pd.Timestamp(text) if text[:4].isdigit() and not _NO_DAY.fullmatch(text.strip()) else pd.NaT
    except (ValueError, OverflowError):
        return ""
    if not isinstance(moment, pd.Timestamp):
        return ""
    moment = moment.tz_localize("UTC") if moment.tzinfo is None else moment.tz_convert("UTC")
    return str(min(moment, pd.Timestamp.now("UTC")).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


# --- several people --------------------------------------------------------------------------------------------------------


def _agreed(answers: list[Answer], unsure: str) -> Answer | Refused | None:
    """What the people who answered for one cell say together; None where they are unsure. A person's later answer takes the place
    of the earlier one. `unsure` is no answer: what others say stands."""
    by_person: dict[str, list[Answer]] = {}
    for one in answers:
        by_person.setdefault(one.by, []).append(one)
    last = [one for name, given in by_person.items() for one in (_last(given) if name else given)]
    sure = sorted((one for one in last if one.label != unsure), key=lambda one: one.by)
    if not sure:
        return None
    place = ", ".join(dict.fromkeys(one.place for one in sure))
    at = max(one.at for one in sure)
    at = f"{at[:19]}Z" if at else ""
    if len({one.label for one in sure}) > 1:
        return Disagreement(place, sure[0].sha256, _disagreement(sure), at)
    names = " + ".join(dict.fromkeys(one.by for one in sure if one.by))
    why = "; ".join(dict.fromkeys(one.why for one in sure if one.why))
    return replace(sure[0], place=place, by=names, at=at, why=why)


def _last(given: list[Answer]) -> list[Answer]:
    """A person's last answer for a cell; all of them where it cannot be told which is the last."""
    timed = sorted(given, key=lambda one: one.at)
    newest = [one for one in timed if one.at == timed[-1].at]
    return newest[:1] if len({one.label for one in newest}) == 1 and all(one.at for one in timed) else given


def _disagreement(answers: list[Answer]) -> str:
    named = {f"{one.label} by {one.by}" if one.by else one.label: one for one in answers}
    said = " and ".join(named)
    if len({one.by for one in answers}) == 1:
        return f"{said} are given for this cell, and no time says which came last; agree on one first"
    decide = f"`wbc labels decide {answers[0].sha256[:12]} LABEL --by NAME --why REASON`"
    return f"{said} disagree; agree on one first, or {decide} makes one count"
