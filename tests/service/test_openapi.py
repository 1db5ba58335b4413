"""The OpenAPI document is right: schemathesis makes requests from it and holds the answers of a real server to it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live import ROOT, Server, clean_environment, form, free_port, of_class, serve_command, started

from serving.reports.store import sqlite_url

KEY = "a-key-of-the-ward"
# a valid If-Match that names another version than the report's is 412, none at all 428; a key whose report was removed is 410
SETTINGS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "404", "409", "410", "412"]
[checks.missing_required_header]
expected-statuses = ["401", "422", "428"]
"""


@pytest.fixture(scope="module")
def guarded(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key, as the document says that one is needed, and with a store that keeps images."""
    port, folder = free_port(), tmp_path_factory.mktemp("guarded")
    (folder / "site.yaml").write_text("keep_images: true\n")
    store = {"WBC_STORE_URL": sqlite_url(folder / "service.db"), "WBC_SITE_FILE": str(folder / "site.yaml")}
    environment = clean_environment(WBC_API_KEYS=KEY, **store)
    with started(serve_command(model_dir, port), port, folder, environment, ROOT) as running:
        yield running


# The coverage phase writes a request for each rule of the document, some 1,700: too many for the fast suite.
@pytest.mark.parametrize(
    ("phases", "accept", "examples"),
    [
        ("fuzzing", None, 1),
        pytest.param("coverage,fuzzing", None, 6, marks=pytest.mark.slow),
        pytest.param("fuzzing", "application/fhir+json", 6, marks=pytest.mark.slow),
    ],
)
def test_every_answer_is_one_that_the_document_describes(
    guarded: Server, tmp_path: Path, phases: str, accept: str | None, examples: int
) -> None:
    """Valid requests are taken, others refused, and every status, media type and body is in the document."""
    line = [sys.executable, "-m", "schemathesis.cli", "run", f"{guarded.url}/v1/openapi.json", "-H", f"X-API-Key: {KEY}"]
    line += ["--max-examples", str(examples), "--seed", "1", "--no-color", "--warnings", "off", "--phases", phases]
    line += ["-H", f"Accept: {accept}", "--include-path", "/v1/differential"] if accept else []
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    url, headers = f"{guarded.url}/v1/differential", {"X-API-Key": KEY}
    report = httpx.post(url, files=form(of_class("Basophil"), of_class("Monocyte")), headers=headers).json()["report_id"]
    hooks = {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "WBC_TEST_REPORT": report}
    environment = clean_environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests/service'}") | hooks
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout
