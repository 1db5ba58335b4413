"""Files that people write: text with or without a byte order mark, and the one strict reader of all YAML of the project."""

import csv
import io
import math
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import yaml

from wbc_model.core.errors import WbcError

# The longer marks first: UTF-32's begins with UTF-16's.
MARKS: Final = (
    (BOM_UTF32_LE, "utf-32"),
    (BOM_UTF32_BE, "utf-32"),
    (BOM_UTF8, "utf-8-sig"),
    (BOM_UTF16_LE, "utf-16"),
    (BOM_UTF16_BE, "utf-16"),
)
_PACKED: Final = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how a workbook of a spreadsheet begins: .xlsx and .ods, .xls


def read_written(path: Path) -> str:
    """The text of a file that somebody may have saved in an editor: UTF-8, or what its byte order mark says.

    Line ends stay as they are. Raises WbcError naming the file where it cannot be read, or is no such text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WbcError(f"{path}: cannot be read: {error.strerror}") from None
    return decode_written(data, path)


def decode_written(data: bytes, path: Path) -> str:
    """The same of a file's bytes."""
    if data.startswith(_PACKED):
        raise WbcError(f"{path}: is no text but a workbook or another packed file: save its sheet as CSV in UTF-8")
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise WbcError(f"{path}: is no UTF-8 text at byte {error.start}: save it as UTF-8") from None
    if "\0" in text:
        raise WbcError(f"{path}: is no UTF-8 text: it holds zero bytes; save it as UTF-8")
    return text


# A field may hold a whole image, as in the CSV that Label Studio exports; 32 MiB of it are 43 MiB of text. Python allows 128 KiB.
csv.field_size_limit(64 * 2**20)
SEPARATORS: Final = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


@dataclass(frozen=True)
class Sheet:
    """A table as spreadsheets save it: the header in lower case, its separator, and the rows that are not empty. Each row has its
    line and its fields; empty ones at its end are left off."""

    path: Path
    separator: str
    header: list[str]
    rows: Iterator[tuple[int, list[str]]]

    @property
    def said(self) -> str:
        """The separator in words."""
        return SEPARATORS[self.separator]


def read_sheet(path: Path, columns: Collection[str]) -> Sheet:
    """Read a CSV or TSV file that somebody may have saved in a spreadsheet.

    The separator is what a first line `sep=;` says, else the one of SEPARATORS by which the header has most of `columns`, or
    most columns.
    Raises WbcError as `read_written`, or, while its rows are read, where the file is no CSV.
    """
    return parse_sheet(read_written(path), path, columns)


def parse_sheet(text: str, path: Path, columns: Collection[str]) -> Sheet:
    """The same of a text that came from `path`."""
    first, _, rest = text.partition("\n")
    lines_before = 0
    if (named := re.fullmatch(r'"?sep=(.)"?', first.strip("\r"))) and named[1] in SEPARATORS:
        separator, text, lines_before = named[1], rest, 1
    else:
        likely = sorted(SEPARATORS, key=lambda one: one != "\t") if path.suffix.casefold() == ".tsv" else list(SEPARATORS)
        headers = {one: _header(path, text, one) for one in likely}
        separator = max(likely, key=lambda one: (len(set(columns) & set(headers[one])), len(headers[one])))
    header = _header(path, text, separator)
    return Sheet(path, separator, header, _sheet_rows(path, text, separator, lines_before))


def _reader(text: str, separator: str) -> "Iterator[list[str]]":
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator)


def _header(path: Path, text: str, separator: str) -> list[str]:
    try:
        return [name.strip().casefold() for name in next(_reader(text, separator), [])]
    except csv.Error as error:
        raise WbcError(f"{path}: not a readable CSV ({error})") from None


def _sheet_rows(path: Path, text: str, separator: str, lines_before: int) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        next(reader, None)
        for row in reader:
            while row and not row[-1].strip():
                row.pop()
            if row:
                yield reader.line_num + lines_before, row
    except csv.Error as error:
        raise WbcError(f"{path}: not a readable CSV ({error})") from None


class _Strict(yaml.SafeLoader):
    """YAML without its traps: a key given twice is an error, and so is an infinite number.

    PyYAML reads YAML 1.1, DVC and ruamel read 1.2. A plain scalar is here what YAML 1.2's core schema says, so that all of them
    take it for the same: 1e-3 is a number, `010` ten, `yes` and `1:30` and a date are text. Merge keys stay.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


class _Quick(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same by libyaml: twenty times as fast, with errors in words of its own."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


_Loader = _Strict | _Quick


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        name = str(key.value)
        if name in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"{name!r} stands twice, in line {seen[name]} too: keep one of them", key.start_mark
            )
        seen[name] = key.start_mark.line + 1
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


def _finite(loader: _Loader, node: yaml.ScalarNode) -> float:
    value = yaml.SafeLoader.construct_yaml_float(loader, node)
    if not math.isfinite(value):
        raise yaml.constructor.ConstructorError(None, None, f"{node.value} is no finite number", node.start_mark)
    return value


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


def _yaml_map(loader: _Loader, node: yaml.MappingNode) -> Any:
    data: dict[Hashable, Any] = {}
    yield data
    data.update(_mapping(loader, node))


_CORE: Final = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"\.[0-9]+|[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
)
for _either in (_Strict, _Quick):
    for _name, _pattern, _first in _CORE:
        _either.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)
    _either.add_constructor("tag:yaml.org,2002:map", _yaml_map)
    _either.add_constructor("tag:yaml.org,2002:float", _finite)
    _either.add_constructor("tag:yaml.org,2002:int", _whole)


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """YAML text as a mapping; an empty text is an empty mapping.

    Raises WbcError naming the file, the line and what is wrong: no YAML, a key given twice, an infinite number, no mapping.
    """
    try:
        try:
            document = yaml.load(text, _Quick)  # noqa: S506 - a SafeLoader
        except yaml.YAMLError:  # said by the one whose words are known
            document = yaml.load(text, _Strict)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        if re.search(r"^<{7}( |$)", text, re.MULTILINE):
            raise WbcError(
                f"{path} holds the conflict of a merge: settle it; `git status` lists what else is in conflict"
            ) from None
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise WbcError(f"{path}{where}: {' '.join((error.problem or str(error)).split())}") from None
    except yaml.YAMLError as error:
        raise WbcError(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise WbcError(f"{path}: must be a YAML mapping, such as `name: value`")
    return document


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping; raises WbcError as `read_written` and `parse_yaml`."""
    return parse_yaml(read_written(path), path)
