"""DVC as the flow uses it: what a failing stage says, what a SIGKILL leaves, and that no child survives its flow."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from flows.guard import FLOW, alive, flow_token
from flows.state import State, hold_lock, is_locked, label_cycle, read_state
from flows.versioning import StageFailed, heal, repro, run_dvc
from wbc_model.errors import WbcError

STAGES = """
stages:
  good:
    cmd: echo fine > good.txt
    outs: [good.txt]
  telling:
    cmd: printf 'row 7 of the pools and what to do' > $WBC_ERROR_FILE; exit 1
    outs: [telling.txt]
  slow:
    cmd: echo begun; for i in $(seq 600); do test -e heard.txt && echo ended > slow.txt && exit; sleep 0.1; done; exit 1
    outs: [slow.txt]
  killed:
    cmd: kill -9 $$
    outs: [killed.txt]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dvc")
    (folder / "dvc.yaml").write_text(STAGES)
    run_dvc(folder, ["init", "--no-scm", "-q"])
    return folder


def test_a_stage_runs_once_for_the_same_inputs(site: Path) -> None:
    log = site / ".wbc/logs/good.log"
    assert repro(site, "good", log).ran
    assert not repro(site, "good", log).ran
    assert "didn't change" in log.read_text()


def test_what_a_stage_says_is_heard_and_in_the_log_while_it_runs(site: Path) -> None:
    log = site / ".wbc/logs/slow.log"

    def heard(line: str) -> None:
        if line == "begun" and line in log.read_text().splitlines():
            (site / "heard.txt").touch()  # what the stage waits for

    assert repro(site, "slow", log, heard=heard).ran


def test_a_hearer_that_fails_leaves_no_child(site: Path) -> None:
    (site / "heard.txt").unlink(missing_ok=True)
    (site / "slow.txt").unlink(missing_ok=True)

    def heard(line: str) -> None:
        if line == "begun":
            raise OSError(errno.ENOSPC, "no space left")

    start = time.monotonic()
    with pytest.raises(OSError, match="no space left"):
        repro(site, "slow", heard=heard)
    assert time.monotonic() - start < 40, "the stage, of a minute, was waited for"
    assert not [child for child in psutil.Process().children() if "dvc" in child.cmdline()]


def test_a_stage_that_tells_the_user_what_to_do_is_not_worth_another_attempt(site: Path) -> None:
    with pytest.raises(WbcError, match=r"^row 7 of the pools and what to do$") as caught:
        repro(site, "telling")
    assert not isinstance(caught.value, StageFailed)


def test_a_stage_that_was_killed_is(site: Path) -> None:
    with pytest.raises(StageFailed, match=r"(?s)killed.*see .*killed\.log"):
        repro(site, "killed", site / ".wbc/logs/killed.log")


def test_what_a_kill_leaves_half_written_is_put_right(site: Path) -> None:
    repro(site, "good")
    (site / "dvc.lock").write_text("schema: '2.0'\nstages:\n  good:\n    cmd: [")
    (site / ".dvc/tmp/rwlock").write_text('{"read": {')
    (site / "models/.candidate.abc").mkdir(parents=True)
    (site / "models/.gate.json.abcdefgh").write_text("")
    (site / "models/kept").write_text("")
    assert len(heal(site)) == 2
    assert [path.name for path in (site / "models").iterdir()] == ["kept"]
    assert repro(site, "good").stage == "good"
    assert heal(site) == []


# --- no child survives ---------------------------------------------------------------------------------------------------

FLOW_SCRIPT = """
import sys, time
from pathlib import Path
from flows.state import hold_lock
from flows.versioning import run_dvc
site = Path(sys.argv[1])
with hold_lock(site) as lock:
    print("held", flush=True)
    run_dvc(site, ["repro", "--single-item", "sleeper"], locks=(lock,))
"""
SLEEPER = """
import os, sys, time
from flows.guard import watch_flow
watch_flow()
open("pid.txt", "w").write(str(os.getpid()))
time.sleep(120)
"""


@pytest.mark.parametrize("victim", ["flow", "dvc"])
def test_a_stage_ends_with_its_flow_and_with_its_dvc_and_frees_the_lock(tmp_path: Path, victim: str) -> None:
    (tmp_path / "flow.py").write_text(FLOW_SCRIPT)
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    command = f"{sys.executable} sleeper.py"
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  sleeper:\n    cmd: {command}\n    outs: [never.txt]\n")
    run_dvc(tmp_path, ["init", "--no-scm", "-q"])
    flow = subprocess.Popen([sys.executable, "flow.py", str(tmp_path)], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid.txt").exists() or not (tmp_path / "pid.txt").read_text():
            assert flow.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stage = psutil.Process(int((tmp_path / "pid.txt").read_text()))
        with pytest.raises(WbcError, match=rf"runs in this workspace already \(pid {flow.pid}, since 20"), hold_lock(tmp_path):
            pass
        dvc = psutil.Process(flow.pid).children()[0]
        os.kill(flow.pid if victim == "flow" else dvc.pid, signal.SIGKILL)
        stage.wait(10)  # raises when it survives
        if victim == "flow":
            with hold_lock(tmp_path):  # DVC ends by itself now, and with it the lock that it inherited
                assert not dvc.is_running() or dvc.status() == psutil.STATUS_ZOMBIE
        else:
            assert flow.wait(20) == 1
            assert "StageFailed" in flow.stderr.read()  # type: ignore[union-attr]
    finally:
        flow.kill()
        flow.wait()


def test_without_a_flow_nothing_is_watched(tmp_path: Path) -> None:
    script = "import threading; from flows.guard import watch_flow; watch_flow(); print(threading.active_count())"
    environment = {name: value for name, value in os.environ.items() if name != FLOW}
    seen = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "1"


def test_a_process_is_known_by_its_time_of_birth_too() -> None:
    pid, created = flow_token().split(":")
    assert alive(int(pid), float(created))
    assert not alive(int(pid), float(created) - 100)  # its number was given to another process


# --- the lock and the state -----------------------------------------------------------------------------------------------


def test_the_lock_is_free_after_its_block_and_may_be_taken_within(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with hold_lock(tmp_path) as outer, hold_lock(tmp_path) as inner:
        assert inner == outer
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    State("key", "hash", "now", 2, False, cycle=1).write(tmp_path)
    state = read_state(tmp_path)
    assert state is not None
    assert label_cycle(tmp_path) == 4
    (tmp_path / ".wbc/retrain.json").write_text(textwrap.dedent('{"key": "a", "unknown": 1}'))
    with pytest.raises(WbcError, match=r"retrain\.json is damaged"):
        read_state(tmp_path)
