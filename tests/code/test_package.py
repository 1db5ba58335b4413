"""The stage `package` on a tiny workspace: int8 where the gate lets it, the same bytes each time, nothing reported to anyone."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pandas as pd
import pytest
import torch
from PIL import Image

from flows.pipeline.package import BENTO, PACKAGED_MODEL, package
from flows.workspace import set_params
from serving.inference.classify import Classifier
from tests.code.test_flow import environment
from tests.pools import ingest
from wbc_model.core.classes import CLASSES
from wbc_model.core.model_card import INT8, Architecture, ModelCard, Normalisation, read_card
from wbc_model.network.model_directory import save_model
from wbc_model.network.resnet import MEAN, STD, AttentionResNet18
from wbc_model.params import read_params

pytestmark = pytest.mark.usefixtures("narrow")
ROOT = Path(__file__).parents[2]
# The command, noting each socket that is opened or name that is looked up in its process.
COMMAND = """
import sys
events = open("network.txt", "w")
sys.addaudithook(lambda event, _: event.startswith("socket.") and print(event, file=events, flush=True) or None)
from flows.cli import main
sys.argv = ["wbc", "package", "--json"]
main()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with 40 cells of noise and a candidate with random weights, which is sure of nothing."""
    folder = tmp_path_factory.mktemp("package")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        rows.append([f"{number}.png", CLASSES[number % 5], ("train", "val", "test", "test")[number // 10]])
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(folder / "manifest.csv", index=False)
    root = folder / "site"
    root.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    ingest(folder / "manifest.csv", root / "data", read_params(root / "params.yaml"))
    torch.manual_seed(0)
    card = ModelCard(
        version="random",
        input_size=32,
        normalisation=Normalisation(mean=MEAN, std=STD),
        architecture=Architecture(attention="cbam", lossnet=True),
    )
    save_model(root / "models/candidate", AttentionResNet18("cbam", True), card)
    (root / "metrics.json").write_text(json.dumps({"accuracy": 0.5}))
    return root


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "site"))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def found(workspace: Path) -> Any:
    """What the Bento says of int8."""
    return json.loads((workspace / BENTO / "src/metrics.json").read_text())["int8"]


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the build of the Bento, some seconds of BentoML, is given: the model's files and the metrics."""
    given: dict[str, Any] = {}

    def build(model: Path, out: Path, metrics: dict[str, Any]) -> None:
        given.update(model=digests(model), metrics=metrics)

    monkeypatch.setattr("flows.pipeline.package.build_bento", build)
    return given


def quick(model: Path, views: object, out: Path) -> None:
    """In the place of the quantisation, which takes a minute: the graph as it is, by its other name."""
    openvino.save_model(openvino.Core().read_model(model / "model.onnx"), out / INT8[0])


def test_where_the_gate_lets_it_int8_is_handed_over_and_the_candidate_stays_as_it_is(
    workspace: Path, handed_over: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.pipeline.quantise.write_int8", quick)
    candidate = digests(workspace / "models/candidate")
    said = [package(workspace)["int8"] for _ in range(2)]
    assert said[0] == said[1]
    assert (said[0]["served"], said[0]["cells"], said[0]["reasons"]) == (True, 20, [])
    assert set(INT8) <= set(handed_over["model"])
    assert handed_over["metrics"]["int8"] == said[0]
    assert digests(workspace / "models/candidate") == candidate, "it is another stage's output"


@pytest.mark.slow
def test_it_serves_int8_with_the_same_bytes_each_time_and_reports_nothing(
    workspace: Path, tmp_path: Path, handed_over: dict[str, Any]
) -> None:
    candidate = digests(workspace / "models/candidate")
    home = tmp_path / "home"
    home.mkdir()
    values = {name: value for name, value in environment().items() if name not in ("CI", "NNCF_CI", "NNCF_DEV")}
    values |= {"HOME": str(home), "PYTHONHASHSEED": "1", "WBC_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", COMMAND], cwd=workspace, env=values, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout)
    assert said["wrote"] == [BENTO]
    assert (said["int8"]["served"], said["int8"]["cells"], said["int8"]["reasons"]) == (True, 20, [])
    assert found(workspace) == said["int8"]
    assert set(INT8) <= set(read_card(workspace / PACKAGED_MODEL).sha256)
    assert Classifier.open(workspace / PACKAGED_MODEL).engine.reduced
    assert digests(workspace / "models/candidate") == candidate, "it is another stage's output"
    assert (workspace / "network.txt").read_text() == ""
    assert not (home / "intel").exists(), "where openvino_telemetry notes that it was used"
    package(workspace)  # in another process, with other threads and another order of sets
    assert handed_over["model"] == digests(workspace / PACKAGED_MODEL)


def test_where_the_gate_does_not_let_it_the_bento_is_as_before_and_says_why(
    workspace: Path, handed_over: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.pipeline.quantise.write_int8", quick)
    monkeypatch.setattr("flows.pipeline.quantise.ACCURACY_POINTS", -1.0)
    result = package(workspace)
    assert (result["int8"]["served"], result["int8"]["reasons"]) == (False, ["accuracy falls by 0.00 points"])
    assert handed_over == {
        "model": digests(workspace / "models/candidate"),
        "metrics": {"accuracy": 0.5, "int8": result["int8"]},
    }


def test_it_is_left_out_where_the_parameters_say_so(workspace: Path, handed_over: dict[str, Any]) -> None:
    set_params(workspace, {"package.int8": False})
    assert package(workspace)["int8"] == {"served": False, "reasons": ["package.int8 in params.yaml is false"]}
    assert handed_over["model"] == digests(workspace / "models/candidate")
    assert not handed_over["metrics"]["int8"]["served"]
