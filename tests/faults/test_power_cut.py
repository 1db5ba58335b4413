"""The power goes at any moment: what outlives it is what was flushed, and perhaps some of the rest.

The device mapper (dm-flakey, dm-log-writes) needs a kernel that has it. So the disk is played here (tests/faults/disk.py), at
each change of a name and each flush. Nothing of the product is replaced but what it calls to change names and to flush.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.labels import check_replayed, import_labels, read_log, record, take_in, take_waiting
from flows.retraining import gate
from tests.faults.disk import Disk, laid
from tests.faults.life import noise
from tests.faults.whole import assert_whole, given, kept
from tests.pools import ingest
from wbc_model.cells.pools import Pools
from wbc_model.cells.store import ImageStore
from wbc_model.core.classes import CLASSES
from wbc_model.core.files import file_sha256, write_atomic
from wbc_model.core.model_card import Architecture, ModelCard, Normalisation, read_card
from wbc_model.network.card_page import write_card
from wbc_model.params import read_params

ROOT = Path(__file__).parents[2]
PARAMS = read_params(ROOT / "params.yaml")


@pytest.fixture
def site(ward: Path) -> Path:
    """Without the model, which is not what these tests put to a cut."""
    shutil.rmtree(ward / "models")
    return ward


def answers(workspace: Path, first: int, last: int) -> pd.DataFrame:
    """Labels by a person for some of the cells that wait."""
    cells = sorted(Pools.read(workspace / "data/pools").frames["unlabelled"]["sha256"])[first:last]
    rows = [[cell, CLASSES[number % 5], "anna", "2026-11-22T08:00:00Z"] for number, cell in enumerate(cells)]
    return pd.DataFrame(rows, columns=["sha256", "label", "labelled_by", "labelled_at"])


def given_by(rows: pd.DataFrame) -> set[tuple[str, str, str]]:
    return set(map(tuple, rows[["sha256", "label", "labelled_by"]].to_numpy()))


def cut_anywhere(disk: Disk, folder: Path, check: Callable[[Path, tuple[Any, ...]], None]) -> None:
    """Start again from every state in which a cut at any moment may leave the disk."""
    count = 0
    for count, (when, files, done) in enumerate(disk.worlds(), 1):
        found = laid(files, folder / f"found-{count}")
        try:
            check(found, done)
        except BaseException as error:
            error.add_note(f"the power was cut at {when}")
            raise
        shutil.rmtree(found)
    assert count > 5


@pytest.mark.slow
def test_labels_that_were_taken_in_outlive_a_power_cut(site: Path, tmp_path: Path) -> None:
    """By a call, by a file, and put off while somebody works on the pools; the next labels come in after each."""
    before, last = kept(site), answers(site, 9, 12)
    file = tmp_path / "labels.csv"
    answers(site, 3, 6).drop(columns="labelled_at").to_csv(file, index=False)
    first, second, third = answers(site, 0, 3), answers(site, 3, 6), answers(site, 6, 9)
    disk = Disk(site)
    with disk.watching():
        take_in(site, first, 1)
        disk.acknowledge(given_by(first))
        import_labels(site, file, cycle=1)
        disk.acknowledge(given_by(second))
        put_off(site, third)
        disk.acknowledge(given_by(third))
        take_waiting(site)

    def check(found: Path, done: tuple[Any, ...]) -> None:
        def next_run() -> None:
            take_waiting(found)
            assert record(found, last, 2) == len(last)
            check_replayed(found)
            assert given_by(last) <= given(found)

        assert_whole(found, before, next_run)
        assert set().union(*done) <= given(found), "a label is lost that somebody was told is in"
        labels = Pools.read(found / "data/pools").frames["labelled"].set_index("sha256")["label"]
        assert all(labels[cell] == label for cell, label, _ in set().union(*done)), "a label of the log is in no pool"
        assert read_log(found)["sha256"].is_unique

    cut_anywhere(disk, tmp_path, check)


def put_off(site: Path, rows: pd.DataFrame) -> None:
    """Labels that come while another process works on the pools."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.labels.at_work", lambda workspace: "a retraining (pid 1)")
        assert take_in(site, rows, 1).waits_for


@pytest.mark.slow
def test_cells_that_were_ingested_outlive_a_power_cut_with_their_images(site: Path, tmp_path: Path) -> None:
    before = kept(site)
    more = noise(tmp_path / "more", 25, 40)
    disk = Disk(site)
    with disk.watching():
        ingest(more, site / "data", PARAMS)
        disk.acknowledge("ingested")
    cells = set(Pools.read(site / "data/pools").table()["sha256"])

    def check(found: Path, done: tuple[Any, ...]) -> None:
        def images() -> None:
            pools = Pools.read(found / "data/pools").table()["sha256"].tolist()
            assert {cell for cell, _ in ImageStore(found / "data/images").read(pools)} == set(pools)
            assert not done or set(pools) == cells, "a cell is lost that somebody was told is in"

        def next_run() -> None:
            ingest(more, found / "data", PARAMS)
            assert set(Pools.read(found / "data/pools").table()["sha256"]) == cells

        images()
        assert_whole(found, before, next_run)
        images()

    cut_anywhere(disk, tmp_path, check)


def model(folder: Path, words: str) -> Path:
    """A model directory of a few bytes that tells itself from others."""
    normal = Normalisation(mean=(0, 0, 0), std=(1, 1, 1))
    folder.mkdir(parents=True)
    for name in ("weights.safetensors", "model.onnx"):
        (folder / name).write_text(words)
    digests = {name: file_sha256(folder / name) for name in ("weights.safetensors", "model.onnx")}
    network = Architecture(attention="none", lossnet=False)
    card = ModelCard(version=words, input_size=32, normalisation=normal, architecture=network)
    write_card(folder, card.model_copy(update={"sha256": digests}))
    return folder


@pytest.mark.parametrize("first", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_champion_is_the_old_one_or_the_new_one_after_a_power_cut(site: Path, tmp_path: Path, first: bool) -> None:
    champion = site / "models/champion"
    packaged = model(tmp_path / "packaged", "new")
    if not first:
        model(champion, "old")
    before = kept(site)
    disk = Disk(site)
    with disk.watching():
        gate.promote(packaged, champion, {})
        disk.acknowledge("promoted")

    def check(found: Path, done: tuple[Any, ...]) -> None:
        def next_run() -> None:
            gate.promote(packaged, found / "models/champion", {})
            assert read_card(found / "models/champion").version == "new"

        gate.mend(found / "models/champion")
        if done:
            assert read_card(found / "models/champion").version == "new"
        assert_whole(found, before, next_run)

    cut_anywhere(disk, tmp_path, check)


def test_a_file_in_a_folder_that_is_new_outlives_a_power_cut(tmp_path: Path) -> None:
    root = tmp_path / "site"
    root.mkdir()
    disk = Disk(root)
    with disk.watching():
        write_atomic(root / ".wbc/incoming/1.json", "{}")
        disk.acknowledge("written")
    assert disk.after(disk.moments[-1]) == {Path(".wbc/incoming/1.json"): b"{}"}


def test_the_played_disk_loses_what_nobody_flushed(tmp_path: Path) -> None:
    """That the tests above can fail: a write as programs usually do it is lost in one of the three ways."""
    root = tmp_path / "site"
    root.mkdir()
    (root / "a").write_text("old")
    disk = Disk(root)
    with disk.watching():
        (root / "b").write_text("new")
        (root / "b").replace(root / "a")
        disk.acknowledge("written")
    moment = disk.moments[-1]
    assert disk.after(moment) == {Path("a"): b"old"}
    assert disk.after(moment, latest=True) == {Path("a"): b""}
