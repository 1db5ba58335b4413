"""A tar archive, plain or compressed, and so a WebDataset shard: read in place, a compressed one from front to back."""

import bz2
import gzip
import lzma
import struct
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Final, cast

from wbc_model.cells.manifest import Load, ManifestRow
from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.core.images import MAX_BYTES
from wbc_model.sources.limits import MOST_TEXT, Bounded, Readable, length_of, refuse_many, too_large
from wbc_model.sources.listing import BESIDE, MANIFESTS, rows_of
from wbc_model.sources.members import LINK, NO_FILE, Member, Members, Problem, plain_name

OPENERS: Final[Mapping[bytes, Callable[[IO[bytes]], Readable]]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
# What the readers of hostile bytes raise.
_BROKEN: Final = (EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, OverflowError, RecursionError, struct.error)
_END: Final = bytes(tarfile.BLOCKSIZE)


class TarArchive:
    """The files of a tar archive, which is walked through once before anything is taken in. Raises WbcError where it is cut off,
    damaged, or a bomb by what comes out of it."""

    def __init__(self, file: IO[bytes], shown: str) -> None:
        self.file, self.shown, self.members = file, shown, Members()
        self.size, self.lock = length_of(file), threading.Lock()
        head = file.read(6)
        self.opener = next((opener for mark, opener in OPENERS.items() if head.startswith(mark)), None)
        self.texts: dict[str, bytes] = {}
        self.text_bytes = 0
        for stream, one in self._walk():
            refuse_many(shown, len(self.members))
            if not one.isdir():
                self.members.put(one.name, Member(one.size, one.offset_data, _problem(one)))
                self._keep_text(stream, one)

    @property
    def is_stream(self) -> bool:
        """Whether it is compressed."""
        return self.opener is not None

    def _walk(self) -> Iterator[tuple[Bounded, tarfile.TarInfo]]:
        """The archive's entries in their order to its very end, each with the stream at its first byte."""
        self.file.seek(0)
        inner: Readable = self.opener(self.file) if self.opener else self.file
        stream = Bounded(inner, self.shown, self.size, self.opener is not None)
        try:
            with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as tar:
                while (one := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # one that is kept for each would fill the memory
                    yield stream, one
            if stream.last != _END:  # Python's reader takes damage for the end
                raise WbcError(f"{self.shown}: damaged or cut off at byte {stream.place:,}, before its end mark: copy it again")
            while self.opener and stream.read(2**20):  # to the checksum
                pass
        except tarfile.TarError as error:
            raise WbcError(f"{self.shown}: no whole tar archive ({error}): is it cut off? Copy it again") from None
        except _BROKEN as error:
            raise WbcError(f"{self.shown}: damaged or cut off ({error or type(error).__name__}): copy it again") from None

    def _keep_text(self, stream: Bounded, one: tarfile.TarInfo) -> None:
        """Keep what labels may come from as it passes by: a compressed archive is not read again for each."""
        path = PurePosixPath(one.name)
        if not one.isreg() or (path.name.casefold() not in MANIFESTS and path.suffix.casefold() not in BESIDE):
            return
        self.text_bytes += one.size
        if self.text_bytes > MOST_TEXT:
            raise WbcError(f"{self.shown}: more than {MOST_TEXT:,} bytes of manifests and labels: ingest it in parts")
        pieces, missing = [], one.size
        while missing and (piece := stream.read(min(2**20, missing))):
            pieces.append(piece)
            missing -= len(piece)
        self.texts[plain_name(one.name)[0]] = b"".join(pieces)

    def rows(self, names: Mapping[str, str]) -> list[ManifestRow]:
        """The rows of the images: see `rows_of`."""
        return rows_of(self, names)

    def text(self, name: str) -> bytes:
        """The bytes of a manifest, or of a small file beside an image."""
        problem = self.members[name].problem
        if problem is not None or name not in self.texts:
            raise WbcError(f"{self.shown}/{name}: {problem[1] if problem else 'it is not a file'}")
        return self.texts[name]

    def load(self, names: Sequence[str]) -> Iterator[tuple[int, Load]]:
        """In the order in which they lie there; of a compressed archive each with its bytes."""
        found = [self.members[name] for name in names]
        order = sorted(range(len(found)), key=lambda place: found[place].where)
        if self.opener:
            return self._passing([(found[place].where, place) for place in order])
        return ((place, partial(self._read, found[place])) for place in order)

    def _passing(self, wanted: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Load]]:
        """The same as the archive passes by: `wanted` are pairs of where a file begins and its place, in order."""
        following = iter([*wanted, (-1, -1)])
        begins, place = next(following)
        for stream, one in self._walk():
            if one.offset_data == begins and one.isreg():
                data = b"" if one.size > MAX_BYTES else stream.read(one.size)
                while begins == one.offset_data:
                    yield place, partial(_given, data, one.size)
                    begins, place = next(following)

    def _read(self, member: Member) -> bytes:
        if member.size > MAX_BYTES:
            raise too_large(member.size)
        with self.lock:
            self.file.seek(member.where)
            return _given(self.file.read(member.size), member.size)

    def close(self) -> None:
        """Close the archive."""
        self.file.close()


def _given(data: bytes, size: int) -> bytes:
    """A file's bytes, which are `size` where it is whole; raises ImageRejected."""
    if size > MAX_BYTES:
        raise too_large(size)
    if len(data) != size:
        raise ImageRejected("truncated", "the archive ends within it")
    return data


def _problem(one: tarfile.TarInfo) -> Problem | None:
    if one.islnk() or one.issym():
        return LINK
    return None if one.isreg() and not one.issparse() else NO_FILE
