"""The labelled cells that a training learns from or is validated on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wbc_model.cells.decoded import DecodedCells
from wbc_model.core.classes import CLASS_INDEX
from wbc_model.core.errors import WbcError, counted

VALIDATION_BATCH: Final = 128


@dataclass(frozen=True)
class LabelledCells:
    """Decoded cells and their class indices: `images` uint8 (N, S, S, 3), `labels` int64 (N,), `sha256s` in the same order."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    sha256s: tuple[str, ...]

    @classmethod
    def load(cls, decoded: DecodedCells, sha256s: Sequence[str], labels: Sequence[str]) -> "LabelledCells":
        """The cells with these digests and these class names."""
        indices = np.array([CLASS_INDEX[label] for label in labels], dtype=np.int64)
        return cls(decoded.read(sha256s), indices, tuple(sha256s))

    def __add__(self, more: "LabelledCells") -> "LabelledCells":
        return LabelledCells(
            np.concatenate([self.images, more.images]),
            np.concatenate([self.labels, more.labels]),
            self.sha256s + more.sha256s,
        )

    def batches(self) -> list[NDArray[np.uint8]]:
        """The images, VALIDATION_BATCH at a time."""
        return [self.images[i : i + VALIDATION_BATCH] for i in range(0, len(self.images), VALIDATION_BATCH)]


def check_trainable(labelled: LabelledCells, validation: LabelledCells) -> None:
    """Raises WbcError when there is too little to learn from or to validate on."""
    if len(np.unique(labelled.labels)) < 2:
        few = f"the labelled pool has {counted(len(labelled.labels), 'cell')} of fewer than two classes"
        raise WbcError(f"{few}: label more cells first (before there is a model, `wbc query --count 30` says which)")
    if len(validation.labels) == 0:
        raise WbcError(
            "the validation pool is empty, and training needs it to choose the best weights and to calibrate: ingest labelled "
            "cells with the split val"
        )
