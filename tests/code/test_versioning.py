"""DVC as the flow uses it: what a failing stage says, what a SIGKILL leaves, and that no child survives its flow."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from flows.cli.status import next_command
from flows.guard import FLOW, alive, flow_token
from flows.labels import check_known, check_replayed
from flows.pipeline.dvc import (
    StageFailed,
    check_git,
    commit_all,
    commit_of_model,
    heal,
    kept_by_dvc,
    repro,
    run_dvc,
    tag,
    version_pools,
)
from flows.state import (
    Busy,
    State,
    at_work,
    hold_lock,
    is_locked,
    label_cycle,
    new_labels,
    note_learned,
    one_version,
    read_state,
    writing,
)
from flows.workspace import GITIGNORE, set_params, template
from wbc_model.cells.pools import COLUMNS, Pools
from wbc_model.core.errors import WbcError
from wbc_model.core.written import read_yaml

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
from flows.pipeline.dvc import run_dvc
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


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_a_process_stays_itself_when_the_clock_is_put_right(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The kernel gives the time of its start by the clock of now, and with it that of every process."""
    pid, created = flow_token().split(":")
    before = psutil.Process().create_time()
    at = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: at + seconds)
    assert abs(psutil.Process().create_time() - before - seconds) < 1
    assert alive(int(pid), float(created))


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


HOLDER = """
import subprocess, sys, time
from pathlib import Path
from flows.state import hold_lock
site = Path(sys.argv[1])
with hold_lock(site):
    print("held", flush=True)
    if len(sys.argv) > 2:
        done = subprocess.run([sys.executable, "-m", "flows.cli", *sys.argv[2:]], cwd=site, capture_output=True, text=True)
        print(done.returncode, done.stderr.replace(chr(10), " "), flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def holder(site: Path, *command: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has the workspace, and perhaps runs a command of ours as its child."""
    program = [sys.executable, "-c", HOLDER, str(site), *command]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.communicate("\n")


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes(template(name).read_bytes())
    return tmp_path


def one_stage(name: str) -> Any:
    """A case; two of them are tried each time."""
    return pytest.param(name, marks=[] if name in ("train", "fingerprint") else pytest.mark.slow)


@pytest.mark.parametrize("stage", map(one_stage, ("validate", "train", "evaluate", "query", "package", "fingerprint")))
def test_a_stage_typed_by_hand_does_not_come_between_a_retraining(marked: Path, stage: str) -> None:
    with holder(marked) as flow:
        typed = subprocess.run(
            [sys.executable, "-m", "flows.cli", stage], cwd=marked, capture_output=True, text=True, check=False
        )
    assert typed.returncode == 1
    assert typed.stderr.startswith(f"wbc: error: a retraining runs in this workspace already (pid {flow.pid}, since ")
    assert typed.stderr.count("\n") == 1
    assert not (marked / "models").exists()


@pytest.mark.slow
def test_a_stage_that_the_holder_runs_is_its_own(marked: Path) -> None:
    with holder(marked, "fingerprint") as flow:
        assert flow.stdout is not None
        assert flow.stdout.readline().startswith("0 ")
    assert (marked / "models/code.json").exists()


def test_pools_that_become_others_while_a_stage_works_are_no_result(tmp_path: Path) -> None:
    empty = Pools.empty()
    empty.write(tmp_path / "data/pools")
    with one_version(tmp_path):
        pass
    with pytest.raises(WbcError, match="data/pools was changed meanwhile"), one_version(tmp_path):
        (tmp_path / "data/pools/test.csv").write_text("another\n")


def test_parameters_that_become_others_while_a_stage_works_are_no_result(marked: Path) -> None:
    with one_version(marked, "train"):
        set_params(marked, {"schedule.cron": "0 3 * * *", "presets.full.updates": 9})  # nothing that the stage takes
    said = r"params\.yaml was changed meanwhile \(presets\.small, seed\)"
    with pytest.raises(WbcError, match=said), one_version(marked, "train"):
        set_params(marked, {"seed": 1, "presets.small.updates": 7})


def test_who_works_on_the_pools_is_known(marked: Path) -> None:
    assert at_work(marked) is None
    with hold_lock(marked):
        assert at_work(marked) is None, "what this process changes it changes between its stages"
    with holder(marked) as flow:
        assert at_work(marked) == f"a retraining (pid {flow.pid})"
    assert at_work(marked) is None
    rwlock = marked / ".dvc/tmp/rwlock"
    rwlock.parent.mkdir(parents=True)
    reader = {"pid": os.getpid(), "cmd": "repro"}
    rwlock.write_text(json.dumps({"write": {}, "read": {str(marked / "data/pools"): [reader]}}))
    assert at_work(marked) == f"`dvc repro` (pid {os.getpid()})"
    rwlock.write_text(json.dumps({"read": {str(marked / "data/pools"): [{**reader, "pid": 2**22 + 1}]}}))
    assert at_work(marked) is None, "that process is gone"


def test_a_typed_dvc_repro_works_on_one_version_of_the_pools_between_its_stages_too(marked: Path) -> None:
    (marked / "dvc.yaml").write_text("stages:\n  second:\n    cmd: touch begun && sleep 3\n")  # it reads no pools
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=marked, check=True)
    with subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=marked, stdout=subprocess.PIPE) as typed:
        while not (marked / "begun").exists():
            assert typed.poll() is None
            time.sleep(0.05)
        assert at_work(marked) == f"`dvc repro` (pid {typed.pid})"
        told: list[str] = []
        with writing(marked, "`wbc ingest`", told.append):
            assert typed.wait(1) == 0, "it has ended, but for its very last moment"
        assert told
        assert told[0].startswith(f"`dvc repro` (pid {typed.pid}) runs in this workspace")
    assert at_work(marked) is None


def test_what_changes_the_data_waits_for_who_works_on_them(marked: Path) -> None:
    told: list[str] = []
    with holder(marked) as flow:
        threading.Timer(1.0, lambda: flow.stdin and (flow.stdin.write("\n"), flow.stdin.flush())).start()
        start = time.monotonic()
        with writing(marked, "`wbc ingest`", told.append):
            assert time.monotonic() - start > 0.5
            assert len(told) == 1
            assert told[0].startswith(f"a retraining runs in this workspace already (pid {flow.pid}")
    with pytest.raises(Busy, match=r"^`wbc train` runs in this workspace already .* or stop that process$"):
        _refused_while("`wbc train`", marked)


def _refused_while(what: str, workspace: Path) -> None:
    lock = f"with hold_lock(Path('.'), {what!r}): print(1, flush=True); input()"
    script = f"from pathlib import Path; from flows.state import hold_lock\n{lock}"
    with subprocess.Popen([sys.executable, "-c", script], cwd=workspace, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            with hold_lock(workspace):
                pass
        finally:
            other.communicate(b"\n")


def test_a_corrected_label_is_new_too(tmp_path: Path) -> None:
    def labelled(*labels: str) -> Pools:
        rows = [{"path": str(i), "sha256": f"{i:064d}", "label": name, "cycle": 0} for i, name in enumerate(labels)]
        frame = pd.DataFrame(rows).reindex(columns=COLUMNS, fill_value="")
        pools = Pools.empty().plus({"labelled": frame})
        pools.write(tmp_path / "data/pools")
        return pools

    assert new_labels(tmp_path) == 0
    pools = labelled("Basophil", "Monocyte")
    assert new_labels(tmp_path) == 2
    note_learned(tmp_path, pools)
    assert new_labels(tmp_path) == 0
    labelled("Basophil", "Lymphocyte")
    assert new_labels(tmp_path) == 1
    labelled("Basophil", "Lymphocyte", "Neutrophil")
    assert new_labels(tmp_path) == 2


# --- git and its surroundings ---------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    who = {f"GIT_{one}_{what}": "t@example.org" for one in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, env={**os.environ, **who}, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def repository(marked: Path) -> Path:
    git(marked, "init", "-q", "-b", "main")
    for name in ("name", "email"):
        git(marked, "config", f"user.{name}", "t@example.org")
    git(marked, "add", "-A")
    git(marked, "commit", "-q", "-m", "first")
    (marked / "data").mkdir()
    return marked


def pools_of(site: Path, cells: int) -> Pools:
    rows = [{"path": str(i), "sha256": f"{i:064d}"} for i in range(cells)]
    pools = Pools.empty().plus({"unlabelled": pd.DataFrame(rows).reindex(columns=COLUMNS, fill_value="")})
    pools.write(site / "data/pools")
    return pools


def test_a_tag_and_a_commit_need_nobody_to_sign_or_to_write(repository: Path) -> None:
    for name, value in (
        ("tag.gpgSign", "true"),
        ("commit.gpgSign", "true"),
        ("gpg.program", "false"),
        ("core.editor", "sleep 600"),
    ):
        git(repository, "config", name, value)
    pools_of(repository, 3)
    version = version_pools(repository)
    start = time.monotonic()
    commit_all(repository, "pools")
    tag(repository, version)
    assert time.monotonic() - start < 60
    assert git(repository, "tag", "--list").split() == ["pools-v1"]
    assert git(repository, "rev-parse", "pools-v1^{commit}") == git(repository, "rev-parse", "HEAD")


def test_a_number_that_is_anothers_is_passed_over(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    git(repository, "tag", "pools-v1")  # somebody's, of no pools at all
    pools_of(repository, 3)
    version = version_pools(repository)
    assert version.name == "pools-v2"
    assert version_pools(repository) == version
    commit_all(repository, "pools")
    tag(repository, version)
    tag(repository, version)  # once
    pools_of(repository, 4)
    later = version_pools(repository)
    assert later.name == "pools-v3"
    git(repository, "tag", "pools-v3", "HEAD~1")  # it came by a fetch while the model was trained
    commit_all(repository, "more")
    with pytest.raises(WbcError, match="the tag pools-v3 came meanwhile and names other pools"):
        tag(repository, later)
    assert version_pools(repository).name == "pools-v4"


def test_an_ignored_folder_is_named_with_the_line_that_ignores_it(repository: Path) -> None:
    check_git(repository, commit=True)
    (repository / ".gitignore").write_text("*.pyc\ndata/\n")
    for commit in (True, False):
        with pytest.raises(WbcError, match=r"git ignores data/images\.dvc, by \.gitignore:2:data/"):
            check_git(repository, commit)
    (repository / ".gitignore").write_text("data/*\n!data/*.dvc\n")
    check_git(repository, commit=True)


def test_what_dvc_keeps_never_comes_into_git(repository: Path) -> None:
    """By `git add -A`; and where it did, the line brings it out again."""
    shutil.copyfile(template("dvc.yaml"), repository / "dvc.yaml")
    kept = kept_by_dvc(repository)
    (repository / ".gitignore").write_text(GITIGNORE)
    ignored = subprocess.run(["git", "-C", str(repository), "check-ignore", *kept], capture_output=True, text=True, check=False)
    assert ignored.stdout.split() == kept
    (repository / ".gitignore").write_text("")
    pools_of(repository, 3)
    (repository / "data/queue.csv").write_text("sha256\n")
    git(repository, "add", "-A")
    with pytest.raises(WbcError, match=r"git has data/pools, .* `git rm -r -q --cached data/pools data/queue\.csv`") as refused:
        check_git(repository, commit=False)
    git(repository, *str(refused.value).split("`")[1].split()[1:])
    check_git(repository, commit=False)
    assert version_pools(repository).number == 1


def test_an_unfinished_merge_stops_before_anything_is_done(repository: Path) -> None:
    path = repository / "data/pools.dvc"

    def branch(name: str, text: str) -> None:
        git(repository, "checkout", "-q", "-b", name, "main")
        path.parent.mkdir(exist_ok=True)  # git keeps no empty folder
        path.write_text(text)
        git(repository, "add", "-A")
        git(repository, "commit", "-q", "-m", name)

    branch("ours", "outs:\n- md5: a\n  path: pools\n")
    branch("theirs", "outs:\n- md5: b\n  path: pools\n")
    subprocess.run(["git", "-C", str(repository), "merge", "ours"], capture_output=True, check=False)
    text = path.read_text()
    assert "<<<<<<<" in text
    for commit in (True, False):
        with pytest.raises(WbcError, match=r"^1 file is in conflict by a merge: .*`git commit --no-edit`"):
            check_git(repository, commit)
    with pytest.raises(WbcError, match=r"data/pools\.dvc holds the conflict of a merge"):
        heal(repository)
    with pytest.raises(WbcError, match=r"data/pools\.dvc holds the conflict of a merge: settle it; `git status`"):
        read_yaml(path)
    assert path.read_text() == text
    take_theirs(repository)
    assert "md5: a" in path.read_text(), "what lies here is added to it: what they know would be lost for the other way round"
    git(repository, "add", "-A")
    with pytest.raises(WbcError, match="a merge is not finished"):
        check_git(repository, commit=True)
    check_git(repository, commit=False)
    git(repository, "reset", "-q", "--hard", "theirs")
    subprocess.run(["git", "-C", str(repository), "rebase", "ours"], capture_output=True, check=False)
    with pytest.raises(WbcError, match=r"^1 file is in conflict by a rebase: .*`git rebase --continue`"):
        check_git(repository, commit=True)
    take_theirs(repository)
    assert "md5: a" in path.read_text()


def take_theirs(repository: Path) -> None:
    """Do what the line about a conflict says."""
    with pytest.raises(WbcError) as refused:
        check_git(repository, commit=True)
    git(repository, *str(refused.value).split("`")[1].split()[1:])


def test_the_commit_of_a_model_is_the_one_that_has_it_though_the_tag_is_on_another_of_the_same_pools(repository: Path) -> None:
    def trained(model: str) -> str:
        outs = {"outs": [{"path": "models/candidate", "md5": model}]}
        (repository / "dvc.lock").write_text(json.dumps({"stages": {"train": outs}}))
        commit_all(repository, f"pools-v1: {model}")
        return git(repository, "rev-parse", "HEAD").strip()

    pools_of(repository, 2)
    first = trained("one")
    assert commit_of_model(repository, "pools-v1") == "", "there is no such tag"
    git(repository, "tag", "pools-v1")
    assert commit_of_model(repository, "pools-v1") == first
    second = trained("two")
    assert commit_of_model(repository, "pools-v1") == second != first
    assert trained("one") != first
    assert commit_of_model(repository, "pools-v1") == first


def test_answers_that_git_names_and_the_log_here_lacks_are_not_dropped_in_silence(marked: Path) -> None:
    rows = ["sha256,label,labelled_by,labelled_at,cycle,why", "a,Monocyte,ada,2026-11-29T08:00:00Z,1,", "b,Basophil,ada,,1,"]
    log, note = marked / "data/labels.csv", marked / "data/labels.csv.dvc"
    pools_of(marked, 2)

    def text(count: int) -> bytes:
        return "".join(f"{row}\n" for row in rows[:count]).encode()

    def noted(data: bytes) -> Path:
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        note.write_text(f"outs:\n- md5: {digest}\n  size: {len(data)}\n  hash: md5\n  path: labels.csv\n")
        return marked / ".dvc/cache/files/md5" / digest[:2] / digest[2:]

    log.write_bytes(text(3))
    first = noted(text(2))
    first.parent.mkdir(parents=True)
    first.write_bytes(text(2))
    check_known(marked)  # an answer came since
    kept = noted(text(3))
    log.write_bytes(text(2))  # a `git pull` brought the note alone
    with pytest.raises(WbcError, match=r"lacks answers that data/labels\.csv\.dvc names"):
        check_known(marked)
    with pytest.raises(WbcError, match=r"keeps what is here, `dvc pull data/labels\.csv\.dvc` brings the others"):
        check_replayed(marked)  # so begin a retraining and an import
    assert next_command(marked).endswith("adds yours to them")
    log.write_bytes(text(3).replace(b"ada", b'"ada"'))  # written otherwise, by another version: DVC's cache has what it was
    kept.parent.mkdir(parents=True)
    kept.write_bytes(text(3))
    check_known(marked)
    log.write_bytes(text(2))
    with pytest.raises(WbcError, match=r"without its data: `dvc checkout data/labels\.csv\.dvc` brings them"):
        check_known(marked)
    log.write_bytes(text(2) + b"c,Monocyte,bo,,1,\n")
    with pytest.raises(WbcError, match=r"`cp data/labels\.csv labels-mine\.csv` .* `dvc checkout --force .* `wbc labels import "):
        check_known(marked)
    note.write_text(f"<<<<<<< HEAD\n{note.read_text()}=======\n>>>>>>> theirs\n")
    check_known(marked)  # of a conflict somebody else speaks
