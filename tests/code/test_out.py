"""What goes to a place that a person named, or may have edited, is never written over what is not the command's own."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.exchange import handed_out
from flows.exchange.handed_out import hand_out, is_ours
from flows.pipeline.stages import evaluate_model
from flows.studies import benchmark
from flows.studies.data import Request
from tests.code.test_benchmark import workspace as study_workspace
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import Architecture, ModelCard, Normalisation
from wbc_model.evaluation.evaluate import frame_metrics
from wbc_model.network.card_page import write_card


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A card, and an evaluation of ten cells in the place of one that takes a network."""
    mean = (0.5, 0.5, 0.5)
    architecture = Architecture(attention="none", lossnet=False)
    card = ModelCard(version="one", input_size=32, normalisation=Normalisation(mean=mean, std=mean), architecture=architecture)
    (tmp_path / "m").mkdir()
    write_card(tmp_path / "m", card)
    (tmp_path / "cells.csv").write_text("path,label\n")
    labels = [CLASSES[at % 5] for at in range(10)]
    frame = pd.DataFrame({"path": "x.png", "label": labels, "predicted": labels[:7] + [CLASSES[0]] * 3})
    frame[[f"p_{name}" for name in CLASSES]] = np.full((10, 5), 0.2)
    metrics = {**frame_metrics(frame), "split": "all", "rejected": []}
    monkeypatch.setattr("wbc_model.evaluation.evaluate.evaluate_data", lambda *arguments: (metrics, frame))
    monkeypatch.setattr("flows.pipeline.stages.digests", lambda frame, root: pd.DataFrame({"sha256": []}, dtype=str))
    return tmp_path / "m"


@pytest.mark.parametrize("inside", [False, True])
def test_plots_are_written_again_but_not_over_what_somebody_changed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    for name in ("params.yaml", "dvc.yaml") if inside else ():
        (tmp_path / name).write_text((Path(__file__).parents[2] / name).read_text())
    monkeypatch.chdir(tmp_path)
    plots = tmp_path / "plots-here"
    for _ in range(2):
        evaluate_model(model, tmp_path / "cells.csv", plots)
    assert sorted(path.name for path in plots.iterdir()) == ["confusion.png", "reliability.png"]
    (plots / "confusion.png").write_bytes(b"mine")
    (plots / "reliability.png").unlink()
    with pytest.raises(WbcError, match=r"confusion\.png .*left as it is") as caught:
        evaluate_model(model, tmp_path / "cells.csv", plots)
    assert "\n" not in str(caught.value)
    assert (plots / "confusion.png").read_bytes() == b"mine"
    assert not (plots / "reliability.png").exists(), "all of them or none"


def test_a_study_is_not_begun_where_its_files_would_cover_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study_workspace(tmp_path / "site")
    out = folder / "studies/tiny"
    out.mkdir(parents=True)
    (out / "report.md").write_text("my own words\n")
    (out / "notes.txt").write_text("nothing of the study's\n")

    def started(*arguments: Any) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(benchmark, "prepare", started)
    with pytest.raises(WbcError, match=r"report\.md was not written here, or was changed since: it is left as it is") as caught:
        benchmark.benchmark(folder, Request(folder / "tiny.yaml"), lambda line: None)
    assert "\n" not in str(caught.value)
    assert (out / "report.md").read_text() == "my own words\n"
    (out / "report.md").unlink()
    with pytest.raises(AssertionError, match="started"):
        benchmark.benchmark(folder, Request(folder / "tiny.yaml"), lambda line: None)


def test_a_study_goes_on_in_a_clone_whose_report_git_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study_workspace(tmp_path / "site")
    out = folder / "studies/tiny"
    out.mkdir(parents=True)
    (out / "report.md").write_text("of an earlier run\n")
    git = ["git", "-C", str(folder), "-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    for words in (["init", "-q"], ["add", "studies"], ["commit", "-q", "-m", "a study"]):
        subprocess.run([*git, *words], check=True)

    def started(*arguments: Any) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(benchmark, "prepare", started)
    with pytest.raises(AssertionError, match="started"):
        benchmark.benchmark(folder, Request(folder / "tiny.yaml"), lambda line: None)
    (out / "report.md").write_text("of an earlier run\nand my own words\n")
    with pytest.raises(WbcError, match=r"report\.md was not written here, or was changed since"):
        benchmark.benchmark(folder, Request(folder / "tiny.yaml"), lambda line: None)


def test_rows_of_a_study_grow_until_somebody_changes_them(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for rows in (1, 2):
        benchmark.write_results(pd.DataFrame({"a": range(rows)}), out, tmp_path)
    assert len(pd.read_csv(out / "results.csv")) == len(pd.read_parquet(out / "results.parquet")) == 2
    (out / "results.csv").write_text("a,note\n0,odd\n")
    with pytest.raises(WbcError, match=r"results\.csv"):
        benchmark.write_results(pd.DataFrame({"a": range(3)}), out, tmp_path)
    assert (out / "results.csv").read_text() == "a,note\n0,odd\n"
    assert len(pd.read_parquet(out / "results.parquet")) == 2


def test_a_kill_between_the_record_and_the_file_leaves_the_file_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.csv"
    hand_out([(file, "one")], tmp_path)
    write = handed_out.write_atomic

    def killed(path: Path, data: bytes | str) -> None:
        if path == file:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(handed_out, "write_atomic", killed)
    for text in ("two", "three"):
        with pytest.raises(KeyboardInterrupt):
            hand_out([(file, text)], tmp_path)
    monkeypatch.setattr(handed_out, "write_atomic", write)
    assert is_ours(file, tmp_path)
    hand_out([(file, "four")], tmp_path)
    file.write_text("somebody's")
    assert not is_ours(file, tmp_path)


def test_evaluate_says_it_in_one_line(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    (tmp_path / "p/confusion.png").write_bytes(b"mine")
    done = CliRunner().invoke(app, ["evaluate", "--model", "m", "--data", "cells.csv", "--plots", "p"])
    assert isinstance(done.exception, WbcError)
    assert (tmp_path / "p/confusion.png").read_bytes() == b"mine"
