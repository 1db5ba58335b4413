"""axe-core, which finds what people with a screen reader, a keyboard or weak eyes cannot use; npm brings it once.

It is 650 kB under MPL-2.0 and no part of this repository: it lies in the cache of the user. Without npm, or without a network on
the first time, the tests that need it are skipped.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

VERSION = "4.14.1"
SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wbc-tests" / f"axe-{VERSION}.min.js"


@cache
def source() -> str:
    """The program; skips the test where it cannot be had."""
    if not CACHE.is_file():
        _fetch()
    content = CACHE.read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256, f"{CACHE} is not axe-core {VERSION}: delete it"
    return content.decode()


def _fetch() -> None:
    if (npm := shutil.which("npm")) is None:
        pytest.skip("npm is missing, which brings axe-core")
    with tempfile.TemporaryDirectory() as name:
        line = [npm, "pack", f"axe-core@{VERSION}", "--silent", "--pack-destination", name]
        done = subprocess.run(line, cwd=name, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot fetch axe-core {VERSION}: is there a network?")
        [archive] = Path(name).glob("*.tgz")
        with tarfile.open(archive) as tar:
            member = tar.extractfile("package/axe.min.js")
            assert member is not None
            content = member.read()
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    CACHE.write_bytes(content)


def complaints(page: Page) -> list[str]:
    """What axe-core finds on the page as it is now: the rule, what it asks for, and where."""
    page.evaluate(source())
    # Evaluated from outside: the page's own policy would let no such script in.
    found: list[dict[str, Any]] = page.evaluate("async () => (await axe.run(document)).violations")
    return [f"{one['id']}: {one['help']}: {node['target']}" for one in found for node in one["nodes"]]
