"""`wbc gc` with a real DVC cache and real git: what is kept, what is said, what goes; images and pools never do."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.cli import main

from flows.artifacts import share
from flows.registry.disk import collect
from flows.workspace import init_workspace
from wbc_model.cells.decoded import _decoding_version
from wbc_model.checks.quality import _measure_stored
from wbc_model.code_version import code_version
from wbc_model.core.files import file_sha256

IDENTITY = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
PIPELINE = """\
stages:
  train:
    cmd: python train.py
    deps: [data/pools]
    outs: [models/candidate]
"""
TRAIN = """\
from pathlib import Path
text = Path("data/pools/labelled.csv").read_bytes()
folder = Path("models/candidate")
folder.mkdir(parents=True)
(folder / "weights.safetensors").write_bytes(text * 300_000)
(folder / "same.txt").write_bytes(b"the same in every model")
"""


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Path:
    """A copy of the workspace of its own."""
    return Path(shutil.copytree(made, tmp_path / "site"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with four versions of its pools and a model made of each; the second is tagged."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in IDENTITY.items():
            patch.setenv(name, value)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        yield four_models(init_workspace(tmp_path_factory.mktemp("disk") / "site").workspace)


def four_models(workspace: Path) -> Path:
    (workspace / "dvc.yaml").write_text(PIPELINE)
    (workspace / "train.py").write_text(TRAIN)
    (workspace / "data/pools").mkdir(parents=True)
    for number in range(4):
        (workspace / "data/pools/labelled.csv").write_text(f"pool{number}")
        dvc(workspace, "add", "--quiet", "data/pools")
        dvc(workspace, "repro", "--quiet")
        if number == 1:
            git(workspace, "add", "-A")
            git(workspace, "commit", "-q", "-m", "two")
            git(workspace, "tag", "pools-v2")
            git(workspace, "rm", "-q", "--cached", "dvc.lock")
            git(workspace, "commit", "-q", "-m", "the branch has gone on")
    return workspace


def dvc(workspace: Path, *arguments: str) -> None:
    """DVC's command, without a process of its own."""
    with contextlib.chdir(workspace):
        assert main(list(arguments)) == 0


def git(workspace: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=workspace, check=True, capture_output=True)


def objects(workspace: Path) -> set[Path]:
    return {path for path in (workspace / ".dvc/cache/files").rglob("*") if path.is_file()}


def test_the_policy_keeps_the_tagged_the_present_and_the_last_and_says_before_it_deletes(site: Path) -> None:
    before = {path: path.stat().st_size for path in objects(site)}
    said = collect(site, last=1)
    assert objects(site) == set(before), "nothing goes before somebody says so"
    assert len(said["lines"]) == 2, "the first and the third: the second is tagged, the fourth is the present one"
    assert 2 * 1_500_000 <= said["frees"] < 2 * 1_600_000
    done = collect(site, last=1, delete=True)
    assert done["lines"] == said["lines"]
    assert sum(before[path] for path in set(before) - objects(site)) == said["frees"]
    assert collect(site, last=1)["lines"] == []
    (site / "data/pools/labelled.csv").write_text("pool3")
    dvc(site, "checkout")
    assert (site / "models/candidate/same.txt").read_text() == "the same in every model"
    git(site, "checkout", "-q", "-f", "pools-v2")
    dvc(site, "checkout", "--force")
    assert (site / "models/candidate/weights.safetensors").read_bytes().startswith(b"pool1pool1")


def test_no_pool_and_no_image_goes_though_no_commit_names_it(site: Path) -> None:
    collect(site, last=1, delete=True)
    texts = {path.read_bytes() for path in objects(site) if path.stat().st_size < 100}
    assert {f"pool{number}".encode() for number in range(4)} <= texts


def test_what_went_is_made_again_from_its_pools(site: Path) -> None:
    collect(site, last=1, delete=True)
    (site / "data/pools/labelled.csv").write_text("pool0")
    dvc(site, "repro", "--single-item", "train")
    assert (site / "models/candidate/weights.safetensors").read_bytes().startswith(b"pool0pool0")


def test_decoded_cells_that_nothing_reads_go_and_those_in_use_stay(site: Path) -> None:
    images, cache = site / "data/images", site / ".wbc/decoded"
    images.mkdir(parents=True)
    cache.mkdir(parents=True)
    (images / "aa.parquet").touch()
    kept = [cache / f"aa-64-canonical-{_decoding_version()}.u8", cache / ".aa.written-now"]
    gone = [cache / f"bb-64-canonical-{_decoding_version()}.u8", cache / "aa-64-canonical-00000000.u8", cache / ".aa.killed"]
    for path in [*kept, *gone]:
        path.write_bytes(b"cells")
    os.utime(cache / ".aa.killed", (0, 0))
    said = collect(site, last=4, delete=True)
    assert (said["lines"], said["frees"]) == (["3 files of decoded cells that nothing reads any more"], 15)
    assert sorted(cache.iterdir()) == sorted(kept)


def test_measurements_that_nothing_reads_go_and_those_in_use_stay(site: Path) -> None:
    images, cache = site / "data/images", site / ".wbc/cache"
    images.mkdir(parents=True)
    cache.mkdir(parents=True)
    (images / "aa.parquet").touch()
    version = code_version(_measure_stored)
    kept = [
        f"quality-aa-{version}.parquet",
        f"quality-aa-{version}.views",
        "quality-aa-damaged.views",
        "pairs-1.npz",
        ".written-now",
    ]
    gone = [f"quality-bb-{version}.parquet", "quality-aa-0123456789abcdef.views", "quality-aa.npz", ".quality-aa.killed"]
    for name in [*kept, *gone]:
        (cache / name).write_bytes(b"cells")
    os.utime(cache / ".quality-aa.killed", (0, 0))
    said = collect(site, last=4, delete=True)
    assert (said["lines"], said["frees"]) == (["4 files of measurements of cells that nothing reads any more"], 20)
    assert sorted(path.name for path in cache.iterdir()) == sorted(kept)


def test_last_keeps_so_many(site: Path) -> None:
    assert len(collect(site, last=2)["lines"]) == 1
    assert collect(site, last=4)["lines"] == []


def test_a_file_that_dvc_has_is_stored_once(site: Path, tmp_path: Path) -> None:
    weights = site / "models/candidate/weights.safetensors"
    copy = site / "mlartifacts/model/weights.safetensors"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(weights.read_bytes())
    own = copy.with_name("own.bin")
    own.write_bytes(b"x" * 2_000_000)
    share(copy.parent, site)
    assert copy.stat().st_nlink == 2
    assert own.stat().st_nlink == 1
    assert file_sha256(copy) == file_sha256(weights)
    git(site, "tag", "-d", "pools-v2")
    assert len(collect(site, last=1, delete=True)["lines"]) == 3
    assert file_sha256(copy) == file_sha256(weights)
