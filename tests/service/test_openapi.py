"""The OpenAPI document is right: schemathesis makes requests from it and holds the answers of a real server to it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import ROOT, Server, clean_environment, free_port, serve_command, started

KEY = "a-key-of-the-ward"


@pytest.fixture(scope="module")
def guarded(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key: the document says that one is needed."""
    port, folder = free_port(), tmp_path_factory.mktemp("guarded")
    with started(serve_command(model_dir, port), port, folder, clean_environment(WBC_API_KEYS=KEY), ROOT) as running:
        yield running


@pytest.mark.parametrize("accept", [None, "application/fhir+json"])
def test_every_answer_is_one_that_the_document_describes(guarded: Server, tmp_path: Path, accept: str | None) -> None:
    """Valid requests are taken, others refused, and every status, media type and body is in the document."""
    line = [sys.executable, "-m", "schemathesis.cli", "run", f"{guarded.url}/v1/openapi.json", "-H", f"X-API-Key: {KEY}"]
    line += ["--max-examples", "30", "--seed", "1", "--phases", "coverage,fuzzing", "--no-color"]
    line += ["-H", f"Accept: {accept}", "--include-path", "/v1/differential"] if accept else []
    environment = clean_environment(SCHEMATHESIS_HOOKS="schemathesis_hooks", PYTHONPATH=f"{ROOT}:{ROOT / 'tests/service'}")
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout
