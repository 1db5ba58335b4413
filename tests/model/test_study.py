"""The engine of a study: what is shared, what is recorded, what is done again. The learner is a quick stand-in.

The stand-in's numbers are hashes of what a training may depend on, so a wrong label or a wrong seed shows.
"""

import dataclasses
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from tests.model.test_study_file import study
from wbc_model.core.classes import CLASSES
from wbc_model.core.model_card import Architecture, ModelCard, Normalisation, read_card
from wbc_model.network.resnet import MEAN, STD
from wbc_model.params import Params
from wbc_model.studies import runner as engine
from wbc_model.studies.learner import SCORES, Cells, StudyData, digest
from wbc_model.studies.records import Provenance, Records
from wbc_model.studies.runner import Runner, results_frame
from wbc_model.studies.study import Study

CODE = Provenance("train-code", "query-code", {"torch": "x"})
ARMS = {
    "plain": {"acquisition.strategy": "random"},
    "margin": {"acquisition.strategy": "margin"},
    "eca": {"model.attention": "eca", "acquisition.strategy": "random"},
}


def cells(name: str, count: int, folder: Path) -> Cells:
    rows = sorted((digest([name, i]), CLASSES[i % len(CLASSES)]) for i in range(count))
    return Cells(pd.DataFrame(rows, columns=["sha256", "label"]), folder, folder)


def some_data(folder: Path, name: str = "a") -> StudyData:
    return StudyData(cells(name, 100, folder), cells("v", 10, folder), {"home": cells("t", 10, folder)})


class Killed(BaseException):
    """The process is gone."""


class StandIn:
    """Counts what is asked of it; `stop_at` ends the process at that call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fits: list[tuple[str, ...]] = []
        self.asked: list[tuple[str, str]] = []
        self.starts: list[float | None] = []  # of each training, the one number of the weights that it began with
        self.stop_at: int | None = None
        for name in ("fit", "evaluate", "ask"):
            monkeypatch.setattr(engine, name, getattr(self, name))

    def _tick(self) -> None:
        if self.stop_at is not None and len(self.fits) + len(self.asked) >= self.stop_at:
            raise Killed

    def fit(
        self,
        params: Params,
        data: StudyData,
        labelled: Sequence[str],
        checkpoint: Path,
        pretraining: Path,
        start: Mapping[str, torch.Tensor] | None = None,
    ) -> tuple[Any, ModelCard, Any]:
        self._tick()
        assert list(labelled) == sorted(set(labelled))
        self.fits.append(tuple(labelled))
        self.starts.append(None if start is None else float(start["weight"]))
        network = nn.Linear(1, 1, bias=False)
        what = [params.seed, params.model.attention, list(labelled)]
        value = int(digest(what if start is None else [*what, self.starts[-1]]), 16) % 10**6
        nn.init.constant_(network.weight, float(value))
        card = ModelCard(
            version="",
            input_size=32,
            normalisation=Normalisation(mean=MEAN, std=STD),
            architecture=Architecture(attention=params.model.attention, lossnet=False),
        )
        losses = {3: 0.2, 5: 0.1, 7: 0.3}
        rows = [
            {"update": at, "loss": float("nan"), "validation_loss": x, "validation_macro_f1": 1 - x} for at, x in losses.items()
        ]
        return network, card, rows

    def evaluate(self, network: Any, card: ModelCard, params: Params, cells: Cells) -> dict[str, Any]:
        value = network.weight.item() / 10**6
        scores = dict.fromkeys(SCORES, value)
        recall = dict.fromkeys(CLASSES, value) | {"Basophil": None}
        return {"n": len(cells.frame), **scores, "recall": recall, "ranking_accuracy": None, "predicted_loss_spread": None}

    def ask(self, params: Params, data: StudyData, labelled: Sequence[str], model: Path, strategy: str, count: int) -> list[str]:
        self._tick()
        version = read_card(model).version  # the weights are there, and whole
        self.asked.append((strategy, version))
        left = [sha256 for sha256 in data.pool.frame["sha256"] if sha256 not in set(labelled)]
        by = version + strategy if strategy != "random" else str(params.seed)
        return sorted(left, key=lambda sha256: digest([by, sha256]))[:count]


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(monkeypatch)


def three_arms(folder: Path, **changes: Any) -> Study:
    return study(folder, **{"arms": ARMS, "budgets": [10, 20, 40], **changes})


def run(read: Study, cache: Path, data: StudyData, code: Provenance = CODE) -> tuple[Runner, pd.DataFrame]:
    runner = Runner(read, code, cache)
    for seed in read.file.seed_list:
        runner.run_seed(seed, data)
    return runner, results_frame(read, runner.rows)


def test_seeds_are_paired_and_labels_only_grow(learner: StandIn, tmp_path: Path) -> None:
    data, read = some_data(tmp_path), three_arms(tmp_path)
    _, table = run(read, tmp_path / "c", data)
    assert table["labels"].tolist() == [10, 20, 40] * 6
    assert list(table["arm"]) == ["plain"] * 6 + ["margin"] * 6 + ["eca"] * 6
    first = {fit for fit in learner.fits if len(fit) == 10}
    assert len(first) == 2  # one set of first labels for each seed, whatever the arm
    for fit in learner.fits:
        if len(fit) > 10:
            assert any(set(smaller) < set(fit) for smaller in learner.fits if len(smaller) == len(fit) // 2)
    at_first = table[table["labels"] == 10].set_index(["arm", "seed"])["accuracy"]
    assert at_first["plain", 0] == at_first["margin", 0] != at_first["plain", 1]
    assert at_first["plain", 0] != at_first["eca", 0]  # the same labels, another network
    second = {(row.arm, row.seed): row.accuracy for row in table[table["labels"] == 20].itertuples()}
    assert second["plain", 0] != second["margin", 0]


def test_what_arms_share_is_trained_once(learner: StandIn, tmp_path: Path) -> None:
    runner, table = run(three_arms(tmp_path), tmp_path / "c", some_data(tmp_path))
    assert runner.trained == len(learner.fits) == three_arms(tmp_path).trainings() == 2 * (2 + 3 * 2)
    assert runner.reused == 0
    shared = table[(table["labels"] == 10) & (table["seed"] == 0)].set_index("arm")["training"]
    assert shared["plain"] == shared["margin"] != shared["eca"]
    assert list((tmp_path / "c/models").iterdir()) == []  # models are kept only as long as a query waits
    assert list((tmp_path / "c/checkpoints").glob("*")) == [] or not (tmp_path / "c/checkpoints").exists()


def test_what_is_recorded_is_not_done_again(learner: StandIn, tmp_path: Path) -> None:
    data, cache = some_data(tmp_path), tmp_path / "c"
    _, table = run(three_arms(tmp_path), cache, data)
    done = len(learner.fits), len(learner.asked)
    runner, again = run(three_arms(tmp_path), cache, data)
    pd.testing.assert_frame_equal(table, again)
    assert (len(learner.fits), len(learner.asked)) == done
    assert (runner.trained, runner.reused) == (0, 16)
    # another arm: its own trainings, and the first budget's once more for the model that its query looks at
    more = three_arms(tmp_path, arms={**ARMS, "entropy": {"acquisition.strategy": "entropy"}})
    runner, larger = run(more, cache, data)
    assert runner.trained == 2 * 3
    kept = larger[larger["arm"] != "entropy"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, table)


@pytest.mark.parametrize("what", ["code", "labels", "params", "test"])
def test_what_has_changed_is_done_again(learner: StandIn, tmp_path: Path, what: str) -> None:
    data, cache = some_data(tmp_path), tmp_path / "c"
    run(three_arms(tmp_path, seeds=1), cache, data)
    before = len(learner.fits)
    read, code = three_arms(tmp_path, seeds=1), CODE
    if what == "code":
        code = dataclasses.replace(CODE, train="other")
    elif what == "labels":
        frame = data.pool.frame.copy()
        frame.loc[0, "label"] = "Monocyte" if frame["label"][0] != "Monocyte" else "Basophil"
        data = dataclasses.replace(data, pool=dataclasses.replace(data.pool, frame=frame))
    elif what == "test":
        data = dataclasses.replace(data, tests={**data.tests, "away": cells("away", 5, tmp_path)})
    else:
        read = three_arms(tmp_path, seeds=1, base={"train.strong_share": 0.1})
    runner, table = run(read, cache, data, code)
    assert len(learner.fits) == 2 * before
    assert runner.reused == 0
    if what == "test":
        assert table.groupby("test")["n"].first().to_dict() == {"away": 5, "home": 10}


def test_a_changed_query_trains_only_where_it_asks_for_other_cells(learner: StandIn, tmp_path: Path) -> None:
    data, cache = some_data(tmp_path), tmp_path / "c"
    _, table = run(three_arms(tmp_path, seeds=1), cache, data)
    runner, again = run(three_arms(tmp_path, seeds=1), cache, data, dataclasses.replace(CODE, query="other"))
    assert runner.trained == 5  # at two budgets models are needed to ask, by two ways to train and then three arms
    pd.testing.assert_frame_equal(again.drop(columns="query_seconds"), table.drop(columns="query_seconds"))


@pytest.mark.parametrize("stop_at", [0, 3, 4, 11, 18, 25])
def test_killed_anywhere_it_goes_on_and_ends_the_same(learner: StandIn, tmp_path: Path, stop_at: int) -> None:
    data = some_data(tmp_path)
    _, expected = run(three_arms(tmp_path), tmp_path / "whole", data)
    whole = len(learner.fits), len(learner.asked)
    learner.fits, learner.asked, learner.stop_at = [], [], stop_at
    with pytest.raises(Killed):
        run(three_arms(tmp_path), tmp_path / "c", data)
    with (tmp_path / "c/records.jsonl").open("a") as file:
        file.write('{"key": "torn in the mid')
    learner.stop_at = None
    _, table = run(three_arms(tmp_path), tmp_path / "c", data)
    times = ["train_seconds", "query_seconds"]
    pd.testing.assert_frame_equal(table.drop(columns=times), expected.drop(columns=times))
    # nothing was done twice: a model that a query waited for was still there
    assert (len(learner.fits), len(learner.asked)) == whole


def test_first_labels_may_be_asked_for(learner: StandIn, tmp_path: Path) -> None:
    arms = {"plain": ARMS["plain"], "typical": {**ARMS["plain"], "initial": "margin"}}
    data, cache = some_data(tmp_path), tmp_path / "c"
    _, table = run(three_arms(tmp_path, arms=arms, seeds=1, budgets=[10]), cache, data)
    assert [strategy for strategy, _ in learner.asked] == ["margin"]
    assert len(set(learner.fits)) == 2
    assert table["initial"].tolist() == ["random", "margin"]
    run(three_arms(tmp_path, arms=arms, seeds=1, budgets=[10]), cache, data)
    assert len(learner.asked) == 1


WARM = {
    "fresh": {"acquisition.strategy": "random"},
    "warm": {"acquisition.strategy": "random", "start": "warm"},
    "warm, margin": {"acquisition.strategy": "margin", "start": "warm"},
}


def test_a_warm_arm_begins_each_budget_with_its_last_model(learner: StandIn, tmp_path: Path) -> None:
    runner, table = run(three_arms(tmp_path, arms=WARM, reference="fresh", seeds=1), tmp_path / "c", some_data(tmp_path))
    accuracy = table.set_index(["arm", "labels"])["accuracy"]
    assert accuracy["fresh", 10] == accuracy["warm", 10] == accuracy["warm, margin", 10]  # one training
    assert runner.trained == three_arms(tmp_path, arms=WARM, reference="fresh", seeds=1).trainings() == 1 + 3 * 2
    values = {arm: [round(value * 10**6) for value in accuracy[arm]] for arm in WARM}
    first = values["fresh"][0]
    # fresh, warm and warm, margin at 20 labels, then at 40
    assert learner.starts == [None, None, first, first, None, values["warm"][1], values["warm, margin"][1]]
    assert values["fresh"][1] != values["warm"][1]  # the same random labels
    assert table["start"].tolist() == ["fresh"] * 3 + ["warm"] * 6
    assert list((tmp_path / "c/models").iterdir()) == []


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 6, 8, 9, 11])
def test_killed_anywhere_a_warm_study_ends_the_same(learner: StandIn, tmp_path: Path, stop_at: int) -> None:
    data, read = some_data(tmp_path), three_arms(tmp_path, arms=WARM, reference="fresh", seeds=1)
    _, expected = run(read, tmp_path / "whole", data)
    whole = len(learner.fits), len(learner.asked)
    assert whole == (7, 5)
    learner.fits, learner.asked, learner.stop_at = [], [], stop_at
    with pytest.raises(Killed):
        run(read, tmp_path / "c", data)
    learner.stop_at = None
    _, table = run(read, tmp_path / "c", data)
    times = ["train_seconds", "query_seconds"]
    pd.testing.assert_frame_equal(table.drop(columns=times), expected.drop(columns=times))
    assert (len(learner.fits), len(learner.asked)) == whole  # nothing was done twice
    assert list((tmp_path / "c/models").iterdir()) == []


def test_a_warm_arm_that_comes_later_has_the_way_to_its_start_trained_again(learner: StandIn, tmp_path: Path) -> None:
    """Its models are gone: what leads to the last budget is done again. Another way there is another training."""
    data, cache, arms = some_data(tmp_path), tmp_path / "c", {"warm": WARM["warm"]}
    _, table = run(three_arms(tmp_path, arms=arms, reference="warm", seeds=1), cache, data)
    lines = [json.loads(line) for line in (cache / "records.jsonl").read_text().splitlines()]
    last = next(line for line in lines if line["key"] == table["training"].iloc[-1])
    (cache / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line is not last))
    learner.fits.clear()
    _, again = run(three_arms(tmp_path, arms=arms, reference="warm", seeds=1), cache, data)
    pd.testing.assert_frame_equal(again.drop(columns="train_seconds"), table.drop(columns="train_seconds"))
    assert [len(fit) for fit in learner.fits] == [10, 20, 40]
    assert list((cache / "models").iterdir()) == []
    other = three_arms(tmp_path, arms=arms, reference="warm", seeds=1, budgets=[5, 20, 40])
    assert run(other, cache, data)[1]["training"].tolist()[1:] != table["training"].tolist()[1:]


def test_rows_say_what_was_run(learner: StandIn, tmp_path: Path) -> None:
    runner, table = run(three_arms(tmp_path, seeds=[4]), tmp_path / "c", some_data(tmp_path))
    row = table[(table["arm"] == "eca") & (table["labels"] == 20)].iloc[0]
    assert (row["seed"], row["budget"], row["model.attention"], row["acquisition.strategy"]) == (4, 20, "eca", "random")
    assert (row["device"], row["torch"], row["updates"], row["preset"], row["test"]) == ("cpu", "x", 7, "small", "home")
    assert (row["best_update"], row["validation_loss"], row["validation_macro_f1"]) == (5, 0.1, 0.9)
    assert row["recall_Monocyte"] == row["accuracy"]
    assert pd.isna(row["recall_Basophil"])
    assert table.groupby("arm")["query_seconds"].apply(lambda s: s.isna().tolist()).to_dict()["eca"] == [False, False, True]
    history = results_frame(runner.study, runner.history)
    assert len(history) == 9 * 3
    assert history["loss"].isna().all()


def test_columns_of_mixed_parameters_can_be_stored(learner: StandIn, tmp_path: Path) -> None:
    preset = {"image_size": 32, "batch_size": 8, "updates": 3, "precision": "32-true"}
    arms: dict[str, Any] = {"plain": {"model.init_weights": None}, "a": {"model.init_weights": "w.pth"}}
    arms["b"] = {"presets.small": preset}
    arms = {name: {**one, "acquisition.strategy": "random"} for name, one in arms.items()}
    _, table = run(three_arms(tmp_path, arms=arms, seeds=1, budgets=[10]), tmp_path / "c", some_data(tmp_path))
    table.to_parquet(tmp_path / "t.parquet")
    assert pd.read_parquet(tmp_path / "t.parquet")["arm"].tolist() == ["plain", "a", "b"]


# --- records --------------------------------------------------------------------------------------------------------------


def test_records_survive_a_torn_line_and_see_what_others_wrote(tmp_path: Path) -> None:
    one, other = Records(tmp_path / "r.jsonl"), Records(tmp_path / "r.jsonl")
    assert one.get("a") is None
    one.add("a", {"x": 1})
    assert other.get("a") == {"key": "a", "x": 1}
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write('{"key": "b", "x"')
    assert other.get("b") is None
    other.add("c", {"x": 3})
    assert one.get("c") == Records(tmp_path / "r.jsonl").get("c") == {"key": "c", "x": 3}
    assert Records(tmp_path / "r.jsonl").get("b") is None
    other.add("a", {"x": 2})
    assert Records(tmp_path / "r.jsonl").get("a") == {"key": "a", "x": 1}  # the first stays
    with pytest.raises(ValueError, match="JSON"):
        one.add("nan", {"x": float("nan")})


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    def write(name: int) -> None:
        records = Records(tmp_path / "r.jsonl")
        for i in range(20):
            records.add(f"{name}-{i}", {"x": "y" * 500})

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in lines} == {f"{name}-{i}" for name in range(4) for i in range(20)}


def test_weights_alone_make_a_model_that_can_be_read(tmp_path: Path) -> None:
    network, card = engine.untrained(study(tmp_path).arms[1].params, some_data(tmp_path), tmp_path)
    engine.save_weights(tmp_path / "m", network, card)
    from wbc_model.network.model_directory import load_model

    read, _ = load_model(tmp_path / "m")
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in network.state_dict().items())
