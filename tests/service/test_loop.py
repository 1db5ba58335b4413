"""The loop of people and model on a worker of Prefect's, killed in its middle; the readers speak HTTP."""

import random
from pathlib import Path

import httpx
import pytest

from tests.people_loop import Loop, Reader, Truth, go_round, shown

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def read_all(loop: Loop, reader: Reader, truth: Truth, chance: random.Random) -> int:
    """Answer every task that a reader is given; returns how many there were."""
    done = 0
    with httpx.Client(base_url=loop.url, headers={"X-API-Key": reader.key}, timeout=60) as http:
        while given := http.get("/v1/labelling/tasks", params={"count": 10}).raise_for_status().json()["tasks"]:
            for task in given:
                image = http.get(f"/v1/labelling/tasks/{task['task']}/image").raise_for_status().content
                body = {"answer": reader.says(truth[shown(image)], chance), "seconds": 1.5, "way": "single"}
                http.put(f"/v1/labelling/tasks/{task['task']}", json=body).raise_for_status()
                done += 1
    return done


def adjudicate(loop: Loop, lead: Reader, truth: Truth) -> int:
    """Decide on every dispute by the truth; returns how many there were."""
    done = 0
    with httpx.Client(base_url=loop.url, headers={"X-API-Key": lead.key}, timeout=60) as http:
        while waiting := http.get("/v1/labelling/disputes").raise_for_status().json()["disputes"]:
            for one in waiting:
                image = http.get(f"/v1/labelling/disputes/{one['dispute']}/image").raise_for_status().content
                answer = truth[shown(image)].answer
                http.put(f"/v1/labelling/disputes/{one['dispute']}", json={"answer": answer}).raise_for_status()
                done += 1
    return done


def test_people_label_on_the_service_and_a_worker_goes_on_with_it(tmp_path: Path) -> None:
    go_round(tmp_path, read_all, adjudicate)
