"""A stage's fingerprint changes with the code that it runs, and with nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.pipeline import installed
from flows.pipeline.fingerprint import STAGES, Entry, fingerprint, write_fingerprints
from flows.workspace import init_workspace, set_params, template
from wbc_model.code_version import ROOMS, modules_behind

ENTRY = Entry("flows.pipeline.stages:train", packages=("numpy",))
FILES = {
    "flows/__init__.py": "",
    "flows/pipeline/stages.py": """
import json
from wbc_model.data import load
LIMIT = 3
def helper(x):
    return x + LIMIT
def train(workspace):
    from wbc_model.lazy import fit
    return fit(helper(load()))
def evaluate(workspace):
    from wbc_model.score import score
    return json.dumps(score())
""",
    "wbc_model/__init__.py": "",
    "wbc_model/data.py": "from wbc_model import deep\n\ndef load():\n    return deep.VALUE\n",
    "wbc_model/deep.py": "VALUE = 1\n",
    "wbc_model/lazy.py": "def fit(x):\n    return x\n",
    "wbc_model/score.py": "def score():\n    return 1\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def changed(root: Path, name: str, old: str, new: str) -> tuple[bool, bool]:
    """Whether a replacement in a file changes the fingerprints of train and of evaluate."""
    entries = (ENTRY, Entry("flows.pipeline.stages:evaluate"))
    before = [fingerprint(entry, root) for entry in entries]
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new))
    after = [fingerprint(entry, root) for entry in entries]
    return before[0] != after[0], before[1] != after[1]


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("flows/pipeline/stages.py", "x + LIMIT", "x - LIMIT", (True, False)),  # a helper of train's
        ("flows/pipeline/stages.py", "LIMIT = 3", "LIMIT = 4", (True, False)),  # a constant that the helper uses
        ("flows/pipeline/stages.py", "json.dumps(score())", "score()", (False, True)),  # another stage's body
        ("wbc_model/deep.py", "VALUE = 1", "VALUE = 2", (True, True)),  # two imports away; evaluate's module imports it too
        ("wbc_model/lazy.py", "return x", "return -x", (True, False)),  # imported inside the function
        ("wbc_model/score.py", "return 1", "return 2", (False, True)),
        ("wbc_model/lazy.py", "return x", "return x  # as it came", (False, False)),
        ("wbc_model/lazy.py", "def fit(x):\n    return x", "def fit(x):\n\n    return x", (False, False)),
    ],
)
def test_what_counts(root: Path, name: str, old: str, new: str, expected: tuple[bool, bool]) -> None:
    if name == "wbc_model/deep.py":  # evaluate reaches it once it uses what imports it
        changed(root, "flows/pipeline/stages.py", "json.dumps(score())", "json.dumps(score() + load())")
    assert changed(root, name, old, new) == expected


def test_a_version_counts(root: Path) -> None:
    assert fingerprint(ENTRY, root) != fingerprint(Entry(ENTRY.function, packages=("pillow",)), root)


def test_the_real_stages_reach_their_code() -> None:
    assert len({fingerprint(entry) for entry in STAGES.values()}) == len(STAGES)
    assert {
        "wbc_model.network.resnet",
        "wbc_model.network.lossnet",
        "wbc_model.training.augment",
        "wbc_model.core.images",
    } <= set(modules_behind(STAGES["train"].function))


def test_other_initial_weights_in_the_same_file_are_another_training(tmp_path: Path) -> None:
    shutil.copyfile(template("params.yaml"), tmp_path / "params.yaml")
    plain = write_fingerprints(tmp_path)
    assert plain["train"] == fingerprint(STAGES["train"])
    set_params(tmp_path, {"model.init_weights": "resnet18.safetensors"})
    values = []
    for content in (b"some weights", b"other weights"):
        (tmp_path / "resnet18.safetensors").write_bytes(content)
        values.append(write_fingerprints(tmp_path))
    assert len({plain["train"], *(one["train"] for one in values)}) == 3
    assert values[0]["evaluate"] == values[1]["evaluate"]


@pytest.mark.slow
def test_dvc_status_finds_nothing_until_the_installed_code_changes(tmp_path: Path) -> None:
    root, code = Path(__file__).parents[2], tmp_path / "installed"
    for room in ROOMS:
        shutil.copytree(root / room, code / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(root / name, code / name)
    workspace = init_workspace(tmp_path / "site").workspace
    here = {"PYTHONPATH": str(code), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}

    def dvc(*arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=workspace, env=os.environ | here, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    dvc("repro", "code")
    assert json.loads(dvc("status", "--json", "code")) == {}
    assert "didn't change" in dvc("repro", "code")
    before = json.loads((workspace / "models/code.json").read_text())
    (code / "serving/formats/pdf.py").write_text((code / "serving/formats/pdf.py").read_text() + "\n\nNEW = 1\n")
    assert json.loads(dvc("status", "--json", "code")) == {"code": [{"changed outs": {"models/installed/serving": "modified"}}]}
    assert "Running stage 'code'" in dvc("repro", "code")
    after = json.loads((workspace / "models/code.json").read_text())
    assert {name for name in after if after[name] != before[name]} == {"package"}
    shown = subprocess.run(["git", "status", "--porcelain", "models"], cwd=workspace, capture_output=True, text=True, check=True)
    assert "installed" not in shown.stdout


def test_another_version_of_a_package_or_other_weights_are_seen_by_their_links(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"first")
    installed.link_code(tmp_path, weights)
    packages = tmp_path / "models/installed/packages"
    assert {link.name for link in packages.iterdir()} == {name for entry in STAGES.values() for name in entry.packages}
    assert all(link.resolve() != link and link.stat().st_size for link in packages.iterdir()), "each leads to a file that tells"
    assert (tmp_path / "models/installed/init_weights").read_bytes() == b"first"
    installed.link_code(tmp_path, None)
    assert (tmp_path / "models/installed/init_weights").read_bytes() == b""
    assert weights.read_bytes() == b"first"


def test_links_that_a_copy_or_a_move_spoiled_are_put_right(tmp_path: Path) -> None:
    installed.link_code(tmp_path, None)
    copy = tmp_path / "copy/models/installed"
    shutil.copytree(tmp_path / "models/installed", copy)  # follows the links
    gone = copy / "packages/numpy"
    gone.unlink()
    gone.symlink_to(tmp_path / "nowhere")
    installed.relink(tmp_path / "copy")
    root = Path(__file__).parents[2]
    assert [(copy / room).readlink() for room in ROOMS] == [root / room for room in ROOMS]
    assert not gone.is_symlink()
    assert (root / "flows/pipeline/installed.py").exists()
    installed.relink(tmp_path / "no workspace")
    assert not (tmp_path / "no workspace").exists()
