"""What an alarm begins, at a real Prefect server: the event of a watch, the automation that waits for it, the run it starts."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.labelling.store import meeting_store
from flows.monitoring.ask import LEAST, ask_for_labels, let_copies_go
from flows.monitoring.watch import watch
from flows.pipeline.stages import train
from flows.retraining.prefect_api import prefect_api
from flows.retraining.schedule import _deployment
from flows.workspace import environment, init_workspace, set_params
from serving.contract.site import KeepImages
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import WatchedCells
from tests.code.test_drift import cells
from tests.code.test_export import png, reported
from tests.code.test_onboard import SMALL
from tests.data.test_from_reports import FILES
from tests.pools import ingest
from wbc_model.cells.pools import Pools
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.params import read_params
from wbc_model.rendering.cells import render_cells, write_cells

ROOT = Path(__file__).parents[2]
FIRST = date(2026, 11, 1)
SECONDS = 60
pytestmark = pytest.mark.slow
SAID = [CLASSES[number % 5] for number in range(len(FILES))]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose store has four days of a ward, the last with another stain."""
    folder = tmp_path / "ward"
    folder.mkdir()
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    monkeypatch.setenv("WBC_STORE_URL", sqlite_url(tmp_path / "service.db"))
    with meeting_store(folder) as store, store.writing() as session:
        for number in range(1, 5):
            of_day = cells(500, number, shift=1.0 if number == 4 else 0.0)
            row = {"site": "St. Anna", "model_version": "m-1", "measures": of_day.rows.tobytes()}
            session.add(WatchedCells(day=str(FIRST + timedelta(days=number - 1)), cells=500, **row))
    return folder


def runs_of(deployment: str) -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    with get_client(sync_client=True) as client:
        id_ = client.read_deployment_by_name(deployment).id
        return client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[id_])))


def wait_for_run(deployment: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := [run for run in runs_of(deployment) if run.created_by is not None and run.created_by.type == "AUTOMATION"]:
            return found[0]
        time.sleep(0.5)
    raise AssertionError(f"no automation has begun a run of {deployment}")


def test_an_alarm_begins_what_was_chosen(workspace: Path) -> None:
    with prefect_api(workspace, scheduling=True):
        from prefect.client.orchestration import get_client
        from prefect.schedules import Cron

        from flows.monitoring.deployed import Nightly
        from flows.retraining.deployed import scheduled_flow
        from flows.retraining.prefect_api import BY_SCHEDULE, retraining_flow

        asking = Nightly("ask")
        retraining = retraining_flow(workspace)
        yearly = Cron("0 0 1 1 *", timezone="UTC")
        _deployment(scheduled_flow, retraining, BY_SCHEDULE, yearly, workspace=str(workspace), commit=False).apply()
        for one in asking.deployments(workspace):
            one.apply()
        asking.automate(workspace)
        assert [one.what for one in watch(workspace, FIRST + timedelta(days=4)).alarms] == [("stain",)]
        run = wait_for_run(f"{asking.flow_names(workspace)[1]}/ask-for-labels")
        assert run.parameters == {"workspace": str(workspace), "site": "St. Anna", "day": "2026-11-04"}

        Nightly("retrain").automate(workspace)
        _forget_what_was_found(workspace)
        assert watch(workspace, FIRST + timedelta(days=4)).alarms
        run = wait_for_run(f"{retraining}/{BY_SCHEDULE}")
        assert run.parameters == {"workspace": str(workspace), "commit": False}

        Nightly("nothing").automate(workspace)
        with get_client(sync_client=True) as client:
            assert client.read_automations() == []


def _forget_what_was_found(workspace: Path) -> None:
    with meeting_store(workspace) as store, store.writing() as session:
        for table in ("drift", "usual_cells"):
            session.connection().exec_driver_sql(f"DELETE FROM {table}")


def test_what_people_are_asked_about_are_the_cells_since_the_alarm(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def onboard(parent: Path, data: Path, labels: int, *_: object) -> dict[str, Any]:
        asked.update(data=data, labels=labels, rows=data.read_text().splitlines())
        return {"status": "waiting", "awaited": 25, "queue": "answers-1.csv"}

    monkeypatch.setattr("flows.sites.onboard.onboard", onboard)
    monkeypatch.setattr("flows.monitoring.ask.LEAST", 30)
    store = Store.open(sqlite_url(tmp_path / "service.db"))
    first = reported(store, FILES[:20], SAID[:20])
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    with pytest.raises(WbcError, match=f"20 cells have an image since {today}, 30 are needed"):
        ask_for_labels(workspace, "St. Anna", today)
    reported(store, FILES[20:], SAID[20:])
    site = f"St--Anna-{today}"
    assert not (workspace / ".wbc/watched" / site).exists(), "no copy is left where nothing comes of it"
    said = "25 cells wait for a label in answers-1.csv; `wbc onboard .wbc/watched/{0}/{0}.csv --answers answers-1.csv` takes them"
    assert ask_for_labels(workspace, "St. Anna", today) == f"site St. Anna: {said.format(site)}"
    assert (asked["data"].name, asked["labels"]) == (f"{site}.csv", 25), "the next alarm is another site for `wbc onboard`"
    assert len(asked["rows"]) == 41
    assert sum(row.endswith(first) for row in asked["rows"]) == 20, "cells of one report stay together"
    assert LEAST > 50
    folder = asked["data"].parent
    let_copies_go(workspace, KeepImages(days=90))
    assert len(list(folder.glob("*.png"))) == 40
    os.utime(folder, (0, 0))
    let_copies_go(workspace, KeepImages(days=None))
    assert folder.exists(), "as long as the reports"
    watch(workspace)
    assert not folder.exists(), "the store itself would have deleted these images by now"
    monkeypatch.setattr("flows.sites.onboard.onboard", lambda *_: {"status": "adapted", "model": "m"})
    assert "was adapted" in ask_for_labels(workspace, "St. Anna", today)
    assert not folder.exists(), "nobody asks for them again"
    store.close()


@pytest.fixture
def serving(workspace: Path, tmp_path: Path) -> Path:
    """The same, with a trained model, and a report of 64 cells of the ward in the store."""
    shutil.rmtree(workspace)
    init_workspace(workspace)
    set_params(workspace, SMALL)
    ingest(write_cells(tmp_path / "cells", 150, seed=1), workspace / "data", read_params(workspace / "params.yaml"))
    train(workspace)
    files = [png(cell) for cell in render_cells(LEAST + 4, seed=4, size=64)]
    store = Store.open(sqlite_url(tmp_path / "service.db"))
    reported(store, files, [CLASSES[number % 5] for number in range(len(files))])
    store.close()
    return workspace


def test_an_alarm_has_labels_asked_for_by_a_process_of_its_own(serving: Path) -> None:
    """As it is in use: `wbc schedule --on-alarm ask` at a Prefect server. The event begins a run by the automation, the schedule
    takes it, and its process onboards the ward's cells."""
    log = serving.parent / "schedule.txt"
    command = [sys.executable, "-m", "flows.cli", "schedule", "--on-alarm", "ask", "--every", "86400", "--watch", "86400"]
    with prefect_api(serving, scheduling=True), log.open("w") as output:
        from prefect.context import refresh_global_settings_context

        from flows.monitoring.deployed import Nightly

        refresh_global_settings_context()  # the server of the test before, in this process, had another address
        asking = f"{Nightly('ask').flow_names(serving)[1]}/ask-for-labels"
        process = subprocess.Popen(command, cwd=serving, env=environment(), stdout=output, stderr=output)
        try:
            _until(lambda: "stop with Ctrl-C" in log.read_text() or process.poll() is not None)
            _until(lambda: _has_automation() or process.poll() is not None)
            assert watch(serving, FIRST + timedelta(days=4)).alarms, log.read_text()
            wait_for_run(asking)
            _until(lambda: all(run.state.is_final() for run in runs_of(asking)))
            (run,) = runs_of(asking)
        finally:
            process.terminate()
            process.wait(SECONDS)
    assert run.state.is_completed(), (run.state.message, log.read_text())
    site = serving / "sites/St--Anna-2026-11-04"
    assert Pools.read(site / "data/pools").counts()["unlabelled"] == LEAST + 4
    queue = pd.read_csv(site / "answers-1.csv")
    assert len(queue) == 13, "the first of two rounds for 25 labels"
    assert "St. Anna: 13 cells wait for a label" in log.read_text()


def _has_automation() -> bool:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return bool(client.read_automations())


def _until(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)
