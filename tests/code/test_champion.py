"""Who is champion: the gate, a person's word and the registry, with a real MLflow store and predictions of untrained networks."""

import contextlib
import functools
import json
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from flows.cli import app
from flows.cli.status import status, status_text
from flows.labels import decide
from flows.pipeline.package import PACKAGED_MODEL
from flows.pipeline.stages import seen_cells, usable_pools
from flows.progress import Progress
from flows.registry import champion, curve, scores
from flows.registry.disk import collect
from flows.registry.verdicts import FORMER, ROLLED_BACK, objection, recipes, verdicts
from flows.retraining import flow as retrain
from flows.retraining import gate
from flows.state import State
from flows.tracking import COMPLETE, Tracker, open_tracker, packaged_digest
from flows.workspace import note_after_cycle, set_params, template
from serving.inference.champion import ChampionWatch
from tests.pools import ingest
from wbc_model.cells.pools import Pools
from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.files import file_sha256
from wbc_model.core.model_card import ONNX, WEIGHTS, Architecture, ModelCard, Normalisation, read_card
from wbc_model.network.card_page import write_card
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.params import Params, read_params
from wbc_model.rendering.cells import write_cells

pytestmark = pytest.mark.usefixtures("narrow")

NOTHING = {f"gate.recall_floor.{name}": 0.0 for name in CLASSES} | {"gate.max_recall_drop": 1.0, "gate.max_accuracy_drop": 1.0}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with 130 rendered cells and a gate that lets everything in."""
    workspace = tmp_path_factory.mktemp("champion") / "site"
    workspace.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(template(name), workspace / name)
    set_params(workspace, NOTHING | {"gate.alpha": 1e-9, "data.initial_share": 0.5})
    data = write_cells(workspace / ".wbc/rendered", 130, seed=0, size=64)
    params = read_params(workspace / "params.yaml")
    ingest(data, workspace / "data", params, source="rendered")
    open_tracker(workspace, params)  # MLflow's tables are made here once
    return workspace


@functools.cache
def network(seed: int) -> dict[str, torch.Tensor]:
    """The weights of an untrained network."""
    torch.manual_seed(seed)
    return AttentionResNet18("none", False, len(CLASSES), "batch").state_dict()


@dataclass
class Site:
    """A workspace that can be given candidates and asked about them."""

    workspace: Path
    rounds: int = 0

    @property
    def params(self) -> Params:
        return read_params(self.workspace / "params.yaml")

    @property
    def tracker(self) -> Tracker:
        return open_tracker(self.workspace, self.params)

    def candidate(self, seed: int, rounding: float = 0.0, parameters: dict[str, Any] | None = None) -> str:
        """Put an untrained network in the candidate's place, as trained and packaged; returns the sha256 of its weights."""
        tensors = {name: value + rounding if name == "fc.bias" else value for name, value in network(seed).items()}
        place, packaged = self.workspace / "models/candidate", self.workspace / PACKAGED_MODEL
        for folder in (place, packaged):
            shutil.rmtree(folder, ignore_errors=True)
        place.mkdir(parents=True)
        save_file(tensors, place / WEIGHTS)
        (place / ONNX).write_bytes(b"onnx")
        digests = {name: file_sha256(place / name) for name in (WEIGHTS, ONNX)}
        write_card(place, self._card(digests, parameters or {"seed": seed}))
        shutil.copytree(place, packaged)
        scored = usable_pools(self.workspace).frames["test"][["sha256", "label"]]
        scored.to_csv(self.workspace / "models/predictions.csv", index=False)
        return digests[WEIGHTS]

    def _card(self, digests: dict[str, str], parameters: dict[str, Any]) -> ModelCard:
        pools = usable_pools(self.workspace)
        return ModelCard(
            version=digests[WEIGHTS][:12],
            input_size=32,
            normalisation=Normalisation(mean=(0, 0, 0), std=(1, 1, 1)),
            architecture=Architecture(attention="none", lossnet=False),
            pool_version=pools.version(),
            parameters=parameters,
            sha256=digests,
            metrics={"validation": {"accuracy": 0.5}},
            cells=seen_cells(pools, ("labelled", "validation")),
        )

    def ask(self) -> gate.Decision:
        """A retraining has come to its end: register the candidate, ask the gate, carry its answer out."""
        self.rounds += 1
        row = {"cycle": 0, "labels": 10, "accuracy": 0.5, "macro_f1": 0.5, "pools": "pools-v1", "metrics": {"accuracy": 0.5}}
        state = State(f"round-{self.rounds}", "", "", 0, False, rows=[row])
        params = read_params(self.workspace / "params.yaml")
        ctx = retrain.Context(self.workspace, state, params, 0, Progress(), self.tracker)
        return retrain.ask_gate.task.fn(ctx, self.tracker.cycle(ctx.parent_run, state.key, 0))

    def version(self) -> str | None:
        """The champion, and the files that are served are its own."""
        alias = self.tracker.alias("champion")
        if alias is not None:
            folder = self.workspace / "models/champion/weights.safetensors"
            assert file_sha256(folder) == self.tracker.version_tags(alias)["wbc.weights_sha256"]
        return alias


@pytest.fixture
def site(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A copy of the workspace of its own, in which the GPU is free."""
    monkeypatch.setattr(retrain, "_gpu", lambda ctx: contextlib.nullcontext())
    return Site(Path(shutil.copytree(filled, tmp_path / "site")))


def test_what_a_person_withdrew_stays_out_until_a_person_says_otherwise(site: Site) -> None:
    site.candidate(1)
    assert site.ask().promoted
    withdrawn = site.candidate(2)
    assert site.ask().promoted
    assert site.version() == "2"
    answer = champion.roll_back(site.workspace, "it takes smudges for lymphocytes", "Ada")
    model = read_card(site.workspace / "models/champion").version
    assert answer["rolled_back"] == {"from": "2", "to": "1", "model": model, "withdrawn": ["2"]}
    assert site.version() == "1"

    again = site.ask()  # the same night, the same candidate
    assert not again.promoted
    assert again.weights == withdrawn
    assert not again.asked, "no comparison could change a person's word"
    assert "version 2 was withdrawn by Ada" in again.reason
    assert "smudges" in again.reason
    assert site.version() == "1"

    champion.promote(site.workspace, "2", "the smudges were ours")
    assert site.version() == "2"
    assert site.ask().in_place
    words = {one["version"]: one["word"]["word"] for one in champion.champions(site.workspace)["versions"]}
    assert words == {"1": "replaced", "2": "promoted"}


@pytest.mark.slow
def test_a_model_that_today_s_main_rolled_back_stays_out(site: Site) -> None:
    for seed in (1, 2):
        site.candidate(seed)
        site.ask()
    site.tracker.tag_version("2", {ROLLED_BACK: "yes"})  # all that was written then
    site.tracker.fetch("1", site.workspace / "models/champion")
    site.tracker.set_alias("champion", "1")
    assert not site.ask().promoted
    assert site.version() == "1"


@pytest.mark.slow
def test_whom_a_person_put_in_is_not_displaced_by_whom_they_put_out(site: Site) -> None:
    for seed in (1, 2):
        site.candidate(seed)
        site.ask()
    champion.promote(site.workspace, "1", "older and better known")
    decision = site.ask()  # of version 2 again
    assert not decision.promoted
    assert "version 1 was put in its place: older and better known" in decision.reason
    assert site.version() == "1"


def test_what_a_person_rejected_is_not_promoted(site: Site) -> None:
    site.candidate(1)
    site.ask()
    site.candidate(2)
    set_params(site.workspace, {"gate.max_accuracy_drop": 0.0, "gate.alpha": 1.0})  # nothing passes
    assert not site.ask().promoted
    champion.reject(site.workspace, "2", "seen on Monday's smears")
    set_params(site.workspace, {"gate.max_accuracy_drop": 1.0, "gate.alpha": 1e-9})
    decision = site.ask()
    assert not decision.promoted
    assert "version 2 was rejected" in decision.reason
    with pytest.raises(WbcError, match="version 1 is the champion: `wbc champion --rollback"):
        champion.reject(site.workspace, "1", "no")
    with pytest.raises(WbcError, match="no version 9 is registered"):
        champion.promote(site.workspace, "9", "no")
    with pytest.raises(WbcError, match="needs a reason"):
        champion.reject(site.workspace, "2", "  ")


def test_withdrawn_is_the_model_and_not_its_bytes_and_a_person_is_asked_once(site: Site) -> None:
    site.candidate(1)
    site.ask()
    site.candidate(2)
    site.ask()
    champion.roll_back(site.workspace, "misses blasts")
    site.candidate(2, rounding=1e-6)
    twin = site.ask()
    assert not twin.promoted
    assert "made of the same labels and parameters" in twin.reason
    assert "`wbc champion --promote 3 --reason TEXT`" in twin.question
    site.candidate(2, rounding=2e-6)
    unanswered = site.ask()
    assert (unanswered.promoted, unanswered.question) == (False, "")
    assert "a person was asked on" in unanswered.reason
    champion.reject(site.workspace, "3", "the same model")
    site.candidate(2, rounding=3e-6)
    answered = site.ask()
    assert (answered.promoted, answered.question) == (False, "")
    assert "was asked" not in answered.reason
    assert site.version() == "1"
    champion.promote(site.workspace, "4", "the labels were looked at")
    site.candidate(2, rounding=4e-6)
    assert site.ask().promoted, "what a person let in is compared like any other"
    site.candidate(2)
    assert not site.ask().promoted, "the very weights that were withdrawn still are"


PARAMETERS: dict[str, Any] = {
    "seed": 1,
    "preset": "small",
    "train": {"ema": 0.9, "devices": 1, "accelerator": "auto"},
    "size": {"updates": 40, "precision": "bf16-mixed"},
}


def test_parameters_that_became_constants_still_name_the_model() -> None:
    """Cards of before listed them, words of before know a model by them."""
    train = {"ema": 0.9, "unlabelled_ratio": 0.0}
    before = {**train, **FORMER, "unlabelled_start_share": 0.2}
    card = ModelCard(
        version="v",
        input_size=64,
        pool_version="p",
        normalisation=Normalisation(mean=(0, 0, 0), std=(1, 1, 1)),
        architecture=Architecture(attention="none", lossnet=False),
    )
    today, older = (recipes(card.model_copy(update={"parameters": {"train": one}})) for one in (train, before))
    assert today == older
    changed = recipes(card.model_copy(update={"parameters": {"train": {**before, "rarity": 1.0}}}))
    assert changed["lesson"] != today["lesson"]


@pytest.mark.slow
@pytest.mark.parametrize("words", ["today's", "before"])
def test_another_device_or_precision_makes_no_other_model_of_what_was_withdrawn(site: Site, words: str) -> None:
    site.candidate(0)
    site.ask()
    site.candidate(1, parameters=PARAMETERS)
    site.ask()
    champion.roll_back(site.workspace, "it takes smudges for lymphocytes")
    if words == "before":  # a word that names all parameters only
        (name,) = [name for name, text in site.tracker.model_tags().items() if '"withdrawn"' in text]
        word = json.loads(site.tracker.model_tags()[name])
        del word["lesson"]
        site.tracker.tag_model(name, json.dumps(word))
    site.candidate(1, rounding=1e-6, parameters=PARAMETERS)
    assert "a person must decide" in site.ask().question
    elsewhere = {"train": {"ema": 0.9, "devices": 2, "accelerator": "cuda"}, "size": {"updates": 40, "precision": "32-true"}}
    site.candidate(1, rounding=2e-6, parameters={**PARAMETERS, "preset": "copy of small", **elsewhere})
    decision = site.ask()
    assert decision.promoted == (words == "before"), "what a word of before does not name it does not bind"
    if words == "before":
        return
    assert "same labels and parameters" in decision.reason
    assert "has not answered" in decision.reason, "a person is asked once"
    assert decision.question == ""
    for parameters in ({"seed": 2}, {"train": {**PARAMETERS["train"], "ema": 0.5}}):  # which a person changed
        site.candidate(1, rounding=3e-6, parameters={**PARAMETERS, **parameters})
        assert site.ask().promoted


def test_a_retraining_changes_no_parameter_that_names_the_model(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrain.labels, "check_replayed", lambda workspace: None)
    before = site.params
    retrain._begin(site.workspace, False, Progress())
    note_after_cycle(site.workspace, 7)
    named = {"preset", "seed", "model", "train", "presets", "few_labels"}
    assert site.params.model_dump(include=named) == before.model_dump(include=named)


def test_other_labels_or_parameters_are_another_model(site: Site) -> None:
    for seed in (1, 2):
        site.candidate(seed)
        site.ask()
    champion.roll_back(site.workspace, "misses blasts")
    site.candidate(2, rounding=1e-6, parameters={"seed": 2, "train": {"ema": 0.9}})
    assert site.ask().promoted


@pytest.mark.slow
def test_a_word_outlives_its_version(site: Site) -> None:
    for seed in (1, 2):
        site.candidate(seed)
        site.ask()
    champion.roll_back(site.workspace, "misses blasts")
    site.tracker.set_alias("challenger", "1")
    site.tracker.client.delete_model_version("wbc", "2")
    decision = site.ask()
    assert not decision.promoted
    assert "misses blasts" in decision.reason


def test_a_rollback_passes_over_what_was_withdrawn(site: Site) -> None:
    for seed in (1, 2, 3):
        site.candidate(seed)
        site.ask()
    champion.roll_back(site.workspace, "three is bad")
    site.candidate(4)
    site.ask()
    assert site.version() == "4"
    champion.roll_back(site.workspace, "so is four")
    champion.roll_back(site.workspace, "and two")
    assert site.version() == "1"
    with pytest.raises(WbcError, match="version 1 was the first champion; `wbc champion --rollback"):
        champion.roll_back(site.workspace, "and one", steps=2)
    assert champion.roll_back(site.workspace, "and one")["rolled_back"]["to"] is None
    assert not (site.workspace / "models/champion").exists()
    champion.promote(site.workspace, "2", "better than none")
    site.tracker.tag_version("2", {"wbc.gate.before": "1"})
    with pytest.raises(
        WbcError, match="version 2 is the last: those before it were withdrawn or deleted; `wbc champion --rollback"
    ):
        champion.roll_back(site.workspace, "two again", steps=2)
    assert champion.roll_back(site.workspace, "two again")["rolled_back"]["withdrawn"] == ["2"]


class Opened:
    """What a service loads, as far as this store of made-up models can be loaded."""

    def __init__(self, directory: Path) -> None:
        self.card = read_card(directory)

    @classmethod
    def open(cls, directory: Path) -> "Opened":
        return cls(directory)


def test_a_rollback_goes_back_any_number_of_steps(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2, 3, 4, 5):
        site.candidate(seed)
        assert site.ask().promoted
    served: list[str] = []
    monkeypatch.setattr("serving.inference.champion.Classifier", Opened)
    watch = ChampionWatch(site.workspace / "models/champion", lambda opened: served.append(opened.card.version))
    watch.load()
    answer = champion.roll_back(site.workspace, "blasts since the spring", "Ada", 3)
    for _ in range(2):  # a service looks every second, and takes in what has settled
        watch.look()
    assert served[1:] == [answer["rolled_back"]["model"]]
    assert answer["rolled_back"]["withdrawn"] == ["5", "4", "3"]
    assert (answer["rolled_back"]["from"], answer["rolled_back"]["to"], site.version()) == ("5", "2", "2")
    text = champion.champions_text(answer).splitlines()
    assert text[0] == f"version 2 ({read_card(site.workspace / 'models/champion').version}) is champion in the place of version 5"
    assert text[1].startswith("versions 5, 4 and 3 were withdrawn: no retraining brings them back")
    words = {one["version"]: one["word"] for one in answer["versions"]}
    assert {version: word["word"] for version, word in words.items() if word} == {
        "2": "promoted",
        **dict.fromkeys(("3", "4", "5"), "withdrawn"),
    }
    for seed in (3, 4, 5):  # nor does the next retraining bring one of them back
        site.candidate(seed)
        refused = site.ask()
        assert not refused.promoted
        assert f"version {seed} was withdrawn by Ada" in refused.reason
        assert site.version() == "2"
    champion.promote(site.workspace, "4", "the blasts were ours")
    assert site.version() == "4"
    champion.roll_back(site.workspace, "no, they were not")
    assert site.version() == "2", "the one that 4 took the place of"


@pytest.mark.slow
def test_a_rollback_that_leads_nowhere_says_what_there_is(site: Site) -> None:
    for seed in (1, 2, 3):
        site.candidate(seed)
        site.ask()
    ways = "1 leads to version 2, 2 leads to version 1; `wbc champion --promote VERSION"
    for steps in (0, 3, 40):
        with pytest.raises(WbcError, match=f"{steps} steps back from version 3 lead nowhere: {ways}"):
            champion.roll_back(site.workspace, "too far", "Ada", steps)
    assert site.version() == "3"
    assert not verdicts(site.tracker), "nothing was said"
    files = (site.workspace / "mlartifacts").rglob(WEIGHTS)
    for path in [path for path in files if file_sha256(path) == site.tracker.version_tags("2")["wbc.weights_sha256"]]:
        shutil.rmtree(path.parent)
    with pytest.raises(WbcError, match="the files of version 2 cannot be had"):
        champion.roll_back(site.workspace, "half", "Ada", 2)
    assert (site.version(), verdicts(site.tracker)) == ("3", [])


@pytest.mark.parametrize("survives", [3, *(pytest.param(count, marks=pytest.mark.slow) for count in (0, 1, 2))])
def test_a_rollback_that_was_killed_is_finished_by_the_same_command(
    site: Site, survives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    for seed in (1, 2, 3, 4):
        site.candidate(seed)
        site.ask()
    real, done = Tracker.tag_model, 0

    def tag_model(self: Tracker, name: str, value: str) -> None:
        nonlocal done
        if done == survives:
            raise Killed
        done += 1
        real(self, name, value)

    monkeypatch.setattr(Tracker, "tag_model", tag_model)
    with pytest.raises(Killed):
        champion.roll_back(site.workspace, "misses blasts", "Ada", 3)
    monkeypatch.undo()
    assert site.tracker.alias("champion") == "4", "the alias comes last"
    champion.roll_back(site.workspace, "misses blasts", "Ada", 3)
    assert site.version() == "1"
    words = {one.version: one.word for one in verdicts(site.tracker)}
    assert words == {"1": "promoted", "2": "withdrawn", "3": "withdrawn", "4": "withdrawn"}


@pytest.mark.slow
def test_the_number_of_steps_is_read_from_the_command_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2, 3):
        site.candidate(seed)
        site.ask()
    monkeypatch.chdir(site.workspace)
    run = functools.partial(CliRunner().invoke, app)
    assert run(["champion", "2"]).exit_code == 2
    assert "0 steps back from version 3 lead nowhere" in str(run(["champion", "--rollback", "0", "--reason", "x"]).exception)
    done = run(["champion", "--rollback", "2", "--reason", "x", "--by", "Ada", "--json"])
    assert json.loads(done.stdout)["rolled_back"]["withdrawn"] == ["3", "2"]
    assert site.version() == "1"


def test_a_refusal_is_not_remembered_when_the_rules_changed(site: Site) -> None:
    site.candidate(1)
    set_params(site.workspace, {f"gate.recall_floor.{name}": 0.99 for name in CLASSES})
    refused = site.ask()
    assert not refused.promoted
    assert refused.asked
    repeated = site.ask()
    assert (repeated.promoted, repeated.asked) == (False, False), "the same question need not wear the test pool out"
    set_params(site.workspace, {f"gate.recall_floor.{name}": 0.0 for name in CLASSES})
    decision = site.ask()
    assert decision.asked
    assert decision.promoted


def test_a_refusal_is_not_remembered_when_a_label_of_the_test_pool_changed(site: Site) -> None:
    site.candidate(1)
    set_params(site.workspace, {f"gate.recall_floor.{name}": 0.99 for name in CLASSES})
    first = site.ask()
    pools = Pools.read(site.workspace / "data/pools")
    test = pools.frames["test"]
    test.loc[0, "label"] = next(name for name in CLASSES if name != test.loc[0, "label"])
    pools.write(site.workspace / "data/pools")
    second = site.ask()
    assert second.test_pool == first.test_pool, "the cells are the same"
    assert second.asked


def test_the_question_has_every_input_in_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.candidate(1)
    one = read_card(site.workspace / "models/candidate")
    site.candidate(2)
    two = read_card(site.workspace / "models/candidate")
    test, rules = usable_pools(site.workspace).frames["test"], read_params(site.workspace / "params.yaml").gate
    keys = {
        gate.question_key(one, two, test, rules),
        gate.question_key(two, one, test, rules),
        gate.question_key(one, None, test, rules),
        gate.question_key(one, two, test.iloc[1:], rules),
        gate.question_key(one, two, test, rules.model_copy(update={"alpha": 0.5})),
    }
    assert gate.question_key(one, two, test.iloc[::-1], rules) in keys
    monkeypatch.setattr("flows.pipeline.fingerprint.fingerprint", lambda entry: "other code")
    assert len(keys | {gate.question_key(one, two, test, rules)}) == 6


# --- the registry decides ------------------------------------------------------------------------------------------------


def test_the_workspace_follows_an_alias_that_was_moved_in_mlflow(site: Site) -> None:
    for seed in (1, 2):
        site.candidate(seed)
        site.ask()
    site.tracker.client.set_registered_model_alias("wbc", "champion", "1")
    line = champion.followed(site.workspace)
    assert line is not None
    assert line.startswith("the registry's champion is version 1 (")
    assert "takes the place of version 2" in line
    assert site.version() == "1"
    assert champion.followed(site.workspace) is None
    decision = site.ask()  # of version 2: whoever moved the alias has decided
    assert not decision.promoted
    assert "the alias was moved in MLflow" in decision.reason


COMMANDS = {
    "status": ["status"],
    "onboard": ["onboard", "cells"],
    "onboard --model": ["onboard", "cells", "--model", "models/champion"],
    "serve": ["serve"],
    "serve --model": ["serve", "--model", "models/champion"],
    "evaluate": ["evaluate", "--model", "models/champion", "--data", "cells"],
    "calibrate": ["calibrate", "--model", "models/champion", "--data", "cells", "--out", "calibrated"],
}


def one_command(name: str) -> Any:
    """A case; two of them are tried each time."""
    return pytest.param(COMMANDS[name], id=name, marks=[] if name in ("evaluate", "serve") else pytest.mark.slow)


@pytest.mark.parametrize("command", map(one_command, COMMANDS))
def test_every_command_that_takes_the_champion_follows_first(
    site: Site, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        site.candidate(seed)
        site.ask()
    site.tracker.client.set_registered_model_alias("wbc", "champion", "1")
    monkeypatch.chdir(site.workspace)

    def enough(*arguments: object) -> None:  # what comes after is not looked at here
        raise WbcError("enough")

    (site.workspace / "cells").mkdir()
    for place in (
        "flows.sites.onboard.ingest",
        "flows.cli.serve.serve",
        "flows.pipeline.stages.evaluate_model",
        "flows.sites.calibration.calibrate",
    ):
        monkeypatch.setattr(place, enough)
    monkeypatch.setattr("flows.sites.onboard.refuse_another_site", lambda *arguments: None)
    answer = CliRunner().invoke(app, command)
    said = answer.output + answer.stderr
    assert site.version() == "1", said
    assert "the registry's champion is version 1 (" in said


def test_status_says_why_the_workspace_does_not_follow(site: Site) -> None:
    for seed in (1, 2):
        site.candidate(seed)
        site.ask()
    champion.roll_back(site.workspace, "misses blasts")
    site.tracker.client.set_registered_model_alias("wbc", "champion", "2")
    (note,) = status(site.workspace)["notes"]
    assert "version 2 was withdrawn" in note
    assert f"champion: {note}\n" in status_text(status(site.workspace))


def test_status_says_that_the_champion_is_of_another_registry(site: Site) -> None:
    site.candidate(1)
    site.ask()
    assert status(site.workspace)["notes"] == []
    set_params(site.workspace, {"tracking.uri": "sqlite:///other.db"})
    (unmade,) = status(site.workspace)["notes"]
    assert "which the registry of tracking.uri in params.yaml does not have" in unmade
    assert not (site.workspace / "other.db").exists(), "who only tells makes no registry"
    open_tracker(site.workspace, site.params)
    assert status(site.workspace)["notes"] == [unmade]
    set_params(site.workspace, {"tracking.uri": "sqlite:///mlflow.db"})
    assert status(site.workspace)["notes"] == []


def test_the_workspace_does_not_follow_to_a_withdrawn_version_and_says_why(site: Site) -> None:
    for seed in (1, 2):
        site.candidate(seed)
        site.ask()
    champion.roll_back(site.workspace, "misses blasts")
    site.tracker.client.set_registered_model_alias("wbc", "champion", "2")
    with pytest.raises(WbcError, match=r"names version 2, but version 2 was withdrawn.*misses blasts"):
        champion.followed(site.workspace)
    assert "misses blasts" in champion.champions(site.workspace)["notes"][0]
    champion.promote(site.workspace, "1", "as before")
    assert site.version() == "1"


def test_an_alias_that_was_taken_away_is_said(site: Site) -> None:
    site.candidate(1)
    site.ask()
    site.tracker.client.delete_registered_model_alias("wbc", "champion")
    with pytest.raises(WbcError, match="models/champion holds version 1: somebody took MLflow's alias away"):
        champion.followed(site.workspace)


def test_damaged_files_of_the_registry_are_not_followed(site: Site) -> None:
    for seed in (1, 2):
        site.candidate(seed)
        site.ask()
    (weights,) = (site.workspace / "mlartifacts").rglob(f"{read_run(site, '1')}/artifacts/model/{WEIGHTS}")
    weights.chmod(0o644)
    weights.write_bytes(b"not these")
    site.tracker.client.set_registered_model_alias("wbc", "champion", "1")
    with pytest.raises(WbcError, match="is damaged"):
        champion.followed(site.workspace)
    shutil.rmtree(weights.parent)
    with pytest.raises(WbcError, match="the files of version 1 cannot be had"):
        champion.followed(site.workspace)
    assert file_sha256(site.workspace / "models/champion" / WEIGHTS) == site.tracker.version_tags("2")["wbc.weights_sha256"]


def read_run(site: Site, version: str) -> str:
    return str(site.tracker.client.get_model_version("wbc", version).run_id)


def test_the_same_packaged_model_is_one_version(site: Site) -> None:
    site.candidate(1)
    first, again = site.ask(), site.ask()
    assert (first.in_place, again.in_place) == (False, True)
    assert (first.new_champion, again.new_champion) == (True, False), "one that only stays has no star on the learning curve"
    site.candidate(2)
    site.ask()
    site.candidate(1)
    site.ask()
    assert [str(version.version) for version in site.tracker.versions()] == ["2", "1"]
    lines = champion.champions_text(champion.champions(site.workspace)).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("version ")] == ["2", "1"], "each has its reason below it"
    assert lines[-1].startswith(("  the first champion", "  not worse than the champion"))
    assert objection(site.tracker, read_card(site.workspace / "models/candidate"), "1") is None
    assert verdicts(site.tracker) == []
    note = json.loads((site.workspace / "models/gate.json").read_text())
    assert note["version"] == "1"


# --- labels that were corrected ------------------------------------------------------------------------------------------


def correct(site: Site, pool: str) -> None:
    """A person puts a label of this pool right; of the test pool's cell, that it is no leukocyte at all."""
    cell = Pools.read(site.workspace / "data/pools").frames[pool].iloc[0]
    other = next(name for name in CLASSES if name != cell["label"]) if pool != "test" else "Artefact"
    decide(site.workspace, cell["sha256"], other, "Ada", "seen at the microscope", 1)


def test_what_rests_on_a_corrected_label_is_marked_and_made_again(site: Site) -> None:
    site.candidate(2)
    site.ask()
    assert champion.champions(site.workspace)["notes"] == []
    folder = site.workspace / "models/champion"
    before = read_card(folder)
    correct(site, "validation")
    correct(site, "test")
    notes = champion.champions(site.workspace)["notes"]
    assert [note.split(" rest")[0] for note in notes] == [
        "metrics.json",
        "the champion's temperature, prediction sets and validation scores",
        "the champion's test scores",
    ]
    marked = read_card(folder)
    assert {name: marked.metrics[name]["out_of_date"] for name in ("validation", "test")} == {"validation": 1, "test": 1}
    assert "1 of these labels were corrected since" in (folder / "README.md").read_text()

    result = champion.rescore(site.workspace)
    assert any("made again" in note for note in result["notes"])
    after = read_card(folder)
    assert "out_of_date" not in after.metrics["validation"] | after.metrics["test"]
    assert after.metrics["test"]["n"] == after.cells["test"].count
    assert after.temperature != before.temperature
    assert after.version == f"{before.version}+{after.version.split('+')[1]}"
    assert after.sha256[WEIGHTS] == before.sha256[WEIGHTS]
    assert site.version() == "2"
    assert site.tracker.digest("2") == packaged_digest(after)
    assert champion.followed(site.workspace) is None
    assert "no label that the champion's numbers rest on was corrected" in champion.rescore(site.workspace)["notes"][-1]


@pytest.mark.slow
def test_earlier_points_of_the_curve_and_runs_are_marked_where_their_test_labels_were_corrected(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("wbc_model.evaluation.plots.save_figure", lambda figure, path: drawn.append(figure) or path)
    site.candidate(1)
    test = usable_pools(site.workspace).frames["test"]
    wrong, right = test["sha256"].iloc[0], test["sha256"].iloc[1]
    fewer = test[test["sha256"] != wrong]  # the second cycle was scored without the cell, the third with what it was then
    rows: list[dict[str, Any]] = []
    runs = [site.tracker.cycle(site.tracker.retraining("curve", site.params), "curve", number) for number in range(3)]
    for number, (frame, run) in enumerate(zip((test, fewer, test), runs, strict=True)):
        numbers = {"accuracy": 0.5 + number / 10, "macro_f1": 0.4, "intervals": {}, "n": len(frame)}
        scored = CellFilter.of(frame["sha256"].tolist(), frame["label"].tolist()).model_dump()
        row = {"cycle": number, "labels": 10 * (number + 1), "strategy": "random", "pools": f"pools-v{number}"}
        rows.append({**row, "accuracy": numbers["accuracy"], "macro_f1": 0.4, "metrics": numbers, "scored": scored})
        frame[["sha256", "label"]].to_csv(site.workspace / "predictions.csv", index=False)
        site.tracker.put(run, site.workspace / "predictions.csv")
        site.tracker.client.set_tag(run, COMPLETE, "yes")
    del rows[2]["scored"]  # as a version before this one wrote it: nothing is known of it
    State("curve", "", "2026-01-01T00:00:00+00:00", 0, False, rows=rows).write(site.workspace)
    assert curve.write_curve(site.workspace, rows) == 0
    assert [text.get_text() for text in drawn[-1].legends[0].get_texts()] == ["test pool"]
    labels = dict(zip(test["sha256"], test["label"], strict=True))
    for cell, other in ((wrong, "Smudge"), (right, next(name for name in CLASSES if name != labels[right]))):
        decide(site.workspace, cell, other, "ada", "a slip", 1)
    lines = scores.mark_history(site.workspace)
    assert lines[0].startswith("2 of 3 points of the learning curve rest on labels that were corrected since")
    assert lines[1].startswith("3 runs in MLflow have scores on")
    table = pd.read_csv(site.workspace / "reports/learning_curve.csv")
    assert table["out_of_date"].tolist() == [2, 1, 0]
    assert table["accuracy"].tolist() == [0.5, 0.6, 0.7]
    lines = [line for axes in drawn[-1].axes for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
    assert [line.get_xydata().tolist() for line in lines] == [[[10, 0.5], [20, 0.6]], [[10, 0.4], [20, 0.4]]]
    assert drawn[-1].legends[0].get_texts()[-1].get_text() == "open: rests on test labels corrected since"
    marks = [site.tracker.client.get_run(run).data.tags.get("wbc.out_of_date") for run in runs]
    assert marks == ["2", "1", "2"]
    for cell in (wrong, right):
        decide(site.workspace, cell, labels[cell], "ada", "it was right", 1)
    assert scores.mark_history(site.workspace) == []
    assert pd.read_csv(site.workspace / "reports/learning_curve.csv")["out_of_date"].tolist() == [0, 0, 0]
    assert "wbc.out_of_date" not in site.tracker.client.get_run(runs[0]).data.tags


def test_a_retraining_makes_the_champions_numbers_again_before_it_compares(site: Site) -> None:
    site.candidate(2)
    site.ask()
    set_params(site.workspace, {"gate.max_accuracy_drop": 0.0, "gate.alpha": 1.0})
    correct(site, "test")
    site.candidate(1)
    assert not site.ask().promoted
    card = read_card(site.workspace / "models/champion")
    assert not card.cells["test"].relabelled(*pool_of(site, "test")).any()
    assert site.version() == "1", "other scores are not another model"


def pool_of(site: Site, name: str) -> tuple[list[str], list[str]]:
    frame = Pools.read(site.workspace / "data/pools").frames[name]
    return frame["sha256"].tolist(), frame["label"].tolist()


# --- disk ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True])
def test_old_models_go_from_the_registry_and_those_that_count_stay(
    site: Site, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files are at an MLflow server (`elsewhere`), no folder of this machine is theirs."""
    for seed in range(1, 5):
        site.candidate(seed)
        site.ask()
    set_params(site.workspace, {"gate.max_accuracy_drop": 0.0, "gate.alpha": 1.0})  # nothing passes any more
    for seed in range(5, 8):
        site.candidate(seed)
        assert not site.ask().promoted
    site.tracker.tag_version("5", {"wbc.keep": "for the paper"})
    if elsewhere:
        monkeypatch.setattr(Tracker, "folder", lambda self, run, name: None)
    said = collect(site.workspace, last=1)
    assert said["versions"] == ["6"], "1 to 4 were champion, 5 is tagged, 7 is the last"
    assert said["frees"] > (site.workspace / "models/candidate/weights.safetensors").stat().st_size
    assert collect(site.workspace, last=1, champions=1)["versions"] == ["6", "2", "1"], "a rollback needs the one before"
    before = {path for path in (site.workspace / "mlartifacts").rglob("*") if path.is_file()}
    assert collect(site.workspace, last=1, delete=True)["versions"] == ["6"]
    gone = before - {path for path in (site.workspace / "mlartifacts").rglob("*") if path.is_file()}
    assert {path.name for path in gone} == {WEIGHTS, ONNX, "model.json", "README.md", "MLmodel"}
    assert [str(version.version) for version in site.tracker.versions()] == ["7", "5", "4", "3", "2", "1"]
    champion.roll_back(site.workspace, "it still can be")
    assert site.version() == "3"


# --- moved and copied ------------------------------------------------------------------------------------------------------


def absolute(workspace: Path) -> None:
    """Put MLflow's paths as versions before relative ones wrote them."""
    root = (workspace / "mlartifacts").as_uri()
    with contextlib.closing(sqlite3.connect(workspace / "mlflow.db")) as connection, connection:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("model_versions", "source")):
            connection.execute(
                f"update {table} set {column} = ? || substr({column}, 12) where {column} like 'mlartifacts%'", (root,)
            )


@pytest.mark.parametrize("made_by", ["today", pytest.param("an earlier version", marks=pytest.mark.slow)])
def test_a_copy_does_not_write_into_the_original_and_a_moved_workspace_works(site: Site, tmp_path: Path, made_by: str) -> None:
    for seed in (1, 2):
        site.candidate(seed)
        site.ask()
    if made_by != "today":
        absolute(site.workspace)
    copy = Site(Path(shutil.copytree(site.workspace, tmp_path / "copy")), rounds=10)
    before = sorted((site.workspace / "mlartifacts").rglob("*"))
    copy.candidate(3)
    assert copy.ask().promoted
    assert sorted((site.workspace / "mlartifacts").rglob("*")) == before
    site.workspace.rename(tmp_path / "elsewhere")
    moved = Site(tmp_path / "elsewhere", rounds=20)
    assert moved.version() == "2"
    champion.roll_back(moved.workspace, "in its new place")
    assert moved.version() == "1"
    assert copy.version() == "3"
    with contextlib.closing(sqlite3.connect(moved.workspace / "mlflow.db")) as connection:
        text = "\n".join(connection.iterdump())
    assert "mlartifacts" in text
    assert str(tmp_path) not in "\n".join(line for line in text.splitlines() if "mlartifacts" in line)


def test_a_damaged_mlflow_database_is_one_line(site: Site) -> None:
    (site.workspace / "mlflow.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(WbcError, match=r"mlflow\.db"):
        champion.champions(site.workspace)
