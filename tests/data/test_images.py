"""Decoding and preprocessing: what an image may be, and what the network sees of it."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wbc_model.core.canonical import background_colour
from wbc_model.core.errors import ImageRejected
from wbc_model.core.images import View, decode, look, preprocess, to_square
from wbc_model.rendering.cells import render_cells


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def cell() -> Image.Image:
    return Image.fromarray(next(iter(render_cells(1, seed=0, size=320))).pixels)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_same_view(cell: Image.Image, format: str):
    assert np.array_equal(preprocess(encoded(cell, format), 64, "whole"), preprocess(encoded(cell), 64, "whole"))


@pytest.mark.parametrize("view", ["whole", "canonical"])
def test_looking_gives_the_same_view_and_the_nucleus_in_pixels_of_the_file(cell: Image.Image, view: View):
    """Whatever the size at which a JPEG was decoded, and however it lies."""
    small, large = encoded(cell, "JPEG", quality=95), encoded(cell.resize((640, 640)), "JPEG", quality=95)
    seen, shown = look(small, 64, view)
    assert np.array_equal(seen, preprocess(small, 64, view))
    twice = look(large, 64, view)[1]
    assert twice[0] - shown[0] == pytest.approx(np.log(2), abs=0.1)  # radius
    np.testing.assert_allclose(twice[1:], shown[1:], atol=0.15)
    np.testing.assert_allclose(look(encoded(cell), 160, view)[1][4:], np.log(background_colour(np.asarray(cell))), atol=0.05)
    assert np.isnan(look(encoded(Image.new("RGB", (64, 64), "white")), 32, view)[1]).all()


def test_a_jpeg_decoded_small_looks_like_one_decoded_whole(cell: Image.Image):
    data = encoded(cell, "JPEG", quality=90)
    small = preprocess(data, 64, "whole").astype(float)
    whole = to_square(decode(data)[0], 64).astype(float)
    assert np.abs(small - whole).mean() < 2.5
    assert decode(data, at_least=64)[0].width < 320
    assert decode(data, at_least=64)[1].width == 320  # the facts are those of the file


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK"])
def test_modes_become_rgb(cell: Image.Image, mode: str):
    format = "TIFF" if mode == "CMYK" else "PNG"
    image, facts = decode(encoded(cell.convert(mode), format))
    assert image.mode == "RGB"
    assert facts.mode == mode


def test_transparency_is_white_background():
    image, _ = decode(encoded(Image.new("RGBA", (32, 32), (10, 20, 30, 0))))
    assert image.getpixel((5, 5)) == (255, 255, 255)


def test_exif_orientation_is_undone(cell: Image.Image):
    turned = cell.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated clockwise
    assert np.array_equal(np.asarray(decode(encoded(turned, "PNG", exif=exif))[0]), np.asarray(cell))


def test_a_crop_that_is_not_square_keeps_its_shape():
    wide = Image.new("RGB", (64, 32), (200, 100, 50))
    wide.paste((0, 0, 0), (24, 8, 40, 24))  # a square of 16 px
    view = to_square(wide, 64)
    black = (view == 0).all(axis=2)
    assert black.any(axis=0).sum() == black.any(axis=1).sum() == 16
    assert tuple(view[0, 0]) == (200, 100, 50)  # the new border has the colour of the old


def test_refusals_are_named(cell: Image.Image):
    jpeg = encoded(cell, "JPEG")
    cases = {
        b"": "undecodable",
        b"<svg></svg>": "undecodable",
        jpeg[: len(jpeg) // 2]: "truncated",
        encoded(cell)[:-2000]: "truncated",
        encoded(Image.new("RGB", (8, 400))): "too_small",
        encoded(Image.new("1", (20000, 20000))): "too_large",
        encoded(Image.new("I;16", (64, 64))): "undecodable",
        encoded(Image.new("F", (64, 64)), "TIFF"): "undecodable",
        encoded(cell, "GIF"): "undecodable",
        b"\0" * (33 * 2**20): "too_large",
    }
    for data, reason in cases.items():
        with pytest.raises(ImageRejected) as caught:
            preprocess(data, 64, "whole")
        assert caught.value.reason == reason, (data[:20], caught.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_decoded_never_a_crash(data: st.DataObject):
    format = data.draw(st.sampled_from(["JPEG", "PNG", "BMP", "TIFF"]))
    image = Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint32).reshape(48, 48, 3).astype(np.uint8))
    content = bytearray(encoded(image, format))
    for _ in range(data.draw(st.integers(1, 12))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    assert outcome(bytes(content)) in {"decoded", "undecodable", "truncated", "too_large", "too_small"}


def outcome(content: bytes) -> str:
    """`decoded`, or the reason of the refusal; any other exception is a crash."""
    try:
        return "decoded" if preprocess(content, 32, "whole").shape == (32, 32, 3) else "wrong shape"
    except ImageRejected as error:
        return error.reason


def test_real_images_decode():
    from tests.realdata import real_data

    files = sorted(real_data().glob("*/**/*.jpg"))[::400] + sorted(real_data().glob("lisc/*/*.png"))[::60]
    assert len(files) > 20
    for file in files:
        assert preprocess(file.read_bytes(), 64, "whole").shape == (64, 64, 3)


def test_the_module_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from wbc_model.core import images, model_card; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
