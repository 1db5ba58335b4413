"""The engines against hand-computed answers and against each other."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from live import ROOT, clean_environment, encode, of_class
from PIL import Image
from tiny_model import SIZE, expected_logits, expected_probabilities, write_model

from serving.contract.schemas import Classified
from serving.inference.classify import SURE, Classifier
from serving.inference.engine import SMALL_CHUNK, Answer, OpenVinoEngine, open_engine
from wbc_model.core.errors import WbcError
from wbc_model.core.images import View, preprocess
from wbc_model.core.model_card import CARD, Architecture, ModelCard, Normalisation, read_card
from wbc_model.core.probabilities import softmax
from wbc_model.core.twins import twins_of

REAL = Path(os.environ.get("WBC_REAL_DATA", ROOT.parent / "shared" / "data"))


def test_logits_and_predicted_loss_are_the_hand_computed_ones(model_dir: Path) -> None:
    engine = OpenVinoEngine(model_dir, 2)
    colours = np.random.default_rng(0).integers(0, 256, (37, 3))
    images = np.broadcast_to(colours[:, None, None], (37, SIZE, SIZE, 3)).astype(np.uint8)
    exact = engine.infer(images, exact=True)
    assert exact.logits == pytest.approx(np.stack([expected_logits(colour) for colour in colours]), abs=1e-3)
    assert exact.predicted_loss == pytest.approx(colours[:, 0] / 255, abs=1e-4)
    assert engine.infer(images).logits == pytest.approx(exact.logits, abs=0.3)  # bf16


def test_an_answer_is_the_same_bits_however_many_are_computed_together(model_dir: Path) -> None:
    engine = OpenVinoEngine(model_dir, 1)
    assert engine.chunk == SMALL_CHUNK
    images = np.random.default_rng(0).integers(0, 256, (SMALL_CHUNK, SIZE, SIZE, 3)).astype(np.uint8)
    for exact in (False, True):
        whole = engine.infer(images, exact)
        for count in (1, 5, 16):
            parts = [engine.infer(images[start : start + count], exact) for start in range(0, SMALL_CHUNK, count)]
            assert (np.concatenate([part.logits for part in parts]) == whole.logits).all()
            assert (np.concatenate([part.predicted_loss for part in parts]) == whole.predicted_loss).all()


def test_an_answer_stays_as_it_is_when_the_next_one_is_computed(model_dir: Path) -> None:
    engine = OpenVinoEngine(model_dir, 1)
    first = engine.infer(np.full((4, SIZE, SIZE, 3), 10, np.uint8), exact=True)
    engine.infer(np.full((4, SIZE, SIZE, 3), 250, np.uint8), exact=True)
    assert first.logits == pytest.approx(np.tile(expected_logits(np.full(3, 10)), (4, 1)), abs=1e-3)
    assert first.predicted_loss == pytest.approx(np.full(4, 10 / 255), abs=1e-4)


def test_one_engine_serves_many_threads(model_dir: Path) -> None:
    engine = OpenVinoEngine(model_dir, 2)
    wrong: list[int] = []

    def work(value: int) -> None:
        for count in (1, 3, 16):
            images = np.full((count, SIZE, SIZE, 3), value, np.uint8)
            answer = engine.infer(images, exact=True)
            if not np.allclose(answer.logits, expected_logits(np.full(3, value)), atol=1e-3):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(0, 256, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_first_call_of_a_process_is_alone(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two first calls of OpenVINO's binding at once waited for each other for ever, in a stage that packaged a model."""
    engine, inside, most, computed = OpenVinoEngine(model_dir, 4), [], [], OpenVinoEngine._infer

    def watched(self: OpenVinoEngine, images: np.ndarray, exact: bool) -> Answer:
        inside.append(None)
        most.append((OpenVinoEngine.called, len(inside)))
        time.sleep(0.05)
        inside.pop()
        return computed(self, images, exact)

    monkeypatch.setattr(OpenVinoEngine, "_infer", watched)
    monkeypatch.setattr(OpenVinoEngine, "called", False)
    images = np.full((1, SIZE, SIZE, 3), 10, np.uint8)
    with ThreadPoolExecutor(4) as pool:
        first = list(pool.map(engine.infer, [images] * 4))
        later = list(pool.map(engine.infer, [images] * 4))
    assert len({one.logits.tobytes() for one in [*first, *later]}) == 1
    assert most[0] == (False, 1)
    assert {count for _, count in most[:4]} == {1}
    assert max(count for _, count in most[4:]) > 1


def test_what_bf16_is_unsure_of_is_computed_in_float32(model_dir: Path) -> None:
    classifier = Classifier.open(model_dir)
    rng = np.random.default_rng(3)
    files = [encode(tuple(int(v) for v in colour)) for colour in rng.integers(100, 156, (60, 3))]
    pixels = np.stack([preprocess(data, SIZE, "whole") for data in files])
    expected = softmax(classifier.engine.infer(pixels, exact=True).logits, 1.0)
    assert (expected.max(axis=1) < SURE).sum() > 30
    for result, row in zip(classifier.classify_chunk(files), expected, strict=True):
        assert result.status == "ok"
        assert list(result.probabilities.values()) == pytest.approx(row, abs=1e-6 if row.max() < SURE - 0.02 else 0.02)
    classifier.close()


@pytest.mark.parametrize("view", ["whole", "canonical"])
def test_the_service_shows_the_network_the_view_that_the_card_names(tmp_path: Path, view: View) -> None:
    """A small purple disc on cream: most of the crop is background, of the canonical view it is not."""
    write_model(tmp_path, view=view, temperature=8.0)
    y, x = np.mgrid[:200, :200]
    disc = ((x - 60) ** 2 + (y - 70) ** 2 < 15**2)[..., None]
    file = io.BytesIO()
    Image.fromarray(np.where(disc, [90, 40, 150], [240, 225, 205]).astype(np.uint8)).save(file, "PNG")
    classifier = Classifier.open(tmp_path)
    (result,) = classifier.classify_chunk([file.getvalue()])
    classifier.close()
    seen = preprocess(file.getvalue(), SIZE, view).mean(axis=(0, 1))
    assert list(result.probabilities.values()) == pytest.approx(expected_probabilities(seen, 8.0), abs=0.02)
    other = preprocess(file.getvalue(), SIZE, "whole" if view == "canonical" else "canonical").mean(axis=(0, 1))
    assert abs(expected_probabilities(seen, 8.0) - expected_probabilities(other, 8.0)).max() > 0.05


def test_the_same_cell_saved_again_has_a_fingerprint_that_says_so(model_dir: Path) -> None:
    rng = np.random.default_rng(8)
    cells = [
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((300, 300), Image.Resampling.BICUBIC)
        for _ in range(3)
    ]
    files = []
    for cell, kind in [(cells[0], "PNG"), (cells[1], "PNG"), (cells[0], "JPEG"), (cells[2], "BMP")]:
        cell.save(file := io.BytesIO(), kind)
        files.append(file.getvalue())
    classifier = Classifier.open(model_dir)
    seen = classifier.see_chunk([files[0], b"no image", *files[1:]])
    classifier.close()
    assert [one.result.status for one in seen] == ["ok", "rejected", "ok", "ok", "ok"]
    assert seen[1].fingerprint is None
    assert twins_of([one.fingerprint for one in seen if one.fingerprint is not None]) == [None, None, 0, None]


def test_temperature_and_missing_lossnet(tmp_path: Path) -> None:
    write_model(tmp_path, temperature=4.0, architecture=Architecture(attention="none", lossnet=False))
    classifier = Classifier.open(tmp_path)
    [result] = classifier.classify_chunk([encode((200, 30, 60))])
    assert result.status == "ok"
    expected = expected_probabilities(np.array((200, 30, 60)), 4.0)
    assert list(result.probabilities.values()) == pytest.approx(expected, abs=0.02)
    assert result.predicted_loss is None
    classifier.close()


def test_without_a_calibrated_threshold_every_cell_is_ambiguous(tmp_path: Path) -> None:
    write_model(tmp_path, conformal_threshold=0.0)
    classifier = Classifier.open(tmp_path)
    [result] = classifier.classify_chunk([of_class("Monocyte")])
    assert result.status == "ok"
    assert len(result.prediction_set) == 5
    assert result.prediction_set[0] == "Monocyte"
    assert result.review.reasons == ["ambiguous"]
    classifier.close()


def test_the_top_class_is_always_in_the_set(tmp_path: Path) -> None:
    write_model(tmp_path, conformal_threshold=0.999)
    classifier = Classifier.open(tmp_path)
    [result] = classifier.classify_chunk([encode((128, 0, 0))])
    assert result.status == "ok"
    assert result.prediction_set == [result.label]
    classifier.close()


def test_a_graph_that_does_not_fit_its_card_is_named(tmp_path: Path) -> None:
    write_model(tmp_path / "classes", classes=4)
    with pytest.raises(WbcError, match="logits"):
        Classifier.open(tmp_path / "classes")
    write_model(tmp_path / "size", input_size=48)
    with pytest.raises(WbcError, match="does not run on"):
        Classifier.open(tmp_path / "size")
    write_model(tmp_path / "rubbish", sha256={})
    (tmp_path / "rubbish" / "model.onnx").write_bytes(b"rubbish")
    with pytest.raises(WbcError, match=r"model\.onnx"):
        Classifier.open(tmp_path / "rubbish")


def test_engine_names_are_checked(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WBC_ENGINE", "tensorrt")
    with pytest.raises(WbcError, match="openvino"):
        open_engine(model_dir, read_card(model_dir), 1)


SERVED = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from serving import service
from serving.inference.classify import Classifier
from serving.worker import Worker
worker = service.routes.worker = Worker(service.model_directory(), service.present_card())
worker.running.install(Classifier.open(service.model_directory()))
answer = TestClient(service.routes, "http://127.0.0.1").post("/v1/classify", files={"images": ("a", open(sys.argv[1], "rb"))})
assert answer.status_code == 200 and answer.json()["results"][0]["label"] == "Basophil", answer.text
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"torch", "torchvision", "flows", "mlflow", "prefect", "dvc", "pandas", "sklearn", "onnx"}))
print(sorted(name for name in sys.modules if name.startswith("wbc_model.")))
"""


def test_a_request_is_served_without_importing_torch_or_flows(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "cell.png").write_bytes(of_class("Basophil"))
    environment = clean_environment(WBC_MODEL_DIR=str(model_dir), WBC_ENGINE="openvino")
    result = subprocess.run(
        [sys.executable, "-c", SERVED, str(tmp_path / "cell.png")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    heavy, pure = result.stdout.splitlines()
    assert heavy == "[]"
    core = (path.stem for path in (ROOT / "wbc_model/core").glob("*.py") if path.stem != "__init__")
    assert pure == str(["wbc_model.core", *sorted(f"wbc_model.core.{name}" for name in core)])


def _network_directory(directory: Path, size: int) -> None:
    """A real network with random weights and a temperature that makes it about as sure as a trained one."""
    torch = pytest.importorskip("torch")
    export = pytest.importorskip("wbc_model.network.model_directory")
    from wbc_model.network.resnet import AttentionResNet18

    torch.manual_seed(0)
    network = AttentionResNet18("cbam", True, 5).eval()
    card = ModelCard(
        version="random",
        input_size=size,
        normalisation=Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        architecture=Architecture(attention="cbam", lossnet=True),
        temperature=0.05,
        conformal_threshold=0.2,
    )
    export.save_model(directory, network, card)


def _images(count: int) -> list[bytes]:
    files = sorted(REAL.glob("pbc/test/*/*.jpg"))
    if files:
        return [file.read_bytes() for file in files[:: max(1, len(files) // count)][:count]]
    rng = np.random.default_rng(0)
    return [encode(rng.integers(0, 255, (8, 8, 3)).repeat(20, 0).repeat(20, 1), "JPEG") for _ in range(count)]


def test_openvino_answers_as_torch_does(tmp_path: Path) -> None:
    """200 images (real ones where they are there) through both: the same label for each, probabilities within 0.02."""
    _network_directory(tmp_path / "model", 64)
    from wbc_model.network.model_directory import load_model
    from wbc_model.network.predict import predict

    files = _images(200)
    pixels = np.stack([preprocess(data, 64, "whole") for data in files])
    network, card = load_model(tmp_path / "model")
    offline = predict(network, [pixels[:100], pixels[100:]])
    expected = softmax(offline.logits, card.temperature)
    classifier = Classifier(card, OpenVinoEngine(tmp_path / "model", 2), 2)
    results = classifier.classify_chunk(files)
    classifier.close()
    assert len({int(row.argmax()) for row in expected}) > 1, "the network must not say the same of every image"
    for result, row, loss in zip(results, expected, offline.predicted_loss, strict=True):
        assert result.status == "ok"
        assert result.label == card.classes[int(row.argmax())]
        assert list(result.probabilities.values()) == pytest.approx(row, abs=0.02)
        assert result.predicted_loss == pytest.approx(float(loss), abs=0.02 * max(1.0, abs(float(loss))))


def test_the_torch_engine_gives_the_same_numbers(tmp_path: Path) -> None:
    """On the CPU here; on a CUDA device the same code runs."""
    _network_directory(tmp_path / "model", 32)
    from serving.inference.engine import TorchEngine

    engine, other = TorchEngine(tmp_path / "model", "cpu"), OpenVinoEngine(tmp_path / "model", 1)
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    assert engine.infer(images, exact=True).logits == pytest.approx(other.infer(images, exact=True).logits, abs=1e-3)


def test_out_of_distribution_scores_give_their_reasons(model_dir: Path, tmp_path: Path) -> None:
    """A card whose densities are wide except in one number each: the reasons follow from the image by hand."""
    directory = tmp_path / "model"
    shutil.copytree(model_dir, directory)
    card = json.loads((directory / CARD).read_text())
    loose, tight = 1e-6, 1e6
    wide = [[loose if i == j else 0.0 for j in range(9)] for i in range(9)]
    light = [[(tight if i > 2 else loose) if i == j else 0.0 for j in range(6)] for i in range(6)]
    white = float(np.log(np.float32(245)))
    card["out_of_distribution"] = {
        "cell": [{"mean": [0.0] * 9, "precision": wide}],
        "cell_threshold": 1e9,
        "site": {"mean": [0.0] * 3 + [white] * 3, "precision": light},
        "site_threshold": 1.0,
        "predicted_loss_threshold": 2.0,
        "false_alarms": 0.02,
    }
    cell = Image.new("RGB", (64, 64), (245, 245, 245))
    cell.paste((60, 20, 120), (24, 24, 40, 40))
    other_lamp = Image.new("RGB", (64, 64), (245, 220, 180))
    other_lamp.paste((60, 20, 120), (24, 24, 40, 40))
    empty = Image.new("RGB", (64, 64), (245, 245, 245))
    files = [encode(image) for image in (cell, other_lamp, empty)]

    def reasons(**changed: float) -> list[list[str]]:
        document = {**card, "out_of_distribution": {**card["out_of_distribution"], **changed}}
        (directory / CARD).write_text(json.dumps(document))
        classifier = Classifier.open(directory)
        results = classifier.classify_chunk(files)
        classifier.close()
        return [[r for r in result.review.reasons if r != "ambiguous"] for result in results if isinstance(result, Classified)]

    assert reasons() == [[], ["site_unknown"], ["not_a_leukocyte"]]  # no nucleus is in the empty one
    assert reasons(predicted_loss_threshold=0.0) == [
        ["high_predicted_loss"],
        ["site_unknown", "high_predicted_loss"],
        ["not_a_leukocyte", "high_predicted_loss"],
    ]
    # Of another site's cell nothing more is said: the site's densities do not know it.
    assert reasons(cell_threshold=-1e9) == [["not_a_leukocyte"], ["site_unknown"], ["not_a_leukocyte"]]
