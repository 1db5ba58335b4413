"""Which cells a model has seen, small enough for its card: five bytes of each cell's sha256 and its class.

Whoever has a model directory and some cells can tell which of them it learned from, and which labels are different by now. Of
2 ** 40 / N cells that it never saw, one is taken for a known one, where N cells are in the filter. No image can be had from it.
"""

import base64
from collections.abc import Sequence
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from wbc_model.core.classes import CLASS_INDEX, CLASSES

_BYTES: Final = 5


def _prefixes(sha256s: Sequence[str]) -> NDArray[np.uint64]:
    return np.array([int(sha256[: 2 * _BYTES], 16) for sha256 in sha256s], np.uint64)


class CellFilter(BaseModel):
    """`prefixes`: base64 of the first five bytes of every sha256, sorted. `labels`: base64 of a byte each, the class's index."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    count: int
    prefixes: str
    labels: str

    @classmethod
    def of(cls, sha256s: Sequence[str], labels: Sequence[str]) -> Self:
        """The filter of these cells, the same whatever their order."""
        rows = sorted(zip((sha256[: 2 * _BYTES] for sha256 in sha256s), (CLASS_INDEX[label] for label in labels), strict=True))
        prefixes = b"".join(bytes.fromhex(prefix) for prefix, _ in rows)
        return cls(
            count=len(rows),
            prefixes=base64.b64encode(prefixes).decode(),
            labels=base64.b64encode(bytes(index for _, index in rows)).decode(),
        )

    def plus(self, other: Self) -> Self:
        """The cells of both; of a cell that both know, the label of `other`."""
        rows = {**self._rows(), **other._rows()}
        prefixes = b"".join(prefix for prefix, _ in sorted(rows.items()))
        labels = bytes(label for _, label in sorted(rows.items()))
        names = {"prefixes": base64.b64encode(prefixes).decode(), "labels": base64.b64encode(labels).decode()}
        return type(self)(count=len(rows), **names)

    def _rows(self) -> dict[bytes, int]:
        raw, labels = base64.b64decode(self.prefixes), base64.b64decode(self.labels)
        return {raw[_BYTES * place : _BYTES * (place + 1)]: label for place, label in enumerate(labels)}

    def _known(self) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        raw = np.frombuffer(base64.b64decode(self.prefixes), np.uint8).reshape(-1, _BYTES).astype(np.uint64)
        shifts = np.arange(_BYTES - 1, -1, -1, dtype=np.uint64) * np.uint64(8)
        return (raw << shifts).sum(axis=1, dtype=np.uint64), np.frombuffer(base64.b64decode(self.labels), np.uint8)

    def knows(self, sha256s: Sequence[str]) -> NDArray[np.bool_]:
        """Which of these cells (N,) are in the filter."""
        known: NDArray[np.bool_] = np.isin(_prefixes(sha256s), self._known()[0])
        return known

    def relabelled(self, sha256s: Sequence[str], labels: Sequence[str]) -> NDArray[np.bool_]:
        """Which of these cells (N,) are in the filter with another class than the label given here, which may be none of them."""
        prefixes, classes = self._known()
        if not len(prefixes) or not len(sha256s):
            return np.zeros(len(sha256s), bool)
        wanted = _prefixes(sha256s)
        place = np.minimum(np.searchsorted(prefixes, wanted), len(prefixes) - 1)
        other = classes[place] != np.array([CLASS_INDEX.get(label, len(CLASSES)) for label in labels], np.uint8)
        result: NDArray[np.bool_] = (prefixes[place] == wanted) & other
        return result
