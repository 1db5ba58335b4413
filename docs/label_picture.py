"""docs/images/label.png: the page for labelling on real cells, as a reader sees it after a few answers.

    python docs/label_picture.py MODEL_DIR ../shared/data/pbc.csv

The cells are drawn from the manifest's test split by a seed, and the reference cells from its training split. Needs Chromium and
the package of the group `dev`. The service, its store and its key live in a temporary folder.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from page_picture import ROOT, served, shrink
from playwright.sync_api import sync_playwright

from serving.contract.site import read_site
from serving.labelling.queue import AskedCell, Notice, publish
from serving.reports.store import Store, sqlite_url
from serving.security.keys import add_key
from wbc_model.core.classes import CLASSES

NOTICE = Notice("home", 3, "v1", next_step="When 60 more cells are agreed the model learns again.")
ANSWERS = ("5", "3", "b")  # keys that are pressed before the picture is taken


def asked(manifest: Path, count: int, seed: int) -> Iterator[AskedCell]:
    """`count` cells to be named, and four reference cells of each class."""
    table = pd.read_csv(manifest)
    for rank, path in enumerate(table[table["split"] == "test"].sample(count, random_state=seed)["path"]):
        data = (manifest.parent / path).read_bytes()
        yield AskedCell(hashlib.sha256(data).hexdigest(), data, rank, "uncertain")
    for label in CLASSES:
        known = table[(table["split"] == "train") & (table["label"] == label)]
        for path in known.sample(4, random_state=seed)["path"]:
            data = (manifest.parent / path).read_bytes()
            yield AskedCell(hashlib.sha256(data).hexdigest(), data, 0, "reference", "reference", label)


def photograph(url: str, key: str, out: Path) -> None:
    """Name the first cells by key, then take the picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, locale="en-GB", color_scheme="light")
        page.goto(f"{url}/label#key={key}")
        for answer in ANSWERS:
            page.locator("#picture img").wait_for()
            page.wait_for_timeout(1800)
            page.keyboard.press(answer)
        page.wait_for_timeout(1800)
        page.screenshot(path=out)
        browser.close()
    shrink(out)


def main() -> None:
    """Serve the model, ask about the cells, take the picture, stop the service."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path, help="with the columns path, label and split")
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/label.png")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key = add_key(folder / "keys", "reader", ["label"], "Dr. A. Lindgren")
        store = Store.open(sqlite_url(folder / "service.db"))
        publish(store, "0123456789ab", NOTICE, asked(given.manifest, given.cells, given.seed), read_site())
        store.close()
        with served(given.model, folder, WBC_API_KEYS_FILE=str(folder / "keys")) as url:
            photograph(url, key, given.out)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
