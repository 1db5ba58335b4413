"""Reading what a user hands in: a manifest CSV, or a folder of images, per class or not. Nothing in it is trusted."""

import itertools
import os
import re
import stat
import sys
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote

import pandas as pd

from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import ImageRejected, WbcError, counted, nearest
from wbc_model.core.images import MAX_BYTES
from wbc_model.core.written import Sheet, read_sheet
from wbc_model.spread import part_size, threads

REQUIRED: Final = ("path",)
OPTIONAL: Final = ("label", "split", "group")
_WHOLE_NUMBER: Final = re.compile(r"^(\d+)\.0+$", re.ASCII)
# What the columns are called elsewhere, without what parts words. A group is asked for by its name: who is one is no spelling.
_ALSO_CALLED: Final = {
    "path": ["filename", "file", "filepath", "image", "img", "imagepath", "imgpath", "imagename", "imgname", "imagefile"],
    "label": ["labels", "class", "classname", "labelname", "category", "celltype"],
}
COLUMNS: Final = (*REQUIRED, *OPTIONAL, *(name for names in _ALSO_CALLED.values() for name in names))  # of one word each
SPLITS: Final = {
    "": "",
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SPLIT_NAME: Final = re.compile(r"([a-z]+?) ?(?:set|data|images|simple|[a-z]|\d+)?")  # TestA, test_set, TRAIN
UNLABELLED: Final = frozenset({"unlabelled", "unlabeled"})
IGNORED_FILES: Final = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
# What unpackers and file servers put beside the images.
IGNORED_FOLDERS: Final = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"})
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})
# The abbreviations of differentials and of the public data sets; params.yaml's data.label_names adds a site's own.
ABBREVIATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "Basophil": ("ba", "bas", "baso"),
    "Eosinophil": ("eo", "eos", "eosi"),
    "Lymphocyte": ("ly", "lym", "lymph", "lympho", "lyt"),
    "Monocyte": ("mo", "mon", "mono"),
    "Neutrophil": ("ne", "neu", "neut", "neutro", "seg", "sne", "bne", "ngs", "ngb", "band", "pmn"),
}
# The classes in the languages of Europe, when accents are left off and ph, y, z and c are written as f, i and s.
_IN_FULL: Final[Mapping[str, re.Pattern[str]]] = {
    label: re.compile(f"{stem}(?:e|es|en|er|is|s|o|os|i|us)?")
    for label, stem in zip(CLASSES, ("basofil", "eosinofil", "li[mn]fosit", "monosit", "neutrofil"), strict=True)
}
_FOLDED: Final = (("ph", "f"), ("y", "i"), ("z", "s"), ("c", "s"))
# Words beside a name in full that leave the class the same.
_BESIDE_A_NAME: Final = frozenset({"cell", "cells", "granulocyte", "granulocytes", "wbc", "typical", "segmented", "seg", "band"})
_NO_WORD: Final = re.compile(r"[\s\d.,:#()\[\]]+")  # numbers and counts beside a name: `1. Basophils`, `Basophil (53)`
# Folders that are sorted by class, or lie below one, and hold outlines of cells or other cells.
_NOT_THE_CLASS: Final = re.compile(r"\b(?:masks?|segmentations?|ground ?truths?|grth|immature|ig|smudges?|art[ei]facts?)\b")
ManifestRow = tuple[str, str, str, str]  # path, label, split, group
Load = Callable[[], bytes]  # gives the bytes of a file, or raises ImageRejected
Found = TypeVar("Found")
PART: Final = 256  # files of a part that one process reads, at least
_FILES_AT_A_TIME: Final = 4  # of a thread: to wake it for each takes longer than to read a small one
NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})
_PEEKED: Final = 50  # rows in which a column of labels under another name is looked for
_SLIP_OF_A_CLASS: Final = 0.79  # as SLIP, but diseases are named after classes: neutropenia is no slip of neutrophil
_LIKE_A_SPLIT: Final = ("set", "subset", "fold", "partition", "usage")  # as tables call a column of splits
_LIKE_A_GROUP: Final = ("patient", "slide", "smear", "specimen", "subject")  # as a column of slides or patients begins
_SLIP_OF_A_COLUMN: Final = 0.7  # `lables` is meant for label: a column that is missed leaves all cells without a label


def _plain(text: str) -> str:
    """A name without what does not tell names apart: case, spaces, hyphens and underscores, forms of Unicode."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().replace("_", " ").replace("-", " ").split())


_CLASS_BY_NAME: Final = {name.casefold(): name for name in CLASSES} | {
    short: name for name, shorts in ABBREVIATIONS.items() for short in shorts
}


def known_label(text: str, names: Mapping[str, str] = NO_NAMES) -> str:
    """The class that a manifest's label or folder name means: its name or an abbreviation of the field in any case, plural
    allowed, or one of the site's own `names`. A name in full may be in another language, and have numbers and words beside it
    that leave the class the same. Empty stays empty, and what is no class is given back as it is."""
    plain = _plain(text)
    table = _CLASS_BY_NAME | {_plain(name): label for name, label in names.items()}
    return table.get(plain) or table.get(plain.removesuffix("s")) or _in_full(plain) or text.strip()


def _in_full(plain: str) -> str:
    """The one class that the words of a plain name mean; empty where a word means something else, or several are meant."""
    words = {word for word in _NO_WORD.split(plain) if word} - _BESIDE_A_NAME
    meant = set()
    for word in words:
        folded = "".join(sign for sign in unicodedata.normalize("NFKD", word) if not unicodedata.combining(sign))
        for written, as_one in _FOLDED:
            folded = folded.replace(written, as_one)
        meant.add(next((label for label, name in _IN_FULL.items() if name.fullmatch(folded)), ""))
    return meant.pop() if len(meant) == 1 else ""


@cache
def split_of(text: str) -> str | None:
    """train, val or test, as a folder or a row says it (`TestA`, `training_set`); empty for an empty text, None for another."""
    found = _SPLIT_NAME.fullmatch(_plain(text))
    return SPLITS.get(_plain(text), SPLITS.get(found[1]) if found else None)


def unknown_label(label: str) -> str:
    """The line that explains a label which is none of the classes; it guesses at a slip of the pen only."""
    plain = _plain(label)
    likely = [name.casefold() for name in CLASSES if name[0].casefold() == plain[:1] and abs(len(name) - len(plain)) <= 2]
    near = nearest(plain, likely, _SLIP_OF_A_CLASS)
    hint = f"; the nearest is {_CLASS_BY_NAME[near]}" if near else ""
    return f"{label!r} is not one of {', '.join(CLASSES)}{hint} (`data.label_names` in params.yaml names what else means one)"


class Source(Protocol):
    """Where cells are read from. `name` is written beside each that is taken in, unless the user gives another."""

    @property
    def name(self) -> str:
        """What the data are called."""

    @property
    def shown(self) -> str:
        """The path or URL, for messages."""

    def manifest(self, names: Mapping[str, str]) -> pd.DataFrame:
        """The rows as `read_manifest` gives them; raises WbcError where the whole cannot be read."""

    def files(self, paths: Sequence[str]) -> Iterator[tuple[int, Load]]:
        """For each of the manifest's paths its position in `paths` and what gives its bytes.

        They come in the order in which they are read fastest. Several threads may ask for bytes at once."""

    def parts(self, paths: Sequence[str]) -> list[list[int]]:
        """Positions of these paths, in parts that different processes read well. One after the other they are in the order of
        `files`. Each process is given a copy of the source, pickled."""


@dataclass(frozen=True)
class Plain:
    """A manifest CSV or a folder on this machine."""

    data: Path

    @property
    def name(self) -> str:
        """The folder's name, or the manifest's without its ending."""
        return self.data.resolve().name if self.data.is_dir() else self.data.stem

    @property
    def shown(self) -> str:
        """The path as it was given."""
        return str(self.data)

    def manifest(self, names: Mapping[str, str]) -> pd.DataFrame:
        """The rows: see `read_manifest`."""
        return read_manifest(self.data, names)

    def files(self, paths: Sequence[str]) -> Iterator[tuple[int, Load]]:
        """In the manifest's order."""
        root, folders = root_of(self.data), dict[str, str]()
        return ((place, partial(read_cell, path, root, folders)) for place, path in enumerate(paths))

    def parts(self, paths: Sequence[str]) -> list[list[int]]:
        """In their order."""
        return in_parts(range(len(paths)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process may stand in another folder."""
        return type(self), (self.data.absolute(),)


def source_of(data: Path | Source) -> Source:
    """A manifest CSV or a folder by its path; any other source is opened before (`wbc_model.sources.opened`)."""
    return Plain(data) if isinstance(data, Path) else data


def each_file(origin: Source, paths: Sequence[str], work: Callable[[int, Load], Found]) -> Iterator[tuple[int, Found]]:
    """Each path's position and what `work` makes of its file, in threads, in the order in which files are read fastest. A few
    are in memory at a time: the files of some sources come with their bytes."""

    def work_through(files: list[tuple[int, Load]]) -> list[tuple[int, Found]]:
        return [(place, work(place, load)) for place, load in files]

    workers, files = threads(), iter(origin.files(paths))
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[list[tuple[int, Found]]]] = deque()
        while some := list(itertools.islice(files, _FILES_AT_A_TIME)):
            pending.append(pool.submit(work_through, some))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        for future in pending:
            yield from future.result()


def in_parts(places: Sequence[int]) -> list[list[int]]:
    """Positions in parts for one process each."""
    size = part_size(len(places), PART)
    return [list(places[start : start + size]) for start in range(0, len(places), size)]


def root_of(data: Path) -> Path:
    """The folder that the paths of a manifest are relative to and may not leave."""
    return data if data.is_dir() else data.parent


def read_manifest(data: Path, names: Mapping[str, str] = NO_NAMES) -> pd.DataFrame:
    """Read a manifest CSV or a folder into text columns path, label, split (train, val, test or empty) and group.

    Labels are those of CLASSES where they can be, with the site's own `names` for them, and empty where there is none: in a CSV
    without a column `label`, for images that lie in no class's folder or in one named `unlabelled`. Files are neither opened nor
    looked for. `attrs["read_as"]` says how a CSV was read.

    Raises WbcError naming the line when the manifest as a whole cannot be read.
    """
    read_as = ""
    if data.is_dir():
        rows = list(_folder_rows(data, names))
        if not rows:
            raise WbcError(f"{data} has no images: expected images, or a subfolder per class ({', '.join(CLASSES)})")
        read_as = table_not_read(rows, [entry.name for entry in _entries(data)], "name it in place of the folder")
        read_as = read_as or _all_refused(rows)
    elif data.is_file():
        sheet = read_sheet(data, COLUMNS)
        taken = as_manifest(sheet)
        rows = sheet_rows(sheet, names)
        read_as = f"read as separated by {sheet.said}" + "".join(f", {name!r} as {column}" for name, column in taken.items())
        read_as += "" if "label" in sheet.header else ", without a column label"
        read_as += _instead_of_split(sheet.header) + _instead_of_group(sheet.header)
    else:
        raise WbcError(f"{data} does not exist: name a manifest CSV, a folder of images or an archive")
    return manifest_frame(rows, read_as)


def table_not_read(rows: Sequence[ManifestRow], files: Iterable[str], way: str) -> str:
    """Where no row has a label, and one of the files may have been meant for the manifest: says so, with the way on."""
    table = next((name for name in sorted(files) if name.casefold().endswith((".csv", ".tsv"))), "")
    known = not table or any(label in CLASSES for _, label, *_ in rows)
    return "" if known else f"no folder tells a class, and {table} is not read: {way}"


def _all_refused(rows: Sequence[ManifestRow]) -> str:
    """Where each image of a folder lies in one that names no class: how they are taken in without labels."""
    some = any(label in (*CLASSES, "") for _, label, *_ in rows)
    return "" if some else "no folder names a class: move them below one that is called unlabelled, and they wait for labels"


def manifest_frame(rows: Sequence[ManifestRow], read_as: str = "") -> pd.DataFrame:
    """Rows as text columns path, label, split and group."""
    frame = pd.DataFrame(rows, columns=["path", "label", "split", "group"], dtype=object)  # a name need not be UTF-8
    frame.attrs["read_as"] = read_as
    return frame


def sheet_rows(sheet: Sheet, names: Mapping[str, str]) -> list[ManifestRow]:
    """A table's rows; raises WbcError naming the line of one that cannot be a row, or where there is none."""
    rows = list(_csv_rows(sheet, names))
    if not rows:
        raise WbcError(f"{sheet.path} has a header and no rows")
    return rows


def _csv_rows(sheet: Sheet, names: Mapping[str, str]) -> Iterator[ManifestRow]:
    places = _columns(sheet)
    label_of = cache(partial(folder_label, names=names))  # a million rows have a few labels
    for line, row in _with_label_column(sheet, names):
        if len(row) > len(sheet.header):
            fields = counted(len(row), "field")
            raise WbcError(f"{sheet.path} line {line}: {fields}, the header has {len(sheet.header)} (separated by {sheet.said})")
        row += [""] * (len(sheet.header) - len(row))
        cell = {name: row[place] for name, place in places.items()}
        split = split_of(cell.get("split", ""))
        if split is None:
            raise WbcError(f"{sheet.path} line {line}: split {cell['split']!r} is not one of train, val, test")
        yield cell["path"], label_of(cell.get("label", "")), split, group_name(cell.get("group", ""))


def group_name(text: str) -> str:
    """A slide or patient as all call it: Windows and a Mac write one letter with an accent in two ways. A column of numbers
    with a gap in it is exported as 7.0 where it was 7."""
    return sys.intern(_WHOLE_NUMBER.sub(r"\1", unicodedata.normalize("NFC", text.strip())))


def folder_label(text: str, names: Mapping[str, str]) -> str:
    """The class that a folder's name or a row's label means; empty for `unlabelled`."""
    return "" if _plain(text) in UNLABELLED else known_label(text, names)


def as_manifest(sheet: Sheet) -> dict[str, str]:
    """Call the columns of a table as a manifest's are called, where one of them can be meant only. Returns their own names with
    what they are taken for."""
    taken = {}
    for column, others in _ALSO_CALLED.items():
        meant = [name for name in sheet.header if "".join(_plain(name).split()) in others]
        if column not in sheet.header and len(meant) == 1:
            sheet.header[sheet.header.index(meant[0])] = column
            taken[meant[0]] = column
    return taken


def _columns(sheet: Sheet) -> dict[str, int]:
    header = sheet.header
    for name in REQUIRED:
        if name not in header:
            near = nearest(name, header, _SLIP_OF_A_COLUMN)
            hint = f"; is {near!r} meant?" if near else f"; it has {', '.join(map(repr, header)) or 'nothing'}"
            raise WbcError(f"{sheet.path}: the column {name!r} is missing{hint} (read as separated by {sheet.said})")
    twice = {name for name in (*REQUIRED, *OPTIONAL) if header.count(name) > 1}
    if twice:
        raise WbcError(f"{sheet.path}: the column {min(twice)!r} is there twice")
    return {name: header.index(name) for name in (*REQUIRED, *OPTIONAL) if name in header}


def _instead_of_split(header: list[str]) -> str:
    """Says that there is no column of splits, where one of another name seems to be it: who is tested is no guess."""
    meant = [name for name in header if _plain(name) in _LIKE_A_SPLIT]
    if "split" in header or not meant:
        return ""
    return f", without a column split: if {meant[0]!r} says train, val or test, name it split"


def _instead_of_group(header: list[str]) -> str:
    """Says that there is no column of groups, where one of another name seems to be it."""
    if "group" in header:
        return ""
    meant = [name for name in header if _plain(name).startswith(_LIKE_A_GROUP) or nearest("group", [name], _SLIP_OF_A_COLUMN)]
    return f", without a column group: if {meant[0]!r} is the slide or patient, name it group" if meant else ""


def _with_label_column(sheet: Sheet, names: Mapping[str, str]) -> Iterator[tuple[int, list[str]]]:
    """The rows; raises WbcError where labels seem to stand in a column of another name, which would be taken for none."""
    if "label" in sheet.header:
        return sheet.rows
    of_classes = [repr(name) for name in sheet.header if known_label(name, names) in CLASSES]
    if len(of_classes) > 1:
        raise WbcError(
            f"{sheet.path}: the column 'label' is missing; {' and '.join(of_classes[:2])} are columns of one class each: write "
            "each row's class into one column, and name it label"
        )
    head = list(itertools.islice(sheet.rows, _PEEKED))
    for place, name in enumerate(sheet.header):
        values = [row[place] for _, row in head if place < len(row) and row[place].strip()]
        classes = sum(known_label(value, names) in CLASSES for value in values)
        if name not in (*REQUIRED, *OPTIONAL) and classes and 2 * classes >= len(values):
            raise WbcError(f"{sheet.path}: the column 'label' is missing; {name!r} has labels in it: name it label")
    near = nearest("label", sheet.header, _SLIP_OF_A_COLUMN)
    if near:
        raise WbcError(f"{sheet.path}: the column 'label' is missing; is {near!r} meant?")
    return itertools.chain(head, sheet.rows)


class Told(NamedTuple):
    """What the folders on the way to a file tell: label, split, and whether they say that it is a cell whatever its name."""

    label: str
    split: str
    meant: bool


def told_by_folders(folders: Sequence[str], names: Mapping[str, str]) -> tuple[str, str]:
    """Label and split of an image by the names of the folders that it lies in, the outermost first.

    One of them is named for the class or `unlabelled`, one may be for the split; others may lie around or below. Where none or
    several name a class the label is what they are all called, which is none. So it is where one says that these are outlines
    or other cells.
    """
    split, others = "", []
    for folder in folders:
        found = split_of(folder)
        others += [] if found else [folder]
        split = split or found or ""
    meant = {label for folder in others if (label := folder_label(folder, names)) in (*CLASSES, "")}
    if len(meant) == 1 and not any(_NOT_THE_CLASS.search(_plain(folder)) for folder in others):
        return meant.pop(), split
    return "/".join(others), split


def row_of_file(path: str, told: Callable[[str], Told]) -> ManifestRow | None:
    """The row of a file that no manifest names, by what is `told` of its folder (`by_folders`); None where it is none of the
    images: by its folders' names it is not meant for one, and by its own neither."""
    folder, _, file = path.rpartition("/")
    label, split, meant = told(folder)
    return (path, label, split, "") if meant or PurePosixPath(file).suffix.casefold() in IMAGE_SUFFIXES else None


def by_folders(names: Mapping[str, str]) -> Callable[[str], Told]:
    """What the path of a folder tells of the images in it. Each folder is looked at once: a million images may lie in ten."""

    @cache
    def told(folder: str) -> Told:
        folders = folder.split("/") if folder else []
        label, split = told_by_folders(folders, names)
        return Told(label, split, label in CLASSES or any(_plain(one) in UNLABELLED for one in folders))

    return told


def _folder_rows(root: Path, names: Mapping[str, str]) -> Iterator[ManifestRow]:
    """The images of a folder, by the folders that they lie in."""
    told = by_folders(names)
    for path, is_link in _files(root, root, ()):
        row = row_of_file(path, told)
        if row is None and is_link:
            row = (path, *told_by_folders(path.split("/"), names), "")
        if row is not None:
            yield row


def _files(folder: Path, root: Path, trail: tuple[Path, ...]) -> Iterator[tuple[str, bool]]:
    """The files under `folder`, and whether each is a link that is not walked into or leads nowhere. A linked folder is walked
    into where it stays inside `root` and is none that it came through. Where others lead is told when they are read."""
    entries = _entries(folder)
    yield from ((_shown(entry, root), entry.is_symlink() and not entry.exists()) for entry in entries if not entry.is_dir())
    for entry in entries:
        if entry.is_dir() and _stays_inside(entry, root) and entry.resolve() not in (*trail, folder.resolve()):
            yield from _files(entry, root, (*trail, folder.resolve()))
        elif entry.is_dir():
            yield _shown(entry, root), True


def _stays_inside(folder: Path, root: Path) -> bool:
    return not folder.is_symlink() or folder.resolve().is_relative_to(root.resolve())


def _entries(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if _visible(entry)]


def _visible(path: Path) -> bool:
    return visible_name(path.name)


def visible_name(name: str) -> bool:
    """Whether a file or folder of this name is looked at: not what systems and unpackers leave behind."""
    name = name.casefold()
    return not name.startswith(".") and name not in IGNORED_FILES and name not in IGNORED_FOLDERS


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def printable(path: str) -> str:
    """A path as text that any file can hold: bytes that are not UTF-8 become escapes."""
    return path if path.isascii() else path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_cell(path: str, root: Path, folders: dict[str, str] | None = None) -> bytes:
    """The bytes of a manifest's `path` under the manifest's folder `root`. `folders` keeps, for those who read many, where the
    links on the way to a folder lead.

    Raises ImageRejected: `missing`, `too_large`, or `outside_folder` when the path leaves the folder by `..` or a link. Only a
    path that the manifest itself gives as absolute may name a file elsewhere.
    """
    file = Path(_locate(path, root, {} if folders is None else folders))
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageRejected("missing", "it is not a file")
        if status.st_size > MAX_BYTES:
            raise ImageRejected("too_large", f"{status.st_size:,} bytes, at most {MAX_BYTES:,} are accepted")
        return file.read_bytes()
    except FileNotFoundError:
        raise ImageRejected("missing", "there is no such file; a path begins in the folder of the manifest") from None
    except OSError as error:
        raise ImageRejected("missing", f"it cannot be read: {error.strerror}") from None


def _locate(path: str, root: Path, folders: dict[str, str]) -> str:
    """The file that a manifest's path means, as it is written. Else it is tried without spaces around it, as a file URL, with the
    separators of Windows, and in the other normal form of Unicode."""
    if not path.strip():
        raise ImageRejected("missing", "the path is empty")
    if "\0" in path:
        raise ImageRejected("missing", "the path contains a zero byte")
    targets = []
    for written in _readings(path):
        targets.append(_inside(written, root, folders))
        if os.path.lexists(targets[-1]):
            return targets[-1]
    return targets[0]


def _readings(path: str) -> Iterator[str]:
    yield path
    bare = path.strip()
    if bare.casefold().startswith("file:"):
        bare = unquote(bare[len("file:") :])
        if bare.startswith("//"):
            host, slash, rest = bare[2:].partition("/")
            bare = slash + rest if host in ("", "localhost") else host + slash + rest
    if bare and bare != path:
        yield bare
    if "\\" in bare:
        yield bare.replace("\\", "/")


def _inside(path: str, root: Path, folders: dict[str, str]) -> str:
    """Where a path leads, links followed; raises ImageRejected where it leaves the manifest's folder, or cannot be followed.

    Paths are texts here: `Path` takes longer, and this is done for each of millions of cells.
    """
    folder = os.path.normpath(root.absolute())  # as written: links are followed below
    elsewhere = path.startswith(os.sep)
    exact = path if elsewhere else f"{folder}{os.sep}{path}"
    plain = os.path.normpath(exact)
    inside = _lies_in(plain, folder)
    if not inside and (not elsewhere or ".." in PurePosixPath(path).parts):
        raise ImageRejected("outside_folder", "the path leaves the manifest's folder")
    try:
        target = _followed(exact, folders) if os.path.lexists(exact) else os.path.realpath(_spelt(Path(plain)))
    except OSError as error:
        raise ImageRejected("missing", f"it cannot be read: {error}") from None
    # No link is left in the target: where it lies under the folder as written, that has none either, and need not be resolved.
    if inside and not _lies_in(target, folder) and not _lies_in(target, _resolved(folder, folders)):
        raise ImageRejected("outside_folder", "a link on the path leads out of the manifest's folder")
    return target


def _followed(path: str, folders: dict[str, str]) -> str:
    """`os.path.realpath` of what is there; a folder is resolved once for all its files, which takes longer than to read one."""
    folder, name = os.path.split(path)
    if name in ("", ".", "..") or stat.S_ISLNK(os.lstat(path).st_mode):
        return os.path.realpath(path)
    return f"{_resolved(folder, folders).rstrip(os.sep)}{os.sep}{name}"


def _resolved(folder: str, folders: dict[str, str]) -> str:
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return folders[folder]


def _lies_in(path: str, folder: str) -> bool:
    """Whether a path is this folder or lies under it; both normal."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _spelt(path: Path) -> Path:
    """The path as the disk spells it: macOS writes an accent as a character of its own, others do not."""
    place = Path(path.anchor)
    for part in path.parts[1:]:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        place /= next((form for form in forms if os.path.lexists(place / form)), part)
    return place
