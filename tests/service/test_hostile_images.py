"""Images as they come, and files that only claim to be images, each posted beside a good one."""

import io
import struct
import zlib

import httpx
import numpy as np
import pytest
from live import encode, form, of_class
from PIL import Image
from tiny_model import COLOURS

BLUE = COLOURS["Basophil"]


def _exif_rotated() -> bytes:
    """Left half red, right half blue, stored on its side; the mean does not change, but decoding must go well."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.new("RGB", (40, 60), BLUE), "JPEG", exif=exif)


def _bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 60,000 x 60,000."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def _transparent() -> bytes:
    return encode(Image.new("RGBA", (40, 40), (0, 0, 255, 0)))


def _palette() -> bytes:
    return encode(Image.new("RGB", (40, 40), BLUE).quantize(4))


def _sixteen_bits() -> bytes:
    return encode(Image.fromarray(np.full((40, 40), 30_000, np.uint16)))


def _truncated() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3))
    return encode(noise, "JPEG")[:-4000]


def _zip_bomb_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (20_000, 20_000)).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    return buffer.getvalue()


USABLE = {
    "jpeg": (encode(BLUE, "JPEG", quality=95), "Basophil"),
    "bmp": (encode(BLUE, "BMP"), "Basophil"),
    "tiff": (encode(BLUE, "TIFF"), "Basophil"),
    "cmyk": (encode(Image.new("CMYK", (40, 40), (255, 255, 0, 0)), "JPEG"), "Basophil"),
    "palette": (_palette(), "Basophil"),
    "transparent, on white": (_transparent(), "Neutrophil"),
    "grey": (encode(Image.new("L", (40, 40), 255)), "Neutrophil"),
    "one bit": (encode(Image.new("1", (40, 40), 0)), "Monocyte"),
    "exif": (_exif_rotated(), "Basophil"),
    "not square": (encode(Image.new("RGB", (100, 17), BLUE)), "Basophil"),
}
REJECTED = {
    "truncated": (_truncated(), "truncated"),
    "bomb": (_bomb(), "too_large"),
    "compressed tiff": (_zip_bomb_tiff(), "too_large"),
    "16 bits": (_sixteen_bits(), "undecodable"),
    "1x1": (encode(Image.new("RGB", (1, 1))), "too_small"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/x"/></svg>', "undecodable"),
    "html": (b"<!doctype html><script>alert(1)</script>", "undecodable"),
    "pdf": (b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "undecodable"),
    "gif": (encode(BLUE, "GIF"), "undecodable"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n", "undecodable"),
    "empty": (b"", "undecodable"),
    "zeros": (bytes(5000), "undecodable"),
    "half a header": (of_class("Basophil")[:20], "undecodable"),
}


@pytest.mark.parametrize("name", USABLE)
def test_odd_but_usable(client: httpx.Client, name: str) -> None:
    data, label = USABLE[name]
    [result] = client.post("/v1/classify", files=form(data)).json()["results"]
    assert (result["status"], result.get("label")) == ("ok", label)


def test_the_name_and_the_media_type_do_not_matter(client: httpx.Client) -> None:
    answer = client.post("/v1/classify", files=[("images", ("../../etc/passwd.svg", encode(BLUE, "JPEG"), "text/html"))])
    assert answer.json()["results"][0]["label"] == "Basophil"


def test_each_hostile_file_is_rejected_and_spoils_nothing(client: httpx.Client) -> None:
    files = [data for bad, _ in REJECTED.values() for data in (bad, of_class("Lymphocyte"))]
    answer = client.post("/v1/classify", files=form(*files))
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert {result.get("label") for result in results[1::2]} == {"Lymphocyte"}
    reasons = {name: result["problem"]["reason"] for name, result in zip(REJECTED, results[::2], strict=True)}
    assert reasons == {name: reason for name, (_, reason) in REJECTED.items()}
