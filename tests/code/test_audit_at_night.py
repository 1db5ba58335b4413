"""The nightly audit: one line where all is well, else a line for each thing that is not."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.monitoring import audit as audit_module
from flows.monitoring.audit import audit
from flows.pipeline import checks
from flows.pipeline.checks import ChecksStopped
from flows.pipeline.data_docs import Line
from flows.pipeline.package import build_bento
from tests.data.test_from_reports import FILES
from tests.model.test_export import card
from tests.pools import ingest
from wbc_model.cells.store import ImageStore
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.network.model_directory import save_model
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.params import read_params

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of forty drawn cells in their pools, ten of them test cells."""
    folder = tmp_path_factory.mktemp("audit")
    rows = []
    for number, data in enumerate(FILES):
        (folder / f"{number}.png").write_bytes(data)
        rows.append([f"{number}.png", CLASSES[number % 5], "test" if number < 10 else "val" if number < 20 else "train"])
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(folder / "manifest.csv", index=False)
    root = folder / "site"
    root.mkdir()
    (root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    ingest(folder / "manifest.csv", root / "data", read_params(root / "params.yaml"))
    (root / "dvc.yaml").write_text("stages: {}\n")
    return root


@pytest.fixture
def workspace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "site"
    shutil.copytree(made, root)
    monkeypatch.delenv("WBC_AUDIT_LOG", raising=False)
    return root


def damage(path: Path) -> None:
    """Change one byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def said(label: str, sure: float) -> dict[str, object]:
    rest = dict.fromkeys(CLASSES, (1 - sure) / 4)
    return {"status": "ok", "label": label, "probabilities": {**rest, label: sure}}


def test_answers_may_differ_by_what_int8_costs_and_no_more() -> None:
    cells = ["a" * 64, "b" * 64, "c" * 64, "d" * 64]
    ours = [said("Monocyte", 0.95), said("Monocyte", 0.95), said("Monocyte", 0.6), said("Monocyte", 0.6)]
    theirs = [said("Monocyte", 0.91), said("Monocyte", 0.8), said("Neutrophil", 0.6), {"status": "rejected"}]
    assert list(audit_module._differences(cells, ours, theirs)) == [
        f"cell {'b' * 12} through champion and Bento: probabilities differ by 0.15, 0.1 is allowed",
        f"cell {'c' * 12} through champion and Bento: Monocyte and Neutrophil",
        f"cell {'d' * 12} through champion and Bento: ok and rejected",
    ]


def test_an_audit_log_is_missed_once_the_service_has_begun_it(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert audit_module._log(workspace) == ("", [])
    log = workspace / "data/audit.jsonl"
    log.with_name("audit.jsonl.head").touch()
    assert audit_module._log(workspace) == ("", [f"{log}: the service's audit log is not there"])
    elsewhere = workspace / "volume/audit.jsonl"
    monkeypatch.setenv("WBC_AUDIT_LOG", str(elsewhere))
    assert audit_module._log(workspace) == ("", []), "as in a stack before its first champion"
    card = workspace / "models/champion/model.json"
    card.parent.mkdir(parents=True)
    card.touch()
    assert audit_module._log(workspace) == ("", [f"{elsewhere}: the service's audit log is not there"])


def test_each_thing_that_is_wrong_is_a_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "_pools", lambda _: ("", ["pools: something"]))
    shutil.copy(ROOT / "tests/service/audit-2026-11.jsonl", workspace / ".wbc-audit.jsonl")
    shutil.copy(ROOT / "tests/service/audit-2026-11.jsonl.head", workspace / ".wbc-audit.jsonl.head")
    monkeypatch.setenv("WBC_AUDIT_LOG", str(workspace / ".wbc-audit.jsonl"))
    assert audit(workspace).findings == ["pools: something"]
    damage(workspace / ".wbc-audit.jsonl")
    [shard] = ImageStore(workspace / "data/images").shards()
    damage(shard)
    monkeypatch.setattr(audit_module, "_answers", lambda _: (_ for _ in ()).throw(WbcError("models/champion does\nnot answer")))
    found = audit(workspace)
    assert len(found.findings) == 4
    assert found.findings[0].startswith(f"data/images/{shard.name} is damaged: bring it back")
    assert "line" in found.findings[2]
    assert found.findings[3] == "models/champion does not answer"
    assert found.text.count("\n") == 3


def test_a_pool_too_small_to_learn_from_is_no_finding_and_a_wrong_label_is(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An onboarded site has neither test nor validation cells, and nobody to wake for that."""

    def stopped(copy: Path, params: object) -> None:
        (copy / "data/quarantine.csv").write_text("path,sha256,reason,detail\n")
        raise ChecksStopped([Line("test: has 0 cells of Basophil", lacks=True), *wrong], copy / "data/docs/index.html")

    monkeypatch.setattr(checks, "validate", stopped)
    wrong: list[Line] = []
    assert audit(workspace).findings == []
    wrong.append(Line("labelled: 1.png has an unknown label (Monocite)", "a" * 64))
    assert audit(workspace).findings == ["pools: labelled: 1.png has an unknown label (Monocite): `wbc validate` says more"]


@pytest.mark.slow
def test_a_night_in_a_whole_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real checks of the pools, and a real Bento that answers by the code in it."""
    monkeypatch.chdir(workspace)
    text = (workspace / "params.yaml").read_text()
    for name, value in read_params(workspace / "params.yaml").checks.model_dump().items():
        if name.startswith("min_") and isinstance(value, int):
            text = text.replace(f"  {name}: {value}", f"  {name}: 1")
    (workspace / "params.yaml").write_text(text)
    save_model(workspace / "models/champion", AttentionResNet18("none", False), card("none", False))
    build_bento(workspace / "models/champion", workspace / "build/bento")
    before = {path: path.read_bytes() for path in sorted(workspace.rglob("*")) if path.is_file() and ".wbc" not in path.parts}
    run = CliRunner().invoke(app, ["audit"])
    assert run.exit_code == 0, run.output
    assert run.stdout.startswith("all is well: ")
    assert run.stdout.count("\n") == 1
    assert "its Bento answer alike on 10 cells" in run.stdout
    assert {path: path.read_bytes() for path in before} == before, "it changes nothing"

    champion, network = workspace / "models/champion", AttentionResNet18("none", False)
    save_model(champion, network, card("none", False))
    assert "not compared" in audit(workspace).text, "of another model"
    (workspace / "models/champion/weights.safetensors").write_bytes(b"")
    pools = workspace / "data/pools/labelled.csv"
    frame = pd.read_csv(pools, dtype=str, keep_default_na=False)
    frame.loc[0, "label"] = "Lymphocite"
    frame.to_csv(pools, index=False)
    run = CliRunner().invoke(app, ["audit", "--json"])
    assert run.exit_code == 1
    findings = json.loads(run.stdout)["findings"]
    assert len(findings) == 2
    assert "weights.safetensors is damaged" in findings[1]
