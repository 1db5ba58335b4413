"""A model calibrated for a site, from labelled cells of it: temperature, prediction sets, out-of-distribution scores, confusion.

All of them belong to the site whose cells they were fitted to. A model that came from elsewhere keeps its old site's, and so does
one that was adapted with a few labels. That ends when somebody has labelled cells of the new site that it did not learn from.
Those that were corrected and signed in the daily work will do.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flows.pipeline.stages import seen_before
from flows.workspace import label_names
from wbc_model.cells.manifest import Source, source_of
from wbc_model.cells.rejections import Rejection, not_used_lines
from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.files import building
from wbc_model.core.model_card import CARD, INT8, ONNX, README, REFERENCE, WEIGHTS, ModelCard, read_card
from wbc_model.core.probabilities import softmax
from wbc_model.evaluation.calibrate import FOLDS, MIN_CELLS, calibrated_temperature, conformal_threshold, fit_out_of_distribution
from wbc_model.evaluation.evaluate import BATCH, labelled_looks
from wbc_model.evaluation.leakage import digests
from wbc_model.evaluation.metrics import classification_metrics
from wbc_model.evaluation.reference import reference_of
from wbc_model.network.card_page import write_card
from wbc_model.network.model_directory import load_model, with_reference
from wbc_model.network.predict import Predictions, predict

Labels = NDArray[np.int64]
Sets = NDArray[np.bool_]
VERSION_DIGITS: Final = 6
MODEL_FILES: Final = (WEIGHTS, ONNX, CARD, README, REFERENCE, *INT8)


def calibrate(model: Path, data: Path | Source, out: Path) -> dict[str, Any]:
    """Write a copy of a model directory to `out`, calibrated on labelled cells; the network stays as it is.

    Of `data`, a manifest, a folder per class or another source, the rows of the split `val` are used where there are such, else
    all. The version gets a suffix, so that answers and audit log tell the calibrations apart. Returns what changed. Raises
    WbcError for fewer than MIN_CELLS usable cells, for cells of one class, and where no temperature fits them best. It is raised,
    too, where `out` holds anything but what the same call wrote there.
    """
    _check_out(out, model)
    network, card = load_model(model)
    origin = source_of(data)
    manifest = origin.manifest(label_names())
    rows = manifest[manifest["split"] == "val"] if (manifest["split"] == "val").any() else manifest
    views, appearance, labels, rejected = labelled_looks(rows, origin, card.input_size, card.view)
    _check(labels, origin, rejected)
    seen = predict(network, [views[start : start + BATCH] for start in range(0, len(views), BATCH)], embeddings=True)
    new = _calibrated(card, seen, labels, appearance, origin)
    used = digests(rows[rows["label"].isin(CLASSES)], origin)
    fitted = CellFilter.of(used["sha256"].tolist(), used["label"].tolist())
    if "validation" in card.cells:
        fitted = card.cells["validation"].plus(fitted)
    new = new.model_copy(update={"cells": {**card.cells, "validation": fitted}})
    with building(out) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
        new = with_reference(folder, new, reference_of(new, views, appearance, seen))
        write_card(folder, new)
        _refuse_other(out, folder, new)
    old_sets = prediction_sets(softmax(seen.logits, card.temperature), card.conformal_threshold)
    new_sets = cross_fitted_sets(seen, labels, card.conformal_coverage)
    return {
        "model": str(out),
        "version": new.version,
        "cells": len(labels),
        "without": [name for place, name in enumerate(CLASSES) if not (labels == place).any()],
        "rejected": len(rejected),
        "rejections": [one.told for one in rejected],
        "split": "val" if (rows["split"] == "val").all() else "all",
        "seen_before": seen_before(card, used["sha256"].tolist()),
        "temperature": {"before": card.temperature, "after": new.temperature},
        "coverage": {
            "stated": card.conformal_coverage,
            "before": _covered(old_sets, labels),
            "after": _covered(new_sets, labels),
        },
        "classes_in_a_set": {"before": float(old_sets.sum(axis=1).mean()), "after": float(new_sets.sum(axis=1).mean())},
        "knows_the_site": new.out_of_distribution is not None,
    }


def _check(labels: Labels, origin: Source, rejected: list[Rejection]) -> None:
    if len(labels) < MIN_CELLS:
        more = "".join(f"; {line}" for line in not_used_lines(rejected))
        few = counted(len(labels), "usable labelled cell is", "usable labelled cells are")
        raise WbcError(f"{origin.shown}: {few} too few to calibrate on; {MIN_CELLS} are needed{more}")
    if len(present := np.unique(labels)) < 2:
        only = f"all {counted(len(labels), 'usable cell')} are labelled {CLASSES[present[0]]}"
        raise WbcError(
            f"{origin.shown}: {only}, and one class tells nothing of how classes are confused; add labelled cells of others"
        )


def _refuse_other(out: Path, built: Path, card: ModelCard) -> None:
    """Raises WbcError where `out` holds another model, another calibration, or a file that somebody changed."""
    if (out / CARD).is_file() and (there := read_card(out, verify=False)).version != card.version:
        what = f"{out} holds model {there.version}, and this would be {card.version}"
        raise WbcError(f"{what}: give --out another name, or move it away")
    for path in sorted(out.iterdir()) if out.exists() else ():
        same = built / path.name
        if not same.is_file() or _content(same) != _content(path):
            raise WbcError(f"{path} is not what was written there: give --out another name, or move it away")


def _content(path: Path) -> bytes | ModelCard:
    """What a file says; a card's keys may have had other names when it was written."""
    return read_card(path.parent, verify=False) if path.name == CARD else path.read_bytes()


def _check_out(out: Path, model: Path) -> None:
    """Raises WbcError where `out` holds what is no part of a model directory."""
    if out.resolve() == model.resolve():
        raise WbcError(f"{out} is the model itself, which is not changed: give --out another name")
    if not out.exists():
        return
    others = [out.name] if not out.is_dir() else sorted({path.name for path in out.iterdir()} - set(MODEL_FILES))
    if others:
        raise WbcError(f"{out} holds {others[0]}, which is no part of a model directory: give --out another name")


def _calibrated(card: ModelCard, seen: Predictions, labels: Labels, appearance: NDArray[np.float64], origin: Source) -> ModelCard:
    temperature, why_not = calibrated_temperature(seen.logits, labels)
    if why_not:
        raise WbcError(f"{origin.shown}: {why_not}; calibrate on more cells, whose labels are checked")
    probabilities = softmax(seen.logits, temperature)
    new = card.model_copy(
        update={
            "temperature": temperature,
            "uncalibrated": "",
            "conformal_threshold": conformal_threshold(probabilities, labels, card.conformal_coverage),
            "out_of_distribution": fit_out_of_distribution(seen, labels, appearance),
            "calibrated_on": f"{counted(len(labels), 'cell')} of {origin.name}",
            "metrics": {**card.metrics, "validation": classification_metrics(probabilities, labels)},
        }
    )
    numbers = {"temperature", "conformal_threshold", "out_of_distribution", "calibrated_on"}
    fitted = new.model_dump_json(include=numbers, by_alias=True)
    suffix = hashlib.sha256(fitted.encode()).hexdigest()[:VERSION_DIGITS]
    return new.model_copy(update={"version": f"{card.version.split('+')[0]}+{suffix}"})


def prediction_sets(probabilities: NDArray[np.float64], threshold: float) -> Sets:
    """Which classes (N, C) are in each cell's prediction set: those over the threshold, and the likeliest."""
    likeliest = np.eye(probabilities.shape[1], dtype=bool)[probabilities.argmax(axis=1)]
    sets: Sets = (probabilities >= threshold) | likeliest
    return sets


def cross_fitted_sets(seen: Predictions, labels: Labels, coverage: float) -> Sets:
    """Prediction sets (N, C) of each fifth of the cells by a calibration on the other four: what cells will get that it was not
    fitted to."""
    fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    sets = np.zeros(seen.logits.shape, bool)
    for number in range(FOLDS):
        rest, out = fold != number, fold == number
        temperature, _ = calibrated_temperature(seen.logits[rest], labels[rest])
        threshold = conformal_threshold(softmax(seen.logits[rest], temperature), labels[rest], coverage)
        sets[out] = prediction_sets(softmax(seen.logits[out], temperature), threshold)
    return sets


def _covered(sets: Sets, labels: Labels) -> float:
    return float(sets[np.arange(len(labels)), labels].mean())
