"""Archives as people have them and as they should not be: what comes out of them is what a folder gives, or a line."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.workspace import environment
from tests.data.conftest import blobs, encoded
from tests.pools import ingest
from wbc_model.cells.ingest import IngestReport
from wbc_model.cells.manifest import read_manifest
from wbc_model.cells.pools import Pools
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.params import Params
from wbc_model.sources import bucket, limits
from wbc_model.sources.listing import folder_rows
from wbc_model.sources.opened import open_source

Files = Mapping[str, bytes]
SPLITS = ("train", "test")


def cells(count: int = 20) -> dict[str, bytes]:
    """Files of a folder per class under folders for the split, one of them twice."""
    found = {f"{SPLITS[n % 2]}/{CLASSES[n % 5]}/{n:02}.png": encoded(blobs(n, 32)) for n in range(count)}
    return found | {f"train/{CLASSES[0]}/again.png": encoded(blobs(0, 32))}


def in_zip(files: Files) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def in_tar(files: Mapping[str, bytes | tarfile.TarInfo], mode: str = "w:") -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode=mode) as archive:
        for name, data in files.items():
            if isinstance(data, bytes):
                (entry := tarfile.TarInfo(name)).size = len(data)
                archive.addfile(entry, io.BytesIO(data))
            else:
                data.name = name
                archive.addfile(data)
    return buffer.getvalue()


def in_parquet(files: Files, **options: Any) -> bytes:
    """As Hugging Face `datasets` writes it: labels are numbers, their names in the schema."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    kinds = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64()), ("split", pa.string())]
    schema = pa.schema(kinds, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    rows = [
        {"image": {"bytes": data, "path": name}, "label": CLASSES.index(name.split("/")[1]), "split": name.split("/")[0]}
        for name, data in files.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer := io.BytesIO(), **options)
    return buffer.getvalue()


def in_shard(files: Files, told: str) -> bytes:
    """A WebDataset shard: flat keys, and what a sample is called beside it."""
    flat: dict[str, bytes] = {}
    for name, data in files.items():
        split, label, file = name.split("/")
        key = f"{split}-{label}-{file.removesuffix('.png')}"
        flat[f"{key}.png"] = data
        flat |= {f"{key}.cls": label.encode()} if told == "cls" else {}
        flat |= {f"{key}.json": json.dumps({"split": split} | ({"label": label} if told == "json" else {})).encode()}
    return in_tar(flat)


@pytest.fixture
def params(params: Params) -> Params:
    """Nothing is decoded for a first query here."""
    return params.model_copy(update={"data": params.data.model_copy(update={"initial": "random"})})


def taken_in(data: Path | str, workspace: Path, params: Params, **options: Any) -> IngestReport:
    with open_source(data) as origin:
        return ingest(origin, workspace / "data", params, "site", **options)


def written(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def unpacked(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def version(workspace: Path, with_paths: bool = True) -> str:
    pools = Pools.read(workspace / "data/pools")
    if not with_paths:
        pools = Pools({name: frame.assign(path="") for name, frame in pools.frames.items()})
    return pools.version()


MADE: dict[str, Callable[[Files], bytes]] = {
    "cells.zip": in_zip,
    "wrapped.zip": lambda files: in_zip({f"PBC/{name}": data for name, data in files.items()} | {"__MACOSX/x.png": b"x"}),
    "dots.tar": lambda files: in_tar({f"./{name}": data for name, data in reversed(files.items())}),
    "cells.tar.gz": lambda files: in_tar(files, "w:gz"),
    "cells.tar.xz": lambda files: in_tar(dict(reversed(files.items())), "w:xz"),
    "train-0.parquet": in_parquet,
    "manifest.tar": lambda files: in_tar(
        {name.split("/")[2]: data for name, data in files.items()}
        | {"manifest.csv": "".join(["path;label;split\n", *(_line(name) for name in files)]).encode()}
    ),
    "metadata.zip": lambda files: in_zip(
        dict(files)
        | {
            "metadata.jsonl": "".join(
                json.dumps({"file_name": name, "label": name.split("/")[1], "split": name.split("/")[0]}) + "\n" for name in files
            ).encode()
        }
    ),
    "shard-0.tar": lambda files: in_shard(files, "cls"),
    "shard-1.tar": lambda files: in_shard(files, "json"),
}


def _line(name: str) -> str:
    split, label, file = name.split("/")
    return f"{file};{label};{split}\n"


def contents(data: Path) -> list[tuple[bytes, str, str]]:
    """What the rows say and what lies behind them, apart from the paths."""
    with open_source(data) as origin:
        rows = origin.manifest({})
        found = {place: load() for place, load in origin.files(rows["path"].tolist())}
        return sorted((found[place], row.label, row.split) for place, row in enumerate(rows.itertuples()))


def test_the_same_cells_give_the_same_rows_however_they_are_packed(tmp_path: Path) -> None:
    files = cells()
    expected = contents(unpacked(tmp_path / "folder", files))
    for name, make in MADE.items():
        assert contents(written(tmp_path, name, make(files))) == expected, name


def test_the_same_cells_give_the_same_pools_however_they_are_packed(tmp_path: Path, params: Params) -> None:
    """The paths are those in the archive: others where a format has no folders."""
    files = cells()
    taken_in(unpacked(tmp_path / "folder", files), tmp_path / "w", params)
    for name in ("cells.zip", "cells.tar.gz", "train-0.parquet", "shard-0.tar"):
        place = tmp_path / name.replace(".", "-")
        report = taken_in(written(tmp_path, name, MADE[name](files)), place, params)
        assert report.reasons == {"duplicate": 1}, name
        assert version(place, with_paths=False) == version(tmp_path / "w", with_paths=False), name
        assert (version(place) == version(tmp_path / "w")) == (name != "shard-0.tar"), name
    again = taken_in(tmp_path / "cells.tar.gz", tmp_path / "cells-tar-gz", params)
    assert (again.known, again.shards) == (len(files) - 1, [])


def test_shards_beside_each_other_are_one_set(tmp_path: Path, params: Params) -> None:
    files = cells()
    folder = tmp_path / "shards/data"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        part = {name: data for name, data in files.items() if name.startswith(split)}
        (folder / f"{split}-00000-of-00001.parquet").write_bytes(in_parquet(part))
    (tmp_path / "shards/README.md").write_text("cells")
    report = taken_in(tmp_path / "shards", tmp_path / "w", params)
    assert report.rows == len(files)
    paths = Pools.read(tmp_path / "w/data/pools").table()["path"]
    assert set(paths.str.split("/").str[0]) == {f"{split}-00000-of-00001.parquet" for split in SPLITS}
    taken_in(unpacked(tmp_path / "folder", files), tmp_path / "v", params)
    assert version(tmp_path / "w", with_paths=False) == version(tmp_path / "v", with_paths=False)


def test_the_name_of_every_shard_tells_the_split_or_none_does(tmp_path: Path, params: Params) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "train-0.zip").write_bytes(in_zip({"Basophil/a.png": encoded(blobs(1))}))
    (folder / "test-0.zip").write_bytes(in_zip({"Basophil/a.png": encoded(blobs(2))}))
    with open_source(folder) as origin:
        assert dict(origin.manifest({})[["path", "split"]].to_numpy()) == {
            "test-0.zip/Basophil/a.png": "test",
            "train-0.zip/Basophil/a.png": "train",
        }
    (folder / "more.zip").write_bytes(in_zip({"Basophil/a.png": encoded(blobs(3))}))
    with open_source(folder) as origin:
        assert set(origin.manifest({})["split"]) == {""}


def test_a_folder_as_hugging_face_has_it(tmp_path: Path, params: Params) -> None:
    folder = unpacked(tmp_path / "folder", {"a.png": encoded(blobs(1)), "train/b.png": encoded(blobs(2))})
    (folder / "metadata.csv").write_text("file_name,label\na.png,Monocyte\ntrain/b.png,Basophil\n")
    with open_source(folder) as origin:
        assert dict(origin.manifest({})[["path", "label"]].to_numpy()) == {"a.png": "Monocyte", "train/b.png": "Basophil"}
    (folder / "metadata.csv").write_text("slide,stain\n1,MGG\n")
    with open_source(folder) as origin:
        assert set(origin.manifest({})["label"]) == {""}
    assert taken_in(folder, tmp_path / "w", params).pools["unlabelled"] == 2


names = st.sampled_from(["a.png", "b.PNG", "c.txt", ".hidden.png", "Thumbs.db", "d.jpg"])
folders = st.sampled_from(["train", "TEST", "validation", "Basophil", "monocytes", "unlabelled", "blasts", "__MACOSX", "x"])


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(st.lists(folders, max_size=3).map(tuple), names), min_size=1, max_size=8))
def test_names_are_read_as_a_folder_is(tmp_path_factory: pytest.TempPathFactory, files: set[tuple[tuple[str, ...], str]]) -> None:
    folder = tmp_path_factory.mktemp("tree")
    listed = ["/".join((*parts, name)) for parts, name in files]
    unpacked(folder, dict.fromkeys(listed, b""))
    try:
        expected = read_manifest(folder)[["path", "label", "split", "group"]].to_numpy().tolist()
    except WbcError:
        expected = []
    assert sorted(map(list, folder_rows(dict.fromkeys(listed), {}))) == sorted(expected)


# --- hostile ones ---------------------------------------------------------------------------------------------------------


def cell() -> bytes:
    return encoded(blobs(7))


def entry(kind: bytes, target: str = "") -> tarfile.TarInfo:
    one = tarfile.TarInfo()
    one.type, one.linkname = kind, target
    return one


def link_in_zip() -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("Basophil/good.png", cell())
        link = zipfile.ZipInfo("Basophil/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def encrypted() -> bytes:
    data = bytearray(in_zip({"Basophil/good.png": cell(), "Basophil/secret.png": cell()[:-1]}))
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.rindex(mark) + flags] |= 1
    return bytes(data)


def damaged() -> bytes:
    whole = in_zip({"Basophil/good.png": cell(), "Basophil/bad.png": os.urandom(4000)})
    place = whole.index(b"Basophil/bad.png") + 100
    return whole[:place] + bytes(20) + whole[place + 20 :]


def lying(size: int) -> bytes:
    """A ZIP whose second file declares another size than it has."""
    data = bytearray(in_zip({"Basophil/good.png": cell(), "Basophil/lie.png": cell()[:-1]}))
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.rindex(mark) + place, size)
    return bytes(data)


def twice() -> bytes:
    return in_zip({"Basophil/good.png": cell(), "Basophil/two.png": b"1", "Basophil/twx.png": b"2"}).replace(b"twx", b"two")


GOOD = {"Basophil/good.png": cell()}
REJECTED = {
    "links.tar": (
        in_tar(
            GOOD | {"Basophil/l.png": entry(tarfile.SYMTYPE, "/etc/passwd"), "Basophil/h.png": entry(tarfile.LNKTYPE, "../x")}
        ),
        {"Basophil/l.png": "outside_folder", "Basophil/h.png": "outside_folder"},
    ),
    "devices.tar": (
        in_tar(GOOD | {"Basophil/d.png": entry(tarfile.CHRTYPE), "Basophil/f.png": entry(tarfile.FIFOTYPE)}),
        {"Basophil/d.png": "missing", "Basophil/f.png": "missing"},
    ),
    "out.tar": (
        in_tar(GOOD | {"../x.png": cell(), "/etc/x.png": cell(), "Basophil/../../y.png": cell()}),
        dict.fromkeys(("../x.png", "/etc/x.png", "Basophil/../../y.png"), "outside_folder"),
    ),
    "out.zip": (
        in_zip(GOOD | {"..\\x.png": cell(), "C:\\x.png": cell()}),
        {"..\\x.png": "outside_folder", "C:\\x.png": "outside_folder"},
    ),
    "nested.zip": (in_zip(GOOD | {"more.zip": in_zip(GOOD)}), {"more.zip": "undecodable"}),
    "nested.tar": (in_tar(GOOD | {"Basophil/more.tar.gz": b"x"}), {"Basophil/more.tar.gz": "undecodable"}),
    "large.zip": (in_zip(GOOD | {"Basophil/large.png": bytes(33 * 2**20)}), {"Basophil/large.png": "too_large"}),
    "large.tar.gz": (in_tar(GOOD | {"Basophil/large.png": bytes(33 * 2**20)}, "w:gz"), {"Basophil/large.png": "too_large"}),
    "link.zip": (link_in_zip(), {"Basophil/link.png": "outside_folder"}),
    "encrypted.zip": (encrypted(), {"Basophil/secret.png": "undecodable"}),
    "damaged.zip": (damaged(), {"Basophil/bad.png": "undecodable"}),
    "less.zip": (lying(100), {"Basophil/lie.png": "undecodable"}),
    "manifest.zip": (
        in_zip(GOOD | {"manifest.csv": b"path,label\nBasophil/good.png,Basophil\n../x.png,Basophil\ngone.png,Basophil\n"}),
        {"../x.png": "outside_folder", "gone.png": "missing"},
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_may_not_be_read_in_an_archive_is_a_rejected_row(tmp_path: Path, name: str) -> None:
    data, rejected = REJECTED[name]
    assert looked_at(written(tmp_path, name, data)) == rejected | {"Basophil/good.png": ""}


def looked_at(data: Path) -> dict[str, str]:
    """The rows, each with the reason why its file is not read."""
    with open_source(data) as origin:
        paths = origin.manifest({})["path"].tolist()
        return {paths[place]: reason_of(load) for place, load in origin.files(paths)}


def reason_of(load: Callable[[], bytes]) -> str:
    try:
        return "" if load() == cell() else "other bytes"
    except ImageRejected as rejected:
        return rejected.reason


def test_of_two_files_of_one_name_none_is_taken(tmp_path: Path, params: Params) -> None:
    report = taken_in(written(tmp_path, "twice.zip", twice()), tmp_path / "w", params)
    assert [(one.path, one.reason) for one in report.rejections] == [("Basophil/two.png", "duplicate")]
    assert set(Pools.read(tmp_path / "w/data/pools").table()["path"]) == {"Basophil/good.png"}


def zeros(size: int) -> bytes:
    """A compressed tar of one file of zeros, a thousandth as large."""
    head = in_tar({"Basophil/x.png": b""})[:512]
    (one := tarfile.TarInfo("Basophil/x.png")).size = size
    with gzip.GzipFile(fileobj=(buffer := io.BytesIO()), mode="wb") as file:
        file.write(one.tobuf()), [file.write(bytes(2**20)) for _ in range(size >> 20)], file.write(bytes(1024))
    return buffer.getvalue() if head else b""


def huge_header() -> bytes:
    (one := tarfile.TarInfo("pax")).size = 2**30
    one.type = tarfile.XHDTYPE
    return one.tobuf(tarfile.GNU_FORMAT) + bytes(10_000)


def overlapping() -> bytes:
    data = bytearray(in_zip({"Basophil/a.png": cell(), "Basophil/b.png": cell()}))
    struct.pack_into("<I", data, data.rindex(b"PK\x01\x02") + 42, 4)
    return bytes(data)


WHOLE = in_tar(cells(10))
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut.zip": (lambda: in_zip(GOOD)[:-30], "no whole ZIP archive .*: is it cut off"),
    "cut.tar": (lambda: WHOLE[: len(WHOLE) // 2], "cut off"),
    "unmarked.tar": (lambda: WHOLE.rstrip(b"\0"), "cut off"),
    "cut.tar.gz": (lambda: gzip.compress(WHOLE)[:-2000], "cut off"),
    "checksum.tar.gz": (lambda: gzip.compress(WHOLE)[:-8] + bytes(8), "damaged or cut off .*CRC"),
    "hole.tar": (lambda: WHOLE.replace(b"test/", b"\0est/", 1), "damaged or cut off"),
    "bomb.zip": (lambda: in_zip({f"Basophil/{n}.png": bytes(2**20) for n in range(3)}), "taken for a bomb"),
    "bomb.tar.gz": (lambda: zeros(3 * 2**20), "taken for a bomb"),
    "header.tar": (huge_header, "asks for too much at once"),
    "overlap.zip": (overlapping, "lies within the file before it"),
    "more.zip": (lambda: lying(2**31), "taken for a bomb"),
    "cut.parquet": (lambda: in_parquet(cells(5))[:-9], "no whole Parquet file"),
    "other.parquet": (lambda: _table({"x": [1]}), "no column of images: .*it has x"),
    "empty.zip": (lambda: in_zip({}), "has no images"),
    "not.tar": (lambda: b"path,label\n", "no whole tar archive"),
    "x.7z": (lambda: b"7z", "make a ZIP or a tar of it"),
    "x.tar.zst": (lambda: b"zst", "make a ZIP or a tar of it"),
    "json.zip": (lambda: in_zip({"a.png": cell(), "metadata.jsonl": b"{"}), r"metadata.jsonl line 1: is no JSON"),
}


def _table(columns: Mapping[str, Any]) -> bytes:
    pd.DataFrame(columns).to_parquet(buffer := io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize("name", REFUSED)
def test_an_archive_that_cannot_be_believed_is_one_line_and_nothing_is_taken_in(
    tmp_path: Path, params: Params, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FREE_BYTES", 2**20)
    monkeypatch.setattr(limits, "SWELLS", 10)
    make, line = REFUSED[name]
    with pytest.raises(WbcError, match=line) as refused:
        taken_in(written(tmp_path, name, make()), tmp_path / "w", params)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("w/data/*/*"))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["x.zip", "x.tar", "x.tar.gz", "x.parquet"]), st.data())
def test_no_damage_is_more_than_a_line(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    """Bytes changed, cut out or put in anywhere: rows, or a WbcError."""
    made = {"x.zip": in_zip, "x.tar": in_tar, "x.tar.gz": lambda files: in_tar(files, "w:gz"), "x.parquet": in_parquet}[name]
    whole = made({"train/Basophil/1.png": b"one" * 50, "train/Monocyte/2.png": b"two" * 50})
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    spoiled = whole[:start] + data.draw(st.binary(max_size=40)) + whole[end:]
    path = written(tmp_path_factory.mktemp("spoiled"), name, spoiled)
    try:
        with open_source(path) as origin:
            for _, load in origin.files(origin.manifest({})["path"].tolist()):
                load()
    except WbcError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said


def test_an_address_that_is_not_read_is_a_line() -> None:
    for url in ("https://example.org/cells.zip", "simplecache::s3://bucket/x.zip", "s3://"):
        with pytest.raises(WbcError, match="cells are not taken in from there"), open_source(url):
            pass


def test_a_manifest_by_another_name_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    files = {"1.png": encoded(blobs(1, 32)), "cells.csv": b"path,label\n1.png,Basophil\n"}
    forms = {"a.zip": in_zip(files), "a.tar.gz": in_tar(files, "w:gz")}
    for data in (unpacked(tmp_path / "a", files), *(written(tmp_path, name, packed) for name, packed in forms.items())):
        with open_source(data) as opened:
            assert "no folder tells a class, and cells.csv is not read: " in opened.manifest({}).attrs["read_as"], data
    labelled = {"Basophil/1.png": files["1.png"], "cells.csv": b""}
    with open_source(written(tmp_path, "b.zip", in_zip(labelled))) as opened:
        assert opened.manifest({}).attrs["read_as"] == ""


def test_a_group_that_is_no_number_is_none(tmp_path: Path) -> None:
    """As NumPy has what is missing, and as its JSON is read."""
    images = [{"bytes": encoded(blobs(n, 32)), "path": f"{n}.png"} for n in range(2)]
    table = pa.table({"image": images, "label": ["Basophil"] * 2, "group": pa.array(np.array([7.5, np.nan]))})
    pq.write_table(table, buffer := io.BytesIO())
    lines = "".join(
        f'{{"file_name": "{n}.png", "label": "Basophil", "group": {group}}}\n' for n, group in enumerate(("7.5", "NaN"))
    )
    files = {"metadata.jsonl": lines.encode(), "0.png": images[0]["bytes"], "1.png": images[1]["bytes"]}
    for name, data in (("cells.parquet", buffer.getvalue()), ("cells.zip", in_zip(files))):
        with open_source(written(tmp_path, name, data)) as opened:
            assert opened.manifest({})["group"].tolist() == ["7.5", ""]


def test_names_of_a_mac_s_archive_are_read(tmp_path: Path, params: Params) -> None:
    """It writes them in UTF-8, accents as characters of their own, and does not say so."""

    class OfMac(zipfile.ZipInfo):
        def _encodeFilenameFlags(self) -> tuple[bytes, int]:
            return unicodedata.normalize("NFD", self.filename).encode(), self.flag_bits & ~0x800

    names = [f"Zelle ä{n}.png" for n in range(3)]
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        archive.writestr("manifest.csv", "path,label\n" + "".join(f"{name},Basophil\n" for name in names))
        for number, name in enumerate(names):
            archive.writestr(OfMac(name), encoded(blobs(number, 32)))
    assert taken_in(tmp_path / "mac.zip", tmp_path / "w", params).rejections == []
    assert set(Pools.read(tmp_path / "w/data/pools").table()["path"]) == set(names)


def test_what_lies_behind_a_file_system_is_taken_in_as_what_lies_here(tmp_path: Path, params: Params) -> None:
    """Without a server: fsspec's `memory://` stands for a bucket."""
    import fsspec

    files, memory = cells(), fsspec.filesystem("memory")
    taken_in(unpacked(tmp_path / "folder", files), tmp_path / "w", params)
    memory.pipe({f"/bucket/folder/{name}": data for name, data in files.items()})
    memory.pipe({"/bucket/cells.tar.gz": in_tar(files, "w:gz"), "/bucket/shards/data/train-0.parquet": in_parquet(files)})
    lines = "".join(f"folder/{name},{name.split('/')[1]},{name.split('/')[0]}\n" for name in files)
    others = "gone.png,Basophil,\n../x.png,Basophil,\nä.png,Basophil,train\n"
    memory.pipe({"/bucket/cells.csv": f"path,label,split\n{lines}{others}".encode()})
    memory.pipe({unicodedata.normalize("NFD", "/bucket/ä.png"): files[f"train/{CLASSES[0]}/again.png"]})
    for number, url in enumerate(("folder", "folder/", "cells.tar.gz", "shards")):
        report = taken_in(f"memory://bucket/{url}", tmp_path / str(number), params)
        assert report.reasons == {"duplicate": 1}
        assert version(tmp_path / str(number)) == version(tmp_path / "w"), url
    report = taken_in("memory://bucket/cells.csv", tmp_path / "csv", params)
    assert report.reasons == {"duplicate": 2, "missing": 1, "outside_folder": 1}
    assert version(tmp_path / "csv", with_paths=False) == version(tmp_path / "w", with_paths=False)
    with pytest.raises(WbcError, match="memory://bucket/none: there is no such file or folder"):
        taken_in("memory://bucket/none", tmp_path / "none", params)
    memory.rm("/bucket", recursive=True)


def test_columns_by_other_names_are_read_wherever_the_manifest_is(tmp_path: Path) -> None:
    """What a folder's manifest was read by was refused in a ZIP and in a bucket."""
    import fsspec

    text, cell = b"Filename;cell type\na.png;EOS\n", next(iter(cells().values()))
    archive = written(tmp_path, "cells.zip", in_zip({"MANIFEST.csv": text, "a.png": cell}))
    system = fsspec.filesystem("memory")
    system.pipe({"/other-names/cells.csv": text, "/other-names/a.png": cell})
    for data in (written(tmp_path, "cells.csv", text), archive, "memory://other-names/cells.csv"):
        with open_source(data) as origin:
            assert origin.manifest({})[["path", "label"]].to_numpy().tolist() == [["a.png", "Eosinophil"]], data


@pytest.mark.parametrize(("folder", "label"), [("images", ""), ("Monocyte", "Monocyte")])
def test_a_manifest_without_labels_has_those_of_folders_that_are_named_for_classes(
    tmp_path: Path, folder: str, label: str
) -> None:
    """Images in `images/` were refused, which the same manifest beside them has as images without a label."""
    cell = next(iter(cells().values()))
    text = f"path,group\n{folder}/a.png,7\n".encode()
    with open_source(written(tmp_path, "cells.zip", in_zip({"manifest.csv": text, f"{folder}/a.png": cell}))) as origin:
        assert origin.manifest({})["label"].tolist() == [label]


def test_how_long_a_bucket_is_waited_for_is_the_user_s_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def waits() -> object:
        return bucket.file_system("s3://cells/a.zip")[0].config_kwargs.get("read_timeout")

    assert waits() == 12
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 99}})
    assert waits() == 99


@pytest.mark.slow
def test_a_bucket_is_taken_in_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wbc ingest s3://...` against a server of S3: a folder, archives, a manifest; and what is wrong is one line."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    secrets = {"AWS_ACCESS_KEY_ID": "site", "AWS_SECRET_ACCESS_KEY": "topsecretkey", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (secrets | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
        monkeypatch.setenv(name, value)
    files = cells()
    bucket = s3fs.S3FileSystem(skip_instance_cache=True)
    bucket.mkdir("cells")
    bucket.pipe({f"cells/folder/{name}": data for name, data in files.items()})
    bucket.pipe({f"cells/{name}": MADE[name](files) for name in ("cells.zip", "cells.tar.gz", "dots.tar", "train-0.parquet")})
    lines = "".join(f"folder/{name},{name.split('/')[1]},{name.split('/')[0]}\n" for name in files)
    bucket.pipe("cells/cells.csv", f"path,label,split\n{lines}".encode())
    bucket.pipe("cells/cut.zip", in_zip(files)[:-40])
    found = {}
    for name in ("folder", "cells.zip", "cells.tar.gz", "dots.tar", "train-0.parquet", "cells.csv"):
        place = tmp_path / name
        assert wbc(tmp_path, "init", str(place))[0] == 0
        code, said = wbc(place, "ingest", f"s3://cells/{name}", "--source", "site")
        assert code == 0, said
        found[name] = version(place, with_paths=name != "cells.csv")
    assert len({version for name, version in found.items() if name != "cells.csv"}) == 1
    assert found["cells.csv"] == version(tmp_path / "folder", with_paths=False)
    for url, line in (
        ("s3://cells/cut.zip", "is it cut off"),
        ("s3://cells/none", "no such file"),
        ("s3://other/x.zip", "no such file"),
    ):
        code, said = wbc(tmp_path / "folder", "ingest", url)
        assert (code, said.count("\n")) == (1, 1), said
        assert line in said
        assert "topsecretkey" not in said
    server.stop()
    code, said = wbc(tmp_path / "folder", "ingest", "s3://cells/cells.zip")
    assert (code, said.count("\n")) == (1, 1), said
    assert "AWS_ENDPOINT_URL" in said


def wbc(folder: Path, *arguments: str) -> tuple[int, str]:
    """A command's exit code and what it says on stderr, or on stdout where it says nothing there."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    return done.returncode, done.stderr or done.stdout
