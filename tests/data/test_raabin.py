"""Raabin-WBC's folders, faked in the form that its authors distribute, become manifests that `wbc ingest` takes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.model.conftest import tiny_params
from tests.pools import ingest
from wbc_model.cells.manifest import read_manifest
from wbc_model.cells.pools import Pools
from wbc_model.cells.raabin import BY_SMEAR, OFFICIAL, TEST_B, raabin_manifests, smear_of
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError

SMEARS = ("95-8-6-1", "95-8-17-1", "95-8-22-3", "95-9-1-2", "95-9-3-4", "95-9-3-5", "20190527")


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def raabin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven smears in Train and TestA, one in TestA alone; all eosinophils but two are of one smear."""
    folder = tmp_path_factory.mktemp("raabin") / "Raabin-WBC"
    number = 0
    for part, fields in (("Train", range(6)), ("TestA", range(6, 8))):
        smears = SMEARS if part == "Train" else (*SMEARS, "95-9-9-1")
        for label in CLASSES:
            for smear in smears:
                if label == "Eosinophil" and smear not in ("95-8-22-3", "95-9-9-1"):
                    continue
                for field in fields:
                    name = f"{smear}_162951_{field}_0.jpg" if smear == "20190527" else f"{smear}_{field}_1.jpg"
                    picture(folder / part / label / name, number := number + 1)
    for label in ("Neutrophil", "Lymphocyte"):
        for field in range(5):
            picture(folder / "TestB" / label / f"98-1-2-1_{field}_1.jpg", number := number + 1)
    (folder / "Train" / "Basophil" / "Thumbs.db").write_bytes(b"x")
    picture(folder / "Train" / "Artifact" / "95-8-6-1_1_1.jpg", 9999)
    return folder


def test_the_smear_is_what_the_name_begins_with() -> None:
    assert smear_of("95-8-27-1_218_5.jpg") == "95-8-27-1"
    assert smear_of("20190527_162951_0_0.jpg") == "20190527"
    assert smear_of("BA_47.jpg") == smear_of("95-8-27-1.jpg") == smear_of("_1.jpg") == ""


def test_the_official_split_is_the_authors(raabin: Path, tmp_path: Path) -> None:
    report = raabin_manifests(raabin, tmp_path)
    table = pd.read_csv(tmp_path / OFFICIAL)
    part = table["path"].map(lambda path: Path(path).parts[-3])
    assert (part[table["split"] == "test"] == "TestA").all()
    assert (part[table["split"] != "test"] == "Train").all()
    assert "group" not in table  # a smear lies on both sides of it
    for _, rows in table[table["split"] != "test"].groupby("label"):
        assert (rows["split"] == "val").sum() == round(0.15 * len(rows))
    assert report.counts[OFFICIAL]["test"] == {name: 4 if name == "Eosinophil" else 16 for name in CLASSES}
    in_train = sum(smear != "95-9-9-1" for smear in table.loc[table["split"] == "test", "smear"])
    assert report.shared == pytest.approx(in_train / (table["split"] == "test").sum())
    assert report.left_out == ["Train/Artifact"]
    assert report.unnamed == []


def test_no_smear_is_on_both_sides(raabin: Path, tmp_path: Path) -> None:
    report = raabin_manifests(raabin, tmp_path, validation_share=0.2)
    table = pd.read_csv(tmp_path / BY_SMEAR, dtype=str)
    assert (table.groupby("group")["split"].nunique() == 1).all()
    assert set(table["group"]) == {*SMEARS, "95-9-9-1"}
    assert set(table["split"]) == {"train", "val", "test"}
    assert len(table) == len(pd.read_csv(tmp_path / OFFICIAL))
    share = (table["split"] == "test").mean()
    assert 0.1 < share < 0.45  # TestA has 28 % of the cells, and smears are whole
    assert any("Eosinophil" in line and BY_SMEAR in line for line in report.warnings)
    again = raabin_manifests(raabin, tmp_path / "again", validation_share=0.2)
    assert (tmp_path / "again" / BY_SMEAR).read_text() == (tmp_path / BY_SMEAR).read_text()
    assert again.counts == report.counts


def test_manifests_can_be_ingested(raabin: Path, tmp_path: Path) -> None:
    raabin_manifests(raabin)  # beside the folders, with relative paths
    for name in (OFFICIAL, BY_SMEAR, TEST_B):
        table = read_manifest(raabin / name)
        assert not any(Path(path).is_absolute() for path in table["path"])
        report = ingest(raabin / name, tmp_path / name / "data", tiny_params())
        assert report.reasons == {}
        pools = Pools.read(tmp_path / name / "data/pools")
        counts = pools.counts()
        assert counts["test"] == (table["split"] == "test").sum()
        assert counts["validation"] == (table["split"] == "val").sum()
        if name == BY_SMEAR:
            assert pools.table()["group"].ne("").all()
    elsewhere = raabin_manifests(raabin, tmp_path / "out")
    assert [path.name for path in elsewhere.wrote] == [OFFICIAL, BY_SMEAR, TEST_B]
    assert ingest(tmp_path / "out" / TEST_B, tmp_path / "abs/data", tiny_params()).reasons == {}


def test_folders_are_found_however_they_were_unpacked(raabin: Path, tmp_path: Path) -> None:
    expected = raabin_manifests(raabin, tmp_path / "a").counts
    nested = tmp_path / "nested"
    for part, name in (("Train", "train/Train"), ("TestA", "Test-A"), ("TestB", "TEST_B/TestB")):
        shutil.copytree(raabin / part, nested / name)
    assert raabin_manifests(nested, tmp_path / "b").counts == expected
    assert raabin_manifests(raabin.parent, tmp_path / "c").counts == expected  # the folder around it
    shutil.rmtree(nested / "TEST_B")
    assert [path.name for path in raabin_manifests(nested, tmp_path / "d").wrote] == [OFFICIAL, BY_SMEAR]


def test_what_is_missing_or_strange_is_named(raabin: Path, tmp_path: Path) -> None:
    with pytest.raises(WbcError, match="is not a folder"):
        raabin_manifests(tmp_path / "none")
    with pytest.raises(WbcError, match="no image in a folder Train: unpack"):
        raabin_manifests(tmp_path)
    shutil.copytree(raabin / "Train", tmp_path / "Train")
    with pytest.raises(WbcError, match="no image in a folder TestA: unpack"):
        raabin_manifests(tmp_path)
    picture(tmp_path / "TestA/Monocyte/MO_1.jpg", 5)
    report = raabin_manifests(tmp_path)
    assert [Path(path).name for path in report.unnamed] == ["MO_1.jpg"]
    assert report.shared == 0


def test_the_command_says_what_it_wrote(raabin: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "raabin", str(raabin), "--out", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "of a smear that Train has too" in shown
    assert f"wrote {tmp_path / OFFICIAL}" in shown
    (tmp_path / BY_SMEAR).write_text("path,label\nmine,Monocyte\n")
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, (tmp_path / BY_SMEAR).read_text()) == (1, "path,label\nmine,Monocyte\n")
    assert f"{BY_SMEAR} is there with other content" in refused.stderr
    (tmp_path / BY_SMEAR).unlink()
    result = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert result["counts"][TEST_B]["test"]["Neutrophil"] == 5
