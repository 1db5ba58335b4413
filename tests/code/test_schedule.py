"""The schedule's surroundings: names at a shared server, time zones, proxies, and who is told when nobody looks."""

import contextlib
import http.server
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zoneinfo
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from flows import notify
from flows.identity import workspace_name
from flows.retraining import prefect_api, schedule
from flows.workspace import bypass_proxies, init_workspace, machine_name, set_params, template
from wbc_model.params import read_params

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def listening(status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server on loopback; yields its address and what was posted to it."""
    posted: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api", posted
        server.shutdown()


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes(template(name).read_bytes())
    return tmp_path


def test_loopback_is_never_reached_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "intranet")
    with listening() as (url, _):
        assert prefect_api._healthy(url)
        with pytest.raises(httpx.HTTPError):
            httpx.get(url)
        bypass_proxies()
        assert httpx.get(url).status_code == 200
    assert os.environ["no_proxy"] == "intranet,127.0.0.1,localhost,::1"
    bypass_proxies()
    assert os.environ["no_proxy"] == "intranet,127.0.0.1,localhost,::1"


def test_a_failure_is_said_in_the_log_on_stderr_and_to_the_webhook(marked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening() as (url, posted):
        set_params(marked, {"schedule.notify": url})
        notify.tell_failure(marked, "Flow run encountered an exception: WbcError: row 7: do\nthis")
    line = f"{marked}: the scheduled retraining failed: row 7: do this"
    assert posted == [{"text": line, "workspace": workspace_name(marked)}]
    assert capsys.readouterr().err == f"wbc: {line}\n"
    assert (marked / notify.LOG).read_text().endswith(f"Z {line}\n")


def test_a_webhook_that_refuses_or_is_gone_hides_nothing(
    marked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(500) as (url, _):
        monkeypatch.setenv(notify.WBC_NOTIFY, url)
        notify.tell(marked, "a failure")
    notify.tell(marked, "another")
    monkeypatch.setenv(notify.WBC_NOTIFY, "https:/hooks.example/a-secret")
    notify.tell(marked, "a third")
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["wbc: a failure", "wbc: nobody was notified: the webhook answered 500"]
    assert said[2] == "wbc: another"
    assert said[3].startswith("wbc: nobody was notified: the webhook does not answer")
    assert "neither a webhook's address" in said[5]
    assert len((marked / notify.LOG).read_text().splitlines()) == 6
    assert "a-secret" not in (marked / notify.LOG).read_text()


def test_a_webhook_that_answers_a_byte_at_a_time_holds_nobody(
    marked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            for number in itertools.count():
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: "[number : number + 1] or b"x")
                time.sleep(0.1)

    monkeypatch.setattr(notify, "_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=trickle, args=(listener,), daemon=True).start()
        monkeypatch.setenv(notify.WBC_NOTIFY, f"http://127.0.0.1:{listener.getsockname()[1]}/api")
        notify.tell(marked, "a failure")
    assert capsys.readouterr().err.endswith("nobody was notified: the webhook does not answer: nothing came within 1 s\n")


def test_names_at_a_server_are_the_workspaces_own_and_the_limit_is_the_machines(tmp_path: Path) -> None:
    one, other = tmp_path / "a/Städtisches Labor", tmp_path / "b/Städtisches Labor"
    for site in (one, other):
        site.mkdir(parents=True)
    names = workspace_name(one), workspace_name(other)
    assert names[0] != names[1]
    assert all(name.startswith("stadtisches-labor-") for name in names)
    assert workspace_name(one.rename(tmp_path / "a/städtisches labor")) == names[0], "a moved workspace stays the same"
    assert prefect_api.gpu_limit() == f"gpu-{machine_name()}"


def test_no_server_of_ours_keeps_the_runs_of_years(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The private one and the stack's. The watch of labels is a run each minute."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    code = "from prefect.settings import get_current_settings as now\n"
    code += "kept = now().server.services.db_vacuum\n"
    code += "print(sorted(kept.enabled_vacuum_types), kept.retention_period.days)"
    deployed = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["prefect"]["environment"]
    for given in (prefect_api.settings(tmp_path), {**deployed, "PREFECT_HOME": str(tmp_path)}):
        environment = {"PATH": os.environ["PATH"], **given}
        said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        assert said.strip() == "['events', 'flow_runs', 'orphans'] 30"


def test_cron_says_its_time_zone_and_takes_one(marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_params(marked, {"schedule.timezone": "America/Los_Angeles"})
    timing, words = schedule.when(read_params(marked / "params.yaml").schedule, None)
    assert (timing.cron, timing.timezone) == ("0 2 * * *", "America/Los_Angeles")
    assert words.startswith("by cron 0 2 * * * (America/Los_Angeles; next ")
    assert " 02:00 P" in words
    set_params(marked, {"schedule.timezone": None})
    script = (
        "from pathlib import Path; from flows.retraining import schedule; from wbc_model.params import read_params;"
        "print(schedule.when(read_params(Path('params.yaml')).schedule, None)[1])"
    )
    command = [sys.executable, "-c", script]
    values = {**os.environ, "TZ": "Asia/Kolkata"}
    shown = subprocess.run(command, cwd=marked, env=values, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("by cron 0 2 * * * (Asia/Kolkata; next ")
    assert shown.endswith(" 02:00 IST)\n")
    assert schedule.when(read_params(marked / "params.yaml").schedule, 5.0)[1] == "every 5 s"
    assert zoneinfo.ZoneInfo(schedule.timezone(read_params(marked / "params.yaml").schedule))


def test_the_next_run_that_is_said_is_the_one_that_the_server_makes() -> None:
    noon = datetime(2026, 11, 30, 12, tzinfo=UTC)
    assert f"{schedule.next_run('0 2 */2 * 1', 'UTC', noon):%F %H:%M}" == "2026-12-01 02:00", "a day of the month or a Monday"
    evening = datetime(2027, 3, 27, 20, tzinfo=UTC)
    said = f"{schedule.next_run('0 2 * * *', 'Europe/Berlin', evening):%F %H:%M %Z}"
    assert said == "2027-03-28 01:00 CET", "there is no 02:00 in this night, and Prefect begins before"
    assert schedule.next_run("0 2 * * *", "Europe/Berlin", evening + timedelta(hours=4, minutes=30)).day == 29
    assert schedule.next_run("@daily", "Europe/Berlin", noon).hour == 0


# --- at a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server of its own, as several workspaces would share it."""
    home = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        with prefect_api.prefect_api(home, scheduling=True) as url:
            from prefect.settings import PREFECT_API_URL, temporary_settings

            with temporary_settings({PREFECT_API_URL: url}):  # another test has imported Prefect before
                yield url


@pytest.mark.slow
def test_runs_that_were_killed_or_missed_are_put_right(server: str) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Pending, Running, Scheduled

    @flow(name="retraining-test-1")
    def mine() -> None: ...

    @flow(name="retraining-test-2")
    def others() -> None: ...

    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        dead = [client.create_flow_run(mine, state=state).id for state in (Running(), Pending())]
        own = client.create_flow_run(mine, state=Running()).id
        theirs = client.create_flow_run(others, state=Running()).id
        times = [now - timedelta(hours=hours) for hours in (30, 20, 10)] + [now + timedelta(hours=1)]
        planned = [client.create_flow_run(mine, state=Scheduled(scheduled_time=time)).id for time in times]
        begun = client.create_flow_run(mine, state=Running()).id
        command = [sys.executable, "-c", "print(1, flush=True); input()"]
        values = {**os.environ, "PREFECT__FLOW_RUN_ID": str(begun)}
        with subprocess.Popen(command, env=values, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert prefect_api.end_dead_runs(["retraining-test-1"], but=str(own)) == 2, "one has only just begun"
            process.communicate(b"\n")
        assert prefect_api.end_dead_runs(["retraining-test-1"], but=str(own)) == 1
        assert prefect_api.drop_missed_runs(["retraining-test-1", "retraining-test-2"]) == 2
        state = {run: client.read_flow_run(run).state for run in [*dead, own, theirs, *planned]}
    names = [state[run].name for run in [*dead, own, theirs, *planned]]  # type: ignore[union-attr]
    assert names[:4] == ["Crashed", "Crashed", "Running", "Running"]
    assert names[4:6] == ["Missed", "Missed"]
    assert names[6] in ("Scheduled", "Late"), "the server calls it so once it has looked"
    assert names[7] == "Scheduled"
    assert not state[planned[0]].is_completed()  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_suspended_run_is_found_resumed_and_dropped_by_its_deployment(server: str) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Running, Suspended

    @flow(name="retraining-of-march")
    def waits() -> None: ...

    with get_client(sync_client=True) as client:
        made = [client.create_deployment(client.create_flow(waits), name=name) for name in ("by-schedule", "another")]
        runs = [client.create_flow_run_from_deployment(made[0]) for _ in range(2)]
        other = client.create_flow_run_from_deployment(made[1])
        for run in (*runs, other):
            client.set_flow_run_state(run.id, Running(), force=True)
            client.set_flow_run_state(run.id, Suspended(pause_key=str(run.id)))
        name = "retraining-of-march/by-schedule"
        found = prefect_api.suspended_runs(name)
        assert [run.id for run in found] == [run.id for run in runs], "the oldest first, and none of another deployment"
        assert [run.id for run in prefect_api.suspended_runs(str(made[0]))] == [run.id for run in runs]
        assert prefect_api.suspended_runs("retraining-of-march/never-deployed") == []
        assert not prefect_api.about_to_run(name)
        prefect_api.resume(found[0])
        prefect_api.resume(found[0])  # somebody was quicker
        assert prefect_api.about_to_run(name)
        prefect_api.drop_runs(found[1:], "another run goes on")
        assert prefect_api.suspended_runs(name) == []
        states = [client.read_flow_run(run.id).state for run in (*runs, other)]
    assert [state.name for state in states] == ["Resuming", "Superseded", "Suspended"]  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_watch_that_is_slower_than_its_interval_drops_the_runs_that_it_overtook(server: str) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Running, Scheduled

    @flow(name="label-watch-of-march")
    def looks() -> None: ...

    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        made = [client.create_deployment(client.create_flow(looks), name=name) for name in ("label-watch", "another")]
        times = [now - timedelta(seconds=seconds) for seconds in (90, 30)] + [now + timedelta(hours=1)]
        runs = [client.create_flow_run_from_deployment(made[0], state=Scheduled(scheduled_time=time)).id for time in times]
        mine = client.create_flow_run_from_deployment(made[0]).id
        client.set_flow_run_state(mine, Running(), force=True)
        other = client.create_flow_run_from_deployment(made[1], state=Scheduled(scheduled_time=times[0])).id
        assert prefect_api.drop_late_runs(str(made[0])) == 2
        states = [client.read_flow_run(run).state for run in (*runs, mine, other)]
    assert [state.type for state in states[:2]] == ["CANCELLED"] * 2  # type: ignore[union-attr]
    assert [state.type for state in states[2:]] == ["SCHEDULED", "RUNNING", "SCHEDULED"]  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_failure_is_told_by_a_notification_block_of_prefects(
    server: str, marked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.blocks.system import Secret

    with listening() as (url, posted):
        told = {"subject": "{{subject}}", "body": "{{body}}"}
        CustomWebhookNotificationBlock(name="night watch", url=url, method="POST", json_data=told).save("night-watch")
        Secret(value="nothing").save("no-notification")  # type: ignore[arg-type]
        set_params(marked, {"schedule.notify": "custom-webhook/night-watch"})
        notify.tell_failure(marked, "Flow run encountered an exception: WbcError: row 7: do this")
    assert posted == [{"subject": f"wbc: {marked.name}", "body": f"{marked}: the scheduled retraining failed: row 7: do this"}]
    assert "nobody was notified" not in capsys.readouterr().err
    for block, why in (
        ("custom-webhook/night-watch", ""),
        ("slack-webhook/gone", "gone"),
        ("secret/no-notification", "sends no"),
    ):
        set_params(marked, {"schedule.notify": block})
        notify.tell(marked, "another failure")  # whose receiver is not there
        said = capsys.readouterr().err
        assert said.startswith("wbc: another failure\nwbc: nobody was notified: Prefect's block "), said
        assert why in said


@pytest.mark.slow
def test_a_run_that_waits_is_no_completed_one(server: str, marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.retraining import flow as retrain

    def body(root: Path, *more: object) -> retrain.Outcome:
        return retrain.Outcome(str(root), "key", next(statuses), awaited=3, gate={"reason": "better"})

    statuses = iter(["waiting", "done"])
    monkeypatch.setattr(retrain, "retraining", body)
    assert [retrain.retrain_flow(marked).status for _ in range(2)] == ["waiting", "done"]
    runs = httpx.post(f"{server}/flow_runs/filter", json={"sort": "START_TIME_ASC"}).json()
    flows = {flow["id"]: flow["name"] for flow in httpx.post(f"{server}/flows/filter", json={}).json()}
    mine = [run for run in runs if flows[run["flow_id"]] == prefect_api.retraining_flow(marked)]
    assert [(run["state_type"], run["state_name"]) for run in mine] == [("CANCELLED", "Waiting"), ("COMPLETED", "Completed")]
    assert mine[0]["state"]["message"] == "3 labels of people are awaited"
    assert all(run["name"].startswith(f"{marked.name} {datetime.now(UTC):%Y-}") for run in mine)
    assert all(set(run["tags"]) == {"wbc", workspace_name(marked)} for run in mine)

    def fails(root: Path, *more: object) -> retrain.Outcome:
        raise ValueError("out of luck")

    monkeypatch.setattr(retrain, "retraining", fails)
    with pytest.raises(ValueError, match="out of luck"):
        retrain.retrain_flow(marked)


def until(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


@contextlib.contextmanager
def scheduled(workspace: Path, url: str) -> Iterator["subprocess.Popen[str]"]:
    """`wbc schedule` at a server that it shares."""
    command = [sys.executable, "-m", "flows.cli", "schedule", "--every", "86400", "--watch", "86400"]
    log = workspace / "schedule.txt"
    with log.open("a") as output:
        before = log.stat().st_size
        process = subprocess.Popen(
            command, cwd=workspace, env={**os.environ, "PREFECT_API_URL": url}, stdout=output, stderr=output, text=True
        )
    try:
        until(lambda: "stop with Ctrl-C" in log.read_text()[before:] or process.poll() is not None)
        yield process
    finally:
        process.terminate()
        process.wait(60)
    assert "never awaited" not in log.read_text()[before:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workspaces_at_one_server_fail_each_by_itself_and_a_kill_leaves_nothing_running(server: str, tmp_path: Path) -> None:
    from prefect.deployments import run_deployment

    def deployed() -> set[str]:
        flows = {flow["id"]: flow["name"] for flow in httpx.post(f"{server}/flows/filter", json={}, timeout=60).json()}
        return {flows[one["flow_id"]] for one in httpx.post(f"{server}/deployments/filter", json={}, timeout=60).json()}

    def states(workspace: Path) -> list[tuple[str, str]]:
        flows = {flow["id"]: flow["name"] for flow in httpx.post(f"{server}/flows/filter", json={}, timeout=60).json()}
        query = {"flow_runs": {"deployment_id": {"is_null_": False}}, "sort": "START_TIME_ASC"}
        runs = httpx.post(f"{server}/flow_runs/filter", json=query, timeout=60).json()
        name = prefect_api.retraining_flow(workspace)
        return [(run["state_type"], run["state_name"]) for run in runs if flows[run["flow_id"]] == name and run["start_time"]]

    def ask(workspace: Path) -> None:
        name = f"{prefect_api.retraining_flow(workspace)}/{prefect_api.BY_SCHEDULE}"
        run_deployment(name, timeout=0, as_subflow=False)

    sites = [init_workspace(tmp_path / place / "site").workspace for place in ("one", "two")]
    holding = (
        "from pathlib import Path; from flows.state import hold_lock\nwith hold_lock(Path('.')): print(1, flush=True); input()"
    )
    with listening() as (url, posted), scheduled(sites[0], server) as first, scheduled(sites[1], server):
        until(lambda: {prefect_api.retraining_flow(site) for site in sites} <= deployed())
        text = (sites[0] / "params.yaml").read_text()
        set_params(sites[0], {"schedule.notify": url})
        (sites[0] / "params.yaml").write_text(
            (sites[0] / "params.yaml").read_text().replace("source: rendered", "source: gone.csv")
        )
        ask(sites[0])
        until(lambda: ("FAILED", "Failed") in states(sites[0]))
        until(lambda: bool(posted))
        line = f"{sites[0]}: the scheduled retraining failed: params.yaml: data.source gone.csv: "
        assert posted[0]["text"].startswith(line)
        assert f"wbc: {line}" in (sites[0] / "schedule.txt").read_text()
        assert states(sites[1]) == []
        (sites[0] / "params.yaml").write_text(text)
        program = [sys.executable, "-c", holding]
        with subprocess.Popen(program, cwd=sites[0], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            ask(sites[0])
            until(lambda: ("CANCELLED", "Skipped") in states(sites[0]))
            holder.communicate(b"\n")
        ask(sites[0])  # a real one, of rendered cells
        until(lambda: ("RUNNING", "Running") in states(sites[0]))
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert ("RUNNING", "Running") in states(sites[0])
    until(lambda: not subprocess.run(["pgrep", "-f", str(sites[0])], capture_output=True, check=False).stdout)
    with scheduled(sites[0], server):
        assert not [kind for kind, _ in states(sites[0]) if kind == "RUNNING"]
        assert ("CRASHED", "Crashed") in states(sites[0])
