"""The reference of a model: what served cells are compared with is measured as they are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from serving.inference.classify import Classifier
from tests.model.test_export import card
from wbc_model.core.errors import WbcError
from wbc_model.core.files import file_sha256
from wbc_model.core.model_card import REFERENCE, read_card
from wbc_model.core.reference import AXES, MEASURES, WIDTH, read_reference, sharpness, stain
from wbc_model.evaluation.reference import measured_reference, principal_axes
from wbc_model.network.card_page import write_card
from wbc_model.network.model_directory import save_model, with_reference
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.rendering.cells import render_cells

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture(scope="module")
def views() -> np.ndarray:
    return np.stack([cell.pixels for cell in render_cells(24, seed=5, size=64)])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, narrow: None, views: np.ndarray) -> Path:
    path, network = tmp_path_factory.mktemp("model") / "model", AttentionResNet18("none", False)
    made = card("none", False)
    save_model(path, network, made, measured_reference(network, made, views, np.zeros((len(views), 7))))
    return path


def test_the_service_measures_cells_as_the_training_does(directory: Path, views: np.ndarray, tmp_path: Path) -> None:
    reference = read_reference(directory, read_card(directory))
    assert reference is not None
    assert reference.cells.shape == (24, WIDTH)
    assert np.isnan(reference.cells[:, MEASURES["doubt"]]).all(), "the card has no densities"
    assert not np.isnan(reference.cells[:, MEASURES["embedding"]]).any()
    classifier = Classifier.open(directory)
    assert classifier.axes is not None
    files = []
    for number, view in enumerate(views):
        Image.fromarray(view).save(tmp_path / f"{number}.png")
        files.append((tmp_path / f"{number}.png").read_bytes())
    assert all(one.measures is None for one in classifier.see_chunk(files)), "nobody watches"
    seen = np.stack([one.measures for one in classifier.see_chunk(files, measure=True)])  # type: ignore[misc]
    axes = MEASURES["embedding"]
    np.testing.assert_allclose(seen[:, : axes.start], reference.cells[:, : axes.start], rtol=1e-5)
    away = np.abs(seen[:, axes] - reference.cells[:, axes])  # where it computes in bf16
    assert away.max() < 0.2 * reference.cells[:, axes].std(axis=0).max()
    classifier.close()


def test_a_broken_file_is_none(directory: Path, views: np.ndarray) -> None:
    classifier = Classifier.open(directory)
    [seen] = classifier.see_chunk([b"no picture"], measure=True)
    assert seen.measures is None
    classifier.close()


def test_it_is_a_file_of_the_directory(directory: Path, tmp_path: Path) -> None:
    known = read_card(directory)
    reference = read_reference(directory, known)
    assert reference is not None
    for name in "ab":
        reference.write(tmp_path / f"{name}.npz")
    assert file_sha256(tmp_path / "a.npz") == file_sha256(tmp_path / "b.npz") == known.sha256[REFERENCE]
    (directory / REFERENCE).write_bytes(b"PK and no more")
    with pytest.raises(WbcError, match=f"{REFERENCE} is damaged"):
        read_card(directory)
    with pytest.raises(WbcError, match="train the model again"):
        read_reference(directory, known)
    without = with_reference(directory, known, None)
    write_card(directory, without)
    assert read_reference(directory, read_card(directory)) is None, "an older model"
    assert not (directory / REFERENCE).exists()


def test_stain_and_sharpness_follow_what_they_are_named_for(views: np.ndarray) -> None:
    paler = (views * 0.5 + 127).astype(np.uint8)
    assert (stain(paler) < stain(views)).all()
    blurred = np.stack([np.asarray(Image.fromarray(view).filter(ImageFilter.GaussianBlur(2))) for view in views])
    assert (sharpness(blurred) < sharpness(views)).all()
    wide = np.pad(views, ((0, 0), (80, 80), (80, 80), (0, 0)))
    np.testing.assert_allclose(sharpness(wide), sharpness(views)), "the middle is what counts"


def test_axes_are_those_of_most_variance_and_always_the_same() -> None:
    chance = np.random.default_rng(0)
    spread = np.array([9.0, 5.0, 3.0, *[0.1] * 29])
    embedding = (chance.normal(size=(200, 32)) * spread).astype(np.float32)
    axes = principal_axes(embedding)
    assert axes.directions.shape == (AXES, 32)
    assert np.abs(axes.directions[:3]).argmax(axis=1).tolist() == [0, 1, 2]
    projected = axes.project(embedding)
    assert np.var(projected, axis=0)[:3] == pytest.approx(spread[:3] ** 2, rel=0.3)
    turned = principal_axes(embedding[::-1])
    np.testing.assert_allclose(axes.directions[:3], turned.directions[:3], atol=1e-3)
