"""The test of the out-of-distribution score: cells that people call none of the five classes, and how many of them it flags."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wbc_model.cells.decoded import DecodedCells
from wbc_model.core.out_of_distribution import cell_score, site_score
from wbc_model.evaluation.evaluate import BATCH
from wbc_model.evaluation.metrics import exact_limits
from wbc_model.network.model_directory import load_model
from wbc_model.network.predict import predict


def flagged_cells(model_directory: Path, decoded: DecodedCells, cells: pd.DataFrame) -> dict[str, Any]:
    """How many of these cells (columns sha256, answer) the service would flag, as unlike the classes or unlike the site.

    `n`; `flagged`, the share; `interval`, its exact 95 % limits; `by_answer`, for each answer `n` and `flagged`. A model without
    an out-of-distribution score has `n` only.
    """
    network, card = load_model(model_directory)
    known, sha256s = card.out_of_distribution, cells["sha256"].tolist()
    if known is None:
        return {"n": len(cells)}
    seen = predict(network, decoded.batches(sha256s, BATCH))
    shown = decoded.appearance(sha256s)
    flagged = (cell_score(known, seen.logits, shown) > known.cell_threshold) | (site_score(known, shown) > known.site_threshold)
    by_answer = {
        str(answer): {"n": len(rows), "flagged": float(flagged[rows.index.to_numpy()].mean())}
        for answer, rows in cells.reset_index(drop=True).groupby("answer", sort=True)
    }
    return {
        "n": len(cells),
        "flagged": float(np.mean(flagged)),
        "interval": exact_limits(int(flagged.sum()), len(cells)),
        "by_answer": by_answer,
    }
