"""docs/images/page.png: the page with one specimen of real cells, as a person sees it after a few decisions.

    python docs/page_picture.py MODEL_DIR ../shared/data/pbc_raabin_like.csv

The specimen is drawn from the manifest's test split, in the shares of healthy blood, by a seed. Needs Chromium and the package
of the group `dev`. The service, its store and its key live in a temporary folder.
"""

import argparse
import contextlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pandas as pd
from PIL import Image
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[1]
SHARES = {"Neutrophil": 0.58, "Lymphocyte": 0.28, "Monocyte": 0.07, "Eosinophil": 0.055, "Basophil": 0.015}
COLOURS = 256  # of the PNG, which is a quarter of the size then


def draw_specimen(manifest: Path, folder: Path, count: int, seed: int) -> None:
    """Copy `count` cells of the test split into `folder`, under names that say nothing of their class."""
    table = pd.read_csv(manifest)
    test = table[table["split"] == "test"]
    parts = [test[test["label"] == name].sample(round(share * count), random_state=seed) for name, share in SHARES.items()]
    paths = pd.concat(parts)["path"].sample(frac=1, random_state=seed)
    folder.mkdir()
    for number, path in enumerate(paths):
        shutil.copy(manifest.parent / path, folder / f"cell-{number:03d}{Path(path).suffix}")


def photograph(url: str, key: str, specimen: Path, out: Path) -> None:
    """Drop the specimen on the page, accept the first two cells, look at the third, take the picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 840}, locale="en-GB", color_scheme="light")
        page.goto(f"{url}/#key={key}")
        page.fill("#specimen-id", "26-118-0417")
        page.fill("#wbc-count", "6.8")
        page.fill("#person", "Dr. A. Lindgren")
        page.set_input_files("#folder-input", specimen)
        expect(page.locator("#message")).to_contain_text("images read.", timeout=120_000)
        for pressed in ("r", "Enter", "Enter"):
            page.keyboard.press(pressed)
            page.wait_for_timeout(700)
        expect(page.locator("#cell-image")).to_be_visible(timeout=60_000)
        page.screenshot(path=out)
        browser.close()
    shrink(out)


def shrink(picture: Path) -> None:
    """Write a PNG again with COLOURS colours."""
    with Image.open(picture) as image:
        few = image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
    few.save(picture, optimize=True)


@contextlib.contextmanager
def served(model: Path, folder: Path, **settings: str) -> Iterator[str]:
    """The address of a service with this model, its store in the folder; it is stopped in the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"WBC_STORE_URL": f"sqlite:///{folder}/service.db", "HOME": str(folder), "PYTHONPATH": str(ROOT), **settings}
    command = [sys.executable, "-m", "serving.run", "--model", str(model.resolve()), "--port", str(port)]
    server = subprocess.Popen(command, env=environment, cwd=folder)
    try:
        _await_ready(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    """Serve the model, take the picture, stop the service."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path, help="with the columns path, label and split")
    parser.add_argument("--cells", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/page.png")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, key = Path(name), secrets.token_urlsafe(16)
        draw_specimen(given.manifest, folder / "specimen", given.cells, given.seed)
        with served(given.model, folder, WBC_API_KEYS=key) as url:
            photograph(url, key, folder / "specimen", given.out)
    print(f"wrote {given.out}")


def _await_ready(url: str, server: "subprocess.Popen[bytes]") -> None:
    while server.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).is_success:
                return
        except httpx.TransportError:  # it does not listen yet
            pass
        time.sleep(0.2)
    raise SystemExit("the service did not start")


if __name__ == "__main__":
    main()
