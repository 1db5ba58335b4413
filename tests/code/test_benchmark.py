"""`wbc benchmark` as a user runs it: a tiny study on rendered cells, whole, and killed and gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.studies import benchmark, provenance
from flows.studies import data as study_data
from flows.studies.data import Request, find_data, prepare
from flows.studies.tracking import StudyTracking
from flows.workspace import set_params
from tests.dask_processes import dask_processes
from wbc_model.code_version import modules_behind
from wbc_model.core.errors import WbcError
from wbc_model.rendering.cells import write_cells
from wbc_model.studies.records import Provenance
from wbc_model.studies.study import read_study

pytestmark = pytest.mark.usefixtures("narrow")
ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "name": "tiny",
    "description": "Two arms on rendered cells.",
    "data": "cells/manifest.csv",
    "preset": "small",
    "seeds": 2,
    "budgets": [0.1, 0.3],
    "also_test": {"away": "away/manifest.csv"},
    "base": {
        "data.rendered_cells": 50,
        "presets.small.image_size": 32,
        "presets.small.batch_size": 8,
        "presets.small.updates": 4,
        "presets.small.precision": "32-true",
        "train.eval_every": 2,
        "model.attention": "none",
    },
    "arms": {"random": {"acquisition.strategy": "random"}, "learning_loss": {"acquisition.strategy": "learning_loss"}},
    "reference": "random",
    "keep_history": True,
}
TRAININGS = 2 * (1 + 2)  # each seed: one that both arms share, then one each


def workspace(folder: Path, **changes: Any) -> Path:
    """The two files that make a folder a workspace, a study, its cells with a split, and cells of another site."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    write_cells(folder / "away", 20, seed=9, size=64)
    manifest = write_cells(folder / "cells", 160, seed=1, size=64)
    table = pd.read_csv(manifest).drop(columns="group")
    table["split"] = [("train", "train", "val", "test")[i % 4] for i in range(len(table))]
    table.to_csv(manifest, index=False)
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return folder


def command(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    names = {name: value for name, value in os.environ.items() if not name.startswith(("WBC_", "MLFLOW_"))}
    line = [sys.executable, "-m", "flows.cli", "benchmark", "tiny.yaml", *arguments]
    values = names | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(line, cwd=folder, env=values, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wbc(folder: Path, *arguments: str) -> Any:
    """The command's answer, without a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        answer = CliRunner().invoke(app, ["benchmark", "tiny.yaml", *arguments, "--json"], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


def of_a_process(folder: Path) -> Any:
    """The same, of a process of its own, whose network has its whole width."""
    process = command(folder, "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


def records(folder: Path) -> list[dict[str, Any]]:
    path = folder / ".wbc/studies/records.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # what follows the last line end is torn
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = workspace(tmp_path_factory.mktemp("study") / "whole")
    return folder, wbc(folder)


def test_a_study_leaves_rows_report_and_pictures(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, outcome = whole
    assert (outcome["trained"], outcome["reused"]) == (TRAININGS, 0)
    assert all(Path(name).stat().st_size for name in outcome["wrote"])
    table = pd.read_csv(folder / "studies/tiny/results.csv")
    assert len(table) == 2 * 2 * 2 * 2  # arms, seeds, budgets, evaluation sets
    assert table[table["test"] == "away"]["n"].unique().tolist() == [20]
    first = table[table["budget"] == 0.1].groupby(["seed", "test"])["accuracy"].nunique()
    assert (first == 1).all()  # the arms begin with the same labels and so with the same model
    assert table["ranking_accuracy"].between(0, 1).all()
    assert table["commit"].str.len().gt(7).all() or table["commit"].isna().all()
    parquet = pd.read_parquet(folder / "studies/tiny/results.parquet")
    pd.testing.assert_frame_equal(parquet, table, check_dtype=False)
    history = pd.read_csv(folder / "studies/tiny/history.csv")
    assert history.groupby(["arm", "seed", "labels"])["update"].apply(list).map(lambda x: x == [2, 4]).all()
    report = (folder / "studies/tiny/report.md").read_text()
    assert "Another site: away (20 cells)" in report


def test_labels_of_the_next_budget_were_asked_for(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    done = records(folder)
    asked = [record for record in done if record["kind"] == "query"]
    table = pd.read_csv(folder / "studies/tiny/results.csv")
    low, high = sorted(set(table["labels"]))
    assert len(asked) == 2 * 2
    assert all(len(set(record["sha256s"])) == high - low for record in asked)
    assert len({json.dumps(record["sha256s"]) for record in asked}) == 4


def test_mlflow_has_a_run_for_each_arm_and_seed(whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = whole
    from mlflow import MlflowClient

    monkeypatch.chdir(folder)  # MLflow's files are named relative to the workspace
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("wbc-studies")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(parents[0].info.run_id)} >= {"report.md", "results.csv", "tiny.yaml"}
    children = [run for run in runs if run not in parents]
    assert {(run.data.params["arm"], run.data.params["seed"]) for run in children} == {
        (arm, seed) for arm in ("random", "learning_loss") for seed in "01"
    }
    table = pd.read_csv(folder / "studies/tiny/results.csv")
    for run in children:
        logged = client.get_metric_history(run.info.run_id, "home_macro_f1")
        rows = table[(table["arm"] == run.data.params["arm"]) & (table["seed"] == int(run.data.params["seed"]))]
        rows = rows[rows["test"] == "home"]
        assert {(point.step, point.value) for point in logged} == set(zip(rows["labels"], rows["macro_f1"], strict=True))


def test_files_go_to_the_workspace_from_wherever_the_command_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, below = workspace(tmp_path / "site"), tmp_path / "site/below"
    below.mkdir()
    monkeypatch.chdir(below)
    study = read_study(folder / "tiny.yaml", folder / "params.yaml")
    (folder / "report.md").write_text("a report")
    tracking = StudyTracking.open(folder, study, Provenance("train", "query", {}))
    tracking.end(folder, ["report.md"])
    assert sorted(path.name for path in (folder / "mlartifacts").rglob("*") if path.is_file()) == ["report.md", "tiny.yaml"]
    assert list(below.iterdir()) == []


@pytest.mark.slow
def test_killed_and_gone_on_with_it_ends_the_same(tmp_path: Path) -> None:
    whole, folder = workspace(tmp_path / "whole"), tmp_path / "killed"
    of_a_process(whole)
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "studies")
    (folder / ".wbc/studies/records.jsonl").unlink()
    process = command(folder)
    deadline = time.monotonic() + 240
    while sum(record["kind"] == "training" for record in records(folder)) < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = records(folder)
    outcome = of_a_process(folder)
    after = records(folder)
    assert after[: len(before)] == before
    assert len({record["key"] for record in after}) == len(after)
    known = sum(record["kind"] == "training" for record in before)
    assert TRAININGS - known <= outcome["trained"] <= TRAININGS - known + 1
    for name in ("results.csv", "history.csv"):
        left, right = (pd.read_csv(place / "studies/tiny" / name) for place in (whole, folder))
        times = [column for column in left.columns if column.endswith("_seconds")]
        pd.testing.assert_frame_equal(left.drop(columns=times), right.drop(columns=times))


@pytest.mark.slow
def test_seeds_trained_by_a_cluster_are_those_of_one_process(tmp_path: Path) -> None:
    alone, folder = workspace(tmp_path / "alone"), workspace(tmp_path / "spread")
    of_a_process(alone)
    with dask_processes(tmp_path / "dask") as address:
        set_params(folder, {"retrain.runner": address})
        outcome = of_a_process(folder)
    assert (outcome["trained"], outcome["reused"]) == (0, TRAININGS), "the processes of the cluster trained them"
    for name in ("results.csv", "history.csv"):
        left, right = (pd.read_csv(place / "studies/tiny" / name) for place in (alone, folder))
        times = [column for column in left.columns if column.endswith("_seconds")]
        pd.testing.assert_frame_equal(left.drop(columns=times), right.drop(columns=times))


def test_nothing_is_left_to_do_and_the_report_can_be_written_alone(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    text = (folder / "studies/tiny/report.md").read_text()
    (folder / "studies/tiny/report.md").unlink()
    outcome = wbc(folder, "--report")
    assert outcome["report"][0] == "report.md"
    assert (folder / "studies/tiny/report.md").read_text() == text
    assert [row["arm"] for row in outcome["summary"]] == ["random", "learning_loss"]


# --- quick ones, in this process --------------------------------------------------------------------------------------------


def test_the_plan_reads_no_data(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", data="nowhere.csv")
    planned = benchmark.plan(folder, folder / "tiny.yaml")
    assert planned["trainings"] == TRAININGS
    assert planned["updates"] == 4
    assert planned["grid_cells"] == 8
    text = benchmark.plan_text(planned)
    assert "2 arms x 2 seeds x 2 budgets" in text
    assert "  random (reference):  acquisition.strategy=random" in text.splitlines()
    assert "labels: 10 %, 30 % of the training cells" in text
    assert "  Two arms on rendered cells." in text


def test_where_data_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("real", "beside", "given"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "m.csv").write_text("path,label\n")
    study = tmp_path / "beside/s.yaml"
    monkeypatch.delenv("WBC_REAL_DATA", raising=False)
    assert find_data("home", "m.csv", Request(study)) == tmp_path / "beside/m.csv"
    monkeypatch.setenv("WBC_REAL_DATA", str(tmp_path / "real"))
    assert find_data("home", "m.csv", Request(study)) == tmp_path / "real/m.csv"
    assert find_data("home", "m.csv", Request(study, data=tmp_path / "given")) == tmp_path / "given/m.csv"
    other = tmp_path / "given/m.csv"
    assert find_data("home", "x.csv", Request(study, data=other)) == other
    assert find_data("away", "m.csv", Request(study, data=other)) == other
    assert find_data("home", "rendered", Request(study)) is None
    with pytest.raises(WbcError, match=r"none\.csv does not exist: name its folder with --data"):
        find_data("home", "none.csv", Request(study))


def test_the_code_of_a_result_is_what_its_numbers_come_from() -> None:
    names = ("fit", "evaluate", "ask", "untrained")
    codes = {name: provenance.code_of(f"wbc_model.studies.learner:{name}") for name in names}
    assert len(set(codes.values())) == len(names)
    learner = {name.removeprefix("wbc_model.") for name in modules_behind("wbc_model.studies.learner:fit")}
    assert {
        "training.train",
        "training.augment",
        "network.resnet",
        "core.images",
        "network.lossnet",
        "training.hard_samples",
    } <= learner
    numberless = {"studies.report", "studies.study", "studies.records", "evaluation.plots", "cells.raabin", "cells.ingest"}
    assert all((ROOT / f"wbc_model/{name.replace('.', '/')}.py").is_file() for name in numberless)
    assert not numberless & learner


def test_seeds_are_shared_out_over_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    codes = iter([0, 0, 0, 3])

    def begin(line: list[str], **named: Any) -> Any:
        assert "WBC_FLOW" in named["env"]  # a worker ends with the process that started it
        started.append(line)
        return SimpleNamespace(wait=lambda: next(codes))

    monkeypatch.setattr(benchmark.subprocess, "Popen", begin)
    request = Request(tmp_path / "s.yaml", data=tmp_path, jobs=2)
    benchmark._share_out(request, [0, 1, 2, 5], tmp_path)
    assert [line[-1] for line in started] == ["0,2", "1,5"]
    assert all("--worker" in line and str(tmp_path) in line for line in started)
    with pytest.raises(WbcError, match="the seeds 1, 5 ended early"):
        benchmark._share_out(request, [0, 1, 2, 5], tmp_path)


def without_checks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The data checks replaced by a note of the folders that they were to look at."""
    checked: list[Path] = []

    def validate(folder: Path, params: Any) -> Any:
        checked.append(folder)
        return SimpleNamespace(pools={"test": 1}, usable={"test": 1})

    monkeypatch.setattr("flows.pipeline.checks.validate", validate)
    return checked


def test_without_a_split_each_seed_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = workspace(tmp_path / "w", also_test={})
    manifest = folder / "cells/manifest.csv"
    pd.read_csv(manifest).drop(columns="split").to_csv(manifest, index=False)
    study = read_study(folder / "tiny.yaml", folder / "params.yaml")
    checked = without_checks(monkeypatch)
    seeds = [prepare(study, {"home": manifest}, tmp_path / "cache", seed, lambda line: None) for seed in (0, 1, 0)]
    assert len(checked) == 2
    assert seeds[0].version == seeds[2].version != seeds[1].version
    for data in seeds:
        parts = [data.pool, data.validation, data.tests["home"]]
        cells = [set(part.frame["sha256"]) for part in parts]
        assert sum(map(len, cells)) == len(set.union(*cells)) == 160


def test_rendered_cells_are_drawn_where_the_study_asks_for_them(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", data="rendered")
    study = read_study(folder / "tiny.yaml", folder / "params.yaml")
    facts = study_data._fill(tmp_path / "data", None, study.base, 0, check=False)
    assert facts["pools"] == {"labelled": 50, "unlabelled": 0, "validation": 0, "test": 0}


def test_a_manifest_s_own_split_is_kept_for_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that the checks take out of use, and cells of another site that were trained on, are in no set."""
    folder = workspace(tmp_path / "w")
    manifest = folder / "cells/manifest.csv"
    table = pd.read_csv(manifest)
    home = table[table["split"] == "train"].iloc[0]
    away = folder / "away"
    shutil.copy(folder / "cells" / home["path"], away / "leak.png")
    Image.new("RGB", (64, 64), (9, 9, 9)).save(away / "other.png")
    lines = (away / "manifest.csv").read_text() + f"leak.png,{home['label']},\nother.png,Monocyte,\n"
    (away / "manifest.csv").write_text(lines)
    study = read_study(folder / "tiny.yaml", folder / "params.yaml")
    sources = {"home": manifest, "away": away / "manifest.csv"}
    checked = without_checks(monkeypatch)
    first, second = (prepare(study, sources, tmp_path / "cache", seed, lambda line: None) for seed in (0, 1))
    assert first.version == second.version
    assert len(checked) == 1
    assert len(first.pool.frame) == 80
    assert len(first.validation.frame) == len(first.tests["home"].frame) == 40
    assert len(first.tests["away"].frame) == 21  # 20 drawn cells and the grey one, without the one that is trained on
    quarantined = first.pool.frame["sha256"][0]
    path = checked[0] / "data/quarantine.csv"
    path.write_text(path.read_text() + f"x.png,{quarantined},blank,\n")
    third = prepare(study, sources, tmp_path / "cache", 0, lambda line: None)
    assert quarantined not in set(third.pool.frame["sha256"])
    assert third.version != first.version
