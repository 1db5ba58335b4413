"""Fresh cells for the test pool: drawn blind, never learned from, and the number of comparisons after which the gate asks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.labels import awaited, decide, import_labels
from flows.pipeline.stages import query_size, usable_pools
from flows.retraining import fresh_cells, gate
from flows.workspace import set_params, template
from tests.pools import ingest
from wbc_model.cells.pools import Pools
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.params import read_params
from wbc_model.rendering.cells import write_cells


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with 200 rendered cells, each on its own, of which most wait; people label."""
    workspace = tmp_path_factory.mktemp("fresh") / "site"
    workspace.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(template(name), workspace / name)
    set_params(workspace, {"retrain.annotator": "people"})
    manifest = write_cells(workspace / ".wbc/rendered", 200, seed=0, size=48)
    pd.read_csv(manifest).drop(columns="group").to_csv(manifest, index=False)
    ingest(manifest, workspace / "data", read_params(workspace / "params.yaml"), source="rendered")
    return workspace


@pytest.fixture
def site(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "site"))


def pools(site: Path) -> Pools:
    return Pools.read(site / "data/pools")


def test_labels_of_drawn_cells_go_to_the_test_pool(site: Path, tmp_path: Path) -> None:
    before = pools(site).counts()
    drawn = fresh_cells.draw(site, 12)
    assert (drawn["drawn"], drawn["labelled"], drawn["awaited"]) == (12, 0, 12)
    assert pools(site).counts() == before, "a cell moves when it has its label"
    fresh_cells.export(site, tmp_path / "sheet.csv", tmp_path / "images")
    sheet = pd.read_csv(tmp_path / "sheet.csv", dtype=str, keep_default_na=False)
    assert len(list((tmp_path / "images").iterdir())) == 12
    assert not {"predicted", "probability", "reason"} & set(sheet.columns), "nobody is told what a model thinks"
    sheet.assign(label="Monocyte", labelled_by="Ada").to_csv(tmp_path / "answers.csv", index=False)
    assert import_labels(site, tmp_path / "answers.csv", 3)["new"] == 12
    after = pools(site)
    assert after.counts() == before | {"unlabelled": before["unlabelled"] - 12, "test": before["test"] + 12}
    fresh = after.frames["test"].set_index("sha256").loc[sheet["sha256"]]
    assert set(fresh["label"]) == {"Monocyte"}
    assert set(fresh["labelled_by"]) == {"Ada"}
    assert after.drawn().empty


def test_a_person_who_decides_on_a_drawn_cell_puts_it_into_the_test_pool(site: Path) -> None:
    fresh_cells.draw(site, 1)
    (cell,) = fresh_cells.waiting(site)["sha256"]
    decide(site, cell, "Basophil", "Ada", "seen at the microscope", 1)
    assert cell in set(pools(site).frames["test"]["sha256"])


def test_nothing_is_learned_from_a_drawn_cell_and_no_question_asked(site: Path) -> None:
    before, version = usable_pools(site).counts(), pools(site).version()
    fresh_cells.draw(site, 12)
    drawn = set(fresh_cells.waiting(site)["sha256"])
    usable = usable_pools(site)
    assert usable.counts()["unlabelled"] == before["unlabelled"] - 12
    assert not drawn & set(usable.frames["unlabelled"]["sha256"])
    assert pools(site).version() != version, "a training must not take the pools for those of before"
    assert query_size(read_params(site / "params.yaml"), usable, 0) >= 0


def test_cells_of_the_queue_are_not_drawn(site: Path) -> None:
    waiting = pools(site).frames["unlabelled"]
    queue = waiting.head(len(waiting) - 5).assign(rank="1", score="0", reason="", predicted="", probability="")
    queue[["sha256", "path", "rank", "score", "reason", "predicted", "probability"]].to_csv(site / "data/queue.csv", index=False)
    fresh_cells.draw(site, 5)
    assert set(fresh_cells.waiting(site)["sha256"]) == set(waiting["sha256"].tail(5))
    assert len(awaited(site)) == len(waiting) - 5
    with pytest.raises(WbcError, match="only 0 of the 1 cells that you ask for can go to the test pool"):
        fresh_cells.draw(site, 1)


def test_a_group_is_drawn_whole_and_not_where_training_has_a_part_of_it(site: Path) -> None:
    now = pools(site)
    frame = now.frames["unlabelled"]
    frame["group"] = [f"smear-{place // 10}" if place < 40 else "large" for place in range(len(frame))]
    now.frames["labelled"].loc[0, "group"] = "large"
    now.write(site / "data/pools")
    result = fresh_cells.draw(site, 12)
    assert result["drawn"] == 20
    drawn = pools(site).drawn()
    assert drawn["group"].nunique() == 2
    assert "large" not in set(drawn["group"])
    with pytest.raises(WbcError, match="only 20 of the"):
        fresh_cells.draw(site, 30)
    first = drawn["sha256"].iloc[0]
    decide(site, first, "Basophil", "Ada", "seen", 1)  # its group is on the test's side already
    assert first in set(pools(site).frames["test"]["sha256"])


@pytest.mark.parametrize(
    ("sizes", "count", "drawn"), [([30, 4, 3], 7, 7), ([30, 9], 5, 9), ([30, 2, 2], 5, 34), ([5, 30], 6, 35)]
)
def test_no_more_are_drawn_than_whole_groups_make_necessary(site: Path, sizes: list[int], count: int, drawn: int) -> None:
    """A draw of five took a patient of thirty, where others were of a few cells."""
    now = pools(site)
    frame, names = now.frames["unlabelled"], np.repeat([f"smear-{size}-{place}" for place, size in enumerate(sizes)], sizes)
    frame["group"] = [*names, *["large"] * (len(frame) - len(names))]
    now.frames["labelled"].loc[0, "group"] = "large"
    now.write(site / "data/pools")
    assert fresh_cells.draw(site, count)["drawn"] == drawn


def test_the_oracle_answers_at_once_where_it_is_the_annotator(site: Path) -> None:
    set_params(site, {"retrain.annotator": "oracle"})
    before = pools(site).counts()["test"]
    result = fresh_cells.draw(site, 7)
    assert (result["labelled"], result["awaited"]) == (7, 0)
    assert pools(site).counts()["test"] == before + 7


def compare(site: Path, times: int) -> None:
    test = usable_pools(site).frames["test"]
    for _ in range(times):
        fresh_cells.note_cells(site, test)
        pool = gate.test_pool_id(test["sha256"].tolist())
        count = len(gate.read_log(site))
        gate.note_decision(site, f"r{count}", gate.Decision(False, ["no"], test_pool=pool))


def test_the_gate_asks_for_fresh_cells_after_the_stated_number_and_not_before(site: Path) -> None:
    limit = read_params(site / "params.yaml").gate.max_comparisons
    assert limit == 20
    compare(site, limit - 1)
    assert fresh_cells.state(site)["asks"] == ""
    compare(site, 1)
    state = fresh_cells.state(site)
    assert state["comparisons"] == 20
    assert f"`wbc labels test --draw {state['cells']}` draws fresh ones" in state["asks"]


def test_one_new_cell_does_not_make_a_worn_pool_new_and_as_many_fresh_ones_halve_it(site: Path, tmp_path: Path) -> None:
    set_params(site, {"retrain.annotator": "oracle", "gate.alpha": 0.25})
    compare(site, 4)
    fresh_cells.draw(site, 1)
    test = usable_pools(site).frames["test"]
    assert fresh_cells.wear(site, test, 4).comparisons == 3
    fresh_cells.draw(site, len(test) - 2)
    worn = fresh_cells.wear(site, usable_pools(site).frames["test"], 4)
    assert worn.comparisons == 2
    assert worn.asks == ""


def test_a_log_of_before_counts_for_the_same_pool(site: Path) -> None:
    compare(site, 3)
    (site / fresh_cells.CELLS).unlink()
    assert fresh_cells.state(site)["comparisons"] == 3
    (site / fresh_cells.CELLS).write_text("{")
    with pytest.raises(WbcError, match=r"gate_cells\.json is damaged"):
        fresh_cells.state(site)


def test_the_command(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)
    run = CliRunner().invoke(app, ["labels", "test", "--draw", "3", "--export", str(tmp_path / "sheet.json"), "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["drawn"] == 3
    tasks = json.loads((tmp_path / "sheet.json").read_text())
    assert len(tasks) == 3
    assert not any("predictions" in task for task in tasks)
    text = CliRunner().invoke(app, ["labels", "test"]).stdout
    assert "compared on 0 times of 20" in text
    assert "3 drawn cells await a label" in text
    assert set(CLASSES) >= set(pools(site).frames["test"]["label"])
    replayed = CliRunner().invoke(app, ["labels", "replay"]).stdout.splitlines()
    assert replayed[:2] == ["0 labels replayed", "wrote nothing"]
