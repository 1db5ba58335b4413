"""Evaluate: any model directory on any labelled cells."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wbc_model.cells.decoded import DecodedCells, Pixels
from wbc_model.cells.manifest import NO_NAMES, read_cell, read_manifest, root_of
from wbc_model.core import images
from wbc_model.core.classes import CLASS_INDEX, CLASSES
from wbc_model.core.errors import ImageRejected, WbcError
from wbc_model.core.probabilities import softmax
from wbc_model.evaluation.metrics import classification_metrics, confusion_matrix
from wbc_model.evaluation.plots import plot_confusion, plot_reliability
from wbc_model.network.batch_norm_statistics import MIN_CELLS, some_cells, with_statistics_of
from wbc_model.network.model_directory import load_model
from wbc_model.network.predict import Predictions, predict
from wbc_model.network.resnet import AttentionResNet18

BATCH: Final = 128


def label_indices(labels: Sequence[str]) -> NDArray[np.int64]:
    """Class names to indices (N,)."""
    return np.array([CLASS_INDEX[label] for label in labels], dtype=np.int64)


def predict_directory(model_directory: Path, decoded: DecodedCells, cells: pd.DataFrame) -> pd.DataFrame:
    """Predict pool cells (columns sha256, label): adds `predicted` and `p_<class>`, in float32 and calibrated."""
    network, card = load_model(model_directory)
    seen = predict(network, decoded.batches(cells["sha256"].tolist(), BATCH))
    return prediction_frame(cells["sha256"].tolist(), cells["label"].tolist(), seen, card.temperature)


def prediction_frame(sha256s: Sequence[str], labels: Sequence[str], seen: Predictions, temperature: float) -> pd.DataFrame:
    """One row per cell: sha256, label, predicted, predicted_loss, p_<class> for each class."""
    probabilities = softmax(seen.logits, temperature)
    frame = pd.DataFrame({"sha256": sha256s, "label": labels})
    frame["predicted"] = [CLASSES[i] for i in probabilities.argmax(axis=1)]
    frame["predicted_loss"] = seen.predicted_loss
    for index, name in enumerate(CLASSES):
        frame[f"p_{name}"] = probabilities[:, index]
    return frame


def frame_probabilities(frame: pd.DataFrame) -> NDArray[np.float64]:
    """The probabilities (N, C) of a prediction frame."""
    return frame[[f"p_{name}" for name in CLASSES]].to_numpy(dtype=np.float64)


def frame_metrics(frame: pd.DataFrame) -> dict[str, Any]:
    """Metrics of a prediction frame."""
    return classification_metrics(frame_probabilities(frame), label_indices(frame["label"].tolist()))


def plot_frame(frame: pd.DataFrame, metrics: dict[str, Any], directory: Path, title: str) -> list[Path]:
    """Confusion matrix and reliability diagram of a prediction frame, as PNG."""
    labels = label_indices(frame["label"].tolist())
    confusion = confusion_matrix(labels, label_indices(frame["predicted"].tolist()))
    return [
        plot_confusion(confusion, directory / "confusion.png", title),
        plot_reliability(frame_probabilities(frame), labels, metrics["ece"], directory / "reliability.png", title),
    ]


def _with_statistics(network: AttentionResNet18, views: Sequence[Pixels | ImageRejected], data: Path) -> AttentionResNet18:
    good = [view for view in views if not isinstance(view, ImageRejected)]
    if len(good) < MIN_CELLS:
        raise WbcError(f"{data}: {len(good)} usable images are too few to measure statistics of; {MIN_CELLS} are needed")
    return with_statistics_of(network, np.stack(good))


def labelled_looks(
    rows: pd.DataFrame, root: Path, size: int, view: images.View
) -> tuple[Pixels, NDArray[np.float64], NDArray[np.int64]]:
    """Views (N, S, S, 3), appearances (N, 7) and class indices (N,) of a manifest's labelled rows, without those that cannot be
    used; N may be 0."""
    known = rows[rows["label"].isin(CLASSES)]

    def one(path: str) -> tuple[Pixels, NDArray[np.float64]] | None:
        try:
            return images.look(read_cell(path, root), size, view)
        except ImageRejected:
            return None

    with ThreadPoolExecutor() as pool:
        looks = list(pool.map(one, known["path"]))
    good = [(seen, label) for seen, label in zip(looks, known["label"], strict=True) if seen is not None]
    views = np.array([seen[0] for seen, _ in good], np.uint8).reshape(-1, size, size, 3)
    shown = np.array([seen[1] for seen, _ in good], np.float64).reshape(-1, len(images.APPEARANCE))
    return views, shown, label_indices([label for _, label in good])


def evaluate_data(
    model_directory: Path, data: Path, own_statistics: bool = False, names: Mapping[str, str] = NO_NAMES
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Evaluate a model directory on a manifest or a folder per class; `names` are the site's own for the classes.

    Where the manifest has test rows, these are used, else all rows. With `own_statistics` the batch-norm statistics are
    those of these images, taken without their labels, instead of the model's. Returns the metrics, with `split` and the
    `rejected` rows [{path, reason}], and the prediction frame. Raises WbcError when no labelled image is usable.
    """
    network, card = load_model(model_directory)
    manifest = read_manifest(data, names)
    split = "test" if (manifest["split"] == "test").any() else "all"
    rows = manifest[(manifest["split"] == "test") | (split == "all")]
    known = rows["label"].isin(CLASSES)
    rejected = [{"path": path, "reason": "unknown_label"} for path in rows.loc[~known, "path"]]
    used: list[int] = []
    root = root_of(data)

    def view(path: str) -> Pixels | ImageRejected:
        try:
            return images.preprocess(read_cell(path, root), card.input_size, card.view)
        except ImageRejected as error:
            return error

    def batches() -> Iterator[Pixels]:
        labelled = rows[known]
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(labelled), BATCH):
                part = labelled.iloc[start : start + BATCH]
                views = list(zip(part.index, part["path"], pool.map(view, part["path"]), strict=True))
                good = [(index, result) for index, _, result in views if not isinstance(result, ImageRejected)]
                rejected.extend({"path": path, "reason": bad.reason} for _, path, bad in views if isinstance(bad, ImageRejected))
                used.extend(index for index, _ in good)
                if good:
                    yield np.stack([result for _, result in good])

    if own_statistics:
        with ThreadPoolExecutor() as pool:
            some = list(pool.map(view, rows.loc[known, "path"].iloc[some_cells(int(known.sum()), seed=0)]))
        network = _with_statistics(network, some, data)
    seen = predict(network, batches())
    if not used:
        raise WbcError(f"{data}: no usable labelled image ({len(rejected)} rejected, first: {rejected[:1]})")
    cells = manifest.loc[used]
    frame = prediction_frame(cells["path"].tolist(), cells["label"].tolist(), seen, card.temperature)
    metrics = classification_metrics(frame_probabilities(frame), label_indices(cells["label"].tolist()))
    return {**metrics, "split": split, "rejected": rejected}, frame.rename(columns={"sha256": "path"})
