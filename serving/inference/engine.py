"""Engines: uint8 images in, logits and predicted losses out, from as many threads at once as one likes."""

import importlib.util
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import INT8, ONNX, ModelCard

ENGINES: Final = ("auto", "openvino", "torch")
MAX_THREADS: Final = 16
# Up to this side a call of the engine costs as much as an image or two, and float32 of one image alone twice as much as of one of
# sixteen. The answers are the same bits, however many images are computed together.
SMALL_SIDE: Final = 96
SMALL_CHUNK: Final = 64
OUTPUTS: Final = ("logits", "predicted_loss", "embedding")  # of a graph; older ones lack the last


class Answer(NamedTuple):
    """`logits` (N, classes), `predicted_loss` (N,) and `embedding` (N, 512), float32; an older model gives no embedding."""

    logits: NDArray[np.float32]
    predicted_loss: NDArray[np.float32]
    embedding: NDArray[np.float32] | None = None


class Engine(Protocol):
    """What runs the network. `reduced` says that `infer` may compute in bf16 or int8 unless asked to be `exact` (float32)."""

    name: str
    reduced: bool
    chunk: int

    def infer(self, images: NDArray[np.uint8], exact: bool = False) -> Answer:
        """Images (N, size, size, 3) to an Answer. Blocks; may be called from several threads."""
        ...


def thread_count() -> int:
    """Threads that decode and infer: WBC_THREADS, else the processors this process may use, 16 at most."""
    text = os.environ.get("WBC_THREADS", "").strip()
    if text and (not text.isdecimal() or int(text) < 1):
        raise WbcError(f"WBC_THREADS is {text!r}: give a whole number of at least 1")
    return int(text) if text else min(len(os.sched_getaffinity(0)), MAX_THREADS)


def silent_openvino() -> Any:
    """The package openvino. Imported as it comes it reports that to its maker over the internet, unless somebody has declined in
    the home directory; it does without where it does not find the package that sends."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: an import fails
    import openvino

    return openvino


# OpenVINO's binding prepares itself in its first call. Two first calls at once can wait for each other for ever: one holds
# Python's lock and waits for what the other prepares, which waits for Python's lock.
_FIRST_CALL: Final = threading.Lock()


class OpenVinoEngine:
    """On the CPU, one stream and one infer request a thread: the directory's graph in int8, or where it has none model.onnx in
    bf16 where the processor computes in it natively; `exact` always model.onnx in float32."""

    name = "openvino"
    called = False  # whether a call of this process has ended
    chunk = 16  # images that are computed together; of small ones SMALL_CHUNK, which takes about as long

    def __init__(self, directory: Path, threads: int) -> None:
        core = silent_openvino().Core()
        model = _read(core, directory / ONNX)
        has_int8 = (directory / INT8[0]).exists()
        self.chunk = SMALL_CHUNK if _is_small(model) else OpenVinoEngine.chunk
        self._outputs = [name for name in OUTPUTS if name in _outputs_of(model)]  # those of the int8 graph, which is made of it
        bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.reduced = bf16 or has_int8
        try:
            self._requests = {True: _requests(core, model, "f32", threads)}
            if self.reduced:
                fast = _read(core, directory / INT8[0]) if has_int8 else model
                self._requests[False] = _requests(core, fast, "bf16" if bf16 else "f32", threads)
        except RuntimeError as error:
            raise WbcError(f"{directory}: OpenVINO cannot compile its graph: {_first_line(error)}") from None

    def infer(self, images: NDArray[np.uint8], exact: bool = False) -> Answer:
        """See Engine. Waits for a free infer request, and for the first call of all."""
        if OpenVinoEngine.called:
            return self._infer(images, exact)
        with _FIRST_CALL:
            answer = self._infer(images, exact)
            OpenVinoEngine.called = True
            return answer

    def _infer(self, images: NDArray[np.uint8], exact: bool) -> Answer:
        free = self._requests[exact or not self.reduced]
        request = free.get()
        try:
            request.infer({"images": images}, share_inputs=True)
            return Answer(*(request.get_tensor(name).data.copy() for name in self._outputs))
        finally:
            free.put(request)


def _read(core: Any, path: Path) -> Any:
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise WbcError(f"{path}: OpenVINO cannot read it: {_first_line(error)}") from None
    outputs = _outputs_of(model)
    if not {"logits", "predicted_loss"} <= outputs:
        raise WbcError(f"{path}: outputs are {sorted(outputs)}, `logits` and `predicted_loss` are needed")
    return model


def _outputs_of(model: Any) -> set[str]:
    return {name for output in model.outputs for name in output.names}


def _is_small(model: Any) -> bool:
    """Whether a graph's images (N, S, S, 3) are at most SMALL_SIDE wide; of an odd graph it is said elsewhere what is wrong."""
    shape = model.input(0).partial_shape
    return shape.rank.is_static and len(shape) == 4 and shape[1].is_static and shape[1].get_length() <= SMALL_SIDE


def _requests(core: Any, model: Any, precision: str, threads: int) -> "queue.SimpleQueue[Any]":
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = core.compile_model(model, "CPU", settings)
    free: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(threads):
        free.put(compiled.create_infer_request())
    return free


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class TorchEngine:
    """weights.safetensors on a CUDA device in bf16, one chunk at a time. Imports torch only when it is made."""

    name = "torch"
    reduced = True
    chunk = 64

    def __init__(self, directory: Path, device: str = "cuda") -> None:
        import torch

        from wbc_model.network.model_directory import load_model

        self._torch = torch
        self._device = torch.device(device)
        network, _ = load_model(directory)
        self._network: Any = network.eval().to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._lock = threading.Lock()

    def infer(self, images: NDArray[np.uint8], exact: bool = False) -> Answer:
        """See Engine."""
        torch = self._torch
        with self._lock, torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=not exact):
            batch = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 255
            output = self._network(batch)
            return Answer(*(getattr(output, name).float().cpu().numpy() for name in OUTPUTS))


def has_gpu() -> bool:
    """Whether torch is installed and sees a CUDA device; torch is imported only where an NVIDIA driver is loaded."""
    if not Path("/proc/driver/nvidia/version").exists() or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def open_engine(directory: Path, card: ModelCard, threads: int) -> Engine:
    """The engine that WBC_ENGINE names; `auto`, the default, is torch where a GPU is and OpenVINO elsewhere.

    Runs the model once: a graph that does not fit its card fails here, and the first caller does not wait for it. Raises
    WbcError naming what does not fit.
    """
    name = os.environ.get("WBC_ENGINE", "").strip() or "auto"
    if name not in ENGINES:
        raise WbcError(f"WBC_ENGINE is {name!r}: it is one of {', '.join(ENGINES)}")
    if name == "auto":
        # The Bento carries wbc_model.core only, so that it stays with OpenVINO wherever it runs.
        name = "torch" if importlib.util.find_spec("wbc_model.network") is not None and has_gpu() else "openvino"
    if name == "torch" and importlib.util.find_spec("torch") is None:
        raise WbcError("WBC_ENGINE is 'torch', but PyTorch is not installed here; use 'openvino'")
    engine: Engine = TorchEngine(directory) if name == "torch" else OpenVinoEngine(directory, threads)
    _try_out(engine, directory, card)
    return engine


def _try_out(engine: Engine, directory: Path, card: ModelCard) -> None:
    images = np.full((2, card.input_size, card.input_size, 3), 200, np.uint8)
    for exact in (False, True):
        try:
            answer = engine.infer(images, exact)
        except RuntimeError as error:
            raise WbcError(f"{directory}: the model does not run on {images.shape} uint8 images: {_first_line(error)}") from None
        if answer.logits.shape != (2, len(card.classes)) or answer.predicted_loss.shape != (2,):
            raise WbcError(
                f"{directory}: the model answers with logits {answer.logits.shape} and predicted_loss "
                f"{answer.predicted_loss.shape} for 2 images and {len(card.classes)} classes"
            )
        if not np.isfinite(answer.logits).all():
            raise WbcError(f"{directory}: the model answers with numbers that are not finite")
