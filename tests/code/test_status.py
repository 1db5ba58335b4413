"""`wbc status` says what is there, what waits and for whom, and what to type next; and so does every command at its end."""

import dataclasses
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows import labels, notify
from flows.cli import app, demo
from flows.cli.status import next_command, status, status_text
from flows.monitoring.audit import audit
from flows.retraining import people
from flows.state import State, hold_lock, label_cycle, note_learned, params_name
from flows.workspace import template
from tests.model.test_export import card
from wbc_model.cells.pools import COLUMNS, Pools
from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.params import read_params


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes(template(name).read_bytes())
    return tmp_path


def fill(site: Path) -> Pools:
    """Three labelled cells and four that are not."""
    rows = [{"path": str(number), "sha256": str(number) * 64} for number in range(7)]
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS, fill_value="")
    labelled = frame.head(3).assign(label=list(CLASSES[:3]), cycle=0, labelled_by="manifest")
    pools = Pools.empty().plus({"labelled": labelled, "unlabelled": frame.tail(4)})
    pools.write(site / "data/pools")
    return pools


def ask(site: Path, pools: Pools, count: int) -> None:
    cells = pools.frames["unlabelled"].head(count)
    queue = cells.assign(rank=range(1, count + 1), score=1, reason="", predicted="", probability="")[labels.QUEUE]
    (site / "data/queue.csv").write_text(queue.to_csv(index=False))


def run(status: str) -> State:
    row = {"labelled": 3, "labels": 3, "accuracy": 0.5, "macro_f1": 0.4, "pools": "pools-v1"}
    return State("20260101-000000-000", "hash", "2026-01-01T00:00:00+00:00", 0, False, status=status, rows=[row])


@pytest.mark.parametrize(("line", "said"), [("seed: zero", "seed: Input should be"), ("seed: [", "line")])
def test_a_mistake_in_the_parameters_is_told_once_and_with_the_rest(marked: Path, line: str, said: str) -> None:
    fill(marked)
    path = marked / "params.yaml"
    path.write_text(path.read_text().replace("seed: 0", line))
    result = status(marked)
    assert f"parameters: {path}" in (text := status_text(result))
    assert text.count(said) == 1
    assert "labelled 3" in text
    assert result["next"] == "put params.yaml right: no command runs until then"


def test_a_clone_without_its_data_is_told_how_to_get_them(marked: Path) -> None:
    (marked / "data").mkdir()
    (marked / "data/pools.dvc").write_text("outs:\n- md5: 0.dir\n  nfiles: 4\n  path: pools\n")
    assert "`dvc pull data/pools.dvc` brings it" in next_command(marked), "an ingest would be refused"
    fill(marked)
    (marked / "data/pools/test.csv").unlink()
    found = audit(marked)
    assert any("3 of the 4 files" in line for line in found.findings), "what is gone is not well"


def test_in_a_clone_the_labels_that_the_candidate_learned_from_are_not_new(marked: Path) -> None:
    labelled = fill(marked).frames["labelled"]
    seen = CellFilter.of(labelled["sha256"].tolist()[:2], [labelled["label"][0], CLASSES[4]])
    known = card().model_copy(update={"cells": {"labelled": seen}})
    (marked / "models/candidate").mkdir(parents=True)
    (marked / "models/candidate/model.json").write_text(known.model_dump_json())
    assert status(marked)["waits"]["new_labels"] == 2, "one came, and one was learned with another class"
    everything = CellFilter.of(labelled["sha256"].tolist(), labelled["label"].tolist())
    known = known.model_copy(update={"cells": {"labelled": everything}})
    (marked / "models/candidate/model.json").write_text(known.model_dump_json())
    assert status(marked)["next"].startswith("`wbc retrain` asks the gate about models/candidate")
    (marked / ".wbc").mkdir(exist_ok=True)
    (marked / ".wbc/learned.csv").write_text("sha256,label\n")  # this machine has trained before: with fewer labels
    assert status(marked)["waits"]["new_labels"] == 3, "no retraining made this candidate, and the gate has not seen it"
    (marked / "data/versions.csv").write_text(f"number,version\n1,{known.pool_version}\n")
    assert status(marked)["waits"]["new_labels"] == 0, "a retraining on another machine has learned them"


def test_scores_that_rest_on_a_label_corrected_since_say_so_whichever_way_it_came(marked: Path) -> None:
    pools = fill(marked)
    cells = pools.frames["labelled"]
    seen = CellFilter.of(cells["sha256"].tolist(), [CLASSES[4], *cells["label"][1:]])
    known = card().model_copy(update={"metrics": {"test": {"accuracy": 0.9, "macro_f1": 0.8}}, "cells": {"test": seen}})
    (marked / "models/champion").mkdir(parents=True)
    (marked / "models/champion/model.json").write_text(known.model_dump_json())
    Pools.empty().plus({"test": cells}).write(marked / "data/pools")
    note_learned(marked, pools)
    assert "(rests on 1 label that was corrected since)" in status_text(status(marked))
    (marked / ".wbc/incoming").mkdir(parents=True)
    (marked / ".wbc/incoming/1.json").write_text('{"rows": [{}]}')
    assert "waits: 1 label for whoever is at work" in status_text(status(marked))


def test_what_the_night_found_is_shown_though_a_retraining_has_begun_since(marked: Path) -> None:
    fill(marked)
    now = datetime.now(UTC)
    state = run("done")
    state.started = now.isoformat(timespec="seconds")
    state.write(marked)
    (marked / notify.LOG).parent.mkdir(parents=True)
    lines = [(2, "at night: a shard is damaged"), (2, f"{marked}: {notify.RETRAINING_FAILED}: no disk"), (40, "at night: over")]
    text = "".join(f"{now - timedelta(hours=hours):%Y-%m-%d %H:%M:%S}Z {line}\n" for hours, line in lines)
    (marked / notify.LOG).write_text(text)
    assert [line[21:] for line in status(marked)["failures"]] == ["at night: a shard is damaged"]


def test_what_the_round_gains_is_said_of_the_whole_round_however_few_of_it_are_left(
    marked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = fill(marked)
    run("waiting").write(marked)
    ask(marked, pools, 3)
    answers = pools.frames["unlabelled"].head(2)[["sha256"]].assign(label=CLASSES[0], labelled_by="ada", labelled_at="")
    labels.record(marked, answers, 1)
    of: list[int] = []
    monkeypatch.setattr(people, "worth_of", lambda workspace, params, queue: of.append(len(queue)))
    people.stand(marked)
    assert of == [3]


def test_a_line_of_the_log_that_a_full_disk_tore_hides_no_other(marked: Path) -> None:
    fill(marked)
    run("done").write(marked)
    (marked / notify.LOG).parent.mkdir(parents=True)
    (marked / notify.LOG).write_text("2026-11-30 16:00:00Z one\n2026-11-3\n2026-11-32026-11-30 16:01:00Z two\n")
    assert [line[-3:] for line in status(marked)["failures"]] == ["one", "two"]


def test_the_demo_takes_no_cells_for_drawn_that_are_not_and_goes_on_where_it_was(
    marked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(marked)
    before = (marked / "params.yaml").read_bytes()
    with pytest.raises(WbcError, match=r"has cells that are not drawn.*give the demo a new folder"):
        demo.demo(marked)
    assert (marked / "params.yaml").read_bytes() == before

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "init_workspace", interrupted)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        demo.demo(None)
    (folder,) = tmp_path.glob("wbc-demo-*")
    assert capsys.readouterr().err.endswith(f"`wbc demo {folder}` goes on with this one\n")


def test_the_next_command_follows_what_happened(marked: Path) -> None:
    assert next_command(marked).startswith("`wbc ingest DATA`")
    Pools.empty().write(marked / "data/pools")
    assert next_command(marked).startswith("`wbc ingest DATA` takes cells in"), "all rows of a first manifest were refused"
    pools = fill(marked)
    assert next_command(marked).startswith("`wbc retrain` learns the 3 labels")
    note_learned(marked, pools)
    run("running").write(marked)
    assert next_command(marked) == "`wbc retrain` goes on with the retraining that was interrupted"
    changed = params_name(read_params(marked / "params.yaml").model_copy(update={"seed": 7}))
    for how in ("running", "waiting"):
        dataclasses.replace(run(how), params=changed).write(marked)
        assert next_command(marked).startswith("`wbc retrain` begins a new retraining with what params.yaml says now")
    run("waiting").write(marked)
    ask(marked, pools, 2)
    assert next_command(marked).startswith("`wbc labels export FILE.csv` writes the 2 cells that await a label")
    answers = pools.frames["unlabelled"].head(2)[["sha256"]].assign(label=CLASSES[0], labelled_by="ada", labelled_at="")
    labels.record(marked, answers.head(1), 1)
    assert next_command(marked).endswith("the 1 cell that awaits a label, or `wbc retrain` goes on with the 1 that came")
    labels.record(marked, answers, 1)
    assert next_command(marked).startswith("`wbc retrain` goes on: every cell")
    run("done").write(marked)
    put_off = marked / ".wbc/incoming/1.json"
    put_off.parent.mkdir(parents=True)
    put_off.write_text(json.dumps({"cycle": 1, "decided": False, "rows": [{}, {}, {}]}))
    assert next_command(marked).startswith("`wbc labels replay` takes 3 labels in")
    put_off.unlink()
    assert next_command(marked) == "`wbc retrain` learns the 2 labels that came since the last training"
    note_learned(marked, Pools.read(marked / "data/pools"))
    assert next_command(marked) == "`wbc champion` says why no model is champion"
    note = marked / "models/gate.json"
    note.parent.mkdir(exist_ok=True)
    note.write_text(json.dumps({"promoted": False, "version": "3"}))
    assert "`wbc champion --promote 3 --reason TEXT`" in next_command(marked)
    assert "updates=3000" in next_command(marked)
    note.unlink()


def test_status_shows_what_waits_what_failed_and_the_disk(marked: Path) -> None:
    fill(marked)
    run("done").write(marked)
    log = marked / notify.LOG
    log.parent.mkdir(parents=True)
    log.write_text("2025-12-31 23:59:59Z an older failure\n2026-01-01 02:00:00Z the disk was full\n")
    (marked / "mlflow.db").write_bytes(bytes(2_000_000))
    result = status(marked)
    assert result["pools"] == {"labelled": 3, "unlabelled": 4, "validation": 0, "test": 0}
    assert result["failures"] == ["2026-01-01 02:00:00Z the disk was full"]
    assert (result["disk"]["MLflow"], result["champion"]) == (2_000_000, {})
    lines = status_text(result).splitlines()
    assert "pools: labelled 3, unlabelled 4, validation 0, test 0" in lines
    assert "last run: 20260101-000000-000, done, 3 labels, accuracy 50.00%, pools-v1" in lines
    assert "failed: 2026-01-01 02:00:00Z the disk was full" in lines
    assert "champion: none" in lines
    assert lines[-1].startswith("next: ")
    running = {**result, "last_run": {**result["last_run"], "status": "running"}}
    for at_work, word in (("", "interrupted"), ("`wbc retrain` (pid 7)", "running")):
        assert f"last run: 20260101-000000-000, {word}, 3 labels" in status_text({**running, "at_work": at_work})
    for count, one in ((1, "1 conflict for a person's decision"), (2, "2 conflicts for a person's decision")):
        assert f"waits: {one}" in status_text({**result, "waits": {"conflicts": count}})


def test_a_site_that_was_only_onboarded_has_no_retraining_to_go_on_with(marked: Path) -> None:
    """One that was tried there has stopped at the checks, and would again."""
    pools = fill(marked)
    dataclasses.replace(run("running"), rows=[], cycle=4).write(marked)
    (marked / "parent.yaml").write_text("name: ward\nparent: ..\n")
    assert next_command(marked).startswith("`wbc onboard` with this site's data learns the 3 labels")
    note_learned(marked, pools)
    pools.without(set(pools.frames["labelled"]["sha256"].head(1))).write(marked / "data/pools")
    assert next_command(marked).startswith("`wbc onboard` with this site's data adapts without the 1 cell that has no label")
    pools.write(marked / "data/pools")
    assert status(marked)["last_run"] == {}
    assert label_cycle(marked) == 1, "that of the onboarding"
    cell = pools.frames["unlabelled"].head(1).assign(label=CLASSES[0], labelled_by="ada")
    pools.plus({"validation": cell.assign(sha256=f"{9:064d}", path="9")}).write(marked / "data/pools")
    assert next_command(marked) == "`wbc retrain` goes on with the retraining that was interrupted"


def test_it_says_who_is_at_work(marked: Path) -> None:
    fill(marked)
    with hold_lock(marked):
        command = [sys.executable, "-m", "flows.cli", "status"]
        shown = subprocess.run([*command, "--json"], cwd=marked, capture_output=True, text=True, check=True).stdout
    assert json.loads(shown)["at_work"].startswith("a retraining (pid ")
    assert json.loads(shown)["next"].startswith("wait: a retraining")


def test_a_command_ends_with_the_next_one(marked: Path) -> None:
    pools = fill(marked)
    note_learned(marked, pools)
    answers = pools.frames["unlabelled"].head(2)[["sha256"]].assign(label=CLASSES[0])
    (marked / "given.csv").write_text(answers.to_csv(index=False))
    command = [sys.executable, "-m", "flows.cli", "labels", "import", "given.csv", "--annotator", "ada"]
    done = subprocess.run(command, cwd=marked, capture_output=True, text=True, check=True).stdout.splitlines()
    assert done[-1] == "next: `wbc retrain` learns the 2 labels that came since the last training"


def said(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """The lines of a command; with --json it says nothing but JSON."""
    monkeypatch.chdir(folder)
    json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False).stdout.splitlines()


def test_queries_and_exports_end_with_what_to_do_with_them(marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer: dict[str, Any] = {"cells": 3, "pool": 9, "strategy": "badge", "wrote": "data/queue.csv"}
    monkeypatch.setattr("flows.cli.stages.run_stage", lambda name, body: answer)
    labels_next = "next: `wbc labels export FILE.csv` writes them for people (.json for Label Studio)"
    assert said(marked, monkeypatch, "query")[-1] == labels_next
    answer |= {"cells": 0}
    assert said(marked, monkeypatch, "query")[-1] == "next: `wbc query --count N` asks for N"
    answer |= {"pool": 0}
    assert said(marked, monkeypatch, "query")[-1] == "next: `wbc ingest DATA` takes more images in"
    pools = fill(marked)
    ask(marked, pools, 2)
    (marked / ".wbc").mkdir(exist_ok=True)
    monkeypatch.setattr("flows.exchange.export._with_bytes", lambda workspace, cells: iter(()))
    fill_in = "next: fill in its column label, then `wbc labels import ask.csv`"
    assert said(marked, monkeypatch, "labels", "export", "ask.csv")[-1] == fill_in
    studio = "next: in Label Studio take ask.xml for the labelling interface and import ask.json; "
    studio += "`wbc labels import` takes its export in"
    assert said(marked, monkeypatch, "labels", "export", "ask.json")[-1] == studio


def test_keys_end_with_what_to_do_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["--file", "some keys"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WbcError, match="some keys is not there: there is no key yet; `wbc keys add` makes one"):
        said(tmp_path, monkeypatch, "keys", "list", *keys)
    shown = CliRunner().invoke(app, ["keys", "add", "lab", "--scope", "classify", *keys], catch_exceptions=False).stdout
    assert (
        shown.splitlines()[-1]
        == "next: send it in the header X-API-Key; a running service takes it at once, `wbc serve` starts one"
    )
    assert not [line for line in said(tmp_path, monkeypatch, "keys", "list", *keys) if line.startswith("next")]
    gone = CliRunner().invoke(app, ["keys", "revoke", "lab", *keys], catch_exceptions=False).stdout.splitlines()
    assert gone[-1] == "next: `wbc keys add NAME --scope SCOPE --file 'some keys'` makes another"
    assert said(tmp_path, monkeypatch, "keys", "list", *keys)[-1] == gone[-1].replace("another", "one")


def test_gc_ends_with_the_command_that_was_meant_and_the_way_back(marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["models/candidate 0123456789ab"]
    answer = {"deleted": False, "frees": 1e6, "versions": [], "lines": lines}
    monkeypatch.setattr("flows.registry.disk.collect", lambda *arguments: answer)
    shown = said(marked, monkeypatch, "gc", "--keep", "2", "--champions", "3")
    assert shown[-1] == "next: `wbc gc --keep 2 --champions 3 --yes` deletes this"
    assert "nothing was deleted" in shown[-2]
    shown = said(marked, monkeypatch, "gc", "--yes")
    assert shown[-2:] == [
        "deleted; images, pools and labels stay",
        "a model comes back from its pools: `git checkout pools-vN`, `dvc checkout data/pools.dvc data/images.dvc`, `dvc repro`",
    ]
    lines.clear()
    assert said(marked, monkeypatch, "gc")[-1] == "all is kept"


def test_a_label_in_quarantine_is_none_to_learn(marked: Path) -> None:
    pools = fill(marked)
    (marked / "data/quarantine.csv").write_text(f"path,sha256,reason,detail\n0,{0:064d},blurred,\n")
    assert status(marked)["waits"]["new_labels"] == 2
    note_learned(marked, pools)
    assert status(marked)["waits"]["new_labels"] == 0
    (marked / "data/quarantine.csv").unlink()
    assert status(marked)["waits"]["new_labels"] == 1, "it has come out of quarantine, and nothing has learned it"


def test_a_label_that_was_taken_back_is_one_to_train_without(marked: Path) -> None:
    pools = fill(marked)
    note_learned(marked, pools)
    cell = pools.frames["labelled"]["sha256"][0]
    out = pd.DataFrame([{"sha256": cell, "label": "Smudge", "labelled_by": "ada", "labelled_at": "2026-11-30T12:00:00Z"}])
    pools.take_out(out).write(marked / "data/pools")
    result = status(marked)
    assert (result["waits"]["new_labels"], result["waits"]["taken_back"]) == (0, 1)
    assert "waits: 1 label taken back for a training without it" in status_text(result)
    assert next_command(marked) == "`wbc retrain` trains without the 1 cell that has no label any more since the last training"
    note_learned(marked, pools.take_out(out))
    assert status(marked)["waits"]["taken_back"] == 0
