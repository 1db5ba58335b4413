"""A retraining that waits for people on a worker: what the watch does, and what the deployments of prefect.yaml are."""

import contextlib
import errno
import importlib
import inspect
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml

from flows import notify
from flows.labelling.waiting import Wait, in_words, next_parts
from flows.labelling.worth import Worth
from flows.retraining import deployed, people
from flows.retraining.flow import Outcome
from flows.retraining.run import outcome_text
from flows.state import State
from wbc_model.core.errors import WbcError
from wbc_model.evaluation.expected_gain import Gain

ROOT = Path(__file__).parents[2]
PREFECT = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))


# --- the watch -------------------------------------------------------------------------------------------------------------


class Server:
    """What the watch asks of Prefect, and what it has it do."""

    def __init__(self) -> None:
        self.suspended: list[Any] = []
        self.coming = False
        self.did: list[str] = []

    def run(self, *names: str) -> None:
        self.suspended = [SimpleNamespace(id=name, name=name) for name in names]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    seen = Server()
    monkeypatch.setattr(deployed, "get_run_logger", lambda: SimpleNamespace(warning=seen.did.append, info=seen.did.append))
    monkeypatch.setattr(deployed, "suspended_runs", lambda name: seen.suspended)
    monkeypatch.setattr(deployed, "about_to_run", lambda name: seen.coming)
    monkeypatch.setattr(deployed, "resume", lambda run: seen.did.append(f"resume {run.id}"))
    monkeypatch.setattr(deployed, "drop_runs", lambda runs, why: seen.did.extend(f"drop {run.id}" for run in runs))
    monkeypatch.setattr("prefect.deployments.run_deployment", lambda name, **_: seen.did.append(f"run {name}"))
    monkeypatch.setattr(deployed, "take_waiting", lambda workspace: 0)
    monkeypatch.setattr(deployed, "is_locked", lambda workspace: False)
    monkeypatch.setattr(deployed.Pools, "read", lambda path: SimpleNamespace(version=lambda: "v1"))
    monkeypatch.setattr(people, "take", lambda workspace: None)
    return seen


def watch(
    monkeypatch: pytest.MonkeyPatch,
    workspace: Path,
    wait: Wait | None,
    new: int = 0,
    status: str = "waiting",
    scheduled: bool = True,
) -> None:
    """One look of the watch at a retraining in this state."""
    (workspace / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    state = State("key", "2-0", "2026-11-29T00:00:00+00:00", 0, False, status=status, queue="abc", scheduled=scheduled)
    monkeypatch.setattr(deployed, "read_state", lambda path: state)
    monkeypatch.setattr(deployed, "new_labels", lambda path: new)
    standing = people.Standing(wait, None, None, [{"code": "queue_gone"}])
    monkeypatch.setattr(people, "stand", lambda path, show: standing)
    assert deployed.label_watch(workspace, "retraining/march") == new


def test_a_watch_that_fails_each_minute_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    hooks, run = deployed.label_watch_flow, SimpleNamespace(parameters={"workspace": str(tmp_path)})

    def ends(hooks: list[Any], message: str = "") -> int:
        for hook in hooks:
            hook(None, run, SimpleNamespace(message=message, name="Failed"))
        log = tmp_path / notify.LOG
        return len(log.read_text().splitlines()) if log.exists() else 0

    failed, well = hooks.on_failure_hooks, hooks.on_completion_hooks
    told = [ends(failed, "no label log"), ends(failed, "no label log"), ends(failed, "row 7"), ends(failed, "row 7")]
    assert told == [1, 1, 2, 2], "what is new is told"
    assert [ends(well), ends(failed, "row 7"), ends(failed, "row 7")] == [2, 3, 3], "it had gone well in between"
    os.utime(tmp_path / ".wbc/watch-told", (0, 0))
    assert ends(failed, "row 7") == 4, "`wbc status` shows a line for a day"
    os.utime(tmp_path / ".wbc/watch-told", (2**32, 2**32))
    assert [ends(failed, "row 7"), ends(failed, "row 7")] == [5, 5], "a clock that was years ahead silences nothing"
    assert f"{notify.WATCH_FAILED}: row 7" in (tmp_path / notify.LOG).read_text()


def test_a_watch_that_fails_as_the_disk_is_full_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it was told cannot be noted then."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.setattr(deployed, "write_atomic", MagicMock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    [failed], run = deployed.label_watch_flow.on_failure_hooks, SimpleNamespace(parameters={"workspace": str(tmp_path)})
    with contextlib.suppress(OSError):
        failed(None, run, SimpleNamespace(message="the disk is full", name="Failed"))
    assert "the disk is full" in (tmp_path / notify.LOG).read_text()


@pytest.mark.parametrize(("busy", "waits"), [("`wbc ingest` (pid 7)", True), ("a retraining (pid 7)", False)])
def test_a_night_waits_for_an_ingest_and_not_for_another_retraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: str, waits: bool
) -> None:
    """It was skipped until the next night."""
    looks, begun = iter([busy, busy, None]), []
    monkeypatch.setattr(deployed, "at_work", lambda workspace: next(looks))
    monkeypatch.setattr(deployed, "get_run_logger", MagicMock())
    monkeypatch.setattr(deployed, "watch_flow", lambda: None)
    monkeypatch.setattr(deployed.time, "sleep", lambda seconds: begun.append("slept"))
    monkeypatch.setattr(deployed, "check_before", lambda workspace, commit: begun.append("began"))
    monkeypatch.setattr("flows.retraining.flow.retraining", MagicMock(side_effect=WbcError("as far as this test goes")))
    with pytest.raises(WbcError, match="as far as this test goes"):
        deployed.retraining(tmp_path, commit=False)
    assert begun == (["slept"] * 2 if waits else []) + ["began"]


ENOUGH, TOO_FEW = Wait(20, 17, 17), Wait(20, 16, 17)


def test_the_watch_resumes_the_oldest_run_that_waits_and_ends_the_others(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.run("first", "second")
    watch(monkeypatch, tmp_path, TOO_FEW, new=16)
    assert server.did == []
    watch(monkeypatch, tmp_path, ENOUGH, new=17)
    assert server.did == ["resume first", "drop second"]


def test_where_the_run_that_waited_is_lost_the_watch_asks_for_one(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.coming = True  # it was resumed a moment ago, and its worker is away
    watch(monkeypatch, tmp_path, ENOUGH, new=17)
    assert server.did == []
    server.coming = False
    watch(monkeypatch, tmp_path, ENOUGH, new=17)
    assert server.did == ["run retraining/march"]


def test_a_run_that_nothing_waits_for_is_ended_and_new_labels_begin_the_next(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.run("left over")
    watch(monkeypatch, tmp_path, None, new=49, status="done")
    assert server.did == ["drop left over"]
    server.run()
    server.did.clear()
    watch(monkeypatch, tmp_path, None, new=50, status="done")
    assert server.did == ["run retraining/march"]


def test_a_killed_run_goes_on_by_itself_and_what_a_person_stopped_does_not(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    watch(monkeypatch, tmp_path, None, new=1, status="running", scheduled=False)
    assert server.did == []
    watch(monkeypatch, tmp_path, None, new=1, status="running")
    assert server.did == ["run retraining/march"]


def test_time_that_is_up_with_nothing_agreed_is_told_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.run("first")
    over = Wait(20, 0, 17, datetime.now(UTC) - timedelta(hours=1))
    for _ in range(2):
        watch(monkeypatch, tmp_path, over)
    assert server.did == []
    said = capsys.readouterr().err
    assert (
        said.count("the time for labelling is up, and no cell is agreed; data/queue.csv is gone: `wbc retrain` asks again") == 1
    )
    watch(monkeypatch, tmp_path, Wait(20, 1, 17, over.deadline))
    assert server.did == ["resume first"]


def test_a_store_that_is_away_is_looked_at_later(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def away(workspace: Path) -> None:
        raise WbcError("the store 'wbc' on PostgreSQL at db cannot be used")

    monkeypatch.setattr(people, "take", away)
    server.run("first")
    watch(monkeypatch, tmp_path, ENOUGH, new=17)
    assert server.did == [
        "the people's answers were not looked at: the store 'wbc' on PostgreSQL at db cannot be used",
    ]


def test_news_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    notify.announce(tmp_path, "people are\nasked")
    assert (tmp_path / notify.NEWS).read_text().endswith("Z people are asked\n")
    assert not (tmp_path / notify.LOG).exists(), "`wbc status` shows that one as failures"
    assert capsys.readouterr().err == "wbc: people are asked\n"


@pytest.mark.parametrize(
    ("gain", "text"),
    [
        (Gain(20, 2), "what the next labels gain cannot be said yet: 2 of at least 3 rounds of this preset were scored on the "
         "same test cells"),
        (Gain(20, 4, 0.008, 0.001, 0.02), "20 more labels are expected to raise the accuracy by 0.8 points (95 % limits 0.1 to "
         "2.0): labelling goes on being of use"),
        (Gain(20, 4, 0.001, 0.0, 0.004), "20 more labels are expected to raise the accuracy by 0.1 points (95 % limits 0.0 to "
         "0.4): labelling may pause"),
    ],
)  # fmt: skip
def test_what_the_next_labels_are_worth_is_one_sentence(gain: Gain, text: str) -> None:
    worth = Worth(gain, 3.21, 0.005)
    assert worth.text == text
    assert json.loads(json.dumps(worth.to_dict()))["expected_wrong"] == 3.2
    assert worth.to_dict()["may_pause"] == ("may pause" in text)


def test_what_a_retraining_that_waits_prints_says_each_thing_once(tmp_path: Path) -> None:
    cycle = {"cycle": 1, "labels": 52, "accuracy": 0.9, "macro_f1": 0.8, "seconds": 7.0, "pools": "pools-v1"}
    gain = Worth(Gain(20, 2), 3.2, 0.005).to_dict()
    line = in_words(next_parts(Wait(20, 3, 15), None, False))
    outcome = Outcome(str(tmp_path), "key", "waiting", [cycle], 17, line, gain, learning_curve="c.png", wrote=["a", "b"])
    said = outcome_text(outcome).splitlines()
    assert said == [
        "3 of 20 cells are agreed; `wbc retrain` goes on with what is agreed, and 15 are enough",
        gain["text"],
        "learning curve: c.png",
        "wrote a, b",
        "next: people label 17 cells: on the page /label of the service (`wbc serve --model models/candidate`),",
        "      or in files: `wbc labels export FILE.csv` (.json for Label Studio), then `wbc labels import FILE`",
    ]
    assert not [text for text in said if "90.00%" in text], "the cycle had its line on stderr"


# --- the deployments -------------------------------------------------------------------------------------------------------


def test_the_deployments_name_flows_that_there_are_with_their_parameters() -> None:
    from prefect.flows import load_flow_from_entrypoint

    for one in PREFECT["deployments"]:
        flow: Any = load_flow_from_entrypoint(one["entrypoint"])
        assert set(one["parameters"]) <= set(inspect.signature(flow.fn).parameters), one["entrypoint"]
        assert ("schedules" in one) == ("day" not in one["parameters"]), "an alarm has no schedule, and all else has one"
    watches = [one for one in PREFECT["deployments"] if one["entrypoint"].endswith("label_watch_flow")]
    runs = [one["name"] for one in PREFECT["deployments"] if one["entrypoint"].endswith("scheduled_flow")]
    assert [one["parameters"]["retraining"] for one in watches] == [f"retraining/{name}" for name in runs]
    nights = [one["name"] for one in PREFECT["deployments"] if one["entrypoint"].endswith("nightly_flow")]
    assert nights == runs, "whoever retrains on workers is watched there, too"


def test_each_flow_that_is_served_can_run_on_workers_of_each_kind() -> None:
    from prefect import Flow

    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted((ROOT / "flows").rglob("deployed.py"))]
    served = {
        f"{name}.{attribute}"
        for name in names
        for attribute, found in vars(importlib.import_module(name)).items()
        if isinstance(found, Flow) and found.fn.__module__ == name
    }
    assert len(names) == 2
    for pool in ("wbc", "wbc-kubernetes"):
        assert {one["entrypoint"] for one in PREFECT["deployments"] if one["work_pool"]["name"] == pool} == served


def placeholders(part: Any) -> Iterator[str]:
    """Each `{{ name }}` of a job template."""
    if isinstance(part, dict):
        for value in part.values():
            yield from placeholders(value)
    elif isinstance(part, list):
        for value in part:
            yield from placeholders(value)
    elif isinstance(part, str):
        yield from re.findall(r"{{ (\w+) }}", part)


def test_the_job_of_the_kubernetes_pool_is_whole_without_a_cluster() -> None:
    """Every variable is declared, what Prefect's worker fills is there, and volumes fit their mounts."""
    import prefect
    from prefect.utilities.templating import apply_values

    template = json.loads((ROOT / "deploy/kubernetes-pool.json").read_text(encoding="utf-8"))
    declared, used = set(template["variables"]["properties"]), set(placeholders(template["job_configuration"]))
    assert used <= declared
    known = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"
    own = json.loads(known.read_text(encoding="utf-8"))["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    assert set(placeholders(own["job_configuration"])) <= used
    assert set(own["job_configuration"]) == set(template["job_configuration"])
    values = {name: one.get("default") for name, one in template["variables"]["properties"].items()}
    values |= {"image": "wbc:1", "command": ["python", "-m", "prefect.flow_engine"], "env": [], "name": "run", "labels": {}}
    job = apply_values(template["job_configuration"], {name: value for name, value in values.items() if value is not None})
    manifest = yaml.safe_load(yaml.safe_dump(job["job_manifest"]))
    assert (manifest["apiVersion"], manifest["kind"], manifest["spec"]["backoffLimit"]) == ("batch/v1", "Job", 0)
    pod = manifest["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "wbc-workspace"
    assert pod["restartPolicy"] == "Never"
    [retraining, *_] = [one for one in PREFECT["deployments"] if one["work_pool"]["name"] == "wbc-kubernetes"]
    assert retraining["parameters"]["workspace"] == container["volumeMounts"][0]["mountPath"] == container["workingDir"]
    assert set(retraining["work_pool"]["job_variables"]) <= declared
