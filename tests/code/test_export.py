"""`wbc reports export`: what people decided goes the way of every manifest, into the pools and into a calibration."""

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from serving.contract.schemas import Classified, ModelName, Result, Review
from serving.contract.site import KeepImages, Site, read_site
from serving.contract.specimen import Specimen
from serving.inference.classify import Seen
from serving.inference.reading import Reading
from serving.reports.intake import take_in
from serving.reports.review import Action, Person, correct, sign, undo, withdraw
from serving.reports.store import Store, sqlite_url
from serving.upkeep.export import export
from tests.code.test_calibration import model  # noqa: F401 - a fixture
from wbc_model.cells.pools import Pools
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import read_card
from wbc_model.rendering.cells import RenderedCell, render_cells

ADA, BERT = Person("Dr. Ada", "page"), Person("Bert", "page")
KEPT: Final = read_site().model_copy(update={"keep_images": KeepImages()})


def png(cell: RenderedCell) -> bytes:
    Image.fromarray(cell.pixels).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def said(label: str, data: bytes) -> Classified:
    review = Review(required=False, reasons=[])
    digest = hashlib.sha256(data).hexdigest()
    return Classified(
        label=label, probabilities={label: 1.0}, prediction_set=[label], predicted_loss=None, review=review, sha256=digest
    )


def reported(store: Store, files: list[bytes], labels: list[str], specimen: str | None = None, of: Site = KEPT) -> str:
    results: list[Result] = [said(label, data) for label, data in zip(labels, files, strict=True)]
    seen = [Seen(result, None) for result in results]
    reading = Reading(seen, files, ModelName(name="wbc", version="v1"), np.eye(5, dtype=np.int64) * 20)
    return take_in(store, reading, Specimen(None, specimen), of).report.id


def decide(store: Store, report: str, place: int, label: str | None, person: Person = ADA) -> None:
    correct(store, Action(report, person, amend=True), place, label, KEPT)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(sqlite_url(tmp_path / "service.db"))


@pytest.fixture(scope="module")
def cells() -> list[RenderedCell]:
    return list(render_cells(60, seed=8, size=64))


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "cells.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_only_what_a_person_decided_and_what_still_stands(store: Store, cells: list[RenderedCell], tmp_path: Path) -> None:
    files = [png(cell) for cell in cells[:6]]
    report = reported(store, files, ["Neutrophil"] * 6, "S-1")
    decide(store, report, 0, "Monocyte")
    decide(store, report, 1, "Neutrophil", BERT)  # confirmed
    decide(store, report, 2, "Basophil")
    undo(store, Action(report, ADA, amend=True), 2, KEPT)
    decide(store, report, 3, None)  # said to be none
    decide(store, report, 4, "Basophil")
    decide(store, report, 4, "Lymphocyte", BERT)
    withdrawn = reported(store, [png(cells[7])], ["Neutrophil"], "S-9")
    decide(store, withdrawn, 0, "Monocyte")
    withdraw(store, Action(withdrawn, ADA, reason="a slip"), KEPT)
    done = export(store, tmp_path / "out")
    assert done == (3, 1, 1, 0, 0)
    found = rows(tmp_path / "out")
    assert [(row["label"], row["labelled_by"], row["model_label"], row["model_version"]) for row in found] == [
        ("Monocyte", "Dr. Ada", "Neutrophil", "v1"),
        ("Neutrophil", "Bert", "Neutrophil", "v1"),
        ("Lymphocyte", "Bert", "Neutrophil", "v1"),
    ]
    assert {row["report"] for row in found} == {report}
    images = [(tmp_path / "out" / row["path"]).read_bytes() for row in found]
    assert images == [files[0], files[1], files[4]]
    assert [row["sha256"] for row in found] == [hashlib.sha256(data).hexdigest() for data in images]
    assert "S-1" not in (tmp_path / "out/cells.csv").read_text(), "a specimen number stays in the store"


def test_one_specimen_is_one_group_and_the_last_word_on_a_file_stands(
    store: Store, cells: list[RenderedCell], tmp_path: Path
) -> None:
    first, second, other = (png(cell) for cell in cells[:3])
    a = reported(store, [first, second], ["Neutrophil"] * 2, "S-1")
    b = reported(store, [first], ["Neutrophil"], "S-1")
    c = reported(store, [other], ["Neutrophil"])
    decide(store, b, 0, "Basophil")
    decide(store, a, 0, "Monocyte", BERT)  # the later one
    decide(store, a, 1, "Monocyte")
    decide(store, c, 0, "Monocyte")
    assert export(store, tmp_path / "out") == (3, 0, 0, 0, 1)
    groups = {row["sha256"]: (row["label"], row["group"]) for row in rows(tmp_path / "out")}
    assert groups == {
        hashlib.sha256(first).hexdigest(): ("Monocyte", a),
        hashlib.sha256(second).hexdigest(): ("Monocyte", a),
        hashlib.sha256(other).hexdigest(): ("Monocyte", c),
    }


def test_only_signed_reports_where_asked(store: Store, cells: list[RenderedCell], tmp_path: Path) -> None:
    open_, signed = (reported(store, [png(cells[place])], ["Neutrophil"]) for place in (0, 1))
    for report in (open_, signed):
        decide(store, report, 0, "Monocyte")
    with pytest.raises(WbcError, match="no person has given a cell a label in signed reports: correct or confirm cells first"):
        export(store, tmp_path / "out", signed=True)
    sign(store, Action(signed, ADA), KEPT)
    assert export(store, tmp_path / "out", signed=True).cells == 1
    assert [row["report"] for row in rows(tmp_path / "out")] == [signed]


def test_what_is_there_is_not_written_over_and_what_is_not_kept_is_said(
    store: Store, cells: list[RenderedCell], tmp_path: Path
) -> None:
    with pytest.raises(WbcError, match="no person has given a cell a label"):
        export(store, tmp_path / "out")
    report = reported(store, [png(cells[0])], ["Neutrophil"], of=KEPT.model_copy(update={"keep_images": None}))
    decide(store, report, 0, "Monocyte")
    with pytest.raises(WbcError, match="the images of 1 cell that a person gave a label are not kept"):
        export(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/cells.csv").write_text("mine")
    with pytest.raises(WbcError, match="out is there already"):
        export(store, tmp_path / "out")
    assert (tmp_path / "out/cells.csv").read_text() == "mine"


def test_corrections_reach_the_pools_and_a_calibration(
    model: Path,  # noqa: F811
    cells: list[RenderedCell],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the commands, from the store of a workspace: nothing but what they wrote goes from one to the next."""

    def wbc(*arguments: str) -> dict[str, Any]:
        answer = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        assert answer.exit_code == 0, answer.output
        result: dict[str, Any] = json.loads(answer.stdout)
        return result

    wbc("init", str(tmp_path / "w"))
    monkeypatch.chdir(tmp_path / "w")
    monkeypatch.delenv("WBC_STORE_URL", raising=False)
    store = Store.open(sqlite_url(tmp_path / "w/data/service.db"))
    wrong = [CLASSES[(CLASSES.index(cell.label) + place % 2) % 5] for place, cell in enumerate(cells)]
    report = reported(store, [png(cell) for cell in cells], wrong)
    for place, cell in enumerate(cells):
        decide(store, report, place, cell.label)
    store.close()
    done = wbc("reports", "export", str(tmp_path / "corrected"))
    assert (done["cells"], done["confirmed"], done["manifest"]) == (60, 30, str(tmp_path / "corrected/cells.csv"))
    wbc("ingest", done["manifest"])
    pools = Pools.read(tmp_path / "w/data/pools").table()
    truth = {hashlib.sha256(png(cell)).hexdigest(): cell.label for cell in cells}
    oracle = pd.read_csv(tmp_path / "w/data/oracle.csv", dtype=str).set_index("sha256")["label"].to_dict()
    assert set(pools["sha256"]) == set(truth)
    known = {**oracle, **{sha256: label for sha256, label in zip(pools["sha256"], pools["label"], strict=True) if label}}
    assert known == truth
    assert pools["group"].nunique() == 1
    result = wbc("calibrate", "--model", str(model), "--data", done["manifest"], "--out", str(tmp_path / "here"))
    assert (result["cells"], result["without"]) == (60, [])
    assert read_card(tmp_path / "here").calibrated_on == "60 cells of cells"
