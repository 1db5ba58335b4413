"""What must hold of a workspace after any fault, in one function: every row of docs/faults.md is tested with it."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd
from sqlalchemy import select

from flows.labels import read_log, read_none_of_five
from flows.retraining import gate
from flows.tracking import CHAMPION, open_tracker, packaged_digest, registry_exists
from flows.workspace import STORE
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import Base
from wbc_model.cells.pools import POOLS, Pools
from wbc_model.core.model_card import read_card
from wbc_model.params import read_params

REPORT_TABLES: Final = ("reports", "cells", "images", "corrections", "signatures", "changes", "comments", "opinions")
Given = frozenset[tuple[str, str, str]]  # cell, label, by whom


@dataclass(frozen=True)
class Kept:
    """What somebody was told is kept: labels, cells, the champion (whether there is one), and the rows of reports."""

    labels: Given
    cells: frozenset[str]
    champion: bool
    reports: frozenset[str]


def kept(workspace: Path, store: str | None = None) -> Kept:
    """What a workspace keeps now, and its `store` of reports, whose URL is given where it is not the workspace's own file.
    Raises what the product says where something is damaged."""
    pools = Pools.read(workspace / "data/pools")
    return Kept(
        labels=given(workspace),
        cells=frozenset(pools.table()["sha256"]),
        champion=(workspace / "models/champion").exists(),
        reports=report_rows(store or workspace_store(workspace)),
    )


def workspace_store(workspace: Path) -> str:
    """The URL of a workspace's own store; empty where there is none."""
    return sqlite_url(workspace / STORE) if (workspace / STORE).exists() else ""


def given(workspace: Path) -> Given:
    """Every label that was ever taken: of the log, of the record of what is none of the five, and those that wait."""
    rows = [*read_log(workspace).to_dict("records"), *read_none_of_five(workspace).to_dict("records")]
    for path in sorted((workspace / ".wbc/incoming").glob("*.json")):
        rows += json.loads(path.read_text())["rows"]
    return frozenset((row["sha256"], row["label"], row["labelled_by"]) for row in rows)


def report_rows(url: str) -> frozenset[str]:
    """A digest of every row that belongs to a report; what is sent about it, and clocks, are not among them."""
    if not url:
        return frozenset()
    store = Store.open(url)
    found = set()
    with store.reading() as session:
        for name in REPORT_TABLES:
            table = Base.metadata.tables[name]
            for row in session.execute(select(table)).mappings():
                whole = repr(sorted((column, repr(value)) for column, value in row.items()))
                found.add(f"{name} {hashlib.sha256(whole.encode()).hexdigest()}")
    store.close()
    return frozenset(found)


def assert_whole(workspace: Path, before: Kept, next_run: Callable[[], object] = lambda: None, store: str | None = None) -> None:
    """The five things that hold after a fault, and again after the next run, which must succeed.

    No label is lost, no cell is in two pools and none is gone, no champion is half made, no report has changed, and `next_run`
    (which raises where it fails) comes to its end.
    """
    for run in (None, next_run):
        if run is not None:
            run()
        assert before.labels <= given(workspace), "a label is lost"
        _assert_each_cell_once(workspace, before)
        _assert_whole_champion(workspace, before, settled=run is not None)
        assert before.reports <= report_rows(store or workspace_store(workspace)), "a report has changed"


def _assert_each_cell_once(workspace: Path, before: Kept) -> None:
    pools = Pools.read(workspace / "data/pools")
    pools.check()
    cells = pd.concat([pools.frames[name]["sha256"] for name in POOLS])
    assert not cells.duplicated().any(), "a cell is in two pools"
    assert before.cells <= set(cells), "a cell is gone"


def _assert_whole_champion(workspace: Path, before: Kept, settled: bool) -> None:
    """What a service would load is whole. Once the next run has `settled` what was under way, the registry names it."""
    champion = workspace / "models/champion"
    gate.mend(champion)  # as the next run, the next `wbc serve` and the next `wbc status` begin
    if not champion.exists():
        assert not before.champion, "the champion is gone"
        return
    card = read_card(champion)  # every file by its sha256
    params = read_params(workspace / "params.yaml")
    if settled and registry_exists(workspace, params):
        tracker = open_tracker(workspace, params)
        if (version := tracker.alias(CHAMPION)) is not None:
            assert tracker.digest(version) == packaged_digest(card), "the registry names another champion than is there"
