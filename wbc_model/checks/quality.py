"""Measuring the stored images: what the data checks judge a crop by, computed once per shard and kept.

The sharpness and the small grey view are taken at 64 x 64 pixels, whatever the crop's size. One threshold fits cameras of
different resolution.
"""

import hashlib
import itertools
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wbc_model.cells.store import ImageStore, ShardPart, intact
from wbc_model.cells.tables import Digests, digests, first_places
from wbc_model.code_version import code_version
from wbc_model.core.errors import ImageRejected
from wbc_model.core.files import make_folder, signature, sync, write_atomic
from wbc_model.core.images import decode
from wbc_model.core.twins import VIEW, Crops, find_landmarks, perceptual_hashes, small_view
from wbc_model.spread import each, threads


def measure(data: bytes) -> dict[str, Any]:
    """What is measured of one image.

    width, height (pixels as stored), format, mode; brightness (mean) and contrast (standard deviation) of the grey value,
    0 to 255; sharpness (variance of the Laplacian of the grey view, grey values squared); `pixels` (sha256 of the decoded
    pixels); `view` (uint8 VIEW x VIEW), `landmarks` (uint8 (n, 2): row, column in the view) and `hashes` (uint64 (n,): a
    64-bit perceptual hash of each landmark's surroundings), all three as bytes. Raises ImageRejected.
    """
    image, facts = decode(data)
    grey = image.convert("L")
    small = small_view(grey)
    view = np.asarray(small, dtype=np.float32)
    level = np.asarray(grey)
    landmarks = find_landmarks(view)
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return {
        "width": facts.width,
        "height": facts.height,
        "format": facts.format,
        "mode": facts.mode,
        "brightness": float(level.mean()),
        "contrast": float(level.std()),
        "sharpness": float(_laplacian(view).var()),
        "pixels": digest.hexdigest(),
        "view": small.tobytes(),
        "landmarks": landmarks.tobytes(),
        "hashes": perceptual_hashes(view, landmarks).tobytes(),
    }


def _laplacian(view: NDArray[np.float32]) -> NDArray[np.float32]:
    return view[:-2, 1:-1] + view[2:, 1:-1] + view[1:-1, :-2] + view[1:-1, 2:] - 4 * view[1:-1, 1:-1]


# --- a whole store, cached by shard --------------------------------------------------------------------------------------

_SCHEMA: Final = pa.schema(
    [("sha256", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("format", pa.string()), ("mode", pa.string())]
    + [(name, pa.float64()) for name in ("brightness", "contrast", "sharpness")]
    + [("pixels", pa.string()), ("landmarks", pa.binary()), ("hashes", pa.binary()), ("damage", pa.string())]
)
_FACTS: Final = [name for name in _SCHEMA.names if name not in ("landmarks", "hashes")]
_FEW: Final = ["format", "mode", "damage"]  # columns of a few words
_NOTHING: Final = {
    "width": 0,
    "height": 0,
    "format": "",
    "mode": "",
    "brightness": 0.0,
    "contrast": 0.0,
    "sharpness": 0.0,
    "pixels": "0" * 64,
    "view": bytes(VIEW * VIEW),
    "landmarks": b"",
    "hashes": b"",
}
_DAMAGED: Final = "damaged"  # in the place of the code's version: measured each time
_DAY: Final = 86_400
INTACT: Final = "intact.json"  # what the shards looked like whose bytes were seen to be whole


@dataclass(frozen=True)
class Measured:
    """What was measured of the cells of a store, each once, in store order.

    `names`: their sha256. `facts`: the columns of `measure` that are no arrays (`pixels` is a number, the same for the same
    pixels), and `damage`. That is empty, or says why the image cannot be used any more. Columns of a few words are categories.
    The arrays stay in the files of the shards.
    """

    names: Digests
    facts: pd.DataFrame
    files: tuple[Path, ...]
    file: NDArray[np.int32]  # of each cell: its place in `files`, and its row there
    row: NDArray[np.int32]

    def of(self, kept: NDArray[np.bool_]) -> "Measured":
        """What was measured of some of the cells, bool (n,)."""
        facts = self.facts[kept].reset_index(drop=True)
        return Measured(self.names[kept], facts, self.files, self.file[kept], self.row[kept])

    def without_facts(self) -> "Measured":
        """The same with what pairs are looked for by only: the others take six times as much memory."""
        return replace(self, facts=self.facts[["height", "width"]].copy())

    def crops(self, cells: NDArray[np.int64]) -> Crops:
        """Views and landmarks of the cells at these positions (ascending); a view is read when it is looked at."""
        file, row = self.file[cells], self.row[cells]
        counts = np.zeros(len(cells), np.int64)
        places, hashes = [np.zeros(0, np.uint8)], [np.zeros(0, np.uint64)]
        for number in np.unique(file):
            here = np.flatnonzero(file == number)
            table = pq.read_table(self.files[number], columns=["landmarks", "hashes"]).take(row[here])
            counts[here] = pa.compute.binary_length(table.column("hashes")).to_numpy() // 8
            places.append(np.frombuffer(b"".join(table.column("landmarks").to_pylist()), np.uint8))
            hashes.append(np.frombuffer(b"".join(table.column("hashes").to_pylist()), np.uint64))
        sizes = self.facts[["height", "width"]].to_numpy(np.float64)[cells]
        return Crops(
            ViewFiles(self.files, file, row), np.concatenate(places).reshape(-1, 2), np.concatenate(hashes), counts, sizes
        )


class ViewFiles:
    """The small grey views of cells, read from their shards' files when they are asked for.

    `files`: the shards' measurements, beside which the views lie; `file` and `row`, int32 (n,): of each cell its place in these,
    and its row there.
    """

    def __init__(self, files: tuple[Path, ...], file: NDArray[np.int32], row: NDArray[np.int32]) -> None:
        self.files, self.file, self.row = [_views_of(path) for path in files], file, row

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, places: Any, /) -> NDArray[np.uint8]:
        places = np.asarray(places)
        wanted = np.atleast_1d(places)
        views = np.empty((len(wanted), VIEW * VIEW), np.uint8)
        file, row = self.file[wanted], self.row[wanted].astype(np.int64)
        for number in np.unique(file):
            here = np.flatnonzero(file == number)
            views[here] = _read_views(self.files[number], row[here])
        return views if places.ndim else views[0]


def _read_views(path: Path, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """These rows of a file of views, uint8 (n, VIEW * VIEW): in one go where most of what lies between is wanted too."""
    start, end = int(rows.min()), int(rows.max()) + 1
    with path.open("rb", buffering=0) as file:
        if end - start <= 4 * len(rows):
            data = os.pread(file.fileno(), (end - start) * VIEW * VIEW, start * VIEW * VIEW)
            return np.frombuffer(data, np.uint8).reshape(-1, VIEW * VIEW)[rows - start]
        parts = [os.pread(file.fileno(), VIEW * VIEW, row * VIEW * VIEW) for row in rows.tolist()]
        return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, VIEW * VIEW)


def of_no_use(cache: Path, store: Path) -> list[Path]:
    """The files of a cache that nobody reads any more: of shards that are gone, of earlier code, or left by a process that was
    killed a day ago or longer. Where the whole store is away, as in a clone, its measurements are of use when it comes."""
    version, shards = code_version(_measure_stored), {shard.stem for shard in store.glob("*.parquet")}
    gone = [path for path in cache.glob(".*") if time.time() - path.stat().st_mtime > _DAY]
    for path in cache.glob("quality-*"):
        shard, _, made_by = path.stem.removeprefix("quality-").partition("-")
        if made_by not in (version, _DAMAGED) or (shards and shard not in shards):
            gone.append(path)
    return sorted(gone)


def measure_store(store: ImageStore, cache: Path) -> Measured:
    """The measurements of all stored cells.

    They are kept in `cache`, two files per shard. Whether a shard's bytes are those it was named by is seen once, and anew where
    the file has changed. One that is damaged is measured each time: damage is seen and pinned to its cells.
    """
    version = code_version(_measure_stored)
    seen = _read_seen(cache)
    shards = store.shards()
    now = {shard.stem: list(signature(shard)) for shard in shards}
    unseen = [shard for shard in shards if seen.get(shard.stem) != now[shard.stem]]
    for shard, whole in zip(unseen, each(intact, [shard.absolute() for shard in unseen]), strict=True):
        if not whole:
            del now[shard.stem]
    kept = {shard: cache / f"quality-{shard.stem}-{version if shard.stem in now else _DAMAGED}.parquet" for shard in shards}
    _measure({shard: file for shard, file in kept.items() if shard.stem not in now or not _is_kept(file)}, store)
    measured = _read(tuple(kept.values()))
    if now != seen:
        write_atomic(cache / INTACT, json.dumps(now))
    once = first_places(measured.names) == np.arange(len(measured.names))
    return measured if once.all() else measured.of(once)


def _read(files: tuple[Path, ...]) -> Measured:
    """The measurements in the files of shards, one after the other."""
    nothing = np.zeros(0, "S32")
    tables, names, pixels = [_facts(_SCHEMA.empty_table())], [nothing], [nothing]
    for file in files:
        table = pq.read_table(file, columns=_FACTS, pre_buffer=False, use_threads=False)
        names.append(digests(table.column("sha256").to_pandas()))
        pixels.append(digests(table.column("pixels").to_pandas()))
        tables.append(_facts(table))
    sizes = [table.num_rows for table in tables[1:]]
    number = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    row = np.concatenate([np.zeros(0, np.int32), *(np.arange(size, dtype=np.int32) for size in sizes)])
    facts = pa.concat_tables(tables).unify_dictionaries().to_pandas()
    del tables
    facts["pixels"] = first_places(np.concatenate(pixels)).astype(np.int32)
    del pixels
    return Measured(np.concatenate(names), facts, files, number, row)


def _facts(measured: Any) -> Any:
    """The columns of a shard's measurements that are kept of each cell."""
    for name in _FEW:
        place = measured.schema.get_field_index(name)
        measured = measured.set_column(place, name, measured.column(name).dictionary_encode())
    return measured.select([name for name in _FACTS if name not in ("sha256", "pixels")])


def _read_seen(cache: Path) -> dict[str, list[int]]:
    path = cache / INTACT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _views_of(kept: Path) -> Path:
    return kept.with_suffix(".views")


def _is_kept(kept: Path) -> bool:
    return kept.is_file() and _views_of(kept).is_file()


def _measure(making: Mapping[Path, Path], store: ImageStore) -> None:
    """Measure the images of whole shards into the files of each, some rows at a time."""
    by_shard = store.parts(list(making))
    measured = each(_measured_part, [part for of_shard in by_shard for part in of_shard])
    for (shard, kept), of_shard in zip(making.items(), by_shard, strict=True):
        make_folder(kept.parent)
        for old in kept.parent.glob(f"quality-{shard.stem}-*"):
            old.unlink()
        _write_shard(kept, itertools.islice(measured, len(of_shard)))


def _write_shard(kept: Path, measured: Iterable[tuple[Any, bytes]]) -> None:
    """Write a shard's measurements to `kept`, and its views beside it."""
    table, views = (path.with_name(f".{path.name}.{os.getpid()}") for path in (kept, _views_of(kept)))
    try:
        with pq.ParquetWriter(table, _SCHEMA) as writer, views.open("wb") as file:
            for rows, of_rows in measured:
                file.write(of_rows)
                writer.write_table(rows)
        for written, path in ((views, _views_of(kept)), (table, kept)):  # the table last: with it the views are there
            sync(written)
            written.replace(path)
    finally:
        for written in (table, views):
            written.unlink(missing_ok=True)


def _measured_part(part: ShardPart) -> tuple[Any, bytes]:
    """What is measured of some rows of a shard: a table of _SCHEMA, and their views one after the other."""
    rows = list(_measurements(part))
    views = b"".join(row.pop("view") for row in rows)
    return pa.Table.from_pylist(rows, _SCHEMA), views


def _measurements(part: ShardPart) -> Iterator[dict[str, Any]]:
    """Measure in threads, in order, a few images in memory at a time."""
    workers = threads()
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[dict[str, Any]]] = deque()
        for image in part.images():
            pending.append(pool.submit(_measure_stored, image.sha256, image.data))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _measure_stored(sha256: str, data: bytes) -> dict[str, Any]:
    record: dict[str, Any] = {"sha256": sha256, "damage": ""}
    if hashlib.sha256(data).hexdigest() != sha256:
        return record | _NOTHING | {"damage": "its bytes are not those of its sha256"}
    try:
        return record | measure(data)
    except ImageRejected as rejected:
        return record | _NOTHING | {"damage": str(rejected)}
