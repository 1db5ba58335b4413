"""Work that goes shard by shard gives the same bits wherever it is done, and a process that is killed costs its shard."""

import contextlib
import hashlib
import itertools
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.dask_processes import ROOT, dask_processes, silent
from tests.data.conftest import blobs, encoded
from tests.data.test_archives import in_parquet, in_tar, in_zip, taken_in, unpacked
from tests.model.conftest import tiny_params
from wbc_model.acquisition.query import Question, query, score_pool
from wbc_model.cells.decoded import DecodedCells
from wbc_model.cells.examine import Piece
from wbc_model.cells.pools import Pools
from wbc_model.cells.store import ImageStore, StoredImage
from wbc_model.checks.quality import measure_store
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import Architecture, ModelCard, Normalisation
from wbc_model.network.model_directory import load_model, save_model
from wbc_model.network.resnet import MEAN, STD, AttentionResNet18
from wbc_model.network.shared import network_file, network_in
from wbc_model.params import RetrainParams
from wbc_model.spread import each, is_spread, part_size, spread_by, threads

CELLS = 60


SENT: list[int] = []  # bytes of what went to other processes


def elsewhere(work: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
    """A runner without processes: all is pickled there and back, and the last part is done first."""
    sent = [pickle.dumps((work, part)) for part in parts]
    SENT.extend(map(len, sent))
    done = []
    for copied in reversed(sent):
        there, part = pickle.loads(copied)  # noqa: S301
        done.append(pickle.dumps(there(part)))
    return map(pickle.loads, reversed(done))


def cells(seed: int, count: int = CELLS) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    files = {}
    for n in range(count):
        image = blobs(int(rng.integers(1 << 30)), int(rng.integers(32, 80)))
        files[f"{'train' if n % 3 else 'test'}/{CLASSES[n % 5]}/{n:03}.png"] = encoded(image)
    return files | {"train/Basophil/bad.png": b"no image", "train/Eosinophil/again.png": files["train/Eosinophil/001.png"]}


class Result:
    """What all that goes shard by shard makes of some data in a folder."""

    def __init__(self, data: Path, folder: Path, model: Path) -> None:
        self.report = taken_in(data, folder, tiny_params())
        store = ImageStore(folder / "data/images")
        self.shards = [shard.name for shard in store.shards()]
        self.pools = Pools.read(folder / "data/pools")
        measured = measure_store(store, folder / ".wbc/cache")
        self.facts, self.views = measured.facts, measured.crops(np.arange(len(measured.facts)))
        decoded = DecodedCells(store, folder / ".wbc/decoded", 32, "canonical")
        sha256s = sorted(store.index())
        self.scores = score_pool(load_model(model)[0], decoded, sha256s, False, embeddings=True)
        self.decoded = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / ".wbc/decoded").glob("[!.]*")
        }
        self.queue = query(
            model, decoded, self.pools.frames["unlabelled"], Question("badge", 5, 0), self.pools.frames["labelled"]
        )

    def same_as(self, other: "Result") -> None:
        assert self.shards == other.shards
        assert len(self.shards) > 2
        assert self.pools.version() == other.pools.version()
        assert self.report.rejections == other.report.rejections
        assert self.report.reasons == {"duplicate": 1, "undecodable": 1}
        pd.testing.assert_frame_equal(self.facts, other.facts)
        assert self.decoded == other.decoded
        for mine, theirs in zip(self.scores, other.scores, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        pd.testing.assert_frame_equal(self.queue, other.queue)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, so that a few cells make several of them."""
    monkeypatch.setattr("wbc_model.cells.store.GROUP_ROWS", 4)
    monkeypatch.setattr("wbc_model.cells.store.SHARD_BYTES", 4 * 512 + 60_000)
    monkeypatch.setattr("wbc_model.cells.manifest.PART", 7)
    monkeypatch.setattr("wbc_model.acquisition.query.BATCH", 8)
    monkeypatch.setattr("wbc_model.acquisition.query.SLICE", 16)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and in processes that are begun: a sum of floats depends on how it is parted."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def model_in(folder: Path) -> Path:
    torch.manual_seed(0)
    architecture = Architecture(attention="none", lossnet=False)
    card = ModelCard(version="", input_size=32, normalisation=Normalisation(mean=MEAN, std=STD), architecture=architecture)
    save_model(folder / "model", AttentionResNet18("none", lossnet=False), card)
    return folder / "model"


def in_any_form(folder: Path, form: str, seed: int) -> Path:
    files = cells(seed)
    if form == "folder":
        return unpacked(folder / "source", files)
    made = {"zip": in_zip, "tar.gz": partial(in_tar, mode="w:gz"), "parquet": in_parquet}[form](files)
    (folder / f"source.{form}").write_bytes(made)
    return folder / f"source.{form}"


@pytest.mark.usefixtures("small", "narrow")
def test_elsewhere_is_as_here(tmp_path: Path) -> None:
    data, model = in_any_form(tmp_path, "zip", seed=1), model_in(tmp_path)
    here = Result(data, tmp_path / "here", model)
    SENT.clear()
    with spread_by(elsewhere):
        there = Result(data, tmp_path / "there", model)
    here.same_as(there)
    assert max(SENT) < 4000 < (model / "model.onnx").stat().st_size, "neither a network nor pixels go along with a part"
    left = [path.name for path in (tmp_path / "there/.wbc").rglob("*") if path.name.startswith(".") or path.name == "ingest"]
    assert not left, "what processes gave each other is gone"


@pytest.mark.usefixtures("narrow")
def test_a_file_between_processes_that_is_not_there_or_cut_off_is_a_line(tmp_path: Path) -> None:
    with network_file(AttentionResNet18("none", lossnet=False), tmp_path) as there:
        assert network_in(there) is network_in(replace(there, path=tmp_path / "of the same content"))
    with pytest.raises(WbcError, match="a worker needs the workspace at the same path"):
        network_in(replace(there, sha256="another"))
    (tmp_path / "piece").write_bytes(b"1234")
    image = StoredImage(b"", "cell.png", "ab" * 32, 32, 32, "PNG", "made up")
    with pytest.raises(WbcError, match="piece is cut off"):
        list(Piece(tmp_path / "piece", [(0, image)], [5]).judged())


def test_parts_are_done_in_turn_unless_somebody_takes_them() -> None:
    assert list(each(abs, [-1, 2])) == [1, 2]
    assert not is_spread()
    with spread_by(lambda work, parts: iter(["taken"])):
        assert is_spread()
        assert list(each(abs, [-1, 2])) == ["taken"]
        assert list(each(abs, [-3])) == [3], "one part goes nowhere"
    assert not is_spread()


def test_parts_are_neither_too_small_nor_too_many() -> None:
    assert [part_size(count, 10) for count in (0, 1, 11, 2560, 2561, 5120, 5121)] == [10, 10, 10, 10, 20, 20, 30]


def test_threads_are_as_many_as_one_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "400")
    assert threads() <= 8
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= threads() <= 8


# --- real processes -------------------------------------------------------------------------------------------------------


DASK = RetrainParams(until=0.5, cycles=1, annotator="oracle", runner="dask")


@pytest.mark.slow
@pytest.mark.parametrize(("form", "seed"), [("folder", 2), ("tar.gz", 3), ("parquet", 4)])
@pytest.mark.usefixtures("small", "one_thread")
def test_a_cluster_is_as_one_process(tmp_path: Path, form: str, seed: int) -> None:
    """Shards at random; the network as it is, since a process of the cluster knows nothing of a narrow one."""
    from flows.shards.cluster import spread

    data, model = in_any_form(tmp_path, form, seed), model_in(tmp_path)
    here = Result(data, tmp_path / "here", model)
    with spread(DASK, workers=2):
        there = Result(data, tmp_path / "there", model)
    here.same_as(there)


@pytest.mark.slow
@pytest.mark.usefixtures("small", "one_thread")
def test_a_scheduler_and_workers_that_were_started_elsewhere_are_as_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.shards.cluster import check_runner, spread

    data, model = in_any_form(tmp_path, "zip", seed=5), model_in(tmp_path)
    here = Result(data, tmp_path / "here", model)
    monkeypatch.chdir(tmp_path)
    with dask_processes(tmp_path / "dask") as address:
        theirs = DASK.model_copy(update={"runner": address})
        check_runner(theirs)
        with spread(theirs):
            there = Result(Path(data.name), tmp_path / "there", model)
    here.same_as(there)


class Dying:
    """Work on parts. Whoever is first to begin one is killed in the middle of it: at its third image, or in its first batch."""

    def __init__(self, work: Callable[[Any], Any], folder: Path) -> None:
        self.work = work
        self.note = folder / f"killed-{getattr(work, 'func', work).__name__}"

    def __call__(self, part: Any) -> Any:
        with contextlib.suppress(FileExistsError):
            self.note.touch(exist_ok=False)
            self._die_at(Image, "open", 3)
            self._die_at(AttentionResNet18, "forward", 1)
        return self.work(part)

    @staticmethod
    def _die_at(owner: Any, name: str, number: int) -> None:
        real, calls = getattr(owner, name), itertools.count(1)

        def called(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, called)


@pytest.mark.slow
@pytest.mark.usefixtures("small", "one_thread")
def test_workers_killed_in_the_middle_of_shards_change_no_bit(tmp_path: Path) -> None:
    """One in each of ingest, measuring, decoding and scoring, with a part half done."""
    from flows.shards.cluster import cluster, connected, on_cluster

    data, model = in_any_form(tmp_path, "folder", seed=6), model_in(tmp_path)
    here = Result(data, tmp_path / "here", model)
    with cluster(DASK, workers=2) as address, connected(address) as client:
        before = set(client.run(os.getpid).values())
        with spread_by(lambda work, parts: on_cluster(client, Dying(work, tmp_path), parts)):
            there = Result(data, tmp_path / "there", model)
        assert before - set(client.run(os.getpid).values())
    here.same_as(there)
    killed = {path.name for path in tmp_path.glob("killed-*")}
    assert killed - {"killed-intact"} == {f"killed-_{name}" for name in ("piece", "measured_part", "decode_part", "scored")}


def slowly(part: tuple[Path, int]) -> tuple[int, int]:
    """A part that takes a while, and leaves a note of who did it."""
    folder, number = part
    (folder / f"{number}-{os.getpid()}-{time.monotonic_ns()}").touch()
    time.sleep(0.3)
    return number, number**2


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_part_alone(tmp_path: Path) -> None:
    from flows.shards.cluster import cluster, connected, on_cluster

    with cluster(DASK, workers=2) as address, connected(address) as client:
        workers = list(client.run(os.getpid).values())
        results = []
        for number, found in enumerate(on_cluster(client, slowly, [(tmp_path, number) for number in range(16)])):
            results.append(found)
            if number == 3:
                os.kill(workers[0], signal.SIGKILL)
    assert results == [(number, number**2) for number in range(16)]
    begun = [path.name.split("-")[0] for path in tmp_path.iterdir()]
    assert 16 < len(begun) <= 16 + 4, "what the killed one had, once more"


@pytest.mark.slow
def test_a_scheduler_that_falls_silent_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stood still for a moment is none. A part that takes longer than one look is waited for."""
    from flows.shards import cluster as module

    monkeypatch.setattr(module, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(module, "SILENT_SECONDS", 4)
    with dask_processes(tmp_path / "dask", workers=1) as address, module.connected(address) as client:
        found = module.on_cluster(client, slowly, [(tmp_path, number) for number in range(12)])
        assert next(found) == (0, 0)
        with silent(address):
            time.sleep(2)
        assert [next(found) for _ in range(3)] == [(number, number**2) for number in (1, 2, 3)]
        with silent(address):
            began = time.monotonic()
            with pytest.raises(WbcError, match=f"the Dask scheduler at {address} has stopped answering"):
                list(found)
            assert time.monotonic() - began < 20
            with pytest.raises(WbcError, match="has stopped answering"):
                module.await_workers(client, address)


@pytest.mark.slow
def test_workers_of_another_release_are_refused_before_anything_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.shards.cluster import check_runner

    code = tmp_path / "code"
    for package in ("wbc_model", "flows", "serving"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (code / "wbc_model/spread.py").open("a") as module:
        module.write("\nOLDER = True\n")
    monkeypatch.setattr("flows.shards.cluster.CONNECT_SECONDS", 60)
    refused = r"1 worker of the Dask cluster at tcp\S* \(tcp\S* first\) must have this release of wbc"
    with dask_processes(tmp_path / "dask", workers=1, code=code) as address, pytest.raises(WbcError, match=refused):
        check_runner(DASK.model_copy(update={"runner": address}))


def deadly(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.slow
def test_what_a_cluster_cannot_do_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.shards.cluster import check_runner, cluster, connected, on_cluster

    with pytest.raises(WbcError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"):
        check_runner(DASK.model_copy(update={"runner": "tcp://127.0.0.1:9"}))
    with cluster(DASK, workers=2) as address, connected(address) as client:
        with pytest.raises(WbcError, match="killed 4 workers"):
            list(on_cluster(client, deadly, [0, 1, 2]))
        with pytest.raises(WbcError, match="boom"):
            list(on_cluster(client, _boom, [0, 1]))


def _boom(number: int) -> int:
    raise WbcError(f"boom {number}")
