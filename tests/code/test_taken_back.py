"""A person's decision on the champion, taken back: what stands in its place is as it was."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from flows.monitoring.watch import References
from flows.registry import champion
from flows.registry.verdicts import objection
from flows.retraining import gate
from flows.tracking import Tracker, open_tracker
from flows.workspace import set_params, template
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.files import file_sha256
from wbc_model.core.model_card import ONNX, REFERENCE, WEIGHTS, Architecture, ModelCard, Normalisation, read_card
from wbc_model.core.reference import WIDTH, Axes, Reference
from wbc_model.network.card_page import write_card
from wbc_model.params import read_params

FOLDER = "models/champion"


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """A workspace with an MLflow store and no model."""
    workspace = tmp_path_factory.mktemp("taken_back")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(template(name), workspace / name)
    return open_tracker(workspace, read_params(workspace / "params.yaml"))


def registered(tracker: Tracker, accuracy: float) -> str:
    """Register a model, with the test scores of the cycle that made it; returns its number."""
    place = tracker.workspace / f"made/{accuracy}"
    place.mkdir(parents=True)
    save_file({"one": torch.full((1,), accuracy)}, place / WEIGHTS)
    (place / ONNX).write_bytes(b"onnx")
    Reference(Axes(np.zeros(512, np.float32), np.zeros((8, 512), np.float32)), np.full((3, WIDTH), accuracy, np.float32)).write(
        place / REFERENCE
    )
    digests = {name: file_sha256(place / name) for name in (WEIGHTS, ONNX, REFERENCE)}
    card = ModelCard(
        version=digests[WEIGHTS][:12],
        input_size=32,
        normalisation=Normalisation(mean=(0, 0, 0), std=(1, 1, 1)),
        architecture=Architecture(attention="none", lossnet=False),
        pool_version="of the test",
        parameters={"seed": accuracy},
        sha256=digests,
        metrics={"validation": {"accuracy": 0.5}},
    )
    write_card(place, card)
    key = str(accuracy)
    run = tracker.cycle(tracker.retraining(key, read_params(tracker.workspace / "params.yaml")), key, 0)
    (place / "metrics.json").write_text(json.dumps({"accuracy": accuracy, "macro_f1": accuracy, "n": len(CLASSES)}))
    cells = pd.DataFrame({"sha256": [f"{number:064x}" for number in range(len(CLASSES))], "label": CLASSES})
    cells.to_csv(place / "predictions.csv", index=False)
    for name in ("metrics.json", "predictions.csv"):
        tracker.put(run, place / name)
        (place / name).unlink()
    version = tracker.register(run, place)
    tracker.tag_version(version, {"wbc.gate": "refused"})
    return version


def test_decisions_that_are_taken_back_leave_what_was(tracker: Tracker) -> None:
    workspace = tracker.workspace
    first, second = registered(tracker, 0.25), registered(tracker, 0.75)
    champion.promote(workspace, first, "we need one for the course", "ada")
    champion.promote(workspace, second, "another", "ada")
    replaced = References(workspace).of(tracker.card(first).version)
    assert replaced is not None
    assert replaced.rows[0, 0] == 0.25, "what it served yesterday is still compared with what it was made with"
    assert References(workspace).of("unheard of") is None
    champion.roll_back(workspace, "the first was better", "ada")
    card = read_card(workspace / FOLDER)
    assert (card.metrics["test"]["accuracy"], card.cells["test"].count) == (0.25, len(CLASSES)), "its scores come with it"

    answer = champion.roll_back(workspace, "the gate was right", "ada")
    assert (answer["champion"], answer["rolled_back"]["to"]) == (None, None), "before the first there was none"
    assert not (workspace / FOLDER).exists()
    gate.mend(workspace / FOLDER)
    assert not (workspace / FOLDER).exists(), "nothing brings the files back"
    assert champion.followed(workspace) is None
    against = objection(tracker, tracker.card(first), first)
    assert against is not None
    assert "the gate was right" in against.reason
    with pytest.raises(WbcError, match="there is no champion to go back from"):
        champion.roll_back(workspace, "once more", "ada")
    champion.promote(workspace, first, "the course is today", "ada")
    assert objection(tracker, tracker.card(first), first) is None


def test_a_rollback_to_none_that_was_killed_is_finished_by_the_same_command(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tracker.workspace
    version = registered(tracker, 0.5)
    champion.promote(workspace, version, "for the course", "ada")
    tracker.client.delete_model_version_tag(tracker.model_name, version, champion.BEFORE)  # as if it were the first
    with monkeypatch.context() as killed:
        killed.setattr(Tracker, "drop_alias", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            champion.roll_back(workspace, "the gate was right", "ada")
    assert tracker.alias("champion") == version
    assert champion.roll_back(workspace, "the gate was right", "ada")["champion"] is None


def test_a_champion_of_another_registry_is_named(tracker: Tracker) -> None:
    workspace, version = tracker.workspace, registered(tracker, 0.125)
    champion.promote(workspace, version, "for the course", "ada")
    set_params(workspace, {"tracking.uri": "sqlite:///other.db"})
    said = (
        f"models/champion holds model {tracker.card(version).version}, which the registry of tracking.uri in params.yaml does not"
    )
    assert said in "\n".join(champion.champions(workspace)["notes"])
    with pytest.raises(WbcError, match=re.escape(said)):
        champion.roll_back(workspace, "the gate was right", "ada")
    set_params(workspace, {"tracking.uri": "sqlite:///mlflow.db"})
    assert champion.champions(workspace)["notes"] == []
