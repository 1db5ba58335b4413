"""Reading the files of a manifest, here or by the runner of shards: each is hashed and decoded, and refused with the reason where
it cannot be used.

What other processes have read, hashed and decoded is not read from its source again. They put the bytes of new images into
pieces, one for each part of the rows, in a folder that all reach. The store is written in one place and in one order.
"""

import functools
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pandas as pd
from tqdm import tqdm

from wbc_model.cells.manifest import Load, Source, each_file, printable, unknown_label
from wbc_model.cells.merge import Examined, Row
from wbc_model.cells.rejections import Rejection
from wbc_model.cells.store import ImageStore, StoredImage, StoreIndex
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.core.files import make_folder
from wbc_model.core.images import decode
from wbc_model.spread import each, is_spread

Judged = StoredImage | Rejection
_SIDE_OF_SPLIT: Final = {"train": "train", "val": "validation", "test": "test", "": ""}


@dataclass(frozen=True)
class Examination:
    """Where rows come from and where they go.

    The `source` is written beside each cell. `pieces` is a folder for what processes give each other; it is gone at the end.
    """

    origin: Source
    store: ImageStore
    source: str
    pieces: Path

    def images(self, manifest: pd.DataFrame, rows: Examined) -> Iterator[StoredImage]:
        """Read, hash and decode each row's file. The accepted images are given out as they come; all rows go to `rows` in the
        manifest's order. At most a few images are in memory."""
        columns = (manifest[name] for name in ("path", "label", "group", "split"))
        listed = [
            Row(str(path), "", str(label), str(group), _SIDE_OF_SPLIT[str(split)])
            for path, label, group, split in zip(*columns, strict=True)
        ]
        del manifest, columns  # a million rows of it take as much memory again
        accepted = bytearray(len(listed))
        shutil.rmtree(self.pieces, ignore_errors=True)  # of a process that was killed
        judged = self._elsewhere(listed) if is_spread() else _judged(self.origin, listed, self.store.index(), self.source)
        for place, found in tqdm(judged, total=len(listed), desc="ingest", unit="cell", disable=None):
            if isinstance(found, Rejection):
                rows.rejections.append(found)
                continue
            listed[place].path, listed[place].sha256 = found.path, found.sha256
            accepted[place] = True
            yield found
        rows.accepted += itertools.compress(listed, accepted)

    def _elsewhere(self, listed: list[Row]) -> Iterator[tuple[int, Judged]]:
        """Each row's position and what was found, by the runner of shards: in the order in which this process would find it."""
        parts = [(places, [listed[place] for place in places]) for places in self.origin.parts([row.path for row in listed])]
        if len(parts) < 2:
            yield from _judged(self.origin, listed, self.store.index(), self.source)
            return
        shards = tuple(shard.name for shard in self.store.index().shards)
        work = functools.partial(_piece, self.origin, self.store.directory.absolute(), shards, self.source, self.pieces)
        make_folder(self.pieces)
        try:
            for piece in each(work, parts):
                yield from piece.judged()
        finally:
            shutil.rmtree(self.pieces, ignore_errors=True)


@dataclass(frozen=True)
class Piece:
    """What was found of a part of the rows: `found` has positions in the manifest, and images without their bytes. Those of the
    images that are new lie in `file`, one after the other; `sizes` has a number of bytes for each of `found`, 0 where none lie
    there."""

    file: Path
    found: list[tuple[int, Judged]]
    sizes: list[int]

    def judged(self) -> Iterator[tuple[int, Judged]]:
        """The same with the bytes, one image in memory at a time. The file is gone at the end."""
        with self.file.open("rb") as file:
            for (place, judged), size in zip(self.found, self.sizes, strict=True):
                if isinstance(judged, StoredImage) and size:
                    data = file.read(size)
                    if len(data) != size:
                        raise WbcError(f"{self.file} is cut off: is the disk full? Make room and ingest again")
                    judged = replace(judged, data=data)
                yield place, judged
        self.file.unlink(missing_ok=True)


def _piece(
    origin: Source, directory: Path, shards: tuple[str, ...], source: str, pieces: Path, part: tuple[list[int], list[Row]]
) -> Piece:
    """A part of the rows, examined in another process."""
    places, rows = part
    stored = _index_of(directory, shards)
    found: list[tuple[int, Judged]] = []
    sizes: list[int] = []
    known: set[str] = set()
    descriptor, name = tempfile.mkstemp(dir=pieces)
    with os.fdopen(descriptor, "wb") as file:
        for at, judged in _judged(origin, rows, stored, source):
            size = 0
            if isinstance(judged, StoredImage):
                if judged.sha256 not in known and judged.sha256 not in stored:
                    known.add(judged.sha256)
                    size = file.write(judged.data)
                judged = replace(judged, data=b"")
            found.append((places[at], judged))
            sizes.append(size)
    return Piece(Path(name), found, sizes)


@functools.lru_cache(maxsize=1)
def _index_of(directory: Path, shards: tuple[str, ...]) -> StoreIndex:
    return ImageStore(directory).index_of([directory / shard for shard in shards])


def _judged(origin: Source, rows: list[Row], stored: Container[str], source: str) -> Iterator[tuple[int, Judged]]:
    """The position of each of these rows and what was found of it, in the order in which files are read fastest."""
    return each_file(origin, [row.path for row in rows], lambda place, load: _examine_row(rows[place], load, stored, source))


def _examine_row(row: Row, load: Load, stored: Container[str], source: str) -> Judged:
    sha256 = ""
    path = printable(row.path)
    try:
        data = load()
        sha256 = hashlib.sha256(data).hexdigest()
        width, height, image_format = 0, 0, ""
        if sha256 not in stored:  # what is stored was decoded when it came in, and is not stored again
            _, facts = decode(data)
            width, height, image_format = facts.width, facts.height, facts.format
        if row.label and row.label not in CLASSES:
            raise ImageRejected("unknown_label", unknown_label(row.label))
        if not row.label and row.side in ("validation", "test"):
            raise ImageRejected("unknown_label", f"the label is empty; a cell of the {row.side} pool needs one")
    except ImageRejected as rejected:
        return Rejection(path, sha256, rejected.reason, rejected.detail)
    return StoredImage(data, path, sha256, width, height, image_format, source)
