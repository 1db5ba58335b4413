"""Workspaces: made from the package, found from below, changed without losing a comment; and the command line's manners."""

import errno
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pyarrow
import pytest
from dvc.utils.serialize import load_yaml
from typer.testing import CliRunner

from flows.cli import command as cli
from flows.complaints import FULL, line_of
from flows.retraining.methods import as_typed, of_method
from flows.workspace import (
    ASKED_BY,
    Created,
    after_cycle,
    ensure_dvc,
    find_workspace,
    gone_line,
    init_workspace,
    is_git_repository,
    narrow_query,
    note_after_cycle,
    set_params,
    template,
)
from wbc_model.core.errors import WbcError
from wbc_model.params import read_params

IDENTITY = {
    "GIT_AUTHOR_NAME": "T",
    "GIT_AUTHOR_EMAIL": "t@example.org",
    "GIT_COMMITTER_NAME": "T",
    "GIT_COMMITTER_EMAIL": "t@example.org",
}


def wbc(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("init") / "site"
    made = wbc("init", str(folder), "--json", cwd=folder.parent, **IDENTITY)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["workspace"] == str(folder)
    return folder


def test_a_new_workspace_is_under_git_and_dvc_and_committed(workspace: Path) -> None:
    assert git(workspace, "status", "--porcelain") == ""
    tracked = git(workspace, "ls-files").split()
    assert {"dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", ".dvc/config"} <= set(tracked)
    assert "analytics = false" in (workspace / ".dvc/config").read_text()
    read_params(workspace / "params.yaml")


def test_making_it_again_changes_nothing(workspace: Path) -> None:
    (workspace / "params.yaml").write_text((workspace / "params.yaml").read_text().replace("seed: 0", "seed: 7"))
    assert init_workspace(workspace) == Created(workspace)
    assert read_params(workspace / "params.yaml").seed == 7
    git(workspace, "checkout", "--", "params.yaml")


def test_without_an_identity_nothing_is_committed_and_it_says_so(tmp_path: Path) -> None:
    empty = tmp_path / "home"
    empty.mkdir()
    anonymous = {"HOME": str(empty), "XDG_CONFIG_HOME": str(empty), "GIT_CONFIG_NOSYSTEM": "1"}
    made = wbc("init", "site", cwd=tmp_path, **anonymous)
    assert made.returncode == 0
    assert "nothing is committed yet" in made.stdout
    assert "dvc.yaml" in git(tmp_path / "site", "status", "--porcelain")


def test_inside_another_repository_it_is_a_part_of_that(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    made = wbc("init", "site", cwd=tmp_path, **IDENTITY)
    assert made.returncode == 0, made.stderr
    assert not (tmp_path / "site/.git").exists()
    assert "site/dvc.yaml" in git(tmp_path, "ls-files")


def test_a_source_archive_without_git_works(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes(template(name).read_bytes())
    assert not is_git_repository(tmp_path)
    ensure_dvc(tmp_path)
    listed = subprocess.run([sys.executable, "-m", "dvc", "stage", "list"], cwd=tmp_path, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert "train" in listed.stdout
    # The same where the archive brings a .dvc folder that was made under git.
    (tmp_path / ".dvc/config").write_text("")
    ensure_dvc(tmp_path)
    listed = subprocess.run([sys.executable, "-m", "dvc", "stage", "list"], cwd=tmp_path, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr


def test_it_is_found_from_below_and_missed_with_a_clear_line(workspace: Path, tmp_path: Path) -> None:
    (workspace / "data/deep").mkdir(parents=True)
    assert find_workspace(workspace / "data/deep") == workspace
    with pytest.raises(WbcError, match="not inside a workspace"):
        find_workspace(tmp_path)


def test_parameters_change_in_place_with_their_comments(workspace: Path) -> None:
    path = workspace / "params.yaml"
    before = path.read_text()
    lines = set_params(workspace, {"retrain.until": 300, "preset": "full", "seed": 0})
    assert lines == ["retrain.until: 0.28 -> 300", "preset: small -> full"]
    after = path.read_text()
    different = [(old, new) for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert [new.split("#")[0].strip() for _, new in different] == ["preset: full", "until: 300"]
    assert all(old.partition("#")[2] == new.partition("#")[2] for old, new in different)
    assert set_params(workspace, {"retrain.until": 0.28, "preset": "small"})
    assert path.read_text() == before


def test_a_wrong_value_is_not_written(workspace: Path) -> None:
    before = (workspace / "params.yaml").read_bytes()
    with pytest.raises(WbcError, match=r"retrain\.until"):
        set_params(workspace, {"retrain.until": -1})
    assert (workspace / "params.yaml").read_bytes() == before


def test_the_shipped_parameters_are_valid() -> None:
    read_params(template("params.yaml"))


# --- manners of the command line -----------------------------------------------------------------------------------------


def test_help_loads_nothing_heavy_and_lists_the_commands(tmp_path: Path) -> None:
    shown = wbc("--help", cwd=tmp_path)
    for name in (
        "init",
        "ingest",
        "validate",
        "train",
        "evaluate",
        "query",
        "package",
        "retrain",
        "schedule",
        "labels",
        "serve",
        "demo",
    ):
        assert f" {name} " in shown.stdout
    assert "fingerprint" not in shown.stdout
    heavy = ("torch", "numpy", "pandas", "pydantic", "yaml", "prefect", "mlflow", "dvc")
    code = f"import sys, flows.cli; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    answer = wbc("validate", cwd=tmp_path)
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr.startswith("wbc: error: ")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["retrain", "--preset", "huge"], ["retrain", "--acquisition", "bagde"], ["evaluate", "--model", "x"], ["nonsense"]],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], tmp_path: Path) -> None:
    assert wbc(*arguments, cwd=tmp_path).returncode == 2


def test_a_mistyped_parameter_is_named_with_the_nearest_right_one(workspace: Path) -> None:
    path = workspace / "params.yaml"
    before = path.read_text()
    path.write_text(before.replace("annotator:", "anotator:"))
    answer = wbc("retrain", cwd=workspace)
    path.write_text(before)
    assert answer.returncode == 1
    assert "retrain.anotator" in answer.stderr
    assert "retrain.annotator" in answer.stderr


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("first_strategy: typiclust", "first_strategy: typiclusst", "onboard.first_strategy"),
        ("source: rendered", "source: cells.csv", "data.source cells.csv: there is no such file or folder"),
    ],
)
def test_nothing_starts_before_all_is_right(workspace: Path, before: str, after: str, says: str) -> None:
    path = workspace / "params.yaml"
    right = path.read_text()
    path.write_text(right.replace(before, after))
    answer = wbc("retrain", cwd=workspace)
    wrong = path.read_text()
    path.write_text(right)
    assert answer.returncode == 1
    assert says in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert wrong == right.replace(before, after)
    assert not (workspace / ".wbc/prefect").exists()


def test_a_wrong_option_changes_nothing(workspace: Path) -> None:
    before = (workspace / "params.yaml").read_bytes()
    answer = wbc("retrain", "--until", "-1", "--seed", "3", cwd=workspace)
    assert answer.returncode == 1
    assert "retrain.until" in answer.stderr
    assert (workspace / "params.yaml").read_bytes() == before
    assert not (workspace / ".wbc/prefect").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--set", "trian.ema=0.9"], "unknown key trian; did you mean train?"),
        (["--set", "train.ema=much"], "train.ema: Input should be a valid number (got 'much')"),
        (["--set", "train.ema"], "give it as KEY=VALUE"),
        (["--set", "seed.x=2"], "seed is a value and has nothing below it"),
        (["--set", "seed=1", "--set", "seed=2"], "--set seed is given twice"),
        (["--set", "seed=1", "--seed", "2"], "--set seed and the option for it are both given"),
        (["--method", "papre"], "'papre' is not one of 'paper', 'default'"),
    ],
)
def test_a_wrong_parameter_is_named_before_it_is_saved(
    workspace: Path, typed: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    before = (workspace / "params.yaml").read_bytes()
    answer = CliRunner().invoke(cli.app, ["retrain", *typed])
    assert answer.exit_code
    assert said in f"{answer.exception} {' '.join(answer.output.replace('│', ' ').split())}"
    assert (workspace / "params.yaml").read_bytes() == before


def test_a_single_parameter_goes_before_the_methods_word_and_the_method_is_taken_back(workspace: Path) -> None:
    before = read_params(workspace / "params.yaml")
    typed = as_typed(["train.ema=1e-3", "data.label_names={STAB: Neutrophil, 0: Basophil}", "model.attention=eca"])
    set_params(workspace, of_method("paper") | typed)
    params = read_params(workspace / "params.yaml")
    assert (params.acquisition.strategy, params.model.view, params.few_labels.below) == ("learning_loss", "whole", 0)
    assert (params.train.ema, params.model.attention) == (0.001, "eca")
    assert params.data.label_names == {"STAB": "Neutrophil", "0": "Basophil"}, "a WebDataset has numbers for labels"
    assert params.train.lossnet_gradient_share == 0.6
    set_params(workspace, of_method("default") | as_typed(["train.ema=0", "data.label_names={}"]))
    assert read_params(workspace / "params.yaml") == before


def test_the_version_is_the_packages() -> None:
    assert CliRunner().invoke(cli.app, ["--version"]).output.strip() == version("wbc")


def test_a_full_disk_is_one_line_and_where_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        with open("/dev/full", "w") as file:
            file.write("a")

    monkeypatch.setattr(cli, "app", write)
    monkeypatch.setenv("WBC_ERROR_FILE", str(tmp_path / "complaint"))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    line = capsys.readouterr().err
    assert line.startswith("wbc: error: no space left on the disk; ")
    assert (tmp_path / "complaint").read_text() == line.removeprefix("wbc: error: ").rstrip("\n")


def test_a_full_disk_behind_a_library_is_the_same_line(tmp_path: Path) -> None:
    of_mlflow = RuntimeError("(raised as a result of Query-invoked autoflush)")
    of_mlflow.__cause__ = sqlite3.OperationalError("database or disk is full")
    assert line_of(of_mlflow, tmp_path) == FULL
    assert line_of(OSError("[Errno 28] Error writing bytes to file: No space left on device"), tmp_path) == FULL
    assert "cannot be used" in line_of(PermissionError(errno.EACCES, "x", "a.csv"), tmp_path)
    assert not list(tmp_path.iterdir()), "the probe is gone"


def test_what_goes_wrong_while_ctrl_c_is_obeyed_is_no_news(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped_while_the_server_was_gone() -> None:
        try:
            try:
                raise KeyboardInterrupt
            finally:
                raise ConnectionRefusedError("refused")
        except ConnectionRefusedError as error:
            raise WbcError("the server has stopped answering") from error

    monkeypatch.setattr(cli, "app", stopped_while_the_server_was_gone)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "wbc: interrupted; finished work is kept, and the same command continues\n"


def test_sigterm_is_obeyed_as_ctrl_c_is(tmp_path: Path) -> None:
    """What was begun is cleaned up, a line says how it goes on, and the exit code is that of a shell. A fork only ends."""
    script = (
        "import os, signal; from pathlib import Path\n"
        "from flows.cli import command; from wbc_model.core.files import write_atomic_by\n"
        "def killed(file):\n"
        "    if not (child := os.fork()):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143\n"
        "    file.write_text('half'); os.kill(os.getpid(), signal.SIGTERM)\n"
        "@command.app.command('half')\n"
        "def half(): write_atomic_by(Path('file'), killed)\n"
        "command.main()"
    )
    done = subprocess.run([sys.executable, "-c", script, "half"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert done.stderr == "wbc: interrupted; finished work is kept, and the same command continues\n"
    assert not list(tmp_path.iterdir())


def failing(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says of an error that nobody caught."""

    def broken() -> None:
        raise error

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_fault_of_ours_is_a_line_and_whole_in_a_log(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    complaint = workspace / ".wbc/complaint"
    monkeypatch.setenv("WBC_ERROR_FILE", str(complaint))
    line = failing(ZeroDivisionError("by zero\nand more"), monkeypatch, capsys)
    assert line.startswith("wbc: error: wbc itself failed, ZeroDivisionError: by zero (report it with ")
    log = Path(line.split("report it with ")[1].rstrip(")\n"))
    assert log.parent == workspace / ".wbc/logs"
    assert "Traceback" in log.read_text()
    assert "ZeroDivisionError: by zero" in log.read_text()
    assert not complaint.exists(), "another attempt may succeed"
    monkeypatch.chdir("/")
    assert "(report it with /" in failing(ZeroDivisionError("x"), monkeypatch, capsys)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EROFS, "Read-only file system", "data/pools/test.csv"), "data/pools/test.csv cannot be written: its file"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "x cannot be used: Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file", "models/candidate"), "models/candidate is not there"),
        (sqlite3.DatabaseError("file is not a database"), "a database failed: file is not a database (all of it: "),
        (pyarrow.ArrowInvalid("not a parquet file\nat all"), "an image shard failed: not a parquet file (all of it: "),
        (MemoryError(), "there is not enough memory"),
    ],
)
def test_what_the_system_or_a_library_says_is_a_line(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(error, monkeypatch, capsys).startswith(f"wbc: error: {says}")


@pytest.mark.parametrize(
    "command",
    [
        "package",
        "evaluate",
        "query",
        "train",
        "validate",
        "labels status",
        "labels export x.csv",
        "labels decide",
        "champion",
        "keys list",
        "outbox",
        "onboard x",
        "champion --rollback --reason r",
        "serve --model nowhere",
        "audit verify",
        "reports list",
        "calibrate",
    ],
)
def test_a_command_without_what_it_needs_is_a_line(
    command: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "argv", ["wbc", *command.split()])
    monkeypatch.setattr("flows.guard.watch_flow", lambda: None)
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code in (0, 1, 2)
    assert "Traceback" not in said
    assert "fault of wbc" not in said
    assert "failed:" not in said
    if end.value.code == 1:
        assert said.startswith("wbc: error: ")
        assert said.count("\n") == 1


@pytest.mark.slow
def test_a_damaged_registry_is_a_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "mlflow.db").write_bytes(b"no database" * 100)
    answer = wbc("champion", cwd=workspace)
    (workspace / "mlflow.db").unlink()
    assert answer.returncode == 1
    assert answer.stderr.startswith("wbc: error: MLflow")
    assert answer.stderr.count("\n") == 1


def test_a_parameter_that_went_is_refused_and_one_line_names_those_of_before(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(WbcError, match=r"train\.patience went: it is a constant now"):
        set_params(workspace, {"train.patience": 0.5})
    assert gone_line(workspace) == ""
    older = tmp_path / "older"
    older.mkdir()
    shutil.copy(Path(__file__).parent / "before/params.yaml", older / "params.yaml")
    assert gone_line(older).startswith("params.yaml: without effect since they are constants now")
    assert "train.patience" in gone_line(older)
    assert "after_cycle" not in gone_line(older)


def test_where_a_retraining_begins_is_a_file_and_in_workspaces_of_before_the_key_too(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "before/params.yaml", tmp_path / "params.yaml")
    key = tmp_path / "params.yaml"
    key.write_text(key.read_text().replace("after_cycle: 0", "after_cycle: 4"))
    (tmp_path / "data").mkdir()
    assert after_cycle(tmp_path) == 4
    note_after_cycle(tmp_path, 7)
    assert after_cycle(tmp_path) == 7
    assert "after_cycle: 7" in key.read_text(), "a dvc.yaml of before has `query` depend on it"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for text in ("retrain:\n", "retrain: {after_cycle: soon}\n"):
        (foreign / "params.yaml").write_text(text)
        assert after_cycle(foreign) == 0, "another program's file"
    (tmp_path / "data/retraining.yaml").write_text("after_cycle: soon\n")
    with pytest.raises(WbcError, match=r"after_cycle is no number: `git checkout data/retraining.yaml` brings it back"):
        after_cycle(tmp_path)


def test_a_change_of_runner_is_no_change_of_the_query_in_workspaces_of_before_too(tmp_path: Path) -> None:
    template_text = template("dvc.yaml").read_text()
    narrow = "".join(f"      - {key}\n" for key in ASKED_BY)
    assert narrow in template_text
    before = template_text.replace(narrow, "      - retrain\n")
    (tmp_path / "dvc.yaml").write_text(before)
    (tmp_path / "params.yaml").write_text(re.sub("  ask: null.*\n", "", template("params.yaml").read_text()))
    section = "      retrain:\n        annotator: oracle\n        cycles: 3\n        until: 0.28\n"
    lock = "schema: '2.0'\nstages:\n  query:\n    cmd: wbc query\n    params:\n      params.yaml:\n        seed: 0\n"
    (tmp_path / "dvc.lock").write_text(lock + section.replace("      ", "        "))
    (line,) = narrow_query(tmp_path)
    assert line.startswith("dvc.yaml: the stage `query` depends on retrain.until")
    assert (tmp_path / "dvc.yaml").read_text() == template_text
    locked = load_yaml(tmp_path / "dvc.lock")["stages"]["query"]["params"]["params.yaml"]
    assert locked == {"seed": 0, "retrain.until": 0.28, "retrain.ask": None, "retrain.cycles": 3}
    assert "ask: null" in (tmp_path / "params.yaml").read_text()
    assert narrow_query(tmp_path) == []
    (tmp_path / "params.yaml").write_text(re.sub("  ask: null.*\n", "", (tmp_path / "params.yaml").read_text()))
    assert narrow_query(tmp_path) == []
    assert "ask: null" in (tmp_path / "params.yaml").read_text(), "DVC fails on a key that is not there"
