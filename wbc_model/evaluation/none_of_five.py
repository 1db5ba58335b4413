"""The test of the out-of-distribution score: how many cells it flags that people call none of the five classes, and how many of
the others."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wbc_model.cells.decoded import DecodedCells
from wbc_model.core.out_of_distribution import cell_score, site_score
from wbc_model.evaluation.evaluate import BATCH
from wbc_model.evaluation.metrics import exact_limits
from wbc_model.network.model_directory import load_model
from wbc_model.network.predict import predict

MOST_OTHERS: Final = 1000  # cells of the test pool that are scored beside them: enough for limits of about a percent


def flagged_cells(model_directory: Path, decoded: DecodedCells, cells: pd.DataFrame, test: pd.DataFrame) -> dict[str, Any]:
    """How many cells the service would flag, as unlike the classes or unlike the site: of `cells` (columns sha256, answer), which
    are none of the five classes, and of the `test` pool (column sha256), where each is a false alarm.

    `none_of_five` and `test` have `n`, `flagged` (the share) and `interval`, its exact 95 % limits. `by_answer` has the first two
    for each answer. A model without an out-of-distribution score has `n` only.
    """
    others = test["sha256"].sort_values().head(MOST_OTHERS).tolist()
    flags = _flags(model_directory, decoded, [*cells["sha256"], *others])
    if flags is None:
        return {"none_of_five": {"n": len(cells)}}
    found = flags[: len(cells)]
    answers = cells["answer"].to_numpy()
    by_answer = {
        str(answer): {"n": int((answers == answer).sum()), "flagged": float(found[answers == answer].mean())}
        for answer in sorted(set(answers))
    }
    return {"none_of_five": {**_share(found), "by_answer": by_answer}, "test": _share(flags[len(cells) :])}


def _flags(model_directory: Path, decoded: DecodedCells, sha256s: list[str]) -> NDArray[np.bool_] | None:
    network, card = load_model(model_directory)
    known = card.out_of_distribution
    if known is None:
        return None
    seen, shown = predict(network, decoded.batches(sha256s, BATCH)), decoded.appearance(sha256s)
    flags: NDArray[np.bool_] = cell_score(known, seen.logits, shown) > known.cell_threshold
    return flags | (site_score(known, shown) > known.site_threshold)


def _share(flags: NDArray[np.bool_]) -> dict[str, Any]:
    return {"n": len(flags), "flagged": float(flags.mean()), "interval": exact_limits(int(flags.sum()), len(flags))}
