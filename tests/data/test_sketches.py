"""A glance at proposed pairs: no pair is lost by it, and few others are left."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.data.conftest import encoded
from tests.data.test_near_duplicates import CHANGES
from wbc_model.checks import near_duplicates as module
from wbc_model.checks import sketches
from wbc_model.checks.near_duplicates import alike, near_duplicates
from wbc_model.checks.quality import measure
from wbc_model.core.twins import BITS, CORRELATION, VIEW, Crops
from wbc_model.rendering.cells import render_cells

SETS = ("bccd", "lisc", "bcisc", "pbc_other", "pbc")


def measured(images: list[bytes]) -> pd.DataFrame:
    return pd.DataFrame([measure(data) for data in images])


def found(table: pd.DataFrame) -> list[tuple[int, int, float, float]]:
    return [(p.first, p.second, p.correlation, p.offset) for p in near_duplicates(table, BITS, CORRELATION)]


def found_without(table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, float, float]]:
    """The pairs when each that is proposed is laid over each other."""
    with monkeypatch.context() as patch:
        patch.setattr(sketches, "AGREEMENT", -2.0)
        patch.setattr(sketches, "SCALED_AGREEMENT", -2.0)
        return found(table)


@pytest.fixture(scope="module")
def many() -> pd.DataFrame:
    """Three cells, each changed in all ways."""
    crops = [Image.fromarray(cell.pixels) for cell in render_cells(3, seed=5, size=96)]
    return measured([encoded(crop) for crop in [*crops, *(change(crop) for change in CHANGES.values() for crop in crops)]])


def test_no_pair_of_drawn_cells_is_lost(many: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = found(many)
    assert len(pairs) > 100
    assert pairs == found_without(many, monkeypatch)


def test_the_pairs_are_the_same_however_few_are_in_memory(many: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = found(many)
    for name, few in (("_LOOKED_THROUGH", 7), ("_SKETCHED", 3), ("_PAIRS_AT_A_TIME", 5)):
        monkeypatch.setattr(sketches, name, few)
    monkeypatch.setattr(module, "_GATHERED", 50)
    monkeypatch.setattr(module, "_PAIRS_AT_A_TIME", 4)
    assert found(many) == pairs


def test_it_does_not_matter_through_which_crop_one_looks(many: pd.DataFrame) -> None:
    views = np.frombuffer(b"".join(many["view"]), np.uint8).reshape(-1, VIEW * VIEW)
    landmarks = np.frombuffer(b"".join(many["landmarks"]), np.uint8).reshape(-1, 2)
    hashes = np.frombuffer(b"".join(many["hashes"]), np.uint64)
    counts = many["hashes"].map(len).to_numpy(np.int64) // 8
    crops = Crops(views, landmarks, hashes, counts, many[["height", "width"]].to_numpy(np.float64))
    new = np.random.default_rng(0).random(len(many)) < 0.4
    whole = [(pair.first, pair.second) for pair in alike(crops, BITS, CORRELATION)]
    some = [(pair.first, pair.second) for pair in alike(crops, BITS, CORRELATION, new)]
    assert some == [pair for pair in whole if new[list(pair)].any()]


def test_a_sketch_has_the_means_of_the_fine_structure() -> None:
    view = np.random.default_rng(0).integers(0, 256, (1, VIEW * VIEW)).astype(np.uint8)
    crops = Crops(view, np.zeros((0, 2), np.uint8), np.zeros(0, np.uint64), np.zeros(1, np.int64), np.ones((1, 2)))
    only = np.zeros(1, np.int32)
    means = crops.detail(0).reshape(16, 4, 16, 4).mean((1, 3))
    np.testing.assert_allclose(sketches._sketches(crops, only)[0].reshape(16, 16), means, atol=1e-3)
    everywhere = sketches._means_at_each_pixel(crops, only).reshape(61, 61)
    np.testing.assert_allclose(everywhere[::4, ::4], means, atol=1e-3)
    np.testing.assert_allclose(everywhere[5, 9], crops.detail(0)[5:9, 9:13].mean(), atol=1e-3)


def test_few_proposed_pairs_of_different_real_cells_are_left(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = pd.read_csv(real_data / "pbc.csv")["path"].tolist()[::25]
    counts = []
    agreeing = module.agreeing

    def counted(crops, first, *more):  # type: ignore[no-untyped-def]
        left = agreeing(crops, first, *more)
        counts.append((len(first), len(left)))
        return left

    monkeypatch.setattr(module, "agreeing", counted)
    near_duplicates(measured([(real_data / path).read_bytes() for path in paths]), BITS, CORRELATION)
    proposed, left = (sum(column) for column in zip(*counts, strict=True))
    assert proposed > 50
    assert left < 0.05 * proposed


@pytest.mark.slow
def test_no_pair_of_real_sets_is_lost(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = []
    for name, pairs in zip(SETS, (26, 25, 2, 0, 38), strict=True):
        table = measured([(real_data / path).read_bytes() for path in pd.read_csv(real_data / f"{name}.csv")["path"]])
        every.append(table)
        assert len(found(table)) == pairs
        assert found(table) == found_without(table, monkeypatch)
    mixed = pd.concat([*every[:4], every[4][::8]], ignore_index=True)
    assert found(mixed) == found_without(mixed, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_no_changed_real_cell_is_lost(change: str, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETS:
        paths = pd.read_csv(real_data / f"{name}.csv")["path"].sample(40, random_state=2)
        crops = [Image.open(real_data / path).convert("RGB") for path in paths]
        table = measured([encoded(crop) for crop in [*crops, *(CHANGES[change](crop) for crop in crops)]])
        assert found(table) == found_without(table, monkeypatch)
