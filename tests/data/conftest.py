"""Cells for the data tests: drawn ones with texture of their own, and the real ones where they are at hand."""

import csv
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from wbc_model.params import Params, read_params

ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = Path(os.environ.get("WBC_REAL_DATA", ROOT / ".." / "shared" / "data"))
Row = tuple[str, ...]


@pytest.fixture
def params() -> Params:
    return read_params(ROOT / "params.yaml")


@pytest.fixture
def real_data() -> Path:
    if not (REAL_DATA / "pbc.csv").is_file():
        pytest.skip(f"no real images in {REAL_DATA} (set WBC_REAL_DATA)")
    return REAL_DATA


def blobs(seed: int, side: int = 96) -> Image.Image:
    """A crop with random blobs: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8))
    return noise.resize((side, side), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def encoded(image: Image.Image, image_format: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **{"compress_level": 1, **options})
    return buffer.getvalue()


def write_manifest(folder: Path, rows: Iterable[Row], columns: Row = ("path", "label")) -> Path:
    path = folder / "manifest.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.fixture
def cell(tmp_path: Path) -> Callable[..., str]:
    """Writes a drawn cell into the source folder and returns its path as a manifest has it."""
    folder = tmp_path / "source"
    folder.mkdir()

    def write(name: str, seed: int | bytes, image_format: str = "PNG") -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seed if isinstance(seed, bytes) else encoded(blobs(seed), image_format))
        return name

    return write
