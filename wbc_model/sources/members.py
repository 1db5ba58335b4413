"""The files of an archive by their names, and why some of them are not read: nothing in an archive is trusted."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from posixpath import normpath
from typing import Any, Final, Protocol

from wbc_model.cells.manifest import Load, ManifestRow
from wbc_model.core.errors import ImageRejected
from wbc_model.sources.limits import NESTED

LINK: Final = ("outside_folder", "a link; none is followed in an archive")
NO_FILE: Final = ("missing", "it is not a file")
LEADS_OUT: Final = ("outside_folder", "the path leaves the archive")
TWICE: Final = ("duplicate", "the archive has two files of this name: none of them is taken")
IN_ARCHIVE: Final = ("undecodable", "an archive in an archive: take it out, and ingest it by itself")
NOT_THERE: Final = ("missing", "there is no such file in the archive")
_DRIVE: Final = re.compile(r"[A-Za-z]:")

Problem = tuple[str, str]  # reason and detail of an ImageRejected


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive: `size` in bytes once unpacked, `where` its archive finds it, `problem` where it may not be read."""

    size: int
    where: Any
    problem: Problem | None = None


class Archive(Protocol):
    """Files by name that lie together; `shown` is what messages call it."""

    shown: str

    @property
    def members(self) -> Mapping[str, Member]:
        """The files."""

    @property
    def is_stream(self) -> bool:
        """Whether it can be read from front to back only."""

    def load(self, names: Sequence[str]) -> Iterator[tuple[int, Load]]:
        """For each of these members its position and what gives its bytes, in the order in which they are read fastest. None of
        them may have a problem."""

    def rows(self, names: Mapping[str, str]) -> list[ManifestRow]:
        """The rows of the images, with `names` for classes beside the usual ones; raises WbcError."""

    def close(self) -> None:
        """Close what is open."""


class Members(dict[str, Member]):
    """Members as an archive lists them: names made plain, a name that comes twice kept as a problem."""

    def put(self, name: str, member: Member, within: bool = True) -> None:
        """Add one under its name as the archive has it; one that lies `within` another may be no archive itself."""
        plain, leads_out = plain_name(name)
        if plain in self:
            member = Member(0, None, TWICE)
        elif leads_out:
            member = Member(0, None, LEADS_OUT)
        elif within and member.problem is None and plain.casefold().endswith(NESTED):
            member = Member(0, None, IN_ARCHIVE)
        self[plain] = member


def plain_name(name: str) -> tuple[str, bool]:
    """An archive's name for a file with slashes as separators and without needless parts, and whether it leads out of the
    archive. One that does stays as it is written."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or _DRIVE.match(parts[0]):
        return name, True
    return "/".join(part for part in parts if part not in ("", ".")), False


def find(members: Mapping[str, Member], path: str) -> str:
    """The member that a manifest inside means by `path`, as it is written or in the other normal form of Unicode. Raises
    ImageRejected for one that is not there, leads out, or may not be read."""
    plain = normpath(path.strip().replace("\\", "/"))
    if path not in members and plain_name(plain)[1]:
        raise ImageRejected(*LEADS_OUT)
    forms = (path, plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD")))
    found = next((form for form in forms if form in members), None)
    if found is None:
        raise ImageRejected(*NOT_THERE)
    if (problem := members[found].problem) is not None:
        raise ImageRejected(*problem)
    return found
