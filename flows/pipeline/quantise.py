"""The network in int8: post-training quantisation, and the gate that it must pass before it is served.

`wbc package` asks it of every candidate (flows/pipeline/package.py). Of any other model directory, and with the speed measured:

    python -m flows.pipeline.quantise MODEL_DIR DATA

NNCF calibrates on validation cells. The int8 graph joins the model directory only where it is as good on the test cells. Its
accuracy must be within 0.2 points of the float32 graph's, and every class's recall within 0.5. The command also asks that on this
processor it is at least 1.3 times as fast as what would be served without it. The gate judges what the service answers: what the
int8 graph is unsure of is computed again in float32 (serving/inference/classify.py), and that counts in the time too. See
docs/decisions/024.
"""

import argparse
import contextlib
import itertools
import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flows.workspace import label_names
from serving.inference.classify import Classifier
from serving.inference.engine import OpenVinoEngine, silent_openvino, thread_count
from wbc_model.cells.manifest import Source
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.files import file_sha256, replace_directory
from wbc_model.core.images import View
from wbc_model.core.model_card import INT8, ONNX, read_card
from wbc_model.evaluation.evaluate import labelled_looks
from wbc_model.network.card_page import write_card
from wbc_model.sources.opened import open_source

ACCURACY_POINTS: Final = 0.2
RECALL_POINTS: Final = 0.5
FASTER: Final = 1.3
CALIBRATION_CELLS: Final = 300
TIMED_CELLS: Final = 128
BATCH: Final = OpenVinoEngine.chunk
Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Verdict:
    """What the gate found; `reasons` is empty where int8 passes. Points are float32's minus int8's, percent. `speedup` is None
    where it was not measured."""

    cells: int
    accuracy_points: float
    recall_points: dict[str, float]
    speedup: float | None
    reasons: list[str]


def judge(labels: Labels, exact: Labels, int8: Labels, speedup: float | None = None) -> Verdict:
    """Compare the classes (N,) that the float32 graph and the service with int8 name for the same labelled cells (N,)."""

    def points(where: NDArray[np.bool_]) -> float:
        lost = int((exact == labels)[where].sum()) - int((int8 == labels)[where].sum())
        return 100 * lost / int(where.sum())

    accuracy = points(np.ones(len(labels), bool))
    recalls = {name: points(labels == index) for index, name in enumerate(CLASSES) if (labels == index).any()}
    reasons = [f"recall of {name} falls by {fall:.2f} points" for name, fall in recalls.items() if fall > RECALL_POINTS]
    if accuracy > ACCURACY_POINTS:
        reasons.insert(0, f"accuracy falls by {accuracy:.2f} points")
    if speedup is not None and speedup < FASTER:
        reasons.append(f"it is {speedup:.2f} times as fast, {FASTER} is needed")
    return Verdict(len(labels), accuracy, recalls, speedup, reasons)


def write_int8(model_dir: Path, views: Pixels, out: Path) -> None:
    """Quantise model.onnx on calibration views (N, S, S, 3) and write the graph in int8 into the folder `out`.

    The same graph and views give the same bytes.
    """
    openvino = silent_openvino()  # before NNCF, which would report its use as well
    import nncf  # type: ignore[import-untyped]

    logging.getLogger("nncf").setLevel(logging.ERROR)  # it lists every operation that it leaves as it is
    model = openvino.Core().read_model(model_dir / ONNX)
    calibration = nncf.Dataset([view[None] for view in views])
    # The attention's few operations gain nothing from int8, and its gates lose more than the convolutions do.
    kept = nncf.IgnoredScope(patterns=[".*attention.*"], validate=False)
    with contextlib.redirect_stdout(sys.stderr):  # where its progress belongs: stdout is for the result
        quantised = nncf.quantize(model, calibration, subset_size=len(views), ignored_scope=kept)
    for number, operation in enumerate(quantised.get_ordered_ops()):  # some names count what this process has made before
        operation.set_friendly_name(f"{operation.get_type_name()}_{number}")
    openvino.save_model(quantised, out / INT8[0], compress_to_fp16=False)


def both_classes(classifier: Classifier, batches: Iterable[Pixels], threads: int) -> tuple[Labels, Labels]:
    """The classes of all views in float32 and as the service names them, each (N,); a few batches are in memory at a time."""

    def both(views: Pixels) -> tuple[Labels, Labels]:
        exact = classifier.engine.infer(views, exact=True).logits
        return exact.argmax(axis=1), classifier.infer(views).logits.argmax(axis=1)

    rest = iter(batches)
    pairs: list[tuple[Labels, Labels]] = []
    with ThreadPoolExecutor(threads) as pool:
        while block := list(itertools.islice(rest, threads)):
            pairs += pool.map(both, block)
    exact, served = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return exact, served


def times_as_fast(int8: Classifier, without: Classifier, views: Pixels, repeats: int = 9) -> float:
    """Median over alternated repeats of the time without int8 by the time with it, in one thread."""

    def seconds(classifier: Classifier) -> float:
        begin = time.perf_counter()
        for batch in in_batches(views):
            classifier.infer(batch)
        return time.perf_counter() - begin

    ratios = [seconds(without) / seconds(int8) for _ in range(repeats + 1)]
    return statistics.median(ratios[1:])


def quantise(
    model_dir: Path, calibration: Pixels, test: Iterable[Pixels], labels: Labels, timed: Pixels | None = None
) -> Verdict:
    """Put the int8 graph into the model directory where the gate lets it; the directory stays as it is where not.

    `calibration` (N, S, S, 3) and the batches `test` are views as the network sees them, `labels` the test views' class
    indices in their order. With `timed` (views too) the gate asks for speed as well.
    """
    card, threads = read_card(model_dir), thread_count()
    temporary = Path(tempfile.mkdtemp(dir=model_dir.parent, prefix=f".{model_dir.name}."))
    try:
        shutil.copytree(model_dir, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*INT8))
        without = None if timed is None else Classifier(card, OpenVinoEngine(temporary, 1), 1)
        write_int8(temporary, calibration, temporary)
        speedup = None
        if timed is not None and without is not None:
            speedup = times_as_fast(Classifier(card, OpenVinoEngine(temporary, 1), 1), without, timed)
        exact, served = both_classes(Classifier(card, OpenVinoEngine(temporary, threads), threads), test, threads)
        verdict = judge(labels, exact, served, speedup)
        if not verdict.reasons:
            digests = {name: file_sha256(temporary / name) for name in INT8}
            write_card(temporary, card.model_copy(update={"sha256": card.sha256 | digests}))
            temporary.chmod(0o755)
            replace_directory(temporary, model_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return verdict


def spread(count: int, most: int) -> slice:
    """At most `most` of `count`, evenly spread: of sorted cells every class is there."""
    step = max(1, count // most)
    return slice(0, most * step, step)


def in_batches(views: Pixels) -> Iterator[Pixels]:
    """Views in the batches that the engine is asked for."""
    return (views[start : start + BATCH] for start in range(0, len(views), BATCH))


def labelled_views(origin: Source, split: str, size: int, view: View, most: int | None = None) -> tuple[Pixels, Labels]:
    """Views and labels of a split's usable cells; `most` of them, evenly spread, where given."""
    manifest = origin.manifest(label_names())
    rows = manifest[(manifest["split"] == split) & manifest["label"].isin(CLASSES)]
    if most is not None:
        rows = rows.iloc[spread(len(rows), most)]
    views, _, labels, _ = labelled_looks(rows, origin, size, view)
    if not len(views):
        raise WbcError(f"{origin.shown}: no usable labelled cell in the split {split!r}")
    return views, labels


def report(verdict: Verdict) -> dict[str, Any]:
    """The verdict for printing."""
    falls: Mapping[str, float] = {name: round(fall, 2) for name, fall in verdict.recall_points.items()}
    return {
        "cells": verdict.cells,
        "accuracy_falls_by_points": round(verdict.accuracy_points, 2),
        "recall_falls_by_points": falls,
        **({} if verdict.speedup is None else {"times_as_fast": round(verdict.speedup, 2)}),
        "served": not verdict.reasons,
        "reasons": verdict.reasons,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    arguments = parser.parse_args()
    try:
        card = read_card(arguments.model)
        with open_source(arguments.data) as origin:
            calibration, _ = labelled_views(origin, "val", card.input_size, card.view, CALIBRATION_CELLS)
            test, labels = labelled_views(origin, "test", card.input_size, card.view)
        timed = test[spread(len(test), TIMED_CELLS)]
        found = report(quantise(arguments.model, calibration, in_batches(test), labels, timed))
    except WbcError as error:
        raise SystemExit(f"wbc: {error}") from None
    for name, value in found.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
