"""Knowing a cell again in NumPy alone, as the learner does with the pools' images and the service with a report's."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter, maximum_filter, zoom

from tests.data.conftest import encoded
from tests.data.test_near_duplicates import CHANGES, found
from wbc_model.core import twins
from wbc_model.core.images import decode
from wbc_model.core.twins import fingerprint, twins_of
from wbc_model.rendering.cells import render_cells

RANDOM = np.random.default_rng(0).uniform(0, 255, (twins.VIEW, twins.VIEW)).astype(np.float32)


@pytest.fixture(scope="module")
def crops() -> list[Image.Image]:
    return [Image.fromarray(cell.pixels) for cell in render_cells(12, seed=3, size=160)]


def test_the_filters_are_those_of_scipy() -> None:
    for sigma in (1.0, 2.5, 4.0, 5.0):
        np.testing.assert_allclose(twins._blurred(RANDOM, sigma), gaussian_filter(RANDOM, sigma), atol=1e-3)
    np.testing.assert_array_equal(twins._highest_around(RANDOM), maximum_filter(RANDOM, 5))
    square = RANDOM[:24, :24]
    cosines = twins._cosines(24)
    np.testing.assert_allclose(2 * 2 * (cosines @ square @ cosines.T), dctn(square), rtol=1e-3, atol=0.1)
    for rows, columns in ((32, 41), (64, 80), (127, 128)):
        stretched = twins._stretching(rows) @ RANDOM @ twins._stretching(columns).T
        expected = zoom(RANDOM, (rows / 64, columns / 64), order=1, grid_mode=True, mode="nearest")
        np.testing.assert_allclose(stretched, expected, atol=1e-3)


@pytest.mark.parametrize("change", CHANGES)
def test_the_service_knows_every_cell_again_that_the_learner_does(change: str, crops: list[Image.Image]) -> None:
    changed = [CHANGES[change](crop) for crop in crops]
    assert found([encoded(crop) for crop in [*crops, *changed]]) == {(number, number + 12) for number in range(12)}
    earlier, later = [fingerprint(crop) for crop in crops], [fingerprint(crop) for crop in changed]
    assert twins_of(later, earlier) == twins_of([*earlier, *later])[12:] == list(range(12))
    assert [twins_of([cell], earlier) for cell in later] == [[number] for number in range(12)]


def test_of_a_jpeg_decoded_small_the_fingerprint_is_that_of_the_file(crops: list[Image.Image]) -> None:
    large = encoded(crops[0].resize((640, 480)), "JPEG", quality=90)
    image, facts = decode(large, at_least=100)
    small = fingerprint(image, max(image.size) / max(facts.width, facts.height))
    assert small[:4] == fingerprint(decode(large)[0])[:4] == np.array([480, 640], "<u2").tobytes()
    assert twins_of([small], [fingerprint(crops[1]), fingerprint(decode(large)[0])]) == [1]


def test_other_cells_have_no_twin() -> None:
    cells = [fingerprint(Image.fromarray(cell.pixels)) for cell in render_cells(250, seed=1, size=96)]
    assert twins_of(cells) == [None] * 250
    blank = fingerprint(Image.new("RGB", (64, 64), "white"))
    assert twins_of([blank, blank, blank], [blank]) == [None] * 3  # nothing to know them by
    assert twins_of([], []) == []


def test_images_made_to_look_alike_cost_no_more_than_seconds(crops: list[Image.Image]) -> None:
    """A thousand cuts of one field of one pattern: each landmark looks like each."""
    pattern = np.tile(np.asarray(crops[0].resize((32, 32))), (8, 8, 1))
    same = [fingerprint(Image.fromarray(np.roll(pattern, step, axis=1)[:96, :96])) for step in range(300)]
    start = time.process_time()
    found = twins_of(same[:64], same * 3)
    assert time.process_time() - start < 20
    assert None not in found


def test_the_module_needs_no_scipy() -> None:
    code = "import sys, wbc_model.core.twins; print([m for m in ('torch', 'pandas', 'scipy', 'pyarrow') if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert answer.stdout.strip() == "[]"
