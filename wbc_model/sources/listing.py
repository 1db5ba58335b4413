"""The rows of an archive: from a manifest inside, from small files beside the images, or from folders per class."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from wbc_model.cells.manifest import (
    COLUMNS,
    IMAGE_SUFFIXES,
    OPTIONAL,
    REQUIRED,
    ManifestRow,
    as_manifest,
    by_folders,
    folder_label,
    group_name,
    row_of_file,
    sheet_rows,
    split_of,
    visible_name,
)
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.written import Sheet, decode_written, parse_sheet
from wbc_model.sources.members import IN_ARCHIVE, LEADS_OUT, Member

MANIFESTS: Final = ("manifest.csv", "manifest.tsv", "metadata.csv", "metadata.jsonl")
BESIDE: Final = (".cls", ".json")  # what a sample of a WebDataset shard tells its label by
FILE_NAME: Final = "file_name"  # as Hugging Face calls the path


class Listed(Protocol):
    """Files by name, of which some are texts."""

    @property
    def shown(self) -> str:
        """What messages call them."""

    @property
    def members(self) -> Mapping[str, Member]:
        """The files."""

    def text(self, name: str) -> bytes:
        """The bytes of a manifest, or of a small file beside an image; raises WbcError."""


def rows_of(archive: Listed, names: Mapping[str, str]) -> list[ManifestRow]:
    """The rows of an archive's images: as a manifest.csv, or a metadata.csv or .jsonl as Hugging Face has it, in it says. Else
    as the .cls or .json beside each image says, as in a WebDataset shard. Else by folders per class, as of a folder.

    Raises WbcError where what tells the labels cannot be read.
    """
    if rows := rows_by_manifest(archive, names):
        return rows
    samples = _samples(archive.members)
    if samples:
        return list(_sample_rows(archive, samples, names))
    rows = folder_rows(archive.members, names)
    listed = {path for path, *_ in rows}
    refused = [name for name, member in archive.members.items() if member.problem in (LEADS_OUT, IN_ARCHIVE)]
    return [*rows, *((name, "", "", "") for name in sorted(refused) if name not in listed)]


# --- manifests inside --------------------------------------------------------------------------------------------------


def rows_by_manifest(archive: Listed, names: Mapping[str, str]) -> list[ManifestRow]:
    """The rows of the manifests inside; none where there is no manifest. Raises WbcError."""
    manifests = _manifests(archive)
    folders = {path: label for path, label, *_ in folder_rows(archive.members, names)} if manifests else {}
    if not any(label in CLASSES for label in folders.values()):
        folders = {}  # they are `images` or patients: no label is meant
    return [row for name, sheet in manifests.items() for row in _manifest_rows(name, sheet, folders, names)]


def _manifests(archive: Listed) -> dict[str, Sheet]:
    """The manifests of an archive: at its top, in the only folder there, or in the splits' folders below. A metadata.csv counts
    only where it names files."""
    found = sorted(name for name in archive.members if PurePosixPath(name).name.casefold() in MANIFESTS)
    sheets = {name: _sheet(archive, name) for name in found if _is_high(name, archive.members)}
    return {name: sheet for name, sheet in sheets.items() if "path" in sheet.header or _is_manifest(name)}


def _is_manifest(name: str) -> bool:
    return PurePosixPath(name).stem.casefold() == "manifest"


def _sheet(archive: Listed, name: str) -> Sheet:
    """A table of an archive, its columns called as a manifest's are. A manifest is meant for us, and its columns may have any
    name that a manifest's may have; other metadata are one where they tell `file_name`."""
    place = Path(f"{archive.shown}/{name}")
    text = decode_written(archive.text(name), place)
    sheet = _json_lines(text, place) if name.casefold().endswith(".jsonl") else parse_sheet(text, place, (*COLUMNS, FILE_NAME))
    if _is_manifest(name):
        as_manifest(sheet)
    if "path" in sheet.header:
        return sheet
    return Sheet(place, sheet.separator, ["path" if one == FILE_NAME else one for one in sheet.header], sheet.rows)


def _is_high(name: str, members: Mapping[str, Member]) -> bool:
    folders = list(PurePosixPath(name).parts[:-1])
    if folders and split_of(folders[-1]):
        folders.pop()
    top = {one.split("/")[0] for one in members if all(map(visible_name, one.split("/")))}
    return not folders or (len(folders) == 1 and top == set(folders))


def _manifest_rows(name: str, sheet: Sheet, folders: Mapping[str, str], names: Mapping[str, str]) -> Iterator[ManifestRow]:
    """The rows of one manifest, with paths from the archive's top. Where it does not tell them, the folder it is in tells the
    split; that of an image, where the manifest has no labels, the label."""
    folder = PurePosixPath(name).parent
    split_here, unlabelled = split_of(folder.name) or "", "label" not in sheet.header
    for path, label, split, group in sheet_rows(sheet, names):
        whole = path if str(folder) == "." else f"{folder}/{path}"
        yield whole, folders.get(whole, "") if unlabelled else label, split or split_here, group


def _json_lines(text: str, place: Path) -> Sheet:
    """A metadata.jsonl as a table of what rows have."""
    rows = [(line, _json_object(one, f"{place} line {line}")) for line, one in enumerate(text.splitlines(), 1) if one.strip()]
    header = [name for name in (*REQUIRED, *OPTIONAL, FILE_NAME) if any(name in row for _, row in rows)]
    return Sheet(place, ",", header, ((line, [text_of(row.get(name)) for name in header]) for line, row in rows))


def _json_object(text: str | bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise WbcError(f"{place}: is no JSON") from None
    if not isinstance(found, dict):
        raise WbcError(f'{place}: is no JSON object, such as {{"label": "Monocyte"}}')
    return {str(name).casefold(): value for name, value in found.items()}


def text_of(value: object) -> str:
    """A value of a table or of JSON as text; what is missing is empty, also where it is no number (NaN)."""
    return "" if value is None or value != value else str(value)


# --- small files beside the images ---------------------------------------------------------------------------------------


def _samples(members: Mapping[str, Member]) -> dict[str, list[str]]:
    """For each image the small files of its key that may tell a label; empty where no image has one. A key is all before the
    first dot of the name; `1.seg.png` is no cell of the sample `1`."""
    beside: dict[str, list[str]] = {}
    for name in members:
        if PurePosixPath(name).suffix.casefold() in BESIDE:
            beside.setdefault(_key(name)[0], []).append(name)
    images = (name for name in members if _key(name)[1].casefold() in IMAGE_SUFFIXES and all(map(visible_name, name.split("/"))))
    samples = {name: beside.get(_key(name)[0], []) for name in images}
    return samples if any(samples.values()) else {}


def _key(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    key, dot, ending = file.partition(".")
    return f"{folder}{slash}{key}", f"{dot}{ending}"


def _sample_rows(archive: Listed, samples: Mapping[str, list[str]], names: Mapping[str, str]) -> Iterator[ManifestRow]:
    folders = {path: (label, split) for path, label, split, _ in folder_rows(samples, names)}
    for image in sorted(samples):
        told: dict[str, Any] = {}
        for name in sorted(samples[image], reverse=True):  # .json, then .cls, which has the last word
            place = f"{archive.shown}/{name}"
            if name.casefold().endswith(".cls"):
                told["label"] = decode_written(archive.text(name), Path(place)).strip()
            else:
                told |= _json_object(archive.text(name), place)
        by_folder, split_here = folders.get(image, ("", ""))
        said = text_of(told.get("label", told.get("cls")))
        split = split_of(text_of(told.get("split")))
        if split is None:
            raise WbcError(f"{archive.shown}/{image}: its split {told['split']!r} is not one of train, val, test")
        yield image, folder_label(said, names) if said else by_folder, split or split_here, group_name(text_of(told.get("group")))


# --- folders per class ---------------------------------------------------------------------------------------------------


def folder_rows(files: Iterable[str], names: Mapping[str, str]) -> list[ManifestRow]:
    """The rows of files by their names, by the rules for a folder (`read_manifest`)."""
    told = by_folders(names)
    seen = (name for name in sorted(files) if all(map(visible_name, name.split("/"))))
    return [row for name in seen if (row := row_of_file(name, told)) is not None]
