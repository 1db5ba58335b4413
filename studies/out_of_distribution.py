"""What the out-of-distribution scores are worth: on cells that are no leukocytes, at other sites, and for review.

    python studies/out_of_distribution.py MODEL_DIR DATA_FOLDER --out studies/doubt

DATA_FOLDER holds pbc.csv, whose test split is the model's own site, pbc_other.csv (path, kind: no leukocytes) and the other
sites' lisc.csv and bccd.csv. Made here: scans of text, blank crops, and home's cells in another stain.
Nothing is fitted here: densities and thresholds are those of the model's card.
"""

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import roc_auc_score

from wbc_model.core.classes import CLASS_INDEX
from wbc_model.core.errors import WbcError
from wbc_model.core.images import look
from wbc_model.core.out_of_distribution import OutOfDistribution, cell_score, site_score
from wbc_model.core.probabilities import softmax
from wbc_model.network.model_directory import load_model
from wbc_model.network.predict import predict

Floats = NDArray[np.float64]


MADE = 100  # images of each kind


def text_scan(rng: np.random.Generator) -> Image.Image:
    """A crop of a printed page."""
    page = Image.new("RGB", (320, 320), "white")
    letters = list("abcdefghijklmnopqrstuvwxyz 0123456789")
    font = ImageFont.load_default(int(rng.integers(12, 40)))
    for y in range(0, 320, 36):
        ImageDraw.Draw(page).text((rng.integers(0, 20), y), "".join(rng.choice(letters, 40)), fill="black", font=font)
    return page


def blank(rng: np.random.Generator) -> Image.Image:
    """Smear without a cell, or the black frame of a lens."""
    colour = rng.uniform([200, 180, 190], [250, 230, 240]) if rng.random() < 0.7 else rng.uniform(0, 30, 3)
    return Image.fromarray((colour + rng.normal(0, 4, (320, 320, 3))).clip(0, 255).astype(np.uint8))


def other_stain(image: Image.Image) -> Image.Image:
    """The cell as if its dyes absorbed other colours: the channels' optical densities go round."""
    return Image.fromarray(np.roll(np.asarray(image.convert("RGB")), 1, axis=2))


def encoded(image: Image.Image) -> bytes:
    """As a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def made(home: Sequence[Path]) -> dict[str, list[bytes]]:
    """Files of things that are no cell of this site."""
    rng = np.random.default_rng(0)
    cells = [home[at] for at in rng.choice(len(home), MADE, replace=False)]
    return {
        "text scans": [encoded(text_scan(rng)) for _ in range(MADE)],
        "blank crops": [encoded(blank(rng)) for _ in range(MADE)],
        "another stain": [encoded(other_stain(Image.open(path))) for path in cells],
    }


def seen(model: Path, known: OutOfDistribution, root: Path, frame: pd.DataFrame) -> dict[str, Any]:
    """Probabilities, surprises and labels of the cells of a manifest."""
    result = seen_files(model, known, [(root / path).read_bytes() for path in frame["path"]])
    if "label" in frame:
        result["labels"] = np.array([CLASS_INDEX[label] for label in frame["label"]])
    return result


def seen_files(model: Path, known: OutOfDistribution, files: Sequence[bytes]) -> dict[str, Any]:
    """Probabilities and surprises of images."""
    network, card = load_model(model)
    looks = [look(data, card.input_size, card.view) for data in files]
    predictions = predict(network, [np.stack([view for view, _ in looks[i : i + 128]]) for i in range(0, len(looks), 128)])
    shown = np.stack([appearance for _, appearance in looks])
    return {
        "probabilities": softmax(predictions.logits, card.temperature),
        "cell": cell_score(known, predictions.logits, shown),
        "site": site_score(known, shown),
        "loss": predictions.predicted_loss,
    }


def risk_coverage(cells: dict[str, Any], known: OutOfDistribution) -> tuple[Floats, Floats]:
    """Share sent to review, and accuracy of the rest: cells of unknown sites and no leukocytes go first, then the least sure."""
    confidence = cells["probabilities"].max(axis=1)
    hard = (cells["cell"] > known.cell_threshold) | (cells["site"] > known.site_threshold)
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
    known = card.out_of_distribution
    if known is None:
        raise WbcError(f"{given.model}: the card has no out-of-distribution scores; train the model again")
    frames = {name: pd.read_csv(given.data / f"{name}.csv") for name in ("pbc", "pbc_other", "lisc", "bccd")}
    home = seen(given.model, known, given.data, frames["pbc"].query("split == 'test'"))
    other = seen(given.model, known, given.data, frames["pbc_other"])
    sites = {name: seen(given.model, known, given.data, frames[name]) for name in ("lisc", "bccd")}

    def auroc(which: NDArray[np.bool_]) -> float:
        scores = np.nan_to_num(np.concatenate([home["cell"], other["cell"][which]]), posinf=1e9)
        return float(roc_auc_score(np.r_[np.zeros(len(home["cell"])), np.ones(which.sum())], scores))

    kinds = frames["pbc_other"]["kind"].to_numpy()
    flagged = other["cell"] > known.cell_threshold
    result: dict[str, Any] = {
        "model": card.version,
        "home_cells": len(home["cell"]),
        "home_false_alarms": {
            "not_a_leukocyte": float((home["cell"] > known.cell_threshold).mean()),
            "site_unknown": float((home["site"] > known.site_threshold).mean()),
        },
        "not_a_leukocyte_auroc": {
            "all": auroc(np.ones(len(kinds), bool)),
            **{kind: auroc(kinds == kind) for kind in sorted(set(kinds))},
        },
        "not_a_leukocyte_found": {kind: float(flagged[kinds == kind].mean()) for kind in sorted(set(kinds))},
        "site_unknown_found": {name: float((cells["site"] > known.site_threshold).mean()) for name, cells in sites.items()},
    }
    result["made_flagged"] = {}
    paths = [given.data / path for path in frames["pbc"].query("split == 'test'")["path"]]
    for name, files in made(paths).items():
        cells = seen_files(given.model, known, files)
        flagged = (cells["cell"] > known.cell_threshold) | (cells["site"] > known.site_threshold)
        result["made_flagged"][name] = float(flagged.mean())
    sets = home["probabilities"] >= card.conformal_threshold
    result["conformal"] = {
        "stated": card.conformal_coverage,
        "measured": float(sets[np.arange(len(sets)), home["labels"]].mean()),
        "mean_size": float(sets.sum(axis=1).mean()),
    }
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    result["area_of_error_over_review"] = {}
    for name, cells in {"own site": home, **sites}.items():
        share, accuracy = risk_coverage(cells, known)
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
