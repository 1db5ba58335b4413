"""Killed at every single write: the flow's own logic, with stages, DVC and MLflow replaced by quick stand-ins.

The stand-ins are deterministic functions of the pools and keep what they were told across a crash, as the real ones do. A
crash raises at one file operation and at every one after it, so that no clean-up runs, as after SIGKILL. The real thing,
with real processes and a real SIGKILL, is in test_flow.py.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from prefect.tasks import Task

from flows.identity import workspace_name
from flows.labelling.store import meeting_store
from flows.labels import read_log, waiting
from flows.pipeline import dvc as versioning
from flows.pipeline.package import PACKAGED_MODEL
from flows.retraining import flow as retrain
from flows.retraining import gate
from flows.state import new_labels, read_state
from flows.tracking import packaged_digest
from flows.workspace import set_params
from serving.contract.site import read_site
from serving.labelling.answers import answer
from serving.labelling.queue import asked_now, progress
from serving.labelling.tasks import Who, next_tasks
from tests.pools import ingest
from wbc_model.cells.pools import Pools
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.files import write_atomic
from wbc_model.core.model_card import INT8, Architecture, ModelCard, Normalisation, read_card
from wbc_model.network.card_page import write_card
from wbc_model.params import read_params

ROOT = Path(__file__).parents[2]
OPERATIONS = ("fsync", "replace", "rename", "unlink")


class Crash(BaseException):
    """The process is gone."""


class Killer:
    """Counts the file operations that matter and ends the process at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: int | None = None
        self.count = 0
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        fsync = os.fsync

        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.tick()
            return None if operation is fsync else operation(*arguments, **named)  # a power cut is not what is tested

        return wrapped

    def tick(self) -> None:
        self.count += 1
        if self.at is not None and self.count >= self.at:
            raise Crash


class Store:
    """What MLflow would have kept."""

    def __init__(self, killer: Killer) -> None:
        self.killer = killer
        self.runs: dict[str, dict[str, str]] = {}
        self.logged: list[str] = []
        self.models: list[str] = []
        self.tags: list[dict[str, str]] = []
        self.aliases: dict[str, str] = {}
        self.client = self

    def _run(self, name: str) -> str:
        self.killer.tick()
        self.runs.setdefault(name, {})
        return name

    def retraining(self, key: str, params: object) -> str:
        return self._run(key)

    def cycle(self, parent: str, key: str, cycle: int) -> str:
        return self._run(f"{key}/{cycle}")

    def has_tag(self, tag: str) -> bool:
        return any(tag in tags for tags in self.runs.values())

    @contextlib.contextmanager
    def system_metrics(self, run: str) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def answering(self, say: object) -> Iterator[None]:
        yield

    def log_cycle(self, run: str, parent: str, record: Any, params: object) -> None:
        self.killer.tick()
        if run not in self.logged:
            self.logged.append(run)
        self.killer.tick()

    def register(self, run: str, model: Path) -> str:
        self.killer.tick()
        digest = packaged_digest(read_card(model))
        if digest not in self.models:
            self.models.append(digest)
            self.tags.append({})
        self.killer.tick()
        return str(self.models.index(digest) + 1)

    def digest(self, version: str) -> str:
        return self.models[int(version) - 1]

    def model_tags(self) -> dict[str, str]:
        return {}

    def version_tags(self, version: str) -> dict[str, str]:
        return self.tags[int(version) - 1]

    def versions(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(version=str(number), tags=tags) for number, tags in enumerate(self.tags, 1)]

    def alias(self, name: str) -> str | None:
        return self.aliases.get(name)

    def set_alias(self, name: str, version: str) -> None:
        self.killer.tick()
        self.aliases[name] = version
        self.killer.tick()

    def tag_version(self, version: str, tags: dict[str, str]) -> None:
        self.killer.tick()
        self.tags[int(version) - 1] |= tags

    def tag_run(self, run: str, tags: dict[str, str]) -> None:
        self.runs[run] |= tags

    def describe(self, run: str, note: str) -> None:
        self.runs[run]["note"] = note

    def describe_version(self, version: str, note: str) -> None:
        self.killer.tick()

    def wait(self, run: str, note: str) -> None:
        self.killer.tick()

    def close_abandoned(self, key: str) -> int:
        return 0

    @contextlib.contextmanager
    def running(self, run: str) -> Iterator[None]:
        yield

    def end_retraining(self, parent: str, artifacts: list[Path]) -> None:
        self.killer.tick()


def weights(pools: Pools) -> bytes:
    cells = pools.frames["labelled"][["sha256", "label"]].sort_values("sha256")
    return hashlib.sha256(cells.to_csv().encode()).digest()


def stage(workspace: Path, name: str) -> None:
    """A stage as a function of the pools and the candidate, in an instant."""
    pools = Pools.read(workspace / "data/pools")
    if name == "train":
        directory = workspace / "models/candidate"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for file in ("weights.safetensors", "model.onnx"):
            (directory / file).write_bytes(weights(pools))
        digests = {file: hashlib.sha256(weights(pools)).hexdigest() for file in ("weights.safetensors", "model.onnx")}
        normal = Normalisation(mean=(0, 0, 0), std=(1, 1, 1))
        network = Architecture(attention="none", lossnet=False)
        card = ModelCard(version="v", created_at="", input_size=32, normalisation=normal, architecture=network, sha256=digests)
        card = card.model_copy(update={"pool_version": pools.version()})
        write_card(directory, card)
    elif name == "evaluate":
        accuracy = len(pools.frames["labelled"]) / 100
        metrics = {"accuracy": accuracy, "macro_f1": accuracy, "intervals": {}, "n": 4, "per_class": {}}
        write_atomic(workspace / "metrics.json", json.dumps(metrics))
    elif name == "query":
        from flows.pipeline.stages import query_size
        from flows.workspace import after_cycle

        params = read_params(workspace / "params.yaml")
        order = sorted(
            pools.frames["unlabelled"]["sha256"], key=lambda cell: hashlib.sha256(weights(pools) + cell.encode()).digest()
        )
        rows = [
            [cell, "", rank, 1.0, "", CLASSES[0], 0.5]
            for rank, cell in enumerate(order[: query_size(params, pools, after_cycle(workspace))], 1)
        ]
        names = ["sha256", "path", "rank", "score", "reason", "predicted", "probability"]
        write_atomic(workspace / "data/queue.csv", pd.DataFrame(rows, columns=names).to_csv(index=False))
    elif name == "package":
        shutil.rmtree(workspace / PACKAGED_MODEL, ignore_errors=True)
        shutil.copytree(workspace / "models/candidate", workspace / PACKAGED_MODEL)
        if read_params(workspace / "params.yaml").package.int8:
            card = read_card(workspace / PACKAGED_MODEL)
            for file in INT8:
                (workspace / PACKAGED_MODEL / file).write_bytes(weights(pools))
            digests = dict.fromkeys(INT8, hashlib.sha256(weights(pools)).hexdigest())
            write_card(workspace / PACKAGED_MODEL, card.model_copy(update={"sha256": card.sha256 | digests}))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with 24 training cells, ten of them labelled."""
    folder = tmp_path_factory.mktemp("crash")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(34):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        rows.append([f"{number}.png", CLASSES[number % 5], "train" if number < 24 else "val" if number < 29 else "test"])
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(folder / "manifest.csv", index=False)
    root = folder / "site"
    root.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    set_params(root, {"retrain.until": 0.7, "retrain.cycles": 2})
    ingest(folder / "manifest.csv", root / "data", read_params(root / "params.yaml"))
    return root


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    killer = Killer(monkeypatch)

    def run_dvc(workspace: Path, arguments: list[str], *_: object, **__: object) -> str:
        killer.tick()
        if arguments[0] == "repro":
            stage(workspace, arguments[-1])
        killer.tick()
        return ""

    def predicted(model: Path, decoded: object, cells: pd.DataFrame) -> pd.DataFrame:
        return cells[["sha256", "label"]].assign(predicted=cells["label"])

    monkeypatch.setattr(Task, "__call__", lambda self, *arguments, **named: self.fn(*arguments, **named))
    monkeypatch.setattr(versioning, "run_dvc", run_dvc)
    monkeypatch.setattr(versioning, "ensure_dvc", lambda workspace: None)
    for name in ("open_limit", "end_dead_runs", "ProgressBar", "show_cycle", "show_gate", "show_waiting"):
        monkeypatch.setattr(retrain, name, Mock())
    monkeypatch.setattr(retrain, "gpu_slot", lambda say: contextlib.nullcontext())
    monkeypatch.setattr("wbc_model.evaluation.plots.plot_learning_curve", lambda *arguments: None)
    monkeypatch.setattr("flows.pipeline.stages.decoded_cells", lambda workspace, size, view: None)
    monkeypatch.setattr("flows.labelling.publish._embeddings", lambda workspace, sha256s: {})
    monkeypatch.setattr("wbc_model.evaluation.evaluate.predict_directory", predicted)
    return killer


def run(workspace: Path, killer: Killer, store: Store, monkeypatch: pytest.MonkeyPatch, at: int | None = None) -> bool:
    """One life of the flow, ended at file operation `at`; returns whether it came to its end."""
    monkeypatch.setattr("flows.tracking.open_tracker", lambda workspace, params: store)
    killer.count, killer.at = 0, at
    try:
        outcome = retrain.retraining(workspace)
        assert outcome.status == "done"
        return True
    except Crash:
        return False
    finally:
        killer.at = None


def result(workspace: Path, store: Store) -> dict[str, Any]:
    """What must not depend on how often the flow was killed."""
    state = read_state(workspace)
    assert state is not None
    table = Pools.read(workspace / "data/pools").table().drop(columns="labelled_at")
    log = read_log(workspace)
    return {
        "pools": table.to_csv(),
        "log": log[["sha256", "label", "labelled_by", "cycle"]].to_csv(),
        "champion": (workspace / "models/champion/weights.safetensors").read_bytes(),
        "int8": (workspace / "models/champion" / INT8[0]).exists(),
        "test metrics": read_card(workspace / "models/champion").metrics,
        "rows": [(row["cycle"], row["labels"], row["accuracy"], row["pools"]) for row in state.rows],
        "versions": (workspace / "data/versions.csv").read_text(),
        "gate": [(row["asked_before"], row["promoted"]) for row in gate.read_log(workspace)],
        "curve": pd.read_csv(workspace / "reports/learning_curve.csv").drop(columns="retraining").to_csv(),
        "aliases": store.aliases,
        "logged": [name.partition("/")[2] for name in store.logged],
        "models": len(store.models),
        "leftovers": sorted(path.name for path in (workspace / "models").iterdir() if path.name.startswith(".")),
    }


def finished(workspace: Path) -> bool:
    """Whether a life came to its end though it was killed: at the very last write, for instance."""
    state = read_state(workspace)
    return state is not None and state.status == "done"


@pytest.mark.parametrize("points", [2, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_killed_at_any_write_it_comes_to_the_same_end(
    points: int, fresh: Path, killer: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def site(name: str) -> Path:
        shutil.copytree(fresh, tmp_path / name)
        return tmp_path / name

    reference = Store(killer)
    assert run(site("reference"), killer, reference, monkeypatch)
    operations = killer.count
    expected = result(tmp_path / "reference", reference)
    assert [row[1] for row in expected["rows"]] == [10, 14, 17]
    assert expected["aliases"] == {"champion": "1", "challenger": "1"}
    assert operations > 100

    chosen = random.Random()
    every = max(1, operations // points)
    for first in range(1 + chosen.randrange(every), operations + 1, every):
        workspace, store = site(f"at{first}"), Store(killer)
        assert not run(workspace, killer, store, monkeypatch, at=first)
        second = chosen.randrange(1, operations)  # the second life is killed too, somewhere
        if not finished(workspace) and not run(workspace, killer, store, monkeypatch, at=second) and not finished(workspace):
            assert run(workspace, killer, store, monkeypatch)
        assert result(workspace, store) == expected, f"killed at operations {first} and {second} of {operations}"
        shutil.rmtree(workspace)


def test_the_same_refused_model_does_not_wear_out_the_test_pool_twice(
    fresh: Path, killer: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, store = shutil.copytree(fresh, tmp_path / "site"), Store(killer)

    def wrong(model: Path, decoded: object, cells: pd.DataFrame) -> pd.DataFrame:
        return cells[["sha256", "label"]].assign(predicted="Basophil")

    monkeypatch.setattr("wbc_model.evaluation.evaluate.predict_directory", wrong)
    assert run(workspace, killer, store, monkeypatch)
    assert run(workspace, killer, store, monkeypatch)  # nothing is left to label: the same model again
    assert [row["promoted"] for row in gate.read_log(workspace)] == ["no"]
    assert "champion" not in store.aliases


@pytest.mark.slow
def test_the_champion_follows_how_its_weights_are_packaged_without_asking_again(
    fresh: Path, killer: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, store = shutil.copytree(fresh, tmp_path / "site"), Store(killer)
    champion = workspace / "models/champion"
    assert run(workspace, killer, store, monkeypatch)
    assert set(INT8) <= set(read_card(champion).sha256)
    assert run(workspace, killer, store, monkeypatch)  # nothing is left to label: the same model, packaged in the same way
    assert store.aliases["champion"] == "1"
    set_params(workspace, {"package.int8": False})
    assert run(workspace, killer, store, monkeypatch)
    assert not set(INT8) & {path.name for path in champion.iterdir()}
    assert store.aliases["champion"] == "2"
    assert len(gate.read_log(workspace)) == 1
    assert json.loads((workspace / "models/gate.json").read_text())["reason"].startswith("its weights are the champion's")


def test_people_are_awaited_and_the_next_run_goes_on(
    fresh: Path, killer: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.labels import awaited, oracle_answers, read_queue, record
    from flows.state import label_cycle

    workspace, store = shutil.copytree(fresh, tmp_path / "site"), Store(killer)
    set_params(workspace, {"retrain.annotator": "people"})
    monkeypatch.setattr("flows.tracking.open_tracker", lambda workspace, params: store)

    def life() -> retrain.Outcome:
        outcome = retrain.retraining(workspace)
        assert isinstance(outcome, retrain.Outcome)
        return outcome

    outcome = life()
    assert (outcome.status, outcome.awaited, len(outcome.cycles)) == ("waiting", 4, 1)
    assert life().status == "waiting"  # nobody has said anything yet: nothing happens
    assert len(store.logged) == 1
    answers = oracle_answers(workspace, read_queue(workspace)).assign(labelled_by="ada")
    record(workspace, answers.head(3), label_cycle(workspace))
    assert len(awaited(workspace)) == 1
    outcome = life()
    assert (outcome.status, [row["labels"] for row in outcome.cycles]) == ("waiting", [10, 13])
    record(workspace, oracle_answers(workspace, read_queue(workspace)), label_cycle(workspace))
    outcome = life()
    assert (outcome.status, [row["labels"] for row in outcome.cycles]) == ("done", [10, 13, 17])
    assert sorted(read_log(workspace)["cycle"].unique()) == ["1", "2"]


@pytest.mark.slow
def test_a_queue_that_goes_and_parameters_that_change_while_people_are_asked(
    fresh: Path, killer: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, store = shutil.copytree(fresh, tmp_path / "site"), Store(killer)
    set_params(workspace, {"retrain.annotator": "people"})
    monkeypatch.setattr("flows.tracking.open_tracker", lambda workspace, params: store)
    monkeypatch.delenv("WBC_STORE_URL", raising=False)

    def on_the_page() -> set[str]:
        with meeting_store(workspace) as page:
            return set(asked_now(page, workspace_name(workspace)))

    first = retrain.retraining(workspace)
    asked = set(pd.read_csv(workspace / "data/queue.csv")["sha256"])
    assert on_the_page() == asked
    (workspace / "data/queue.csv").unlink()
    again = retrain.retraining(workspace)
    assert (again.status, again.key, len(again.cycles)) == ("waiting", first.key, 1)
    assert "data/queue.csv is gone: this round asks again" in capsys.readouterr().err
    assert on_the_page() == asked

    set_params(workspace, {"seed": 5})
    other = retrain.retraining(workspace)
    assert (other.status, len(other.cycles)) == ("waiting", 1)
    assert other.key != first.key
    said = f"retraining {first.key} ends here: params.yaml was changed since. Its labels stay, and a new one begins"
    assert said in capsys.readouterr().err
    assert on_the_page() == asked, "asked again by the new one"

    quarantine = [f"0.png,{sha256},blank," for sha256 in asked]
    (workspace / "data/quarantine.csv").write_text("\n".join(["path,sha256,reason,detail", *quarantine]) + "\n")
    ended = retrain.retraining(workspace, scheduled=True)
    assert (ended.status, ended.key) == ("done", other.key), "it does not wait for what cannot come"
    said = capsys.readouterr().err
    assert "no cell of data/queue.csv is to be named any more: this round asks again" in said
    assert "nobody can name a cell of the queue: the retraining ends with the labels that it has" in said
    assert on_the_page() == set()
    (workspace / "data/quarantine.csv").unlink()
    set_params(workspace, {"retrain.annotator": "oracle"})
    assert retrain.retraining(workspace).status == "done"
    assert not on_the_page() & set(Pools.read(workspace / "data/pools").frames["labelled"]["sha256"])
    with meeting_store(workspace) as page:
        said = progress(page, workspace_name(workspace)).next_step
    assert said.startswith("no retraining waits for people; "), "and none promises that it does"


def test_a_scheduled_one_waits_until_enough_is_agreed_on_the_page(
    fresh: Path, killer: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, store = shutil.copytree(fresh, tmp_path / "site"), Store(killer)
    set_params(workspace, {"retrain.annotator": "people", "schedule.min_new_labels": 3})
    monkeypatch.setattr("flows.tracking.open_tracker", lambda workspace, params: store)
    monkeypatch.delenv("WBC_STORE_URL", raising=False)
    site = read_site()
    once = {"second_reader_share": 0.0, "repeat_share": 0.0, "known_share": 0.0}
    site = site.model_copy(update={"labelling": site.labelling.model_copy(update=once)})
    monkeypatch.setattr("serving.contract.site.site_from_environment", lambda: site)

    def life() -> retrain.Outcome:
        return retrain.retraining(workspace, scheduled=True)

    def read(count: int) -> None:
        with meeting_store(workspace) as page:
            for task in next_tasks(page, "Ada", count, site):
                answer(page, Who("Ada", "ada"), task.name, "Monocyte", site)

    outcome = life()
    line = "0 of 4 cells are agreed; nobody has begun to read; the retraining goes on at 3"
    assert (outcome.status, outcome.next_step) == ("waiting", line)
    assert outcome.gain is not None
    assert outcome.gain["text"].startswith("what the next labels gain cannot be said yet: 1 of at least 3 rounds")
    read(2)
    outcome = life()
    assert (outcome.status, outcome.awaited, len(outcome.cycles)) == ("waiting", 2, 1)
    assert outcome.next_step.startswith("2 of 4 cells are agreed; ")
    read(1)
    outcome = life()
    assert (outcome.status, [row["labels"] for row in outcome.cycles]) == ("waiting", [10, 13]), "and the next round is asked"
    assert set(read_log(workspace)["labelled_by"]) == {"Ada"}
    news = (workspace / ".wbc/logs/news.log").read_text().splitlines()
    assert [line[21:].split(":")[1].strip() for line in news] == [
        "people are asked on the page /label",
        "the retraining goes on",
        "people are asked on the page /label",
    ]


@pytest.mark.slow
def test_so_many_more_can_be_asked_for_when_the_share_is_reached(
    fresh: Path, killer: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.labels import oracle_answers, read_queue, record
    from flows.state import label_cycle

    workspace, store, said = shutil.copytree(fresh, tmp_path / "site"), Store(killer), []
    set_params(workspace, {"retrain.annotator": "people", "retrain.until": 0.28})
    monkeypatch.setattr("flows.tracking.open_tracker", lambda workspace, params: store)
    monkeypatch.setattr("flows.progress.Progress.say", lambda self, line: said.append(line))

    def life(**changes: object) -> retrain.Outcome:
        outcome = retrain.retraining(workspace, {f"retrain.{name}": value for name, value in changes.items()})
        assert isinstance(outcome, retrain.Outcome)
        return outcome

    assert life().status == "done"
    assert any(line.startswith("nothing is asked: 10 of 24 training cells are labelled") and "--ask N" in line for line in said)
    for more in (5, 5, 4):  # 4 are left in the end
        outcome = life(ask=5)
        assert (outcome.status, outcome.awaited) == ("waiting", more), "all at once, whatever retrain.cycles is"
        answers = oracle_answers(workspace, read_queue(workspace)).assign(labelled_by="ada")
        record(workspace, answers, label_cycle(workspace))
        assert life().status == "done"
    assert life(ask=None, until=1).status == "done"
    assert "nothing is asked: all 24 training cells are labelled; `wbc ingest` takes more in" in said


def test_pools_that_were_there_are_never_begun_anew(
    fresh: Path, killer: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, store = shutil.copytree(fresh, tmp_path / "site"), Store(killer)
    monkeypatch.setattr("flows.tracking.open_tracker", lambda workspace, params: store)
    (workspace / "data/pools").rename(tmp_path / "pools")
    (workspace / "data/versions.csv").write_text("number,version,labelled,unlabelled,validation,test\n1,abc,1,1,1,1\n")
    with pytest.raises(WbcError, match=r"versions\.csv names versions of the pools, and data/pools is not there"):
        retrain.retraining(workspace)
    (workspace / "data/pools.dvc").write_text("outs:\n- path: pools\n  nfiles: 4\n")
    with pytest.raises(WbcError, match=r"pools is not here, though pools\.dvc says so: `dvc pull data/.* brings it"):
        retrain.retraining(workspace)
    assert not (workspace / "data/pools").exists()
    Pools.empty().write(workspace / "data/pools")
    with pytest.raises(WbcError, match="the pools have no cell: `wbc ingest DATA`"):
        retrain.retraining(workspace)


@pytest.mark.slow
def test_other_parameters_begin_a_new_retraining(
    fresh: Path, killer: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, store = shutil.copytree(fresh, tmp_path / "site"), Store(killer)
    assert run(workspace, killer, store, monkeypatch)
    set_params(workspace, {"retrain.until": 1, "retrain.cycles": 1})
    assert run(workspace, killer, store, monkeypatch)
    state = read_state(workspace)
    assert state is not None
    assert state.after_cycle == 2
    assert [(row["cycle"], row["labels"]) for row in state.rows] == [(2, 17), (3, 24)]
    assert set(read_log(workspace)["cycle"]) == {"1", "2", "3"}
    assert len(gate.read_log(workspace)) == 2


def test_only_what_another_attempt_may_put_right_is_tried_again() -> None:
    from prefect.states import Failed

    def again(error: BaseException) -> bool:
        return retrain._transient(None, None, Failed(data=error))  # type: ignore[arg-type]

    assert again(versioning.StageFailed("out of memory"))
    assert not again(WbcError("row 7: do this"))
    assert not again(ValueError("a defect"))
    for name in ("validate", "train", "evaluate", "query", "package", "label", "log_cycle", "ask_gate", "version_pools"):
        step = getattr(retrain, name).task
        assert isinstance(step, Task)
        assert (step.retries, step.retry_condition_fn) == (2, retrain._transient)


LATE = """
import sys
from pathlib import Path
from flows.labels import oracle_answers, take_in
from wbc_model.cells.pools import Pools
site = Path(sys.argv[1])
cells = Pools.read(site / "data/pools").frames["unlabelled"].tail(2)
rows = oracle_answers(site, cells).assign(labelled_by="ada")
taken = take_in(site, rows, 7)
print(taken.new, taken.waits_for)
"""


def test_a_label_that_comes_while_the_model_is_trained_is_learned_in_the_next_round(
    fresh: Path, killer: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, store = shutil.copytree(fresh, tmp_path / "site"), Store(killer)
    set_params(workspace, {"retrain.cycles": 1})
    said: list[str] = []
    during = versioning.run_dvc

    def run_dvc(root: Path, arguments: list[str], *more: object, **named: object) -> str:
        if arguments[-1] == "train" and len(said) < 2:
            before = (root / "data/pools/labelled.csv").read_bytes(), (root / "data/labels.csv").exists()
            program = [sys.executable, "-c", LATE, str(root)]
            said.append(subprocess.run(program, capture_output=True, text=True, check=True).stdout.strip())
            assert ((root / "data/pools/labelled.csv").read_bytes(), (root / "data/labels.csv").exists()) == before
        return during(root, arguments)

    monkeypatch.setattr(versioning, "run_dvc", run_dvc)
    assert run(workspace, killer, store, monkeypatch)
    state = read_state(workspace)
    assert state is not None
    assert said == [f"2 a retraining (pid {os.getpid()})"] * 2
    labelled = Pools.read(workspace / "data/pools").frames["labelled"]
    learned = pd.read_csv(workspace / ".wbc/learned.csv", dtype=str)["sha256"]
    ada = labelled[labelled["labelled_by"] == "ada"]
    assert [row["labels"] for row in state.rows] == [10, len(learned)]
    assert len(labelled) == len(learned) + 2
    assert ada["sha256"].isin(learned).sum() == len(ada) - 2, "those of the first round are learned in the second"
    assert len(ada) > 2
    versions = pd.read_csv(workspace / "data/versions.csv", dtype=str)
    assert read_card(workspace / "models/candidate").pool_version == versions["version"].iloc[-1]
    assert versions["labelled"].tolist() == ["10", str(len(learned))]
    assert new_labels(workspace) == 2, "so that the schedule wakes"
    assert set(ada["cycle"]) == {7}
    assert waiting(workspace) == 0


def test_what_dvc_takes_for_made_of_other_pools_is_made_again(
    fresh: Path, killer: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, store = shutil.copytree(fresh, tmp_path / "site"), Store(killer)
    ran: list[list[str]] = []
    real = versioning.run_dvc

    def run_dvc(root: Path, arguments: list[str], *more: object, **named: object) -> str:
        ran.append(list(arguments))
        answer = real(root, arguments)
        if arguments[-1] == "train" and "--force" not in arguments:  # as a retraining of the version before left it
            card = read_card(root / "models/candidate", verify=False)
            write_card(root / "models/candidate", card.model_copy(update={"pool_version": "of other pools"}))
        return answer

    monkeypatch.setattr(versioning, "run_dvc", run_dvc)
    assert run(workspace, killer, store, monkeypatch)
    trained = [arguments for arguments in ran if arguments[-1] == "train"]
    assert ["--force" in arguments for arguments in trained] == [False, True] * 3
