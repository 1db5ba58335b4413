"""Folders, paths, separators and names as people have them."""

import itertools
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.cli.data import MOST_ROWS
from flows.workspace import init_workspace
from tests.data.conftest import blobs, encoded
from tests.pools import ingest
from wbc_model.cells import manifest
from wbc_model.cells.manifest import known_label, read_cell, read_manifest, unknown_label
from wbc_model.cells.pools import Pools
from wbc_model.cells.rejections import MOST_LINES, Rejection, not_used_lines
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.params import Params

Cell = Callable[..., str]


def rows(data: Path) -> dict[str, tuple[str, str]]:
    return {row.path: (row.label, row.split) for row in read_manifest(data).itertuples()}


def test_unlabelled_images_wait_for_a_label(tmp_path: Path, cell: Cell, params: Params) -> None:
    source = tmp_path / "source"
    names = [cell(f"{n}.png", n) for n in range(3)]
    assert rows(source) == dict.fromkeys(names, ("", "")), "a flat folder"
    cell("Unlabelled/slide 1/a.png", 10), cell("unlabeled/b.png", 11), cell("Monocyte/c.png", 12)
    assert ingest(source, tmp_path / "w/data", params).pools["unlabelled"] == 5
    manifest = source / "cells.csv"
    manifest.write_text("path;slide\n0.png;one\n1.png;two\n")
    report = ingest(manifest, tmp_path / "v/data", params)
    assert (report.pools["unlabelled"], report.refused) == (2, False)
    group = "without a column group: if 'slide' is the slide or patient, name it group"
    assert report.read_as == f"read as separated by a semicolon, without a column label, {group}"
    manifest.write_text("path,label\n0.png,unlabelled\n")
    assert rows(manifest) == {"0.png": ("", "")}


def test_folders_as_unpackers_and_file_servers_leave_them(tmp_path: Path, cell: Cell) -> None:
    for name in ("train/Basophil/a.png", "TEST/neutrophils/b.png", "unlabelled/c.png", "validation/EOS/d.png"):
        cell(f"PBC/{name}", 1)
    for name in (
        "__MACOSX/PBC/train/._a.png",
        "PBC/@eaDir/a.png",
        "PBC/train/@eaDir/Basophil/x.png",
        "PBC/train/Basophil/Thumbs.db",
    ):
        cell(name, b"x")
    assert rows(tmp_path / "source") == {
        "PBC/train/Basophil/a.png": ("Basophil", "train"),
        "PBC/TEST/neutrophils/b.png": ("Neutrophil", "test"),
        "PBC/unlabelled/c.png": ("", ""),
        "PBC/validation/EOS/d.png": ("Eosinophil", "val"),
    }
    cell("other/Blasts/a.png", 2)
    assert rows(tmp_path / "source/other") == {"Blasts/a.png": ("Blasts", "")}, "no class, and no guess that it is none"


def test_links_are_followed_where_they_stay_inside(tmp_path: Path, cell: Cell, params: Params) -> None:
    source = tmp_path / "source"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.png").write_bytes(encoded(blobs(5)))
    cell(".all/b/1.png", 1)
    (source / "Basophil").symlink_to(source / ".all/b")
    (source / "Monocyte").symlink_to(tmp_path / "elsewhere")
    (source / "Neutrophil").mkdir()
    (source / "Neutrophil/round").symlink_to(source / "Neutrophil")
    (source / "Neutrophil/out.png").symlink_to(tmp_path / "elsewhere/x.png")
    report = ingest(source, tmp_path / "w/data", params)
    assert set(Pools.read(tmp_path / "w/data/pools").table()["path"]) == {"Basophil/1.png"}
    assert {entry.path: entry.reason for entry in report.rejections} == {
        "Monocyte": "outside_folder",
        "Neutrophil/out.png": "outside_folder",
        "Neutrophil/round": "missing",
    }


@pytest.mark.parametrize(
    "written",
    [
        "img\\a b.png",
        " img/a b.png ",
        "file:img/a%20b.png",
        "FILE://{root}/img/a%20b.png",
        "file://localhost{root}/img/a%20b.png",
        "{root}/img/a b.png",
    ],
)
def test_a_path_is_found_however_it_is_written(tmp_path: Path, cell: Cell, written: str) -> None:
    cell("img/a b.png", b"cell")
    assert read_cell(written.format(root=tmp_path / "source"), tmp_path / "source") == b"cell"


def test_a_path_that_leads_nowhere_says_where_it_begins(tmp_path: Path, cell: Cell) -> None:
    """A list of bare names beside a folder of images is common."""
    cell("img/a.png", b"cell")
    with pytest.raises(ImageRejected, match=r"no such file; a path begins in the folder of the manifest"):
        read_cell("a.png", tmp_path / "source")


def test_a_path_is_found_in_either_normal_form(tmp_path: Path, cell: Cell) -> None:
    one, other = (unicodedata.normalize(form, "größe/é.png") for form in ("NFC", "NFD"))
    cell(one, b"cell")
    assert read_cell(other, tmp_path / "source") == b"cell"
    assert read_cell(one, tmp_path / "source") == b"cell"
    mixed = f"{one.split('/')[0]}/{other.split('/')[1]}"
    assert read_cell(mixed, tmp_path / "source") == b"cell"


@pytest.mark.parametrize("written", ["..\\x.png", " ../x.png", "file:../x.png", "img\\..\\..\\x.png", "file:///{root}/../x.png"])
def test_no_spelling_leads_out(tmp_path: Path, cell: Cell, written: str) -> None:
    cell("img/a.png", b"cell")
    (tmp_path / "x.png").write_bytes(b"secret")
    with pytest.raises(ImageRejected, match="outside_folder"):
        read_cell(written.format(root=tmp_path / "source"), tmp_path / "source")


def test_a_folder_that_is_remembered_changes_nothing(tmp_path: Path, cell: Cell) -> None:
    """Each path alone, and each with what was found of the folders of all others before it."""
    source, outside = tmp_path / "source", tmp_path / "outside"
    for name in ("a/x.png", "a/b/x.png"):
        cell(name, name.encode())
    outside.mkdir()
    (outside / "x.png").write_bytes(b"secret")
    for link, target in {
        "in": "a",
        "out": outside,
        "up": "..",
        "round": "round",
        "a/x": "b/x.png",
        "a/y": outside / "x.png",
    }.items():
        (source / link).symlink_to(target)
    parts = ("a", "b", "in", "out", "up", "round", "..", ".", "source", "outside", "x", "y", "x.png")
    paths = ["/".join(some) for length in (1, 2, 3) for some in itertools.product(parts, repeat=length)]
    folders: dict[str, str] = {}

    def found(path: str, *known: dict[str, str]) -> bytes | str:
        try:
            return read_cell(path, source, *known)
        except ImageRejected as error:
            return error.reason

    alone = {path: found(path) for path in paths}
    assert {path: found(path, folders) for path in paths} == alone
    assert set(alone.values()) == {b"a/x.png", b"a/b/x.png", "missing", "outside_folder"}
    assert alone["in/b/x.png"] == alone["a/x"] == b"a/b/x.png"
    assert alone["in/y"] == "outside_folder"


def test_a_file_of_just_that_name_comes_first(tmp_path: Path, cell: Cell) -> None:
    for name in ("img\\a.png", " a.png"):
        cell(name, name.encode())
        cell(name.replace("\\", "/").strip(), b"other")
        assert read_cell(name, tmp_path / "source") == name.encode()


@pytest.mark.parametrize(
    ("separator", "name"), [(",", "M.CSV"), (";", "m.csv"), ("\t", "m.tsv"), ("\t", "m.txt"), ("|", "m.csv")]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_manifests_as_spreadsheets_save_them(tmp_path: Path, separator: str, name: str, encoding: str) -> None:
    lines = [["Path ", "LABEL", "Split", ""], ["é,x;.png", "Seg", "Training", ""], ["", "", "", ""], ["b.png", "BNE", "", ""]]
    quoted = [[f'"{text}"' for text in line] for line in lines]
    text = "\r\n".join(separator.join(line) for line in quoted) + "\r\n"
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert rows(tmp_path / name) == {"é,x;.png": ("Neutrophil", "train"), "b.png": ("Neutrophil", "")}


def test_what_excel_says_of_its_separator_is_believed(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("sep=;\r\npath;label\r\na,b.png;Monocyte\r\nb.png;Monocyte;x\r\n")
    with pytest.raises(WbcError, match=r"m\.csv line 4: 3 fields, the header has 2 \(separated by a semicolon\)"):
        rows(tmp_path / "m.csv")


def test_names_of_the_field_and_of_the_site() -> None:
    known = {
        "Basophil": ["BASO", "ba", "Basophils"],
        "Eosinophil": ["EOS", "eo", "EOSINOPHILS"],
        "Lymphocyte": ["LYM", "ly", "lymphs"],
        "Monocyte": ["MO", "MONO", "Monocytes "],
        "Neutrophil": ["NEU", "SEG", "segs", "BNE", "Band_Neutrophils", "segmented-neutrophil"],
    }
    assert {name: {known_label(text) for text in texts} for name, texts in known.items()} == {name: {name} for name in CLASSES}
    for other in (
        "IG",
        "ERB",
        "PLT",
        "Promonocyte",
        "Prolymphocyte",
        "atypical lymphocyte",
        "smudge cell",
        "unsure",
        "neutropenia",
    ):
        assert known_label(other) == other
        assert "nearest" not in unknown_label(other)
    assert "the nearest is Basophil" in unknown_label("Basophill")
    assert known_label("stab", {"STAB": "Neutrophil"}) == "Neutrophil"
    assert known_label("LY", {"LY": "Monocyte"}) == "Monocyte", "the site's own names come first"


@pytest.mark.parametrize(
    "names",
    [
        "Basófilos Eosinófilos Linfocitos Monocitos Neutrófilos",
        "Basophile Éosinophiles Lymphozyten Monozyten Neutrophile",
        "basofili eosinofili linfociti monociti neutrofili",
        "1_basophil 02.Eosinophils WBC_Lymphocyte Monocyte(48) 5-neutrophil",
    ],
)
def test_names_in_other_languages_and_with_numbers(names: str) -> None:
    assert tuple(known_label(name) for name in names.split()) == CLASSES


def test_words_beside_a_name() -> None:
    for name in (
        "neutrophilic granulocyte",
        "Neutrophil granulocytes",
        "neutrophil_cells",
        "neutrophil_band",
        "segmented neutrophils",
    ):
        assert known_label(name) == "Neutrophil"
    others = [
        "immature neutrophil",
        "lymphocyte_reactive",
        "Lymphocyte; Monocyte",
        "basophilic normoblast",
        "Neutrophil?",
        "cells",
    ]
    others += ["eosinophilia", "lymphocytosis", "not neutrophil", "MO_12", "3"]
    assert [known_label(name) for name in others] == others


PUBLIC = {  # as data sets are handed out: the folders of a file, and what they tell
    "Raabin-WBC/TestA/Basophil": ("Basophil", "test"),
    "Raabin-WBC/Train/Eosinophil": ("Eosinophil", "train"),
    "dataset2-master/dataset2-master/images/TEST_SIMPLE/MONOCYTE": ("Monocyte", "test"),
    "PBC_dataset_normal_DIB/neutrophil/BNE": ("Neutrophil", ""),
    "PBC_dataset_normal_DIB/ig": ("PBC_dataset_normal_DIB/ig", ""),
    "PBC_dataset_normal_DIB/neutrophil/IG": ("PBC_dataset_normal_DIB/neutrophil/IG", ""),
    "AML-Cytomorphology/NGS": ("Neutrophil", ""),
    "MLL23/lymphocyte_reactive": ("MLL23/lymphocyte_reactive", ""),
    "Ground Truth Segmentation/Baso/areaforexpert1": ("Ground Truth Segmentation/Baso/areaforexpert1", ""),
    "patient 7/Lymphocytes/day 2": ("Lymphocyte", ""),
    "BA/Neutrophil": ("BA/Neutrophil", ""),  # a patient's initials, or a class
    "Neutrophil/test_set": ("Neutrophil", "test"),
    "unlabelled/slide 1": ("", ""),
    "val": ("", "val"),
}


def test_layouts_of_public_data_sets(tmp_path: Path, cell: Cell) -> None:
    for folder in PUBLIC:
        cell(f"{folder}/a.png", 1)
    for name in ("Raabin-WBC/readme.txt", "dataset2-master/dataset2-master/labels.csv", "PBC_dataset_normal_DIB/ig/Thumbs.db"):
        cell(name, b"x")
    assert rows(tmp_path / "source") == {f"{folder}/a.png": told for folder, told in PUBLIC.items()}


def test_names_of_folders_and_labels_are_looked_at_once_however_many_cells_have_them(
    tmp_path: Path, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read a name takes 30 µs: half a minute for a million cells."""
    looked_at: list[str] = []
    monkeypatch.setattr(manifest, "known_label", lambda text, names: looked_at.append(text) or known_label(text, names))
    for number in range(20):
        cell(f"Test/Basophil/{number}.png", number)
    assert len(rows(tmp_path / "source")) == 20
    assert looked_at == ["Basophil"]
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(f"{number}.png,EOS\n" for number in range(20)))
    assert len(rows(tmp_path / "m.csv")) == 20
    assert looked_at == ["Basophil", "EOS"]


@pytest.mark.parametrize("header", ["filename,class", "Image_Path,cell type", ",image,Category", "img_name;labels"])
def test_columns_by_other_names(tmp_path: Path, header: str) -> None:
    separator = ";" if ";" in header else ","
    first = "0" + separator if header.startswith(",") else ""
    (tmp_path / "m.csv").write_text(f"{header}\n{first}a.png{separator}EOS\n")
    assert rows(tmp_path / "m.csv") == {"a.png": ("Eosinophil", "")}
    assert "as path" in read_manifest(tmp_path / "m.csv").attrs["read_as"]


def test_what_is_not_read_as_it_may_be_meant_is_said(tmp_path: Path, cell: Cell) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label,set\na.png,EOS,test\n")
    assert "without a column split: if 'set' says train, val or test, name it split" in read_manifest(manifest).attrs["read_as"]
    manifest.write_text("path,label,set,split\na.png,EOS,A,test\n")
    assert "split" not in read_manifest(manifest).attrs["read_as"]
    manifest.write_text("path,Basophil,EOS,stain\na.png,0,1,x\n")
    with pytest.raises(
        WbcError, match=r"m\.csv: the column 'label' is missing; 'basophil' and 'eos' are columns of one class each"
    ):
        rows(manifest)
    cell("images/slide 1/a.png", 1), cell("images/slide 2/a.png", 2)
    said = read_manifest(tmp_path / "source").attrs["read_as"]
    assert said == "no folder names a class: move them below one that is called unlabelled, and they wait for labels"
    assert read_manifest(tmp_path / "source/images/slide 1").attrs["read_as"] == "", "in no folder they wait anyway"
    cell("Monocyte/b.png", 3)
    assert read_manifest(tmp_path / "source").attrs["read_as"] == ""


def test_a_column_that_may_be_meant_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("image,filename,label\na,a.png,EOS\n")
    with pytest.raises(WbcError, match=r"the column 'path' is missing; it has 'image', 'filename', 'label'"):
        rows(tmp_path / "m.csv")


def test_a_sites_names_are_those_of_its_params(tmp_path: Path, cell: Cell, params: Params) -> None:
    cell("Stab/a.png", 1)
    named = params.model_copy(update={"data": params.data.model_copy(update={"label_names": {"stab": "Neutrophil"}})})
    assert ingest(tmp_path / "source", tmp_path / "v/data", params).reasons == {"unknown_label": 1}
    report = ingest(tmp_path / "source", tmp_path / "w/data", named)
    assert not report.refused


def test_of_many_refused_rows_each_cause_is_told_once(tmp_path: Path, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand lines were printed for ten thousand rows. data/rejected.csv has them."""
    monkeypatch.chdir(init_workspace(tmp_path / "site").workspace)
    for number in range(MOST_ROWS):
        cell(f"folder/Blast/{number}.png", number)
    source = tmp_path / "source/folder"

    def said() -> list[str]:
        return [line for line in CliRunner().invoke(app, ["ingest", str(source)]).stdout.splitlines() if "Blast" in line]

    assert len(said()) == MOST_ROWS
    cell("folder/Blast/more.png", 99)
    [line] = said()
    assert line.startswith(f"{MOST_ROWS + 1} rows are not used (unknown_label), Blast/0.png for one: 'Blast' is not one of")
    assert "data/rejected.csv names every row" in CliRunner().invoke(app, ["ingest", str(source)]).stdout


def test_causes_beyond_the_first_are_counted_by_their_reason() -> None:
    rows = [Rejection(f"{n}.png", "", "missing", "no file") for n in range(3)]
    rows += [Rejection(f"copy-{n}.png", "", "duplicate", f"{n}.png") for n in range(MOST_LINES + 1)]
    lines = not_used_lines(rows)
    assert lines[0] == "3 rows are not used (missing), 0.png for one: no file"
    assert lines[MOST_LINES:] == ["and 2 further rows: 2 duplicate"], "of pairs each is a cause of its own, and no other reason"


def test_a_delivery_without_validation_cells_is_told_at_once(tmp_path: Path, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """As most public data sets are: a training would stop at it later."""
    monkeypatch.chdir(init_workspace(tmp_path / "site").workspace)
    for number in range(12):
        cell(f"Train/Basophil/{number}.png", number)
    cell("TestA/Basophil/t.png", 99)
    said = CliRunner().invoke(app, ["ingest", str(tmp_path / "source")]).stdout
    way = "ingest labelled cells with the split val, or with none"
    assert f"no cell is for validation, and no model is trained without: {way}" in said
    cell("val/Basophil/v.png", 98)
    assert "no cell is for" not in CliRunner().invoke(app, ["ingest", str(tmp_path / "source")]).stdout
