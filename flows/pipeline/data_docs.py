"""The page of the data checks, `data/docs/index.html`: what was found, with a picture of each row, and the results before.

One file without scripts, with its pictures in it: it is read without the internet, and is the same for the same data. Great
Expectations' own pages cannot be that (docs/decisions/047). The template stands in this module, so that the fingerprint of the
stage covers it.
"""

import base64
import io
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import pandas as pd
from jinja2 import Environment
from PIL import Image

from wbc_model.cells.pools import POOLS
from wbc_model.cells.rejections import Rejection
from wbc_model.cells.store import ImageStore
from wbc_model.core.classes import CLASSES
from wbc_model.core.files import write_atomic
from wbc_model.core.images import decode

CHECKS_CSV: Final = "reports/checks.csv"  # a row per result that differs from the one before; committed with the pools
LISTED: Final = 200  # rows that are shown of each kind; quarantine.csv has them all
THUMBNAIL: Final = 72  # pixels of the longer side
_QUALITY: Final = 80  # of the JPEG

WHY: Final = {
    "missing": "there is no such file",
    "outside_folder": "the path leads out of the folder",
    "undecodable": "the file cannot be read as an image",
    "truncated": "the file is cut off",
    "too_large": "the image is too large",
    "too_small": "the image is too small",
    "unknown_label": "the label is none of the five classes",
    "duplicate": "a different row has the same picture",
    "label_conflict": "two rows give one cell two labels",
    "split_leak": "the same picture, or one of the same group, is in another pool",
    "near_duplicate": "a different row shows the same cell, cut or saved in another way",
    "blank": "there is too little to see",
    "blurred": "the picture is out of focus",
}


class Line(NamedTuple):
    """A finding in words; `sha256` names its cell, or is empty where it is about a pool. One that `lacks` says only that a pool
    is too small to train or test: nothing in it is wrong."""

    text: str
    sha256: str = ""
    lacks: bool = False


class Check(NamedTuple):
    """An expectation: what is expected, of how many rows, how many are different, and what follows from it."""

    expected: str
    rows: int
    failed: int
    follows: str


@dataclass(frozen=True)
class Findings:
    """All that the page shows. `cells`: the table of `describe` with `quarantined`; `critical` stops the pipeline; `newest`:
    when the newest label was given, ISO 8601, or empty."""

    cells: pd.DataFrame
    quarantine: Iterable[Rejection]
    critical: Sequence[Line]
    noted: Sequence[Line]
    checks: Sequence[Check]
    newest: str


def write_page(path: Path, found: Findings, store: ImageStore, before: pd.DataFrame) -> None:
    """Write the page to `path`; `before` has the results up to this one, as `remember` returns them."""
    by_reason: dict[str, list[Rejection]] = {}
    for entry in sorted(found.quarantine, key=lambda entry: (entry.reason, entry)):
        by_reason.setdefault(entry.reason, []).append(entry)
    shown = {reason: rows[:LISTED] for reason, rows in by_reason.items()}
    others = _by_path(found.cells, {row.detail for rows in shown.values() for row in rows})
    wanted = [line.sha256 for line in [*found.critical[:LISTED], *found.noted[:LISTED]]]
    wanted += [sha for rows in shown.values() for row in rows for sha in (row.sha256, others.get(row.detail, ""))]
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    text = page.render(
        found=found,
        counts=class_counts(found.cells),
        classes=CLASSES,
        by_reason=by_reason,
        shown=shown,
        others=others,
        pictures=_thumbnails(store, _sound(found.cells, wanted)),
        why=WHY,
        before=before.to_dict("records"),
        listed=LISTED,
    )
    write_atomic(path, text)


def class_counts(cells: pd.DataFrame) -> list[dict[str, object]]:
    """A row per pool: its cells, how many are in use, and of these how many are of each class (`classes`) or wait (`none`)."""
    rows: list[dict[str, object]] = []
    few = cells[["pool", "label", "quarantined"]]  # of millions of rows no copy is made of the rest
    for pool in POOLS:
        here = few[few["pool"] == pool]
        used = here[~here["quarantined"]]
        labels = used["label"].value_counts()
        of_class = {name: int(labels.get(name, 0)) for name in CLASSES}
        share = {name: f"{count / max(1, len(used)):.0%}" for name, count in of_class.items()}
        rows.append(
            {"pool": pool, "cells": len(here), "used": len(used), "none": int(labels.get("", 0)), "classes": of_class}
            | {"share": share}
        )
    return rows


def remember(path: Path, found: Findings) -> pd.DataFrame:
    """Add this result to the table in `path`, unless it is there; returns the results up to this one, the newest last."""
    used = found.cells.loc[~found.cells["quarantined"], "pool"].value_counts()
    reasons = Counter(entry.reason for entry in found.quarantine)
    row = {
        "newest_label": found.newest,
        **{pool: str(used.get(pool, 0)) for pool in POOLS},
        "out_of_use": ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())),
        "stops": str(len(found.critical)),
        "warnings": str(len(found.noted)),
    }
    empty = pd.DataFrame(columns=list(row), dtype=str)
    table = pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else empty
    same = [place for place, kept in enumerate(table.to_dict("records")) if kept == row]
    if same:
        return table.iloc[: same[-1] + 1]
    table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, table.to_csv(index=False))
    return table


def _by_path(cells: pd.DataFrame, paths: Collection[str]) -> dict[str, str]:
    """The cell behind each of these paths of the pools: a finding names the other row of a pair by its path. Two hospitals may
    have a file of one name: which of them is meant is not known."""
    found = cells.loc[cells["path"].isin(list(paths)), ["path", "sha256"]].drop_duplicates()
    return dict(found[~found["path"].duplicated(keep=False)].astype(str).to_numpy())


def _sound(cells: pd.DataFrame, sha256s: Collection[str]) -> set[str]:
    """Those of these cells whose stored image is whole."""
    here = cells.loc[cells["sha256"].isin(list(sha256s)), ["sha256", "stored", "damage"]]
    return set(here.loc[here["stored"] & (here["damage"] == ""), "sha256"])


def _thumbnails(store: ImageStore, sha256s: Iterable[str]) -> dict[str, str]:
    """Small pictures of stored cells whose images are whole, as data URLs."""
    pictures: dict[str, str] = {}
    for sha256, data in store.read(sorted(sha256s)):
        image, _ = decode(data, at_least=THUMBNAIL)
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        image.save(buffer := io.BytesIO(), "JPEG", quality=_QUALITY)
        pictures[sha256] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return pictures


_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Data checks</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --bar: #6d5bd0; --stop: #c0392b; --note: #b36b00 }
body { max-width: 72rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; font: 15px/1.5 system-ui, sans-serif }
h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem } h3 { margin: 1.4rem 0 .4rem; font-size: 1rem }
p, ul { margin: .4rem 0 } .quiet { opacity: .7 }
table { border-collapse: collapse } td:first-child { white-space: nowrap }
td, th { border-bottom: 1px solid var(--line); padding: .25rem .8rem; text-align: left }
.number { text-align: right; font-variant-numeric: tabular-nums }
.word { border-left: 5px solid #2e8b57; padding: .5rem 1rem; background: var(--soft); font-size: 1.05rem }
.word.stop { border-color: var(--stop) } .word.note { border-color: var(--note) }
.bar { display: block; height: 4px; background: var(--bar); margin-top: 2px }
.cells { display: flex; flex-wrap: wrap; gap: .7rem; padding: 0; list-style: none }
.cells li { width: 11rem; padding: .5rem; border: 1px solid var(--line); border-radius: 6px; overflow-wrap: anywhere }
.cells li { font-size: 13px; line-height: 1.35 }
.cells img, .lines img { height: 72px; border-radius: 4px; margin-right: 4px; vertical-align: middle }
.lines { padding: 0; list-style: none } .lines li { margin: .35rem 0 } .failed { color: var(--stop); font-weight: 600 }
.lines img { height: 48px }
</style>
{% macro picture(sha256) %}
{% if pictures.get(sha256) %}<img src="{{ pictures[sha256] }}" alt="">{% endif %}
{% endmacro %}
{% macro lines(title, entries) %}
<h2>{{ title }}</h2>
<ul class="lines">
{% for line in entries[:listed] %}
<li>{{ picture(line.sha256) }}{{ line.text }}</li>
{% endfor %}
</ul>
{% if entries|length > listed %}<p>{{ entries|length - listed }} more are not shown.</p>{% endif %}
{% endmacro %}
<h1>Data checks</h1>
{% set gone = by_reason.values()|map('length')|sum %}
{% if found.critical %}
<p class="word stop">{{ found.critical|length }} finding{{ 's stop' if found.critical|length > 1 else ' stops' }} the pipeline.
Mend the rows below, then run <code>wbc validate</code>.</p>
{% elif gone or found.noted %}
<p class="word note">Nothing stops the pipeline. {{ gone }} row{{ '' if gone == 1 else 's' }} out of use, {{ found.noted|length }}
warning{{ '' if found.noted|length == 1 else 's' }}.</p>
{% else %}
<p class="word">All cells are as expected.</p>
{% endif %}
{% if found.newest %}<p class="quiet">The newest label is of {{ found.newest }}.</p>{% endif %}
{% if found.critical %}{{ lines("These findings stop the pipeline", found.critical) }}{% endif %}
{% if found.noted %}{{ lines("Worth a look", found.noted) }}{% endif %}
<h2>Cells per pool and class</h2>
<table>
<tr><th>pool<th class="number">cells<th class="number">in use
{% for name in classes %}<th class="number">{{ name }}{% endfor %}
<th class="number">no label</tr>
{% for row in counts %}
<tr><td>{{ row.pool }}<td class="number">{{ row.cells }}<td class="number">{{ row.used }}
{% for name in classes %}
<td class="number">{% if row.pool == "unlabelled" %}–{% else %}{{ row.classes[name] }}
<span class="bar" style="width:{{ row.share[name] }}" title="{{ row.share[name] }} of the pool"></span>{% endif %}
{% endfor %}
<td class="number">{{ row.none }}</tr>
{% endfor %}
</table>
<p class="quiet">The classes are of the cells in use. A bar is the class's share of its pool.</p>
<h2>Rows out of use</h2>
{% if not by_reason %}<p>None.</p>{% endif %}
{% for reason, rows in by_reason.items() %}
<h3>{{ reason }}: {{ rows|length }}</h3>
<p class="quiet">{{ why.get(reason, reason)|capitalize }}.</p>
<ul class="cells">
{% for row in shown[reason] %}
<li>{{ picture(row.sha256) }}{{ picture(others.get(row.detail, "")) }}<br><b>{{ row.path }}</b><br>
{{ "the other: " if row.detail in others }}{{ row.detail }}</li>
{% endfor %}
</ul>
{% if rows|length > listed %}<p>{{ rows|length - listed }} more are in data/quarantine.csv.</p>{% endif %}
{% endfor %}
<h2>What was checked</h2>
<table>
<tr><th>expected<th class="number">rows<th class="number">different<th>then</tr>
{% for check in found.checks %}
<tr><td>{{ check.expected }}<td class="number">{{ check.rows }}
<td class="number{{ ' failed' if check.failed }}">{{ check.failed }}<td>{{ check.follows }}</tr>
{% endfor %}
</table>
<h2>Results until now</h2>
<table>
<tr><th>newest label{% for pool in counts %}<th class="number">{{ pool.pool }}{% endfor %}
<th>out of use<th class="number">stops<th class="number">warnings</tr>
{% for row in before|reverse %}
<tr><td>{{ row.newest_label or "–" }}{% for pool in counts %}<td class="number">{{ row[pool.pool] }}{% endfor %}
<td>{{ row.out_of_use or "none" }}<td class="number">{{ row.stops }}<td class="number">{{ row.warnings }}</tr>
{% endfor %}
</table>
<p class="quiet">The numbers of the pools are the cells in use; the first row is this page's.</p>
</html>
"""
