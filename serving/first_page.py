"""Showing the page to the person who starts the service: its address with the key in it, once, to a terminal and to nothing else.

`python -m serving.first_page FILE PORT` waits for the service and opens FILE, which leads a browser on to the page: as an
argument of the browser the key would stand in the list of processes, for everybody on the machine.
"""

import html
import os
import socket
import subprocess
import sys
import time
import webbrowser
from pathlib import Path
from typing import Final

START_SECONDS: Final = 120.0
READ_SECONDS: Final = 20.0  # in which the browser has read the file
HINT: Final = "the page asks for a key: `wbc keys add NAME --scope classify --scope review` makes one"


def show(host: str, port: int, key: str | None, folder: Path, page: str = "") -> None:
    """Print the address of a page with the key that was made now; without a terminal, or a new key, only how to make one.

    Opens it where there is a display; `folder` is for the file by which that is done.
    """
    terminal = next((stream for stream in (sys.stdout, sys.stderr) if stream.isatty()), None)
    if key is None or terminal is None:
        print(f"wbc: {HINT}", file=sys.stderr)
        return
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/{page}#key={key}"
    print(
        f"\n    {address}\n\n  The page, with its key: shown only now, kept nowhere. Later, {HINT}.\n", file=terminal, flush=True
    )
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin":
        _open_later(address, port, folder)


def _open_later(address: str, port: int, folder: Path) -> None:
    """In a process of its own, since this one is about to become the server."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"page-{port}.html"
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as page:
        page.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(address)}">')
    command = [sys.executable, "-P", "-m", __name__, str(file), str(port)]
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


def open_when_ready(file: Path, port: int) -> None:
    """Open the file in the person's browser once something listens on the port; then take it away."""
    deadline = time.monotonic() + START_SECONDS
    try:
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    webbrowser.open(file.as_uri())
                    time.sleep(READ_SECONDS)
                    return
            time.sleep(0.2)
    finally:
        file.unlink(missing_ok=True)


if __name__ == "__main__":
    open_when_ready(Path(sys.argv[1]), int(sys.argv[2]))
