"""The loop of people and model on a worker of Prefect's, killed in its middle: ask, two readers, adjudication, resume, retrain,
promote, serve.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from flows.workspace import set_params
from tests.people_loop import (
    Reader,
    adjudicate,
    listening,
    log_of,
    loop_at,
    read_all,
    status_of,
    truths,
    until,
)
from wbc_model.cells.pools import Pools, read_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
told = {"subject": "{{subject}}", "body": "{{body}}"}
CustomWebhookNotificationBlock(name="people", url=sys.argv[1], method="POST", json_data=told).save("people")
"""


def test_people_label_on_the_service_and_a_worker_goes_on_with_it(tmp_path: Path) -> None:
    chance = random.Random(3)
    with loop_at(tmp_path) as loop, listening() as (receiver, posted):
        workspace = loop.workspace
        assert json.loads(loop.wbc("retrain", "--json"))["gate"]["promoted"]
        keys = {name: loop.add_key(name, name.title(), "label") for name in ("ada", "bo")}
        lead = loop.add_key("lead", "Dr Lead", "label", "adjudicate", "classify")
        loop.start_service()
        first = httpx.get(f"{loop.url}/v1/model", headers={"X-API-Key": lead}, timeout=60).raise_for_status().json()["version"]
        loop.start_server()
        subprocess.run([sys.executable, "-c", BLOCK, receiver], env=loop.environment, check=True)
        asks = {"retrain.annotator": "people", "retrain.ask": 20, "schedule.min_new_labels": 17}
        set_params(workspace, {**asks, "schedule.wait_hours": 48, "schedule.notify": "custom-webhook/people"})
        loop.deploy()
        loop.start_worker()

        # The queue is published, and the run holds no process.
        loop.do("deployment", "run", "retraining/process-march")
        until(lambda: ("PAUSED", "Suspended") in loop.states(), 900)
        until(lambda: loop.flow_process() is None)
        assert status_of(workspace) == "waiting"
        said = json.loads(loop.wbc("labels", "status", "--json"))
        assert said["next_step"].startswith(
            "0 of 20 cells are agreed; nobody has begun to read; the retraining goes on at 17, or on "
        )
        assert any("people are asked" in one["body"] for one in posted), posted

        # Server and worker are killed and come back; nothing is lost.
        loop.kill("worker")
        loop.kill("server")
        loop.start_server()
        assert loop.states()[-1] == ("PAUSED", "Suspended")
        loop.start_worker()

        # Two readers, blind to each other, and a third person.
        known = truths(workspace)
        odd = min(read_table(workspace / "data/oracle.csv", ["sha256", "label"])["sha256"])
        asked = {row.split(",")[0] for row in (workspace / "data/queue.csv").read_text().splitlines()[1:]}
        odd = min(asked)
        readers = [Reader("Ada", keys["ada"], 0.3, 1), Reader("Bo", keys["bo"], 0.2, 2)]
        counts = [read_all(loop, reader, known, odd, chance) for reader in readers]
        assert min(counts) >= 20
        assert adjudicate(loop, lead, known) > 0

        # Enough is agreed: the watch resumes the run, which is killed in the middle and goes on all the same.
        until(lambda: status_of(workspace) == "running" and loop.flow_process() is not None, 900)
        process = loop.flow_process()
        assert process is not None
        os.kill(process, signal.SIGKILL)
        until(lambda: status_of(workspace) == "done", 1800)
        state = json.loads((workspace / ".wbc/retrain.json").read_text())
        assert state["gate"]["promoted"], state["gate"]
        assert any("the retraining goes on" in one["body"] for one in posted), posted

        # All that two people or a third agreed on is right, and was learned; what is none of the five was not.
        log = log_of(workspace)
        given = log[log["why"].str.startswith("on the page")]
        truth = dict(known.values())
        assert set(given["sha256"]) == asked - {odd}
        assert (given["label"] == given["sha256"].map(truth)).all()
        assert {"Ada + Bo", "Dr Lead"} <= set(given["labelled_by"])
        assert Pools.read(workspace / "data/pools").none_of_five()["sha256"].tolist() == [odd]
        assert asked - {odd} <= set(Pools.read(workspace / "data/pools").frames["labelled"]["sha256"])

        # The service answers with the new champion, and nothing is left suspended.
        def version() -> str:
            answer = httpx.get(f"{loop.url}/v1/model", headers={"X-API-Key": lead}, timeout=60)
            return str(answer.json().get("version"))

        until(lambda: version() != first, 240)
        until(lambda: not {kind for kind, _ in loop.states()} & {"PAUSED", "RUNNING", "FAILED"}, 300)
