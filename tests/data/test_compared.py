"""Which cells show the same, among many: every close pair of hashes is found, and what was compared is not compared again."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.conftest import encoded
from wbc_model.cells.store import ImageStore, StoredImage
from wbc_model.cells.tables import digests
from wbc_model.checks import compared as module
from wbc_model.checks.compared import compared
from wbc_model.checks.near_duplicates import close_pairs, near_duplicates
from wbc_model.checks.quality import measure, measure_store
from wbc_model.core.twins import BITS, CORRELATION, SCALE_BITS
from wbc_model.rendering.cells import render_cells


def every_close_pair(words: np.ndarray, max_bits: int) -> dict[tuple[int, int], int]:
    """By comparing each with each."""
    bits = np.bitwise_count(words[:, None] ^ words[None])
    first, second = np.nonzero(np.triu(bits <= max_bits, 1))
    return {(int(a), int(b)): int(bits[a, b]) for a, b in zip(first, second, strict=True)}


def found(words: np.ndarray, asked: np.ndarray, max_bits: int) -> list[tuple[int, int, int]]:
    return [tuple(map(int, row)) for part in close_pairs(words, asked, max_bits) for row in zip(*part, strict=True)]


def families(seed: int, count: int, most: int) -> np.ndarray:
    """Words of which many differ in few bits."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**64, count, np.uint64)[rng.integers(0, max(1, count // 4), count)]
    for _ in range(most):
        words ^= np.where(rng.random(count) < 0.7, np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64), np.uint64(0))
    return words


@given(st.integers(0, 10_000), st.integers(1, 80), st.sampled_from([0, 1, 5, 8, 13]))
@settings(max_examples=12, deadline=None)
def test_no_close_pair_is_missed_and_each_is_found_once(seed: int, count: int, max_bits: int) -> None:
    words = families(seed, count, 10)
    expected = every_close_pair(words, max_bits)
    pairs = found(words, np.arange(count), max_bits)
    assert len(pairs) == len(expected)
    assert {(a, b): bits for a, b, bits in pairs} == expected
    asked = np.flatnonzero(np.random.default_rng(seed).random(count) < 0.3)
    some = found(words, asked, max_bits)
    assert sorted(some) == sorted((a, b, bits) for (a, b), bits in expected.items() if a in asked or b in asked)


@pytest.mark.parametrize("max_bits", [BITS, BITS + SCALE_BITS])
def test_of_landmarks_of_drawn_cells_the_same_pairs_are_close(max_bits: int) -> None:
    crops = [Image.fromarray(cell.pixels) for cell in render_cells(40, seed=2, size=64)]
    measured = [measure(encoded(crop)) for crop in [*crops, *(crop.resize((60, 60)) for crop in crops)]]
    words = np.frombuffer(b"".join(row["hashes"] for row in measured), np.uint64)
    pairs = found(words, np.arange(len(words)), max_bits)
    assert {(a, b): bits for a, b, bits in pairs} == every_close_pair(words, max_bits)
    assert pairs


class _Store:
    """A store that grows, with some of its cells saved again."""

    def __init__(self, folder: Path) -> None:
        crops = [Image.fromarray(cell.pixels) for cell in render_cells(12, seed=3, size=96)]
        again = [encoded(crop, "JPEG", quality=80) for crop in crops[:6]]
        self.images = [*(encoded(crop) for crop in crops), *again]
        self.folder = folder

    def measured(self, numbers: list[int]) -> pd.DataFrame:
        return pd.DataFrame([measure(self.images[number]) for number in numbers])

    def compare(self, numbers: list[int]) -> list[tuple[int, int, float, float]]:
        data = [self.images[number] for number in numbers]
        rows = [StoredImage(one, f"{n}", hashlib.sha256(one).hexdigest(), 96, 96, "PNG", "") for n, one in enumerate(data)]
        store = ImageStore(self.folder / "images")
        store.add(rows)
        facts = measure_store(store, self.folder / "cache")
        cells = np.flatnonzero(np.isin(facts.names, digests([row.sha256 for row in rows])))
        return [(p.first, p.second, p.correlation, p.offset) for p in compared(facts, cells, self.folder / "cache")]


def test_what_is_new_is_compared_with_all_and_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = _Store(tmp_path)
    asked: list[int] = []
    real = module.alike

    def counted(crops, max_bits, min_correlation, new):  # type: ignore[no-untyped-def]
        asked.append(int(new.sum()))
        return real(crops, max_bits, min_correlation, new)

    monkeypatch.setattr(module, "alike", counted)
    order = [*range(10), 12, 13, 14, 10, 11, 15, 16, 17]
    expected = near_duplicates(site.measured(order), BITS, CORRELATION)
    assert len(expected) == 6
    first = site.compare(order[:12])
    assert [pair[:2] for pair in first] == [(0, 10), (1, 11)]
    assert site.compare(order[:15])[-1][:2] == (2, 12)
    assert site.compare(order) == [(p.first, p.second, p.correlation, p.offset) for p in expected]
    assert site.compare(order[:12]) == first
    assert site.compare(order) == [(p.first, p.second, p.correlation, p.offset) for p in expected]
    assert asked == [12, 3, 3], "who was away is still known"


def test_the_pairs_of_real_sets_are_those_of_each_with_each(real_data: Path) -> None:
    for name in ("lisc", "bcisc"):
        paths = pd.read_csv(real_data / f"{name}.csv")["path"].tolist()
        hashes = b"".join(measure((real_data / path).read_bytes())["hashes"] for path in paths)
        words = np.frombuffer(hashes, np.uint64)
        assert {(a, b): n for a, b, n in found(words, np.arange(len(words)), 13)} == every_close_pair(words, 13)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bccd", "pbc_other", "pbc"])
def test_the_pairs_of_large_real_sets_are_those_of_each_with_each(real_data: Path, name: str) -> None:
    paths = pd.read_csv(real_data / f"{name}.csv")["path"].tolist()
    words = np.frombuffer(b"".join(measure((real_data / path).read_bytes())["hashes"] for path in paths), np.uint64)
    pairs = {(a, b): bits for a, b, bits in found(words, np.arange(len(words)), BITS)}
    expected = {}
    for start in range(0, len(words), 500):
        bits = np.bitwise_count(words[start : start + 500, None] ^ words[None])
        first, second = np.nonzero(bits <= BITS)
        near = zip((first + start).tolist(), second.tolist(), bits[first, second].tolist(), strict=True)
        expected |= {(a, b): n for a, b, n in near if a < b}
    assert pairs == expected
