"""SIGKILL of a watch between the verdict of an alarm and its event, at a real Prefect server."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from flows.labelling.store import meeting_store
from flows.monitoring.watch import watch
from flows.retraining.prefect_api import prefect_api
from serving.reports.store import sqlite_url
from serving.reports.tables import WatchedCells
from tests.code.test_drift import cells
from tests.faults.life import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FIRST, TODAY = date(2026, 11, 1), date(2026, 11, 5)
# A watch that kills itself before one of its steps, or after it.
KILLED = """
import os, signal, sys
from datetime import date
from pathlib import Path
from flows.monitoring import alarms, watch

step, when, root = sys.argv[1:]
whole = getattr(alarms, step)

def last(*given):
    if when == "after":
        whole(*given)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(alarms, step, last)
watch.watch(Path(root), date(2026, 11, 5))
"""


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace whose wards have four days in the store, the last with another stain; a Prefect server."""
    folder = tmp_path / "ward"
    folder.mkdir()
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    monkeypatch.setenv("WBC_STORE_URL", sqlite_url(tmp_path / "service.db"))
    with prefect_api(folder, scheduling=True):
        yield folder


def a_week_at(workspace: Path, site: str) -> None:
    with meeting_store(workspace) as store, store.writing() as session:
        for number in range(1, 5):
            of_day = cells(500, number, shift=1.0 if number == 4 else 0.0)
            row = {"site": site, "model_version": "m-1", "measures": of_day.rows.tobytes()}
            session.add(WatchedCells(day=str(FIRST + timedelta(days=number - 1)), cells=500, **row))


def events_of(site: str) -> int:
    """How many alarms of a site the server has, once it has had the time to write them."""
    from prefect.client.orchestration import get_client
    from prefect.events.filters import EventFilter, EventNameFilter

    time.sleep(6)  # it writes what came every five seconds
    with get_client(sync_client=True) as client:
        found = client.read_events(EventFilter(event=EventNameFilter(name=["wbc.drift.alarm"])), limit=50).events
    return sum(event.resource["wbc.site"] == site for event in found)


def test_a_kill_between_verdict_and_event_loses_no_alarm(watched: Path) -> None:
    for step, when, emitted in (("tell", "before", 0), ("_emit", "before", 0), ("_emit", "after", 1)):
        site = f"{when} {step}"
        a_week_at(watched, site)
        done = subprocess.run([sys.executable, "-c", KILLED, step, when, str(watched)], env=dict(os.environ), check=False)
        assert done.returncode == -signal.SIGKILL
        assert events_of(site) == emitted
        again = watch(watched, TODAY)
        assert again.judged == 0, "the verdict was kept"
        assert [(one.site, one.day, one.what) for one in again.alarms] == [(site, "2026-11-04", ("stain",))]
        assert events_of(site) == 1, "not lost, and not sent twice"
        assert watch(watched, TODAY).alarms == []
    assert (watched / ".wbc/logs/schedule.log").read_text().count("site before tell:") == 1
