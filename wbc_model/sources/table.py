"""Images in Parquet, as Hugging Face `datasets` keeps them: a struct of bytes and path, a label, perhaps a split and a group."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from wbc_model.cells.manifest import Load, ManifestRow, sheet_rows
from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.core.images import MAX_BYTES
from wbc_model.core.written import Sheet
from wbc_model.sources.limits import length_of, refuse_many, refuse_swollen, too_large
from wbc_model.sources.listing import text_of
from wbc_model.sources.members import Member, Members, plain_name

IMAGES: Final = ("image", "img")
COLUMNS: Final = ("label", "split", "group")
MOST_OF_A_GROUP: Final = 2**30  # bytes of a row group, which are in memory together
_BROKEN: Final = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, ValueError)


class ParquetTable:
    """The images of a Parquet file by their paths, or by the numbers of their rows. Raises WbcError where it is cut off or
    damaged, has no images, or is a bomb by what it declares."""

    is_stream = True

    def __init__(self, file: IO[bytes], shown: str) -> None:
        self.shown, self.members = shown, Members()
        size = length_of(file)
        try:
            schema = pq.read_schema(file)
            self.column, whole = _image_column(schema, shown)
            # As a dictionary: a large image that a million rows name is in memory once.
            self.table = pq.ParquetFile(file, read_dictionary=[whole])
        except _BROKEN as error:
            raise WbcError(f"{shown}: no whole Parquet file ({_said(error)}): is it cut off? Copy it again") from None
        self._refuse_costly(size)
        for row, path in enumerate(self._paths()):
            name = path if path and not plain_name(path)[1] and path not in self.members else f"row-{row:07}"
            self.members.put(name, Member(0, row))

    def _refuse_costly(self, size: int) -> None:
        metadata = self.table.metadata
        groups = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
        refuse_many(self.shown, metadata.num_rows)
        refuse_swollen(self.shown, sum(groups), size)
        if max(groups, default=0) > MOST_OF_A_GROUP:
            number = groups.index(max(groups))
            raise WbcError(
                f"{self.shown}: row group {number} has {groups[number]:,} bytes, at most {MOST_OF_A_GROUP:,} are read at once: "
                "write it with smaller ones (row_group_size=256)"
            )

    def _values(self, name: str) -> list[Any]:
        try:
            found: list[Any] = self.table.read(columns=[name]).column(0).to_pylist()
        except _BROKEN as error:
            raise WbcError(f"{self.shown}: its column {name} is damaged ({_said(error)}): copy it again") from None
        return found

    def _paths(self) -> list[str]:
        schema = self.table.schema_arrow.field(self.column).type
        if not pa.types.is_struct(schema) or schema.get_field_index("path") < 0:
            return [""] * self.table.metadata.num_rows
        return [(one or {}).get("path") or "" for one in self._values(f"{self.column}.path")]

    def rows(self, names: Mapping[str, str]) -> list[ManifestRow]:
        """The rows of the images. Numbers of Hugging Face's ClassLabel are read as its names, and -1 as no label."""
        schema = self.table.schema_arrow
        told = [name for name in COLUMNS if name in schema.names]
        if "label" not in told:  # one under another name is looked for
            told += [one.name for one in schema if pa.types.is_string(one.type) and one.name not in told]
        columns = [_texts(self._values(name), _class_names(schema, name)) for name in told]
        lines = (list(fields) for fields in zip(self.members, *columns, strict=True))
        sheet = Sheet(Path(self.shown), ",", ["path", *map(str.casefold, told)], enumerate(lines, 1))
        return sheet_rows(sheet, names)

    def load(self, names: Sequence[str]) -> Iterator[tuple[int, Load]]:
        """In the order of the rows, each with its bytes."""
        wanted = {self.members[name].where: place for place, name in enumerate(names)}
        row = 0
        try:
            for batch in self.table.iter_batches(batch_size=256, columns=[self.column]):
                column = batch.column(0)
                if pa.types.is_struct(column.type):
                    column = column.field("bytes")
                for value in column:
                    if row in wanted:
                        yield wanted[row], partial(_given, value.as_py())
                    row += 1
        except _BROKEN as error:
            raise WbcError(f"{self.shown}: damaged at row {row} ({_said(error)}): copy it again") from None

    def close(self) -> None:
        """Close the file."""
        self.table.close(force=True)


def _image_column(schema: Any, shown: str) -> tuple[str, str]:
    """The column of the images, and within it that of their bytes."""
    for name in IMAGES:
        kind = schema.field(name).type if name in schema.names else None
        if kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return name, f"{name}.bytes"
        if kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            return name, name
    raise WbcError(f"{shown}: has no column of images: expected `image` with bytes and path; it has {', '.join(schema.names)}")


def _class_names(schema: Any, column: str) -> Sequence[str]:
    """What Hugging Face notes as the names of a column's numbers."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def _texts(values: Sequence[Any], names: Sequence[str]) -> list[str]:
    if not names:
        return [text_of(value) for value in values]
    return [
        "" if value == -1 else names[value] if isinstance(value, int) and 0 <= value < len(names) else text_of(value)
        for value in values
    ]


def _given(data: bytes | None) -> bytes:
    if data is None:
        raise ImageRejected("missing", "the table has no bytes of it")
    if len(data) > MAX_BYTES:
        raise too_large(len(data))
    return data


def _said(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
