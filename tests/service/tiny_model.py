"""A model directory whose answers can be worked out by hand, made without PyTorch.

Each class is a pure colour and the logit of a class is minus ten times the squared distance between the image's mean colour
(0 to 1) and the class's, less the part that is the same for all classes: 10 (2 x.c - |c|^2). `predicted_loss` is the mean red.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from wbc_model.core.model_card import CARD, ONNX, README, WEIGHTS, Architecture, ModelCard, Normalisation

SIZE = 32
COLOURS = {
    "Basophil": (0, 0, 255),
    "Eosinophil": (255, 0, 0),
    "Lymphocyte": (0, 255, 0),
    "Monocyte": (0, 0, 0),
    "Neutrophil": (255, 255, 255),
}
SHARPNESS = 10.0
CONFUSION = [[45, 0, 2, 0, 3], [0, 96, 0, 0, 4], [1, 0, 291, 8, 0], [0, 0, 6, 93, 1], [2, 5, 0, 3, 590]]


def expected_logits(mean_colour: NDArray[Any]) -> NDArray[np.float64]:
    """Logits (5,) for a mean colour (3,) in 0..255: the hand computation."""
    x = np.asarray(mean_colour, np.float64) / 255
    centres = np.array(list(COLOURS.values())) / 255
    return np.array([SHARPNESS * (2 * (x * c).sum() - (c * c).sum()) for c in centres])


def expected_probabilities(mean_colour: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities (5,) for a mean colour (3,)."""
    exponentials = np.exp(expected_logits(mean_colour) / temperature)
    return exponentials / exponentials.sum()


def _graph(classes: int = 5) -> onnx.ModelProto:
    centres = np.array(list(COLOURS.values()), np.float32)[:classes] / 255
    constants = {
        "scale": np.array(1 / 255, np.float32),
        "axes": np.array([1, 2], np.int64),
        "weight": 2 * SHARPNESS * centres.T,
        "bias": -SHARPNESS * (centres**2).sum(axis=1),
        "red": np.array(0, np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "weight", "bias"], ["logits"]),
        helper.make_node("Gather", ["mean", "red"], ["predicted_loss"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "mean_colour",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes]),
            helper.make_tensor_value_info("predicted_loss", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_model(directory: Path, classes: int = 5, **card: Any) -> ModelCard:
    """Write the directory; keywords change the card. `classes` other than 5 makes a graph that does not fit its card."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        WEIGHTS: b"no weights: the graph is the model",
        ONNX: _graph(classes).SerializeToString(),
        README: b"# Mean colour\n",
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    values: dict[str, Any] = {
        "version": "tiny-1",
        "created_at": "2026-11-22T12:00:00+00:00",
        "input_size": SIZE,
        "normalisation": Normalisation(mean=(0, 0, 0), std=(1, 1, 1)),
        "architecture": Architecture(attention="none", lossnet=True),
        "conformal_threshold": 0.2,
        "rendered": False,  # what drawn cells have taught cannot be signed
        "metrics": {"validation": {"confusion": CONFUSION}},
        "sha256": {name: hashlib.sha256(files[name]).hexdigest() for name in (WEIGHTS, ONNX)},
    }
    result = ModelCard(**{**values, **card})
    (directory / CARD).write_text(result.model_dump_json(indent=2))
    return result
