"""Files in a bucket or behind another of fsspec's file systems: images, and archives of them. S3 is at AWS_ENDPOINT_URL, or
Amazon's, with the credentials that its tools find."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from posixpath import normpath
from typing import Any, Final, Self
from unicodedata import normalize

from wbc_model.cells.manifest import COLUMNS, Load, ManifestRow, as_manifest, sheet_rows
from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.core.images import MAX_BYTES
from wbc_model.core.written import decode_written, parse_sheet
from wbc_model.sources.limits import MOST_TEXT, refuse_many, too_large
from wbc_model.sources.listing import rows_of
from wbc_model.sources.members import NO_FILE, Member, Members, plain_name

PROTOCOLS: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "file", "memory")

# A bucket that never answers: s3fs asks five times, and botocore twice in each.
_BOUNDS: Final = {"config_kwargs": {"connect_timeout": 5, "read_timeout": 12, "retries": {"total_max_attempts": 2}}}


def _bounds(protocol: str) -> dict[str, Any]:
    """How long a file system waits; nothing where the user has said so in fsspec's own configuration."""
    from fsspec.config import conf

    said = "config_kwargs" in conf.get(protocol, {})
    return {} if said or protocol not in ("s3", "s3a") else _BOUNDS


def file_system(url: str) -> tuple[Any, str]:
    """The file system and the path in it that a URL names; raises WbcError."""
    protocol, _, rest = url.partition("://")
    if protocol not in PROTOCOLS or "::" in url or not rest.strip("/"):
        raise WbcError(f"{url}: cells are not taken in from there: name s3://BUCKET/PATH, or a file or folder of this machine")
    import fsspec

    try:
        found = fsspec.core.url_to_fs(url, **_bounds(protocol))
    except ImportError as error:
        raise WbcError(f"{url}: a package for {protocol}:// is missing ({error})") from None
    except ValueError as error:
        raise WbcError(f"{url}: {error}") from None
    return found[0], str(found[1]).rstrip("/")


@contextlib.contextmanager
def answering(shown: str) -> Iterator[None]:
    """Say in one line what went wrong between us and the bucket; no credential is said."""
    try:
        yield
    except FileNotFoundError:
        raise WbcError(f"{shown}: there is no such file or folder") from None
    except PermissionError:
        raise WbcError(f"{shown}: access is refused: check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE)") from None
    except Exception as error:
        if not isinstance(error, OSError | TimeoutError) and type(error).__module__.split(".")[0] not in _CLIENTS:
            raise
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise WbcError(f"{shown}: cannot be read ({line}): is AWS_ENDPOINT_URL right, and the network up?") from None


_CLIENTS: Final = ("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec")


class Folder:
    """The files below a place in a bucket."""

    is_stream = False

    def __init__(self, system: Any, root: str, shown: str, members: Members) -> None:
        self.system, self.root, self.shown, self.members = system, root, shown, members

    @classmethod
    def listed(cls, system: Any, root: str, shown: str) -> Self:
        """All that lies there; raises WbcError."""
        members = Members()
        with answering(shown):
            found = system.find(root, detail=True)
        refuse_many(shown, len(found))
        for path, facts in found.items():
            members.put(path.removeprefix(root).lstrip("/"), Member(int(facts.get("size") or 0), path), within=False)
        return cls(system, root, shown, members)

    def rows(self, names: Mapping[str, str]) -> list[ManifestRow]:
        """The rows of the images: see `rows_of`."""
        return rows_of(self, names)

    def text(self, name: str) -> bytes:
        """The bytes of a manifest, or of a small file beside an image."""
        member = self.members[name]
        if member.size > MOST_TEXT:
            raise WbcError(f"{self.shown}/{name}: {member.size:,} bytes, at most {MOST_TEXT:,} are read")
        with answering(f"{self.shown}/{name}"):
            return bytes(self.system.cat_file(member.where))

    def load(self, names: Sequence[str]) -> Iterator[tuple[int, Load]]:
        """In the order asked for."""
        return ((place, partial(self._read, self.members[name])) for place, name in enumerate(names))

    def _read(self, member: Member) -> bytes:
        if member.size > MAX_BYTES:
            raise too_large(member.size)
        for where in self._spelt(member):
            with answering(f"{self.shown}: {where}"):
                try:
                    data = bytes(self.system.cat_file(where, end=MAX_BYTES + 1))
                except FileNotFoundError:
                    continue
                except IsADirectoryError:
                    raise ImageRejected(*NO_FILE) from None
            if len(data) > MAX_BYTES:
                raise too_large(len(data))
            return data
        raise ImageRejected("missing", "there is no such file in the bucket")

    def _spelt(self, member: Member) -> Iterable[str]:
        """Where a file may lie."""
        return (member.where,)

    def close(self) -> None:
        """Nothing is open."""


class Manifest(Folder):
    """A manifest CSV in a bucket, and what it names at or below its own folder."""

    def __init__(self, system: Any, path: str, shown: str) -> None:
        super().__init__(system, path.rpartition("/")[0], shown.rpartition("/")[0], Members())
        with answering(shown):
            text = decode_written(bytes(system.cat_file(path)), Path(shown))
        self.sheet = parse_sheet(text, Path(shown), COLUMNS)
        as_manifest(self.sheet)

    def rows(self, names: Mapping[str, str]) -> list[ManifestRow]:
        """The manifest's rows."""
        rows = sheet_rows(self.sheet, names)
        for path, *_ in rows:
            plain = normpath(path.strip().replace("\\", "/"))
            if not plain_name(plain)[1]:
                self.members[plain] = Member(0, f"{self.root}/{plain}")
        return rows

    def _spelt(self, member: Member) -> Iterable[str]:
        """As the manifest says it, or in the other normal form of Unicode."""
        plain = member.where.removeprefix(f"{self.root}/")
        return dict.fromkeys(f"{self.root}/{one}" for one in (plain, *(normalize(form, plain) for form in ("NFC", "NFD"))))
