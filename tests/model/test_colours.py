"""Colours without a network: what the numbers say, and that a first query by them covers the kinds of cells."""

import numpy as np
import pytest

from tests.model.conftest import rendered_set
from wbc_model.acquisition.colours import WIDTH, colours, whitened
from wbc_model.acquisition.strategies import Labelled, PoolScores, find_strategy, select
from wbc_model.core.classes import CLASS_INDEX


def test_by_hand():
    """A red disc on white: density 0 in red, log(256 / 128) in green, log(256 / 64) in blue; nothing spreads in the rings."""
    images = np.full((1, 64, 64, 3), 255, np.uint8)
    steps = (np.arange(64) + 0.5) / 32 - 1
    images[0, np.hypot(steps[:, None], steps[None]) < 0.9] = (255, 127, 63)
    (row,) = colours(images)
    assert len(row) == WIDTH
    red, green, blue = 0, np.log(2), np.log(4)
    per_quantile = [red, green, blue, red - green, green - blue]
    np.testing.assert_allclose(row[:25], per_quantile * 5, atol=1e-6)
    np.testing.assert_allclose(row[25:], [red, green, blue, 0, 0, 0] * 4, atol=1e-4)


def test_turned_cells_have_the_same_colours():
    images = rendered_set(20, seed=3, size=64).images
    np.testing.assert_allclose(colours(images), colours(np.rot90(images, axes=(1, 2))), atol=1e-4)


def test_whitened_rows_spread_alike_and_constant_numbers_do_not_count():
    rng = np.random.default_rng(0)
    rows = np.c_[rng.normal(size=(300, 3)) * [1, 100, 0.01], np.ones(300)].astype(np.float32)
    white = whitened(rows)
    assert white.shape == (300, 4)
    np.testing.assert_allclose(np.cov(white, rowvar=False, bias=True), np.diag([0, 1, 1, 1]), atol=1e-3)
    np.testing.assert_allclose(abs(white), abs(whitened(rows * np.float32([1, 5, 1, 1]))), atol=1e-3)
    assert np.isfinite(whitened(np.ones((4, 5), np.float32))).all()


def test_the_first_query_finds_rare_classes_that_chance_misses():
    """Of 400 cells 8 are basophils and 8 eosinophils: 30 asked for by colour hold some of both with any seed."""
    cells = rendered_set(1200, seed=4, size=32)
    rare = [CLASS_INDEX["Basophil"], CLASS_INDEX["Eosinophil"]]
    common = np.flatnonzero(~np.isin(cells.labels, rare))[:384]
    rows = np.concatenate([*(np.flatnonzero(cells.labels == label)[:8] for label in rare), common])
    labels, pool = cells.labels[rows], colours(cells.images[rows])
    scores = PoolScores(np.full((400, 5), 0.2), np.zeros(400), colours=pool)
    found = [
        np.bincount(labels[select(find_strategy("colour_cover"), scores, 30, seed).indices], minlength=5) for seed in range(5)
    ]
    assert min(counts[rare].min() for counts in found) >= 1
    chance = np.random.default_rng(0)
    drawn = [np.bincount(labels[chance.permutation(400)[:30]], minlength=5)[rare].min() for _ in range(50)]
    assert np.mean(np.array(drawn) >= 1) < 0.4


def test_what_is_labelled_already_is_not_asked_for_again():
    rows = np.array([[0.0], [0.1], [10.0], [10.1]], np.float32)
    known = Labelled(np.zeros(1, np.int64), np.full((1, 5), 0.2), colours=np.array([[10.05]], np.float32))
    pool = PoolScores(np.full((4, 5), 0.2), np.zeros(4), labelled=known, colours=rows)
    assert select(find_strategy("colour_cover"), pool, 1, 0).indices.tolist() == [0]
    with pytest.raises(ValueError, match="colour_cover needs the colours of each of the 4 cells"):
        select(find_strategy("colour_cover"), PoolScores(np.full((4, 5), 0.2), np.zeros(4)), 1, 0)
