"""A model directory that tells rendered cells apart about as well as a beginner: ridge regression on 32 x 32 pixels.

Good for showing and testing the page, where some cells must be wrong and some unsure; trained in two seconds without PyTorch.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from wbc_model.core.classes import CLASS_INDEX, CLASSES
from wbc_model.core.images import preprocess
from wbc_model.core.model_card import CARD, ONNX, README, WEIGHTS, Architecture, ModelCard, Normalisation
from wbc_model.rendering.cells import render_cells

SIZE = 32
TRAINING, VALIDATION = 500, 200
RIDGE, SHARPNESS = 3.0, 7.0


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _cells(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    cells = list(render_cells(count, seed, 64))
    pixels = np.stack([preprocess(png(cell.pixels), SIZE, "whole") for cell in cells])
    return pixels.reshape(count, -1).astype(np.float32) / 255, np.array([CLASS_INDEX[cell.label] for cell in cells])


def _ridge(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights (pixels, 5) and bias (5,) of logits."""
    images, labels = _cells(TRAINING, seed)
    mean, targets = images.mean(axis=0), np.eye(len(CLASSES), dtype=np.float32)[labels]
    centred = images - mean
    gram = centred @ centred.T + RIDGE * np.eye(TRAINING, dtype=np.float32)  # the dual form: fewer cells than pixels
    weights = SHARPNESS * centred.T @ np.linalg.solve(gram, targets - targets.mean(axis=0))
    return weights.astype(np.float32), (SHARPNESS * targets.mean(axis=0) - mean @ weights).astype(np.float32)


def _graph(weights: NDArray[np.float32], bias: NDArray[np.float32]) -> onnx.ModelProto:
    constants = {
        "scale": np.array(1 / 255, np.float32),
        "shape": np.array([-1, 3 * SIZE * SIZE], np.int64),
        "weights": weights,
        "bias": bias,
        "axes": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"]),
        helper.make_node("ReduceMean", ["flat", "axes"], ["predicted_loss"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "ridge",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)]),
            helper.make_tensor_value_info("predicted_loss", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_linear_model(directory: Path, seed: int = 1, rendered: bool = True) -> None:
    """Write the directory; the card holds the confusion matrix of cells that were not trained on. A report by a model of
    `rendered` cells cannot be signed."""
    directory.mkdir(parents=True)
    weights, bias = _ridge(seed)
    images, labels = _cells(VALIDATION, seed + 1)
    confusion = np.zeros((len(CLASSES), len(CLASSES)), int)
    np.add.at(confusion, (labels, (images @ weights + bias).argmax(axis=1)), 1)
    files = {WEIGHTS: b"in the graph", ONNX: _graph(weights, bias).SerializeToString(), README: b"# Ridge regression\n"}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    card = ModelCard(
        version="ridge-1",
        created_at="2026-11-22T12:00:00+00:00",
        input_size=SIZE,
        normalisation=Normalisation(mean=(0, 0, 0), std=(1, 1, 1)),
        architecture=Architecture(attention="none", lossnet=False),
        conformal_threshold=0.2,
        rendered=rendered,
        metrics={"validation": {"confusion": confusion.tolist()}},
        sha256={name: hashlib.sha256(files[name]).hexdigest() for name in (WEIGHTS, ONNX)},
    )
    (directory / CARD).write_text(card.model_dump_json(indent=2))
