"""The renderer: reproducible, fast enough, and drawing what tells the five classes apart."""

import csv
import itertools
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wbc_model.core.classes import CLASS_INDEX, CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.rendering import cells as cells_module
from wbc_model.rendering.cells import SHARES, SMEAR_CELLS, RenderedCell, Smear, draw_cell, render_cells, write_cells


@pytest.fixture(scope="module")
def cells() -> list[RenderedCell]:
    return list(render_cells(900, seed=5))


def by_class(cells: list[RenderedCell], label: str) -> list[RenderedCell]:
    return [cell for cell in cells if cell.label == label]


def test_same_seed_gives_the_same_pixels(cells: list[RenderedCell]) -> None:
    again = itertools.islice(render_cells(900, seed=5), 150)
    assert all(
        np.array_equal(one.pixels, two.pixels) and (one.label, one.smear) == (two.label, two.smear)
        for one, two in zip(cells[:150], again, strict=True)
    )


def test_no_two_cells_are_alike(cells: list[RenderedCell]) -> None:
    others = list(render_cells(200, seed=6))
    assert len({cell.pixels.tobytes() for cell in [*cells, *others]}) == len(cells) + len(others)


def test_pixels_are_uint8_crops_of_the_asked_size() -> None:
    for size in (32, 64, 128, 224):
        for cell in render_cells(6, seed=1, size=size):
            assert cell.pixels.shape == (size, size, 3)
            assert cell.pixels.dtype == np.uint8
            assert cell.nucleus.shape == cell.cell.shape == (size, size)


def test_a_size_changes_the_scale_and_not_the_cell() -> None:
    smear = Smear.draw(seed=2, number=0)
    for label in CLASSES:
        small, large = (draw_cell(label, smear, np.random.default_rng(3), size) for size in (64, 128))
        assert small.lobes == large.lobes
        assert small.cell.mean() == pytest.approx(large.cell.mean(), rel=0.1)


def test_smears_differ_in_light_stain_focus_and_magnification() -> None:
    smears = [Smear.draw(seed=4, number=number) for number in range(30)]
    assert len({smear.group for smear in smears}) == 30
    for name in ("magnification", "focus_um", "light", "azure", "eosin", "red_cells", "shading"):
        assert len({getattr(smear, name) for smear in smears}) == 30
    pictures = [draw_cell("Neutrophil", smear, np.random.default_rng(0)).pixels for smear in smears]
    background = np.array([np.median(picture.reshape(-1, 3), axis=0) for picture in pictures])
    assert (background.std(axis=0) > 4).all()


def test_groups_are_smears_of_25_to_40_cells(cells: list[RenderedCell]) -> None:
    groups = Counter(cell.smear for cell in cells)
    assert list(groups) == [f"smear-{number:04d}" for number in range(len(groups))]
    *whole, last = groups.values()
    assert all(SMEAR_CELLS[0] <= count <= SMEAR_CELLS[1] for count in whole)
    assert last <= SMEAR_CELLS[1]


def test_default_shares_are_met_to_the_cell(cells: list[RenderedCell]) -> None:
    counts = Counter(cell.label for cell in cells)
    assert all(abs(counts[label] - share * len(cells)) < 1 for label, share in SHARES.items())


@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.floats(0, 10), min_size=5, max_size=5).filter(lambda values: sum(values) > 0.1),
    count=st.integers(0, 14),
    seed=st.integers(0, 2**31),
)
def test_any_shares_are_met_to_the_cell(weights: list[float], count: int, seed: int) -> None:
    shares = dict(zip(CLASSES, weights, strict=True))
    counts = Counter(cell.label for cell in render_cells(count, seed, size=32, shares=shares))
    assert sum(counts.values()) == count
    for label, weight in shares.items():
        assert abs(counts[label] - count * weight / sum(weights)) < 1 + 1e-9
        assert weight > 0 or counts[label] == 0


@pytest.mark.parametrize(
    ("shares", "names"),
    [
        ({"Blast": 1.0}, "Blast"),
        ({"Monocyte": -1.0, "Basophil": 2.0}, "below 0"),
        ({}, "above 0"),
        ({"Monocyte": float("nan")}, "finite"),
    ],
)
def test_senseless_shares_are_an_error_that_says_why(shares: dict[str, float], names: str) -> None:
    with pytest.raises(WbcError, match=names):
        render_cells(5, seed=0, shares=shares)


def test_other_senseless_arguments_are_errors() -> None:
    with pytest.raises(WbcError, match="negative"):
        render_cells(-1, seed=0)
    with pytest.raises(WbcError, match="negative"):
        render_cells(1, seed=-1)
    with pytest.raises(WbcError, match="at least 32"):
        render_cells(1, seed=0, size=16)
    with pytest.raises(WbcError, match="Blast"):
        draw_cell("Blast", Smear.draw(0, 0), np.random.default_rng(0))


def test_classes_have_their_nuclei_and_sizes(cells: list[RenderedCell]) -> None:
    lobes = {label: np.mean([cell.lobes for cell in by_class(cells, label)]) for label in CLASSES}
    area = {label: np.mean([cell.cell.mean() for cell in by_class(cells, label)]) for label in CLASSES}
    nucleus = {label: np.mean([cell.nucleus.sum() / cell.cell.sum() for cell in by_class(cells, label)]) for label in CLASSES}
    assert lobes["Lymphocyte"] == 1
    assert lobes["Monocyte"] < 1.4 < lobes["Eosinophil"] < 2.4 < lobes["Neutrophil"]
    assert max(area, key=area.__getitem__) == "Monocyte"
    assert min(area, key=area.__getitem__) == "Lymphocyte"
    assert max(nucleus, key=nucleus.__getitem__) == "Lymphocyte"
    assert nucleus["Neutrophil"] < 0.35


def test_a_nucleus_is_dark_and_inside_its_cell(cells: list[RenderedCell]) -> None:
    for cell in cells:
        assert not (cell.nucleus & ~cell.cell).any()
        assert cell.nucleus.sum() > 100
        assert cell.pixels[cell.nucleus].mean() < cell.pixels[~cell.cell].mean() - 20


def test_cytoplasm_has_the_colour_of_its_class(cells: list[RenderedCell]) -> None:
    def ratio(label: str, one: int, two: int) -> float:
        """Mean of one channel over another in the cytoplasm, against the empty background of the same crop."""
        values = []
        for cell in by_class(cells, label):
            plasma = cell.pixels[cell.cell & ~cell.nucleus].mean(axis=0)
            light = np.percentile(cell.pixels.reshape(-1, 3), 90, axis=0)
            values.append(plasma[one] / light[one] / (plasma[two] / light[two]))
        return float(np.median(values))

    red_over_blue = {label: ratio(label, 0, 2) for label in CLASSES}
    assert max(red_over_blue, key=red_over_blue.__getitem__) == "Eosinophil"
    assert red_over_blue["Lymphocyte"] < 0.85
    assert red_over_blue["Monocyte"] < 0.95 < red_over_blue["Neutrophil"]


def test_the_cell_fills_a_good_part_of_the_crop(cells: list[RenderedCell]) -> None:
    diameter = np.array([2 * np.sqrt(cell.cell.mean() / np.pi) for cell in cells])
    assert 0.4 < diameter.mean() < 0.55
    assert (diameter > 0.2).all()
    assert (diameter < 0.85).all()


def test_mean_colours_alone_do_not_tell_the_classes(cells: list[RenderedCell]) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.array([CLASS_INDEX[cell.label] for cell in cells])
    colours = np.array(
        [np.concatenate([cell.pixels.mean(axis=(0, 1)), cell.pixels[cell.cell].mean(axis=0)]) for cell in cells], dtype=float
    )
    later = np.array([cell.smear >= "smear-0018" for cell in cells])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(colours[~later], labels[~later])
    assert model.score(colours[later], labels[later]) < 0.85


def test_a_cell_costs_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """150 cells a second, counted in work: few calls of Python per cell, and few pixels through the filter that costs most."""
    list(render_cells(5, seed=8))
    blurred, called = 0, 0
    real = cells_module.gaussian_filter

    def counted(pixels: NDArray[Any], *arguments: Any, **named: Any) -> NDArray[Any]:
        nonlocal blurred
        blurred += pixels.size
        return real(pixels, *arguments, **named)

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal called
        called += event == "call"

    monkeypatch.setattr(cells_module, "gaussian_filter", counted)
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        drawn = list(render_cells(60, seed=9))
    finally:
        sys.setprofile(before)
    assert called / len(drawn) < 500
    assert blurred / sum(cell.pixels.size for cell in drawn) < 0.25


def read(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def test_written_cells_are_the_rendered_ones_and_say_so(tmp_path: Path) -> None:
    manifest = write_cells(tmp_path / "cells", 45, seed=3)
    rows = read(manifest)
    assert manifest == tmp_path / "cells" / "manifest.csv"
    assert list(rows[0]) == ["path", "label", "group"]
    for row, cell in zip(rows, render_cells(45, seed=3), strict=True):
        assert (row["label"], row["group"]) == (cell.label, cell.smear)
        assert row["path"].startswith(f"rendered/rendered-{cell.label.lower()}-")
        with Image.open(manifest.parent / row["path"]) as image:
            assert image.info["Source"] == "rendered"
            assert np.array_equal(np.asarray(image), cell.pixels)
    assert "never quote an accuracy" in (manifest.parent / "README.txt").read_text()
    assert {path.name for path in manifest.parent.iterdir()} == {"manifest.csv", "README.txt", "rendered"}


def test_written_bytes_depend_on_the_arguments_only(tmp_path: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    write_cells(tmp_path / "one", 30, seed=4, size=64)
    write_cells(tmp_path / "two", 12, seed=9, size=32)
    write_cells(tmp_path / "two", 30, seed=4, size=64)  # over another, which leaves nothing behind
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_files_of_somebody_else_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "manifest.csv").write_text("path,label\ncell.png,Monocyte\n")
    with pytest.raises(WbcError, match=r"manifest\.csv"):
        write_cells(tmp_path / "real", 3, seed=0)
    (tmp_path / "mixed" / "rendered").mkdir(parents=True)
    (tmp_path / "mixed" / "rendered" / "cell.png").write_bytes(b"")
    with pytest.raises(WbcError, match=r"cell\.png"):
        write_cells(tmp_path / "mixed", 3, seed=0)
    assert (tmp_path / "mixed" / "rendered" / "cell.png").exists()
    (tmp_path / "described").mkdir()
    (tmp_path / "described" / "README.txt").write_text("Real cells of hospital A\n")
    with pytest.raises(WbcError, match=r"README\.txt"):
        write_cells(tmp_path / "described", 3, seed=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(WbcError, match="file"):
        write_cells(tmp_path / "file", 3, seed=0)
