"""The image store: original image bytes in immutable Parquet shards, where a cell is named by its sha256.

A shard is named by the sha256 of its own bytes. Damage shows, and versioning tools that compare names and sizes never copy it
twice. Its columns are those that Hugging Face `datasets`, pandas and DuckDB read images from. A shard never changes;
what is new goes into new shards. Their metadata number them, in the order in which they came.
"""

import hashlib
import itertools
import json
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wbc_model.cells.tables import Digests, digests
from wbc_model.core.errors import WbcError
from wbc_model.core.files import file_sha256, make_folder, sync
from wbc_model.core.lock import locked_folder
from wbc_model.spread import part_size

SHARD_BYTES: Final = 256_000_000  # the most a shard may weigh
GROUP_ROWS: Final = 256  # a random read costs one row group
GROUP_BYTES: Final = 16_000_000  # and no row group of large images may cost much memory
ROW_OVERHEAD: Final = 512  # bytes that names, sizes and page headers may add to a row, generously
NAME_DIGITS: Final = 16
_BYTES, _NUMBERS = 32, 4  # of a cell's name; the first number tells next to all of them apart
_TEMPORARY: Final = ".adding-{}.parquet"  # with the shard's number


@dataclass(frozen=True)
class StoredImage:
    """One row of the store. `data`: the original bytes, `path`: as the manifest had it, `width` and `height` in pixels."""

    data: bytes
    path: str
    sha256: str
    width: int
    height: int
    format: str
    source: str


@dataclass(frozen=True)
class ShardPart:
    """Rows `start` to `end` of a shard, without the last."""

    shard: Path
    start: int
    end: int

    def images(self) -> Iterator[StoredImage]:
        """They, unchecked, one row group in memory at a time."""
        return stream(self.shard, range(self.start, self.end))


@dataclass(frozen=True)
class Location:
    """Where a cell lies: `row` counts from 0 in the whole shard."""

    shard: Path
    row: int


class StoreIndex(Mapping[str, Location]):
    """The place of every cell by its sha256, in store order (first added first); 48 bytes a cell.

    `shards`: the files; a cell's place is given as the number of its shard and its row there.
    """

    def __init__(self, shards: Sequence[Path], names: Sequence[Digests]) -> None:
        counts = [len(of_shard) for of_shard in names]
        every = np.concatenate([*names, np.zeros(0, "S32")])
        order = np.argsort(every, kind="stable")  # of a cell that is there twice the first place counts
        if len(order):
            order = order[np.r_[True, every[order[1:]] != every[order[:-1]]]]
        self.shards = tuple(shards)
        self._names = every[order]
        self._numbers = self._names.view(">u8")[::_NUMBERS].astype(np.uint64).data
        self._shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]
        self._row = np.concatenate([*(np.arange(count, dtype=np.int32) for count in counts), np.zeros(0, np.int32)])[order]

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        for position in np.lexsort((self._row, self._shard)):
            yield self._names[position].ljust(_BYTES, b"\0").hex()

    def __contains__(self, sha256: object) -> bool:
        """As `find`, for one cell among the work of other threads: NumPy would let them in, and wait for its turn again."""
        if not isinstance(sha256, str) or len(sha256) != 2 * _BYTES or sha256.strip("0123456789abcdef"):
            return False
        name = bytes.fromhex(sha256)
        number = int.from_bytes(name[: _BYTES // _NUMBERS], "big")
        position = bisect_left(self._numbers, number)
        while position < len(self) and self._numbers[position] == number:
            if self._names[position].ljust(_BYTES, b"\0") == name:
                return True
            position += 1
        return False

    def __getitem__(self, sha256: str) -> Location:
        position = self.find([sha256])[0]
        if position < 0:
            raise KeyError(sha256)
        return Location(self.shards[self._shard[position]], int(self._row[position]))

    def find(self, sha256s: "Sequence[str] | pd.Series[str]") -> NDArray[np.intp]:
        """The positions of cells in this index, (n,); -1 for one that is not there."""
        try:
            names = digests(sha256s)
        except ValueError:  # a name that is no sha256 is not there; the others may be
            known = [len(name) == 64 and not name.strip("0123456789abcdef") for name in sha256s]
            found = np.full(len(known), -1, np.intp)
            found[known] = self.find([name for name, good in zip(sha256s, known, strict=True) if good])
            return found
        positions = np.searchsorted(self._names, names)
        positions[positions == len(self)] = -1
        if len(self):
            positions[self._names[positions] != names] = -1
        return positions

    def places(self, positions: NDArray[np.intp]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The numbers of the shards, and the rows in them, at these positions."""
        return self._shard[positions], self._row[positions]


def _schema(sequence: int) -> Any:
    types = {"sha256": "string", "width": "int32", "height": "int32", "format": "string", "source": "string"}
    features: dict[str, dict[str, str]] = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": dtype, "_type": "Value"} for name, dtype in types.items()}
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "wbc": json.dumps({"sequence": sequence}),
    }
    fields = [
        pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
        pa.field("sha256", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("source", pa.string()),
    ]
    return pa.schema(fields, metadata=metadata)


class _ShardWriter:
    """One shard in the making, under a temporary name; holds at most one row group in memory."""

    def __init__(self, directory: Path, sequence: int) -> None:
        self.directory, self.sequence = directory, sequence
        self.path = directory / _TEMPORARY.format(sequence)
        self.schema = _schema(sequence)
        self.writer = pq.ParquetWriter(
            self.path, self.schema, compression="NONE", use_dictionary=["format", "source"], write_statistics=["sha256"]
        )
        self.rows: list[StoredImage] = []
        self.row_bytes = 0
        self.written = 0

    def fits(self, image: StoredImage) -> bool:
        return self.written == 0 or self.written + _weight(image) <= SHARD_BYTES - GROUP_ROWS * ROW_OVERHEAD

    def add(self, image: StoredImage) -> None:
        self.rows.append(image)
        self.row_bytes += len(image.data)
        self.written += _weight(image)
        if len(self.rows) >= GROUP_ROWS or self.row_bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self.rows:
            return
        columns = {
            "image": [{"bytes": row.data, "path": row.path} for row in self.rows],
            **{name: [getattr(row, name) for row in self.rows] for name in ("sha256", "width", "height", "format", "source")},
        }
        self.writer.write_table(pa.table(columns, schema=self.schema), row_group_size=GROUP_ROWS)
        self.rows, self.row_bytes = [], 0

    def close(self) -> Path:
        """Finish the shard and give it its name; where that fails it is gone."""
        try:
            self._flush()
            self.writer.close()
            sync(self.path)
            final = self.directory / f"{file_sha256(self.path)[:NAME_DIGITS]}.parquet"
            self.path.chmod(0o644)
            os.replace(self.path, final)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        sync(self.directory)
        return final

    def abandon(self) -> None:
        self.writer.close()
        self.path.unlink(missing_ok=True)


def _weight(image: StoredImage) -> int:
    return len(image.data) + len(image.path.encode()) + len(image.source.encode()) + ROW_OVERHEAD


def _open(shard: Path) -> Any:
    try:
        return pq.ParquetFile(shard)
    except (pa.ArrowInvalid, OSError) as error:
        raise WbcError(
            f"{shard} cannot be read ({str(error).splitlines()[0]}): bring it back with `dvc checkout` or `dvc pull`"
        ) from None


class ImageStore:
    """The shards of one directory (`data/images`); cheap to make, reads nothing until asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: dict[Path, _Facts] = {}
        self._index: tuple[list[Path], StoreIndex] | None = None

    def _facts(self, shard: Path) -> "_Facts":
        known, stamp = self._known.get(shard), _stamp(shard)
        if known is None or known.stamp != stamp:
            with _open(shard) as file:
                metadata = file.schema_arrow.metadata or {}
                if b"wbc" not in metadata or "sha256" not in file.schema_arrow.names:
                    raise WbcError(f"{shard} is not a shard of the image store: take it out of {self.directory}")
                sequence = int(json.loads(metadata[b"wbc"])["sequence"])
                known = _Facts(stamp, sequence, _names(shard, file))
            self._known[shard] = known
            self._index = None
        return known

    def shards(self) -> list[Path]:
        """The shards, first added first."""
        found = [path for path in self.directory.glob("*.parquet") if not path.name.startswith(".")]
        return sorted(found, key=lambda path: (self._facts(path).sequence, path.name))

    def parts(self, shards: Sequence[Path]) -> "list[list[ShardPart]]":
        """All rows of each of these shards, in parts for one process each: some row groups of one shard."""
        counts = [len(self._facts(shard).names) for shard in shards]
        size = part_size(sum(counts), GROUP_ROWS)
        return [
            [ShardPart(shard.absolute(), start, min(start + size, count)) for start in range(0, max(count, 1), size)]
            for shard, count in zip(shards, counts, strict=True)
        ]

    def index(self) -> StoreIndex:
        """sha256 to place of every cell, in store order (first added first). Reads only the sha256 columns, once."""
        shards = self.shards()
        if self._index is None or self._index[0] != shards:
            self._index = shards, self.index_of(shards)
        return self._index[1]

    def index_of(self, shards: Sequence[Path]) -> StoreIndex:
        """The same of these shards alone."""
        return StoreIndex(shards, [self._facts(shard).names for shard in shards])

    def add(self, images: Iterable[StoredImage]) -> list[Path]:
        """Write what is not there yet into new shards and return these; the images are streamed, memory stays flat.

        Raises WbcError when the bytes of an image are not those of its sha256.
        """
        make_folder(self.directory)
        with locked_folder(self.directory), ThreadPoolExecutor(1) as closer:  # the folder itself: no lock file among the shards
            for left in self.directory.glob(".adding*.parquet"):  # by a writer that was killed
                left.unlink()
            present, added = self.index(), set[bytes]()
            sequence = max((self._facts(shard).sequence for shard in self.shards()), default=-1) + 1
            made: list[Future[Path]] = []
            writer: _ShardWriter | None = None

            def close() -> None:
                """While a disk takes in a shard, the next one fills: one at a time, in their order."""
                nonlocal writer
                if made:
                    made[-1].result()
                if writer is not None:
                    made.append(closer.submit(writer.close))
                    writer = None

            try:
                for image in images:
                    name = bytes.fromhex(image.sha256)
                    if name in added or image.sha256 in present:
                        continue
                    if hashlib.sha256(image.data).digest() != name:
                        raise WbcError(f"{image.path}: its bytes changed while they were read; ingest again")
                    if writer is not None and not writer.fits(image):
                        close()
                    if writer is None:
                        writer = _ShardWriter(self.directory, sequence + len(made))
                    writer.add(image)
                    added.add(name)
                close()
                return [one.result() for one in made]
            except BaseException:
                if writer is not None:
                    writer.abandon()
                raise

    def read(self, sha256s: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Stream (sha256, original bytes) in store order, one row group in memory at a time; each cell once.

        Raises WbcError naming a sha256 that is not in the store, before anything is read, or whose bytes are damaged.
        """
        index = self.index()
        positions = index.find(sha256s)
        if len(positions) and positions.min() < 0:
            missing = next(itertools.compress(sha256s, positions < 0))
            raise WbcError(f"cell {missing} is not in {self.directory}: `dvc pull` brings its shard, or ingest its image again")
        shards, rows = index.places(np.unique(positions))
        return self._read({index.shards[shard]: np.sort(rows[shards == shard]).tolist() for shard in np.unique(shards)})

    def _read(self, by_shard: dict[Path, list[int]]) -> Iterator[tuple[str, bytes]]:
        for shard, rows in by_shard.items():
            for image in stream(shard, rows):
                if hashlib.sha256(image.data).hexdigest() != image.sha256:
                    raise WbcError(f"{shard} is damaged at cell {image.sha256}: bring it back with `dvc checkout` or `dvc pull`")
                yield image.sha256, image.data


@dataclass(frozen=True)
class _Facts:
    """What is known of a shard as long as its `stamp` stays: its number, and the names of its cells in order."""

    stamp: tuple[int, int]
    sequence: int
    names: Digests


def _stamp(shard: Path) -> tuple[int, int]:
    status = shard.stat()
    return status.st_size, status.st_mtime_ns


def _names(shard: Path, file: Any) -> Digests:
    try:
        return digests(file.read(columns=["sha256"]).column("sha256").to_pandas())
    except (ValueError, pa.ArrowInvalid, OSError):
        raise WbcError(f"{shard} is damaged: bring it back with `dvc checkout` or `dvc pull`") from None


def intact(shard: Path) -> bool:
    """Whether a shard's bytes are still those that it is named by."""
    return file_sha256(shard)[:NAME_DIGITS] == shard.stem


def stream(shard: Path, rows: Sequence[int] | None = None) -> Iterator[StoredImage]:
    """The given rows of a shard (ascending; all of them by default), unchecked, one row group in memory at a time."""
    with _open(shard) as file:
        start, position = 0, 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if rows is None:
                picked = list(range(end - start))
            else:
                first = position
                while position < len(rows) and rows[position] < end:
                    position += 1
                picked = [row - start for row in rows[first:position]]
            start = end
            if not picked:
                continue
            try:
                records = file.read_row_group(group)
            except (pa.ArrowInvalid, OSError) as error:
                raise WbcError(f"{shard} is damaged ({error}): bring it back with `dvc checkout` or `dvc pull`") from None
            for row in picked if len(picked) < records.num_rows else range(records.num_rows):
                record = {name: records.column(name)[row].as_py() for name in records.column_names}
                image = record.pop("image")
                yield StoredImage(data=image["bytes"], path=image["path"], **record)
