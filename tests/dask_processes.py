"""A Dask scheduler and its workers as somebody else starts them: by Dask's own commands, in a folder of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
SECONDS = 60


@contextmanager
def silent(address: str) -> Iterator[None]:
    """For as long as the block lasts the scheduler at this address stands still, with its connections open."""
    port = int(address.rpartition(":")[2])
    found = [one.pid for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN and one.laddr.port == port]
    (process,) = {psutil.Process(pid) for pid in found if pid is not None}
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@contextmanager
def dask_processes(folder: Path, workers: int = 2, code: Path = ROOT) -> Iterator[str]:
    """The address of the scheduler, for `retrain.runner`. The workers have the `code` of this folder."""
    folder.mkdir()
    told = folder / "scheduler.json"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(code)}
    dask = [sys.executable, "-m", "dask"]
    commands = [["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(told)]]
    commands += [["worker", "--scheduler-file", str(told), "--nthreads", "1", "--no-dashboard", "--name", f"w{number}"]
                 for number in range(workers)]  # fmt: skip
    with ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"{number}.log").open("wb"))
            process = subprocess.Popen([*dask, *command], cwd=folder, env=variables, stdout=log, stderr=log)
            stack.callback(_end, process)
            _wait_for(told, process)
        yield _address(told)


def _address(told: Path) -> str:
    return str(json.loads(told.read_text())["address"])


def _wait_for(told: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + SECONDS
    while not told.is_file() or not told.stat().st_size:
        assert process.poll() is None
        assert time.monotonic() < deadline, "the scheduler does not start"
        time.sleep(0.1)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait(SECONDS)
