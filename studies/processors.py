"""What is fastest on this kind of processor: each 3x3 convolution of the network in its ways, and whole updates before and after.

    python studies/processors.py [--rounds 12] [--threads N]

    python studies/processors.py --updates [--rounds 12] [--threads N]

The first is run once for each kind of processor. It writes `studies/processors/`, and prints the row for the table in
wbc_model/network/processors.py, which training looks up. The second compares a 64 px update as it was and as it is: two of
training, and one of `wbc onboard` (decision 063). It also has one that `torch.compile` made. And it says what the sums of an
update would take at the rate of a large matrix product. All ways take turns in one run, so the machine's drift falls on all. With
`--threads 1` the processor's time of the one thread counts, and other work on the machine changes little.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from flows.sites.onboard import ADAPTATION
from flows.studies.results import publishing
from wbc_model.network import attention, processors
from wbc_model.network.convolution import Conv3x3, convolved
from wbc_model.network.processors import CPUINFO, TABLE, Way, kind
from wbc_model.params import Params, read_params
from wbc_model.training.adaptation import FIXED, SiteBatches, the_last
from wbc_model.training.labelled import LabelledCells
from wbc_model.training.pseudo_labels import PseudoLabelling, PseudoLabels, UnlabelledCells
from wbc_model.training.train import Training

ROOT: Final = Path(__file__).parents[1]
OUT: Final = ROOT / "studies/processors"
FILE: Final = "convolutions.csv"
BATCH: Final = 128  # 64 labelled and 64 unlabelled cells
# Input and output channels, stride and the map's side: of the network at 64 px, and its last stages at 32 px.
SHAPES: Final = (
    (64, 64, 1, 16),
    (64, 128, 2, 16),
    (128, 128, 1, 8),
    (128, 256, 2, 8),
    (256, 256, 1, 4),
    (256, 512, 2, 4),
    (512, 512, 1, 2),
    (256, 512, 2, 2),
    (512, 512, 1, 1),
)
CELLS: Final = 600  # of noise that an update draws from
WORTH: Final = 0.9  # of plain's time: another way is chosen below this
Clock = Callable[[], float]


def ways(side: int) -> list[Way]:
    return ["plain", "unfold", "dense"] if side <= 2 else ["plain", "unfold"]


def once(shape: tuple[int, int, int, int], way: Way, precision: torch.dtype) -> Callable[[], None]:
    """Forward and backward of one convolution of the network, weights in float32."""
    channels_in, channels, stride, side = shape
    torch.manual_seed(0)
    images = torch.randn(BATCH, channels_in, side, side).to(precision).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels_in, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    images.requires_grad_()

    def work() -> None:
        images.grad = weight.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            result = convolved(images, weight, stride, way)
        result.backward(torch.ones_like(result))  # type: ignore[no-untyped-call]

    return work


def taking_turns(works: dict[str, Callable[[], None]], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each work in each round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start = clock()
            work()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def convolutions(of_kind: str, rounds: int, clock: Clock) -> pd.DataFrame:
    """A row for each convolution and way: milliseconds, the median over the rounds, and the share of plain's."""
    precision = torch.float32 if of_kind == "other" else torch.bfloat16
    rows = []
    for shape in SHAPES:
        seconds = taking_turns({way: once(shape, way, precision) for way in ways(shape[3])}, rounds, clock)
        for way, values in seconds.items():
            share = statistics.median(a / b for a, b in zip(values, seconds["plain"], strict=True))
            facts = dict(zip(("channels_in", "channels", "stride", "side"), shape, strict=True))
            rows.append({"kind": of_kind, "precision": str(precision)[6:], **facts, "way": way})
            rows[-1] |= {"milliseconds": round(1000 * statistics.median(values), 2), "share_of_plain": round(share, 3)}
    return pd.DataFrame(rows).assign(
        rounds=rounds, threads=torch.get_num_threads(), torch=torch.__version__.split("+")[0], processor=name_of_processor()
    )


def fastest(rows: pd.DataFrame) -> dict[tuple[int, int], str]:
    """The table's row of one kind of processor: where another way than plain is worth it, by the map's side and the stride."""
    chosen = {}
    for _, some in rows.groupby(["side", "stride"]):
        best = some.sort_values("share_of_plain").iloc[0]
        if best["share_of_plain"] < WORTH:
            chosen[int(best["side"]), int(best["stride"])] = str(best["way"])
    return chosen


def name_of_processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", CPUINFO.read_text() if CPUINFO.is_file() else "", re.MULTILINE)
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")  # a newer processor may stand for an older one
    return (found[1] if found else platform.processor()) + (f" limited to {limit}" if limit else "")


def readme(table: pd.DataFrame) -> str:
    lines = []
    for _, rows in table.groupby(["kind", "precision", "channels_in", "channels", "stride", "side"], sort=False):
        one = rows.iloc[0]
        times = {row.way: f"{row.milliseconds:.1f}" for row in rows.itertuples()}
        chosen = TABLE[one["kind"]].get((one["side"], one["stride"]), "plain")
        cells = [one["kind"], one["precision"], f"{one['channels_in']} → {one['channels']}", f"{one['side']}x{one['side']}"]
        cells += [one["stride"], *(times.get(way, "") for way in ways(1)), chosen]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    measured = [f"- `{row.kind}`: {row.processor}, {row.threads} thread(s), torch {row.torch}, {row.rounds} rounds"
                for row in table.drop_duplicates("kind").itertuples()]  # fmt: skip
    head = "| kind | precision | channels | map | stride | plain | unfold | dense | chosen |\n" + "|---|" + "---|" * 8
    text = (
        "# What is fastest on which kind of processor\n\n"
        "`python studies/processors.py` gives milliseconds of one 3x3 convolution of 128 images, forward and backward. They are\n"
        "the median over rounds in which the ways take turns. `chosen` is what training does, by the table in\n"
        "`wbc_model/network/processors.py` ([decision 062](../../docs/decisions/062-small-maps-as-matrix-products.md)).\n\n"
    )
    return text + "\n".join([*measured, "", head, *lines]) + "\n"


@contextlib.contextmanager
def as_it_was() -> Iterator[None]:
    """Training before decision 062: plain convolutions, PyTorch's gradient of `amax`, new memory filled with NaN."""
    plain = mock.patch.dict(processors.TABLE, {kind(): {}})
    with plain, mock.patch.object(attention, "_with_places", return_value=False):
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextlib.contextmanager
def without_own_ways() -> Iterator[None]:
    """The network of PyTorch's own operations alone, which is all that `torch.compile` sees through."""
    with (
        mock.patch.object(Conv3x3, "forward", torch.nn.Conv2d.forward),
        mock.patch.object(attention, "mean_and_max_of_pixels", lambda x: (x.mean((2, 3)), x.amax((2, 3)))),
        mock.patch.object(attention, "mean_and_max_of_channels", lambda x: (x.mean(1), x.amax(1))),
    ):
        yield


def noise(count: int, size: int, seed: int) -> LabelledCells:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return LabelledCells(images, random.integers(0, 5, count), tuple(map(str, range(count))))


def pool_of(size: int) -> UnlabelledCells:
    pool = noise(CELLS, size, 1)
    return UnlabelledCells(pool.sha256s, lambda names: pool.images[[int(name) for name in names]])


def at_work(training: Training) -> Training:
    """The training at its pseudo-labels where it has any."""
    training.network.train()
    if training.pseudo is not None:
        training.pseudo.use(PseudoLabels(torch.from_numpy(noise(CELLS, 1, 1).labels), torch.ones(CELLS)))
    return training


def training_of(params: Params, folder: Path, pseudo: bool) -> Training:
    """A training on noise that is at its hard samples, and at its pseudo-labels where it has any."""
    size = params.size.image_size
    few = {"ema": 0.99, "logit_adjustment": 1.0, "unlabelled_ratio": 1.0} if pseudo else {}
    params = params.model_copy(update={"train": params.train.model_copy(update=few)})
    labelled = noise(CELLS, size, 0)
    training = Training.of_pools(params, labelled, noise(64, size, 2), folder / f"checkpoint-{pseudo}", pool_of(size))
    training.batches.weights = torch.ones(CELLS)
    return at_work(training)


def onboarding_of(params: Params, folder: Path, was: bool) -> Training:
    """An onboarding without labels on noise, as it was before decision 063 or as it is."""
    size = params.size
    params = params.model_copy(update={"train": params.train.model_copy(update=ADAPTATION)})
    home, site = (noise(count, size.image_size, 0) for count in (CELLS, 0))
    batches, pseudo = SiteBatches(home, site, params, 0.0), PseudoLabelling(pool_of(size.image_size), params, 0.0)
    fixed = () if was else FIXED
    return at_work(Training(params, batches, home, folder / f"onboarding-{was}", pseudo, keep=the_last, fixed=fixed))


def updates(was: Training, now: Training, rounds: int, clock: Clock) -> dict[str, Any]:
    """Seconds of an update before and after, and the median of their ratio over the rounds with its range."""
    update = was.params.size.updates // 2

    def before() -> None:
        with as_it_was():
            was.step(update)

    seconds = taking_turns({"before": before, "after": lambda: now.step(update)}, rounds, clock)
    ratios = [b / a for a, b in zip(seconds["after"], seconds["before"], strict=True)]
    return {
        "images": {"before": images_of(was), "after": images_of(now)},
        "seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "times_as_fast": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def compiled(params: Params, folder: Path, rounds: int, clock: Clock) -> dict[str, Any]:
    """Seconds of an update of training: by PyTorch's own operations, these compiled, and as it is."""
    trainings = {name: training_of(params, folder / name, pseudo=False) for name in ("plain", "compiled", "now")}
    trainings["compiled"].module = torch.compile(trainings["compiled"].module, dynamic=False)

    def step(name: str) -> None:
        with contextlib.nullcontext() if name == "now" else without_own_ways():
            trainings[name].step(params.size.updates // 2)

    seconds = taking_turns({name: partial(step, name) for name in trainings}, rounds, clock)
    medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    least = limit(trainings["now"], clock)
    return {"of": "torch.compile", "seconds": medians, **least, "of_the_least": round(medians["now"] / least["least"], 2)}


def limit(training: Training, clock: Clock) -> dict[str, float]:
    """The sums of an update in GFLOP, how many a large matrix product does in a second, and the seconds at that rate."""
    with FlopCounterMode(display=False) as counter:
        training.step(training.params.size.updates // 2)
    side, precision = 2048, torch.float32 if kind() == "other" else torch.bfloat16
    left, right = (torch.randn(side, side).to(precision) for _ in range(2))
    best = min(taking_turns({"product": lambda: left @ right}, 10, clock)["product"])
    sums, rate = counter.get_total_flops() / 1e9, 2 * side**3 / best / 1e9
    return {"gflop": round(sums, 1), "gflop_per_second": round(rate), "least": round(sums / rate, 4)}


def images_of(training: Training) -> int:
    return training.params.size.batch_size + (training.pseudo.count if training.pseudo is not None else 0)


def all_updates(rounds: int, clock: Clock) -> list[dict[str, Any]]:
    """A row for an update of training, of one with pseudo-labels, and of an onboarding."""
    params, rows = read_params(ROOT / "params.yaml").model_copy(update={"preset": "small"}), []
    with tempfile.TemporaryDirectory() as name:
        for pseudo in (False, True):
            one = training_of(params, Path(name), pseudo)
            rows.append({"of": "training", **updates(one, one, rounds, clock)})
        rows.append(compiled(params, Path(name), rounds, clock))
        was, now = (onboarding_of(params, Path(name), was) for was in (True, False))
        rows.append({"of": "onboarding", **updates(was, now, rounds, clock)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", action="store_true")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--kind", choices=TABLE, default=kind(), help="`other` measures float32 on a processor of any kind")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.thread_time if given.threads == 1 else time.perf_counter
    if given.updates:
        rows = all_updates(given.rounds, clock)
        print(json.dumps({"kind": kind(), "processor": name_of_processor(), "threads": given.threads, "updates": rows}, indent=2))
        return
    measured = convolutions(given.kind, given.rounds, clock)
    path = given.out / FILE
    before = pd.read_csv(path) if path.exists() else measured.iloc[:0]
    table = pd.concat([before[before["kind"] != given.kind], measured], ignore_index=True)
    with publishing(given.out) as folder:
        table.to_csv(folder / FILE, index=False)
        (folder / "README.md").write_text(readme(table))
    print(measured.to_string(index=False))
    print(f"\nthe row of wbc_model/network/processors.py:\n    {given.kind!r}: {fastest(measured)},")


if __name__ == "__main__":
    main()
