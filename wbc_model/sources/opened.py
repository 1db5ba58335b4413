"""Opening what a user names as data: a manifest, a folder, archives and tables of images, here or in a bucket."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

import pandas as pd

from wbc_model.cells.manifest import (
    IMAGE_SUFFIXES,
    SPLITS,
    Load,
    Plain,
    Source,
    in_parts,
    manifest_frame,
    read_manifest,
    table_not_read,
    visible_name,
)
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.sources.bucket import Folder, Manifest, answering, file_system
from wbc_model.sources.listing import MANIFESTS, rows_by_manifest
from wbc_model.sources.members import Archive, Member, find
from wbc_model.sources.table import ParquetTable
from wbc_model.sources.tar_file import TarArchive
from wbc_model.sources.zip_file import ZipArchive

KINDS: Final[Mapping[str, Callable[[IO[bytes], str], Archive]]] = {
    ".zip": ZipArchive,
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"), TarArchive),
    ".parquet": ParquetTable,
}
TABLES: Final = (".csv", ".tsv", ".txt")
NOT_READ: Final = (".7z", ".rar", ".zst", ".gz", ".bz2", ".xz")
DATA: Final = "data"  # the folder in which Hugging Face keeps shards


@contextlib.contextmanager
def open_source(data: str | Path) -> Iterator[Source]:
    """Open `data`: a path, or a URL such as s3://bucket/cells.zip. Raises WbcError where it cannot be read as a whole."""
    with contextlib.ExitStack() as stack:
        yield _opened(str(data), stack)


def _opened(data: str, stack: contextlib.ExitStack) -> Source:
    return _remote(data, stack) if "://" in data else _local(Path(data), stack)


class Opened:
    """Archives, each with its part of the cells. Where there are several, a path begins with the archive's name."""

    def __init__(self, shown: str, archives: Mapping[str, Archive]) -> None:
        self.shown, self.archives = shown, archives

    @property
    def name(self) -> str:
        """What the data are called, without endings."""
        name = self.shown.rstrip("/").rpartition("/")[2]
        return name[: -len(ending)] if (ending := _ending(name)) else name.removesuffix(".csv")

    def manifest(self, names: Mapping[str, str]) -> pd.DataFrame:
        """The rows of all archives, in the order of their paths. The name of a shard tells the split where each name does."""
        splits = _splits(self.archives)
        rows = []
        for shard, archive in self.archives.items():
            prefix, by_name = (f"{shard}/", splits[shard]) if len(self.archives) > 1 else ("", "")
            rows += [(prefix + path, label, split or by_name, group) for path, label, split, group in archive.rows(names)]
        if not rows:
            raise WbcError(
                f"{self.shown} has no images: expected images, a folder per class ({', '.join(CLASSES)}), or a manifest.csv"
            )
        beside = [name for archive in self.archives.values() for name in archive.members if name.count("/") <= 1]
        named = any(PurePosixPath(name).name.casefold() in MANIFESTS for name in beside)
        read_as = "" if named else table_not_read(rows, beside, "call it manifest.csv")
        return manifest_frame(sorted(rows, key=lambda row: row[0]), read_as)

    def files(self, paths: Sequence[str]) -> Iterator[tuple[int, Load]]:
        """Archive by archive, each in the order in which it is read fastest; before them what is not read."""
        refused, wanted = self._found(paths)
        for place, rejected in refused.items():
            yield place, partial(_refuse, rejected.reason, rejected.detail)
        for shard, found in wanted.items():
            for which, load in self.archives[shard].load([name for _, name in found]):
                yield found[which][0], load

    def parts(self, paths: Sequence[str]) -> list[list[int]]:
        """A compressed archive as a whole, since it is read from front to back; the others in parts."""
        refused, wanted = self._found(paths)
        parts = in_parts(list(refused))
        for shard, found in wanted.items():
            if self.archives[shard].is_stream:
                parts.append([place for place, _ in found])
            else:
                parts += in_parts([found[which][0] for which, _ in self.archives[shard].load([name for _, name in found])])
        return [part for part in parts if part]

    def _found(self, paths: Sequence[str]) -> tuple[dict[int, ImageRejected], dict[str, list[tuple[int, str]]]]:
        """By their positions: the paths that are not read with why not, and of each archive the members that the others mean."""
        refused: dict[int, ImageRejected] = {}
        wanted: dict[str, list[tuple[int, str]]] = {shard: [] for shard in self.archives}
        for place, path in enumerate(paths):
            shard, rest = self._split(path)
            try:
                wanted[shard].append((place, find(self.archives[shard].members, rest)))
            except ImageRejected as rejected:
                refused[place] = rejected
        return refused, wanted

    def _split(self, path: str) -> tuple[str, str]:
        """The archive that a path is of, and the path in it."""
        shard, _, rest = path.partition("/") if len(self.archives) > 1 else (next(iter(self.archives)), "", path)
        return shard, rest

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the same data itself: no open file can go there, and it may stand in another folder."""
        return _opened_again, (self.shown if "://" in self.shown else str(Path(self.shown).absolute()),)


@functools.lru_cache(maxsize=1)
def _opened_again(shown: str) -> Source:
    """The data, open for as long as this process works on parts of them."""
    return _opened(shown, contextlib.ExitStack())


def _refuse(reason: str, detail: str) -> bytes:
    raise ImageRejected(reason, detail)


def _splits(shards: Mapping[str, object]) -> dict[str, str]:
    """The split that each shard is named by (`test-00000.parquet`); empty where one has no such name."""
    found = {shard: SPLITS.get(re.split(r"[^a-z]", shard.casefold())[0] or "-") for shard in shards}
    return {shard: (split or "") if None not in found.values() else "" for shard, split in found.items()}


def _ending(name: str) -> str:
    """The ending by which a name is that of an archive, as it is written; empty where it is none."""
    return next((name[-len(ending) :] for ending in KINDS if name.casefold().endswith(ending)), "")


def _refuse_others(shown: str) -> None:
    if shown.casefold().endswith(NOT_READ) and not _ending(shown):
        raise WbcError(f"{shown}: such an archive is not read: make a ZIP or a tar of it, or unpack it and name the folder")


def _archive(file: IO[bytes], shown: str, stack: contextlib.ExitStack) -> Archive:
    stack.callback(file.close)
    archive = KINDS[_ending(shown).casefold()](file, shown)
    stack.callback(archive.close)
    return archive


# --- on this machine -----------------------------------------------------------------------------------------------------


def _local(data: Path, stack: contextlib.ExitStack) -> Source:
    if data.is_dir():
        shards = _shards(sorted(one for one in data.iterdir() if one.is_file()))
        shards = shards or _shards(sorted((data / DATA).iterdir()) if (data / DATA).is_dir() else [])
        if shards and not _has_images(data):
            return Opened(str(data.resolve()), {one.name: _archive(one.open("rb"), str(one), stack) for one in shards})
        return ImageFolder(data) if any((data / name).is_file() for name in MANIFESTS[2:]) else Plain(data)
    if not data.is_file():
        return Plain(data)  # which says what is missing
    _refuse_others(str(data))
    return Opened(str(data), {data.name: _archive(data.open("rb"), str(data), stack)}) if _ending(data.name) else Plain(data)


def _shards(files: Sequence[Path]) -> list[Path]:
    return [one for one in files if visible_name(one.name) and _ending(one.name)]


def _has_images(folder: Path) -> bool:
    """Whether images lie beside the archives in a folder."""
    try:
        return any(map(_is_image, read_manifest(folder)["path"]))
    except WbcError:
        return False


def _is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.casefold() in IMAGE_SUFFIXES


class ImageFolder(Plain):
    """A folder of this machine in which a metadata.csv or .jsonl may name the images, as Hugging Face has it."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        files = (path for path in sorted(data.rglob("*")) if path.is_file() and path.name.casefold() not in MANIFESTS[:2])
        self.members = {path.relative_to(data).as_posix(): Member(0, path) for path in files}

    def manifest(self, names: Mapping[str, str]) -> pd.DataFrame:
        """The rows that the metadata name; without such metadata those of any folder."""
        rows = rows_by_manifest(self, names)
        return manifest_frame(rows) if rows else super().manifest(names)

    def text(self, name: str) -> bytes:
        """The bytes of the metadata."""
        return bytes(self.members[name].where.read_bytes())


# --- in a bucket ---------------------------------------------------------------------------------------------------------


def _remote(url: str, stack: contextlib.ExitStack) -> Source:
    system, path = file_system(url)
    _refuse_others(url)
    if _ending(path):
        return Opened(url, {PurePosixPath(path).name: _there(system, path, url, stack)})
    if path.casefold().endswith(TABLES):
        return Opened(url, {url: Manifest(system, path, url)})
    folder = Folder.listed(system, path, url)
    if not folder.members:
        raise WbcError(f"{url}: there is no such file or folder, or nothing in it")
    shards = {name.rpartition("/")[2]: member for name, member in folder.members.items() if _is_shard(name)}
    if shards and not any(map(_is_image, folder.members)):
        return Opened(
            url, {name: _there(system, member.where, f"{url}/{name}", stack) for name, member in sorted(shards.items())}
        )
    return Opened(url, {url: folder})


def _is_shard(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder in ("", DATA) and bool(_ending(file))


def _there(system: Any, path: str, shown: str, stack: contextlib.ExitStack) -> Archive:
    with answering(shown):
        return _archive(system.open(path, "rb"), shown, stack)
