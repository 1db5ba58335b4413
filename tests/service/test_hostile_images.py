"""Images as they come, and files that only claim to be images, each posted to a real server beside a good one."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from hostile import REJECTED, USABLE, made, many_scans, mutate, mutated
from live import ROOT, Server, clean_environment, encode, form, free_port, of_class, serve_command, started
from PIL import Image
from test_api import assert_problem
from tiny_model import COLOURS

from serving.contract.schemas import Classification
from serving.inference.classify import Budget
from wbc_model.core.errors import ImageRejected

SECONDS = 20  # for any one file here, on a machine that is busy with other things


@pytest.mark.parametrize("name", USABLE)
def test_odd_but_usable(client: httpx.Client, name: str) -> None:
    data, label = USABLE[name]
    [result] = client.post("/v1/classify", files=form(made(data))).json()["results"]
    assert (result["status"], result.get("label")) == ("ok", label)


@pytest.mark.parametrize("name", ["../../etc/passwd.svg", "cell.exe", "x" * 1000, "\u202egnp.exe", "a\nb.png"])
def test_the_name_and_the_media_type_do_not_matter(client: httpx.Client, name: str) -> None:
    answer = client.post("/v1/classify", files=[("images", (name, encode(COLOURS["Basophil"], "JPEG"), "text/html"))])
    assert answer.json()["results"][0]["label"] == "Basophil"


def test_a_part_with_endless_headers_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/classify", files=[("images", ("x" * 100_000, of_class("Basophil"), "image/png"))])
    assert assert_problem(answer, 422)["type"] == "urn:wbc:problem:malformed-body"


@pytest.mark.parametrize("name", REJECTED)
def test_each_hostile_file_is_rejected_in_its_time(server: Server, client: httpx.Client, name: str) -> None:
    file, reason = REJECTED[name]
    data = made(file)
    begun, processes = time.monotonic(), server.processes()
    answer = client.post("/v1/classify", files=form(data))
    assert time.monotonic() - begun < SECONDS
    assert answer.status_code == 422
    [result] = answer.json()["results"]
    assert (result["status"], result["problem"]["reason"]) == ("rejected", reason)
    assert server.processes() == processes, "nothing died and was started again"


def test_all_together_spoil_nothing(client: httpx.Client) -> None:
    files = [data for bad, _ in REJECTED.values() for data in (made(bad), of_class("Lymphocyte"))]
    answer = client.post("/v1/classify", files=form(*files))
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert {result.get("label") for result in results[1::2]} == {"Lymphocyte"}
    reasons = {name: result["problem"]["reason"] for name, result in zip(REJECTED, results[::2], strict=True)}
    assert reasons == {name: reason for name, (_, reason) in REJECTED.items()}


def test_a_jpeg_may_have_as_many_scans_as_is_sane(client: httpx.Client) -> None:
    answer = client.post("/v1/classify", files=form(many_scans(40, 90), many_scans(40, 91)))
    assert [result["status"] for result in answer.json()["results"]] == ["ok", "rejected"]


def test_the_time_that_one_request_may_decode_is_bounded() -> None:
    budget = Budget(0.05)
    with budget:
        begun = time.thread_time()
        while time.thread_time() - begun < 0.06:
            pass
    with pytest.raises(ImageRejected, match="too_large"), budget:
        raise AssertionError("not reached")
    time.sleep(0.06)
    with Budget(0.05):
        time.sleep(0.06)  # waiting is not decoding


@pytest.fixture(scope="module")
def victim(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own with two threads, so that its memory and time say something."""
    port = free_port()
    environment = clean_environment(WBC_THREADS="2", MALLOC_ARENA_MAX="2")
    with started(serve_command(model_dir, port), port, tmp_path_factory.mktemp("victim"), environment, ROOT) as server:
        yield server


def resident(server: Server) -> int:
    return sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 for process in server.processes())


def peak(server: Server) -> int:
    """The most that any one process of the server has held, in bytes."""
    lines = [Path(f"/proc/{process}/status").read_text() for process in server.processes()]
    return max(int(text.split("VmHWM:")[1].split()[0]) * 1024 for text in lines)


def fuzz(server: Server, count: int, seed: int) -> Counter[str]:
    """Post mutated files in requests of 50 with a good one at the end; returns what became of them."""
    processes, held = server.processes(), 0
    outcomes: Counter[str] = Counter()
    files = list(mutated(count, seed))
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for start in range(0, count, 50):
            batch = files[start : start + 50]
            begun = time.monotonic()
            answer = client.post("/v1/classify", files=form(*batch, of_class("Monocyte")))
            assert time.monotonic() - begun < 2 * SECONDS
            assert answer.status_code == 200, (start, answer.text[:500])
            results = Classification.model_validate(answer.json()).results
            assert len(results) == len(batch) + 1
            assert results[-1].status == "ok"
            assert results[-1].label == "Monocyte"
            outcomes.update(r.problem.reason if r.status == "rejected" else "ok" for r in results[:-1])
            held = held or resident(server)
    assert server.processes() == processes, "nothing died and was started again"
    assert resident(server) < held + 250 * 2**20
    assert peak(server) < 2 * 2**30
    assert "Traceback" not in server.log.read_text()
    return outcomes


def test_mutated_files_are_answered(victim: Server) -> None:
    outcomes = fuzz(victim, 200, seed=0)
    assert outcomes["ok"] > 10, "the fuzzer must reach the decoders"
    assert outcomes["undecodable"] > 10


def test_mutated_bodies_are_answered(victim: Server) -> None:
    """The same mutations on whole requests: boundaries, part headers, fields and files of a form."""
    texts = {"specimen_id": "S-1", "wbc_count": "7.1"}
    request = httpx.Request("POST", victim.url, files=form(of_class("Basophil"), of_class("Monocyte")), data=texts)
    whole, content_type = request.read(), request.headers["content-type"]
    rng = np.random.default_rng(0)
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=victim.url, timeout=30) as client:
        for _ in range(300):
            body = bytearray(whole)
            for _ in range(rng.integers(1, 6)):
                mutate(body, [whole], rng)
            answer = client.post("/v1/differential", content=bytes(body), headers={"Content-Type": content_type})
            statuses[answer.status_code] += 1
            if answer.status_code != 200:
                assert_problem(answer, answer.status_code)
    assert set(statuses) <= {200, 413, 422}
    assert statuses[200] > 10
    assert statuses[422] > 10
    assert "Traceback" not in victim.log.read_text()


@pytest.mark.slow
def test_ten_thousand_mutated_files_are_answered(victim: Server) -> None:
    assert sum(fuzz(victim, 10_000, seed=1).values()) == 10_000


@pytest.mark.slow
def test_a_request_of_the_costliest_files_ends_and_others_are_answered_after_it(victim: Server) -> None:
    """256 PNGs of 40 megapixels are 40 MB to send and would be minutes to decode."""
    costly = encode(Image.new("RGBA", (6300, 6300), (0, 0, 255, 9)))
    with httpx.Client(base_url=victim.url, timeout=150) as client:
        begun = time.monotonic()
        answer = client.post("/v1/classify", files=form(*[costly] * 256))
        took = time.monotonic() - begun
        assert client.post("/v1/classify", files=form(of_class("Basophil"))).status_code == 200
    results = answer.json()["results"]
    assert results[0]["status"] == "ok"
    assert results[-1]["problem"]["reason"] == "too_large"
    assert "to decode" in results[-1]["problem"]["detail"]
    assert took < 100
    assert peak(victim) < 2 * 2**30
