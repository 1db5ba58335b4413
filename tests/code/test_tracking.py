"""What is kept of a retraining beside its models: runs in MLflow, the curve of all cycles, the page of the gate in Prefect."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pandas as pd
import pytest

from flows.artifacts import located
from flows.labelling.worth import worth_of
from flows.progress import TrainingRows, noted
from flows.registry.curve import CURVE_CSV, CYCLES, SIZE, begin_record, note_cycle, read_cycles
from flows.retraining import flow as retrain
from flows.retraining.artifacts import gate_page
from flows.retraining.gate import Decision
from flows.state import State, params_name
from flows.tracking import Tracker, open_tracker
from flows.workspace import params_with, set_params, template
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.params import read_params

SCORES = {"accuracy": 0.9, "macro_f1": 0.8, "n": 54, "intervals": {"accuracy": [0.8, 0.95]}, "ece": 0.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("tracking")
    for name in ("params.yaml", "dvc.yaml"):
        (workspace / name).write_bytes(template(name).read_bytes())
    open_tracker(workspace, read_params(workspace / "params.yaml"))  # MLflow's tables are made here once
    return workspace


@pytest.fixture
def tracker(made: Path) -> Tracker:
    return open_tracker(made, read_params(made / "params.yaml"))


def status(tracker: Tracker, run: str) -> str:
    return str(tracker.client.get_run(run).info.status)


def cycle(number: int, pools: str, **more: Any) -> dict[str, Any]:
    """A row as the state of a retraining has it."""
    row = {"cycle": number, "labels": 10 * (number + 1), "accuracy": 0.9, "macro_f1": 0.8, "strategy": "badge", "pools": pools}
    return {**row, "seconds": 1.0, "labelled": 10, "at": 0, "metrics": SCORES, "scored": None, **more}


def test_a_kill_while_mlflow_makes_its_tables_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow takes no database that has some of them: every later retraining would be refused."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes(template(name).read_bytes())
    params = read_params(tmp_path / "params.yaml")
    with monkeypatch.context() as killed:
        killed.setattr("mlflow.store.db.utils._upgrade_db", lambda engine: (_ for _ in ()).throw(KeyboardInterrupt))
        killed.setattr("os.unlink", lambda name: None)  # nobody puts away what a kill leaves
        with pytest.raises(KeyboardInterrupt):
            open_tracker(tmp_path, params)
    assert not (tmp_path / "mlflow.db").exists()
    assert open_tracker(tmp_path, params).versions() == []
    assert [path.name for path in tmp_path.glob("*mlflow*")] == ["mlflow.db"]


# --- runs in MLflow -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "word"), [(WbcError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_that_ends_by_an_error_is_not_running_any_more(tracker: Tracker, error: BaseException, word: str) -> None:
    params = read_params(tracker.workspace / "params.yaml")
    run = tracker.retraining(f"ends {word}", params)
    below = tracker.cycle(run, f"ends {word}", 0)
    with pytest.raises(type(error)), tracker.running(run):
        raise error
    assert (status(tracker, run), status(tracker, below)) == (word, word)
    with tracker.running(run):
        assert status(tracker, run) == "RUNNING", "the same command goes on with it"


def test_the_runs_of_a_retraining_that_was_killed_are_closed_by_the_next(tracker: Tracker) -> None:
    params = read_params(tracker.workspace / "params.yaml")
    dead, here = tracker.retraining("dead", params), tracker.retraining("here", params)
    below, waits = tracker.cycle(dead, "dead", 0), tracker.retraining("waits", params)
    tracker.wait(waits, "It waits.")
    elsewhere = tracker.retraining("elsewhere", params)
    tracker.client.set_tag(elsewhere, "wbc.workspace", "ward-b-123456")
    shared = Tracker(tracker.client, tracker.experiment, "wbc", tracker.workspace, "http://mlflow.example.org")
    assert shared.close_abandoned("here") >= 3
    assert [status(tracker, run) for run in (dead, below, waits)] == ["KILLED"] * 3
    assert [status(tracker, run) for run in (here, elsewhere)] == ["RUNNING"] * 2
    assert shared.close_abandoned("here") == 0
    assert tracker.close_abandoned("here") == 1, "a store in the workspace holds the runs of a workspace that it was copied from"


def test_a_run_says_who_started_it_where_and_at_which_commit(tracker: Tracker, made: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "in_git"
    workspace.mkdir()
    (workspace / "params.yaml").write_bytes((made / "params.yaml").read_bytes())
    git = ["git", "-C", str(workspace), "-c", "user.name=ada", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    own = Tracker(tracker.client, tracker.experiment, "wbc", workspace, tracker.uri)
    tags = tracker.client.get_run(own.retraining("in git", read_params(workspace / "params.yaml"))).data.tags
    assert tags["mlflow.source.git.commit"] == head
    assert tags["mlflow.source.git.branch"] == "main"
    assert tags["mlflow.user"]
    assert (tags["wbc.preset"], tags["wbc.strategy"]) == ("small", "badge")


def test_a_training_s_curve_is_logged_while_it_trains_and_each_step_once(tracker: Tracker) -> None:
    rows: list[dict[str, float]] = [
        {"update": step, "validation_loss": 1 / step, "train_loss": float("nan")} for step in (5, 10, 15)
    ]
    run = tracker.retraining("live", read_params(tracker.workspace / "params.yaml"))
    said: list[dict[str, float]] = []
    follower, report = TrainingRows(tracker.workspace), noted(tracker.workspace, said.append)
    report(rows[0])
    tracker.log_history(run, follower.new())
    assert [point.step for point in tracker.client.get_metric_history(run, "validation_loss")] == [5]
    report(rows[1])
    with (tracker.workspace / ".wbc/training.jsonl").open("a") as file:
        file.write('{"update": 15,')  # half written: it comes with the next look
    tracker.log_history(run, follower.new())
    assert follower.new() == []
    tracker.log_history(run, rows, at=1)
    assert sorted(point.step for point in tracker.client.get_metric_history(run, "validation_loss")) == [5, 10, 15]
    assert tracker.client.get_metric_history(run, "train_loss") == []
    assert said == rows[:2]
    assert TrainingRows(tracker.workspace).new() == [], "what an earlier training noted is forgotten"


# --- which retraining goes on ---------------------------------------------------------------------------------------------


def test_another_schedule_abandons_no_waiting_retraining(made: Path) -> None:
    params = read_params(made / "params.yaml")
    state = State("k", params_name(params), "2026-11-29T00:00:00+00:00", 0, False, status="waiting")
    changes = {"schedule.cron": "0 5 * * 1", "schedule.timezone": "Asia/Tokyo", "schedule.min_new_labels": 7}
    assert state.goes_on_with(params_with(made, changes))
    assert not state.goes_on_with(params_with(made, {"retrain.until": 0.5}))
    state.params = "0123456789abcdef"  # as an earlier version named its parameters
    assert state.goes_on_with(params)


def test_a_retraining_under_which_params_yaml_was_changed_ends(made: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((made / "params.yaml").read_bytes())
    ctx = SimpleNamespace(workspace=tmp_path, state=SimpleNamespace(key="k"), params=read_params(tmp_path / "params.yaml"))
    set_params(tmp_path, {"schedule.cron": "0 3 * * *"})
    retrain._check_params(cast(retrain.Context, ctx))
    set_params(tmp_path, {"presets.small.updates": 7})
    with pytest.raises(WbcError, match="changed while retraining k ran, which ends here: its labels stay"):
        retrain._check_params(cast(retrain.Context, ctx))


def test_a_server_of_mlflow_puts_no_line_between_the_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.tracking._tracking_service.client import TrackingServiceClient

    open_tracker(made, read_params(made / "params.yaml"))
    told = MagicMock(tracking_uri="http://127.0.0.1:1")
    told.store = MagicMock(spec=RestStore)
    TrackingServiceClient._log_url(told, "0123")  # at the end of each run
    assert capsys.readouterr().out == ""


# --- the learning curve ---------------------------------------------------------------------------------------------------


def test_the_curve_has_the_cycles_of_all_retrainings(tmp_path: Path) -> None:
    scored = {"count": 1, "prefixes": "ab", "labels": "cd"}
    first, second = "20261129-131744-040", "20261130-020000-001"
    for number in range(2):
        note_cycle(tmp_path, first, cycle(number, f"pools-v{number + 1}", scored=scored))
    note_cycle(tmp_path, first, cycle(1, "pools-v2", scored=scored), champion=True)
    note_cycle(tmp_path, second, cycle(1, "pools-v3", scored=scored))
    found = read_cycles(tmp_path)
    told = [(row["retraining"], row["cycle"], row["champion"], row["pools"]) for row in found]
    assert told == [
        ("2026-11-29 13:17:44", 0, False, "pools-v1"),
        ("2026-11-29 13:17:44", 1, True, "pools-v2"),
        ("2026-11-30 02:00:00", 1, False, "pools-v3"),
    ]
    assert [row["scored"] for row in found] == [scored] * 3
    text = (tmp_path / CYCLES).read_text()
    assert text.count("prefixes") == 1, "the cells that scores are from are kept once"
    (tmp_path / CYCLES).write_text(text[:50])
    with pytest.raises(WbcError, match=r"cycles\.json is damaged: bring it back with git, or remove it"):
        read_cycles(tmp_path)


def test_years_of_nights_without_a_new_label_are_one_point_more(tmp_path: Path) -> None:
    for number in range(2):
        note_cycle(tmp_path, "20261129-131744-040", cycle(number, f"pools-v{number + 1}"))
    for night in range(1, 8):
        key = f"202612{night:02}-020000-000"
        note_cycle(tmp_path, key, cycle(1, "pools-v2"))
        note_cycle(tmp_path, key, cycle(1, "pools-v2"), champion=night == 3)
    told = [(row["retraining"], row["cycle"], row["champion"]) for row in read_cycles(tmp_path)]
    first, second, night_after = ("2026-11-29 13:17:44", 0, False), ("2026-11-29 13:17:44", 1, True), "2026-12-07 02:00:00"
    assert told == [first, second, (night_after, 1, False)]
    note_cycle(tmp_path, "20261207-020000-000", cycle(2, "pools-v3"))
    assert [row["retraining"] for row in read_cycles(tmp_path)][2:] == [night_after] * 2, "the point that its line begins with"
    note_cycle(tmp_path, "20261208-020000-000", cycle(2, "pools-v3"))
    assert len(read_cycles(tmp_path)) == 5


def test_nights_without_a_new_label_make_the_expected_gain_no_surer(made: Path, tmp_path: Path) -> None:
    params, asked = read_params(made / "params.yaml"), pd.DataFrame({"probability": ["0.5"] * 20})

    def note(night: int, number: int, accuracy: float) -> None:
        scores = {"accuracy": accuracy, "metrics": {**SCORES, "accuracy": accuracy}}
        note_cycle(tmp_path, f"20261129-{night:02}0000-000", cycle(number, f"pools-v{number}", **scores))

    for number, accuracy in enumerate((0.6, 0.7, 0.8)):
        note(0, number, accuracy)
    once = worth_of(tmp_path, params, asked)
    assert once.gain.expected is not None
    for night in range(1, 9):
        note(night, 2, 0.8)
    assert worth_of(tmp_path, params, asked) == once


def test_rounds_of_another_preset_are_no_points_of_the_curve_that_the_expected_gain_is_of(made: Path, tmp_path: Path) -> None:
    """A larger network was better with the same labels: that is no gain of labels."""
    params, asked = read_params(made / "params.yaml"), pd.DataFrame({"probability": ["0.5"] * 20})
    for preset, night in (("small", 1), ("standard", 2)):
        for number, accuracy in enumerate((0.6, 0.7, 0.8) if preset == "small" else (0.9, 0.91)):
            scores = {"accuracy": accuracy, "metrics": {**SCORES, "accuracy": accuracy}, SIZE: {"preset": preset}}
            note_cycle(tmp_path, f"20261129-{night:02}0000-000", cycle(number, f"pools-v{number}", **scores))
    gain = worth_of(tmp_path, params, asked).gain
    assert (gain.points, gain.expected) == (2, None)
    scores = {"accuracy": 0.6, "metrics": {**SCORES, "accuracy": 0.6}}  # as the first of the small ones, by chance
    note_cycle(tmp_path, "20261129-030000-000", cycle(0, "pools-v0", **scores, **{SIZE: {"preset": "standard"}}))
    scores = {"accuracy": 0.81, "metrics": {**SCORES, "accuracy": 0.81}}
    note_cycle(tmp_path, "20261129-040000-000", cycle(3, "pools-v3", **scores, **{SIZE: {"preset": "small"}}))
    assert worth_of(tmp_path, params, asked).gain.points == 4


def test_the_curve_of_an_earlier_version_is_read_from_its_tags_and_its_state(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=ada", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    (tmp_path / "reports").mkdir()
    head = "cycle,labels,accuracy,macro_f1,strategy,pools\n"
    for number in (1, 2, 3):
        rows = "".join(f"{n - 1},{10 * n},0.5,0.5,badge,pools-v{n}\n" for n in range(1 if number < 3 else 3, number + 1))
        (tmp_path / CURVE_CSV).write_text(head + rows)
        (tmp_path / "metrics.json").write_text(json.dumps({**SCORES, "accuracy": number / 10}))
        for arguments in (["add", "-A"], ["commit", "-qm", "cycle"], ["tag", f"pools-v{number}"]):
            subprocess.run([*git, *arguments], check=True)
    gate = {"promoted": True}
    rows_now = [cycle(2, "pools-v3", accuracy=0.3)]
    State("20261129-131744-040", "", "2026-11-29T13:17:44+00:00", 2, True, rows=rows_now, gate=gate).write(tmp_path)
    found = read_cycles(tmp_path)
    begin_record(tmp_path)  # the next retraining begins
    (tmp_path / ".wbc/retrain.json").unlink()
    assert read_cycles(tmp_path) == found
    assert [(row["retraining"], row["labels"], row["accuracy"], row["champion"]) for row in found] == [
        ("with pools-v1", 10, 0.1, False),
        ("with pools-v1", 20, 0.2, False),
        ("2026-11-29 13:17:44", 30, 0.3, True),
    ]
    assert len(note_cycle(tmp_path, "20261130-020000-001", cycle(3, "pools-v4"))) == 4
    assert len(read_cycles(tmp_path)) == 4


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("mlartifacts/1/x/artifacts", "/w/mlartifacts/1/x/artifacts"),
        ("/elsewhere/1/x", "/elsewhere/1/x"),
        ("file:///elsewhere/1/x", "file:///elsewhere/1/x"),
        ("mlflow-artifacts:/1/x/artifacts", "mlflow-artifacts:/1/x/artifacts"),
        ("s3://mlflow/1/x/artifacts", "s3://mlflow/1/x/artifacts"),
    ],
)
def test_files_that_a_server_keeps_are_not_looked_for_in_the_workspace(uri: str, place: str) -> None:
    assert located(uri, Path("/w")) == place


# --- the gate in Prefect --------------------------------------------------------------------------------------------------


def test_the_page_of_the_gate_has_reasons_recalls_confusion_and_the_curve(tmp_path: Path) -> None:
    confusion = [[5 * (row == column) for column in range(5)] for row in range(5)]
    rows = [cycle(0, "pools-v1"), cycle(1, "pools-v2", metrics={**SCORES, "confusion": confusion})]
    recalls: dict[str, list[float | None]] = {name: [0.9, None] for name in CLASSES}
    decision = Decision(False, ["recall of Basophil fell", "accuracy is lower"], test_pool="abc", asked_before=1, recalls=recalls)
    (tmp_path / "curve.png").write_bytes(b"png")
    page = gate_page(decision, rows, tmp_path / "curve.png")
    assert page.startswith("# Gate: not promoted\n\n- recall of Basophil fell\n- accuracy is lower\n")
    assert "| Basophil | 90.0 % | - |" in page
    assert "| Basophil | 5 | 0 | 0 | 0 | 0 |" in page
    assert "| 1 | 20 | 90.0 % | 80.0 % | pools-v2 |" in page
    assert "data:image/png;base64,cG5n" in page
    assert "data:image" not in gate_page(decision, rows, tmp_path / "none.png")
