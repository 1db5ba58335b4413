"""Where the real images are, for the tests that need them."""

import os
from pathlib import Path

import pytest


def real_data() -> Path:
    """The folder of WBC_REAL_DATA, default ../shared/data beside the checkout; skips the test where it is absent."""
    folder = Path(os.environ.get("WBC_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "pbc.csv").is_file():
        pytest.skip(f"no real images at {folder}: set WBC_REAL_DATA to a folder with pbc.csv")
    return folder
