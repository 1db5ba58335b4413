"""The full preset on a GPU: training against the bare loop and the card's limit, scoring, seconds of a cycle, memory.

    python studies/gpu.py --minutes 9

The measurements run in a second process, each with a time of its own. One that fails costs itself alone; after one that hangs or
crashes a new process goes on. A smoke test of all of them on small images comes first. It needs PyTorch, NumPy and Pillow, no
network and no installation. Where the packages of the learner are there too, `Training` itself is measured. Where they are not,
the same update is put together from the learner's parts, and what is missing is said. `--device cpu --minutes 1` runs all that a
CPU can, on small images.
"""

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, cast

ROOT: Final = Path(__file__).resolve().parents[1]
if importlib.util.find_spec("wbc_model") is None:
    sys.path.insert(0, str(ROOT))
missing = [name for name in ("torch", "numpy", "PIL") if importlib.util.find_spec(name) is None]
if missing:
    raise SystemExit(f"not installed: {', '.join(missing)}; PyTorch, NumPy and Pillow are what this study needs at the least")

import numpy as np  # noqa: E402  # after what says that it is missing
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from wbc_model.core.classes import CLASSES  # noqa: E402
from wbc_model.network.lossnet import ranking_loss  # noqa: E402
from wbc_model.network.predict import predict  # noqa: E402
from wbc_model.network.resnet import AttentionResNet18  # noqa: E402
from wbc_model.training.augment import augment  # noqa: E402
from wbc_model.training.schedule import adamw  # noqa: E402

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as training sets it, before CUDA starts
# What the modules of training import beside PyTorch, NumPy and Pillow, by the names of import.
LEARNER: Final = (
    "cronsim",
    "lightning_fabric",
    "pandas",
    "pyarrow",
    "pydantic",
    "safetensors",
    "scipy",
    "sklearn",
    "tqdm",
    "yaml",
)
# What a measurement may end with on a machine that nobody has tried: it costs its own row, and the row says it.
FAULTS: Final = (RuntimeError, ImportError, OSError, ValueError, TypeError, AttributeError, AssertionError)
SMOKE: Final = "smoke/"  # before a measurement's name
STALLED_SECONDS: Final = 180.0  # without a result, after which a process is ended
RESERVE_SECONDS: Final = 10.0  # of the whole time
UPDATES, VALIDATION, POOL, EVERY = 4000, 1000, 10_000, 50  # of a cycle of the full preset: validation cells and pool are examples


class Size(NamedTuple):
    """What is measured: the image's side in pixels, the batch, and the cells that a training has."""

    side: int
    batch: int
    cells: int


FULL: Final = Size(224, 128, 3000)  # the full preset
SMALL: Final = Size(64, 8, 64)


class Setting(NamedTuple):
    device: torch.device
    size: Size
    seconds: float


Result = dict[str, Any]
MEASURES: dict[str, Callable[[Setting], Result]] = {}


def measure(name: str) -> Callable[[Callable[[Setting], Result]], Callable[[Setting], Result]]:
    def register(function: Callable[[Setting], Result]) -> Callable[[Setting], Result]:
        MEASURES[name] = function
        return function

    return register


def needs_gpu(setting: Setting) -> None:
    if setting.device.type != "cuda":
        raise ValueError("a GPU only")


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(setting: Setting, work: Callable[[], None], images: int) -> Result:
    """Images per second of `work`, which is repeated for the setting's seconds after some times that are not counted."""
    for _ in range(3 if setting.device.type == "cuda" else 1):
        work()
    wait(setting.device)
    took: list[float] = []
    several = 5 if setting.device.type == "cuda" else 1  # for one synchronisation
    end = time.perf_counter() + setting.seconds
    while time.perf_counter() < end or len(took) < 2:
        start = time.perf_counter()
        for _ in range(several):
            work()
        wait(setting.device)
        took.append((time.perf_counter() - start) / several)
    middle = statistics.median(took)
    result: Result = {"images_per_second": round(images / middle, 1), "milliseconds": round(1000 * middle, 3)}
    result["milliseconds_range"] = [round(1000 * min(took), 3), round(1000 * max(took), 3)]
    if setting.device.type == "cuda":
        result["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return result


def new_network(setting: Setting) -> AttentionResNet18:
    torch.manual_seed(0)
    return AttentionResNet18().to(setting.device).to(memory_format=torch.channels_last)


def batch_of(setting: Setting) -> tuple[Tensor, Tensor]:
    """Random images in 0..1, channels last, and labels, on the device."""
    generator = torch.Generator().manual_seed(0)
    side, count = setting.size.side, setting.size.batch
    images = torch.rand(count, 3, side, side, generator=generator).to(setting.device)
    labels = torch.randint(0, len(CLASSES), (count,), generator=generator).to(setting.device)
    return images.contiguous(memory_format=torch.channels_last), labels


def loss_of(network: nn.Module, images: Tensor, labels: Tensor, bf16: bool = True) -> tuple[Tensor, Tensor]:
    """The loss of training, cross-entropy and LossNet's ranking, and the cross-entropy of each image."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
        output = network(images, lossnet_gradient=False)
    each = F.cross_entropy(output.logits.float(), labels, reduction="none")
    return each.mean() + ranking_loss(output.predicted_loss, each), each


def deterministic() -> None:
    """As training: a seed gives the same bits."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@measure("card")
def card(setting: Setting) -> Result:
    """The machine, its bf16 matrix product and its copy: what nothing on it can be faster than; and the network's share of it."""
    from torch.utils.flop_counter import FlopCounterMode

    device, side = setting.device, 8192 if setting.device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = timed(setting, lambda: _discard(torch.mm(a, b)), 1)
    source = torch.empty(2**28 if device.type == "cuda" else 2**22, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = timed(setting, lambda: _discard(target.copy_(source)), 1)
    network, counter = new_network(setting).eval(), FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.rand(1, 3, setting.size.side, setting.size.side, device=device))
    flops, limit = counter.get_total_flops(), 2 * side**3 / product["milliseconds"] * 1000
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "tflops_bf16": round(limit / 1e12, 2),
        "copy_gb_per_second": round(2 * source.nbytes / copied["milliseconds"] / 1e6, 1),
        "gflop_per_image_forward": round(flops / 1e9, 3),
        "images_per_second_at_limit": round(limit / (3 * flops), 1),  # backward is twice forward
        "missing_for_training": lacking(),
    }


def _discard(_tensor: Tensor) -> None:
    """For work of which only the time counts."""


def lacking() -> list[str]:
    """The packages that `Training` needs and that are not installed, or why it cannot be imported all the same."""
    found = [name for name in LEARNER if importlib.util.find_spec(name) is None]
    try:
        importlib.import_module("wbc_model.training.train")
    except ImportError as error:
        return found or [str(error)]
    return []


def bare(setting: Setting, network: nn.Module, bf16: bool = True) -> Result:
    """The obvious loop: network, loss and optimizer on one random batch that is on the device already."""
    torch.backends.cudnn.benchmark = True
    images, labels = batch_of(setting)
    optimizer = adamw(network, 0.001)

    def work() -> None:
        optimizer.zero_grad()
        loss_of(network, images, labels, bf16)[0].backward()
        optimizer.step()

    return timed(setting, work, len(labels))


@measure("bare_bf16")
def bare_bf16(setting: Setting) -> Result:
    """bf16 and channels last: what training is compared with."""
    return bare(setting, new_network(setting))


@measure("update")
def update(setting: Setting) -> Result:
    """An update of training: draw, augment on the device, learn, note the losses. By `Training`, where it can be imported."""
    deterministic()
    absent = lacking()
    work = composed_update(setting) if absent else update_of_training(setting)
    result = timed(setting, work, setting.size.batch)
    return {**result, "of": f"parts of the learner, without {', '.join(absent)}" if absent else "Training.step"}


@measure("update_free")
def update_free(setting: Setting) -> Result:
    """The same from the learner's parts, by whatever algorithms are fastest: what it costs that a seed gives the same bits."""
    torch.backends.cudnn.benchmark = True
    return timed(setting, composed_update(setting), setting.size.batch)


def noise(setting: Setting) -> tuple[Tensor, Tensor]:
    side, count = setting.size.side, setting.size.cells
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, len(CLASSES), (count,), generator=generator)


def augmented(setting: Setting) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """A function that draws a batch as training does: a quarter of it strongly augmented."""
    images, labels = noise(setting)
    images, count = images.to(setting.device), setting.size.batch
    generator = torch.Generator().manual_seed(0)
    strong = torch.arange(count) >= count - count // 4

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        index = torch.randint(0, len(labels), (count,), generator=generator)
        batch = augment(images[index.to(setting.device)], strong, generator)
        return batch, labels[index].to(setting.device), index

    return draw


def composed_update(setting: Setting) -> Callable[[], None]:
    """What `Training.step` does, from the parts that need PyTorch alone."""
    network, draw = new_network(setting), augmented(setting)
    optimizer, losses = adamw(network, 0.001), torch.full((setting.size.cells,), torch.nan)

    def work() -> None:
        images, labels, index = draw()
        loss, each = loss_of(network, images, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses[index] = each.detach().float().cpu()

    return work


def update_of_training(setting: Setting) -> Callable[[], None]:
    """`Training.step` of the full preset, at its hard samples."""
    from wbc_model.params import read_params
    from wbc_model.training.labelled import LabelledCells
    from wbc_model.training.train import Training

    params = read_params(ROOT / "params.yaml")
    size = params.presets["full"].model_copy(update={"image_size": setting.size.side, "batch_size": setting.size.batch})
    params = params.model_copy(update={"preset": "full", "presets": {**params.presets, "full": size}})
    images, labels = noise(setting)
    cells = LabelledCells(images.numpy(), labels.numpy(), tuple(map(str, range(len(labels)))))
    training = Training.of_pools(params, cells, cells, Path(tempfile.mkdtemp()) / "checkpoint")
    training.network.train()
    training.batches.weights = torch.ones(len(labels))
    number = size.updates // 2
    return lambda: training.step(number)


@measure("scoring")
def scoring(setting: Setting) -> Result:
    """Cells in the host's memory, a stream of uint8 batches, to probabilities and embeddings."""
    network = new_network(setting).eval()
    cells = noise(setting)[0].numpy()[: 8 * setting.size.batch]
    parts = np.array_split(cells, max(1, len(cells) // setting.size.batch))

    def work() -> None:
        predict(network, parts, embeddings=True, autocast=True)

    return timed(setting, work, len(cells))


@measure("bare_forward")
def bare_forward(setting: Setting) -> Result:
    """The network alone on a batch that is on the device already: what scoring is compared with."""
    network, (images, _) = new_network(setting).eval(), batch_of(setting)

    def work() -> None:
        with torch.inference_mode(), torch.autocast(setting.device.type, torch.bfloat16):
            network(images)

    return timed(setting, work, len(images))


@measure("augmentation")
def augmentation(setting: Setting) -> Result:
    """Drawing and augmenting a batch on the device."""
    draw = augmented(setting)
    return timed(setting, lambda: _discard(draw()[0]), setting.size.batch)


def captured(setting: Setting, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """An update of the network on these very tensors as one CUDA graph: no launch from Python within it."""
    torch.backends.cudnn.benchmark = True
    network = new_network(setting)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.001, weight_decay=0.05, fused=True, capturable=True)

    def learn() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(network, images, labels)[0].backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(4):
            learn()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss_of(network, images, labels)[0].backward()
        optimizer.step()
    return graph.replay


@measure("bare_graph")
def bare_graph(setting: Setting) -> Result:
    """The bare loop as a CUDA graph."""
    needs_gpu(setting)
    images, labels = batch_of(setting)
    return timed(setting, captured(setting, images, labels), len(labels))


@measure("update_graph")
def update_graph(setting: Setting) -> Result:
    """Augmentation as it is, and the network's update as a CUDA graph on its result."""
    needs_gpu(setting)
    (images, labels), draw = batch_of(setting), augmented(setting)
    replay = captured(setting, images, labels)

    def work() -> None:
        new, wanted, _ = draw()
        images.copy_(new)
        labels.copy_(wanted)
        replay()

    return timed(setting, work, len(labels))


@measure("bare_float32")
def bare_float32(setting: Setting) -> Result:
    """The bare loop in float32, with the card's TF32 where it has it."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return bare(setting, new_network(setting), bf16=False)


@measure("bare_compiled")
def bare_compiled(setting: Setting) -> Result:
    """The bare loop with `torch.compile`, which compiles for a minute or more before."""
    needs_gpu(setting)
    start = time.perf_counter()
    network = torch.compile(new_network(setting))
    images, labels = batch_of(setting)
    loss_of(network, images, labels)[0].backward()
    wait(setting.device)
    compiling = time.perf_counter() - start
    return {**bare(setting, network), "seconds_to_compile": round(compiling, 1)}


def seconds_of_a_cycle(found: dict[str, Result]) -> Result | None:
    """What a cycle of the full preset takes by the measured speeds: updates, validation, scoring. Decoding is not in it."""
    if "milliseconds" not in found.get("update", {}) or "images_per_second" not in found.get("scoring", {}):
        return None
    speed = found["scoring"]["images_per_second"]
    parts = {
        "updates": UPDATES * found["update"]["milliseconds"] / 1000,
        "validation": (UPDATES / EVERY + 1) * VALIDATION / speed,
        "scoring": POOL / speed,
    }
    return {**{name: round(value, 1) for name, value in parts.items()}, "whole": round(sum(parts.values()), 1)}


def summary(found: dict[str, Result]) -> Result:
    """The ratios that matter, of what was measured."""

    def ratio(ours: str, theirs: str) -> float | None:
        both = [found.get(name, {}).get("images_per_second") for name in (ours, theirs)]
        return round(both[0] / both[1], 3) if all(both) else None

    limit = found.get("card", {}).get("images_per_second_at_limit")
    speed = found.get("update", {}).get("images_per_second")
    return {
        "update_of_bare": ratio("update", "bare_bf16"),
        "update_of_limit": round(speed / limit, 4) if speed and limit else None,
        "update_of_update_free": ratio("update", "update_free"),
        "scoring_of_bare": ratio("scoring", "bare_forward"),
        "graph_of_bare": ratio("bare_graph", "bare_bf16"),
        "compiled_of_bare": ratio("bare_compiled", "bare_bf16"),
        "update_graph_of_update": ratio("update_graph", "update"),
        "seconds_of_a_cycle": seconds_of_a_cycle(found),
    }


def one(name: str, setting: Setting) -> Result:
    """A measurement in this process; a fault becomes its result."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = False
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        return MEASURES[name](setting)
    except FAULTS as error:
        text = str(error).strip() or type(error).__name__
        return {"not_measured": " ".join(text.splitlines()[0].split())[:300], "fault": type(error).__name__}


def work_through(names: list[str], device: torch.device, end: float) -> None:
    """What the second process does: a line of JSON for each measurement, each with a share of the time until `end`."""
    full = FULL if device.type == "cuda" else SMALL
    for number, name in enumerate(names):
        left = end - time.time()
        seconds = max(0.2, min(20.0 if device.type == "cuda" else 1.0, left / (len(names) - number) / 3))
        setting = Setting(device, SMALL, 0.2) if name.startswith(SMOKE) else Setting(device, full, seconds)
        result = one(name.removeprefix(SMOKE), setting) if left > 1 else {"not_measured": "no time was left"}
        print(json.dumps([name, result]), flush=True)


def results(device: str, end: float) -> Iterator[tuple[str, Result]]:
    """Each measurement's result as it comes, from a process that is started anew after one that it did not survive."""
    waiting = [*(SMOKE + name for name in MEASURES if name != "bare_compiled"), *MEASURES]
    while waiting:
        arguments = ["--device", device, "--names", ",".join(waiting), "--end", str(end)]
        with subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True) as process:
            answers = cast(IO[str], process.stdout)
            while waiting:
                patience = max(10.0, min(STALLED_SECONDS, end - time.time()))
                stalled = threading.Timer(patience, process.kill)
                stalled.start()
                line = answers.readline()
                stalled.cancel()
                if not line:
                    yield (
                        waiting.pop(0),
                        {"not_measured": f"its process ended with {process.wait()} (-9: after {patience:.0f} s)"},
                    )
                    break
                name, result = json.loads(line)
                waiting.remove(name)
                yield name, result


def measure_all(device: str, minutes: float, out: Path) -> dict[str, Any]:
    """The smoke test, then each measurement while there is time; `out` holds what is known after each."""
    end = time.time() + 60 * minutes - RESERVE_SECONDS
    document: dict[str, Any] = {"smoke": {}, "measured": {}, "summary": {}}
    for name, result in results(device, end):
        print(f"{name}:", json.dumps(result), flush=True)
        document["smoke" if name.startswith(SMOKE) else "measured"][name.removeprefix(SMOKE)] = result
        document["summary"] = summary(document["measured"])
        out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--names", help=argparse.SUPPRESS)
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is found; `--device cpu --minutes 1` tries all that a CPU can")
    if given.names:
        work_through(given.names.split(","), torch.device(given.device), given.end)
    else:
        print("summary:", json.dumps(measure_all(given.device, given.minutes, given.out)["summary"], indent=2))
        print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
