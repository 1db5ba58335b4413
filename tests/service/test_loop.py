"""The loop of people and model on a worker of Prefect's and under `wbc schedule`, killed in its middle; readers speak HTTP, or to
the store itself."""

import hashlib
import random
import time
from pathlib import Path

import httpx
import pandas as pd
import pytest

from flows.identity import workspace_name
from flows.labelling.store import meeting_store
from flows.retraining.prefect_api import retraining_flow
from flows.state import read_state
from flows.workspace import set_params
from serving.contract.site import read_site
from serving.labelling.answers import answer
from serving.labelling.queue import progress
from serving.labelling.tasks import Who, image_of, next_tasks
from tests.people_loop import ASKED, Loop, Reader, Truth, go_round, loop_at, shown, status_of, until
from wbc_model.cells.pools import Pools, read_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def read_all(loop: Loop, reader: Reader, truth: Truth, chance: random.Random) -> int:
    """Answer every task that a reader is given; returns how many there were."""
    done = 0
    with httpx.Client(base_url=loop.url, headers={"X-API-Key": reader.key}, timeout=60) as http:
        while given := http.get("/v1/labelling/tasks", params={"count": 10}).raise_for_status().json()["tasks"]:
            for task in given:
                image = http.get(f"/v1/labelling/tasks/{task['task']}/image").raise_for_status().content
                body = {"answer": reader.says(truth[shown(image)], chance), "seconds": 1.5, "way": "single"}
                http.put(f"/v1/labelling/tasks/{task['task']}", json=body).raise_for_status()
                done += 1
    return done


def adjudicate(loop: Loop, lead: Reader, truth: Truth) -> int:
    """Decide on every dispute by the truth; returns how many there were."""
    done = 0
    with httpx.Client(base_url=loop.url, headers={"X-API-Key": lead.key}, timeout=60) as http:
        while waiting := http.get("/v1/labelling/disputes").raise_for_status().json()["disputes"]:
            for one in waiting:
                image = http.get(f"/v1/labelling/disputes/{one['dispute']}/image").raise_for_status().content
                answer = truth[shown(image)].answer
                http.put(f"/v1/labelling/disputes/{one['dispute']}", json={"answer": answer}).raise_for_status()
                done += 1
    return done


def test_people_label_on_the_service_and_a_worker_goes_on_with_it(tmp_path: Path) -> None:
    go_round(tmp_path, read_all, adjudicate)


def reads(loop: Loop, name: str) -> int:
    """A person names all cells rightly, in the store, while no service need run; returns how many there were."""
    truth, done = dict(read_table(loop.workspace / "data/oracle.csv", ["sha256", "label"]).to_numpy()), 0
    labelled = Pools.read(loop.workspace / "data/pools").frames["labelled"]
    truth |= dict(labelled[["sha256", "label"]].to_numpy())  # known cells stand among those that are asked for
    site = read_site(loop.workspace.parent / "site.yaml")
    with meeting_store(loop.workspace) as store:
        while given := next_tasks(store, name, 5, site):
            for task in given:
                cell = hashlib.sha256(image_of(store, name, task.name)).hexdigest()
                answer(store, Who(name, name), task.name, truth[cell], site)
                done += 1
    return done


def test_a_scheduled_retraining_waits_without_a_process_and_outlives_server_and_schedule(tmp_path: Path) -> None:
    """Both are killed while it waits, people go on meanwhile, and after the restart it goes on by itself."""
    with loop_at(tmp_path) as loop:
        workspace = loop.workspace
        enough = 2 * ASKED  # more than the labels that there are, or the watch would begin a retraining by itself
        set_params(workspace, {"retrain.annotator": "people", "retrain.ask": ASKED, "schedule.min_new_labels": enough})
        flow = retraining_flow(workspace)
        loop.start_server()
        loop.start_schedule()
        loop.do("deployment", "run", f"{flow}/by-schedule")
        until(lambda: loop.states(flow) == [("PAUSED", "Suspended")], 1500)
        until(lambda: loop.flow_process() is None)
        asked = read_state(workspace)
        assert asked is not None
        loop.do("deployment", "run", f"{flow}/by-schedule")  # the cron comes round meanwhile
        until(lambda: ("CANCELLED", "Waiting") in loop.states(flow), 900)
        assert reads(loop, "Ada") >= ASKED
        looked = _looks(loop)
        until(lambda: _looks(loop) > looked + 1, 900)
        assert status_of(workspace) == "waiting", "one of two readers is not enough"

        loop.kill("schedule")
        loop.kill("server")
        assert reads(loop, "Bo") >= ASKED, "the page needs neither"
        loop.start_server()
        assert loop.states(flow) == [("PAUSED", "Suspended"), ("CANCELLED", "Waiting")]
        loop.start_schedule()
        until(lambda: status_of(workspace) == "done", 1800)
        until(lambda: loop.states(flow) == [("COMPLETED", "Completed"), ("CANCELLED", "Waiting")], 600)
        _all_was_learned(loop, asked.key)
        news = (workspace / ".wbc/logs/news.log").read_text()
        assert f"the retraining goes on: {ASKED} of {ASKED} cells are agreed, and {ASKED} are enough" in news
        time.sleep(30)  # the watch looks again
        assert status_of(workspace) == "done"
        assert len(loop.runs(flow)) == 2, "nothing is asked for twice"


def _looks(loop: Loop) -> int:
    """How often the watch has looked."""
    return loop.states(f"label-watch-{workspace_name(loop.workspace)}").count(("COMPLETED", "Completed"))


def _all_was_learned(loop: Loop, key: str) -> None:
    """The retraining is the one that asked, and what two people agreed on is in its pools."""
    workspace, state = loop.workspace, read_state(loop.workspace)
    assert state is not None
    assert (state.key, len(state.rows)) == (key, 2)
    log = pd.read_csv(workspace / "data/labels.csv", dtype=str, keep_default_na=False)
    given = log[log["why"].str.startswith("on the page")]
    assert len(given) == ASKED
    assert set(given["labelled_by"]) == {"Ada + Bo"}
    learned = Pools.read(workspace / "data/pools").frames["labelled"].set_index("sha256")["label"]
    assert (learned[given["sha256"]].to_numpy() == given["label"].to_numpy()).all()
    assert state.rows[-1]["labels"] == state.rows[0]["labels"] + ASKED
    with meeting_store(workspace) as store:
        seen = progress(store, workspace_name(workspace))
    assert (seen.agreed, seen.open, seen.disputed) == (ASKED, 0, 0)
    assert seen.next_step.startswith("no retraining waits for people; ")
