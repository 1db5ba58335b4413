"""Prefect must not touch the user's home when a test imports it."""

import os
import tempfile

os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="wbc-test-prefect-"))
