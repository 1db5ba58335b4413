"""studies/test_time.py: the views are the square's symmetries, its numbers those of the evaluation, its files whole."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from tests.model.test_export import card
from wbc_model.core.probabilities import softmax
from wbc_model.evaluation.evaluate import evaluate_data
from wbc_model.network.model_directory import load_model, save_model
from wbc_model.network.predict import predict
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.rendering.cells import write_cells

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("test_time_study", ROOT / "studies/test_time.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_model(folder: Path, norm: str = "batch", seed: int = 1) -> Path:
    torch.manual_seed(seed)
    small = card("none", False, norm).model_copy(update={"input_size": 32, "temperature": 2.0})
    save_model(folder, AttentionResNet18("none", False, norm=norm), small)
    return folder


def run(study: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: Path | str) -> None:
    monkeypatch.setattr(sys, "argv", ["test_time.py", *map(str, arguments)])
    study.main()


def test_eight_views_are_the_symmetries_of_the_square(study: ModuleType):
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    views = list(study.eight_views(images))
    assert len({view.tobytes() for view in views}) == 8
    np.testing.assert_array_equal(views[0], images)
    for other in (np.rot90(images, axes=(1, 2)), images[:, ::-1]):
        assert {view.tobytes() for view in study.eight_views(other)} == {view.tobytes() for view in views}


def test_averaged_probabilities_do_not_depend_on_how_a_cell_lies(study: ModuleType, tmp_path: Path):
    network, _ = load_model(write_model(tmp_path / "model"))
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    ours = study.probabilities(network, images, 2.0, True)
    by_hand = np.mean(
        [softmax(predict(network, [np.ascontiguousarray(v)]).logits, 2.0) for v in study.eight_views(images)], axis=0
    )
    np.testing.assert_allclose(ours, by_hand, atol=1e-6)
    turned = study.probabilities(network, np.rot90(images, axes=(1, 2)), 2.0, True)
    np.testing.assert_allclose(ours, turned, atol=1e-5)
    assert np.abs(ours - study.probabilities(network, images, 2.0, False)).max() > 1e-4


@pytest.mark.slow
def test_the_study_writes_what_the_evaluation_finds(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, data = write_model(tmp_path / "model"), write_cells(tmp_path / "site", 60, seed=4, size=48)
    run(study, monkeypatch, model, data, "--out", tmp_path / "out")
    results = pd.read_csv(tmp_path / "out/results.csv").set_index("way")
    assert list(results.index) == ["as it is", "statistics", "eight views", "both"]
    for way, own in (("as it is", False), ("statistics", True)):
        expected, _ = evaluate_data(model, data, own_statistics=own)
        for metric in ("accuracy", "macro_f1", "balanced_accuracy"):
            assert results.loc[way, metric] == pytest.approx(expected[metric], abs=1e-6)
    assert (results["accuracy_low"] <= results["accuracy"]).all()
    readme = (tmp_path / "out/README.md").read_text()
    assert readme.count("| manifest | 60 |") == 4
    assert (tmp_path / "out/bars.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_second_model_is_put_beside_the_first(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write_cells(tmp_path / "site", 40, seed=4, size=48)
    models = [write_model(tmp_path / f"model{seed}", seed=seed) for seed in (1, 2)]
    for model in (*models, models[0]):  # one that is there already is not counted twice
        run(study, monkeypatch, model, data, "--out", tmp_path / "out")
    results = pd.read_csv(tmp_path / "out/results.csv")
    assert results["model"].nunique() == 2
    assert len(results) == 8
    first, second = (100 * results[results["way"] == "as it is"].set_index("model")["accuracy"]).tolist()
    row = next(line for line in (tmp_path / "out/README.md").read_text().splitlines() if "| as it is |" in line)
    assert f"| {(first + second) / 2:.1f} ({first:.1f}, {second:.1f}) |" in row


def test_a_network_without_statistics_is_compared_without_them(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, data = write_model(tmp_path / "model", "group"), write_cells(tmp_path / "site", 20, seed=4, size=48)
    run(study, monkeypatch, model, data, "--out", tmp_path / "out")
    assert pd.read_csv(tmp_path / "out/results.csv")["way"].tolist() == ["as it is", "eight views"]


def test_what_is_wrong_is_one_line(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SystemExit) as caught:
        run(study, monkeypatch, tmp_path / "no-model", tmp_path / "no-data", "--out", tmp_path / "out")
    assert "is not a model directory" in str(caught.value)
