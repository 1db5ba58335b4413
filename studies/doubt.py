"""What the service's doubt is worth: cells that are no leukocytes, other sites, prediction sets, and what review buys.

    python studies/doubt.py MODEL_DIR DATA_FOLDER --out studies/doubt

DATA_FOLDER holds pbc.csv, whose test split is the model's own site, pbc_other.csv (path, kind: no leukocytes) and the other
sites' lisc.csv and bccd.csv. Nothing is fitted here: densities and thresholds are those of the model's card.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from wbc_model.classes import CLASS_INDEX
from wbc_model.doubt import Doubt, cell_surprise, site_surprise
from wbc_model.errors import WbcError
from wbc_model.export import load_model
from wbc_model.images import look
from wbc_model.predict import predict
from wbc_model.probabilities import softmax

Floats = NDArray[np.float64]


def seen(model: Path, doubt: Doubt, root: Path, frame: pd.DataFrame) -> dict[str, Any]:
    """Probabilities, surprises and labels of the cells of a manifest."""
    network, card = load_model(model)
    looks = [look((root / path).read_bytes(), card.input_size, card.view) for path in frame["path"]]
    predictions = predict(network, [np.stack([view for view, _ in looks[i : i + 128]]) for i in range(0, len(looks), 128)])
    shown = np.stack([appearance for _, appearance in looks])
    result: dict[str, Any] = {
        "probabilities": softmax(predictions.logits, card.temperature),
        "cell": cell_surprise(doubt, predictions.logits, shown),
        "site": site_surprise(doubt, shown),
        "loss": predictions.predicted_loss,
    }
    if "label" in frame:
        result["labels"] = np.array([CLASS_INDEX[label] for label in frame["label"]])
    return result


def risk_coverage(cells: dict[str, Any], doubt: Doubt) -> tuple[Floats, Floats]:
    """Share sent to review, and accuracy of the rest: cells of unknown sites and no leukocytes go first, then the least sure."""
    confidence = cells["probabilities"].max(axis=1)
    hard = (cells["cell"] > doubt.cell_threshold) | (cells["site"] > doubt.site_threshold)
    order = np.lexsort((confidence, ~hard))  # the last key sorts first
    right = (cells["probabilities"].argmax(axis=1) == cells["labels"])[order]
    kept = np.arange(len(right), 0, -1)
    return 1 - kept / len(right), np.cumsum(right[::-1])[::-1] / kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    _, card = load_model(given.model)
    doubt = card.doubt
    if doubt is None:
        raise WbcError(f"{given.model}: the card has no doubt; train the model again")
    frames = {name: pd.read_csv(given.data / f"{name}.csv") for name in ("pbc", "pbc_other", "lisc", "bccd")}
    home = seen(given.model, doubt, given.data, frames["pbc"].query("split == 'test'"))
    other = seen(given.model, doubt, given.data, frames["pbc_other"])
    sites = {name: seen(given.model, doubt, given.data, frames[name]) for name in ("lisc", "bccd")}

    def auroc(which: NDArray[np.bool_]) -> float:
        scores = np.nan_to_num(np.concatenate([home["cell"], other["cell"][which]]), posinf=1e9)
        return float(roc_auc_score(np.r_[np.zeros(len(home["cell"])), np.ones(which.sum())], scores))

    kinds = frames["pbc_other"]["kind"].to_numpy()
    flagged = other["cell"] > doubt.cell_threshold
    result: dict[str, Any] = {
        "model": card.version,
        "home_cells": len(home["cell"]),
        "home_false_alarms": {
            "not_a_leukocyte": float((home["cell"] > doubt.cell_threshold).mean()),
            "site_unknown": float((home["site"] > doubt.site_threshold).mean()),
        },
        "not_a_leukocyte_auroc": {
            "all": auroc(np.ones(len(kinds), bool)),
            **{kind: auroc(kinds == kind) for kind in sorted(set(kinds))},
        },
        "not_a_leukocyte_found": {kind: float(flagged[kinds == kind].mean()) for kind in sorted(set(kinds))},
        "site_unknown_found": {name: float((cells["site"] > doubt.site_threshold).mean()) for name, cells in sites.items()},
    }
    sets = home["probabilities"] >= card.conformal_threshold
    result["conformal"] = {
        "stated": card.conformal_coverage,
        "measured": float(sets[np.arange(len(sets)), home["labels"]].mean()),
        "mean_size": float(sets.sum(axis=1).mean()),
    }
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    result["area_of_error_over_review"] = {}
    for name, cells in {"own site": home, **sites}.items():
        share, accuracy = risk_coverage(cells, doubt)
        result["area_of_error_over_review"][name] = float((1 - accuracy).mean())
        axes.plot(100 * share, 100 * accuracy, label=f"{name} ({len(share)} cells)")
    axes.set(xlabel="sent to review, %", ylabel="accuracy of the rest, %", title=f"What review buys, model {card.version}")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    given.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out / "risk-coverage.png", dpi=120)
    (given.out / "doubt.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
