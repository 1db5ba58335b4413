"""Work on shards within a flow: each part is a task of Prefect's on the cluster, and the stages of DVC find the same one."""

import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from flows.retraining.prefect_api import prefect_api
from flows.shards.cluster import ADDRESS
from wbc_model.core.errors import WbcError
from wbc_model.params import RetrainParams
from wbc_model.spread import each, is_spread

DASK = RetrainParams(until=0.5, cycles=1, annotator="oracle", runner="dask")
LOCAL = DASK.model_copy(update={"runner": "local"})
STAGE = """
import math
from flows.shards.cluster import spread
from wbc_model.params import RetrainParams
from wbc_model.spread import each
with spread(RetrainParams(until=0.5, cycles=1, annotator="oracle", runner="dask")):
    print(list(each(math.sqrt, [1, 4])), end="")
"""


def refused(number: int) -> int:
    raise WbcError(f"part {number} is refused")


@pytest.mark.slow
def test_each_part_is_a_task_on_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    (tmp_path / ".wbc").mkdir()
    with prefect_api(tmp_path):
        from prefect import flow, task
        from prefect.client.orchestration import get_client

        from flows.shards.prefect_tasks import spread_in_flow

        @task
        def asks(in_hand: Any) -> list[float]:
            """What a task has in hand goes nowhere: a lock cannot be pickled."""
            with in_hand:
                return list(each(math.sqrt, [1, 4, 9]))

        @task
        def fails() -> None:
            list(each(refused, [1, 2]))

        @flow
        def work() -> tuple[list[float], str, str]:
            with spread_in_flow(DASK):
                stage = subprocess.run([sys.executable, "-c", STAGE], capture_output=True, text=True, check=False)
                found = asks(threading.Lock())
                with pytest.raises(WbcError, match="part 1 is refused"):
                    fails()
                return found, stage.stdout, stage.stderr

        found, said, wrong = work()
        assert found == [1, 2, 3]
        assert said == "[1.0, 2.0]", wrong
        assert ADDRESS not in os.environ
        with get_client(sync_client=True) as client:
            runs = client.read_task_runs()
        assert sorted(run.name.partition("-")[0] for run in runs if run.state and run.state.is_completed()) == [
            "asks",
            *["shard"] * 3,
        ]


def test_without_a_cluster_nothing_is_spread() -> None:
    from flows.shards.prefect_tasks import spread_in_flow

    with spread_in_flow(LOCAL):
        assert not is_spread()
