"""What a hostile archive may cost: how much it may swell, how many files it may have, how much of it is read at once."""

import io
from typing import IO, Final, Protocol

from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.core.images import MAX_BYTES

FREE_BYTES: Final = 2**30  # that any archive may hold, however small it is
SWELLS: Final = 100  # times its size; images are compressed already, and a folder of blank bitmaps swells twentyfold
MOST_FILES: Final = 5_000_000
MOST_TEXT: Final = 2**28  # bytes of all that tells labels: manifests inside, and small files beside the images
MOST_AT_ONCE: Final = 2 * MAX_BYTES  # a header that asks for more in one piece is no header
NESTED: Final = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".parquet")


class Readable(Protocol):
    """What bytes are read from in a row."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; none at the end."""


def most_bytes(size: int) -> int:
    """How many bytes an archive of `size` bytes may hold."""
    return max(FREE_BYTES, SWELLS * size)


def refuse_swollen(name: str, held: int, size: int) -> None:
    """Raises WbcError where an archive of `size` bytes holds so much that it is made to fill a disk."""
    if held > most_bytes(size):
        raise WbcError(
            f"{name}: {size:,} bytes hold {held:,} or more, over {SWELLS} times as many: it is taken for a bomb; "
            "if it is none, unpack it and ingest the folder"
        )


def refuse_many(name: str, files: int) -> None:
    """Raises WbcError where an archive has more files than are taken in at once."""
    if files > MOST_FILES:
        raise WbcError(f"{name}: more than {MOST_FILES:,} files: ingest it in parts")


def too_large(size: int) -> ImageRejected:
    """The refusal of a file of so many bytes, before any of them is read."""
    return ImageRejected("too_large", f"{size:,} bytes, at most {MAX_BYTES:,} are accepted")


class Bounded:
    """An archive's bytes for the reader of its headers. What asks for too much at once raises WbcError; `last` is what was read
    last. What is compressed can be read forward only, and is counted: where it swells too much that raises WbcError."""

    def __init__(self, inner: Readable, name: str, size: int, compressed: bool) -> None:
        self.inner, self.name, self.size, self.compressed = inner, name, size, compressed
        self.place, self.last = 0, b""

    def tell(self) -> int:
        """The place that is read next, counted from the first byte that comes out."""
        return self.place

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end only."""
        if not 0 <= size <= MOST_AT_ONCE:
            raise WbcError(f"{self.name}: damaged at byte {self.place:,}: a header asks for too much at once")
        parts, missing = [], size
        while missing and (part := self.inner.read(missing)):
            parts.append(part)
            missing -= len(part)
        self.place += size - missing
        if self.compressed:
            refuse_swollen(self.name, self.place, self.size)
        self.last = b"".join(parts)
        return self.last

    def seek(self, place: int) -> None:
        """Go to a place; what is compressed is read up to there."""
        if not self.compressed:
            self.inner.seek(place)  # type: ignore[attr-defined]
            self.place = place
        elif place < self.place:
            raise WbcError(f"{self.name}: damaged at byte {self.place:,}: it leads back")
        while self.place < place and self.read(min(2**20, place - self.place)):
            pass


def length_of(file: IO[bytes]) -> int:
    """The bytes of an open file that can be read from anywhere."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size
