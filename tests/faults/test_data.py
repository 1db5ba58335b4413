"""Damaged images, manifests, cache objects and models; a label batch that comes twice; a clock that jumps; the remote away."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.labels import read_log
from flows.pipeline import dvc as versioning
from flows.workspace import ensure_dvc
from tests.faults.life import (
    command,
    disk,
    environment,
    is_refused,
    mounted,
    noise,
    succeeds,
    two_labels,
    wbc,
)
from tests.faults.whole import assert_whole, given, kept
from tests.pools import ingest
from wbc_model.cells.pools import Pools
from wbc_model.cells.store import ImageStore
from wbc_model.params import read_params

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def versioned(ward: Path) -> Path:
    """The workspace with its data under DVC, and a remote that has them."""
    ensure_dvc(ward)
    versioning.version_pools(ward)
    dvc(ward, "remote", "add", "-d", "safe", str(ward.parent / "remote"))
    dvc(ward, "push", "-q")
    return ward


def dvc(workspace: Path, *arguments: str) -> str:
    """What DVC says of a command that comes to its end."""
    done = asked_dvc(workspace, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def asked_dvc(workspace: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(line, cwd=workspace, env=environment(), capture_output=True, text=True, check=False)


def flip(path: Path) -> None:
    """Damage a file in its middle, whoever else has a link to it."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))


def all_images(workspace: Path) -> None:
    cells = Pools.read(workspace / "data/pools").table()["sha256"].tolist()
    assert {cell for cell, _ in ImageStore(workspace / "data/images").read(cells)} == set(cells)


def stops_the_checks(workspace: Path) -> str:
    """What `wbc validate` says of the images: other lines say that noise is too little to learn from."""
    done = wbc(workspace, "validate")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def shard(workspace: Path) -> Path:
    [only] = (workspace / "data/images").glob("*.parquet")
    return only


def test_a_damaged_image_is_named_and_comes_back(versioned: Path) -> None:
    before, damaged = kept(versioned), shard(versioned)
    content = damaged.read_bytes()
    damaged.unlink()  # so that the cache keeps its own
    damaged.write_bytes(content)
    flip(damaged)
    assert "has a damaged image" in stops_the_checks(versioned)
    assert_whole(versioned, before)
    dvc(versioned, "checkout", "--force", "data/images.dvc")
    assert_whole(versioned, before, lambda: all_images(versioned))


def test_a_damaged_cache_object_comes_back_from_the_remote(versioned: Path) -> None:
    """The image's file is a link to the cache's object: both are damaged at once."""
    before = kept(versioned)
    large = max((versioned / ".dvc/cache/files").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    assert large.stat().st_size == shard(versioned).stat().st_size
    flip(large)
    if not large.samefile(shard(versioned)):
        shutil.copyfile(large, shard(versioned))
    assert "dvc pull" in stops_the_checks(versioned)
    assert_whole(versioned, before)
    shutil.rmtree(versioned / ".dvc/cache/files")
    dvc(versioned, "pull", "--force", "data/images.dvc", "data/pools.dvc")
    assert_whole(versioned, before, lambda: all_images(versioned))


@pytest.mark.parametrize(
    ("content", "words"), [(b"path,label\n\x00\xff\xfe", "UTF-8"), (b"\x89PNG\r\n", "UTF-8"), (b"cell,class\nx,y\n", "path")]
)
def test_a_damaged_manifest_is_one_line_and_nothing_comes_in(ward: Path, tmp_path: Path, content: bytes, words: str) -> None:
    before, manifest = kept(ward), noise(tmp_path / "more", 25, 30)
    whole = manifest.read_bytes()
    manifest.write_bytes(content)
    assert words in is_refused(ward, "ingest", str(manifest))
    manifest.write_bytes(whole)
    assert_whole(ward, before, lambda: succeeds(ward, "ingest", str(manifest)))
    assert len(kept(ward).cells) == len(before.cells) + 5


def test_a_damaged_model_is_named_and_the_rest_goes_on(ward: Path) -> None:
    before = kept(ward)
    weights = ward / "models/champion/model.onnx"
    content = weights.read_bytes()
    flip(weights)
    said = is_refused(ward, "serve")
    assert "model.onnx" in said
    assert "damaged" in said
    succeeds(ward, "labels", "import", str(two_labels(ward)))
    weights.write_bytes(content)
    assert_whole(ward, before)


def test_a_label_batch_that_comes_twice_counts_once(ward: Path) -> None:
    """Twice at the same time, and once more afterwards."""
    before, batch = kept(ward), two_labels(ward, by="Dr. Bo")
    line = command("labels", "import", str(batch))
    deliveries = [
        subprocess.Popen(line, cwd=ward, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for delivery in deliveries:
        _, said = delivery.communicate(timeout=300)
        assert delivery.returncode == 0, said
    log = read_log(ward)
    assert len(log) == len(before.labels) + 2
    succeeds(ward, "labels", "import", str(batch))
    assert read_log(ward).equals(log)
    assert_whole(ward, before, lambda: succeeds(ward, "labels", "import", str(two_labels(ward))))


def test_a_clock_that_jumps_both_ways_loses_no_label(ward: Path) -> None:
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("faketime not found: the clock cannot be moved")
    before = kept(ward)
    for moved in ("+400d", "-400d"):
        line = [faketime, "--exclude-monotonic", "-f", moved, *command("labels", "import", str(two_labels(ward)))]
        done = subprocess.run(line, cwd=ward, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    times = sorted(read_log(ward)["labelled_at"].str[:4].unique())
    assert len(times) >= 2, "the clock was moved"
    assert len(given(ward)) == len(before.labels) + 4
    assert_whole(ward, before, lambda: succeeds(ward, "labels", "import", str(two_labels(ward))))


def test_a_dvc_remote_that_is_away_stops_nothing_but_the_push(versioned: Path) -> None:
    before = kept(versioned)
    with disk(versioned.parent / "away", "50m") as remote:
        dvc(versioned, "remote", "modify", "safe", "url", str(remote / "store"))
        assert mounted("-o", "remount,ro", str(remote))
        pushed = asked_dvc(versioned, "push")
        assert pushed.returncode != 0
        succeeds(versioned, "labels", "import", str(two_labels(versioned)))
        ingest(noise(versioned.parent / "more", 25, 30), versioned / "data", read_params(versioned / "params.yaml"))
        versioning.version_pools(versioned)
        assert mounted("-o", "remount,rw", str(remote))
        assert_whole(versioned, before, lambda: dvc(versioned, "push"))
        after = kept(versioned)
        for folder in (versioned / ".dvc/cache/files", versioned / "data/images"):
            shutil.rmtree(folder)
        dvc(versioned, "pull", "--force", "data/images.dvc", "data/pools.dvc")
        assert_whole(versioned, after, lambda: all_images(versioned))
