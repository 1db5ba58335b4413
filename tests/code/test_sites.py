"""A site is a workspace of its own: its names, its paths, its git. How it comes to be is in test_onboard.py."""

import shutil
from pathlib import Path

import pytest

from flows.site import complete, parent_workspace
from flows.workspace import init_workspace, set_params
from wbc_model.core.errors import WbcError
from wbc_model.params import read_params


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
