"""Reading what a user hands in: a manifest CSV, or a folder with a subfolder per class. Nothing in it is trusted."""

import csv
import difflib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import pandas as pd

from wbc_model.classes import CLASSES
from wbc_model.errors import ImageRejected, WbcError
from wbc_model.images import MAX_BYTES

REQUIRED: Final = ("path", "label")
OPTIONAL: Final = ("split", "group")
SPLITS: Final = {
    "": "",
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
IGNORED_FILES: Final = frozenset({"thumbs.db", "desktop.ini"})
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})
_CLASS_BY_NAME: Final = {name.casefold(): name for name in CLASSES} | {f"{name}s".casefold(): name for name in CLASSES}


def known_label(text: str) -> str:
    """The class that a manifest's label or folder name means (any case, plural allowed); empty stays empty, and what is
    no class is given back as it is."""
    return _CLASS_BY_NAME.get(text.strip().casefold(), text.strip())


def unknown_label(label: str) -> str:
    """The line that explains a label which is none of the classes."""
    near = difflib.get_close_matches(label.casefold(), [name.casefold() for name in CLASSES], n=1, cutoff=0.0)
    return f"{label!r} is not one of {', '.join(CLASSES)}; the nearest is {_CLASS_BY_NAME[near[0]]}"


def root_of(data: Path) -> Path:
    """The folder that the paths of a manifest are relative to and may not leave."""
    return data if data.is_dir() else data.parent


def read_manifest(data: Path) -> pd.DataFrame:
    """Read a manifest CSV or a folder per class into text columns path, label, split (train, val, test or empty) and group,
    and `file` (Path). Labels are those of CLASSES where they can be; files are neither opened nor looked for.

    Raises WbcError naming the line when the manifest as a whole cannot be read.
    """
    if data.is_dir():
        rows = list(_folder_rows(data))
        if not rows:
            raise WbcError(f"{data} has no images: expected a subfolder per class ({', '.join(CLASSES)}), or name a manifest CSV")
    elif data.is_file():
        rows = list(_csv_rows(data))
        if not rows:
            raise WbcError(f"{data} has a header and no rows")
    else:
        raise WbcError(f"{data} does not exist: name a manifest CSV, or a folder with a subfolder per class")
    frame = pd.DataFrame(rows, columns=["path", "label", "split", "group"], dtype=object)  # a name need not be UTF-8
    root = root_of(data)
    frame["file"] = pd.Series([root / path for path in frame["path"]], dtype=object)
    return frame


def _csv_rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip().casefold() for name in next(reader, [])]
            places = _columns(path, header)
            for row in reader:
                if not row:
                    continue
                if len(row) > len(header):
                    raise WbcError(f"{path} line {reader.line_num}: {len(row)} fields, the header has {len(header)}")
                row += [""] * (len(header) - len(row))
                cell = {name: row[place] for name, place in places.items()}
                split = SPLITS.get(cell.get("split", "").strip().casefold())
                if split is None:
                    raise WbcError(f"{path} line {reader.line_num}: split {cell['split']!r} is not one of train, val, test")
                yield cell["path"], known_label(cell["label"]), split, cell.get("group", "").strip()
    except UnicodeDecodeError:
        raise WbcError(f"{path} is not UTF-8 text: save the manifest as CSV in UTF-8") from None
    except csv.Error as error:
        raise WbcError(f"{path}: not a readable CSV ({error})") from None


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    for name in REQUIRED:
        if name not in header:
            near = difflib.get_close_matches(name, header, n=1, cutoff=0.5)
            hint = f"; is {near[0]!r} meant?" if near else f"; it has {', '.join(map(repr, header)) or 'nothing'}"
            raise WbcError(f"{path}: the column {name!r} is missing{hint}")
    twice = {name for name in (*REQUIRED, *OPTIONAL) if header.count(name) > 1}
    if twice:
        raise WbcError(f"{path}: the column {min(twice)!r} is there twice")
    return {name: header.index(name) for name in (*REQUIRED, *OPTIONAL) if name in header}


def _folder_rows(root: Path) -> Iterator[tuple[str, str, str, str]]:
    """Folders per class, either right under `root` or under folders named for the split."""
    folders = [entry for entry in sorted(root.iterdir()) if _visible(entry)]
    directories = [entry for entry in folders if entry.is_dir()]
    by_split = bool(directories) and all(entry.name.casefold() in SPLITS for entry in directories)
    for entry in folders:
        if not entry.is_dir():
            if entry.suffix.casefold() in IMAGE_SUFFIXES or (entry.is_symlink() and not entry.exists()):
                yield _shown(entry, root), f"(no folder: {entry.name})", "", ""
        elif by_split:
            for folder in sorted(entry.iterdir()):
                if _visible(folder):
                    split = SPLITS[entry.name.casefold()]
                    yield from ((path, label, split, "") for path, label in _class_rows(folder, root))
        else:
            yield from ((path, label, "", "") for path, label in _class_rows(entry, root))


def _class_rows(folder: Path, root: Path) -> Iterator[tuple[str, str]]:
    label = known_label(folder.name)
    if folder.is_symlink() or not folder.is_dir():  # a linked folder is not walked into: where it leads is checked first
        yield _shown(folder, root), label
        return
    for directory, subdirectories, names in os.walk(folder):
        subdirectories.sort()
        linked = [name for name in subdirectories if (Path(directory) / name).is_symlink()]
        for name in sorted([*names, *linked]):
            if _visible(Path(name)):
                yield _shown(Path(directory) / name, root), label


def _visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.casefold() not in IGNORED_FILES


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def printable(path: str) -> str:
    """A path as text that any file can hold: bytes that are not UTF-8 become escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_cell(path: str, root: Path) -> bytes:
    """The bytes of a manifest's `path` under the manifest's folder `root`.

    Raises ImageRejected: `outside_folder` when the path leaves the folder by `..` or a link (only a path that the manifest
    itself gives as absolute may name a file elsewhere), `missing`, or `too_large`.
    """
    file = _locate(path, root)
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageRejected("missing", "it is not a file")
        if status.st_size > MAX_BYTES:
            raise ImageRejected("too_large", f"{status.st_size:,} bytes, at most {MAX_BYTES:,} are accepted")
        return file.read_bytes()
    except FileNotFoundError:
        raise ImageRejected("missing", "there is no such file") from None
    except OSError as error:
        raise ImageRejected("missing", f"it cannot be read: {error.strerror}") from None


def _locate(path: str, root: Path) -> Path:
    if not path.strip():
        raise ImageRejected("missing", "the path is empty")
    if "\0" in path:
        raise ImageRejected("missing", "the path contains a zero byte")
    written = PurePosixPath(path)
    folder = Path(os.path.normpath(Path.cwd() / root))  # as written: links are followed below
    inside = Path(os.path.normpath(folder / written)).is_relative_to(folder)
    if not inside and (not written.is_absolute() or ".." in written.parts):
        raise ImageRejected("outside_folder", "the path leaves the manifest's folder")
    try:
        target = (folder / written).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long
        raise ImageRejected("missing", f"it cannot be read: {error}") from None
    if inside and not target.is_relative_to(folder.resolve()):
        raise ImageRejected("outside_folder", "a link on the path leads out of the manifest's folder")
    return target
