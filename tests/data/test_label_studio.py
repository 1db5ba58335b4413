"""Both ways through a real Label Studio: our tasks in, two people's annotations out, in all of its forms.

It has an environment of its own, in the folder that WBC_LABEL_STUDIO names (default: ~/.cache/wbc/label-studio), made once: 1 GB.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows.labels import awaited, export_queue, import_labels, read_log, status, write_queue
from tests.pools import ingest
from wbc_model.cells.pools import Pools
from wbc_model.core.classes import CLASSES
from wbc_model.params import read_params

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]  # the first time it is installed

VERSION = "1.23.2"
ADA, BEN = "ada@example.org", "ben@example.org"
SILENT = {  # it reports to nobody
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
    "DO_NOT_TRACK": "1",
}


@pytest.fixture(scope="module")
def command() -> Path:
    """Label Studio's command, installed where it is not yet."""
    named = os.environ.get("WBC_LABEL_STUDIO") or Path.home() / ".cache/wbc/label-studio"
    place = Path(named) / VERSION
    found = place / "bin/label-studio"
    if not found.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        pip = [str(place / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, f"label-studio=={VERSION}"], capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(place)
            pytest.skip(f"label-studio {VERSION} cannot be installed in {place}: {done.stderr.strip().splitlines()[-1]}")
    return found


@dataclass
class Studio:
    """A running Label Studio with a project, and its two people."""

    address: str
    ada: httpx.Client
    ben: httpx.Client
    project: int = 0

    def open(self, tasks: Path) -> None:
        """A project with the interface that lies beside our tasks, and these tasks in it."""
        config = tasks.with_suffix(".xml").read_text()
        made = self.ada.post("/api/projects/", json={"title": "cells", "label_config": config, "maximum_annotations": 2})
        assert made.status_code == 201, made.text
        self.project = made.json()["id"]
        self.bring(tasks)

    def bring(self, tasks: Path) -> None:
        """Import a file of tasks, as its page does."""
        with tasks.open("rb") as file:
            done = self.ada.post(f"/api/projects/{self.project}/import", files={"file": (tasks.name, file)})
        assert done.status_code == 201, done.text

    def tasks(self) -> dict[str, int]:
        """The newest task of each cell."""
        found = self.ada.get("/api/tasks/", params={"project": self.project, "page_size": 100}).json()["tasks"]
        return {task["data"]["sha256"]: task["id"] for task in sorted(found, key=lambda task: int(task["id"]))}

    def say(self, person: httpx.Client, sha256: str, label: str, annotation: int | None = None) -> int:
        """Annotate, or change an annotation; without a label the task is skipped."""
        choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
        said = {"result": [choice] if label else [], "was_cancelled": not label, "lead_time": 2.0}
        if annotation is None:
            done = person.post(f"/api/tasks/{self.tasks()[sha256]}/annotations/", json=said)
        else:
            done = person.patch(f"/api/annotations/{annotation}/", json=said)
        assert done.status_code in (200, 201), done.text
        return int(done.json()["id"])

    def export(self, form: str, out: Path) -> Path:
        """What Label Studio exports in one of its forms."""
        done = self.ada.get(f"/api/projects/{self.project}/export", params={"exportType": form, "download_all_tasks": "true"})
        assert done.status_code == 200, done.text
        out.write_bytes(done.content)
        return out


@pytest.fixture(scope="module")
def studio(command: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder, token, password = tmp_path_factory.mktemp("studio"), secrets.token_hex(20), secrets.token_urlsafe(16)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port), "--data-dir", str(folder)]
    account = ["--username", ADA, "--password", password, "--user-token", token, "--enable-legacy-api-token"]
    environment = {**os.environ, **SILENT, "HOME": str(folder)}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen([command, *arguments, *account], env=environment, stdout=log, stderr=log, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/health", process, folder / "log.txt")
        ada = httpx.Client(base_url=address, headers={"Authorization": f"Token {token}"}, timeout=120)
        with ada, signed_up(address, BEN, password) as ben:
            yield Studio(address, ada, ben)
    finally:
        process.terminate()
        process.wait(60)


def wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(address, timeout=10).status_code == 200:
                return
        time.sleep(1)
    raise AssertionError(f"Label Studio does not answer:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def signed_up(address: str, email: str, password: str) -> Iterator[httpx.Client]:
    """A second person, who signs up on the page and then uses a token."""
    with httpx.Client(base_url=address, timeout=120) as page:
        page.get("/user/signup/")
        form = {"email": email, "password": password, "allow_newsletters": "false", "how_find_us": "Other"}
        form["csrfmiddlewaretoken"] = page.cookies["csrftoken"]
        done = page.post("/user/signup/", data=form, headers={"Referer": f"{address}/user/signup/"})
        assert done.status_code == 302, done.text[:2000]
        token = page.get("/api/current-user/token").json()["token"]
    with httpx.Client(base_url=address, headers={"Authorization": f"Token {token}"}, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty cells of noise of the size of real ones; eight of them are asked about."""
    folder = tmp_path_factory.mktemp("workspace")
    rng, rows = np.random.default_rng(0), []
    for number in range(30):
        Image.fromarray(rng.integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        rows.append([f"{number}.png", CLASSES[number % 5], "test" if number > 24 else "val" if number > 22 else "train"])
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(folder / "manifest.csv", index=False)
    root = folder / "site"
    ingest(folder / "manifest.csv", root / "data", read_params(Path(__file__).parents[2] / "params.yaml"))
    cells = Pools.read(root / "data/pools").frames["unlabelled"][["sha256", "path"]].head(8)
    queue = cells.assign(score=1.0, reason="unsure", predicted="Monocyte", probability=0.5)
    queue.insert(2, "rank", range(1, 9))
    write_queue(root, queue)
    return root


def test_tasks_go_in_and_the_answers_of_two_people_come_back(studio: Studio, filled: Path, tmp_path: Path) -> None:
    cells = awaited(filled)["sha256"].tolist()
    export_queue(filled, tmp_path / "tasks.json")
    studio.open(tmp_path / "tasks.json")
    assert set(studio.tasks()) == set(cells)
    assert not studio.ada.get(f"/api/projects/{studio.project}/").json()["total_predictions_number"], "nobody sees an opinion"

    both, torn, changed, unsure, skipped, other, predicted, _ = cells
    studio.say(studio.ada, both, "Monocyte")
    studio.say(studio.ben, both, "Monocyte")
    studio.say(studio.ada, torn, "Monocyte")
    ben_on_torn = studio.say(studio.ben, torn, "Smudge")
    first = studio.say(studio.ada, changed, "Basophil")
    studio.say(studio.ada, changed, "Band", first)
    studio.say(studio.ada, unsure, "unsure")
    studio.say(studio.ben, skipped, "")
    studio.say(studio.ben, other, "not a leukocyte")
    with_opinion(filled, predicted, tmp_path)
    studio.bring(tmp_path / "opinion.json")

    for form in ("JSON", "JSON_MIN", "CSV"):
        file = studio.export(form, tmp_path / f"export-{form}.{'csv' if form == 'CSV' else 'json'}")
        site = Path(shutil.copytree(filled, tmp_path / form))
        result = import_labels(site, file, 1)
        assert (result["new"], result["none_of_five"], result["unsure"], result["awaited"]) == (3, 2, 1, 5), form
        (refused,) = result["refused"]
        assert refused["sha256"] == torn
        assert "Monocyte by label studio 1 and Smudge by label studio 2 disagree" in refused["reason"]
        if form == "JSON":  # the others do not export what was skipped, and name no prediction
            assert (result["skipped"], result["predicted"]) == (1, 1)
        assert read_log(site)[["sha256", "label", "labelled_by"]].to_numpy().tolist() == [
            [both, "Monocyte", "label studio 1 + label studio 2"]
        ]
        assert status(site)["none_of_five"] == {"Band": 1, "not a leukocyte": 1}
        again = import_labels(site, file, 1)
        assert (again["new"], again["known"], again["wrote"]) == (0, 3, [])

    studio.say(studio.ben, torn, "Monocyte", ben_on_torn)
    result = import_labels(site, studio.export("JSON", tmp_path / "later.json"), 1)
    assert (result["new"], result["known"], result["refused"]) == (1, 3, [])
    assert read_log(site)["label"].tolist() == ["Monocyte", "Monocyte"]


def with_opinion(filled: Path, sha256: str, folder: Path) -> None:
    """The task of one cell, with what the model thinks of it."""
    export_queue(filled, folder / "all.json", with_predictions=True)
    tasks: list[dict[str, Any]] = json.loads((folder / "all.json").read_text())
    (folder / "opinion.json").write_text(json.dumps([task for task in tasks if task["data"]["sha256"] == sha256]))
