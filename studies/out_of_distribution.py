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

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import roc_auc_score

from flows.studies.results import claim, publishing
from flows.workspace import find_workspace
from wbc_model.core.classes import CLASS_INDEX
from wbc_model.core.errors import WbcError
from wbc_model.core.images import look
from wbc_model.core.model_card import ModelCard
from wbc_model.core.out_of_distribution import OutOfDistribution, cell_score, site_score
from wbc_model.core.probabilities import softmax
from wbc_model.evaluation.plots import BLUE, GREEN, PERCENT, RED, head, in_percent, legend_below, plain, save_figure
from wbc_model.network.model_directory import load_model
from wbc_model.network.predict import predict

Floats = NDArray[np.float64]

MADE = 100  # images of each kind
RESULT, CURVE = "doubt.json", "risk-coverage.png"


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


def found(home: dict[str, Any], other: dict[str, Any], kinds: NDArray[Any], known: OutOfDistribution) -> dict[str, Any]:
    """How well cells that are no leukocytes are told from home's, all and by kind, and how many of home's are flagged."""

    def auroc(which: NDArray[np.bool_]) -> float:
        scores = np.nan_to_num(np.concatenate([home["cell"], other["cell"][which]]), posinf=1e9)
        return float(roc_auc_score(np.r_[np.zeros(len(home["cell"])), np.ones(which.sum())], scores))

    names, flagged = sorted(set(kinds)), other["cell"] > known.cell_threshold
    return {
        "home_cells": len(home["cell"]),
        "home_false_alarms": {
            "not_a_leukocyte": float((home["cell"] > known.cell_threshold).mean()),
            "site_unknown": float((home["site"] > known.site_threshold).mean()),
        },
        "not_a_leukocyte_auroc": {"all": auroc(np.ones(len(kinds), bool)), **{kind: auroc(kinds == kind) for kind in names}},
        "not_a_leukocyte_found": {kind: float(flagged[kinds == kind].mean()) for kind in names},
    }


def made_flagged(model: Path, known: OutOfDistribution, home: Sequence[Path]) -> dict[str, float]:
    """Which share of the images made here is flagged, by kind."""
    shares = {}
    for name, files in made(home).items():
        cells = seen_files(model, known, files)
        shares[name] = float(((cells["cell"] > known.cell_threshold) | (cells["site"] > known.site_threshold)).mean())
    return shares


def prediction_sets(home: dict[str, Any], card: ModelCard) -> dict[str, float | None]:
    """The coverage that the card states, the measured one, and how many classes a set holds."""
    sets = home["probabilities"] >= card.conformal_threshold
    measured = float(sets[np.arange(len(sets)), home["labels"]].mean())
    return {"stated": card.conformal_coverage, "measured": measured, "mean_size": float(sets.sum(axis=1).mean())}


def plot(curves: dict[str, tuple[Floats, Floats]], model: str, path: Path) -> None:
    """Accuracy of the cells that are not sent to review, against the share that is sent."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for (name, (share, accuracy)), colour, line in zip(curves.items(), (BLUE, RED, GREEN), ("-", "--", "-."), strict=False):
        axes.plot(share, accuracy, line, color=colour, label=f"{name} ({len(share):,} cells)")
    axes.set(xlabel="sent to review", ylabel="accuracy of the rest", ylim=(0, 1.02))
    axes.xaxis.set_major_formatter(PERCENT)
    plain(axes)
    in_percent(axes)
    legend_below(figure, columns=3)
    head(figure, f"What review buys, model {model}")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    try:
        claim([given.out / name for name in (RESULT, CURVE)], find_workspace())
        result, curves = measured(given.model, given.data)
        with publishing(given.out) as folder:
            plot(curves, result["model"], folder / CURVE)
            (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    except WbcError as error:
        raise SystemExit(str(error)) from None
    print(json.dumps(result, indent=2))


def measured(model: Path, data: Path) -> tuple[dict[str, Any], dict[str, tuple[Floats, Floats]]]:
    """All numbers of a model, and its curves of accuracy over review by site."""
    _, card = load_model(model)
    known = card.out_of_distribution
    if known is None:
        raise WbcError(f"{model}: the card has no out-of-distribution scores; train the model again")
    frames = {name: pd.read_csv(data / f"{name}.csv") for name in ("pbc", "pbc_other", "lisc", "bccd")}
    test = frames["pbc"].query("split == 'test'")
    home, other = seen(model, known, data, test), seen(model, known, data, frames["pbc_other"])
    sites = {name: seen(model, known, data, frames[name]) for name in ("lisc", "bccd")}
    curves = {name: risk_coverage(cells, known) for name, cells in {"own site": home, **sites}.items()}
    result = {
        "model": card.version,
        **found(home, other, frames["pbc_other"]["kind"].to_numpy(), known),
        "site_unknown_found": {name: float((cells["site"] > known.site_threshold).mean()) for name, cells in sites.items()},
        "made_flagged": made_flagged(model, known, [data / path for path in test["path"]]),
        "conformal": prediction_sets(home, card),
        "area_of_error_over_review": {name: float((1 - accuracy).mean()) for name, (_, accuracy) in curves.items()},
    }
    return result, curves


if __name__ == "__main__":
    main()
