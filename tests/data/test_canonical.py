"""The canonical view: the same cell, whatever the magnification, the stain and the lamp; and honest where there is none."""

import functools

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tests.realdata import real_data
from wbc_model.core.canonical import (
    WHITE,
    background_colour,
    canonical_view,
    find_nucleus,
    optical_density,
    otsu_threshold,
    without_padding,
)
from wbc_model.core.classes import CLASSES
from wbc_model.core.images import decode
from wbc_model.rendering.cells import render_cells

SIZE = 64


@functools.cache
def cells() -> list[Image.Image]:
    return [Image.fromarray(cell.pixels) for cell in render_cells(20, seed=7, size=192)]


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference in grey values."""
    return float(np.abs(one.astype(float) - other).mean())


def disc(side: int = 200, centre: tuple[float, float] = (100, 100), radius: float = 30) -> Image.Image:
    """A purple disc on a cream background."""
    y, x = np.mgrid[:side, :side]
    inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
    return Image.fromarray(np.where(inside[..., None], [90, 40, 150], [240, 225, 205]).astype(np.uint8))


def test_the_nucleus_of_a_disc_is_where_it_was_drawn():
    nucleus = find_nucleus(without_padding(disc(centre=(120, 90), radius=30)))
    assert nucleus is not None
    assert (nucleus.x, nucleus.y) == pytest.approx((120, 90), abs=2)
    assert nucleus.radius == pytest.approx(30 / np.sqrt(2), rel=0.06)  # a disc's radius of gyration
    expected = -np.log((np.array([90, 40, 150]) + 1) / (np.array([240, 225, 205]) + 1))
    np.testing.assert_allclose(nucleus.density, expected, rtol=0.1)


def test_optical_density_by_hand():
    pixels = np.array([[[239, 99, 255]]], np.uint8)
    density = optical_density(pixels, np.array([239, 199, 204], np.float32))
    np.testing.assert_allclose(density[0, 0], [0, np.log(2), 0], atol=1e-6)


def test_background_is_the_lamp_not_the_cells():
    np.testing.assert_allclose(background_colour(np.asarray(disc())), [240, 225, 205])


def test_otsu_parts_two_groups():
    values = np.concatenate([np.full(300, 0.1), np.full(40, 0.9)]).astype(np.float32)
    assert 0.1 < otsu_threshold(values) < 0.9


@pytest.mark.parametrize("zoom", [0.5, 0.75, 2.0])
def test_magnification_does_not_show(zoom: float):
    for cell in cells():
        side = round(cell.width * zoom)
        assert difference(canonical_view(cell, SIZE)[0], canonical_view(cell.resize((side, side)), SIZE)[0]) < 8


def test_the_share_of_the_crop_that_the_cell_fills_hardly_shows():
    """A cell or two may change its view, since the whole crop decides what counts as stained."""
    differences = []
    for cell in cells():
        wide = Image.new("RGB", (cell.width * 3 // 2,) * 2, tuple(int(v) for v in background_colour(np.asarray(cell))))
        wide.paste(cell, (cell.width // 4, cell.height // 4))
        differences.append(difference(canonical_view(cell, SIZE)[0], canonical_view(wide, SIZE)[0]))
    assert np.median(differences) < 6
    assert np.mean(np.array(differences) < 12) >= 0.8


def test_the_lamp_does_not_show_and_the_strength_of_the_stain_less():
    for cell in cells():
        seen, nucleus = canonical_view(cell, SIZE)
        share = np.asarray(cell) / 255.0
        yellow = Image.fromarray((share * [250, 235, 190]).astype(np.uint8))
        pale = Image.fromarray((share**0.6 * 255).astype(np.uint8))
        assert nucleus is not None
        assert difference(seen, canonical_view(yellow, SIZE)[0]) < 4
        # Half of the way to a standard density: what is left of a paler stain is much less than what the crop shows of it.
        crops = [np.asarray(image.resize((SIZE, SIZE)))[SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4] for image in (cell, pale)]
        assert difference(seen, canonical_view(pale, SIZE)[0]) < 0.7 * difference(*crops)


def test_the_background_of_a_view_is_white():
    view, _ = canonical_view(disc(), SIZE)
    assert (view[:3].reshape(-1, 3) == WHITE).all()


@pytest.mark.parametrize("colour", ["black", "white"])
def test_padding_is_cut_off(colour: str):
    """White bars, too: taken for the lamp, they would leave its colour in the view."""
    differences = []
    for cell in cells():
        padded = Image.new("RGB", (cell.width + 120, cell.height + 80), colour)
        padded.paste(cell, (90, 20))
        differences.append(difference(canonical_view(cell, SIZE)[0], canonical_view(padded, SIZE)[0]))
    assert np.median(differences) < 4
    assert canonical_view(Image.new("RGB", (50, 50), colour), SIZE)[1] is None


def test_the_black_around_a_round_field_of_view_is_no_nucleus():
    differences = []
    for cell in cells():
        round_field, inside = Image.new("RGB", cell.size), Image.new("L", cell.size)
        ImageDraw.Draw(inside).ellipse((0, 0, cell.width - 1, cell.height - 1), fill=255)
        round_field.paste(cell, mask=inside)
        differences.append(difference(canonical_view(cell, SIZE)[0], canonical_view(round_field, SIZE)[0]))
    assert np.median(differences) < 4


def test_a_crop_without_a_nucleus_says_so_and_is_shown_whole():
    empty = np.full((120, 120, 3), (240, 225, 205), np.uint8)
    empty[40:80, 40:80] = (235, 190, 165)  # a red cell: it absorbs blue as much as green
    view, nucleus = canonical_view(Image.fromarray(empty), 60)
    assert nucleus is None
    assert (view[0, 0] == WHITE).all()
    assert view[30, 30, 2] < view[0, 0, 2] - 20
    assert (view[22:38, 22:38] == view[30, 30]).all()


@pytest.mark.parametrize("lit", [(slice(0, None, 63),), (slice(None), slice(0, None, 63))], ids=["rows", "columns"])
def test_bright_lines_far_apart_on_black_are_no_padding(lit: tuple[slice, ...]):
    """Two lines at the borders: each is lit from end to end, and what crosses them hardly at all."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[lit] = 255
    assert without_padding(Image.fromarray(pixels)).image.size == (64, 64)
    assert canonical_view(Image.fromarray(pixels), 32)[0].shape == (32, 32, 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(16, 90), st.integers(16, 90), st.integers(0, 2**32 - 1), st.sampled_from([32, 64]))
@example(16, 84, 160, 32)  # dark noise with a few bright rows
def test_anything_gives_a_view(width: int, height: int, seed: int, size: int):
    rng = np.random.default_rng(seed)
    levels = rng.integers(1, 257)
    noise = rng.integers(0, levels, (height, width, 3)).astype(np.uint8)
    view, _ = canonical_view(Image.fromarray(noise), size)
    assert view.shape == (size, size, 3)
    assert view.dtype == np.uint8


@pytest.mark.parametrize("name", ["pbc", "lisc", "bccd"])
def test_real_nuclei_are_found_and_fill_their_view(name: str):
    """The share of the view that is darkly stained is alike at all sites, though the crops are not."""
    root = real_data()
    frame = pd.read_csv(root / f"{name}.csv").dropna(subset="label")
    frame = frame.groupby("label").head(12)
    assert set(frame["label"]) == set(CLASSES)
    seen = [canonical_view(decode((root / path).read_bytes())[0], SIZE) for path in frame["path"]]
    assert np.mean([nucleus is not None for _, nucleus in seen]) >= 0.98
    dark = np.array([(view[..., 0] < 0.65 * WHITE).mean() for view, _ in seen])
    assert 0.12 < np.median(dark) < 0.35
