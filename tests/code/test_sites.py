"""A site that was onboarded is a workspace: versioned, registered, and what is typed in its folder acts on it."""

import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.champion import champions, roll_back
from flows.cli import app
from flows.sites import complete, parent_workspace, site_of
from flows.state import label_cycle
from flows.tracking import open_tracker
from flows.workspace import find_workspace, init_workspace, set_params
from tests.code.test_flow import IDENTITY
from tests.code.test_onboard import here, home, site_data, workspace  # noqa: F401 - fixtures
from wbc_model.card import read_card
from wbc_model.errors import WbcError
from wbc_model.ingest import ingest
from wbc_model.params import read_params
from wbc_model.pools import Pools


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout


def typed(folder: Path, *arguments: str) -> str:
    """What a command says that is typed in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        answer = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def older(parent: Path, data: Path, name: str = "manifest") -> Path:
    """A site as it was onboarded when sites were no workspaces: data without workspace files, hidden from git."""
    with (parent / ".gitignore").open("a") as file:
        file.write("# sites that the champion was adapted to\n/sites/\n# my own\n*.bak\n")
    site = parent / "sites" / name
    ingest(data, site / "data", read_params(parent / "params.yaml"), name, reveal_labels=False)
    return site


def test_an_onboarded_site_is_versioned_registered_and_acted_on_from_within(
    home: Path,  # noqa: F811
    workspace: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    for name, value in IDENTITY.items():
        monkeypatch.setenv(name, value)
    manifest = pd.read_csv(site_data(home))
    labels = dict(zip(manifest["path"], manifest["label"], strict=True))
    data = Path(shutil.copytree(home.parent / "site", tmp_path / "ward"))
    manifest[["path"]].to_csv(data / "manifest.csv", index=False)
    site = older(workspace, data / "manifest.csv")
    with pytest.raises(WbcError, match=r"onboarded when sites were no workspaces: `wbc onboard`"):
        find_workspace(site / "data")  # never the parent's instead

    waiting = here(workspace, str(data / "manifest.csv"), "--labels", "2", "--commit")
    assert waiting["workspace"] == str(site)
    assert find_workspace(site / "data") == site
    assert label_cycle(site) == 1
    typed(site, "labels", "export", str(tmp_path / "queue.csv"), "--images", str(tmp_path / "shown"))
    queue = pd.read_csv(tmp_path / "queue.csv", dtype=str)
    assert set(queue["sha256"]) <= set(Pools.read(site / "data/pools").table()["sha256"])
    assert len(list((tmp_path / "shown").iterdir())) == len(queue) == waiting["awaited"] == 1

    while waiting["status"] == "waiting":
        queue = pd.read_csv(waiting["queue"], dtype=str)
        answered = tmp_path / "answered.csv"
        queue.assign(label=queue["path"].map(labels))[["sha256", "label"]].to_csv(answered, index=False)
        typed(site, "labels", "import", str(answered))
        waiting = here(site, str(data / "manifest.csv"), "--labels", "2", "--commit")  # typed in the site it means the parent
    assert not (site / "sites").exists()
    assert sorted(Pools.read(site / "data/pools").frames["labelled"]["cycle"].astype(int)) == [1, 2]

    assert {name for name in git(workspace, "tag").split() if name.startswith("manifest-pools-v")} >= {waiting["pools"]}
    tracked = git(workspace, "ls-files", "sites").split()
    assert {f"sites/manifest/{name}" for name in ("dvc.yaml", "parent.yaml", "report.json", "data/pools.dvc")} <= set(tracked)
    assert git(workspace, "status", "--porcelain", "sites", ".gitignore") == ""
    assert "# my own\n*.bak" in (workspace / ".gitignore").read_text()
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(workspace), str(clone))
    of_clone = site_of(clone / "sites/manifest")
    assert of_clone is not None
    assert of_clone.parent == clone

    known = champions(site)
    version = waiting["registered"]["version"]
    assert known["champion"] == version
    assert waiting["registered"]["model"].endswith("-manifest")
    assert read_card(site / "models/champion").version == read_card(site / "models/adapted").version
    assert not (workspace / "models/champion").exists()  # the parent has its own
    assert "`wbc serve`" in typed(site, "status")
    typed(site, "query", "--count", "3")
    assert set(pd.read_csv(site / "data/queue.csv")["predicted"]) != {""}  # by the adapted model, not by colours
    typed(site, "labels", "test", "--draw", "5")
    assert "5 drawn" in typed(site, "labels", "test")


def test_the_names_and_paths_of_a_site_are_its_own(tmp_path: Path):
    parent = tmp_path / "home"
    init_workspace(parent)
    set_params(parent, {"data.source": "cells.csv", "model.init_weights": "weights/r.pth", "retrain.ask": 5})
    site = parent / "sites/St. Anne's (2)"
    wrote = complete(parent, site).wrote
    assert {"parent.yaml", "params.yaml", "dvc.yaml", ".dvc/"} <= set(wrote)
    mine, theirs = read_params(site / "params.yaml"), read_params(parent / "params.yaml")
    assert (mine.tracking.experiment, mine.tracking.model_name) == (
        f"{theirs.tracking.experiment}-St-Anne-s-2",
        f"{theirs.tracking.model_name}-St-Anne-s-2",
    )
    assert (mine.data.source, mine.model.init_weights) == ("../../cells.csv", "../../weights/r.pth")
    assert mine.retrain.ask is None
    assert not (site / ".git").exists()
    assert parent_workspace(site / "data") == parent_workspace(parent) == parent
    (site / "params.yaml").write_text((site / "params.yaml").read_text() + "# a note\n")
    before = (site / "params.yaml").read_bytes()
    assert complete(parent, site).wrote == []
    assert (site / "params.yaml").read_bytes() == before


def test_a_rule_of_the_parents_that_hides_sites_is_named_and_nothing_is_made(tmp_path: Path):
    parent = tmp_path / "home"
    init_workspace(parent)
    (parent / ".gitignore").write_text("sites\n")
    with pytest.raises(WbcError, match=r"git ignores .*sites/ward, by \.gitignore:1:sites: "):
        complete(parent, parent / "sites/ward")
    assert not (parent / "sites").exists()


def test_a_parent_without_git_has_sites_without_git(tmp_path: Path):
    parent = tmp_path / "home"
    init_workspace(parent)
    shutil.rmtree(parent / ".git")
    complete(parent, parent / "sites/ward")
    assert not (parent / "sites/ward/.git").exists()
    assert "no_scm = true" in (parent / "sites/ward/.dvc/config").read_text().lower()


def test_a_sites_word_about_its_model_binds_the_next_onboarding(home: Path, workspace: Path):  # noqa: F811
    first = here(workspace, site_data(home), "--labels", "0")["registered"]
    second = here(workspace, site_data(home), "--labels", "1")["registered"]
    assert first["champion"]
    assert second["champion"]
    assert second["version"] != first["version"]
    site = workspace / "sites/manifest"
    roll_back(site, "it calls everything a lymphocyte", "Ada")
    again = here(workspace, site_data(home), "--labels", "1")["registered"]
    assert (again["version"], again["champion"]) == (second["version"], False)
    assert "was withdrawn by Ada" in again["reason"]
    assert open_tracker(site, read_params(site / "params.yaml")).alias("champion") == first["version"]
