"""The real thing on a tiny workspace: DVC, Prefect, MLflow, Great Expectations, real processes and a real SIGKILL.

One workspace is filled once and copied. In one copy a retraining runs undisturbed, in another at the same time it is killed;
later tests use what the first left behind: its commits, its registry, its schedule.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.labels import oracle_answers, record
from flows.progress import TRAINING_LINE
from flows.retraining.prefect_api import retraining_flow
from flows.state import read_state
from flows.tracking import open_tracker
from flows.workspace import init_workspace, set_params
from tests.pools import ingest
from wbc_model.cells.pools import Pools
from wbc_model.core.classes import CLASSES
from wbc_model.core.files import file_sha256
from wbc_model.core.model_card import read_card
from wbc_model.network.card_page import write_card
from wbc_model.params import read_params
from wbc_model.rendering.cells import write_cells

TINY = {
    "presets.small.image_size": 32,
    "presets.small.batch_size": 8,
    "presets.small.updates": 8,
    "presets.small.precision": "32-true",
    "train.eval_every": 2,
    "data.initial_share": 0.3,
    "retrain.until": 0.6,
    "retrain.cycles": 1,
    "package.int8": False,
    "schedule.min_new_labels": 5,
    **{f"gate.recall_floor.{name}": 0.0 for name in CLASSES},
}
IDENTITY = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def environment() -> dict[str, str]:
    """The tests' own environment without a Prefect server of the user's, with an identity for git, one thread a process."""
    values = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "WBC_", "MLFLOW_"))}
    return values | IDENTITY | {"OMP_NUM_THREADS": "1"}


def wbc(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=workspace, env=environment(), capture_output=True, text=True, check=False)


def begin(workspace: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "flows.cli", "retrain", "--json", *arguments]
    # Where a shell runs the suite in the background Ctrl-C is ignored, and everything that is started inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (workspace / "out.txt").open("w") as out, (workspace / "err.txt").open("a") as err:
        return subprocess.Popen(
            command, cwd=workspace, env=environment(), stdout=out, stderr=err, text=True, start_new_session=True
        )


def until(condition: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


def in_stage(process: "subprocess.Popen[str]", stage: str) -> bool:
    """Whether a flow's child is running this stage."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[-1:] == [stage] and "dvc" not in child.cmdline():
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL, and nothing that it started is left after a moment (DVC may finish its line)."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left, [child.cmdline() for child in left]


def interrupt(process: "subprocess.Popen[str]") -> None:
    """Ctrl-C at a terminal: every process of the session gets it, and nothing that it started is left."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left, [child.cmdline() for child in left]


def dvc(workspace: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    values = environment() | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=workspace, env=values, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def git(workspace: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=workspace, env=environment(), capture_output=True, text=True, check=True)
    return done.stdout


def outcome(workspace: Path) -> dict[str, Any]:
    """What must not depend on how often a retraining was killed."""
    pools = Pools.read(workspace / "data/pools").table().drop(columns="labelled_at")
    log = pd.read_csv(workspace / "data/labels.csv", dtype=str)
    rows = json.loads((workspace / "out.txt").read_text())["cycles"]
    return {
        "pools": pools.to_csv(),
        "labels": log.drop(columns="labelled_at").to_csv(),
        "champion": file_sha256(workspace / "models/champion/weights.safetensors"),
        "candidate": file_sha256(workspace / "models/candidate/weights.safetensors"),
        "cycles": [{name: row[name] for name in ("cycle", "labels", "accuracy", "macro_f1", "pools")} for row in rows],
        "metrics": json.loads((workspace / "metrics.json").read_text()),
        "versions": (workspace / "data/versions.csv").read_text(),
        "tags": git(workspace, "tag", "--list"),
    }


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with 130 rendered cells."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        workspace = init_workspace(tmp_path_factory.mktemp("flow") / "site").workspace
        set_params(workspace, TINY)
        data = write_cells(workspace / ".wbc/rendered", 130, seed=0, size=64)
        ingest(data, workspace / "data", read_params(workspace / "params.yaml"), source="rendered")
        yield workspace


@dataclass
class Whole:
    """A workspace after a retraining that nobody stopped; what came of it, and what a second one heard meanwhile."""

    workspace: Path
    outcome: dict[str, Any]
    refused: "subprocess.CompletedProcess[str]"
    pid: int


@pytest.fixture(scope="module")
def whole(filled: Path) -> Iterator[Whole]:
    workspace = Path(shutil.copytree(filled, filled.parent / "whole"))
    process = begin(workspace, "--commit")
    try:
        until(lambda: in_stage(process, "train"), process)
        refused = wbc(workspace, "retrain")
        assert process.wait(600) == 0, (workspace / "err.txt").read_text()
        yield Whole(workspace, outcome(workspace), refused, process.pid)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_prefect_server_that_is_gone_is_one_line(filled: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import psutil\n"
        "from flows.cli import command as cli; from flows.retraining.prefect_api import open_limit, prefect_api\n"
        "def app():\n"
        "    with prefect_api(Path(sys.argv[1])):\n"
        "        [server] = psutil.Process().children()\n"
        "        server.kill(); server.wait()\n"
        "        open_limit(own_server=True)\n"
        "cli.app = app; cli.main()"
    )
    command = [sys.executable, "-c", script, str(filled)]
    values = environment() | {"PREFECT_CLIENT_MAX_RETRIES": "0"}
    done = subprocess.run(command, env=values, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    log = filled / ".wbc/prefect/server.log"
    assert line.startswith(f"wbc: error: the workspace's own Prefect server (see {log}) has stopped answering: ")


def test_a_retraining_asks_learns_and_tags_what_belongs_together(whole: Whole) -> None:
    first, second = (row["labels"] for row in whole.outcome["cycles"])
    assert first < second
    assert whole.outcome["tags"].split() == ["pools-v1", "pools-v2"]


def test_a_second_retraining_at_once_is_refused_in_one_line(whole: Whole) -> None:
    assert whole.refused.returncode == 1
    (line,) = whole.refused.stderr.splitlines()
    assert line.startswith(f"wbc: error: a retraining runs in this workspace already (pid {whole.pid}, since ")


def test_the_log_of_a_training_tells_how_far_it_is(whole: Whole) -> None:
    logs = sorted((whole.workspace / ".wbc/logs").glob("*/*-train.log"))
    assert len(logs) == 2
    for log in logs:
        told = [line.split(":")[0] for line in log.read_text().splitlines() if TRAINING_LINE.match(line)]
        assert told == ["update     1 of 3", "update     2 of 3", "update     3 of 3"], log


def test_the_registry_holds_runs_metrics_pools_and_the_champion(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    workspace = whole.workspace
    monkeypatch.chdir(workspace)  # MLflow's files are named relative to the workspace
    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db", f"sqlite:///{workspace}/mlflow.db")
    experiment = client.get_experiment_by_name("wbc")
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    parents = [run for run in found if run.data.tags["wbc.cycle"] == "none"]
    cycles = {run.data.tags["wbc.cycle"]: run for run in found if run.data.tags["wbc.cycle"] != "none"}
    assert (len(parents), sorted(cycles)) == (1, ["0", "1"])
    metrics = json.loads((workspace / "metrics.json").read_text())
    assert cycles["1"].data.metrics["test_accuracy"] == pytest.approx(metrics["accuracy"])
    assert [metric.step for metric in client.get_metric_history(cycles["1"].info.run_id, "validation_loss")] == [2, 3]
    assert any(name.startswith("system/cpu") for name in cycles["1"].data.metrics)
    assert cycles["1"].data.params["presets.small.updates"] == "3"
    assert cycles["1"].data.params["train.unlabelled_ratio"] == "1.0", "what `few_labels` says is what it was trained with"
    assert cycles["1"].data.tags["mlflow.parentRunId"] == parents[0].info.run_id
    for number, run in cycles.items():
        (pools,) = (entry.dataset for entry in run.inputs.dataset_inputs)
        versions = pd.read_csv(workspace / "data/versions.csv", dtype=str)
        assert pools.name == f"pools-v{int(number) + 1}"
        assert pools.digest == versions["version"].iloc[int(number)]
    files = {file.path for file in client.list_artifacts(cycles["1"].info.run_id, "model")}
    model = {f"model/{name}" for name in ("model.json", "model.onnx", "weights.safetensors", "reference.npz", "README.md")}
    assert files == model | {"model/MLmodel"}
    version = client.get_model_version_by_alias("wbc", "champion")
    assert version.version == client.get_model_version_by_alias("wbc", "challenger").version
    assert version.tags["wbc.weights_sha256"] == file_sha256(workspace / "models/champion/weights.safetensors")
    assert version.tags["wbc.gate"] == "promoted"
    assert "first champion" in parents[0].data.tags["wbc.gate.reason"]
    assert "**Gate: promoted to champion**" in version.description
    assert "| 1 |" in parents[0].data.tags["mlflow.note.content"]
    assert {name: cycles["1"].data.tags[f"wbc.{name}"] for name in ("pools_name", "strategy", "rendered")} == {
        "pools_name": "pools-v2",
        "strategy": "badge",
        "rendered": "yes",
    }
    assert cycles["1"].data.tags["mlflow.source.name"] == "wbc retrain"
    assert cycles["1"].data.tags["mlflow.source.git.commit"] == git(workspace, "rev-parse", "pools-v2").strip()
    curve = client.get_metric_history(parents[0].info.run_id, "test_accuracy")
    assert [point.step for point in curve] == [row["labels"] for row in whole.outcome["cycles"]]
    assert {parents[0].info.status, *(run.info.status for run in cycles.values())} == {"FINISHED"}
    card = json.loads((workspace / "models/champion/model.json").read_text())
    assert card["metrics"]["test"]["accuracy"] == pytest.approx(metrics["accuracy"])
    assert card["parameters"]["train"]["ema"] == 0.99
    assert card["git_commit"] == git(workspace, "rev-parse", "pools-v2").strip()


@pytest.mark.slow
def test_a_clone_makes_the_same_weights_and_runs_nothing_that_has_not_changed(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = whole.workspace
    assert git(workspace, "status", "--porcelain", "--untracked-files=no") == ""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    dvc(workspace, "remote", "add", "--global", "-d", "disk", str(tmp_path / "remote"))  # known at every commit
    dvc(workspace, "push", "-q", "--all-tags")
    dvc(workspace, "push", "-q")
    git(tmp_path, "clone", "-q", str(workspace), "clone")
    clone = tmp_path / "clone"
    versions = pd.read_csv(workspace / "data/versions.csv", dtype=str)
    for number, row in enumerate(json.loads((workspace / "out.txt").read_text())["cycles"]):
        git(clone, "checkout", "-q", f"pools-v{number + 1}")
        dvc(clone, "pull", "-q")
        assert read_card(clone / "models/candidate").pool_version == versions["version"].iloc[number]
        assert Pools.read(clone / "data/pools").version() == versions["version"].iloc[number]
        assert json.loads((clone / "metrics.json").read_text())["accuracy"] == pytest.approx(row["accuracy"])
        packaged = read_card(clone / "build/bento/src/model").sha256["weights.safetensors"]
        assert packaged == read_card(clone / "models/candidate").sha256["weights.safetensors"]
    git(clone, "checkout", "-q", "main")
    dvc(clone, "pull", "-q")
    expected = file_sha256(workspace / "models/candidate/weights.safetensors")
    assert file_sha256(clone / "models/candidate/weights.safetensors") == expected
    quiet = dvc(clone, "repro")
    assert "Running stage 'code'" in quiet
    for name in ("validate", "train", "evaluate", "query", "package"):
        assert f"Stage '{name}' didn't change, skipping" in quiet
    # From the data alone, without what DVC remembers of the stage.
    shutil.rmtree(clone / "models/candidate")
    (clone / "models/history.csv").unlink()
    again = dvc(clone, "repro", "--force", "--single-item", "train")
    assert "Running stage 'train'" in again
    assert file_sha256(clone / "models/candidate/weights.safetensors") == expected
    assert read_card(clone / "models/candidate") == read_card(workspace / "models/candidate")
    assert read_card(clone / "models/candidate").created_at  # when its newest label was given
    assert "Stage 'evaluate' didn't change, skipping" in dvc(clone, "repro", "evaluate")
    assert git(clone, "status", "--porcelain") == ""


def test_only_a_change_that_matters_to_a_stage_makes_it_run(whole: Whole) -> None:
    workspace = whole.workspace

    def touched() -> set[str]:
        status = json.loads(dvc(workspace, "status", "--json"))
        return set(status) - {"code"}

    assert json.loads(dvc(workspace, "status", "--json")) == {}, "after a retraining nothing is out of date"
    code = (workspace / "models/code.json").read_text()
    for stage in ("query", "validate"):
        (workspace / "models/code.json").write_text(code.replace(json.loads(code)[stage], "0" * 16))
        assert touched() == {stage}
    (workspace / "models/code.json").write_text(code)
    set_params(workspace, {"presets.full.updates": 7, "gate.alpha": 0.5})
    assert touched() == set()
    set_params(workspace, {"presets.small.updates": 7})
    assert touched() == {"train"}
    git(workspace, "checkout", "--", "params.yaml")


def test_metrics_and_plots_are_declared(whole: Whole, tmp_path: Path) -> None:
    workspace = whole.workspace
    change = json.loads(dvc(workspace, "metrics", "diff", "--all", "pools-v1", "pools-v2", "--json"))
    rows = json.loads((workspace / "out.txt").read_text())["cycles"]
    accuracy = change["metrics.json"]["accuracy"]
    assert [accuracy["old"], accuracy["new"]] == pytest.approx([row["accuracy"] for row in rows])
    dvc(workspace, "plots", "show", "-o", str(tmp_path / "plots"))
    page = (tmp_path / "plots/index.html").read_text()
    for words in ("Confusion matrix", "Losses of the last training", "Learning curve"):
        assert words in page


def test_enough_new_labels_ask_for_a_retraining(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.retraining.deployed import label_watch

    asked: list[str] = []
    monkeypatch.setattr("flows.retraining.deployed.suspended_runs", lambda deployment: [])
    monkeypatch.setattr("prefect.deployments.run_deployment", lambda name, **named: asked.append(named["idempotency_key"]))
    workspace = whole.workspace
    cells = Pools.read(workspace / "data/pools").frames["unlabelled"].head(5)
    assert label_watch(workspace) == 0
    record(workspace, oracle_answers(workspace, cells.head(4)), 2)
    assert label_watch(workspace) == 4
    assert asked == []
    record(workspace, oracle_answers(workspace, cells), 2)
    assert [label_watch(workspace) for _ in range(2)] == [5, 5]
    assert len(asked) == 2
    assert len(set(asked)) == 1  # Prefect makes one run of one key


def test_the_champion_before_comes_back_from_the_registry(whole: Whole, tmp_path: Path) -> None:
    workspace, params = whole.workspace, read_params(whole.workspace / "params.yaml")
    first = file_sha256(workspace / "models/champion/weights.safetensors")
    tracker = open_tracker(workspace, params)
    before = tracker.alias("champion")
    assert before is not None
    other = Path(shutil.copytree(workspace / "models/champion", tmp_path / "other"))
    card = read_card(other).model_copy(update={"version": "another"})
    write_card(other, card)
    run = tracker.cycle(tracker.retraining("later", params), "later", 5)
    later = tracker.register(run, other)
    assert tracker.register(run, other) == later  # once
    tracker.tag_version(later, {"wbc.gate.before": before})
    tracker.set_alias("champion", later)
    assert tracker.fetch(later, workspace / "models/champion").version == "another"

    def wbc(*arguments: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(workspace)
            return CliRunner().invoke(app, ["champion", "--rollback", *arguments])

    unexplained = wbc("--json")
    assert unexplained.exit_code == 2
    assert "--rollback needs --reason TEXT" in unexplained.stderr
    answer = wbc("--reason", "it is another's", "--by", "Ada", "--json")
    assert answer.exit_code == 0, answer.stderr
    assert json.loads(answer.stdout)["rolled_back"]["to"] == before
    assert tracker.alias("champion") == before
    assert file_sha256(workspace / "models/champion/weights.safetensors") == first
    assert read_card(workspace / "models/champion").version != "another"
    word = {version["version"]: version["word"] for version in json.loads(answer.stdout)["versions"]}[later]
    assert (word["word"], word["reason"], word["by"]) == ("withdrawn", "it is another's", "Ada")
    again = wbc("2", "--reason", "once more")
    assert str(again.exception).startswith(f"version {before} was the first champion; `wbc champion --rollback")


@pytest.mark.slow
def test_a_killed_retraining_ends_as_the_one_that_nobody_killed(filled: Path, whole: Whole) -> None:
    """By Ctrl-C in training, and by SIGKILL when the labels had come in."""
    killed = Path(shutil.copytree(filled, filled.parent / "killed"))
    process = begin(killed, "--commit")
    try:
        until(lambda: in_stage(process, "train"), process)
        interrupt(process)
        said = (killed / "err.txt").read_text()
        assert process.returncode == 130
        assert said.splitlines()[-1].startswith("wbc: interrupted; ")
        assert "Traceback" not in said
        process = begin(killed)
        until(lambda: (killed / "data/labels.csv").exists(), process)
        time.sleep(random.uniform(0, 4))
        kill(process)
        process = begin(killed)
        assert process.wait(600) == 0, (killed / "err.txt").read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert outcome(killed) == whole.outcome


@pytest.mark.slow
def test_a_schedule_of_seconds_sees_a_run_end_well(whole: Whole) -> None:
    workspace = whole.workspace
    before = read_state(workspace)
    command = [sys.executable, "-m", "flows.cli", "schedule", "--every", "3", "--watch", "3000"]
    log = workspace / "schedule.txt"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=workspace, env=environment(), stdout=output, stderr=output, text=True)
    try:
        until(lambda: "Prefect API at" in log.read_text(), process)
        url = log.read_text().split("Prefect API at ")[1].split(";")[0]

        def completed() -> bool:
            time.sleep(0.5)  # the server has more to do than to answer
            states = scheduled_runs(url)
            assert not {kind for _, kind in states} & {"FAILED", "CRASHED"}, states
            state = read_state(workspace)
            assert state is not None
            assert before is not None
            return (retraining_flow(workspace), "COMPLETED") in states and state.key != before.key and state.status == "done"

        until(completed, process)
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(60)
    _, left = psutil.wait_procs(started, timeout=20)
    assert not left, [child.cmdline() for child in left]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_kills_at_random_moments_of_a_run_of_three_cycles(filled: Path) -> None:
    chosen = random.Random()
    sites = {name: Path(shutil.copytree(filled, filled.parent / f"five-{name}")) for name in ("whole", "killed")}
    for site in sites.values():
        set_params(site, {"retrain.cycles": 2})
    start = time.monotonic()
    assert begin(sites["whole"], "--commit").wait(900) == 0, (sites["whole"] / "err.txt").read_text()
    seconds = time.monotonic() - start
    kills = 0
    while True:
        process = begin(sites["killed"], "--commit")
        if kills == 5:
            assert process.wait(900) == 0, (sites["killed"] / "err.txt").read_text()
            break
        moment = chosen.uniform(0, seconds / 3.5)
        time.sleep(moment)
        if process.poll() is not None:  # it came to its end before the fifth kill
            assert process.returncode == 0, (sites["killed"] / "err.txt").read_text()
            break
        state = read_state(sites["killed"])
        print(f"kill {kills + 1} after {moment:.1f} s, in cycle {state.cycle if state else '-'}")
        kill(process)
        kills += 1
    assert kills >= 3
    assert outcome(sites["killed"]) == outcome(sites["whole"])
    assert len(outcome(sites["whole"])["cycles"]) == 3


def scheduled_runs(url: str) -> list[tuple[str, str]]:
    """(flow name, state) of the runs that a deployment made."""
    import httpx

    flows = {flow["id"]: flow["name"] for flow in httpx.post(f"{url}/flows/filter", json={}, timeout=60).json()}
    query = {"flow_runs": {"deployment_id": {"is_null_": False}}}
    answer = httpx.post(f"{url}/flow_runs/filter", json=query, timeout=60).json()
    return [(flows[run["flow_id"]], run["state_type"]) for run in answer]
