"""One picture, told from the bytes: what is not one is refused in one line, whatever the decoder calls it."""

import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_images import outcome
from tests.pictures import NOT_ONE_PICTURE, ONE_PICTURE
from wbc_model.core.errors import ImageRejected
from wbc_model.core.images import decode

SECONDS = 3.0


@pytest.mark.parametrize("name", NOT_ONE_PICTURE)
def test_what_is_not_one_picture_is_refused_in_one_line(name: str) -> None:
    data, word = NOT_ONE_PICTURE[name]
    start = time.process_time()
    with pytest.raises(ImageRejected) as caught:
        decode(data)
    assert time.process_time() - start < SECONDS
    assert caught.value.reason == "undecodable"
    assert word in caught.value.detail
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize("name", ONE_PICTURE)
def test_one_picture_is_decoded_as_it_is(name: str) -> None:
    data, colour = ONE_PICTURE[name]
    image, _ = decode(data)
    pixels = np.asarray(image).reshape(-1, 3).astype(int)
    assert np.abs(pixels - colour).max() <= 1, pixels[0]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_damaged_structure_is_refused_or_decoded_never_a_crash(data: st.DataObject) -> None:
    files = [file for file, _ in [*ONE_PICTURE.values(), *NOT_ONE_PICTURE.values()] if len(file) < 50_000]
    content = bytearray(data.draw(st.sampled_from(files)))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, min(len(content) - 4, 300)))
        number = data.draw(st.sampled_from([0, 1, 2, 8, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF))
        struct.pack_into("<I", content, place, number)
    assert outcome(bytes(content)) in {"decoded", "undecodable", "truncated", "too_large", "too_small"}


@pytest.mark.parametrize(
    "start", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0\xff\xff", b"MM\0+\0\x08\0\0" + b"\xff" * 40]
)
@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\xff\xd8", b"\xff\xe2\0\2", b"II*\0"])
def test_nothing_costs_long_however_it_is_filled(start: bytes, fill: bytes) -> None:
    begun = time.process_time()
    with pytest.raises(ImageRejected):
        decode((start + fill * 2**25)[: 2**25])
    assert time.process_time() - begun < SECONDS
