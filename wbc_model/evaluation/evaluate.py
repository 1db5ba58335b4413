"""Evaluate: any model directory on any labelled cells."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wbc_model.cells.decoded import DecodedCells, Pixels
from wbc_model.cells.manifest import NO_NAMES, Load, Source, each_file, source_of, unknown_label
from wbc_model.cells.rejections import Rejection, not_used_lines
from wbc_model.core import images
from wbc_model.core.classes import CLASS_INDEX, CLASSES
from wbc_model.core.errors import ImageRejected, WbcError, counted
from wbc_model.core.probabilities import softmax
from wbc_model.evaluation.metrics import classification_metrics, confusion_matrix
from wbc_model.evaluation.plots import plot_confusion, plot_reliability
from wbc_model.network.batch_norm_statistics import MIN_CELLS, some_cells, with_statistics_of
from wbc_model.network.model_directory import load_model
from wbc_model.network.predict import Predictions, predict
from wbc_model.network.resnet import AttentionResNet18

BATCH: Final = 128
NO_LABEL: Final = "it has no label: a column label or the name of its folder tells it"


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


def labelled_looks(
    rows: pd.DataFrame, origin: Source, size: int, view: images.View
) -> tuple[Pixels, NDArray[np.float64], NDArray[np.int64], list[Rejection]]:
    """Views (N, S, S, 3), appearances (N, 7) and class indices (N,) of a manifest's labelled rows, and the rows that cannot be
    used; N may be 0."""
    known = rows[rows["label"].isin(CLASSES)]

    def one(_place: int, load: Load) -> tuple[Pixels, NDArray[np.float64]] | ImageRejected:
        try:
            return images.look(load(), size, view)
        except ImageRejected as error:
            return error

    found = dict(each_file(origin, known["path"].tolist(), one))
    rejected, good = _without_class(rows), []
    for place, (path, label) in enumerate(known[["path", "label"]].to_numpy()):
        if isinstance(seen := found[place], ImageRejected):
            rejected.append(Rejection(path, "", seen.reason, seen.detail))
        else:
            good.append((*seen, label))
    views = np.array([view for view, *_ in good], np.uint8).reshape(-1, size, size, 3)
    shown = np.array([appearance for _, appearance, _ in good], np.float64).reshape(-1, len(images.APPEARANCE))
    return views, shown, label_indices([label for *_, label in good]), rejected


def _without_class(rows: pd.DataFrame) -> list[Rejection]:
    """The rows of a manifest that say no class."""
    said = rows.loc[~rows["label"].isin(CLASSES), ["path", "label"]].to_numpy()
    return [Rejection(path, "", "unknown_label", unknown_label(label) if label else NO_LABEL) for path, label in said]


@dataclass(frozen=True)
class Files:
    """The files of a source's labelled rows as views of one size; those that cannot be used are collected in `rejected`, by their
    position."""

    origin: Source
    paths: Sequence[str]
    size: int
    view: images.View
    rejected: dict[int, ImageRejected] = field(default_factory=dict)

    def views(self, places: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """Position and view of each usable file at these positions, in the order in which they are read fastest."""
        for at, seen in each_file(self.origin, [self.paths[place] for place in places], self._view):
            if isinstance(seen, ImageRejected):
                self.rejected[places[at]] = seen
            else:
                yield places[at], seen

    def _view(self, _at: int, load: Load) -> Pixels | ImageRejected:
        try:
            return images.preprocess(load(), self.size, self.view)
        except ImageRejected as error:
            return error

    def predictions(self, network: AttentionResNet18) -> tuple[Predictions, list[int]]:
        """What the network makes of all usable files, and the position of each; a few are in memory at a time."""
        used: list[int] = []

        def batches() -> Iterator[Pixels]:
            rest = self.views(range(len(self.paths)))
            while batch := list(itertools.islice(rest, BATCH)):
                used.extend(place for place, _ in batch)
                yield np.stack([seen for _, seen in batch])

        return predict(network, batches()), used

    def with_their_statistics(self, network: AttentionResNet18) -> AttentionResNet18:
        """The network with the batch-norm statistics of some of the files; raises WbcError for too few of them."""
        mixed = some_cells(len(self.paths), seed=0).tolist()
        some = dict(self.views(mixed))
        if len(some) < MIN_CELLS:
            few = counted(len(some), "usable image is", "usable images are")
            raise WbcError(f"{self.origin.shown}: {few} too few to measure statistics of; {MIN_CELLS} are needed")
        return with_statistics_of(network, np.stack([some[place] for place in mixed if place in some]))


def evaluate_data(
    model_directory: Path, data: Path | Source, own_statistics: bool = False, names: Mapping[str, str] = NO_NAMES
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Evaluate a model directory on a manifest, a folder per class or another source; `names` are the site's own for the classes.

    Where the manifest has test rows, these are used, else all rows. With `own_statistics` the batch-norm statistics are
    those of these images, taken without their labels, instead of the model's. Returns the metrics, with `split` and the
    `rejected` rows [{path, reason, detail}], and the prediction frame. Raises WbcError when no labelled image is usable.
    """
    network, card = load_model(model_directory)
    origin = source_of(data)
    manifest = origin.manifest(names)
    split = "test" if (manifest["split"] == "test").any() else "all"
    rows = manifest[(manifest["split"] == "test") | (split == "all")]
    labelled = rows[rows["label"].isin(CLASSES)]
    files = Files(origin, labelled["path"].tolist(), card.input_size, card.view)
    seen, used = files.predictions(files.with_their_statistics(network) if own_statistics else network)
    rejected = _without_class(rows)
    rejected += [Rejection(files.paths[at], "", why.reason, why.detail) for at, why in sorted(files.rejected.items())]
    if not used:
        raise WbcError(f"{origin.shown}: no usable labelled image: {'; '.join(not_used_lines(rejected))}")
    cells = labelled.iloc[used]
    frame = prediction_frame(cells["path"].tolist(), cells["label"].tolist(), seen, card.temperature)
    frame = frame.iloc[np.argsort(used)].reset_index(drop=True)  # an archive may be read in another order than the manifest's
    metrics = frame_metrics(frame)
    return {**metrics, "split": split, "rejected": [one.told for one in rejected]}, frame.rename(columns={"sha256": "path"})
