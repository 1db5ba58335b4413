import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from tests.data.conftest import encoded
from wbc_model.cells.store import ImageStore, StoredImage
from wbc_model.checks.near_duplicates import near_duplicates
from wbc_model.checks.quality import measure, measure_store
from wbc_model.core import twins
from wbc_model.rendering.cells import render_cells


def measured(images: list[bytes]) -> pd.DataFrame:
    return pd.DataFrame([measure(data) for data in images])


def found(images: list[bytes]) -> set[tuple[int, int]]:
    pairs = near_duplicates(measured(images), twins.BITS, twins.CORRELATION)
    return {(pair.first, pair.second) for pair in pairs}


def reopened(image: Image.Image, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=quality)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved again": lambda image: reopened(image, 60),
    "saved badly": lambda image: reopened(image, 25),
    "smaller": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((image.width * 3 // 2, image.height * 3 // 2), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "other white balance": lambda image: Image.merge(
        "RGB", [image.getchannel(0), *(c.point(lambda v: int(v * 0.9)) for c in image.split()[1:])]
    ),
    "out of focus": lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 160)),
    "noisy": lambda image: Image.fromarray(
        np.clip(np.asarray(image) + np.random.default_rng(0).normal(0, 4, (*image.size[::-1], 3)), 0, 255).astype(np.uint8)
    ),
    "cut to the side": lambda image: image.crop((image.width // 10, image.height // 20, image.width, image.height)),
    "cut and enlarged": lambda image: image.crop((image.width // 32, image.height // 32, image.width, image.height)).resize(
        image.size
    ),
}


HARD = ("larger", "out of focus", "noisy", "cut to the side", "cut and enlarged")


def of_real_cells(change: str) -> Any:
    """A case; the hard ones are tried each time."""
    return pytest.param(change, marks=[] if change in HARD else pytest.mark.slow)


@pytest.mark.parametrize("change", CHANGES)
def test_a_drawn_cell_is_known_again(change: str) -> None:
    crops = [Image.fromarray(cell.pixels) for cell in render_cells(12, seed=3, size=160)]
    images = [encoded(crop) for crop in [*crops, *(CHANGES[change](crop) for crop in crops)]]
    assert found(images) == {(number, number + 12) for number in range(12)}


@pytest.mark.parametrize("change", map(of_real_cells, CHANGES))
def test_a_real_cell_is_known_again(change: str, real_data: Path) -> None:
    manifest = pd.read_csv(real_data / "pbc.csv").groupby("label").head(2)
    crops = [Image.open(real_data / path).convert("RGB") for path in manifest["path"]]
    images = [encoded(crop) for crop in [*crops, *(CHANGES[change](crop) for crop in crops)]]
    assert found(images) == {(number, number + len(crops)) for number in range(len(crops))}


def test_different_drawn_cells_are_different() -> None:
    assert found([encoded(Image.fromarray(cell.pixels)) for cell in render_cells(250, seed=1, size=96)]) == set()


REAL_PAIRS = [  # seen to be one cell, photographed or cut twice
    ("bccd", "BloodImage_00230_1", "BloodImage_00257_1"),
    ("bccd", "BloodImage_00252_1", "BloodImage_00237_1"),
    ("bccd", "BloodImage_00261_1", "BloodImage_00226_1"),
    ("bccd", "BloodImage_00277_1", "BloodImage_00204_1"),
    ("bccd", "BloodImage_00224_1", "BloodImage_00264_1"),
    ("bccd", "BloodImage_00206_1", "BloodImage_00278_1"),
    ("bccd", "BloodImage_00279_1", "BloodImage_00207_1"),
    ("bccd", "BloodImage_00232_1", "BloodImage_00255_1"),
    ("bccd", "BloodImage_00400_1", "BloodImage_00377_1"),
    ("lisc", "neu_neut_16", "neu_neut_34"),
    ("lisc", "mono_33", "mono_44"),
    ("lisc", "bas_Baoso_1", "bas_Baoso_51"),
    ("lisc", "eos_eosi_5", "eos_eosi_7"),
]


def test_real_repeats_are_found_and_look_alikes_are_not(real_data: Path) -> None:
    for name, count in (("bccd", 26), ("lisc", 25)):
        paths = pd.read_csv(real_data / f"{name}.csv")["path"].tolist()
        stems = [Path(path).stem for path in paths]
        pairs = {frozenset((stems[a], stems[b])) for a, b in found([(real_data / path).read_bytes() for path in paths])}
        for _, first, second in (pair for pair in REAL_PAIRS if pair[0] == name):
            assert any({first, second} == {stem.removeprefix("mon_") for stem in pair} for pair in pairs), (first, second)
        assert frozenset(("BloodImage_00054_1", "BloodImage_00055_1")) not in pairs
        assert len(pairs) == count


def test_measurements() -> None:
    flat = measure(encoded(Image.new("RGB", (64, 48), (200, 200, 200))))
    assert (flat["width"], flat["height"], flat["mode"], flat["format"]) == (64, 48, "RGB", "PNG")
    assert (flat["brightness"], flat["contrast"], flat["sharpness"]) == (200.0, 0.0, 0.0)
    assert flat["landmarks"] == flat["hashes"] == b""
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:, 32:] = 100
    split = measure(encoded(Image.fromarray(halves)))
    assert (split["brightness"], split["contrast"]) == (50.0, 50.0)
    assert split["sharpness"] == pytest.approx(2 * 100**2 / 62)  # two columns of 62 where the Laplacian is +-100
    assert measure(encoded(Image.fromarray(halves), "BMP"))["pixels"] == split["pixels"]
    turned = np.ascontiguousarray(halves.transpose(1, 0, 2))
    assert measure(encoded(Image.fromarray(turned)))["pixels"] != split["pixels"]
    assert found([encoded(Image.new("RGB", (64, 64), "white")), encoded(Image.new("RGB", (64, 64), "grey"))]) == set()


def test_a_shard_is_measured_once_and_damage_is_never_hidden_by_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    from wbc_model.checks import quality

    crops = [encoded(Image.fromarray(cell.pixels)) for cell in render_cells(6, seed=0, size=64)]
    images = [StoredImage(data, f"{n}", hashlib.sha256(data).hexdigest(), 64, 64, "PNG", "") for n, data in enumerate(crops)]
    store = ImageStore(tmp_path / "images")
    (shard,) = store.add(images)
    measured = measure_store(store, tmp_path / "cache")
    first = measured.facts
    assert [name.ljust(32, b"\0").hex() for name in measured.names.tolist()] == [image.sha256 for image in images]
    assert set(first["damage"]) == {""}
    with monkeypatch.context() as patch:
        patch.setattr(quality, "measure", None)
        pd.testing.assert_frame_equal(measure_store(store, tmp_path / "cache").facts, first)
    content = shard.read_bytes()
    place = content.index(crops[4]) + 200
    shard.write_bytes(content[:place] + b"\0\0\0\0" + content[place + 4 :])
    again = measure_store(ImageStore(tmp_path / "images"), tmp_path / "cache").facts
    assert (again["damage"] != "").tolist() == [False] * 4 + [True, False]
