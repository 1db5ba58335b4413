"""SIGKILL in each stage of a retraining; the same command afterwards."""

from pathlib import Path

import pytest

from tests.faults.life import NEXT, Retraining, outcome, succeeds
from tests.faults.whole import assert_whole, kept

STAGES = ("validate", "train", "evaluate", "query", "package")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_sigkill_in_each_stage(workspace: Path) -> None:
    for stage in STAGES:
        before = kept(workspace)
        with Retraining(workspace, *NEXT) as retraining:
            retraining.reaches(stage)
            retraining.is_killed()
        assert_whole(workspace, before)
    assert_whole(workspace, kept(workspace), lambda: succeeds(workspace, "retrain", *NEXT))
    assert outcome(workspace)["status"] == "done"
