"""Heat maps: where a model that looks at colours looks, and how the service gives them."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from live import encode, of_class
from PIL import Image
from tiny_model import SIZE

from serving.http.app import create_app
from serving.http.layer import Around
from serving.http.limits import Limits
from serving.http.routes import MAX_EXPLAINED
from serving.http.running import Running
from serving.inference.classify import Classifier
from serving.inference.engine import OpenVinoEngine
from serving.inference.heat_map import SHOWN, heat, heat_map, occlusions
from serving.security.keys import ApiKeys
from wbc_model.core.canonical import WHITE
from wbc_model.core.classes import CLASS_INDEX


@pytest.fixture
def client(model_dir: Path) -> Iterator[TestClient]:
    app = create_app()
    classifier = Classifier.open(model_dir)
    app.state.running = Running(classifier, ApiKeys([]), Limits())
    yield TestClient(Around(app))
    classifier.close()


def test_each_pixel_is_covered_and_nothing_else_is_changed() -> None:
    view = np.random.default_rng(0).integers(0, 200, (SIZE, SIZE, 3), dtype=np.uint8)
    covered, masks = occlusions(view)
    assert (masks.sum(axis=0) >= 1).all()
    assert all(
        (image[mask] == WHITE).all() and (image[~mask] == view[~mask]).all() for image, mask in zip(covered, masks, strict=True)
    )


def test_the_heat_is_where_the_colour_of_the_class_is(model_dir: Path) -> None:
    """The tiny model's logit of basophil grows with the blue that is not red: covering the blue square takes it away."""
    view = np.full((SIZE, SIZE, 3), WHITE, np.uint8)
    view[4:14, 18:28] = (0, 0, 255)
    hot = heat(view, OpenVinoEngine(model_dir, 1), CLASS_INDEX["Basophil"])
    assert hot.max() == 1.0
    row, column = np.unravel_index(hot.argmax(), hot.shape)
    assert 4 <= row < 14
    assert 18 <= column < 28
    assert hot[20:, :12].max() == 0.0  # empty smear laid over empty smear changes nothing


def test_a_class_that_nothing_speaks_for_has_no_heat(model_dir: Path) -> None:
    view = np.full((SIZE, SIZE, 3), WHITE, np.uint8)
    hot = heat(view, OpenVinoEngine(model_dir, 1), CLASS_INDEX["Neutrophil"])
    assert not hot.any()
    picture = Image.open(io.BytesIO(heat_map(view, hot)))
    assert picture.size == (SHOWN, SHOWN)
    assert np.asarray(picture).min() == WHITE


def test_the_service_explains_where_it_is_asked_to(client: TestClient) -> None:
    files = [("images", ("a", of_class("Basophil"))), ("images", ("b", b"no image"))]
    plain = client.post("/v1/classify", files=files).json()["results"]
    assert "heat_map" not in plain[0]
    explained = client.post("/v1/classify?explain=true", files=files).json()["results"]
    assert Image.open(io.BytesIO(base64.b64decode(explained[0].pop("heat_map")))).format == "PNG"
    assert explained[0] == plain[0]
    assert explained[1] == plain[1]


def test_too_many_to_explain_and_a_query_that_is_no_yes_or_no(client: TestClient) -> None:
    many = [("images", (str(i), encode((i, 0, 0)))) for i in range(MAX_EXPLAINED + 1)]
    assert client.post("/v1/classify", files=many).status_code == 200
    answer = client.post("/v1/classify?explain=true", files=many)
    assert (answer.status_code, answer.json()["limit"]) == (413, MAX_EXPLAINED)
    answer = client.post("/v1/classify?explain=perhaps", files=many[:1])
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["parameter"] == "explain"
