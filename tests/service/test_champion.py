"""A new champion is taken in while the service runs; a damaged one is not; nothing is dropped; ready means tried out."""

import gc
import shutil
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from live import ROOT, Server, clean_environment, encode, form, free_port, of_class, serve_command, started
from test_api import assert_problem
from tiny_model import expected_probabilities, write_model

from serving.inference import champion
from serving.inference.champion import ChampionWatch
from serving.inference.classify import Classifier
from wbc_model.core.classes import CLASSES
from wbc_model.core.files import replace_directory
from wbc_model.core.model_card import CARD, ONNX

MIXED = (180, 20, 200)
TEMPERATURES = {"tiny-1": 1.0, "tiny-2": 3.0}
EXPECTED = {version: expected_probabilities(np.array(MIXED), value) for version, value in TEMPERATURES.items()}


def put(final: Path, version: str, classes: int = 5) -> None:
    """Put a model in the champion's place as `wbc retrain` does."""
    temporary = final.with_name(".new")
    write_model(temporary, classes, version=version, temperature=TEMPERATURES[version])
    replace_directory(temporary, final)


def until(done: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
    return done()


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[tuple[ChampionWatch, list[Classifier]]]:
    put(tmp_path / "champion", "tiny-1")
    installed: list[Classifier] = []
    yield ChampionWatch(tmp_path / "champion", installed.append), installed
    for one in installed:
        one.close()


def versions(installed: list[Classifier]) -> list[str]:
    return [classifier.card.version for classifier in installed]


def test_another_model_is_loaded_once_it_has_settled(watch: tuple[ChampionWatch, list[Classifier]]) -> None:
    looking, installed = watch
    looking.load()
    for _ in range(3):
        looking.look()
    assert versions(installed) == ["tiny-1"], "the same files are not loaded again"
    put(looking.directory, "tiny-2")
    looking.look()
    assert versions(installed) == ["tiny-1"], "it may still be written"
    looking.look()
    looking.look()
    assert versions(installed) == ["tiny-1", "tiny-2"]


@pytest.mark.parametrize("damage", ["gone", "no card", "bad card", "bytes", "graph"])
def test_a_damaged_model_is_one_line_and_a_good_one_after_it_is_taken(
    watch: tuple[ChampionWatch, list[Classifier]], damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(champion.logging.getLogger("bentoml"), "propagate", True)
    looking, installed = watch
    looking.load()
    directory = looking.directory
    if damage == "gone":
        shutil.rmtree(directory)
    elif damage == "no card":
        (directory / CARD).unlink()
    elif damage == "bad card":
        (directory / CARD).write_text("{")
    elif damage == "bytes":
        content = bytearray((directory / ONNX).read_bytes())
        content[len(content) // 2] ^= 1
        (directory / ONNX).write_bytes(content)
    else:
        put(directory, "tiny-2", classes=4)
    for _ in range(5):
        looking.look()
    assert versions(installed) == ["tiny-1"]
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    put(directory, "tiny-2")
    looking.look()
    looking.look()
    assert versions(installed) == ["tiny-1", "tiny-2"]


def test_a_directory_replaced_while_it_is_read_is_read_again(
    watch: tuple[ChampionWatch, list[Classifier]], monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, installed = watch
    opened = Classifier.open

    def slow(directory: Path) -> Classifier:
        classifier = opened(directory)
        put(directory, "tiny-2")
        return classifier

    monkeypatch.setattr(Classifier, "open", slow)
    looking.load()
    assert installed == []
    monkeypatch.setattr(Classifier, "open", opened)
    looking.look()
    looking.look()
    assert versions(installed) == ["tiny-2"]


def test_the_old_engine_goes_when_nobody_uses_it(tmp_path: Path) -> None:
    put(tmp_path / "champion", "tiny-1")
    current: list[Classifier] = []

    def install(classifier: Classifier) -> None:
        current[:] = [classifier]

    looking = ChampionWatch(tmp_path / "champion", install)
    looking.load()
    used = current[0]  # by a request in progress
    old, engine = weakref.ref(used), weakref.ref(used.engine)
    used.classify_chunk([of_class("Basophil")])
    put(tmp_path / "champion", "tiny-2")
    looking.look()
    looking.look()
    assert used.classify_chunk([of_class("Basophil")])[0].status == "ok"
    del used
    gc.collect()
    assert old() is None
    assert engine() is None


@pytest.mark.slow
def test_the_champion_changes_under_load_and_no_request_is_dropped(tmp_path: Path) -> None:
    directory, port = tmp_path / "champion", free_port()
    put(directory, "tiny-1")
    body = encode(MIXED)
    answers: list[tuple[int, str]] = []
    stop = threading.Event()

    def caller(url: str, count: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.is_set():
                answer = client.post("/v1/classify", files=form(*[body] * count))
                document = answer.json()
                version = document.get("model", {}).get("version", "")
                for result in document.get("results", []):
                    assert list(result["probabilities"]) == list(CLASSES)
                    found = np.array(list(result["probabilities"].values()))
                    if not np.allclose(found, EXPECTED[version], atol=0.02):
                        version = f"{version} named, another answered"
                answers.append((answer.status_code, version))

    def version_is(version: str) -> bool:
        return httpx.get(f"{server.url}/v1/model").json()["version"] == version

    with started(serve_command(directory, port), port, tmp_path, clean_environment(), ROOT) as server:
        threads = [threading.Thread(target=caller, args=(server.url, count)) for count in (1, 3, 20)]
        for thread in threads:
            thread.start()
        for version in ("tiny-2", "tiny-1"):
            put(directory, version)
            assert until(lambda version=version: version_is(version))
        put(directory, "tiny-2")
        (directory / ONNX).write_bytes(b"damaged")
        assert until(lambda: "stays in use" in server.log.read_text())
        before = len(answers)
        assert until(lambda: len(answers) > before + 20)
        assert version_is("tiny-1")
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        stop.set()
        for thread in threads:
            thread.join()
    counted = Counter(answers)
    assert set(counted) == {(200, "tiny-1"), (200, "tiny-2")}, counted
    assert min(counted.values()) > 5
    log = server.log.read_text()
    assert log.count("stays in use") <= 2, "once for each state of the files that was looked at"
    assert "Traceback" not in log


def get(server: Server, path: str) -> int:
    return httpx.get(f"{server.url}{path}", timeout=5).status_code


@pytest.mark.slow
def test_it_is_not_ready_before_an_engine_has_answered(tmp_path: Path) -> None:
    directory, port = tmp_path / "champion", free_port()
    put(directory, "tiny-2", classes=4)  # its files are whole, but the engine does not answer as its card says

    def alive(server: Server) -> None:
        def answers() -> bool:
            try:
                return get(server, "/livez") == 200
            except httpx.TransportError:
                return False

        assert until(answers, 60)

    with started(serve_command(directory, port), port, tmp_path, clean_environment(), ROOT, wait=alive) as server:
        assert_problem(httpx.get(f"{server.url}/readyz"), 503)
        for path in ("/v1/classify", "/v1/model"):
            ask = httpx.post if path == "/v1/classify" else httpx.get
            answer = ask(f"{server.url}{path}")
            assert_problem(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1
        assert until(lambda: "refused" in server.log.read_text())
        assert get(server, "/metrics") == 200
        put(directory, "tiny-1")
        assert until(lambda: get(server, "/readyz") == 200)
        assert httpx.post(f"{server.url}/v1/classify", files=form(of_class("Monocyte"))).json()["model"]["version"] == "tiny-1"
