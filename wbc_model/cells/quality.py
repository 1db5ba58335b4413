"""Measuring the stored images: what the data checks judge a crop by, computed once per shard and kept.

The sharpness and the small grey view are taken at 64 x 64 pixels, whatever the crop's size. One threshold fits cameras of
different resolution.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wbc_model.cells.store import ImageStore, intact, stream
from wbc_model.code_version import code_version
from wbc_model.core.errors import ImageRejected
from wbc_model.core.images import decode
from wbc_model.core.twins import VIEW, find_landmarks, perceptual_hashes, small_view


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


def measure_store(store: ImageStore, cache: Path) -> pd.DataFrame:
    """A row per stored cell in store order: sha256, the columns of `measure`, and `damage`. That is empty, or says why the image
    cannot be used any more.

    Measurements are kept in `cache`, a Parquet file per shard. A shard whose bytes are not those it was named by is measured anew
    each time: damage is seen and pinned to its cells.
    """
    version = code_version(_measure_stored)
    frames = []
    for shard in store.shards():
        kept = cache / f"quality-{shard.stem}-{version}.parquet"
        whole = intact(shard)
        if whole and kept.is_file():
            frames.append(pd.read_parquet(kept))
            continue
        table = pa.Table.from_pandas(pd.DataFrame(_measure_shard(shard)), schema=_SCHEMA, preserve_index=False)
        if whole:
            _keep(table, kept)
        frames.append(table.to_pandas())
    if not frames:
        return pd.DataFrame(columns=_SCHEMA.names)
    return pd.concat(frames, ignore_index=True).drop_duplicates("sha256").reset_index(drop=True)


_SCHEMA: Final = pa.schema(
    [("sha256", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("format", pa.string()), ("mode", pa.string())]
    + [(name, pa.float64()) for name in ("brightness", "contrast", "sharpness")]
    + [("pixels", pa.string()), ("view", pa.binary()), ("landmarks", pa.binary()), ("hashes", pa.binary())]
    + [("damage", pa.string())]
)
_NOTHING: Final = {
    "width": 0,
    "height": 0,
    "format": "",
    "mode": "",
    "brightness": 0.0,
    "contrast": 0.0,
    "sharpness": 0.0,
    "pixels": "",
    "view": bytes(VIEW * VIEW),
    "landmarks": b"",
    "hashes": b"",
}


def _keep(table: Any, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    for old in kept.parent.glob(f"{kept.name.rsplit('-', 1)[0]}-*.parquet"):
        old.unlink()
    temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
    pq.write_table(table, temporary)
    temporary.replace(kept)


def _measure_shard(shard: Path) -> Iterator[dict[str, Any]]:
    """Measure in threads, in order, a few images in memory at a time."""
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[dict[str, Any]]] = deque()
        for image in stream(shard):
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
