"""Answers in a sheet with the columns sha256 and label: a spreadsheet that came back, or the CSV of Label Studio."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from flows.exchange.answers import Refused, Said, one_choice, person
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.written import read_sheet

SHEETS: Final = (".csv", ".tsv", ".txt")
STUDIO_BY: Final = ("annotator", "completed_by")
AT: Final = ("labelled_at", "updated_at", "created_at")  # ours, then those of Label Studio's CSV


def read_rows(file: Path) -> Iterator[Said]:
    """What each row says that has a label; raises WbcError where the file as a whole cannot be read."""
    sheet = read_sheet(file, ("sha256", "label", "labelled_by", *STUDIO_BY, *AT))
    missing = [name for name in ("sha256", "label") if name not in sheet.header]
    if missing:
        has = ", ".join(sheet.header) or "none"
        raise WbcError(f"{file}: needs the columns sha256 and label, has {has}, read as separated by {sheet.said}")
    twice = [name for name in ("sha256", "label") if sheet.header.count(name) > 1]
    if twice:
        raise WbcError(f"{file}: the column {twice[0]!r} is there twice")
    for line, row in sheet.rows:
        fields = {
            name: text.strip() for name, text in itertools.zip_longest(sheet.header, row[: len(sheet.header)], fillvalue="")
        }
        place = f"line {line}"
        if len(row) > len(sheet.header):
            yield Refused(place, fields["sha256"], f"{counted(len(row), 'field')}, the header has {len(sheet.header)}")
        elif fields["label"]:
            by = fields.get("labelled_by") or next((person(fields[name]) for name in STUDIO_BY if fields.get(name)), "")
            at = next((fields[name] for name in AT if fields.get(name)), "")
            yield one_choice(place, fields["sha256"], fields["label"], by, at, fields.get("why", ""))
