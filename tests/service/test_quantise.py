"""Int8: the gate by hand, which graph answers, and a real quantisation where NNCF is installed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_model import SIZE, expected_logits, write_model

from flows.quantise import judge, quantise, write_int8
from serving.classify import Classifier
from serving.engine import OpenVinoEngine
from wbc_model.card import INT8, Architecture, ModelCard, Normalisation, read_card
from wbc_model.classes import CLASSES
from wbc_model.errors import WbcError

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


def test_what_is_hardly_faster_is_left_out() -> None:
    assert judge(LABELS, LABELS, LABELS, 1.29).reasons == ["it is 1.29 times as fast, 1.3 is needed"]


def test_the_int8_graph_answers_first_and_float32_what_it_is_unsure_of(tmp_path: Path) -> None:
    """The int8 graph of this directory takes every cell for one of the other model, whose colours are turned round."""
    import openvino

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


def test_without_nncf_it_says_so(model_dir: Path, tmp_path: Path) -> None:
    try:
        import nncf  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(WbcError, match="nncf"):
            write_int8(model_dir, np.zeros((2, SIZE, SIZE, 3), np.uint8), tmp_path)


def test_a_real_quantisation_joins_the_directory_or_leaves_it_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    torch = pytest.importorskip("torch")
    from wbc_model.export import save_model
    from wbc_model.network import AttentionResNet18

    torch.manual_seed(0)
    network = AttentionResNet18("cbam", True, 5).eval()
    card = ModelCard(
        version="random",
        input_size=32,
        normalisation=Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        architecture=Architecture(attention="cbam", lossnet=True),
    )
    save_model(tmp_path / "model", network, card)
    before = read_card(tmp_path / "model")
    views = np.random.default_rng(0).integers(0, 256, (96, 32, 32, 3), dtype=np.uint8)
    labels = OpenVinoEngine(tmp_path / "model", 1).infer(views, exact=True).logits.argmax(axis=1)
    verdict = quantise(tmp_path / "model", views[:8], views, labels)
    after = read_card(tmp_path / "model")
    assert set(after.sha256) - set(before.sha256) == (set() if verdict.reasons else set(INT8))
    assert (tmp_path / "model" / INT8[0]).exists() == (not verdict.reasons)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    if not verdict.reasons:
        shutil.copytree(tmp_path / "model", tmp_path / "again")
        (tmp_path / "again" / INT8[1]).write_bytes(b"other weights")
        with pytest.raises(WbcError, match=r"model-int8\.bin is damaged"):
            Classifier.open(tmp_path / "again")
