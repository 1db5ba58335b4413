"""The project's own CSV files as columns: read by Arrow, and written block by block, however many rows they have.

What is written has the bytes that the `csv` module would write: a field is quoted where it must be, lines end in \\n. The same
content always gives the same bytes.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from wbc_model.core.errors import WbcError
from wbc_model.core.written import MARKS, read_written

if "jemalloc" in pa.supported_memory_backends():  # gives back what is free; the usual one keeps up to 0.4 kB a cell of it
    pa.set_memory_pool(pa.jemalloc_memory_pool())

_COMMA, _QUOTE, _LINE_END, _NOTHING = (pa.scalar(text, pa.large_string()) for text in (",", '"', "\n", ""))
_ROWS: Final = 16_384  # rows rendered at a time
_TAKEN: Final = 8 * _ROWS  # rows taken out of order at a time, 20 MB: Arrow looks through the whole column for each such part
_MUST_BE_QUOTED: Final = (b'"', b",", b"\n")
Digests = NDArray[np.bytes_]  # S32: 32 bytes each


def read_table(path: Path, columns: Sequence[str], whole: str | None = None) -> pd.DataFrame:
    """Read one of the project's own CSV files as text, the column `whole` as nullable whole numbers.

    Raises WbcError naming the file when its columns are not `columns`, and the line where `whole` holds something else.
    """
    if not path.exists():
        raise WbcError(f"{path} is missing: run `wbc ingest DATA` first, or `dvc checkout` to bring it back")
    try:
        table = _read(path, columns) if _is_plain(path) else _read(pa.BufferReader(read_written(path).encode()), columns)
    except OSError as error:
        raise WbcError(f"{path}: cannot be read: {error.strerror}") from None
    except pa.ArrowInvalid as error:
        read_written(path)  # says where it is no text
        raise WbcError(f"{path} is damaged: {str(error).splitlines()[0]}; bring it back with `dvc checkout`") from None
    if table.column_names != list(columns):
        raise WbcError(f"{path}: its columns are {', '.join(table.column_names)}; expected {', '.join(columns)}")
    if whole is not None:
        table = table.set_column(columns.index(whole), whole, _checked_numbers(table[whole], whole, path))
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return frame


def _checked_numbers(column: Any, name: str, path: Path) -> Any:
    texts = _joined(column)
    right = np.asarray(pc.match_substring_regex(texts, "^[0-9]{0,18}$"))
    if not right.all():
        row = int(np.argmin(right))
        raise WbcError(f"{path} line {row + 2}: {name} {texts[row].as_py()!r} is not a whole number")
    return _numbers(texts)


def _read(source: Any, columns: Sequence[str]) -> Any:
    as_text = csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.large_string()), strings_can_be_null=False)
    return csv.read_csv(
        source,
        read_options=csv.ReadOptions(use_threads=False),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=as_text,
    )


def _is_plain(path: Path) -> bool:
    """Whether a file has neither a byte order mark nor a zero byte: nobody saved it in an editor that adds them."""
    with path.open("rb") as file:
        marked = file.read(4).startswith(tuple(mark for mark, _ in MARKS))
        return not marked and all(b"\0" not in block for block in iter(lambda: file.read(2**20), b""))


def to_csv(frame: pd.DataFrame) -> str:
    """The text of a table, as `csv_blocks`."""
    return b"".join(csv_blocks(frame)).decode()


def csv_blocks(frame: pd.DataFrame, quote_all: bool | None = None, header: bool = True) -> Iterator[bytes]:
    """A table of text and whole numbers as CSV, some thousand rows at a time; what is missing is an empty field.

    `quote_all`: whether every field is quoted; by default where `must_quote_all` says so."""
    columns = _texts(frame)
    quote_all = _has_returns(columns) if quote_all is None else quote_all
    if header:
        yield (",".join(f'"{name}"' if quote_all else name for name in columns) + "\n").encode()
    for start in range(0, len(frame), _ROWS):
        fields = [_quoted(_joined(text.slice(start, _ROWS)), quote_all) for text in columns.values()]
        fields[-1] = pc.binary_join_element_wise(fields[-1], _LINE_END, _NOTHING)
        yield _data(pc.binary_join_element_wise(*fields, _COMMA))


def must_quote_all(frame: pd.DataFrame) -> bool:
    """Whether a field holds a carriage return: legal in the name of a file, and left unquoted by the `csv` module."""
    return _has_returns(_texts(frame))


def _has_returns(columns: dict[str, Any]) -> bool:
    return any(
        b"\r" in _data(_joined(text.slice(start, _ROWS))) for text in columns.values() for start in range(0, len(text), _ROWS)
    )


def _texts(frame: pd.DataFrame) -> dict[str, Any]:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    return {str(name): _text(column) for name, column in zip(table.column_names, table.columns, strict=True)}


def _text(column: Any) -> Any:
    text = column if pa.types.is_large_string(column.type) else column.cast(pa.large_string())
    return text.fill_null("") if text.null_count else text


def _joined(text: Any) -> Any:
    """A chunked column as one array."""
    return text.chunk(0) if text.num_chunks == 1 else pa.concat_arrays([*text.chunks, pa.array([], pa.large_string())])


def _quoted(text: Any, quote_all: bool) -> Any:
    """The fields of one column, quoted where they must be."""
    data = _data(text)
    if not quote_all and not any(mark in data for mark in _MUST_BE_QUOTED):
        return text
    quoted = pc.binary_join_element_wise(_QUOTE, pc.replace_substring(text, '"', '""'), _QUOTE, _NOTHING)
    return quoted if quote_all else pc.if_else(pc.match_substring_regex(text, '[",\n]'), quoted, text)


def _data(lines: Any) -> bytes:
    """The bytes of all lines, one after the other."""
    _, offsets, data = lines.buffers()
    if data is None:
        return b""
    ends = np.frombuffer(offsets, np.int64)[lines.offset : lines.offset + len(lines) + 1]
    text: bytes = data.slice(int(ends[0]), int(ends[-1] - ends[0])).to_pybytes()
    return text


def whole_numbers(column: pd.Series) -> pd.Series:
    """Texts or numbers as nullable integers; what is empty is missing."""
    numbers = _numbers(_joined(_texts(column.to_frame("number"))["number"]))
    missing = np.asarray(numbers.is_null())
    return pd.Series(pd.arrays.IntegerArray(np.asarray(numbers.fill_null(0)), missing), column.index)


def _numbers(texts: Any) -> Any:
    return pc.if_else(pc.equal(texts, _NOTHING), pa.scalar(None, pa.large_string()), texts).cast(pa.int64())


def in_order(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The rows in the order of these columns, stable, what is missing last; the frame itself where they are."""
    order = places_by(frame[list(by)])
    return frame if (order[1:] > order[:-1]).all() else frame.iloc[order]


def slices_in_order(frame: pd.DataFrame, by: Sequence[str]) -> Iterator[pd.DataFrame]:
    """The rows of `in_order` many at a time, at least once: no second table is made."""
    order = places_by(frame[list(by)])
    for start in range(0, max(1, len(frame)), _TAKEN):
        yield frame.iloc[order[start : start + _TAKEN]]


def places_by(columns: pd.DataFrame) -> NDArray[np.uint64]:
    """The positions of the rows in the order of all these columns, stable, what is missing last."""
    table = pa.Table.from_pandas(columns, preserve_index=False)
    return np.asarray(pc.sort_indices(table, sort_keys=[(name, "ascending", "at_end") for name in columns]))


# --- cells by their names -----------------------------------------------------------------------------------------------


def digests(sha256s: "Sequence[str] | pd.Series[str]") -> Digests:
    """The names of cells as bytes, S32 (n,); raises ValueError where one is no sha256."""
    packed = bytearray()
    for texts, shortest, longest in _joined_names(sha256s):
        before = len(packed)
        packed += bytes.fromhex(texts)
        if not (shortest == longest == 64 and 2 * (len(packed) - before) == len(texts)):
            raise ValueError("not every name is a sha256")
    return np.frombuffer(packed, "S32")


def _joined_names(names: "Sequence[str] | pd.Series[str]") -> Iterator[tuple[str, int, int]]:
    """Names one after the other, some thousand at a time, with the lengths of the shortest and the longest."""
    for start in range(0, len(names), _ROWS):
        if isinstance(names, pd.Series):
            texts = _joined(_texts(names.iloc[start : start + _ROWS].to_frame("name"))["name"])
            lengths = pc.min_max(pc.binary_length(texts)).as_py()
            yield _data(texts).decode("ascii"), lengths["min"], lengths["max"]
        else:
            some = names[start : start + _ROWS]
            yield "".join(some), min(map(len, some)), max(map(len, some))


def are_names(sha256s: "pd.Series[str]") -> bool:
    """Whether each of these is the name of a cell as it is written: 64 digits, in lower case."""
    try:
        return all(
            shortest == longest == 64 and not texts.encode().translate(None, b"0123456789abcdef")
            for texts, shortest, longest in _joined_names(sha256s)
        )
    except UnicodeDecodeError:
        return False


def first_places(names: Digests) -> NDArray[np.int64]:
    """For each of these names the position at which it first stands, (n,)."""
    codes, different = pd.factorize(_beginnings(names))
    first = np.empty(len(different), np.int64)
    first[codes[::-1]] = np.arange(len(names))[::-1]  # what is written last stays
    found: NDArray[np.int64] = first[codes]
    if all((of_name[found] == of_name).all() for of_name in _eights(names).T):
        return found
    _, first, numbers = np.unique(names, return_index=True, return_inverse=True)  # two names with the same beginning
    return first[numbers]


def _beginnings(names: Digests) -> NDArray[np.uint64]:
    """The first eight bytes of each name, (n,): two that differ have the same by a chance of one in millions."""
    return _eights(names)[:, 0]


def _eights(names: Digests) -> NDArray[np.uint64]:
    """Names as four numbers each, (n, 4)."""
    return names.view(np.uint64).reshape(-1, 4)


def all_differ(columns: "Iterable[Sequence[str] | pd.Series[str]]") -> bool:
    """Whether no name of a cell stands twice in these columns. False also where one is no sha256, and by a chance of one in
    millions where they do differ."""
    try:
        first = np.concatenate([_beginnings(digests(column)).copy() for column in columns])
    except ValueError:
        return False
    first.sort()
    return not bool((first[1:] == first[:-1]).any())


def among(names: "pd.Series[str]", wanted: "Collection[str] | pd.Series[str]") -> NDArray[np.bool_]:
    """Which of these names are wanted, (n,): as `isin`, which makes an object of each."""
    if not len(names) or not len(wanted):
        return np.zeros(len(names), bool)
    texts = wanted if isinstance(wanted, pd.Series) else pd.Series(list(wanted), dtype=str)
    known = _joined(_texts(texts.to_frame("name"))["name"])
    return np.asarray(pc.is_in(_texts(names.to_frame("name"))["name"], value_set=known))


def names_of(sha256s: "pd.Series[str]") -> Digests:
    """Names as `digests` has them, (n,), also where people wrote them: what is no sha256 is zeros, as no cell is named."""
    try:
        return digests(sha256s)
    except ValueError:
        return digests(sha256s.where(sha256s.str.fullmatch("[0-9a-f]{64}"), "0" * 64))


def places_in(names: Digests, among: Digests) -> NDArray[np.int64]:
    """Where each of `names` first stands in `among`, (n,); -1 where it does not."""
    if not len(among):
        return np.full(len(names), -1)
    index = pd.Index(_beginnings(among))
    if not index.is_unique:
        first = first_places(np.concatenate([among, names]))[len(among) :]
        return np.where(first < len(among), first, -1)
    places = np.asarray(index.get_indexer(pd.Index(_beginnings(names))), np.int64)
    for wanted, known in zip(_eights(names).T, _eights(among).T, strict=True):
        places[(places >= 0) & (wanted != known[places])] = -1
    return places
