"""A workspace knows when it was moved, and a copy becomes one of its own that leaves the original alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.identity import FILE, identify
from flows.tracking import open_tracker
from flows.workspace import set_params, template
from wbc_model.core.errors import WbcError
from wbc_model.params import read_params


@pytest.fixture
def site(tmp_path: Path) -> Path:
    workspace = tmp_path / "site"
    workspace.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(template(name), workspace / name)
    return workspace


def test_a_moved_workspace_is_the_same_and_says_it_once(site: Path, tmp_path: Path) -> None:
    first, line = identify(site)
    assert line == ""
    assert identify(site) == (first, "")
    moved = site.rename(tmp_path / "elsewhere")
    again, line = identify(moved)
    assert (again.id, line) == (first.id, f"this workspace was moved from {site}")
    assert identify(moved) == (again, "")


def test_a_copy_is_another_workspace_and_the_original_stays_what_it_was(site: Path, tmp_path: Path) -> None:
    first, _ = identify(site)
    copy = Path(shutil.copytree(site, tmp_path / "copy"))
    other, line = identify(copy)
    assert other.id != first.id
    assert line == f"this workspace is a copy of {site}: from now on it is one of its own"
    assert identify(copy) == (other, "")
    assert identify(site) == (first, "")
    shutil.rmtree(site)
    assert identify(copy) == (other, "")


def test_a_workspace_on_another_disk_whose_old_place_is_gone_was_moved(site: Path, tmp_path: Path) -> None:
    first, _ = identify(site)
    copy = Path(shutil.copytree(site, tmp_path / "restored"))
    shutil.rmtree(site)
    assert identify(copy)[0].id == first.id


def test_a_copy_does_not_write_into_a_store_that_both_name(site: Path, tmp_path: Path) -> None:
    set_params(site, {"tracking.uri": f"sqlite:///{tmp_path}/shared.db"})
    open_tracker(site, read_params(site / "params.yaml"))
    copy = Path(shutil.copytree(site, tmp_path / "copy"))
    line = r"is a copy of .*site and would write .*other names for tracking\.experiment and tracking\.model_name"
    with pytest.raises(WbcError, match=line):
        open_tracker(copy, read_params(copy / "params.yaml"))
    set_params(copy, {"tracking.model_name": "other"})
    with pytest.raises(WbcError, match=r"other names for tracking\.experiment in params\.yaml"):
        open_tracker(copy, read_params(copy / "params.yaml"))
    set_params(copy, {"tracking.experiment": "other"})
    assert open_tracker(copy, read_params(copy / "params.yaml")).model_name == "other"
    assert open_tracker(site, read_params(site / "params.yaml")).model_name == "wbc"


def test_every_command_says_it(site: Path, tmp_path: Path) -> None:
    identify(site)
    moved = site.rename(tmp_path / "elsewhere")
    run = subprocess.run(
        [sys.executable, "-m", "flows.cli", "fingerprint"], cwd=moved, capture_output=True, text=True, check=True
    )
    assert run.stderr.startswith(f"this workspace was moved from {site}\n")


def test_a_damaged_identity_is_one_line(site: Path) -> None:
    identify(site)
    (site / FILE).write_text("{")
    with pytest.raises(WbcError, match=r"workspace\.json is damaged: remove it"):
        identify(site)
