"""The model directory: the same answers from torch, ONNX on OpenVINO and the directory read back; damage is found."""

import json
from pathlib import Path

import numpy as np
import openvino
import pytest

from tests.conftest import NARROW
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import CARD, ONNX, README, WEIGHTS, Architecture, ModelCard, Normalisation, read_card
from wbc_model.core.out_of_distribution import Normal, OutOfDistribution
from wbc_model.network.card_page import render_readme
from wbc_model.network.model_directory import load_model, save_model
from wbc_model.network.predict import predict
from wbc_model.network.resnet import MEAN, STD, AttentionResNet18


def card(attention: str = "cbam", lossnet: bool = True, norm: str = "batch") -> ModelCard:
    return ModelCard(
        version="",
        input_size=64,
        normalisation=Normalisation(mean=MEAN, std=STD),
        architecture=Architecture(attention=attention, lossnet=lossnet, norm=norm),
    )


@pytest.mark.parametrize(
    ("attention", "lossnet", "norm"),
    [
        ("cbam", True, "batch"),
        ("eca", True, "batch"),
        ("srm", True, "batch"),
        ("none", False, "batch"),
        ("cbam", True, "group"),
        ("srm", True, "group"),
        ("none", False, "frozen"),
    ],
)
def test_torch_and_onnx_agree(attention: str, lossnet: bool, norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (attention, norm) != ("cbam", "batch"):  # the network that is served has its whole width
        monkeypatch.setattr("wbc_model.network.resnet.STAGE_CHANNELS", NARROW)
    made = AttentionResNet18(attention, lossnet, norm=norm)
    saved = save_model(tmp_path / "model", made, card(attention, lossnet, norm))
    network, read = load_model(tmp_path / "model")
    assert read == saved
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == sorted([WEIGHTS, ONNX, CARD, README])
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    ours = predict(network, [images[:2], images[2:]], embeddings=True)
    compiled = openvino.Core().compile_model(tmp_path / "model" / ONNX, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    theirs = compiled(images)
    np.testing.assert_allclose(ours.logits, theirs["logits"], atol=1e-4)
    np.testing.assert_allclose(ours.predicted_loss, theirs["predicted_loss"], atol=1e-4)
    np.testing.assert_allclose(ours.embedding, theirs["embedding"], atol=1e-3)
    if not lossnet:
        assert not ours.predicted_loss.any()


def test_the_same_network_gives_the_same_files(tmp_path: Path):
    network = AttentionResNet18("none", False)
    first = save_model(tmp_path / "a", network, card("none", False))
    assert first == save_model(tmp_path / "b", network, card("none", False))
    assert first.version == first.sha256[WEIGHTS][:12]


def test_embeddings_and_bf16(tmp_path: Path):
    network = AttentionResNet18("none", False)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    plain, fast = predict(network, [images], embeddings=True), predict(network, [images], autocast=True)
    assert plain.embedding.shape == (4, 512)
    np.testing.assert_allclose(plain.logits, fast.logits, atol=0.1)
    assert network.training  # predicting leaves the network in the mode that it was in


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    save_model(path, AttentionResNet18("none", False), card("none", False))
    return path


def test_damage_is_named(directory: Path, tmp_path: Path):
    import shutil

    def copy(name: str) -> Path:
        return Path(shutil.copytree(directory, tmp_path / name))

    flipped = copy("flipped")
    data = bytearray((flipped / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (flipped / WEIGHTS).write_bytes(data)
    with pytest.raises(WbcError, match=r"weights\.safetensors is damaged"):
        load_model(flipped)
    missing = copy("missing")
    (missing / ONNX).unlink()
    with pytest.raises(WbcError, match=r"model\.onnx is missing"):
        read_card(missing)
    with pytest.raises(WbcError, match="not a model directory"):
        read_card(tmp_path / "nothing")
    other = copy("other")
    content = json.loads((other / CARD).read_text()) | {"classes": ["Lymphocyte", "Basophil"]}
    (other / CARD).write_text(json.dumps(content))
    with pytest.raises(WbcError, match="classes are"):
        read_card(other)
    (other / CARD).write_text("{}")
    with pytest.raises(WbcError, match=r"model\.json: version"):
        read_card(other)


def test_a_clinician_reads_that_cells_were_drawn(tmp_path: Path):
    drawn = card("none", False).model_copy(update={"rendered": True})
    save_model(tmp_path / "drawn", AttentionResNet18("none", False), drawn)
    save_model(tmp_path / "real", AttentionResNet18("none", False), card("none", False))
    warning = "figures say nothing about accuracy on patients"
    assert warning in " ".join((tmp_path / "drawn" / README).read_text().split()).replace("> ", "")
    assert warning not in (tmp_path / "real" / README).read_text()


def test_a_clinician_reads_what_the_service_flags_where_the_card_has_thresholds(tmp_path: Path):
    plain = card("none", False)
    one = Normal(mean=[0.0], precision=[[1.0]])
    known = OutOfDistribution(
        cell=[one], cell_threshold=1.0, site=one, site_threshold=1.0, predicted_loss_threshold=2.0, false_alarms=0.025
    )

    def read(known: OutOfDistribution | None) -> str:
        return " ".join(render_readme(plain.model_copy(update={"out_of_distribution": known})).split())

    assert "it will give them one of its 5 names. ## Where it came from" in read(None)
    for flag in ("not_a_leukocyte", "site_unknown", "high_predicted_loss"):
        assert f"`{flag}`" in read(known)
        assert f"`{flag}`" not in read(None)
    assert "These are flags, not classes" in read(known)
    assert "about 2.5% of the site's own cells" in read(known)
    without_lossnet = known.model_copy(update={"predicted_loss_threshold": None})
    assert "`site_unknown`" in read(without_lossnet)
    assert "high_predicted_loss" not in read(without_lossnet)
