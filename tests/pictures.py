"""Files that hold more or other than one picture, written tag by tag, and odd ones that hold one."""

import functools
import io
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE: Final = 48
BLUE: Final = (0, 0, 255)
SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION, STRIPS, SAMPLES = 254, 256, 257, 258, 259, 262, 270, 273, 277
ROWS, BYTE_COUNTS, PLANAR, SUB_DIRECTORIES, INK_SET, EXTRA, FORMAT, SUBSAMPLING = 278, 279, 284, 330, 332, 338, 339, 530
Value = int | Sequence[int] | bytes


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def flat(colour: Sequence[int] = BLUE, side: int = SIDE, dtype: type = np.uint8) -> NDArray[np.generic]:
    return np.full((side, side, len(colour)), colour, dtype)


def tiff(pixels: NDArray[np.generic], order: str = "<", following: int = 0, without: Sequence[int] = (), **tags: Value) -> bytes:
    """One directory, one strip (a plane's strip each where PLANAR is 2); `tags` by their numbers as `t270=...`."""
    height, width, samples = pixels.shape
    planar = tags.get(f"t{PLANAR}") == 2
    parts = [pixels[..., sample] for sample in range(samples)] if planar else [pixels]
    strips = [part.astype(part.dtype.newbyteorder(order)).tobytes() for part in parts]
    values: dict[int, Value] = {
        WIDTH: width,
        HEIGHT: height,
        BITS: [pixels.dtype.itemsize * 8] * samples,
        COMPRESSION: 1,
        PHOTOMETRIC: 2 if samples >= 3 else 1,
        SAMPLES: samples,
        ROWS: height,
        BYTE_COUNTS: [len(strip) for strip in strips],
        STRIPS: [0] * len(strips),
        **{int(name[1:]): value for name, value in tags.items()},
    }
    values = {tag: value for tag, value in sorted(values.items()) if tag not in without}
    offset = 8 + 2 + 12 * len(values) + 4
    heap = bytearray()
    if values.get(STRIPS) == [0] * len(strips):
        places = [offset + sum(map(len, strips[:number])) for number in range(len(strips))]
        values[STRIPS] = places
        heap += b"".join(strips)
    entries = b""
    for tag, value in values.items():
        kind, numbers = (2, value) if isinstance(value, bytes) else (4, [value] if isinstance(value, int) else list(value))
        content = bytes(numbers) if isinstance(value, bytes) else struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(content) > 4:
            place = struct.pack(order + "I", offset + len(heap))
            heap += content
        else:
            place = content.ljust(4, b"\0")
        entries += struct.pack(order + "HHI", tag, kind, len(numbers)) + place
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return start + struct.pack(order + "H", len(values)) + entries + struct.pack(order + "I", following) + bytes(heap)


def pages(count: int, kind: str = "TIFF", **options: object) -> bytes:
    first, *rest = [Image.new("RGB", (SIDE, SIDE), BLUE if not number else (255, 0, 0)) for number in range(count)]
    return encoded(first, kind, save_all=True, append_images=rest, **options)


def thumbnail_first() -> bytes:
    """A small picture, and the picture itself as the second page: what some slide scanners write."""
    small = Image.new("RGB", (SIDE // 2, SIDE // 2), BLUE)
    return encoded(small, "TIFF", save_all=True, append_images=[Image.new("RGB", (SIDE * 4, SIDE * 4), BLUE)])


def ome(z: int = 1, c: int = 3, t: int = 1) -> bytes:
    xml = f'<?xml version="1.0"?><OME><Image><Pixels SizeX="48" SizeY="48" SizeZ="{z}" SizeC="{c}" SizeT="{t}"/></Image></OME>'
    return xml.encode() + b"\0"


def with_mpf(jpeg: bytes, pictures: int) -> bytes:
    """A JPEG with the index of a multi-picture file, whose other pictures are not there."""
    entries = struct.pack("<HHI4s", 0xB000, 7, 4, b"0100") + struct.pack("<HHII", 0xB001, 4, 1, pictures)
    places = struct.pack("<IIIHH", 0x030000, len(jpeg), 0, 0, 0) * pictures
    entries += struct.pack("<HHII", 0xB002, 7, len(places), 8 + 2 + 36 + 4)
    content = b"MPF\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", 3) + entries + struct.pack("<I", 0) + places
    return jpeg[:2] + b"\xff\xe2" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


@functools.cache
def scans(side: int, count: int) -> bytes:
    """A progressive JPEG with `count` scans more than usual: 14 bytes each, and each costs a pass over the image."""
    data = encoded(Image.new("RGB", (side, side), BLUE), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"


def jpeg_in_tiff(jpeg: bytes, side: int) -> bytes:
    strip = np.frombuffer(jpeg, np.uint8)
    place = 8 + 2 + 12 * 9 + 4 + 12
    described = {f"t{WIDTH}": side, f"t{HEIGHT}": side, f"t{ROWS}": side, f"t{SAMPLES}": 3, f"t{BITS}": (8, 8, 8)}
    tags = {**described, f"t{COMPRESSION}": 7, f"t{PHOTOMETRIC}": 6, f"t{BYTE_COUNTS}": len(jpeg), f"t{STRIPS}": place}
    return tiff(np.zeros((1, 1, 1), np.uint8), **tags) + strip.tobytes()


def apng(frames: int, default: bool = False) -> bytes:
    return pages(frames, "PNG", default_image=default)


JPEG: Final = encoded(Image.new("RGB", (SIDE, SIDE), BLUE), "JPEG")
GREY: Final = flat((90,))

# What is not one picture, or not one whose decoding can be trusted, and a word of the line that says so.
NOT_ONE_PICTURE: Final[dict[str, tuple[bytes, str]]] = {
    "mpo": (pages(2, "MPO"), "MPO"),
    "jpeg that says it holds two pictures": (with_mpf(JPEG, 2), "MPO"),
    "jpeg of 900 scans behind an mpf marker": (with_mpf(scans(2000, 900), 2), "MPO"),
    "jpeg of 900 scans behind an mpf marker of one": (with_mpf(scans(2000, 900), 1), "scans"),
    "jpeg of 95 scans over 36 megapixels": (scans(6000, 85), "scans over"),
    "progressive jpeg of 900 scans in a tiff": (jpeg_in_tiff(scans(2000, 900), 2000), "scans"),
    "jpeg of segments without end": (JPEG[:2] + b"\xff\xfe\0\2" * 50_000 + JPEG[2:], "segments"),
    "png of chunks without end": (encoded(Image.new("RGB", (SIDE, SIDE)), "PNG")[:33] + bytes(12) * 100_000, "chunks"),
    "animated png": (apng(3), "animated"),
    "animated png with a picture of its own": (apng(2, default=True), "animated"),
    "tiff of two pages": (pages(2), "page"),
    "bigtiff of two pages": (pages(2, big_tiff=True), "page"),
    "thumbnail, then the picture": (thumbnail_first(), "page"),
    "tiff whose pages are a loop": (tiff(flat(), following=8), "page"),
    "picture in a sub-directory": (tiff(flat(), t330=8), "SubIFDs"),
    "thumbnail": (tiff(flat(), t254=1), "thumbnail"),
    "mask": (tiff(GREY, t254=4), "mask"),
    "ome-tiff, a z-stack": (tiff(flat(), t270=ome(z=12)), "OME"),
    "ome-tiff, a time series": (tiff(flat(), t270=ome(t=2)), "OME"),
    "ome-tiff, a plane of three channels": (tiff(GREY, t270=ome(c=3)), "OME"),
    "stack of ImageJ": (tiff(GREY, t270=b"ImageJ=1.54f\nimages=12\nslices=12\n\0"), "ImageJ"),
    "channels of ImageJ": (tiff(GREY, t270=b"ImageJ=1.54f\nchannels=3\nmode=composite\n\0"), "ImageJ"),
    "first plane of a shaped stack": (tiff(GREY, t270=b'{"shape": [5, 48, 48], "truncated": true}\0'), "shape"),
    "stack of MetaMorph": (tiff(GREY, t33629=[0] * 12), "stack"),
    "volume": (tiff(GREY, t32997=7), "stack"),
    "strips that each cover the picture": (tiff(GREY, t273=[200, 200], t279=[48 * 48] * 2), "strips"),
    "fewer strips than rows": (tiff(GREY, t278=8), "strips"),
    "two grey channels": (tiff(flat((90, 10)), t338=0), "channels"),
    "two channels that nothing is said of": (tiff(flat((90, 10))), "channels"),
    "three grey channels": (tiff(flat(), t262=1), "channels"),
    "three grey planes": (tiff(flat(), t262=1, t284=2), "channels"),
    "four channels of which one is no colour": (tiff(flat((0, 0, 255, 9)), t338=0), "channels"),
    "four channels that nothing is said of": (tiff(flat((0, 0, 255, 9))), "channels"),
    "five channels": (tiff(flat((0, 0, 255, 9, 9)), t338=(2, 0)), "channels"),
    "16 bits in planes": (tiff(flat((0, 0, 65535), dtype=np.uint16), t284=2), "planes"),
    "channels of different depth": (tiff(flat(), t258=(8, 8, 16)), "depth"),
    "signed grey": (tiff(GREY, t339=2), "signed"),
    "inks that are not cmyk": (tiff(flat((255, 255, 0, 0)), t262=5, t332=2), "inks"),
    "reduced colour without compression": (tiff(flat(), t262=6), "YCbCr"),
    "colour of a raw camera sensor": (tiff(GREY, t262=32803), "32803"),
    "values of no meaning": (tiff(GREY, without=(PHOTOMETRIC,)), "Photometric"),
    "a tag twice": (tiff(GREY).replace(struct.pack("<HHI", 259, 4, 1), struct.pack("<HHI", 258, 4, 1)), "twice"),
}

# Odd, and one picture: (file, its colour).
ONE_PICTURE: Final[dict[str, tuple[bytes, tuple[int, int, int]]]] = {
    "jpeg with the index of one picture": (with_mpf(JPEG, 1), (0, 0, 254)),
    "jpeg with a broken index of pictures": (JPEG[:2] + b"\xff\xe2\0\x0aMPF\0II*\0" + JPEG[2:], (0, 0, 254)),
    "jpeg of three scans in a tiff": (
        jpeg_in_tiff(encoded(Image.new("YCbCr", (SIDE, SIDE), (29, 255, 107)), "JPEG", keep_rgb=False), SIDE),
        (0, 0, 254),
    ),
    "png animation of one frame": (apng(1), BLUE),
    "tiff": (tiff(flat()), BLUE),
    "tiff of the other byte order": (tiff(flat(), ">"), BLUE),
    "bigtiff": (encoded(Image.new("RGB", (SIDE, SIDE), BLUE), "TIFF", big_tiff=True), BLUE),
    "planes of 8 bits": (tiff(flat(), t284=2), BLUE),
    "planes of 8 bits, one of them alpha": (tiff(flat((0, 0, 255, 255)), t284=2, t338=2), BLUE),
    "alpha": (tiff(flat((0, 0, 255, 0)), t338=2), (255, 255, 255)),
    "alpha that is multiplied in": (tiff(flat((0, 0, 255, 255)), t338=1), BLUE),
    "grey with alpha": (tiff(flat((90, 255)), t338=2), (90, 90, 90)),
    "16 bits": (tiff(flat((0, 256, 65535), dtype=np.uint16)), (0, 1, 255)),
    "16 bits of the other byte order": (tiff(flat((0, 256, 65535), dtype=np.uint16), ">"), (0, 1, 255)),
    "grey": (tiff(GREY), (90, 90, 90)),
    "cmyk": (tiff(flat((255, 255, 0, 0)), t262=5), BLUE),
    "a page of a document": (tiff(flat(), t254=2), BLUE),
    "ome-tiff of one plane": (tiff(flat(), t270=ome()), BLUE),
    "picture of ImageJ": (tiff(flat(), t270=b"ImageJ=1.54f\nimages=1\nmin=0\n\0"), BLUE),
    "picture of tifffile": (tiff(flat(), t270=b'{"shape": [48, 48, 3]}\0'), BLUE),
    **{
        f"tiff, {name}": (encoded(Image.new("RGB", (SIDE, SIDE), BLUE), "TIFF", compression=name), BLUE)
        for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
    },
    "palette in a tiff": (encoded(Image.new("RGB", (SIDE, SIDE), BLUE).quantize(4), "TIFF"), BLUE),
    "one bit in a tiff": (encoded(Image.new("1", (SIDE, SIDE), 1), "TIFF", compression="group4"), (255, 255, 255)),
}
