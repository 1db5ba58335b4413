"""Prefect must not touch the user's home when a test imports it; the marker of the studies that a normal run leaves out."""

import os
import tempfile

import pytest

os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="wbc-test-prefect-"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: minutes long; run with `-m slow`")
