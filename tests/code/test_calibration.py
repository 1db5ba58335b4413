"""`wbc calibrate`: a model's calibration made a site's own, the network and the model it came from left as they are."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from flows.pipeline.package import _labels
from flows.sites.calibration import calibrate, cross_fitted_sets, prediction_sets
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.images import preprocess
from wbc_model.core.model_card import REFERENCE, Architecture, ModelCard, Normalisation, read_card
from wbc_model.evaluation.calibrate import fit_temperature
from wbc_model.evaluation.evaluate import label_indices
from wbc_model.network.card_page import render_readme, write_card
from wbc_model.network.model_directory import load_model, save_model
from wbc_model.network.predict import Predictions, predict
from wbc_model.network.resnet import MEAN, STD, AttentionResNet18
from wbc_model.params import read_params
from wbc_model.rendering.cells import render_cells, write_cells
from wbc_model.training.labelled import LabelledCells
from wbc_model.training.validation import calibrated_card

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose last layer alone was fitted, with a calibration that is wrong for every site."""
    from sklearn.linear_model import LogisticRegression

    card = ModelCard(
        version="",
        input_size=32,
        normalisation=Normalisation(mean=MEAN, std=STD),
        architecture=Architecture(attention="none", lossnet=False),
        temperature=3.0,
        conformal_threshold=0.99,
        metrics={"validation": {"accuracy": 1.0}, "test": {"accuracy": 0.9}},
    )
    torch.manual_seed(0)
    network = AttentionResNet18("none", lossnet=False).eval()
    drawn = list(render_cells(200, seed=6, size=32))
    with torch.no_grad():
        images = torch.from_numpy(np.stack([cell.pixels for cell in drawn])).permute(0, 3, 1, 2) / 255
        fitted = LogisticRegression(C=0.001, max_iter=500).fit(network(images).embedding.numpy(), [cell.label for cell in drawn])
        network.fc.weight.copy_(torch.from_numpy(fitted.coef_))
        network.fc.bias.copy_(torch.from_numpy(fitted.intercept_))
    directory = tmp_path_factory.mktemp("model") / "m"
    save_model(directory, network, card)
    return directory


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cells(tmp_path_factory.mktemp("cells") / "site", 120, seed=5, size=64)


def test_a_copy_has_the_sites_calibration_and_the_same_network(model: Path, cells: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    result = calibrate(model, cells, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    card, old = read_card(tmp_path / "out"), read_card(model)
    table = pd.read_csv(cells)
    labels = label_indices(table["label"].tolist())
    views = np.stack([preprocess((cells.parent / path).read_bytes(), 32, "whole") for path in table["path"]])
    seen = predict(load_model(model)[0], [views])
    assert card.temperature == pytest.approx(fit_temperature(seen.logits, labels), rel=1e-3)
    assert card.out_of_distribution is not None
    assert {name: digest for name, digest in card.sha256.items() if name != REFERENCE} == old.sha256
    assert (tmp_path / "out" / REFERENCE).is_file(), "served cells are compared with the site's"
    assert card.calibrated_on == "120 cells of manifest"
    assert card.metrics["test"] == {"accuracy": 0.9}
    assert np.sum(card.metrics["validation"]["confusion"]) == 120
    assert card.version.startswith(f"{old.version}+")
    # At a threshold of 0.99 and so cold its sets hold its first guess alone.
    assert result["classes_in_a_set"]["before"] == 1
    assert result["coverage"]["before"] == pytest.approx((seen.logits.argmax(axis=1) == labels).mean())
    assert result["coverage"]["after"] > 0.85
    assert calibrate(tmp_path / "out", cells, tmp_path / "again")["version"] == card.version, "the same cells, the same version"
    shutil.make_archive(str(tmp_path / "manifest"), "zip", cells.parent)
    packed = ["--data", str(tmp_path / "manifest.zip"), "--out", str(tmp_path / "packed")]
    answer = CliRunner().invoke(app, ["calibrate", "--model", str(model), *packed], catch_exceptions=False)
    assert "used 120 cells, all rows" in answer.output
    same = read_card(tmp_path / "packed")  # but for rounding: an archive's rows are in the order of their paths
    assert (same.calibrated_on, same.cells) == (card.calibrated_on, card.cells)
    assert same.temperature == pytest.approx(card.temperature, rel=1e-5)


def test_too_few_cells_are_refused_and_nothing_is_written(model: Path, cells: Path, tmp_path: Path) -> None:
    table = pd.read_csv(cells).assign(path=lambda rows: [str(cells.parent / path) for path in rows["path"]])
    table.head(49).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(WbcError, match=r"few\.csv: 49 usable labelled cells are too few to calibrate on; 50 are needed"):
        calibrate(model, tmp_path / "few.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    table.assign(split=["val"] * 60 + ["test"] * 60).to_csv(tmp_path / "split.csv", index=False)
    assert calibrate(model, tmp_path / "split.csv", tmp_path / "out")["cells"] == 60


def test_rows_that_are_not_used_are_told_with_why_and_those_of_other_splits_are_none(
    model: Path, cells: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(cells).assign(path=lambda rows: [str(cells.parent / path) for path in rows["path"]])
    table = table.assign(split=["val"] * 60 + ["test"] * 60)
    table.loc[[0, 1, 60], "label"] = ["Blast", "", "Promyelocyte"]
    table.loc[2, "path"] = "gone.png"
    table.to_csv(tmp_path / "split.csv", index=False)
    asked = ["calibrate", "--model", str(model), "--data", str(tmp_path / "split.csv"), "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(app, asked, catch_exceptions=False).output
    told = [line.partition(".png: ")[2][:20] for line in said.splitlines() if " not used " in line]
    assert told == ["'Blast' is not one o", "it has no label: a c", "there is no such fil"]
    table.head(52).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(WbcError, match=r"49 usable [^;]*; 50 are needed; 1 row is not used \(unknown_label\), \S*: 'Blast'"):
        calibrate(model, tmp_path / "few.csv", tmp_path / "other")


def test_nothing_but_a_model_directory_is_replaced(model: Path, cells: Path, tmp_path: Path) -> None:
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "models/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out, says in ((tmp_path / "models", "holds mine"), (tmp_path / "file", "holds file"), (model, "is the model itself")):
        with pytest.raises(WbcError, match=says):
            calibrate(model, cells, out)
    assert (tmp_path / "models/notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_one_class_is_refused(model: Path, cells: Path, tmp_path: Path) -> None:
    table = pd.read_csv(cells).assign(path=lambda rows: [str(cells.parent / path) for path in rows["path"]])
    table.assign(label="Monocyte").to_csv(tmp_path / "one.csv", index=False)
    with pytest.raises(
        WbcError, match=r"one\.csv: all 120 usable cells are labelled Monocyte, and one class tells nothing"
    ) as caught:
        calibrate(model, tmp_path / "one.csv", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    three = table[table["label"].isin(["Monocyte", "Basophil", "Lymphocyte"])]
    three.to_csv(tmp_path / "three.csv", index=False)
    assert calibrate(model, tmp_path / "three.csv", tmp_path / "out")["without"] == ["Eosinophil", "Neutrophil"]


def test_a_temperature_at_its_bound_is_an_error(
    model: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that the model gave itself: it is never wrong, and the colder the likelier."""
    table = pd.read_csv(cells).assign(path=lambda rows: [str(cells.parent / path) for path in rows["path"]])
    labels = np.arange(len(table)) % 5
    table["label"] = [CLASSES[label] for label in labels]
    table.to_csv(tmp_path / "right.csv", index=False)
    for sharpness, message in ((1.0, "right on 100% of the 120 cells"), (-1.0, "right on 0% of the 120 cells")):
        seen = Predictions(sharpness * np.eye(5)[labels], np.zeros(120), np.zeros((120, 1)))
        monkeypatch.setattr("flows.sites.calibration.predict", lambda network, batches, embeddings, seen=seen: seen)
        with pytest.raises(WbcError, match=f"right\\.csv: the model is {message}, and no temperature in 0.05 to 20 fits"):
            calibrate(model, tmp_path / "right.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prediction_sets_by_hand() -> None:
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.34, 0.33, 0.33]])
    assert prediction_sets(p, 0.3).tolist() == [[True, True, False], [False, False, True], [True, True, True]]
    assert prediction_sets(p, 0.9).tolist() == [[True, False, False], [False, False, True], [True, False, False]]


def test_cross_fitted_sets_hold_what_is_stated() -> None:
    """Cells whose labels are drawn from the network's own probabilities, sharpened: 95 % within what chance allows."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2000, 5))
    p = np.exp(logits / 2) / np.exp(logits / 2).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in p])
    sets = cross_fitted_sets(Predictions(logits, np.zeros(2000), np.empty((2000, 0))), labels, 0.95)
    assert sets[np.arange(2000), labels].mean() == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("sharpness", [30.0, -30.0])
def test_a_training_at_a_bound_keeps_its_model_and_says_that_it_is_not_calibrated(
    sharpness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny validation pool on which the model is never wrong, or always: no temperature is fitted, and none is presented."""
    labels = np.arange(12) % 5
    seen = Predictions(sharpness * np.eye(5)[labels], np.zeros(12), np.zeros((12, 1)))
    monkeypatch.setattr("wbc_model.training.validation.predict", lambda network, batches: seen)
    cells = LabelledCells(np.zeros((12, 32, 32, 3), np.uint8), labels, tuple(map(str, range(12))))
    card = calibrated_card(AttentionResNet18("none", lossnet=False), cells, read_params(ROOT / "params.yaml"))
    right = "100%" if sharpness > 0 else "0%"
    assert card.temperature == 1
    assert card.uncalibrated == f"the model is right on {right} of the 12 cells, and no temperature in 0.05 to 20 fits them best"
    page = render_readme(card.model_copy(update={"version": "v"}))
    assert f"| temperature | 1.000, not fitted: {card.uncalibrated} |" in page
    assert "**Not calibrated.**" in page
    assert "probabilities and the prediction set are calibrated" not in page
    assert _labels(card, None)["calibrated"] == "false"
    whose = "home's validation pool; out-of-distribution scores by the cells of St. Anna"
    page = render_readme(card.model_copy(update={"version": "v", "calibrated_on": whose}))
    assert "## How well it did on home's validation pool\n" in page, (
        "the heading says whose cells the figures are of, and no more"
    )
    assert f"| calibrated on | {whose} |" in page


def test_a_card_of_before_whose_temperature_is_a_bound_is_read_as_not_calibrated(model: Path, tmp_path: Path) -> None:
    old = read_card(model).model_copy(update={"temperature": 0.0500001, "uncalibrated": ""})
    write_card(tmp_path, old)
    (tmp_path / "model.json").write_text(old.model_dump_json(exclude={"uncalibrated"}))
    read = read_card(tmp_path, verify=False)
    assert read.temperature == old.temperature, "it answers as it did"
    assert read.uncalibrated == "its temperature is a bound of those that were tried, so that nothing was fitted"
    assert read_card(model).uncalibrated == ""


def test_a_calibration_makes_it_calibrated(model: Path, cells: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "uncalibrated"))
    write_card(copy, read_card(model).model_copy(update={"uncalibrated": "for a reason"}))
    calibrate(copy, cells, tmp_path / "out")
    assert read_card(tmp_path / "out").uncalibrated == ""


@pytest.mark.slow
def test_neither_another_model_nor_an_edited_one_is_replaced(model: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "here"
    first = calibrate(model, cells, out)["version"]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert calibrate(model, cells, out)["version"] == first, "the same call again"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    other = Path(shutil.copytree(model, tmp_path / "other"))
    write_card(other, read_card(model).model_copy(update={"version": "another"}))
    table = pd.read_csv(cells).assign(path=lambda rows: [str(cells.parent / path) for path in rows["path"]])
    table.head(100).to_csv(tmp_path / "fewer.csv", index=False)
    ways = "give --out another name, or move it away"
    for start, data, says in ((other, cells, rf"here holds model {re.escape(first)}.*"), (model, tmp_path / "fewer.csv", "")):
        with pytest.raises(WbcError, match=f"{says}{ways}") as caught:
            calibrate(start, data, out)
        assert "\n" not in str(caught.value)
    (out / "README.md").write_text("my own words\n")
    with pytest.raises(WbcError, match=rf"here/README\.md .*{ways}"):
        calibrate(model, cells, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before | {"README.md": b"my own words\n"}
