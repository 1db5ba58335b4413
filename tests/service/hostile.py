"""Files that are malformed, costly or only claim to be images, and a seeded fuzzer that makes more of them from good ones."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from live import encode, of_class
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from tiny_model import COLOURS

from tests.pictures import NOT_ONE_PICTURE

BLUE = COLOURS["Basophil"]
Made = bytes | Callable[[], bytes]  # what costs a second is made when it is wanted, and not in every process that collects tests


def made(file: Made) -> bytes:
    """The bytes of a file."""
    return file if isinstance(file, bytes) else file()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, width: int = 40, height: int = 40) -> bytes:
    """A PNG of a blue square with more chunks before its pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = zlib.compress((b"\0" + bytes(BLUE) * width) * height, 1)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 60,000 x 60,000."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@cache
def text_bomb() -> bytes:
    """20 kB that become 20 MB of text."""
    return png(png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000), 9)))


@cache
def profile_bomb() -> bytes:
    """A colour profile of 20 kB that becomes 20 MB."""
    return png(png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(20_000_000), 9)))


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: 14 bytes each, and each costs a pass over the image."""
    data = encode(Image.new("RGB", (side, side), BLUE), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + b"\xff\xd9"


def exif_rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.new("RGB", (40, 60), BLUE), "JPEG", exif=exif)


def with_text() -> bytes:
    info = PngInfo()
    info.add_text("Comment", "<script>alert(1)</script>", zip=True)
    return encode(BLUE, pnginfo=info)


def tiff_pages(count: int, kind: str = "TIFF") -> bytes:
    first, *rest = [Image.new("RGB", (40, 40), BLUE if not number else (255, 0, 0)) for number in range(count)]
    return encode(first, kind, save_all=True, append_images=rest)


@cache
def zip_bomb_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (20_000, 20_000)).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    return buffer.getvalue()


@cache
def large() -> bytes:
    return encode(Image.new("RGB", (6000, 6000), BLUE))


@cache
def wide_and_high() -> bytes:
    return png(width=20_000, height=20_000)


@cache
def narrow_and_high() -> bytes:
    return encode(Image.new("RGB", (16, 65_536)))


@cache
def scans_without_end() -> bytes:
    return many_scans(2000, 20_000)


def truncated(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3))
    return encode(noise, kind)[:-4000]


def grey16(kind: str = "PNG") -> bytes:
    return encode(Image.fromarray(np.full((40, 40), 30_000, np.uint16)), kind)


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# Odd, but an image of one cell: the class that it must be taken for.
USABLE: dict[str, tuple[Made, str]] = {
    "jpeg": (encode(BLUE, "JPEG", quality=95), "Basophil"),
    "progressive jpeg": (encode(BLUE, "JPEG", progressive=True), "Basophil"),
    "bmp": (encode(BLUE, "BMP"), "Basophil"),
    "tiff": (encode(BLUE, "TIFF"), "Basophil"),
    "cmyk jpeg": (encode(Image.new("CMYK", (40, 40), (255, 255, 0, 0)), "JPEG"), "Basophil"),
    "cmyk tiff": (encode(Image.new("CMYK", (40, 40), (255, 255, 0, 0)), "TIFF"), "Basophil"),
    "palette": (encode(Image.new("RGB", (40, 40), BLUE).quantize(4)), "Basophil"),
    "transparent, on white": (encode(Image.new("RGBA", (40, 40), (0, 0, 255, 0))), "Neutrophil"),
    "opaque alpha": (encode(Image.new("RGBA", (40, 40), (0, 0, 255, 255))), "Basophil"),
    "grey with alpha": (encode(Image.new("LA", (40, 40), (255, 255))), "Neutrophil"),
    "grey": (encode(Image.new("L", (40, 40), 255)), "Neutrophil"),
    "one bit": (encode(Image.new("1", (40, 40), 0)), "Monocyte"),
    **{f"exif orientation {number}": (exif_rotated(number), "Basophil") for number in (0, 1, 3, 6, 8, 9, 65535)},
    "broken exif": (encode(BLUE, "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 60), "Basophil"),
    "colour profile": (encode(BLUE, "JPEG", icc_profile=srgb()), "Basophil"),
    "broken colour profile": (encode(BLUE, "PNG", icc_profile=b"rubbish" * 100), "Basophil"),
    "text in a png": (with_text(), "Basophil"),
    "not square": (encode(Image.new("RGB", (100, 17), BLUE)), "Basophil"),
    "rubbish behind the end": (encode(BLUE) + b"<script>alert(1)</script>" * 100, "Basophil"),
    "large": (large, "Basophil"),
}
REJECTED: dict[str, tuple[Made, str]] = {
    "truncated jpeg": (truncated("JPEG"), "truncated"),
    "truncated png": (truncated("PNG"), "truncated"),
    "bomb": (bomb(), "too_large"),
    "compressed tiff": (zip_bomb_tiff, "too_large"),
    "20000x20000": (wide_and_high, "too_large"),
    "16x65536, a square of 13 GB": (narrow_and_high, "too_large"),
    "text bomb": (text_bomb, "undecodable"),
    "colour profile bomb": (profile_bomb, "undecodable"),
    "scans without end": (scans_without_end, "undecodable"),
    "16 bits": (grey16(), "undecodable"),
    "16 bits tiff": (grey16("TIFF"), "undecodable"),
    "float tiff": (encode(Image.new("F", (40, 40), 0.5), "TIFF"), "undecodable"),
    "lab tiff": (encode(Image.new("LAB", (40, 40)), "TIFF"), "undecodable"),
    "1x1": (encode(Image.new("RGB", (1, 1))), "too_small"),
    "1x5000": (encode(Image.new("RGB", (1, 5000))), "too_small"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/x"/></svg>', "undecodable"),
    "html": (b"<!doctype html><script>alert(1)</script>", "undecodable"),
    "pdf": (b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "undecodable"),
    "real pdf": (encode(BLUE, "PDF"), "undecodable"),
    "gif": (encode(BLUE, "GIF"), "undecodable"),
    "animated gif": (tiff_pages(5, "GIF"), "undecodable"),
    "webp": (encode(BLUE, "WEBP"), "undecodable"),
    "jpeg 2000": (encode(BLUE, "JPEG2000"), "undecodable"),
    "icon": (encode(BLUE, "ICO"), "undecodable"),
    "targa": (encode(BLUE, "TGA"), "undecodable"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n", "undecodable"),
    "zip": (b"PK\x03\x04" + bytes(100), "undecodable"),
    "pickle": (b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.", "undecodable"),
    "address": (b"http://127.0.0.1:1/cell.png", "undecodable"),
    "file name": (b"/etc/passwd", "undecodable"),
    "empty": (b"", "undecodable"),
    "one byte": (b"\xff", "undecodable"),
    "zeros": (bytes(5000), "undecodable"),
    "half a header": (of_class("Basophil")[:20], "undecodable"),
    "jpeg's first bytes": (b"\xff\xd8\xff\xe0", "undecodable"),
    **{name: (data, "undecodable") for name, (data, _) in NOT_ONE_PICTURE.items()},
}


def seeds() -> list[bytes]:
    """Good files of each kind, small, so that a mutation hits what matters."""
    noise = np.random.default_rng(1).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    options: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", image, {}),
        ("JPEG", image, {"progressive": True, "exif": exif_of(image)}),
        ("JPEG", image.convert("CMYK"), {}),
        ("JPEG", image.convert("L"), {"icc_profile": srgb()}),
        ("PNG", image, {}),
        ("PNG", image.convert("RGBA"), {}),
        ("PNG", image.quantize(16), {"transparency": 3}),
        ("PNG", image.convert("1"), {}),
        ("BMP", image, {}),
        ("BMP", image.quantize(16), {}),
        *(("TIFF", image, {"compression": name}) for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        ("TIFF", image.convert("1"), {"compression": "group4"}),
        ("TIFF", image.convert("CMYK"), {}),
    ]
    return [encode(picture, kind, **more) for kind, picture, more in options] + [tiff_pages(2), tiff_pages(2, "PNG")]


def exif_of(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 8
    exif[0x010E] = "description"
    return exif.tobytes()


def mutated(count: int, seed: int) -> Iterator[bytes]:
    """`count` files, each a seed with one to eight mutations; the same for the same `seed`."""
    rng = np.random.default_rng(seed)
    good = seeds()
    for _ in range(count):
        data = bytearray(good[rng.integers(len(good))])
        for _ in range(rng.integers(1, 9)):
            mutate(data, good, rng)
        yield bytes(data)


def mutate(data: bytearray, good: list[bytes], rng: np.random.Generator) -> None:
    """Change `data` in one way; `good` are files whose ends may be put in the place of its own."""
    size = len(data)
    if size < 4:
        data += b"\0" * 8
        return
    # Half of the mutations hit the first 200 bytes, where the headers are.
    place = int(rng.integers(min(size, 200))) if rng.random() < 0.5 else int(rng.integers(size))
    length = int(rng.integers(1, 65))
    match int(rng.integers(7)):
        case 0:
            data[place] ^= 1 << int(rng.integers(8))
        case 1:
            data[place] = int(rng.integers(256))
        case 2:  # a number that is easily forgotten
            number = int(rng.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
            width = int(rng.choice([2, 4]))
            data[place : place + width] = (number % 2 ** (8 * width)).to_bytes(width, "big" if rng.random() < 0.5 else "little")
        case 3:
            del data[place : place + length]
        case 4:
            data[place:place] = data[place : place + length] * int(rng.integers(1, 20))
        case 5:
            del data[place:]
        case _:  # the end of another file
            other = good[rng.integers(len(good))]
            data[place:] = other[int(rng.integers(len(other))) :]
