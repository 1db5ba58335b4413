"""The disk is full in each stage of a retraining, and while cells and labels come in: a file system of its own, really filled."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.complaints import FULL
from flows.labels import read_log
from flows.tracking import packaged_digest
from flows.workspace import set_params
from tests.faults.filling import Filler
from tests.faults.life import NEXT, disk, is_refused, noise, outcome, succeeds, two_labels
from tests.faults.whole import assert_whole, kept
from wbc_model.cells.pools import Pools
from wbc_model.core.model_card import read_card

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
STAGES = {
    "code": "flows.pipeline.fingerprint:write_fingerprints",
    "version": "flows.pipeline.dvc:version_pools",
    "validate": "flows.pipeline.checks:validate",
    "decode": "wbc_model.cells.decoded:DecodedCells.prepare",
    "pretrain": "wbc_model.training.pretrain:pretrained",
    "train": "wbc_model.network.model_directory:save_model",
    "evaluate": "flows.pipeline.stages:evaluate",
    "query": "flows.pipeline.stages:query",
    "package": "flows.pipeline.package:package",
    "log": "flows.tracking:Tracker.log_cycle",
    "label": "flows.labels:record",
    "promote": "flows.retraining.gate:promote",
}


@pytest.fixture
def small(workspace: Path) -> Iterator[tuple[Path, Filler]]:
    """The workspace on a small disk of its own, with a pretraining to come, and what fills that disk."""
    set_params(workspace, {"train.pretraining": "vicreg", "train.pretraining_updates": 2})
    with disk(workspace.parent / "small", "200m") as mounted:
        site = Path(shutil.copytree(workspace, mounted / "site", symlinks=True))
        (site / "models/code.json").unlink()  # else the stage `code` has nothing to do
        yield site, Filler(mounted, workspace.parent)


def came_to(workspace: Path) -> dict[str, object]:
    """The end of a retraining, without its times."""
    log = read_log(workspace)
    return {
        "champion": packaged_digest(read_card(workspace / "models/champion")),
        "labels": set(zip(log["sha256"], log["label"], log["labelled_by"], strict=True)),
        "pools": {name: frozenset(frame["sha256"]) for name, frame in Pools.read(workspace / "data/pools").frames.items()},
        "scores": [(row["cycle"], row["labels"], row["accuracy"]) for row in outcome(workspace)["rows"]],
        "status": outcome(workspace)["status"],
    }


def test_a_full_disk_in_each_stage_is_one_line_and_the_same_command_goes_on(small: tuple[Path, Filler], workspace: Path) -> None:
    site, filler = small
    for stage, step in STAGES.items():
        before = kept(site)
        said = is_refused(site, "retrain", *NEXT, **filler.at(step))
        print(stage, said)
        assert said == FULL, stage
        filler.make_room()
        assert_whole(site, before)
    assert_whole(site, kept(site), lambda: succeeds(site, "retrain", *NEXT))
    succeeds(workspace, "retrain", *NEXT)
    assert came_to(site) == came_to(workspace), "as where there was room all the time"


@pytest.mark.parametrize("step", ["wbc_model.cells.store:ImageStore.add", "wbc_model.cells.journal:write_together"])
def test_a_full_disk_takes_no_cell_or_all_of_them(ward: Path, step: str) -> None:
    more = noise(ward.parent / "more", 25, 60)
    with disk(ward.parent / "small", "64m") as mounted:
        site, filler = Path(shutil.copytree(ward, mounted / "site", symlinks=True)), Filler(mounted, ward.parent)
        before = kept(site)
        assert is_refused(site, "ingest", str(more), **filler.at(step)) == FULL
        filler.make_room()
        assert_whole(site, before, lambda: succeeds(site, "ingest", str(more)))
        assert len(kept(site).cells) == len(before.cells) + 35


@pytest.mark.parametrize("step", ["flows.labels:import_labels", "flows.labels:take_in", "wbc_model.cells.journal:write_together"])
def test_a_full_disk_takes_no_label_or_all_of_a_batch(ward: Path, step: str) -> None:
    with disk(ward.parent / "small", "64m") as mounted:
        site, filler = Path(shutil.copytree(ward, mounted / "site", symlinks=True)), Filler(mounted, ward.parent)
        before, batch = kept(site), two_labels(ward)
        assert is_refused(site, "labels", "import", str(batch), **filler.at(step)) == FULL
        filler.make_room()
        assert_whole(site, before, lambda: succeeds(site, "labels", "import", str(batch)))
        assert len(kept(site).labels) == len(before.labels) + 2
