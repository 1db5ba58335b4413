import errno
import hashlib
import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from wbc_model.cells import store as store_module
from wbc_model.cells.store import ImageStore, StoredImage, intact, stream
from wbc_model.core.errors import WbcError


def images(count: int, size: int = 500, seed: int = 0) -> Iterator[StoredImage]:
    rng = np.random.default_rng(seed)
    for number in range(count):
        data = rng.bytes(size)
        yield StoredImage(data, f"cells/{number}.jpg", hashlib.sha256(data).hexdigest(), 32, 24, "JPEG", "made up")


def test_what_goes_in_comes_out_and_a_second_time_adds_nothing(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    (shard,) = store.add(images(700))
    assert shard.stem == hashlib.sha256(shard.read_bytes()).hexdigest()[:16]
    assert store.add(images(700)) == []
    assert list(stream(shard)) == list(images(700))
    assert [place.row for place in store.index().values()] == list(range(700))
    assert pq.ParquetFile(shard).metadata.num_row_groups == 3
    assert [path.name for path in tmp_path.iterdir()] == [shard.name]


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    (first,) = ImageStore(tmp_path / "a").add(images(300))
    (second,) = ImageStore(tmp_path / "b").add(images(300))
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_reading_follows_the_store_and_names_what_is_missing(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    store.add(images(400))
    store.add(images(300, seed=1))
    everything = [*images(400), *images(300, seed=1)]
    wanted = everything[690::-7]
    got = list(store.read([image.sha256 for image in wanted]))
    assert got == [(image.sha256, image.data) for image in sorted(wanted, key=everything.index)]
    with pytest.raises(WbcError, match="f" * 64):
        store.read(["f" * 64])


def test_only_new_images_go_into_a_new_shard(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    store.add(images(10))
    (shard,) = store.add([*images(10), *images(5, seed=2)])
    assert [image.sha256 for image in stream(shard)] == [image.sha256 for image in images(5, seed=2)]


def test_the_index_knows_each_cell_and_no_other(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    assert list(store.index()) == []
    assert "0" * 64 not in store.index()
    store.add(images(40))
    store.add(images(30, seed=1))
    everything = [image.sha256 for image in [*images(40), *images(30, seed=1)]]
    index = store.index()
    assert list(index) == everything
    assert all(sha256 in index for sha256 in everything)
    assert [index[sha256].row for sha256 in everything] == [*range(40), *range(30)]
    assert [index[sha256].shard for sha256 in everything] == [store.shards()[0]] * 40 + [store.shards()[1]] * 30
    asked = [everything[50], "f" * 64, "no name", "", everything[3].upper(), everything[0]]
    assert (index.find(asked) >= 0).tolist() == [True, False, False, False, False, True] == [name in index for name in asked]
    assert None not in index
    assert np.bincount(index.places(np.arange(len(index)))[0]).tolist() == [40, 30]
    with pytest.raises(KeyError):
        index["f" * 64]


def test_names_that_end_in_zeros_are_told_apart(tmp_path: Path) -> None:
    names = ["ab" * 31 + "00", "ab" * 30 + "0000", "ab" * 32, "00" * 32]
    index = store_module.StoreIndex([tmp_path], [store_module.digests(names)])
    assert list(index) == names
    assert [index[name].row for name in names] == [0, 1, 2, 3]
    assert all(name in index for name in names)
    assert not any(name in index for name in ("ab" * 29 + "000000", "ac" * 32, "00" * 31 + "01", "ff" * 32))


def test_shards_keep_their_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 600_000)
    shards = ImageStore(tmp_path).add(images(100, size=20_000))
    assert len(shards) >= 4
    assert all(shard.stat().st_size <= 600_000 for shard in shards)
    assert len(ImageStore(tmp_path).index()) == 100
    assert ImageStore(tmp_path).shards() == shards


def test_adding_takes_the_memory_of_a_row_group_not_of_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "GROUP_BYTES", 2_000_000)

    def peak(count: int, folder: str) -> int:
        tracemalloc.start()
        ImageStore(tmp_path / folder).add(images(count, size=100_000))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(400, "many") < 1.5 * peak(40, "few")


def test_damage_is_seen_at_the_cell_it_hit(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    (shard,) = store.add(images(50))
    victim = list(images(50))[20]
    content = shard.read_bytes()
    place = content.index(victim.data)
    shard.write_bytes(content[:place] + b"\0\0\0\0" + content[place + 4 :])
    assert not intact(shard)
    with pytest.raises(WbcError, match=victim.sha256):
        list(ImageStore(tmp_path).read([image.sha256 for image in images(50)]))
    shard.write_bytes(content[:1000])
    with pytest.raises(WbcError, match=shard.name):
        ImageStore(tmp_path).index()


def test_a_killed_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken() -> Iterator[StoredImage]:
        yield from images(300)
        raise KeyboardInterrupt

    store = ImageStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.add(broken())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".adding.parquet").write_bytes(b"half a shard")
    assert len(store.add(images(3))) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_shard_that_the_disk_does_not_take_ends_the_adding_and_those_before_it_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 600_000)
    taken, real = itertools.count(), store_module.sync

    def sync(path: Path) -> None:
        if path.suffix == ".parquet" and next(taken) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    monkeypatch.setattr(store_module, "sync", sync)
    with pytest.raises(OSError, match="No space left"):
        ImageStore(tmp_path).add(images(100, size=20_000))
    monkeypatch.setattr(store_module, "sync", real)
    assert len(list(tmp_path.iterdir())) == 2
    ImageStore(tmp_path).add(images(100, size=20_000))
    unbroken = ImageStore(tmp_path / "unbroken")
    assert [path.name for path in ImageStore(tmp_path).shards()] == [path.name for path in unbroken.add(images(100, size=20_000))]


def test_hugging_face_sees_images(tmp_path: Path) -> None:
    (shard,) = ImageStore(tmp_path).add(images(3))
    schema = pq.read_schema(shard)
    assert b'"image": {"_type": "Image"}' in schema.metadata[b"huggingface"]
    assert str(schema.field("image").type) == "struct<bytes: binary, path: string>"
