"""A registered model in MLflow's own hands answers as the service does."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from live import encode, form
from tiny_model import write_model

from flows.tracking import Tracker, open_tracker
from flows.workspace import template
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.params import Params, read_params

SAID = ("label", "probabilities", "prediction_set", "predicted_loss", "review")
COLOURS = [(250, 10, 5), (180, 20, 200), (128, 128, 128), (3, 3, 3)]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tracker, Params]:
    workspace = tmp_path_factory.mktemp("registry")
    (workspace / "params.yaml").write_bytes(template("params.yaml").read_bytes())
    params = read_params(workspace / "params.yaml")
    return open_tracker(workspace, params), params


@pytest.fixture(scope="module")
def champion(registry: tuple[Tracker, Params], model_dir: Path) -> Iterator[Any]:
    """What `mlflow.pyfunc.load_model("models:/wbc@champion")` gives, in the workspace's folder."""
    import mlflow

    tracker, params = registry
    tracker.set_alias("champion", tracker.register(tracker.retraining("one", params), model_dir))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tracker.workspace)
        mlflow.set_tracking_uri("sqlite:///mlflow.db")
        yield mlflow.pyfunc.load_model("models:/wbc@champion")


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The table as the service would say it."""
    return [
        {
            "label": row["label"],
            "probabilities": {name: row[f"probability_{name}"] for name in CLASSES},
            "prediction_set": row["prediction_set"],
            "predicted_loss": row["predicted_loss"],
            "review": {"required": row["review"], "reasons": row["reasons"]},
        }
        for row in table.to_dict("records")
    ]


def test_the_champion_answers_as_the_service_does(champion: Any, client: httpx.Client, tmp_path: Path) -> None:
    images = [encode(colour) for colour in COLOURS]
    served = client.post("/v1/classify", files=form(*images)).json()["results"]
    expected = [{name: one[name] for name in SAID} for one in served]
    assert rows(champion.predict(images)) == expected
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for path, data in zip(paths, images, strict=True):
        path.write_bytes(data)
    table = champion.predict(pd.DataFrame({"path": [str(path) for path in paths]}, index=list("abcd")))
    assert rows(table) == expected
    assert table.index.tolist() == list("abcd")
    assert rows(champion.predict(images[0])) == expected[:1]


def test_an_image_that_cannot_be_read_has_a_row_that_says_why(champion: Any) -> None:
    table = champion.predict([encode(COLOURS[0]), b"no image"])
    assert table["label"].isna().tolist() == [False, True]
    assert table["rejected"].isna().tolist() == [True, False]
    assert "image" in table["rejected"].iloc[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (pd.DataFrame({"a": [b""], "b": [b""]}), "give one column, of image bytes or of paths"),
        (["missing.png"], "missing.png cannot be read: No such file or directory"),
        ([3], "image 0 is of type int: give the bytes of an image file, or its path"),
    ],
)
def test_what_is_no_image_is_one_line(registry: tuple[Tracker, Params], model_dir: Path, given: object, said: str) -> None:
    from flows.registry.pyfunc import ServedModel

    with pytest.raises(WbcError, match=said):
        ServedModel(model_dir).predict(given)


def test_another_process_loads_it_without_pickle(champion: Any, registry: tuple[Tracker, Params]) -> None:
    code = (
        "import pickle, sys; pickle.Unpickler = pickle.load = pickle.loads = None\n"
        "import cloudpickle; cloudpickle.load = cloudpickle.loads = None\n"
        "import mlflow; mlflow.set_tracking_uri('sqlite:///mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/wbc/1')\n"
        "print(model.predict(sys.stdin.buffer.read())['label'].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=registry[0].workspace, input=encode(COLOURS[0]), capture_output=True, check=False
    )
    assert done.stdout.decode().strip() == "['Eosinophil']", done.stderr.decode()


def test_the_registry_keeps_the_model_once(champion: Any, registry: tuple[Tracker, Params], tmp_path: Path) -> None:
    tracker, params = registry
    assert len(list((tracker.workspace / "mlartifacts").rglob("model.onnx"))) == 1
    write_model(tmp_path / "again")
    assert tracker.register(tracker.retraining("two", params), tmp_path / "again") == "1"
    assert len(list((tracker.workspace / "mlartifacts").rglob("model.onnx"))) == 1
    tracker.fetch("1", tmp_path / "fetched")
    files = {path.name for path in (tmp_path / "fetched").iterdir()}
    assert files == {"model.json", "model.onnx", "weights.safetensors", "README.md"}, "what is served has the model's files alone"


def test_runs_models_and_versions_say_what_they_are(champion: Any, registry: tuple[Tracker, Params]) -> None:
    tracker, _ = registry
    run = tracker.client.get_run(str(tracker.client.get_model_version("wbc", "1").run_id))
    tags = run.data.tags
    assert tags["mlflow.user"]
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.source.name"]
    version = tracker.client.get_model_version("wbc", "1")
    assert version.description.startswith("Model tiny-1, trained on labelled cells")
    assert version.tags["wbc.retraining"] == "one"
    assert {"wbc.preset", "wbc.strategy", "wbc.seed", "wbc.rendered"} <= version.tags.keys()
    assert "models:/wbc@champion" in tracker.client.get_registered_model("wbc").description
