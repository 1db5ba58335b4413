"""How fast the service is, beside a bare loop and beside the obvious service.

    python studies/serving_speed.py [--seconds 10] [--repeats 5] [--model DIR ...] [--out studies/serving_speed] [--int8]

Load comes from a process of its own (studies/http_load.py) on the same cores. What is compared is measured in alternating
blocks of --seconds. So the machine's drift falls on both sides. A ratio is the median over the repeats, with its range.

Without --model two networks with random weights are made, at 224 and 64 px. Speed does not depend on what a network has learnt,
with one exception: the service computes the cells it is unsure of again in float32. So the random networks get a temperature at
which they are unsure of as many cells as a trained one is (UNSURE). Images are 320x320 JPEG, real ones where $WBC_REAL_DATA has
the data set pbc, and rendered ones elsewhere.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from flows.studies.results import claim, publishing
from flows.workspace import find_workspace
from serving.inference.classify import Classifier
from serving.inference.engine import OpenVinoEngine, thread_count
from wbc_model.core.images import look
from wbc_model.core.model_card import Architecture, ModelCard, Normalisation, read_card
from wbc_model.core.probabilities import softmax

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("WBC_REAL_DATA", ROOT.parent / "shared" / "data"))
CELLS, SIDE, REQUEST, CHUNK = 512, 320, 64, 16
UNSURE = 0.06  # of the test cells of pbc have a best probability under 0.9 with a network trained at 64 px
BULK_CLIENTS, SINGLE_CLIENTS = 3, 16
STARTS = 3
Side = dict[str, float]
Measure = Callable[[], Side]


# ---------------------------------------------------------------- what is served


def write_images(folder: Path) -> str:
    """CELLS cells as 320x320 JPEG files; returns what they are."""
    folder.mkdir()
    real = sorted(REAL.glob("pbc/test/*/*.jpg"))
    if real:
        chosen = [real[at] for at in np.random.default_rng(0).choice(len(real), CELLS, replace=False)]
        for number, path in enumerate(chosen):
            (folder / f"{number:04d}.jpg").write_bytes(path.read_bytes())
        return "real cells (pbc, test split)"
    from wbc_model.rendering.cells import render_cells

    for number, cell in enumerate(render_cells(CELLS, seed=0, size=SIDE)):
        Image.fromarray(cell.pixels).save(folder / f"{number:04d}.jpg", quality=90)
    return "rendered cells"


def random_model(directory: Path, size: int, files: Sequence[bytes]) -> Path:
    """A model directory with random weights that is unsure of UNSURE of the cells, calibrated on these cells."""
    import torch

    from wbc_model.evaluation.calibrate import fit_out_of_distribution
    from wbc_model.network.model_directory import save_model
    from wbc_model.network.predict import predict
    from wbc_model.network.resnet import MEAN, STD, AttentionResNet18

    torch.manual_seed(0)
    network = AttentionResNet18("cbam", lossnet=True)
    seen = [look(data, size, "canonical") for data in files]
    predictions = predict(network, np.array_split(np.stack([view for view, _ in seen]), len(seen) // CHUNK))
    logits = predictions.logits - predictions.logits.mean(axis=0)  # random weights have a favourite class
    low, high = 1e-6, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        unsure = (softmax(logits, middle).max(axis=1) < 0.9).mean()
        low, high = (low, middle) if unsure > UNSURE else (middle, high)
    with torch.no_grad():
        network.fc.bias -= torch.from_numpy(predictions.logits.mean(axis=0))
    predictions = predictions._replace(logits=logits)
    card = ModelCard(
        version=f"random-{size}",
        input_size=size,
        view="canonical",
        normalisation=Normalisation(mean=MEAN, std=STD),
        architecture=Architecture(attention="cbam", lossnet=True),
        temperature=low,
        conformal_threshold=0.2,
        out_of_distribution=fit_out_of_distribution(predictions, logits.argmax(axis=1), np.stack([shown for _, shown in seen])),
    )
    save_model(directory, network, card)
    return directory


# ---------------------------------------------------------------- servers


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(folder: Path, model: Path) -> dict[str, str]:
    """This environment without what would change a server, and with caches of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WBC_", "BENTOML_", "OMP_", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), "WBC_MODEL_DIR": str(model)}


def ours(model: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "serving.run", "--model", str(model), "--port", str(port)]


def obvious(model: Path, port: int) -> list[str]:
    where = ["--app-dir", str(ROOT / "studies"), "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "uvicorn", "obvious_service:app", "--no-access-log", *where]


class Server:
    """A running server: its address, process, and the seconds from its start to /readyz."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process, self.url, begin = process, f"http://127.0.0.1:{port}", time.perf_counter()
        while process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    self.seconds_to_ready = time.perf_counter() - begin
                    return
            time.sleep(0.02)
        raise SystemExit(f"{process.args} ended with {process.returncode} before it was ready")

    def memory(self) -> Side:
        """Resident memory of the server and all its children in MiB: `pss` shares out what processes share, `rss` does not."""
        waiting, sums, count = [self.process.pid], {"Pss:": 0, "Rss:": 0}, 0
        while waiting:
            pid = waiting.pop()
            waiting += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
            count += 1
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, rest = line.partition(" ")
                if name in sums:
                    sums[name] += int(rest.split()[0])
        return {"pss_mib": sums["Pss:"] / 1024, "rss_mib": sums["Rss:"] / 1024, "processes": count}


@contextlib.contextmanager
def running(command: Callable[[Path, int], list[str]], model: Path, folder: Path, **more: str) -> Iterator[Server]:
    port = free_port()
    with (folder / f"server-{port}.log").open("wb") as log:
        variables = environment(folder, model) | more
        process = subprocess.Popen(command(model, port), env=variables, cwd=folder, stdout=log, stderr=log)
    try:
        yield Server(process, port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class Sink(BaseHTTPRequestHandler):
    """Takes what OpenTelemetry sends, and keeps nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """The address of a receiver of traces and metrics."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# ---------------------------------------------------------------- measuring


def sent(address: str, images: Path, each: int, clients: int, seconds: float) -> Side:
    """What studies/http_load.py says, run as a process."""
    program = [sys.executable, str(ROOT / "studies" / "http_load.py"), address, str(images)]
    more = ["--images", str(each), "--clients", str(clients), "--seconds", str(seconds)]
    answer = subprocess.run([*program, *more], check=True, capture_output=True, text=True)
    result: Side = json.loads(answer.stdout)
    return result


def bare_loop(infer: Callable[[Any], object], card: ModelCard, files: Sequence[bytes], seconds: float) -> Side:
    """Decode and infer in a loop, a thread a core, nothing else; images per second."""

    def work(number: int) -> float:
        begin, done, at = time.perf_counter(), 0, number * CHUNK
        while time.perf_counter() - begin < seconds:
            chosen = [files[(at + step) % len(files)] for step in range(CHUNK)]
            infer(np.stack([look(data, card.input_size, card.view)[0] for data in chosen]))
            done, at = done + CHUNK, at + CHUNK
        return done / (time.perf_counter() - begin)

    threads = thread_count()
    with ThreadPoolExecutor(threads) as pool:
        return {"images_per_second": sum(pool.map(work, range(threads)))}


def bare_call(engine: OpenVinoEngine, card: ModelCard, files: Sequence[bytes], seconds: float) -> Side:
    """Decode and infer one image after the other; median in ms."""
    times, begin = [], time.perf_counter()
    for at in range(10**9):
        start = time.perf_counter()
        engine.infer(look(files[at % len(files)], card.input_size, card.view)[0][None])
        times.append(1000 * (time.perf_counter() - start))
        if time.perf_counter() - begin > seconds:
            break
    return {"median_ms": statistics.median(times)}


def alternate(repeats: int, **sides: Measure) -> dict[str, list[Side]]:
    """Each side measured `repeats` times, turn about, the order turned round each time."""
    rows: dict[str, list[Side]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides)[:: 1 - 2 * (repeat % 2)]:
            rows[name].append(sides[name]())
    return rows


def spread(values: Sequence[float]) -> Side:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def over(rows: dict[str, list[Side]], above: str, below: str, what: str) -> Side:
    """The ratio of two sides, repeat by repeat."""
    return spread([a[what] / b[what] for a, b in zip(rows[above], rows[below], strict=True)])


# ---------------------------------------------------------------- the rows of the table


class Bench:
    """Images, options and results of one run, with a method per row of the table."""

    def __init__(self, folder: Path, images: Path, seconds: float, repeats: int) -> None:
        self.folder, self.images, self.seconds, self.repeats = folder, images, seconds, repeats
        self.files = [path.read_bytes() for path in sorted(images.glob("*.jpg"))]
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, target: str, found: str, met: bool | None, **measured: Any) -> None:
        """Note a row and print it."""
        self.rows.append({"what": what, "target": target, "found": found, "met": met, **measured})
        print(f"{what}: {found} (target {target})", flush=True)

    def load(self, server: Server, each: int, clients: int, path: str = "/v1/classify") -> Measure:
        """Requests of `each` images from so many clients."""
        return partial(sent, f"{server.url}{path}", self.images, each, clients, self.seconds)

    def against_loop(self, model: Path, server: Server) -> None:
        """64-image requests against decode and OpenVINO in a loop: without the second look in float32, and with it."""
        card = read_card(model)
        engine, classifier = OpenVinoEngine(model, thread_count()), Classifier.open(model)
        rows = alternate(
            self.repeats,
            service=self.load(server, REQUEST, BULK_CLIENTS),
            loop=lambda: bare_loop(engine.infer, card, self.files, self.seconds),
            answers=lambda: bare_loop(classifier.infer, card, self.files, self.seconds),
        )
        classifier.close()
        for below, of in {"loop": "a bare loop's images per second", "answers": "a loop that also asks float32"}.items():
            ratio = over(rows, "service", below, "images_per_second")
            what = f"{REQUEST}-image requests at {card.input_size} px, share of {of}"
            self.add(what, "≥ 95 %", _text(ratio, "{:.0%}"), ratio["median"] >= 0.95, ratio=ratio, sides=rows)

    def one_image(self, model: Path, server: Server) -> None:
        """One image, one client: time above decode and a bare engine call."""
        card = read_card(model)
        engine = OpenVinoEngine(model, thread_count())
        rows = alternate(
            self.repeats,
            service=self.load(server, 1, 1),
            call=lambda: bare_call(engine, card, self.files, self.seconds),
        )
        extra = spread([a["median_ms"] - b["median_ms"] for a, b in zip(rows["service"], rows["call"], strict=True)])
        what = f"one image, one client at {card.input_size} px: ms above decode and a bare engine call"
        self.add(what, "≤ 4 ms median", _text(extra, "{:.1f}"), extra["median"] <= 4, extra_ms=extra, sides=rows)

    def against_obvious(self, model: Path, server: Server, other: Server, target: float, name: str) -> None:
        """64-image requests against the obvious service."""
        rows = alternate(
            self.repeats,
            service=self.load(server, REQUEST, BULK_CLIENTS),
            obvious=self.load(other, REQUEST, BULK_CLIENTS, "/classify"),
        )
        ratio = over(rows, "service", "obvious", "images_per_second")
        what = f"{REQUEST}-image requests at {read_card(model).input_size} px, {name}, against the obvious service"
        self.add(what, f"≥ {target:g}x", _text(ratio, "{:.1f}x"), ratio["median"] >= target, ratio=ratio, sides=rows)

    def single_against_obvious(self, model: Path, server: Server, other: Server) -> None:
        """One image a request from 16 clients against the obvious service."""
        rows = alternate(
            self.repeats,
            service=self.load(server, 1, SINGLE_CLIENTS),
            obvious=self.load(other, 1, SINGLE_CLIENTS, "/classify"),
        )
        ratio = over(rows, "service", "obvious", "requests_per_second")
        p99 = {name: spread([row["p99_ms"] for row in sides]) for name, sides in rows.items()}
        what = f"one image a request, {SINGLE_CLIENTS} clients at {read_card(model).input_size} px, against the obvious service"
        found = (
            f"{_text(ratio, '{:.1f}x')}; p99 {_text(p99['service'], '{:.0f}')} ms against {_text(p99['obvious'], '{:.0f}')} ms"
        )
        met = ratio["median"] >= 2 and p99["service"]["median"] <= p99["obvious"]["median"]
        self.add(what, "≥ 2x, p99 no worse", found, met, ratio=ratio, p99_ms=p99, sides=rows)

    def telemetry(self, model: Path, server: Server, watched: Server) -> None:
        """One image a request with OpenTelemetry's traces and metrics against without."""
        rows = alternate(
            self.repeats,
            off=self.load(server, 1, SINGLE_CLIENTS),
            on=self.load(watched, 1, SINGLE_CLIENTS),
        )
        ratio = over(rows, "on", "off", "requests_per_second")
        what = f"one image a request at {read_card(model).input_size} px, with OpenTelemetry against without"
        self.add(what, "≥ 90 %", _text(ratio, "{:.0%}"), ratio["median"] >= 0.9, ratio=ratio, sides=rows)

    def start_and_memory(self, model: Path) -> None:
        """From the start of the process to /readyz, and resident memory after the first seconds of load."""
        starts, memory = [], []
        for _ in range(STARTS):
            with running(ours, model, self.folder) as server:
                starts.append(server.seconds_to_ready)
                sent(f"{server.url}/v1/classify", self.images, REQUEST, BULK_CLIENTS, self.seconds)
                memory.append(server.memory())
        size, seconds = read_card(model).input_size, spread(starts)
        pss, rss = spread([row["pss_mib"] for row in memory]), spread([row["rss_mib"] for row in memory])
        mega = 2**20 / 1e6
        self.add(f"start to ready at {size} px", "≤ 6 s", _text(seconds, "{:.1f} s"), seconds["median"] <= 6, seconds=seconds)
        found = f"PSS {pss['high'] * mega:.0f} MB (RSS {rss['high'] * mega:.0f} MB)"
        what = f"resident memory after load at {size} px, all {memory[0]['processes']} processes"
        self.add(what, "≤ 700 MB", found, pss["high"] * mega <= 700, memory=memory)

    def int8_against_bf16(self, model: Path, int8: Path) -> None:
        """What the service computes of decoded cells, float32 for the unsure ones included, with the int8 graph and without."""
        card, threads = read_card(model), thread_count()
        views = np.stack([look(data, card.input_size, card.view)[0] for data in self.files[: 8 * CHUNK]])
        classifiers = {name: Classifier.open(path) for name, path in {"bf16": model, "int8": int8}.items()}

        def images_per_second(classifier: Classifier) -> Side:
            begin, done = time.perf_counter(), 0
            parts = np.array_split(views, len(views) // CHUNK)
            with ThreadPoolExecutor(threads) as pool:
                while time.perf_counter() - begin < self.seconds:
                    list(pool.map(classifier.infer, parts))
                    done += len(views)
            return {"images_per_second": done / (time.perf_counter() - begin)}

        sides = {name: partial(images_per_second, classifier) for name, classifier in classifiers.items()}
        rows = alternate(self.repeats, **sides)
        for classifier in classifiers.values():
            classifier.close()
        ratio = over(rows, "int8", "bf16", "images_per_second")
        what = f"inference at {card.input_size} px, int8 against bf16, what is unsure in float32"
        self.add(what, "≥ 1.3x", _text(ratio, "{:.2f}x"), ratio["median"] >= 1.3, ratio=ratio, sides=rows)


def _text(value: Side, form: str) -> str:
    low, high = form.format(value["low"]), form.format(value["high"])
    return f"{form.format(value['median'])} ({low} to {high})"


def with_int8(bench: Bench, model: Path) -> Path:
    """A copy of a model directory with a graph in int8, whatever its gate would say: here only its speed counts."""
    from flows.pipeline.quantise import CALIBRATION_CELLS, write_int8

    card, copy = read_card(model), bench.folder / f"{model.name}-int8"
    shutil.copytree(model, copy)
    write_int8(copy, np.stack([look(data, card.input_size, card.view)[0] for data in bench.files[:CALIBRATION_CELLS]]), copy)
    return copy


def measure_int8(bench: Bench, model: Path) -> None:
    """The rows for int8."""
    int8 = with_int8(bench, model)
    bench.int8_against_bf16(model, int8)
    if read_card(model).input_size >= 224:
        with running(ours, int8, bench.folder) as server, running(obvious, model, bench.folder) as other:
            bench.against_obvious(int8, server, other, 4.5, "int8")


def measure_model(bench: Bench, model: Path) -> None:
    """Every row for one model; the obvious service is measured where the table names it, at 224 px."""
    with running(ours, model, bench.folder) as server:
        bench.against_loop(model, server)
        bench.one_image(model, server)
        if read_card(model).input_size >= 224:
            with running(obvious, model, bench.folder) as other:
                bench.against_obvious(model, server, other, 2.5, "bf16")
                bench.single_against_obvious(model, server, other)
        else:
            with sink() as address, running(ours, model, bench.folder, OTEL_EXPORTER_OTLP_ENDPOINT=address) as watched:
                bench.telemetry(model, server, watched)
    bench.start_and_memory(model)


# ---------------------------------------------------------------- the report


def write_report(out: Path, bench: Bench, about: dict[str, Any]) -> None:
    """results.json with every repeat, and README.md with the table."""
    said = {True: "met", False: "**missed**", None: ""}
    table = [f"| {row['what']} | {row['target']} | {row['found']} | {said[row['met']]} |" for row in bench.rows]
    lines = [
        "# Speed of the service",
        "",
        f"`{about['command']}`, {about['date']}: {about['processor']}, {about['cores']} cores, load average "
        f"{about['load_average']:.1f} at the start. {about['images']}, {SIDE}x{SIDE} JPEG. Median of {bench.repeats} alternated "
        f"repeats of {bench.seconds:g} s with their range; load comes from a process of its own on the same cores.",
        "",
        "| what | target | found | |",
        "|---|---|---|---|",
        *table,
        "",
        "The bare loop decodes and infers 16 images at a time in one thread a core, with the service's decoder and engine. The "
        "loop that also asks float32 does so for the cells that the network is unsure of, as the service does. The obvious "
        "service is studies/obvious_service.py. Start is with the model's files in the page cache. PSS shares out between "
        "processes what they share; RSS counts it in each.",
        "",
    ]
    with publishing(out) as folder:
        (folder / "results.json").write_text(json.dumps({"about": about, "rows": bench.rows}, indent=1) + "\n")
        (folder / "README.md").write_text("\n".join(lines))


def about_this_run(images: str) -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    return {
        "command": "python " + " ".join([f"studies/{Path(__file__).name}", *sys.argv[1:]]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "images": images,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path, action="append", help="a model directory; may be given again")
    parser.add_argument("--int8", action="store_true", help="measure int8 too")
    parser.add_argument("--out", type=Path, default=ROOT / "studies" / "serving_speed")
    arguments = parser.parse_args()
    claim([arguments.out / name for name in ("results.json", "README.md")], find_workspace())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        about = about_this_run(write_images(folder / "images"))
        bench = Bench(folder, folder / "images", arguments.seconds, arguments.repeats)
        models = arguments.model or [random_model(folder / f"random-{size}", size, bench.files) for size in (224, 64)]
        for model in models:
            measure_model(bench, model.resolve())
            if arguments.int8:
                measure_int8(bench, model.resolve())
    write_report(arguments.out, bench, about)


if __name__ == "__main__":
    main()
