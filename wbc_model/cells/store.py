"""The image store: original image bytes in immutable Parquet shards, where a cell is named by its sha256.

A shard is named by the sha256 of its own bytes. Damage shows, and versioning tools that compare names and sizes never copy it
twice. Its columns are those that Hugging Face `datasets`, pandas and DuckDB read images from. A shard never changes;
what is new goes into new shards. Their metadata number them, in the order in which they came.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from wbc_model.core.errors import WbcError
from wbc_model.core.files import file_sha256
from wbc_model.core.lock import locked_folder

SHARD_BYTES: Final = 256_000_000  # the most a shard may weigh
GROUP_ROWS: Final = 256  # a random read costs one row group
GROUP_BYTES: Final = 16_000_000  # and no row group of large images may cost much memory
ROW_OVERHEAD: Final = 512  # bytes that names, sizes and page headers may add to a row, generously
NAME_DIGITS: Final = 16
_TEMPORARY: Final = ".adding.parquet"


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
class Location:
    """Where a cell lies: `row` counts from 0 in the whole shard."""

    shard: Path
    row: int


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
        self.path = directory / _TEMPORARY
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
        """Finish the shard and give it its name."""
        self._flush()
        self.writer.close()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        final = self.directory / f"{file_sha256(self.path)[:NAME_DIGITS]}.parquet"
        self.path.chmod(0o644)
        os.replace(self.path, final)
        _sync(self.directory)
        return final

    def abandon(self) -> None:
        self.writer.close()
        self.path.unlink(missing_ok=True)


def _weight(image: StoredImage) -> int:
    return len(image.data) + len(image.path.encode()) + len(image.source.encode()) + ROW_OVERHEAD


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(shard: Path) -> Any:
    try:
        return pq.ParquetFile(shard, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise WbcError(
            f"{shard} cannot be read ({str(error).splitlines()[0]}): bring it back with `dvc checkout` or `dvc pull`"
        ) from None


class ImageStore:
    """The shards of one directory (`data/images`); cheap to make, reads nothing until asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: dict[Path, tuple[tuple[int, int], int, list[str]]] = {}  # shard -> ((size, mtime), sequence, sha256s)

    def _facts(self, shard: Path) -> tuple[int, list[str]]:
        status = shard.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        known = self._known.get(shard)
        if known is None or known[0] != stamp:
            with _open(shard) as file:
                metadata = file.schema_arrow.metadata or {}
                if b"wbc" not in metadata or "sha256" not in file.schema_arrow.names:
                    raise WbcError(f"{shard} is not a shard of the image store: take it out of {self.directory}")
                sequence = int(json.loads(metadata[b"wbc"])["sequence"])
                known = (stamp, sequence, file.read(columns=["sha256"]).column("sha256").to_pylist())
            self._known[shard] = known
        return known[1], known[2]

    def shards(self) -> list[Path]:
        """The shards, first added first."""
        found = [path for path in self.directory.glob("*.parquet") if not path.name.startswith(".")]
        return sorted(found, key=lambda path: (self._facts(path)[0], path.name))

    def index(self) -> dict[str, Location]:
        """sha256 to place of every cell, in store order (first added first). Reads only the sha256 columns, once."""
        places: dict[str, Location] = {}
        for shard in self.shards():
            for row, sha256 in enumerate(self._facts(shard)[1]):
                places.setdefault(sha256, Location(shard, row))
        return places

    def add(self, images: Iterable[StoredImage]) -> list[Path]:
        """Write what is not there yet into new shards and return these; the images are streamed, memory stays flat.

        Raises WbcError when the bytes of an image are not those of its sha256.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with locked_folder(self.directory):  # the folder itself: no lock file among the shards
            (self.directory / _TEMPORARY).unlink(missing_ok=True)  # of a writer that was killed
            present = set(self.index())
            sequence = max((self._facts(shard)[0] for shard in self.shards()), default=-1) + 1
            made: list[Path] = []
            writer: _ShardWriter | None = None
            try:
                for image in images:
                    if image.sha256 in present:
                        continue
                    if hashlib.sha256(image.data).hexdigest() != image.sha256:
                        raise WbcError(f"{image.path}: its bytes changed while they were read; ingest again")
                    if writer is not None and not writer.fits(image):
                        made.append(writer.close())
                        writer = None
                    if writer is None:
                        writer = _ShardWriter(self.directory, sequence + len(made))
                    writer.add(image)
                    present.add(image.sha256)
                if writer is not None:
                    made.append(writer.close())
            except BaseException:
                if writer is not None:
                    writer.abandon()
                raise
            return made

    def read(self, sha256s: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Stream (sha256, original bytes) in store order, one row group in memory at a time; each cell once.

        Raises WbcError naming a sha256 that is not in the store, before anything is read, or whose bytes are damaged.
        """
        places = self.index()
        wanted = set(sha256s)
        for sha256 in sha256s:
            if sha256 not in places:
                raise WbcError(
                    f"cell {sha256} is not in {self.directory}: `dvc pull` brings its shard, or ingest its image again"
                )
        by_shard: dict[Path, list[int]] = {}
        for sha256, place in places.items():
            if sha256 in wanted:
                by_shard.setdefault(place.shard, []).append(place.row)
        return self._read(by_shard)

    def _read(self, by_shard: dict[Path, list[int]]) -> Iterator[tuple[str, bytes]]:
        for shard, rows in by_shard.items():
            for image in stream(shard, rows):
                if hashlib.sha256(image.data).hexdigest() != image.sha256:
                    raise WbcError(f"{shard} is damaged at cell {image.sha256}: bring it back with `dvc checkout` or `dvc pull`")
                yield image.sha256, image.data


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
