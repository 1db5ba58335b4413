"""Whether a file holds one picture, told from its bytes before anything decodes it.

A decoder's name for a file is no evidence. Of a TIFF with a stack of channels, of an animation, or of a JPEG with a second
picture in it, it shows the first. That looks like an answer. One RGB or grey picture is taken, with or without alpha, and what
has one RGB form (a palette, CMYK, YCbCr). Everything else is refused with the reason.
"""

import re
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, Literal

from wbc_model.core.errors import ImageRejected

Kind = Literal["JPEG", "PNG", "BMP", "TIFF"]
_STARTS: Final[dict[bytes, Kind]] = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
}
MAX_SEGMENTS: Final = 4_096  # of a JPEG before its first scan
MAX_SKIPPED: Final = 4_096  # bytes between a JPEG's segments: Pillow skips them one by one, 32 MB of them in 15 seconds
_END: Final = b"\xd9"
_MARKER: Final = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # of a segment that has a length
MAX_CHUNKS: Final = 65_536  # of a PNG; each costs time, however short it is
MAX_TAGS: Final = 1_000  # of a TIFF's directory
MAX_STRIPS: Final = 32_768  # of a TIFF: 8,192 rows in three planes, one row a strip
_SCAN: Final = b"\xff\xda"
MAX_SCANS: Final = 100  # of a progressive JPEG, which has about 10; each costs time like a decoding, however few bytes it has
MAX_SCANNED: Final = 800_000_000  # pixels, over all scans: 20 scans of the largest image that is accepted


class _Tag(IntEnum):
    """Tags of TIFF 6.0 and of the microscopes' dialects of it."""

    SUBFILE = 254
    OLD_SUBFILE = 255
    WIDTH = 256
    HEIGHT = 257
    BITS = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    DESCRIPTION = 270
    STRIPS = 273
    SAMPLES = 277
    ROWS_PER_STRIP = 278
    PLANAR = 284
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILES = 324
    SUB_DIRECTORIES = 330
    INK_SET = 332
    EXTRA = 338
    FORMAT = 339
    SUBSAMPLING = 530
    DEPTH = 32997
    TILE_DEPTH = 32998
    METAMORPH_STACK = 33629


_CMYK, _YCBCR = 5, 6
_CHANNELS: Final = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # of a photometric interpretation, without alpha
_JPEG_COMPRESSIONS: Final = (6, 7)
_UNCOMPRESSED: Final = 1
_TYPE_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


def one_picture(data: bytes) -> Kind:
    """The kind of a file that holds one picture. Raises ImageRejected, `undecodable`, for a file of another kind, and for
    one with several pictures or a stack of channels. So for one whose structure is damaged, or made to cost time."""
    kind = next((kind for start, kind in _STARTS.items() if data.startswith(start)), None)
    if kind is None:
        raise _refused(f"not a readable {', '.join(dict.fromkeys(_STARTS.values()))} image")
    if kind == "JPEG":
        _check_jpeg(data)
    elif kind == "PNG":
        _check_png(data)
    elif kind == "TIFF":
        _check_tiff(_Directory(data))
    return kind


def check_scans(data: bytes, kind: Kind, pixels: int) -> None:
    """Raises ImageRejected for a JPEG whose scans over so many pixels would cost much time."""
    scans = data.count(_SCAN) if kind == "JPEG" else 0  # inside a scan, 0xff is followed by 0 or a restart marker
    if scans > MAX_SCANS:
        raise _refused(f"a JPEG of more than {MAX_SCANS} scans")
    if scans * pixels > MAX_SCANNED:
        raise _refused(f"a JPEG of {scans} scans over {pixels:,} pixels")


def _refused(detail: str) -> ImageRejected:
    return ImageRejected("undecodable", detail)


def _several(what: str) -> ImageRejected:
    return _refused(f"{what}: it is not one picture of one cell; save that alone as RGB or grey")


# --- JPEG ----------------------------------------------------------------------------------------------------------------


def _check_jpeg(data: bytes) -> None:
    for marker, start, end in _segments(data):
        if marker == 0xE2 and data.startswith(b"MPF\0", start) and _pictures(data[start + 4 : end]) > 1:
            raise _several("a JPEG with more than one picture inside (MPO)")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment's content up to the first scan, as decoders find them."""
    place, skipped = 2, 0
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, place)
        if found is None or found[1] == _END or found.end() + 2 > len(data):
            raise _refused("a JPEG that ends before its first scan")
        if found[1] == _SCAN[1:]:
            return
        skipped += found.start() - place
        if skipped > MAX_SKIPPED:
            raise _refused("damaged JPEG data")
        place = found.end()
        (length,) = struct.unpack_from(">H", data, place)
        yield found[1][0], place + 2, place + length
        place += max(2, length)
    raise _refused(f"a JPEG of more than {MAX_SEGMENTS:,} segments")


def _pictures(index: bytes) -> int:
    """How many pictures a multi-picture index names; 1 where it cannot be read, as decoders then take the file for one."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(index[:4])
    try:
        if order is None:
            return 1
        (directory,) = struct.unpack_from(f"{order}I", index, 4)
        (count,) = struct.unpack_from(f"{order}H", index, directory)
        for entry in range(min(count, MAX_TAGS)):
            tag, _, _, value = struct.unpack_from(f"{order}HHII", index, directory + 2 + 12 * entry)
            if tag == 0xB001:
                return int(value)
    except struct.error:
        pass
    return 1


# --- PNG -----------------------------------------------------------------------------------------------------------------


def _check_png(data: bytes) -> None:
    place = 8
    for _ in range(MAX_CHUNKS):
        if place + 8 > len(data):
            return  # the decoder says where it ends
        (length,) = struct.unpack_from(">I", data, place)
        kind = data[place + 4 : place + 8]
        frames = data[place + 8 : place + 12]
        if kind == b"fdAT" or (kind == b"acTL" and frames != b"\0\0\0\1"):
            raise _several("an animated PNG")
        if kind == b"IEND":
            return
        place += 12 + length
    raise _refused(f"a PNG of more than {MAX_CHUNKS:,} chunks")


# --- TIFF ----------------------------------------------------------------------------------------------------------------


class _Directory:
    """The first directory of a TIFF: its tags, and where the next directory is."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self._big = 43 in data[2:4]
        self._tags: dict[int, tuple[int, int, int]] = {}  # kind of value, how many, and where in the file they are
        start = self._unpack("Q", 8) if self._big else self._unpack("I", 4)
        count = self._unpack("Q" if self._big else "H", start)
        if count > MAX_TAGS:
            raise _refused(f"a TIFF of more than {MAX_TAGS:,} tags")
        first, size = (start + 8, 20) if self._big else (start + 2, 12)
        for entry in range(first, first + size * count, size):
            self._read(entry)
        self.next = self._unpack("Q" if self._big else "I", first + size * count)

    def _unpack(self, kind: str, place: int) -> int:
        try:
            return int(struct.unpack_from(self._order + kind, self._data, place)[0])
        except (struct.error, OverflowError, IndexError):
            raise _refused("damaged TIFF data") from None

    def _read(self, entry: int) -> None:
        tag, kind = self._unpack("H", entry), self._unpack("H", entry + 2)
        count = self._unpack("Q" if self._big else "I", entry + 4)
        place, room = (entry + 12, 8) if self._big else (entry + 8, 4)
        if tag in self._tags:
            raise _refused(f"a TIFF that has its tag {tag} twice")
        if count * _TYPE_BYTES.get(kind, 1) > room:
            place = self._unpack("Q" if self._big else "I", place)
        self._tags[tag] = kind, count, place

    @property
    def scans(self) -> int:
        """How many scans of JPEG data the file may hold."""
        return self._data.count(_SCAN)

    def __contains__(self, tag: int) -> bool:
        return tag in self._tags

    def count(self, tag: int) -> int:
        """How many values a tag has; 0 where it is not there."""
        return self._tags[tag][1] if tag in self._tags else 0

    def numbers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The whole numbers of a tag, of which there may be 16 at most; `default` where it is not there."""
        if tag not in self._tags:
            return default
        kind, count, place = self._tags[tag]
        if kind not in _INTEGERS or not 1 <= count <= 16:
            raise _refused(f"a TIFF whose tag {tag} is not understood")
        return tuple(self._unpack(_INTEGERS[kind], place + step * _TYPE_BYTES[kind]) for step in range(count))

    def number(self, tag: int, default: int) -> int:
        """The whole number of a tag that has one."""
        return self.numbers(tag, (default,))[0]

    def text(self, tag: int) -> str:
        """A tag's text, at most the first 64 KiB of it; empty where it is not there."""
        if tag not in self._tags:
            return ""
        _, count, place = self._tags[tag]
        return self._data[place : place + min(count, 2**16)].decode("latin-1")


def _check_tiff(directory: _Directory) -> None:
    _check_pages(directory)
    photometric = directory.numbers(_Tag.PHOTOMETRIC)[:1]
    if not photometric:
        raise _refused("a TIFF that does not say what its values mean (PhotometricInterpretation)")
    if photometric[0] not in _CHANNELS:
        raise _refused(f"a TIFF of photometric interpretation {photometric[0]}: save it as RGB or grey")
    _check_channels(directory, photometric[0])
    _check_strips(directory)
    samples = directory.number(_Tag.SAMPLES, 1)
    if directory.count(_Tag.DESCRIPTION):
        _check_description(directory.text(_Tag.DESCRIPTION), samples, directory)


def _check_pages(directory: _Directory) -> None:
    if directory.next:
        raise _several("a TIFF of more than one page")
    if _Tag.SUB_DIRECTORIES in directory:
        raise _several("a TIFF with more pictures inside (SubIFDs)")
    if directory.number(_Tag.SUBFILE, 0) & 0b101 or directory.number(_Tag.OLD_SUBFILE, 1) == 2:
        raise _refused("a TIFF that holds a thumbnail or a mask of another picture")
    if _Tag.METAMORPH_STACK in directory or directory.number(_Tag.DEPTH, 1) > 1 or directory.number(_Tag.TILE_DEPTH, 1) > 1:
        raise _several("a TIFF that holds a stack of planes")


def _check_channels(directory: _Directory, photometric: int) -> None:
    """One picture's channels and at most alpha, 8 bits each, or 16 of RGB beside each other."""
    samples, extra = directory.number(_Tag.SAMPLES, 1), directory.numbers(_Tag.EXTRA)
    channels = _CHANNELS[photometric]
    if samples > channels + 1 or (samples == channels + 1 and extra not in ((1,), (2,))):
        raise _several(f"a TIFF of {samples} channels, of which {samples - channels} are neither its colours nor alpha")
    if samples < channels:
        raise _refused(f"a TIFF of {samples} channels where its colours have {channels}")
    bits = set(directory.numbers(_Tag.BITS, (1,)))
    if set(directory.numbers(_Tag.FORMAT, (1,))) != {1}:
        raise _refused("a TIFF of signed or floating values has no 8-bit RGB form")
    planar = directory.number(_Tag.PLANAR, 1) == 2 and samples > 1
    if len(bits) > 1 or (planar and bits != {8}):
        raise _refused(f"a TIFF of {max(bits)} bits a channel, in planes or of different depth: save it with 8 bits")
    if photometric == _CMYK and directory.number(_Tag.INK_SET, 1) != 1:
        raise _refused("a TIFF of inks that are not CMYK")
    raw = directory.number(_Tag.COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
    if photometric == _YCBCR and (planar or (raw and directory.numbers(_Tag.SUBSAMPLING, (2, 2)) != (1, 1))):
        raise _refused("a TIFF of YCbCr values in planes or of reduced colour: save it as RGB")


def _check_strips(directory: _Directory) -> None:
    """As many strips or tiles as one picture has."""
    width, height = directory.number(_Tag.WIDTH, 0), directory.number(_Tag.HEIGHT, 0)
    tiled = _Tag.TILES in directory
    across, down = width, directory.number(_Tag.ROWS_PER_STRIP, max(1, height))
    if tiled:
        across, down = directory.number(_Tag.TILE_WIDTH, 0), directory.number(_Tag.TILE_HEIGHT, 0)
    if min(width, height, across, down) < 1:
        raise _refused("damaged TIFF data")
    planes = directory.number(_Tag.SAMPLES, 1) if directory.number(_Tag.PLANAR, 1) == 2 else 1
    expected = -(-width // across) * -(-height // down) * planes
    given = directory.count(_Tag.TILES if tiled else _Tag.STRIPS)
    if given != expected:
        raise _refused(f"a TIFF of {given} strips or tiles where one picture has {expected}")
    if given > MAX_STRIPS:
        raise _refused(f"a TIFF of more than {MAX_STRIPS:,} strips or tiles")
    if directory.number(_Tag.COMPRESSION, _UNCOMPRESSED) in _JPEG_COMPRESSIONS and directory.scans > 4 * given:
        raise _refused("a TIFF of JPEG data in more scans than channels")


def _check_description(text: str, samples: int, directory: _Directory) -> None:
    """What the microscopes' software says of a stack whose other planes are elsewhere: in other files or behind the first."""
    planes = [int(number) for number in re.findall(r"\bSize[ZT]\s*=\s*[\"'](\d{1,9})", text)]
    channels = [int(number) for number in re.findall(r"\bSizeC\s*=\s*[\"'](\d{1,9})", text)]
    if max(planes, default=1) > 1 or any(number not in (1, samples) for number in channels):
        raise _several("an OME-TIFF of more than one plane or channel")
    if text.startswith("ImageJ=") and (
        found := re.search(r"^(?:images|channels|slices|frames)=(?!1\s*$)\d+", text, re.MULTILINE)
    ):
        raise _several(f"a stack of ImageJ ({found[0]})")
    if shape := re.match(r'\{"shape": \[(\d{1,9}(?:, ?\d{1,9}){0,9})\]', text):
        values = 1
        for number in shape[1].split(","):
            values *= int(number)
        if values != directory.number(_Tag.WIDTH, 0) * directory.number(_Tag.HEIGHT, 0) * samples:
            raise _several(f"a TIFF of the shape {shape[1]}")
