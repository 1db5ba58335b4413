"""Corrections of signed reports, and cells that the service was unsure of, come into the pools where the site allows it."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.cli import app as command_line
from flows.labelling.from_reports import SOURCE, take_from_reports
from flows.labels import read_log
from flows.retraining import people
from serving.contract.schemas import Delivery, Result, Review
from serving.labelling.queue import AskedCell, Notice, given_up, publish
from serving.reports.labelling_tables import AskedImage
from serving.reports.review import Action, sign
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import Message
from tests.code.test_export import ADA, KEPT, decide, png, reported, said
from tests.pools import ingest
from wbc_model.cells.pools import Pools
from wbc_model.core.classes import CLASSES
from wbc_model.params import Params, read_params
from wbc_model.rendering.cells import render_cells

ROOT = Path(__file__).parents[2]
FILES = [png(cell) for cell in render_cells(40, seed=4, size=64)]
SPARE = FILES[30:]


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def params() -> Params:
    return read_params(ROOT / "params.yaml")


@pytest.fixture
def workspace(tmp_path: Path, params: Params) -> Path:
    """Thirty drawn cells, ten of them in the test pool."""
    rows = []
    for number, data in enumerate(FILES[:30]):
        (tmp_path / f"{number}.png").write_bytes(data)
        rows.append([f"{number}.png", CLASSES[number % 5], "test" if number < 10 else "val" if number < 15 else "train"])
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(tmp_path / "manifest.csv", index=False)
    root = tmp_path / "site"
    root.mkdir()
    ingest(tmp_path / "manifest.csv", root / "data", params)
    (root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(sqlite_url(tmp_path / "service.db"))


def signed(store: Store, report: str) -> None:
    sign(store, Action(report, ADA), KEPT.model_copy(update={"review_before_signature": "nothing"}))


def test_a_correction_of_a_signed_report_is_a_label_of_its_specimen(workspace: Path, store: Store, params: Params) -> None:
    report = reported(store, SPARE[:3], ["Monocyte", "Monocyte", "Eosinophil"], "S-1")
    decide(store, report, 0, "Lymphocyte")
    open_ = reported(store, SPARE[3:4], ["Monocyte"], "S-2")
    decide(store, open_, 0, "Basophil")
    before = Pools.read(workspace / "data/pools")
    assert take_from_reports(workspace, store, params, 1).line == "", "nothing is signed"
    signed(store, report)
    came = take_from_reports(workspace, store, params, 1)
    assert (came.cells, came.labels, came.refused) == (1, 1, 0)
    assert came.line == "from the service's reports came 1 new cell and 1 label"
    after = Pools.read(workspace / "data/pools")
    [cell] = after.frames["labelled"][after.frames["labelled"]["source"] == SOURCE].to_dict("records")
    assert (cell["sha256"], cell["label"], cell["group"]) == (sha256_of(SPARE[0]), "Lymphocyte", report)
    assert cell["labelled_by"] == "Dr. Ada"
    assert read_log(workspace)["why"].tolist() == [f"decided in report {report}"]
    for name in ("validation", "test"):
        pd.testing.assert_frame_equal(after.frames[name], before.frames[name])
    again = take_from_reports(workspace, store, params, 1)
    assert (again.cells, again.labels, again.line) == (0, 0, "")


def test_a_cell_that_the_service_was_unsure_of_waits_for_a_label(
    workspace: Path, store: Store, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsure(label: str, data: bytes) -> Result:
        return said(label, data).model_copy(update={"review": Review(required=True, reasons=["ambiguous"])})

    with monkeypatch.context() as patch:
        patch.setattr("tests.code.test_export.said", unsure)
        report = reported(store, SPARE[4:7], ["Monocyte", "Monocyte", "Basophil"], "S-3")
    decide(store, report, 1, "Monocyte")
    decide(store, report, 2, None)
    assert take_from_reports(workspace, store, params, 1).cells == 1
    waiting = Pools.read(workspace / "data/pools").frames["unlabelled"]
    [cell] = waiting[waiting["source"] == SOURCE].to_dict("records")
    assert (cell["sha256"], cell["label"], cell["group"]) == (sha256_of(SPARE[4]), "", report)
    signed(store, report)
    came = take_from_reports(workspace, store, params, 1)
    assert (came.cells, came.labels) == (1, 1), "the confirmed one; what is none of the classes does not come"
    groups = Pools.read(workspace / "data/pools").table()
    assert set(groups.loc[groups["source"] == SOURCE, "group"]) == {report}


def test_a_report_changes_nothing_that_a_model_is_tested_on(workspace: Path, store: Store, params: Params) -> None:
    report = reported(store, [FILES[0], FILES[12], FILES[20]], ["Monocyte"] * 3)
    for place in range(3):
        decide(store, report, place, "Basophil")
    signed(store, report)
    before = Pools.read(workspace / "data/pools")
    assert take_from_reports(workspace, store, params, 1).cells == 0
    after = Pools.read(workspace / "data/pools")
    for name in ("validation", "test"):
        pd.testing.assert_frame_equal(after.frames[name], before.frames[name])
    assert set(read_log(workspace)["sha256"]) <= {sha256_of(FILES[20])}


def test_only_where_the_site_allows_it(workspace: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(sqlite_url(workspace / "data/service.db"))
    report = reported(store, SPARE[:1], ["Monocyte"])
    decide(store, report, 0, "Lymphocyte")
    signed(store, report)
    store.close()
    monkeypatch.delenv("WBC_STORE_URL", raising=False)
    assert people.take_reports(workspace, params) == ""
    allowed = KEPT.model_copy(update={"labelling": KEPT.labelling.model_copy(update={"corrections_to_pools": True})})
    monkeypatch.setattr("serving.contract.site.site_from_environment", lambda: allowed)
    assert people.take_reports(workspace, params) == "from the service's reports came 1 new cell and 1 label"


def test_a_removal_says_what_it_leaves_in_the_pools_and_takes_the_cells_off_the_page(
    workspace: Path, store: Store, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = reported(store, SPARE[:2], ["Monocyte", "Eosinophil"], "S-1")
    decide(store, report, 0, "Lymphocyte")
    signed(store, report)
    take_from_reports(workspace, store, params, 1)
    cell = AskedCell(sha256_of(SPARE[0]), SPARE[0], 1, "uncertain")
    publish(store, "0123456789ab", Notice("site", 1, "m"), [cell], KEPT)
    (workspace / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("WBC_STORE_URL", sqlite_url(tmp_path / "service.db"))
    now = datetime.now(UTC)
    with store.writing() as session:
        states: list[Delivery] = ["pending", "failed", "delivered"]
        for state in states:
            session.add(Message(report_id=report, control_id=state, text="x", state=state, not_before=now, created_at=now))
    words = ["reports", "remove", report, "--by", "Dr. Ada", "--reason", "asked for"]
    done = CliRunner().invoke(command_line, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "1 of its cells are in the pools of this workspace" in done.output
    assert "2 messages that waited are never sent" in done.output
    assert given_up(store, "site") == {cell.sha256}
    with store.reading() as session:
        assert session.get(AskedImage, ("0123456789ab", cell.sha256)) is None
