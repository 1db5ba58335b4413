"""Cells decoded once to the network's uint8 view and kept on disk: no epoch and no query waits for JPEGs.

One file per shard, size and version of the decoding code, beside the workspace's other caches: shards never change, so
neither do these. Rows are read with `pread`, not mapped: memory stays flat, however large the pool is.
"""

import functools
import hashlib
import itertools
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL
from numpy.typing import NDArray
from tqdm import tqdm

from wbc_model.cells.store import ImageStore, ShardPart, StoreIndex
from wbc_model.code_version import code_version
from wbc_model.core import images
from wbc_model.core.errors import WbcError
from wbc_model.core.files import sync
from wbc_model.spread import each, threads

Pixels = NDArray[np.uint8]
_DAY: Final = 86_400


def _decoding_version() -> str:
    return hashlib.sha256((code_version("wbc_model.core.images:preprocess") + PIL.__version__).encode()).hexdigest()[:8]


def of_no_use(cache: Path, store: Path) -> list[Path]:
    """The files of a cache that nobody reads any more: of shards that are gone, of earlier code, or left by a process that was
    killed a day ago or longer. Where the whole store is away, as in a clone, its decoded shards are of use when it comes."""
    version, shards = _decoding_version(), {shard.stem for shard in store.glob("*.parquet")}
    gone = [path for path in cache.glob(".*") if time.time() - path.stat().st_mtime > _DAY]
    for path in cache.glob("[!.]*.u8"):
        shard, _, rest = path.stem.partition("-")
        if not rest.endswith(f"-{version}") or (shards and shard not in shards):
            gone.append(path)
    return sorted(gone)


def _decode_part(part: tuple[ShardPart, Path], size: int, view: images.View) -> int:
    """Decode rows of a shard to their place in a file, which is made where it is missing; returns their number. Done twice it
    does no harm."""
    rows, target = part
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "wb") as file, ThreadPoolExecutor(threads()) as pool:
        file.seek(rows.start * size * size * 3)
        cells = rows.images()
        while block := [image.data for image in itertools.islice(cells, 256)]:
            for seen in pool.map(lambda data: images.preprocess(data, size, view), block):
                file.write(seen.tobytes())
    return rows.end - rows.start


@functools.lru_cache(maxsize=2)
def _decoded_again(directory: Path, cache: Path, size: int, view: images.View, shards: tuple[str, ...]) -> "DecodedCells":
    """The cells of a store that had these shards."""
    return DecodedCells(ImageStore(directory), cache, size, view)


class DecodedCells:
    """Random access to the uint8 views (size, size, 3) of a store's cells by sha256."""

    def __init__(self, store: ImageStore, cache: Path, size: int, view: images.View) -> None:
        self.store, self.cache, self.size, self.view = store, cache, size, view
        self._version = _decoding_version()

    @functools.cached_property
    def _index(self) -> StoreIndex:
        """Read when a cell is asked for: an ingest may ask for none."""
        return self.store.index()

    def _file(self, shard: Path) -> Path:
        return self.cache / f"{shard.stem}-{self.size}-{self.view}-{self._version}.u8"

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process reads the index of the same shards itself, once."""
        shards = tuple(shard.name for shard in self._index.shards)
        return _decoded_again, (self.store.directory.absolute(), self.cache.absolute(), self.size, self.view, shards)

    def prepare(self, sha256s: Sequence[str]) -> None:
        """Decode the shards that hold these cells, where that has not been done yet; raises WbcError for an unknown cell."""
        self._prepare(self._places(sha256s)[0])

    def _prepare(self, shards: NDArray[np.int32]) -> None:
        of_store = self._index.shards
        todo = [of_store[number] for number in np.unique(shards) if not self._file(of_store[number]).exists()]
        if not todo:
            return
        self.cache.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(4)
        making = {shard: self.cache.absolute() / f".{shard.stem}.{token}" for shard in todo}
        try:
            self._decode(making)
        finally:
            for temporary in making.values():
                temporary.unlink(missing_ok=True)

    def _decode(self, making: Mapping[Path, Path]) -> None:
        """Decode whole shards, each by way of a temporary file."""
        by_shard = self.store.parts(list(making))
        parts = [(part, temporary) for temporary, of_shard in zip(making.values(), by_shard, strict=True) for part in of_shard]
        cells = sum(part.end - part.start for part, _ in parts)
        with tqdm(total=cells, desc=f"decode to {self.size} px", unit="cell", disable=None, leave=False) as progress:
            found = each(functools.partial(_decode_part, size=self.size, view=self.view), parts)
            for (shard, temporary), of_shard in zip(making.items(), by_shard, strict=True):
                for _ in of_shard:
                    progress.update(next(found))
                sync(temporary)
                os.replace(temporary, self._file(shard))

    def _places(self, sha256s: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        positions = self._index.find(sha256s)
        if len(positions) and positions.min() < 0:
            missing = next(itertools.compress(sha256s, positions < 0))
            raise WbcError(f"cell {missing} is in a pool but not in the image store: run `dvc pull` or ingest it again")
        return self._index.places(positions)

    def read(self, sha256s: Sequence[str]) -> Pixels:
        """uint8 (N, size, size, 3) in the order asked for."""
        shards, rows = self._places(sha256s)
        self._prepare(shards)
        out = np.empty((len(sha256s), self.size, self.size, 3), np.uint8)
        row_bytes = self.size * self.size * 3
        for shard in np.unique(shards):
            path = self._file(self._index.shards[shard])
            with path.open("rb", buffering=0) as file:
                for position in np.flatnonzero(shards == shard).tolist():
                    view, start = memoryview(out[position]).cast("B"), int(rows[position]) * row_bytes
                    if os.preadv(file.fileno(), [view], start) != row_bytes:
                        raise WbcError(f"{path} is damaged: delete it, it will be made again")
        return out

    def batches(self, sha256s: Sequence[str], batch_size: int) -> Iterator[Pixels]:
        """The cells in order, `batch_size` at a time."""
        self.prepare(sha256s)
        for start in range(0, len(sha256s), batch_size):
            yield self.read(sha256s[start : start + batch_size])

    def appearance(self, sha256s: Sequence[str]) -> NDArray[np.float64]:
        """How the cells were shown, (N, 7), in the order asked for (`images.appearance`); decodes the images anew."""
        place = {sha256: position for position, sha256 in enumerate(sha256s)}
        out = np.empty((len(sha256s), len(images.APPEARANCE)))
        with ThreadPoolExecutor(threads()) as pool:
            files = self.store.read(sha256s)
            while block := list(itertools.islice(files, 256)):
                looks = pool.map(lambda file: images.look(file[1], self.size, self.view), block)
                for (sha256, _), (_, shown) in zip(block, looks, strict=True):
                    out[place[sha256]] = shown
        return out
