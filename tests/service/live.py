"""Starting a real server for a test, and images to send to it."""

import contextlib
import io
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_model import COLOURS

import serving

START_SECONDS = 90
ROOT = Path(str(serving.__file__)).parent.parent
_NUMBERS = itertools.count()


def free_port() -> int:
    """A port that nothing listens on. Below those that the system gives to outgoing connections: one of these may be taken by
    another test's client before the server that is meant for it has bound it."""
    while True:
        port = random.SystemRandom().randrange(12_000, 30_000)
        with socket.socket() as listener:
            try:
                listener.bind(("0.0.0.0", port))  # noqa: S104 - closed at once
            except OSError:
                continue
            return port


def encode(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    """An array (H, W, 3), a colour or a Pillow image as the bytes of a file."""
    if isinstance(pixels, tuple):
        pixels = Image.new("RGB", (40, 40), pixels)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels, np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def of_colour(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    """A file of one colour, each time another one, as two photographs are."""
    number = str(next(_NUMBERS))
    if kind == "JPEG":
        return encode(colour, kind, comment=number.encode())
    info = PngInfo()
    info.add_text("number", number)
    return encode(colour, kind, pnginfo=info)


def of_class(label: str, kind: str = "PNG") -> bytes:
    """A file that the tiny model takes for a class, each time another one."""
    return of_colour(COLOURS[label], kind)


def ambiguous() -> bytes:
    """A file halfway between an eosinophil and a monocyte, each time another one."""
    return of_colour((128, 0, 0))


def form(*files: bytes, field: str = "images") -> list[tuple[str, tuple[str, bytes, str]]]:
    """The `files` argument of httpx for images named 0.png, 1.png, ..."""
    return [(field, (f"{number}.png", data, "application/octet-stream")) for number, data in enumerate(files)]


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def processes(self) -> list[int]:
        """Process ids of the server and everything it started."""
        found, parents = [self.process.pid], [self.process.pid]
        while parents:
            children = Path(f"/proc/{parents[0]}/task/{parents[0]}/children").read_text().split()
            parents = parents[1:] + [int(child) for child in children]
            found += [int(child) for child in children]
        return found


def wait_ready(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/readyz", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"the server did not get ready:\n{server.log.read_text()}")


@contextlib.contextmanager
def started(
    command: list[str],
    port: int,
    folder: Path,
    environment: dict[str, str],
    cwd: Path | None = None,
    wait: Callable[[Server], None] = wait_ready,
) -> Iterator[Server]:
    """Run a command that serves on a port, wait until it is ready, and end it with SIGTERM."""
    log = folder / f"server-{port}.log"
    environment = {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1", **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, cwd=cwd, stdout=output, stderr=output)
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        wait(server)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def clean_environment(**more: str) -> dict[str, str]:
    """This environment without what would change the server under test."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("WBC_", "BENTOML_", "PYTHON"))} | more


def serve_command(model: Path, port: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "serving.run", "--model", str(model), "--port", str(port), *more]


def fails_to_start(command: list[str], **environment: str) -> str:
    """The one line with which a command ends that must not start."""
    result = subprocess.run(
        command, env=clean_environment(**environment), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode != 0
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]
