"""Finishing Great Expectations' pages: readable without the internet, and the same for the same data."""

import html
import os
import re
from collections import Counter
from datetime import datetime
from pathlib import Path

from wbc_model.cells.ingest import Rejection

LISTED = 500  # rows of the quarantine that the front page shows
_LOGO = re.compile(r"https://great-expectations-web-assets[^\"')]*/([\w-]+\.png)(\?d=\w+\.\w+)?")
_RANDOM = re.compile(r"collapse-body-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_STAMP = re.compile(r"\b\d{8}T\d{6}\.\d{6}Z")
_STYLE = (
    "#wbc{max-width:70rem;margin:1rem auto;padding:0 1rem;font:15px/1.5 system-ui,sans-serif}"
    "#wbc table{border-collapse:collapse;margin:.5rem 0 1.5rem}#wbc td,#wbc th{border:1px solid #8886;padding:.2rem .6rem;"
    "text-align:left}#wbc li{margin:.1rem 0}#wbc .stop{border-left:4px solid #c0392b;padding-left:.8rem}"
)


def finish(directory: Path, moment: datetime, front: str) -> None:
    """Rework the built pages of `directory` in place and put `front` (HTML) on top of the index."""
    stamp = moment.strftime("%Y%m%dT%H%M%S.%fZ")
    for page in sorted(directory.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        images = os.path.relpath(directory / "static" / "images", page.parent)
        text = _LOGO.sub(lambda match, images=images: f"{images}/logo-long.png", text)  # type: ignore[misc]
        numbers: dict[str, int] = {}
        text = _RANDOM.sub(lambda match, seen=numbers: f"collapse-body-{seen.setdefault(match[1], len(seen))}", text)  # type: ignore[misc]
        text = _STAMP.sub(stamp, text)
        if page == directory / "index.html":
            text = re.sub(r"(<body[^>]*>)", lambda match: f"{match[1]}\n{front}", text, count=1)
        page.write_text(text, encoding="utf-8")


def front_page(
    directory: Path,
    pools: dict[str, int],
    usable: dict[str, int],
    quarantine: set[Rejection],
    critical: list[str],
    noted: list[str],
) -> str:
    """What was found, as HTML that needs neither scripts nor style sheets: counts, critical findings, quarantined rows."""
    pages = [page.relative_to(directory).as_posix() for page in sorted((directory / "validations").rglob("*.html"))]
    links = "".join(
        f'<li><a href="{html.escape(page)}">Checks of the {html.escape(page.split("/")[1])}</a></li>' for page in pages
    )
    parts = [
        f"<style>{_STYLE}</style><section id='wbc'><h1>Data checks</h1><ul>{links}</ul>",
        _lines("These findings stop the pipeline", critical, " class='stop'") if critical else "",
        _lines("Worth a look", noted, "") if noted else "",
        "<h2>Cells per pool</h2>",
        _table(["pool", "cells", "in use"], [[name, str(pools[name]), str(usable[name])] for name in pools]),
        "<h2>Quarantined rows</h2>",
        _table(
            ["reason", "rows"], [[name, str(count)] for name, count in sorted(Counter(row.reason for row in quarantine).items())]
        ),
    ]
    rows = [[entry.reason, entry.path, entry.detail] for entry in sorted(quarantine, key=lambda entry: (entry.reason, entry))]
    parts.append(_table(["reason", "row", "other row or detail"], rows[:LISTED]))
    if len(rows) > LISTED:
        parts.append(f"<p>and {len(rows) - LISTED} more in quarantine.csv</p>")
    return "".join(parts) + "</section>"


def _lines(title: str, lines: list[str], attribute: str) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines[:LISTED])
    return f"<div{attribute}><h2>{title}</h2><ul>{items}</ul></div>"


def _table(header: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
