"""Labels and pools across real git and DVC: a clone without its data, a checkout of an older version, a merge of two logs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows.pipeline.dvc import TRACKED
from tests.code.test_flow import environment
from wbc_model.core.classes import CLASSES

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")]


def run(folder: Path, *command: str, code: int = 0) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def wbc(folder: Path, *arguments: str, code: int = 0) -> str:
    return run(folder, sys.executable, "-m", "flows.cli", *arguments, code=code)


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments)


def bring_back(folder: Path) -> None:
    """The data of the commit that is checked out; the pipeline never ran here, so that its outputs are asked for by nobody."""
    dvc(folder, "checkout", "-q", "--force", *(str(note.relative_to(folder)) for note in folder.glob("data/*.dvc")))


def version(folder: Path, name: str) -> None:
    """What a retraining with --commit does before it trains."""
    dvc(folder, "add", "-q", *(one for one in TRACKED if (folder / one).exists()))
    run(folder, "git", "add", "-A", "data")
    run(folder, "git", "commit", "-qm", name)
    run(folder, "git", "tag", name)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of three versions: ingested, a label given, that label superseded; all of it pushed."""
    folder = tmp_path_factory.mktemp("clone")
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        rows.append([f"{number}.png", CLASSES[number % 5], "train" if number < 30 else "test"])
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(folder / "manifest.csv", index=False)
    workspace = folder / "site"
    wbc(folder, "init", str(workspace))
    dvc(workspace, "remote", "add", "-d", "store", str(folder / "store"))
    run(workspace, "git", "commit", "-qam", "a remote")
    wbc(workspace, "ingest", str(folder / "manifest.csv"))
    version(workspace, "pools-v1")
    cells = waiting(workspace)
    oracle = pd.read_csv(workspace / "data/oracle.csv").set_index("sha256")["label"]
    first, second = [name for name in CLASSES if name != oracle[cells[0]]][:2]
    for number, label in ((2, first), (3, second)):
        wbc(workspace, "labels", "decide", cells[0], label, "--by", "ada", "--why", "seen")
        version(workspace, f"pools-v{number}")
    dvc(workspace, "push", "-q", "-A")
    return workspace


def waiting(workspace: Path) -> list[str]:
    table = pd.read_csv(workspace / "data/pools/unlabelled.csv")
    return [str(sha256) for sha256 in table.sort_values("path")["sha256"]]


def test_a_clone_without_its_data_begins_nothing_and_says_what_brings_it(site: Path, tmp_path: Path) -> None:
    run(tmp_path, "git", "clone", "-q", str(site), "clone")
    clone = tmp_path / "clone"
    before = run(clone, "git", "status", "--porcelain")
    for command in (
        ["ingest", str(site.parent / "manifest.csv")],
        ["retrain"],
        ["train"],
        ["labels", "status"],
        ["labels", "decide", "0.png", "Monocyte", "--by", "ada", "--why", "x"],
    ):
        said = wbc(clone, *command, code=1)
        line = said.splitlines()[-1]
        assert re.search("`dvc pull data/.*` brings it", line), said
    assert run(clone, "git", "status", "--porcelain") == before
    assert not (clone / "data/pools").exists()
    assert not (clone / "data/images").exists()
    dvc(clone, *line.split("`")[1].split()[1:])
    report = json.loads(wbc(clone, "ingest", str(site.parent / "manifest.csv"), "--json", code=3))
    assert (report["known"], sum(report["added"].values()), len(report["conflicts"])) == (39, 0, 1)
    (conflict,) = report["conflicts"]
    assert conflict["labelled_by"] == "ada"
    named = wbc(clone, "labels", "decide")
    assert (
        f"is labelled {conflict['label']} by ada: `wbc labels decide {conflict['sha256'][:12]} LABEL --by NAME --why REASON`"
        in named
    )


def test_after_a_checkout_of_an_older_version_no_later_label_is_replayed_unasked(site: Path, tmp_path: Path) -> None:
    workspace = Path(shutil.copytree(site, tmp_path / "copy", symlinks=True))
    cells = waiting(workspace)
    answers = tmp_path / "answers.csv"
    answers.write_text(f"sha256,label\n{cells[1]},Monocyte\n")
    run(workspace, "git", "checkout", "-q", "pools-v1")
    bring_back(workspace)
    assert (workspace / "data/labels.csv").exists(), "pools-v1 has no log: git and DVC leave the later one where it is"
    pools = {path: path.read_bytes() for path in (workspace / "data/pools").iterdir()}
    for command in (["labels", "import", str(answers)], ["retrain"]):
        said = wbc(workspace, *command, code=1)
        assert "1 label that the pools do not" in said, said
        assert "`wbc labels replay`" in said
    assert {path: path.read_bytes() for path in pools} == pools
    run(workspace, "git", "checkout", "-q", "pools-v2")
    bring_back(workspace)
    assert len((workspace / "data/labels.csv").read_text().splitlines()) == 2
    assert json.loads(wbc(workspace, "labels", "import", str(answers), "--json"))["new"] == 1
    run(workspace, "git", "checkout", "-q", "pools-v3")
    bring_back(workspace)
    log = pd.read_csv(workspace / "data/labels.csv")
    assert (log["sha256"].nunique(), log["label"].nunique(), log["why"].tolist()) == (1, 2, ["seen", "seen"])
    assert "1 label was superseded by later ones" in wbc(workspace, "labels", "status")
    # What is none of the five comes and goes with its version as labels do.
    wbc(workspace, "labels", "decide", cells[2], "Smudge", "--by", "ada", "--why", "torn")
    version(workspace, "pools-v4")
    run(workspace, "git", "checkout", "-q", "pools-v3")
    bring_back(workspace)
    assert "data/none_of_five.csv has 1 label that the pools do not" in wbc(workspace, "labels", "import", str(answers), code=1)
    run(workspace, "git", "checkout", "-q", "pools-v4")
    bring_back(workspace)
    assert json.loads(wbc(workspace, "labels", "status", "--json"))["none_of_five"] == {"Smudge": 1}
