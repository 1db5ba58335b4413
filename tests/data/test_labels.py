"""The label store: no label lost, none spent twice, whatever comes in and whenever it is killed."""

import base64
import contextlib
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows.labels import (
    awaited,
    check_replayed,
    conflicts,
    decide,
    decide_all,
    export_queue,
    import_labels,
    kinds,
    oracle_answers,
    read_log,
    read_queue,
    record,
    replay,
    status,
    take_in,
    write_queue,
)
from flows.pipeline.stages import query
from tests.pools import ingest
from wbc_model.cells.pools import Pools, update
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.params import Params, read_params
from wbc_model.rendering.cells import render_cells

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


@pytest.mark.parametrize("whole_lines", [0, 1])
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


def test_labels_of_a_later_version_are_replayed_only_when_somebody_asks(workspace: Path) -> None:
    """After `git checkout` of an old tag the pools are old, and a log that this tag does not know lies there still."""
    before = {path: path.read_bytes() for path in (workspace / "data/pools").iterdir()}
    given = rows(workspace, ["Basophil", "Monocyte"])
    record(workspace, given, 2)
    record(workspace, given.head(1).assign(label="Neutrophil", labelled_at="2026-11-23T08:00:00Z"), 4)
    expected = Pools.read(workspace / "data/pools").version()
    for path, content in before.items():
        path.write_bytes(content)
    log = (workspace / "data/labels.csv").read_bytes()
    sha256 = read_queue(workspace)["sha256"].iloc[4]
    for call in (
        lambda: record(workspace, given.head(1).assign(sha256=sha256), 1),
        lambda: check_replayed(workspace),
    ):
        with pytest.raises(WbcError, match=r"2 labels that the pools do not.*`wbc labels replay`"):
            call()
    assert {path: path.read_bytes() for path in before} == before
    assert (workspace / "data/labels.csv").read_bytes() == log
    assert replay(workspace) == 2
    assert Pools.read(workspace / "data/pools").version() == expected
    assert replay(workspace) == 0


@pytest.mark.parametrize(("by", "label"), [("oracle", "Monocyte"), ("anna", "Basophil")])
def test_an_old_word_of_the_oracle_does_not_win_over_a_corrected_manifest(workspace: Path, by: str, label: str) -> None:
    """Pools that were made anew have the manifest's label, the log an earlier one. A person's word supersedes the manifest's."""
    before = {path: path.read_bytes() for path in (workspace / "data/pools").iterdir()}
    record(workspace, rows(workspace, ["Basophil"], by), 2)
    for path, content in before.items():
        path.write_bytes(content)
    [sha256] = rows(workspace, ["Monocyte"])["sha256"]
    manifests = rows(workspace, ["Monocyte"], "manifest")
    update(workspace / "data/pools", lambda pools: pools.label(manifests, 0))
    assert replay(workspace) == (by == "anna")
    check_replayed(workspace)
    assert Pools.read(workspace / "data/pools").cells({sha256})["label"].tolist() == [label]


@pytest.mark.parametrize("survives", range(4))
def test_log_and_pools_change_together_or_not_at_all(workspace: Path, survives: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    real, done = os.replace, 0

    def replace(source: str, target: str) -> None:
        nonlocal done
        if done == survives:
            raise Killed
        done += 1
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with contextlib.suppress(Killed):
        record(workspace, rows(workspace, ["Basophil", "Monocyte"]), 1)
    monkeypatch.undo()
    check_replayed(workspace)
    assert len(labelled(workspace)) == len(read_log(workspace)) == (0 if survives == 0 else 2)


def test_nothing_wrong_gets_into_the_log(workspace: Path) -> None:
    good = rows(workspace, ["Basophil"])
    for sha256, label in (("0" * 64, "Basophil"), (good["sha256"].iloc[0], "Blast")):
        with pytest.raises(WbcError):
            record(workspace, pd.concat([good, good.assign(sha256=sha256, label=label)]), 1)
    assert read_log(workspace).empty
    assert labelled(workspace) == {}


def test_a_later_label_of_a_person_supersedes_and_the_old_one_stays_in_the_history(workspace: Path) -> None:
    first = rows(workspace, ["Basophil"])
    sha256 = first["sha256"].iloc[0]
    version = take_in(workspace, first, 1).pools
    taken = take_in(
        workspace, first.assign(label="Monocyte", labelled_by="ben", labelled_at="2026-11-23T08:00:00Z", why="band"), 2
    )
    assert (taken.new, taken.corrected, taken.refused) == (1, 1, [])
    assert version != taken.pools == Pools.read(workspace / "data/pools").version()
    assert labelled(workspace) == {sha256: ("Monocyte", 1)}, "the round in which it was asked for stays"
    log = read_log(workspace)
    assert log[["label", "labelled_by", "cycle", "why"]].to_numpy().tolist() == [
        ["Basophil", "anna", "1", ""],
        ["Monocyte", "ben", "2", "band"],
    ]
    # What was said before is not said anew by coming again: nor is what was said earlier, nor what the oracle says.
    again = take_in(workspace, first, 3)
    untimed = take_in(workspace, first.assign(labelled_at=""), 3)
    late = take_in(workspace, first.assign(labelled_by="cem", labelled_at="2026-11-22T12:00:00Z"), 3)
    for one in (again, untimed, late):
        assert one.new == 0
        assert re.search(r"(superseded|older than).*Monocyte by ben.*`wbc labels decide", one.refused[0].reason)
    assert take_in(workspace, first.assign(labelled_by="oracle", labelled_at=""), 3).known == 1
    assert labelled(workspace) == {sha256: ("Monocyte", 1)}
    assert take_in(workspace, first.assign(labelled_by="cem", labelled_at=""), 3).corrected == 1, "somebody says so now"


def test_a_log_of_before_is_read_and_grows(workspace: Path) -> None:
    record(workspace, rows(workspace, ["Basophil", "Monocyte"]), 1)
    log = workspace / "data/labels.csv"
    old = "".join(line.rsplit(",", 1)[0] + "\n" for line in log.read_text().splitlines())
    assert old.splitlines()[0] == "sha256,label,labelled_by,labelled_at,cycle"
    log.write_text(old)
    assert len(read_log(workspace)) == 2
    record(workspace, rows(workspace, ["Neutrophil"]).assign(labelled_by="ben", labelled_at="2026-11-23T08:00:00Z"), 1)
    assert log.read_text().splitlines()[:3] == [
        f"{line}{',why' if not number else ','}" for number, line in enumerate(old.splitlines())
    ]
    assert read_log(workspace)["label"].tolist() == ["Basophil", "Monocyte", "Neutrophil"]


def test_a_person_decides_on_any_cell_with_name_and_reason(workspace: Path, params: Params, tmp_path: Path) -> None:
    pools = Pools.read(workspace / "data/pools")
    test_cell = pools.frames["test"].iloc[0]
    other = "Monocyte" if test_cell["label"] != "Monocyte" else "Basophil"
    for by, why in (("", "seen again"), ("ada", ""), ("oracle", "seen again")):
        with pytest.raises(WbcError, match="name of the person"):
            decide(workspace, test_cell["path"], other, by, why, 1)
    with pytest.raises(WbcError, match="no cell of the pools"):
        decide(workspace, "nothing.png", other, "ada", "seen again", 1)
    with pytest.raises(WbcError, match=r"'zebra' is not one of.*; none of the five classes are Band"):
        decide(workspace, test_cell["path"], "zebra", "ada", "seen again", 1)
    result = decide(workspace, test_cell["sha256"][:8], f"{other}s", "ada", "seen again", 1)
    assert (result["new"], result["corrected"], result["held_out"]) == (1, 1, 1)
    after = Pools.read(workspace / "data/pools")
    now_there = after.frames["test"].set_index("sha256").loc[test_cell["sha256"]]
    assert (now_there["label"], now_there["labelled_by"]) == (other, "ada")
    assert after.truth("test") != pools.truth("test")
    assert after.truth("validation") == pools.truth("validation")
    # A manifest that disagrees with a person is named, listed, and settled by a person.
    report = ingest(tmp_path / "manifest.csv", workspace / "data", params)
    assert [(one.row, one.labelled_by, one.by_a_person) for one in report.conflicts] == [(test_cell["path"], "ada", True)]
    assert len(conflicts(workspace)) == status(workspace)["conflicts"] == 1
    assert decide_all(workspace, "pools", None, "ben", "ada is right", 1)["conflicts"] == 0
    assert Pools.read(workspace / "data/pools").frames["test"].set_index("sha256")["labelled_by"][test_cell["sha256"]] == "ben"
    again = ingest(tmp_path / "manifest.csv", workspace / "data", params)
    assert again.reasons == {"label_conflict": 1}
    assert (again.conflicts, conflicts(workspace)) == ([], []), "it was decided on"
    with pytest.raises(WbcError, match="no conflict waits"):
        decide_all(workspace, "manifest", None, "ben", "x", 1)


def test_a_conflict_is_one_with_the_pools_as_they_are(workspace: Path, params: Params, tmp_path: Path) -> None:
    table = pd.read_csv(tmp_path / "manifest.csv", dtype=str)
    cells = Pools.read(workspace / "data/pools").frames["test"].head(2)
    claimed = {path: next(name for name in CLASSES if name != label) for path, label in cells[["path", "label"]].to_numpy()}
    table.assign(label=table["path"].map(claimed).fillna(table["label"])).to_csv(tmp_path / "other.csv", index=False)
    ingest(tmp_path / "other.csv", workspace / "data", params)
    first, second = conflicts(workspace)
    third = next(name for name in CLASSES if name not in (second.label, second.other))
    rows = pd.DataFrame({"sha256": [first.sha256, second.sha256], "label": [first.other, third]})
    take_in(workspace, rows.assign(labelled_by="ada", labelled_at=""), 1)
    (left,) = conflicts(workspace)
    assert (left.sha256, left.label, left.labelled_by) == (second.sha256, third, "ada")
    assert decide_all(workspace, "pools", None, "ben", "ada is right", 1)["corrected"] == 0
    after = Pools.read(workspace / "data/pools").frames["test"].set_index("sha256")["label"]
    assert (after[first.sha256], after[second.sha256]) == (first.other, third)


def test_a_shifted_first_manifest_is_put_right_by_the_right_one(workspace: Path, params: Params, tmp_path: Path) -> None:
    table = pd.read_csv(tmp_path / "manifest.csv", dtype=str)
    right = table.assign(label=table["label"].to_numpy()[[*range(1, len(table)), 0]])
    right.to_csv(tmp_path / "right.csv", index=False)
    with pytest.raises(WbcError, match="30 of the 30 rows"):
        ingest(tmp_path / "right.csv", workspace / "data", params)
    ingest(tmp_path / "right.csv", workspace / "data", params, list_conflicts=True)
    result = decide_all(workspace, "manifest", "right", "ada", "the first was shifted by a row", 1)
    assert (result["new"], result["conflicts"]) == (30, 0)
    found = Pools.read(workspace / "data/pools").table().set_index("path")["label"]
    assert found.to_dict() == dict(right[["path", "label"]].to_numpy())
    assert set(read_log(workspace)["why"]) == {"the first was shifted by a row"}
    assert not ingest(tmp_path / "right.csv", workspace / "data", params).rejections


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
    assert set(table["path"]) == {one.name for one in (tmp_path / "cells").iterdir()}, "a path may name the class"
    asked = read_queue(workspace)
    assert not [path for path in asked["path"] if path in (tmp_path / "ask.csv").read_text()]
    export_queue(workspace, tmp_path / "open.csv", with_predictions=True)
    assert set(pd.read_csv(tmp_path / "open.csv")["path"]) == set(asked["path"])
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
        assert (set(task), set(task["data"])) == ({"data"}, {"image", "sha256"}), "nobody is told what the model thinks"
    export_queue(workspace, tmp_path / "open.json", with_predictions=True)
    for task in json.loads((tmp_path / "open.json").read_text()):
        assert task["predictions"][0]["result"][0]["value"]["choices"] == ["Monocyte"]
        assert task["data"]["reason"] == "unsure"
    config = (tmp_path / "tasks.xml").read_text()
    assert re.findall('Choice value="(.+)"', config) == [*CLASSES, *kinds(), "unsure"]

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
    (refused,) = import_labels(workspace, tmp_path / "torn.json", 1)["refused"]
    assert refused == {
        "place": "task 11",
        "sha256": tasks[4]["data"]["sha256"],
        "reason": "Basophil by label studio 7 and Monocyte by label studio 7 are given for this cell, "
        "and no time says which came last; agree on one first",
    }


def test_one_bad_task_of_label_studio_refuses_itself_and_no_other(workspace: Path, tmp_path: Path) -> None:
    sha256s = Pools.read(workspace / "data/pools").frames["unlabelled"]["sha256"].tolist()

    def choice(label: object, name: str = "label") -> dict[str, object]:
        return {"from_name": name, "to_name": "image", "type": "choices", "value": {"choices": [label]}}

    def task(number: int, annotations: object) -> dict[str, object]:
        return {"id": number, "data": {"sha256": sha256s[number]}, "annotations": annotations}

    good = {"completed_by": 7, "updated_at": "2026-11-22T10:00:00Z"}
    tasks: list[object] = [
        task(0, [{"result": [choice("good", "quality"), choice("seg")], **good}]),
        task(1, [{"result": [choice("good", "quality")], **good}]),
        task(2, [{"result": [choice("smudge cell")], **good}]),
        task(3, None),
        task(4, [{"result": None}]),
        task(5, [None]),
        task(6, [{"result": [{"from_name": "label", "value": None}]}]),
        {"id": 7, "data": None, "annotations": []},
        "no task",
        task(9, [{"result": [choice("LYM")], **good}]),
        task(10, [{"result": [choice("Monocyte")], "updated_at": "2999-01-01T00:00:00Z"}]),
        task(11, []),
    ]
    (tmp_path / "done.json").write_text(json.dumps(tasks), encoding="utf-8-sig")
    result = import_labels(workspace, tmp_path / "done.json", 1)
    assert result["new"] == 3
    assert [one["place"] for one in result["refused"]] == [*(f"task {n}" for n in range(1, 8)), "task 9"]
    reasons = " ".join(one["reason"] for one in result["refused"])
    assert "only in quality" in reasons
    assert "'smudge cell' is not one of" in reasons
    assert "nearest" not in reasons
    log = read_log(workspace).set_index("sha256")
    assert log["label"].to_dict() == {sha256s[0]: "Neutrophil", sha256s[9]: "Lymphocyte", sha256s[10]: "Monocyte"}
    assert log["labelled_at"][sha256s[10]] < "2100", "a clock that was ahead blocks no later label"


def test_who_and_when_survive_label_studios_csv(workspace: Path, tmp_path: Path) -> None:
    sha256s = Pools.read(workspace / "data/pools").frames["unlabelled"]["sha256"].tolist()
    two = json.dumps({"choices": ["Monocyte", "Basophil"]}).replace('"', '""')
    (tmp_path / "export.CSV").write_text(
        "annotation_id,annotator,created_at,id,label,lead_time,quality,sha256,updated_at\n"
        f"1,7,2026-11-22T09:00:00.1Z,1,Basophil,3.2,good,{sha256s[0]},2026-11-22T10:00:00.123456Z\n"
        f"2,ada@example.org,2026-11-22T09:00:00+02:00,2,Monocyte,3.2,,{sha256s[1]},\n"
        f'3,7,2026-11-22T09:00:00Z,3,"{two}",3.2,,{sha256s[2]},\n'
        f"4,7,yesterday,4,Monocyte,3.2,,{sha256s[3]},\n"
    )
    result = import_labels(workspace, tmp_path / "export.CSV", 1)
    assert [one["place"] for one in result["refused"]] == ["line 4", "line 5"]
    assert read_log(workspace)[["label", "labelled_by", "labelled_at"]].to_numpy().tolist() == [
        ["Basophil", "label studio 7", "2026-11-22T10:00:00Z"],
        ["Monocyte", "ada@example.org", "2026-11-22T07:00:00Z"],
    ]


@pytest.mark.parametrize(("separator", "encoding"), [(",", "utf-8-sig"), (";", "cp1252"), ("\t", "utf-16")])
def test_a_sheet_as_spreadsheets_save_it(workspace: Path, tmp_path: Path, separator: str, encoding: str) -> None:
    sha256s = read_queue(workspace)["sha256"].tolist()
    lines = [["sha256", "label", "labelled_by", ""], [sha256s[0], "SEG", "ada", ""], [sha256s[1], "unsure", "ada", ""]]
    lines += [["", "", "", ""], [sha256s[2], "", "", ""], ["x", "Monocyte", "ada", "", "more"], [sha256s[3], "LYMs", "", ""]]
    (tmp_path / "given.tsv").write_text("\r\n".join(separator.join(line) for line in lines), encoding=encoding)
    result = import_labels(workspace, tmp_path / "given.tsv", 1, "ben")
    assert (result["new"], result["unsure"], [one["place"] for one in result["refused"]]) == (2, 1, ["line 6"])
    assert read_log(workspace)[["label", "labelled_by"]].to_numpy().tolist() == [["Neutrophil", "ada"], ["Lymphocyte", "ben"]]


def test_what_somebody_filled_in_is_never_written_over(workspace: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "ask.csv"
    export_queue(workspace, sheet, tmp_path / "cells")
    export_queue(workspace, sheet, tmp_path / "cells")  # nobody has touched them
    assert "Monocyte" not in sheet.read_text(), "nobody is told what the model thinks"
    filled = sheet.read_text().replace(",1,,", ",1,Basophil,ada", 1)
    sheet.write_text(filled)
    with pytest.raises(WbcError, match=r"ask\.csv was not written here, or was changed since"):
        export_queue(workspace, sheet)
    assert sheet.read_text() == filled
    assert import_labels(workspace, sheet, 1)["new"] == 1
    export_queue(workspace, tmp_path / "tasks.json")
    (tmp_path / "tasks.xml").write_text("<View>my own</View>")
    record(workspace, rows(workspace, ["Basophil", "Monocyte"]), 1)
    tasks = (tmp_path / "tasks.json").read_bytes()
    with pytest.raises(WbcError, match=r"tasks\.xml"):
        export_queue(workspace, tmp_path / "tasks.json")
    assert (tmp_path / "tasks.json").read_bytes() == tasks, "all of them or none"
    (tmp_path / "notes.csv").write_text("mine\n")
    with pytest.raises(WbcError, match=r"notes\.csv"):
        export_queue(workspace, tmp_path / "notes.csv")


def test_a_queue_that_was_filled_in_is_imported_counted_and_kept(workspace: Path) -> None:
    path = workspace / "data/queue.csv"
    queue = read_queue(workspace)
    write_queue(workspace, queue)
    queue.assign(label=["Basophil", "Monocyte", "", "", ""], labelled_by="ada").to_csv(
        path, index=False, sep=";", encoding="utf-8-sig"
    )
    assert import_labels(workspace, path, 1)["new"] == 2
    assert status(workspace)["awaited"] == len(awaited(workspace)) == 3
    filled = path.read_bytes()
    kept = write_queue(workspace, queue.head(1))
    assert kept is not None
    assert kept.read_bytes() == filled
    assert len(read_queue(workspace)) == 1
    assert write_queue(workspace, queue.head(2)) is None, "what nobody touched is replaced"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "sha256;label;label\nabc;Monocyte;\n", "'label' is there twice"),
        ("a.csv", "cell,label\nabc,Monocyte\n", "needs the columns sha256 and label"),
        ("a.json", "{", "nor JSON"),
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
    export_queue(root, out, with_predictions=True)
    tasks = json.loads(out.read_text())
    assert all("predictions" not in task and task["data"]["reason"].startswith("coloured unlike") for task in tasks)
    answers = tmp_path / "answers.csv"
    queue.assign(label=labels)[["sha256", "label"]].to_csv(answers, index=False)
    assert import_labels(root, answers, 0, "anna")["labels"] == 25
    assert Pools.read(root / "data/pools").counts()["labelled"] == 25
