"""An older version meets what a newer one has written: it says so in one line, and harms nothing; the newer one goes on.

There is no release yet. The older version is the commit that tests/code/before was made by. What the newer one makes of an older
workspace is in tests/code/test_made_before.py.
"""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from live import free_port

from flows.state import read_state
from flows.workspace import STORE
from serving.reports.store import Store, sqlite_url
from tests.faults.life import IDENTITY, ROOT, is_refused, succeeds, two_labels
from tests.faults.whole import assert_whole, kept
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import CARD
from wbc_model.params import read_params

COMMIT = "336762a"


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of that commit."""
    folder = tmp_path_factory.mktemp("older")
    asked = ["git", "archive", "--format", "tar", "--output", str(folder / "code.tar"), COMMIT]
    if subprocess.run(asked, cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip(f"this clone does not have the commit {COMMIT}")
    with tarfile.open(folder / "code.tar") as code:
        code.extractall(folder / "code", filter="data")
    return folder / "code"


def say(code: Path, workspace: Path, *arguments: str) -> str:
    """The one line by which the older version's command ends."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    values = {**IDENTITY, "HOME": str(workspace.parent), "PATH": path, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-P", "-c", "from flows.cli import main; main()", *arguments]
    done = subprocess.run(line, cwd=workspace, env=values, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def content(workspace: Path) -> dict[str, str]:
    """Every file of the data and the models, by its hash; SQLite's own files beside the store come and go."""
    files = [path for name in ("data", "models", "params.yaml") for path in [workspace / name, *(workspace / name).rglob("*")]]
    kept_files = [path for path in files if path.is_file() and not path.name.startswith("service.")]
    return {str(path.relative_to(workspace)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept_files}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_older_version_leaves_a_newer_workspace_as_it_is(ward: Path, older: Path) -> None:
    before, files = kept(ward), content(ward)
    assert "newer version" in say(older, ward, "outbox")
    assert "model.json" in say(older, ward, "serve", "--port", str(free_port()))
    assert "params.yaml" in say(older, ward, "retrain")
    assert content(ward) == files
    assert_whole(ward, before, lambda: succeeds(ward, "labels", "import", str(two_labels(ward))))
    Store.open(sqlite_url(ward / STORE)).close()


def test_what_a_newer_version_has_written_is_one_line(ward: Path) -> None:
    """Today's version in the place of the older one, file by file."""
    before = kept(ward)
    params = (ward / "params.yaml").read_text()
    (ward / "params.yaml").write_text(params + "years_ahead: {speed: 1}\n")
    with pytest.raises(WbcError, match="years_ahead"):
        read_params(ward / "params.yaml")
    (ward / "params.yaml").write_text(params)
    state = ward / ".wbc/retrain.json"
    state.write_text(json.dumps({"key": "1", "of": "tomorrow"}))
    with pytest.raises(WbcError, match="of another version: remove it"):
        read_state(ward)
    state.unlink()
    card = ward / "models/champion" / CARD
    whole = card.read_text()
    card.write_text(json.dumps({**json.loads(whole), "wings": 2}))
    assert "wings" in is_refused(ward, "serve")
    card.write_text(whole)
    assert_whole(ward, before)
