"""Studies that a grid cannot say: each row is made once, a kill loses nothing, and no file of somebody's is written over."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from flows.pipeline.stages import train
from flows.studies import benchmark
from flows.studies.results import Rows, claim, publishing
from flows.workspace import init_workspace, set_params
from tests.code.test_benchmark import TINY, records, workspace
from tests.code.test_onboard import SMALL
from tests.pools import ingest
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.params import read_params
from wbc_model.rendering.cells import write_cells
from wbc_model.studies.records import Provenance, Records

ROOT = Path(__file__).parents[2]
CODE = Provenance("train", "query", {"commit": "c"})


def rows(folder: Path, code: Provenance = CODE) -> Rows:
    return Rows("s", folder / "out", ("arm", "seed"), Records(folder / "records.jsonl"), code)


def test_a_row_is_made_once_for_what_it_depends_on(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str) -> dict[str, Any]:
        made.append(name)
        return {"accuracy": 0.5}

    def once(which: Rows, seed: int, depends_on: Any) -> Any:
        return which.once({"arm": "a", "seed": seed}, depends_on, lambda: make(f"{seed} {depends_on}"))

    for _ in range(2):
        assert once(rows(tmp_path), 0, ["data"]) == {"accuracy": 0.5}
    once(rows(tmp_path), 1, ["data"])
    once(rows(tmp_path), 0, ["other data"])
    assert made == ["0 ['data']", "1 ['data']", "0 ['other data']"]
    once(rows(tmp_path, Provenance("different", "query", {})), 0, ["data"])
    assert len(made) == 4
    assert [json.loads(line)["kind"] for line in (tmp_path / "records.jsonl").read_text().splitlines()] == ["row"] * 4


def test_a_row_that_fails_is_not_recorded_and_those_before_are(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise KeyboardInterrupt

    rows(tmp_path).once({"arm": "a", "seed": 0}, [], lambda: {"accuracy": 0.5})
    with pytest.raises(KeyboardInterrupt):
        rows(tmp_path).once({"arm": "a", "seed": 1}, [], fail)
    assert rows(tmp_path).once({"arm": "a", "seed": 0}, [], fail) == {"accuracy": 0.5}
    assert rows(tmp_path).once({"arm": "a", "seed": 1}, [], lambda: {"accuracy": 0.6}) == {"accuracy": 0.6}


def test_new_rows_take_the_place_of_those_of_the_same_key(tmp_path: Path) -> None:
    new = [{"arm": "none", "seed": 0, "accuracy": 0.7}]
    assert rows(tmp_path).table(new)["accuracy"].tolist() == [0.7]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/runs.csv").write_text("arm,seed,accuracy\nnone,0,0.1\nnone,1,0.2\nfull,0,\n")
    table = rows(tmp_path).table(new)
    assert table[["arm", "seed"]].to_numpy().tolist() == [["none", 1], ["full", 0], ["none", 0]]
    assert table["accuracy"].isna().tolist() == [False, True, False]


def test_files_that_somebody_changed_are_left_and_none_is_written(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "site")
    out = folder / "out"

    def publish(text: str) -> None:
        with publishing(out, folder) as built:
            (built / "runs.csv").write_text(text)
            (built / "README.md").write_text(text)

    for text in ("one", "two"):  # its own files a study may write again
        publish(text)
    (out / "README.md").write_text("my own words")
    with pytest.raises(WbcError, match=r"README\.md was not written here, or was changed since"):
        claim([out / "README.md"], folder)
    with pytest.raises(WbcError, match=r"README\.md"):
        publish("three")
    assert ((out / "README.md").read_text(), (out / "runs.csv").read_text()) == ("my own words", "two")


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_ours_can_be_planned(path: Path) -> None:
    planned = benchmark.plan(ROOT, path)
    assert planned["study"] == path.stem
    assert planned["trainings"] > 0
    assert benchmark.plan_text(planned).startswith(f"{path.stem}: ")


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_study", ROOT / f"studies/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_whole_loop_is_run_once_per_arm_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, folder, runs = loaded("home"), workspace(tmp_path / "site"), []

    def run(data: Path, arm: str, seed: int, preset: str, until: str) -> dict[str, Any]:
        runs.append((arm, seed))
        scores = {"accuracy": 0.9, "macro_f1": 0.8}
        recalls = {f"recall_{name}": 0.7 for name in CLASSES}
        cycles = [{"cycle": at, "labels": 10 * (at + 1), "seconds": 1.0, **scores} for at in range(2)]
        return {"run": {"labels": 20, "minutes": 1.0, **scores, **recalls}, "cycles": cycles}

    monkeypatch.setattr(study, "run", run)
    monkeypatch.chdir(folder)
    for seeds in ("1", "2"):
        monkeypatch.setattr(sys, "argv", ["home.py", "cells/manifest.csv", "--out", "out", "--seeds", seeds])
        study.main()
    assert runs == [("full", 0), ("plain", 0), ("full", 1), ("plain", 1)]
    assert len(pd.read_csv(folder / "out/runs.csv")) == 4
    assert len(pd.read_csv(folder / "out/cycles.csv")) == 8
    monkeypatch.setattr(study, "code_of", {"flows.retraining.flow:retraining": "changed"}.get)
    study.main()
    assert len(runs) == 8, "what the loop decides by is no part of the learner"
    assert (folder / "out/learning-curves.png").stat().st_size > 1000
    (folder / "out/cycles.csv").write_text("mine")
    with pytest.raises(SystemExit, match=r"cycles\.csv was not written here, or was changed since"):
        study.main()


QUICK = TINY["base"] | {"few_labels.below": 0, "package.int8": False} | {f"gate.recall_floor.{name}": 0.0 for name in CLASSES}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_loop_is_really_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workspaces from nothing to their last model, by the commands that a user types."""
    study, folder = loaded("home"), workspace(tmp_path / "site")
    monkeypatch.setattr(study, "ARMS", {arm: {**QUICK, **changes} for arm, changes in study.ARMS.items()})
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["home.py", "cells/manifest.csv", "--out", "out", "--seeds", "1", "--until", "0.4"])
    study.main()
    table, cycles = pd.read_csv(folder / "out/runs.csv"), pd.read_csv(folder / "out/cycles.csv")
    assert table["arm"].tolist() == ["full", "plain"]
    assert table["labels"].between(28, 32).all(), "0.4 of the cells that can be used, of 80"
    assert (cycles.groupby("arm").size() > 1).all()
    assert table["accuracy"].between(0, 1).all()
    assert f"| full | 1 | {table['labels'][0]} | " in (folder / "out/README.md").read_text()
    assert (folder / "out/learning-curves.png").stat().st_size > 1000
    before = (folder / "out/runs.csv").read_text()
    monkeypatch.setattr(study, "wbc", None)  # nothing is left to do
    study.main()
    assert (folder / "out/runs.csv").read_text() == before


def test_an_onboarding_is_made_again_where_its_code_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, site = loaded("onboard"), write_cells(tmp_path / "clinic", 5, seed=2)
    init_workspace(tmp_path / "home")
    before = study.depends_on(tmp_path / "home", site, "asked")
    monkeypatch.setattr(study, "code_of", {"flows.sites.onboard:onboard": "changed"}.get)
    assert study.depends_on(tmp_path / "home", site, "asked") == ["changed", *before[1:]]
    assert before[0] != "changed"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_new_site_is_really_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, home = loaded("onboard"), tmp_path / "home"
    init_workspace(home)
    set_params(home, SMALL)
    ingest(write_cells(tmp_path / "cells", 150, seed=1), home / "data", read_params(home / "params.yaml"))
    train(home)
    write_cells(tmp_path / "clinic", 40, seed=2)
    monkeypatch.chdir(home)
    arguments = ["onboard.py", ".", "../clinic/manifest.csv", "--out", "out", "--seeds", "1", "--labels", "8"]
    monkeypatch.setattr(sys, "argv", arguments)
    study.main()
    table = pd.read_csv(home / "out/runs.csv")
    assert table["arm"].tolist() == ["asked", "random"]
    assert set(table["champion"]) == {study.version_of(home)}
    places = ("before_home", "before_site", "statistics_site", "after_home", "after_site")
    scores = table[[f"{place}_balanced" for place in places]]
    assert scores.map(lambda score: 0 <= score <= 1).all(axis=None)
    assert "| manifest | 8 | random | 1 | " in (home / "out/README.md").read_text()
    assert not (home / "sites").exists(), "the workspace is as it was"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_papers_study_runs_with_all_of_its_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, study = workspace(tmp_path / "site"), yaml.safe_load((ROOT / "studies/paper.yaml").read_text())
    quick = {name: value for name, value in TINY["base"].items() if name != "model.attention"}
    small = {"data": TINY["data"], "seeds": 1, "budgets": [0.2, 0.4], "base": study["base"] | quick}
    (folder / "paper.yaml").write_text(yaml.safe_dump(study | small, sort_keys=False))
    monkeypatch.chdir(folder)
    answer = CliRunner().invoke(app, ["benchmark", "paper.yaml", "--json"], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    results = pd.read_csv(folder / "studies/paper/results.csv")
    assert results[["arm", "labels"]].to_numpy().tolist() == [
        [arm, labels] for arm in ("plain", "paper", "defaults") for labels in (16, 32)
    ]
    assert {"report.md", "history.csv", "curves-home.png"} <= {path.name for path in (folder / "studies/paper").iterdir()}


def script(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    names = {name: value for name, value in os.environ.items() if not name.startswith(("WBC_", "MLFLOW_"))}
    line = [sys.executable, str(ROOT / "studies/pretraining.py"), "--study", "tiny.yaml", "--out", "out", *arguments]
    values = names | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(line, cwd=folder, env=values, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_script_that_was_killed_goes_on(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "site", also_test={}, budgets=[10, 20], arms={}, reference="vicreg")
    changes = {"base": {**TINY["base"], "train.pretraining_updates": 4}, "keep_history": False}
    arms = {name: {"train.pretraining": name} for name in ("none", "simsiam", "vicreg")}
    study = yaml.safe_load((folder / "tiny.yaml").read_text())
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**study, **changes, "arms": arms}, sort_keys=False))
    process, deadline = script(folder), time.monotonic() + 240
    while not records(folder):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = records(folder)
    assert 1 <= len(before) < 3
    for _ in range(2):  # gone on with, and nothing left to do
        again = script(folder)
        _, said = again.communicate(timeout=240)
        assert again.returncode == 0, said
        assert records(folder)[: len(before)] == before
        assert len(records(folder)) == 3
    table = pd.read_csv(folder / "out/runs.csv", keep_default_na=False)
    assert table["method"].tolist() == ["none", "simsiam", "vicreg"]
    assert table["f1_10"].between(0, 1).all()
    (folder / "out/README.md").write_text("my own words")
    refused = script(folder)
    _, said = refused.communicate(timeout=240)
    assert refused.returncode == 1
    assert said.splitlines()[-1].startswith(str(folder / "out/README.md") if said.startswith("/") else "out/README.md")
