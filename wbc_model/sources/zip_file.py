"""A ZIP archive, read in place."""

import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import IO

from wbc_model.cells.manifest import Load, ManifestRow
from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.core.images import MAX_BYTES
from wbc_model.sources.limits import MOST_TEXT, length_of, refuse_many, refuse_swollen, too_large
from wbc_model.sources.listing import rows_of
from wbc_model.sources.members import LINK, Member, Members, Problem

_ENCRYPTED, _UTF_8 = 0x1, 0x800  # of the general purpose flags


class ZipArchive:
    """The files of a ZIP archive. Raises WbcError where it is cut off or damaged as a whole, or is a bomb by what it declares: no
    file gives more bytes than that."""

    is_stream = False

    def __init__(self, file: IO[bytes], shown: str) -> None:
        self.shown, self.members = shown, Members()
        size = length_of(file)
        try:
            self.zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
            raise WbcError(f"{shown}: no whole ZIP archive ({_said(error)}): is it cut off? Copy it again") from None
        listed = self.zip.infolist()
        refuse_many(shown, len(listed))
        refuse_swollen(shown, sum(one.file_size for one in listed), size)
        _refuse_overlaps(shown, listed)
        for one in listed:
            if not one.is_dir():
                self.members.put(_name(one), Member(one.file_size, one, _problem(one)))

    def load(self, names: Sequence[str]) -> Iterator[tuple[int, Load]]:
        """In the order in which they lie there."""
        found = [self.members[name] for name in names]
        order = sorted(range(len(found)), key=lambda place: found[place].where.header_offset)
        return ((place, partial(self._read, found[place], MAX_BYTES)) for place in order)

    def _read(self, member: Member, most: int) -> bytes:
        if member.size > most:
            raise too_large(member.size)
        try:
            with self.zip.open(member.where) as file:
                return file.read()
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
            raise ImageRejected("undecodable", f"damaged in the archive ({_said(error)})") from None
        except (NotImplementedError, RuntimeError) as error:
            raise ImageRejected("undecodable", f"packed in a way that is not read here ({_said(error)})") from None

    def rows(self, names: Mapping[str, str]) -> list[ManifestRow]:
        """The rows of the images: see `rows_of`."""
        return rows_of(self, names)

    def text(self, name: str) -> bytes:
        """The bytes of a manifest, or of a small file beside an image."""
        member = self.members[name]
        try:
            if member.problem is not None:
                raise ImageRejected(*member.problem)
            return self._read(member, MOST_TEXT)
        except ImageRejected as rejected:
            raise WbcError(f"{self.shown}/{name}: {rejected.detail}") from None

    def close(self) -> None:
        """Close the archive."""
        self.zip.close()


def _name(one: zipfile.ZipInfo) -> str:
    """A file's name: a Mac writes UTF-8 and does not say so, and Python then takes it for the code page of DOS."""
    if one.flag_bits & _UTF_8:
        return one.filename
    try:
        return one.filename.encode("cp437").decode()
    except UnicodeError:
        return one.filename


def _problem(one: zipfile.ZipInfo) -> Problem | None:
    if one.flag_bits & _ENCRYPTED:
        return "undecodable", "encrypted: pack it again without a password"
    mode = one.external_attr >> 16
    return LINK if stat.S_ISLNK(mode) else None


def _refuse_overlaps(shown: str, listed: Sequence[zipfile.ZipInfo]) -> None:
    """Raises WbcError where files share their bytes: so a small archive declares a large one for each name."""
    end = 0
    for one in sorted(listed, key=lambda one: one.header_offset):
        if one.header_offset < end:
            raise WbcError(f"{shown}: {one.filename} lies within the file before it: the archive is damaged, or made to harm")
        end = one.header_offset + one.compress_size


def _said(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
