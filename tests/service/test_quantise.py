"""Int8: the gate by hand, which graph answers, and a real quantisation. `wbc package` with it: tests/code/test_package.py."""

import shutil
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from tiny_model import SIZE, expected_logits, write_model

from flows.pipeline.quantise import in_batches, judge, quantise, report, spread, times_as_fast
from serving.inference.classify import Classifier
from serving.inference.engine import OpenVinoEngine
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import INT8, ONNX, Architecture, ModelCard, Normalisation, read_card

LABELS = np.repeat(np.arange(5), 1000)


def _wrong(predicted: np.ndarray, label: int, count: int) -> np.ndarray:
    changed = predicted.copy()
    changed[np.flatnonzero(label == LABELS)[:count]] = (label + 1) % 5
    return changed


def test_the_gate_lets_through_what_is_as_good_and_faster() -> None:
    verdict = judge(LABELS, LABELS, _wrong(LABELS, 2, 5), 1.3)
    assert verdict.reasons == []
    assert verdict.cells == 5000
    assert verdict.accuracy_points == pytest.approx(0.1)
    assert verdict.recall_points["Lymphocyte"] == pytest.approx(0.5)


@pytest.mark.parametrize(("label", "count"), [(0, 6), (4, 6)])
def test_a_class_that_loses_more_than_half_a_point_is_named(label: int, count: int) -> None:
    verdict = judge(LABELS, LABELS, _wrong(LABELS, label, count), 2.0)
    assert verdict.reasons == [f"recall of {CLASSES[label]} falls by 0.60 points"]


def test_accuracy_counts_even_where_no_class_loses_much() -> None:
    int8 = LABELS
    for label in range(5):
        int8 = _wrong(int8, label, 3)
    assert judge(LABELS, LABELS, int8, 2.0).reasons == ["accuracy falls by 0.30 points"]


def test_a_mistake_that_float32_makes_too_is_none_of_int8() -> None:
    both = _wrong(LABELS, 1, 300)
    assert judge(LABELS, both, both, 2.0).reasons == []


def test_where_no_speed_was_measured_none_is_asked_for() -> None:
    verdict = judge(LABELS, LABELS, LABELS)
    assert (verdict.reasons, verdict.speedup) == ([], None)
    assert report(verdict) == {
        "cells": 5000,
        "accuracy_falls_by_points": 0.0,
        "recall_falls_by_points": dict.fromkeys(CLASSES, 0.0),
        "served": True,
        "reasons": [],
    }


def test_what_is_hardly_faster_is_left_out() -> None:
    assert judge(LABELS, LABELS, LABELS, 1.29).reasons == ["it is 1.29 times as fast, 1.3 is needed"]


def test_the_int8_graph_answers_first_and_float32_what_it_is_unsure_of(tmp_path: Path) -> None:
    """The int8 graph of this directory takes every cell for one of the other model, whose colours are turned round."""
    write_model(tmp_path / "model", temperature=0.05)
    graph = openvino.Core().read_model(tmp_path / "model" / "model.onnx")
    flipped = openvino.preprocess.PrePostProcessor(graph)
    flipped.input().preprocess().reverse_channels()
    flipped.input().tensor().set_layout(openvino.Layout("NHWC"))
    flipped.input().model().set_layout(openvino.Layout("NHWC"))
    openvino.save_model(flipped.build(), tmp_path / "model" / INT8[0], compress_to_fp16=False)
    engine = OpenVinoEngine(tmp_path / "model", 1)
    red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (2, SIZE, SIZE, 3)).copy()
    assert engine.reduced
    assert engine.infer(red, exact=True).logits[0] == pytest.approx(expected_logits(np.array([255, 0, 0])), abs=1e-3)
    assert engine.infer(red).logits[0] == pytest.approx(expected_logits(np.array([0, 0, 255])), abs=0.2)


def test_a_damaged_int8_graph_is_named(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / INT8[0]).write_bytes(b"rubbish")
    with pytest.raises(WbcError, match=r"model-int8\.xml"):
        Classifier.open(tmp_path)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from wbc_model.network.model_directory import save_model
    from wbc_model.network.resnet import AttentionResNet18

    torch.manual_seed(0)
    card = ModelCard(
        version="random",
        input_size=32,
        normalisation=Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        architecture=Architecture(attention="cbam", lossnet=True),
    )
    directory = tmp_path_factory.mktemp("random") / "model"
    save_model(directory, AttentionResNet18("cbam", True, 5).eval(), card)
    return directory


VIEWS = np.random.default_rng(0).integers(0, 256, (96, 32, 32, 3), dtype=np.uint8)


@pytest.mark.slow
def test_a_real_quantisation_joins_the_directory(random_model: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(random_model, tmp_path / "model"))
    before = read_card(directory)
    labels = OpenVinoEngine(directory, 1).infer(VIEWS, exact=True).logits.argmax(axis=1)
    verdict = quantise(directory, VIEWS[:8], in_batches(VIEWS), labels)
    # Random weights are sure of nothing, so that every cell is computed again in float32.
    assert (verdict.cells, verdict.accuracy_points, set(verdict.recall_points.values())) == (96, 0.0, {0.0})
    assert verdict.reasons == []
    card = read_card(directory)
    assert set(card.sha256) - set(before.sha256) == set(INT8)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    engine = OpenVinoEngine(directory, 1)
    exact, int8 = engine.infer(VIEWS, exact=True), engine.infer(VIEWS)
    assert np.corrcoef(exact.logits.ravel(), int8.logits.ravel())[0, 1] > 0.95
    assert not np.allclose(exact.logits, int8.logits, atol=1e-6)
    (directory / INT8[1]).write_bytes(b"other weights")
    with pytest.raises(WbcError, match=r"model-int8\.bin is damaged"):
        Classifier.open(directory)


def test_what_the_gate_refuses_leaves_the_directory_as_it_is(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(shutil.copytree(random_model, tmp_path / "model"))

    def not_quantised(model: Path, views: object, out: Path) -> None:
        openvino.save_model(openvino.Core().read_model(model / ONNX), out / INT8[0], compress_to_fp16=False)

    monkeypatch.setattr("flows.pipeline.quantise.write_int8", not_quantised)
    monkeypatch.setattr("flows.pipeline.quantise.times_as_fast", lambda *_: 1.29)
    verdict = quantise(directory, VIEWS[:8], in_batches(VIEWS), np.zeros(len(VIEWS), np.int64), timed=VIEWS[:8])
    assert verdict.reasons == ["it is 1.29 times as fast, 1.3 is needed"]
    assert sorted(path.name for path in directory.iterdir()) == sorted(path.name for path in random_model.iterdir())
    assert read_card(directory) == read_card(random_model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_times_are_of_the_whole_answer(random_model: Path) -> None:
    classifier = Classifier(read_card(random_model), OpenVinoEngine(random_model, 1), 1)
    assert 0.2 < times_as_fast(classifier, classifier, VIEWS[:16], repeats=3) < 5


def test_cells_are_spread_over_the_whole_list() -> None:
    for count, most in ((10, 3), (3, 10), (300, 300), (299, 300), (601, 300)):
        chosen = list(range(count))[spread(count, most)]
        assert len(chosen) == min(count, most)
        assert chosen[-1] >= count - 2 * (count // most + 1)
