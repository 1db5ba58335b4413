"""Finding the same cell twice among the pools' images; how, is in wbc_model/core/twins.py."""

import numpy as np
import pandas as pd

from wbc_model.core.twins import Crops, Pair, alike


def near_duplicates(measured: pd.DataFrame, max_bits: int, min_correlation: float) -> list[Pair]:
    """All pairs among the rows of `measured` (columns view, landmarks, hashes, width, height of `quality.measure`), as
    `twins.alike`."""
    sizes = measured[["height", "width"]].to_numpy(np.float64)
    crops = Crops(measured["view"].tolist(), measured["landmarks"].tolist(), measured["hashes"].tolist(), sizes)
    return alike(crops, max_bits, min_correlation)
