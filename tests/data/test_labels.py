"""The label store: no label lost, none spent twice, whatever comes in and whenever it is killed."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows.labels import awaited, export_queue, import_labels, oracle_answers, read_log, read_queue, record, replay, status
from flows.stages import query
from wbc_model.classes import CLASSES
from wbc_model.errors import WbcError
from wbc_model.ingest import ingest
from wbc_model.params import Params, read_params
from wbc_model.pools import Pools
from wbc_model.render import render_cells

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def params() -> Params:
    return read_params(ROOT / "params.yaml")


@pytest.fixture
def workspace(tmp_path: Path, params: Params) -> Path:
    """Thirty cells of noise, twenty of them waiting for a label, five of these asked about."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(30):
        name = f"{number}.{'tiff' if number == 0 else 'png'}"
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / name)
        split = "test" if number > 24 else "val" if number > 22 else "train"
        rows.append([name, CLASSES[number % 5], split])
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(tmp_path / "manifest.csv", index=False)
    root = tmp_path / "site"
    ingest(tmp_path / "manifest.csv", root / "data", params)
    unlabelled = Pools.read(root / "data/pools").frames["unlabelled"].sort_values("path")
    queue = unlabelled[["sha256", "path"]].head(5).assign(score=1.0, reason="unsure", predicted="Monocyte", probability=0.5)
    queue.insert(2, "rank", range(1, 6))
    queue.to_csv(root / "data/queue.csv", index=False)
    return root


def rows(workspace: Path, labels: list[str], by: str = "anna") -> pd.DataFrame:
    sha256s = read_queue(workspace)["sha256"].tolist()[: len(labels)]
    return pd.DataFrame({"sha256": sha256s, "label": labels, "labelled_by": by, "labelled_at": "2026-11-22T08:00:00Z"})


def labelled(workspace: Path) -> dict[str, tuple[str, int]]:
    frame = Pools.read(workspace / "data/pools").frames["labelled"]
    return {row.sha256: (row.label, int(row.cycle)) for row in frame.itertuples() if row.labelled_by != "manifest"}


def test_labels_go_into_the_log_and_the_pools_once(workspace: Path) -> None:
    given = rows(workspace, ["Basophil", "Monocyte"])
    assert record(workspace, given, 3) == 2
    assert record(workspace, given, 3) == 0
    assert len(read_log(workspace)) == 2
    assert labelled(workspace) == {sha256: (label, 3) for sha256, label in given[["sha256", "label"]].to_numpy()}
    assert len(awaited(workspace)) == 3


@pytest.mark.parametrize("whole_lines", [0, 1, 2])
def test_a_log_torn_by_a_crash_is_finished_when_the_labels_come_again(workspace: Path, whole_lines: int) -> None:
    given = rows(workspace, ["Basophil", "Monocyte", "Neutrophil"])
    before = {path: path.read_bytes() for path in (workspace / "data/pools").iterdir()}
    record(workspace, given, 1)
    log = workspace / "data/labels.csv"
    whole = log.read_text().splitlines(keepends=True)
    log.write_text("".join(whole[:whole_lines]) + whole[whole_lines][:7])  # 0: not even the header is whole
    for path, content in before.items():
        path.write_bytes(content)
    record(workspace, given, 1)
    assert log.read_text().splitlines()[0] == whole[0].strip()
    assert len(labelled(workspace)) == 3
    assert read_log(workspace)["sha256"].is_unique


def test_a_label_that_reached_only_the_log_reaches_the_pools_by_replay(workspace: Path) -> None:
    before = {path: path.read_bytes() for path in (workspace / "data/pools").iterdir()}
    record(workspace, rows(workspace, ["Basophil", "Monocyte"]), 2)
    expected = labelled(workspace)
    for path, content in before.items():
        path.write_bytes(content)
    assert labelled(workspace) == {}
    replay(workspace)
    assert labelled(workspace) == expected


def test_nothing_wrong_gets_into_the_log(workspace: Path) -> None:
    test_cell = Pools.read(workspace / "data/pools").frames["test"]["sha256"].iloc[0]
    good = rows(workspace, ["Basophil"])
    for sha256, label in (("0" * 64, "Basophil"), (test_cell, "Basophil"), (good["sha256"].iloc[0], "Blast")):
        with pytest.raises(WbcError):
            record(workspace, pd.concat([good, good.assign(sha256=sha256, label=label)]), 1)
    record(workspace, good, 1)
    with pytest.raises(WbcError, match="labelled Basophil already and now comes as Monocyte"):
        record(workspace, good.assign(label="Monocyte"), 2)
    assert len(read_log(workspace)) == 1
    assert len(labelled(workspace)) == 1


def test_a_cell_that_left_the_pools_does_not_stop_the_others(workspace: Path) -> None:
    before = {path: path.read_bytes() for path in (workspace / "data/pools").iterdir()}
    given = rows(workspace, ["Basophil", "Monocyte"])
    record(workspace, given, 1)
    for path, content in before.items():
        path.write_bytes(content)
    Pools.read(workspace / "data/pools").without({given["sha256"].iloc[0]}).write(workspace / "data/pools")
    replay(workspace)
    assert set(labelled(workspace)) == {given["sha256"].iloc[1]}


def test_the_oracle_answers_with_what_was_set_aside(workspace: Path) -> None:
    answers = oracle_answers(workspace, read_queue(workspace))
    oracle = pd.read_csv(workspace / "data/oracle.csv").set_index("sha256")["label"]
    assert len(answers) == 5
    assert (answers["label"] == answers["sha256"].map(oracle)).all()
    assert set(answers["labelled_by"]) == {"oracle"}


def test_a_csv_goes_out_and_comes_back(workspace: Path, tmp_path: Path) -> None:
    assert export_queue(workspace, tmp_path / "ask.csv", tmp_path / "cells") == 5
    assert len(list((tmp_path / "cells").iterdir())) == 5
    table = pd.read_csv(tmp_path / "ask.csv", dtype=str, keep_default_na=False)
    table.loc[0, ["label", "labelled_by"]] = ["eosinophils", "dr. ada"]  # plural and in lower case
    table.loc[2, "label"] = "Monocyte"
    table.to_csv(tmp_path / "given.csv", index=False)
    result = import_labels(workspace, tmp_path / "given.csv", 4, "ward 3")
    assert (result["labels"], result["new"], result["awaited"]) == (2, 2, 3)
    log = read_log(workspace)
    assert log[["label", "labelled_by", "cycle"]].to_numpy().tolist() == [
        ["Eosinophil", "dr. ada", "4"],
        ["Monocyte", "ward 3", "4"],
    ]
    assert import_labels(workspace, tmp_path / "given.csv", 5)["new"] == 0


def test_label_studio_tasks_show_the_cell_and_come_back(workspace: Path, tmp_path: Path) -> None:
    export_queue(workspace, tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    for task in tasks:
        media, _, data = task["data"]["image"].partition(";base64,")
        assert media in ("data:image/png", "data:image/jpeg", "data:image/bmp")  # a browser shows no TIFF
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (16, 16)
        assert task["predictions"][0]["result"][0]["value"]["choices"] == ["Monocyte"]
    config = (tmp_path / "tasks.xml").read_text()
    assert all(f'value="{name}"' in config for name in CLASSES)

    def annotated(task: dict[str, object], label: str, **more: object) -> dict[str, object]:
        result = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]
        return {"result": result, "completed_by": 7, "updated_at": "2026-11-22T10:00:00.123456Z", **more}

    tasks[0]["annotations"] = [annotated(tasks[0], "Basophil"), annotated(tasks[0], "Monocyte", was_cancelled=True)]
    tasks[1]["annotations"] = [annotated(tasks[1], "Neutrophil", completed_by={"email": "ada@example.org"})]
    tasks[2]["annotations"] = []
    (tmp_path / "done.json").write_text(json.dumps(tasks))
    assert import_labels(workspace, tmp_path / "done.json", 1)["new"] == 2
    log = read_log(workspace)
    assert log["label"].tolist() == ["Basophil", "Neutrophil"]
    assert log["labelled_by"].tolist() == ["label studio 7", "ada@example.org"]
    assert log["labelled_at"].tolist() == ["2026-11-22T10:00:00Z"] * 2
    short = [{"id": 9, "sha256": tasks[3]["data"]["sha256"], "label": "Lymphocyte", "annotator": 2}]
    (tmp_path / "short.json").write_text(json.dumps(short))
    assert import_labels(workspace, tmp_path / "short.json", 1)["new"] == 1

    tasks[4]["id"] = 11
    tasks[4]["annotations"] = [annotated(tasks[4], "Basophil"), annotated(tasks[4], "Monocyte")]
    (tmp_path / "torn.json").write_text(json.dumps(tasks))
    with pytest.raises(WbcError, match=r"task 11 .*Basophil and Monocyte were chosen"):
        import_labels(workspace, tmp_path / "torn.json", 1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "sha256,label\nabc,Blast\n", "line 2: unknown label 'Blast'"),
        ("a.csv", "sha256,label\n,Monocyte\n", "line 2: the cell's sha256 is missing"),
        ("a.csv", "cell,label\nabc,Monocyte\n", "needs the columns sha256 and label"),
        ("a.json", "{", "neither .csv nor JSON"),
        ("a.json", "{}", "expected the list of tasks"),
    ],
)
def test_a_wrong_file_is_named_and_changes_nothing(workspace: Path, tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(WbcError, match=message.replace("(", r"\(")):
        import_labels(workspace, tmp_path / name, 1)
    assert not (workspace / "data/labels.csv").exists()


def test_status_counts(workspace: Path) -> None:
    record(workspace, rows(workspace, ["Basophil", "Monocyte"]), 1)
    seen = status(workspace)
    assert seen["labelled_by"]["anna"] == 2
    assert seen["awaited"] == 3
    assert sum(seen["classes"].values()) == seen["labelled"]


def test_before_there_is_a_model_colours_choose_whom_to_ask_about(tmp_path: Path, params: Params) -> None:
    """A site without one label of its training cells: the first queue holds cells of all classes, and its labels train."""
    cells, rows = list(render_cells(260, seed=3, size=64)), []
    for number, cell in enumerate(cells):
        Image.fromarray(cell.pixels).save(tmp_path / f"{number}.png")
        split = "train" if number < 240 else "val" if number < 250 else "test"
        rows.append([f"{number}.png", cell.label if split != "train" else "", split])
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(tmp_path / "manifest.csv", index=False)
    root = tmp_path / "site"
    ingest(tmp_path / "manifest.csv", root / "data", params)
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (root / "dvc.yaml").write_text("stages: {}\n")
    assert Pools.read(root / "data/pools").frames["labelled"].empty
    assert query(root, 25) == {"wrote": "data/queue.csv", "cells": 25, "pool": 240, "strategy": "colour_cover"}
    queue = read_queue(root)
    truth = {f"{number}.png": cell.label for number, cell in enumerate(cells)}
    labels = [truth[Path(path).name] for path in queue["path"]]
    assert set(labels) == set(CLASSES)
    assert set(queue["predicted"]) == {""}
    out = tmp_path / "tasks.json"
    export_queue(root, out)
    tasks = json.loads(out.read_text())
    assert all("predictions" not in task and task["data"]["reason"].startswith("coloured unlike") for task in tasks)
    answers = tmp_path / "answers.csv"
    queue.assign(label=labels)[["sha256", "label"]].to_csv(answers, index=False)
    assert import_labels(root, answers, 0, "anna")["labels"] == 25
    assert Pools.read(root / "data/pools").counts()["labelled"] == 25
