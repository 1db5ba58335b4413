"""A model's card knows the cells that it was made from, and a measurement on them says so."""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows.cli import app
from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import Architecture, ModelCard, Normalisation, read_card
from wbc_model.evaluation.evaluate import evaluate_data
from wbc_model.network.card_page import write_card
from wbc_model.network.model_directory import save_model
from wbc_model.network.resnet import MEAN, STD, AttentionResNet18
from wbc_model.rendering.cells import write_cells
from wbc_model.sources.opened import open_source

pytestmark = pytest.mark.usefixtures("narrow")


def sha(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@given(st.lists(st.tuples(st.integers(0, 500), st.sampled_from(CLASSES)), unique_by=lambda cell: cell[0]))
def test_a_filter_knows_its_cells_and_no_others(cells: list[tuple[int, str]]) -> None:
    names, labels = [sha(number) for number, _ in cells], [label for _, label in cells]
    one = CellFilter.of(names, labels)
    assert one == CellFilter.of(names[::-1], labels[::-1])
    assert one.knows(names).all()
    assert not one.knows([sha(number) for number in range(501, 700)]).any()
    assert not one.relabelled(names, labels).any()
    others = [CLASSES[(CLASSES.index(label) + 1) % 5] for label in labels]
    assert one.relabelled(names, others).all()
    half = len(names) // 2
    assert CellFilter.of(names[:half], others[:half]).plus(CellFilter.of(names[half:], labels[half:])).count == len(names)
    assert CellFilter.of(names, others).plus(one) == one


def test_a_filter_is_small() -> None:
    cells = [sha(number) for number in range(10_000)]
    assert len(CellFilter.of(cells, ["Neutrophil"] * 10_000).model_dump_json()) < 81_000


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    manifest = write_cells(tmp_path_factory.mktemp("cells") / "site", 80, seed=5, size=48)
    table = pd.read_csv(manifest)
    table["sha256"] = [hashlib.sha256((manifest.parent / path).read_bytes()).hexdigest() for path in table["path"]]
    table.to_csv(manifest.with_name("known.csv"), index=False)
    return manifest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, cells: Path) -> Path:
    """An untrained network whose card says that it learned from 20 of the cells and was chosen by 10."""
    known = pd.read_csv(cells.with_name("known.csv"))
    parts = {"labelled": known.iloc[:20], "validation": known.iloc[20:30]}
    card = ModelCard(
        version="",
        input_size=32,
        normalisation=Normalisation(mean=MEAN, std=STD),
        architecture=Architecture(attention="none", lossnet=False),
        cells={name: CellFilter.of(part["sha256"].tolist(), part["label"].tolist()) for name, part in parts.items()},
    )
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model") / "m"
    save_model(directory, AttentionResNet18("none", lossnet=False).eval(), card)
    return directory


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_evaluate_says_that_the_model_knows_the_cells(model: Path, cells: Path) -> None:
    text = run("evaluate", "--model", model, "--data", cells)
    assert "used 80 cells, all rows" in text
    assert "warning: the model was trained on 20 of these 80 cells: the figures flatter it" in text
    assert "warning: 10 of these 80 cells chose the model's weights or calibration: the figures flatter it" in text


def test_evaluate_on_other_cells_warns_of_nothing_and_says_which_rows_it_used(model: Path, cells: Path, tmp_path: Path) -> None:
    table = pd.read_csv(cells).assign(split=["train"] * 30 + ["test"] * 50)
    table["path"] = [str(cells.parent / path) for path in table["path"]]
    table.to_csv(tmp_path / "split.csv", index=False)
    text = run("evaluate", "--model", model, "--data", tmp_path / "split.csv")
    assert "used 50 cells, the rows of split test only" in text
    assert "warning" not in text


def test_calibrate_says_it_and_the_calibrated_model_knows_more(model: Path, cells: Path, tmp_path: Path) -> None:
    network_knows = read_card(model).cells["labelled"]
    _, frame = evaluate_data(model, cells)
    right = np.random.default_rng(0).random(80) < 0.7  # an untrained network has a temperature for such labels
    guesses = np.random.default_rng(1).choice(CLASSES, 80)
    table = pd.read_csv(cells).assign(label=np.where(right, frame["predicted"], guesses))
    table["path"] = [str(cells.parent / path) for path in table["path"]]
    table.to_csv(tmp_path / "site.csv", index=False)
    text = run("calibrate", "--model", model, "--data", tmp_path / "site.csv", "--out", tmp_path / "out")
    assert "used 80 cells, all rows" in text
    assert "the model was trained on 20 of these 80 cells" in text
    after = read_card(tmp_path / "out").cells
    assert after["labelled"] == network_knows
    assert after["validation"].count == 80
    assert "80 of these 80 cells chose" in run("evaluate", "--model", tmp_path / "out", "--data", cells)


def test_a_card_of_before_says_that_it_does_not_know(model: Path, cells: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(model, tmp_path / "old"))
    write_card(old, read_card(old).model_copy(update={"cells": {}}))
    assert "does not say which cells it was made from" in run("evaluate", "--model", old, "--data", cells)


# --- cells that come packed -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same cells as a ZIP, as a tar that is read from front to back and has them in another order, and in a bucket."""
    import fsspec

    folder = tmp_path_factory.mktemp("packed")
    shutil.make_archive(str(folder / "cells"), "zip", cells.parent)
    with tarfile.open(folder / "cells.tar.gz", "w:gz") as archive:
        for name in reversed(["manifest.csv", *pd.read_csv(cells)["path"]]):
            archive.add(cells.parent / name, name)
    fsspec.filesystem("memory").pipe_file("/leakage/cells.zip", (folder / "cells.zip").read_bytes())
    return {"zip": str(folder / "cells.zip"), "tar": str(folder / "cells.tar.gz"), "bucket": "memory://leakage/cells.zip"}


@pytest.mark.parametrize("own_statistics", [False, True])
def test_packed_cells_are_measured_as_those_of_a_folder(
    model: Path, cells: Path, packed: dict[str, str], own_statistics: bool
) -> None:
    _, expected = evaluate_data(model, cells, own_statistics)
    assert expected["path"].tolist() == pd.read_csv(cells)["path"].tolist()
    near = 1e-4 if own_statistics else 1e-6  # statistics are of batches, and an archive's rows are in another order
    for data in packed.values():
        with open_source(data) as origin:
            _, frame = evaluate_data(model, origin, own_statistics)
        pd.testing.assert_frame_equal(frame, expected.sort_values("path", ignore_index=True), rtol=0, atol=near)


def test_evaluate_takes_them_and_knows_the_cells_again(model: Path, cells: Path, packed: dict[str, str]) -> None:
    expected = json.loads(run("evaluate", "--model", model, "--data", cells, "--json"))
    for data in (packed["tar"], packed["bucket"]):
        found = json.loads(run("evaluate", "--model", model, "--data", data, "--json"))
        assert found["data"] == data
        assert (found["confusion"], found["seen_before"]) == (expected["confusion"], expected["seen_before"])


def test_every_command_refuses_a_damaged_archive_in_the_same_line(
    model: Path, packed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cut.zip").write_bytes(Path(packed["zip"]).read_bytes()[:-100])
    (tmp_path / "cells.7z").write_bytes(b"7z")
    monkeypatch.chdir(tmp_path)
    commands = {
        "evaluate": ("evaluate", "--model", str(model), "--data"),
        "calibrate": ("calibrate", "--model", str(model), "--out", str(tmp_path / "out"), "--data"),
        "onboard": ("onboard",),
    }
    for data in ("cut.zip", "cells.7z", "ftp://host/cells.zip"):
        with pytest.raises(WbcError) as refused, open_source(data):
            pass
        for name, command in commands.items():
            answer = CliRunner().invoke(app, [*command, data])
            assert str(answer.exception) == str(refused.value), (name, data)
    assert not (tmp_path / "out").exists()
