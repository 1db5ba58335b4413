"""The service speaks to nobody unasked: hospitals have no internet, and what they do is nobody's business."""

from pathlib import Path

import httpx
from live import ROOT, clean_environment, form, free_port, of_class, serve_command, started

# Run by each Python process at its start: notes the names it looks up and the addresses it connects to.
NOTING = """
import os, sys

def note(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect"):
        where = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        with open(os.environ["NOTES"], "a") as file:
            file.write(f"{where}\\n")

sys.addaudithook(note)
"""


def test_no_address_but_loopback_is_spoken_to(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NOTING)
    home, notes, port = tmp_path / "home", tmp_path / "notes", free_port()
    home.mkdir()
    environment = clean_environment(HOME=str(home), NOTES=str(notes), PYTHONPATH=f"{tmp_path / 'site'}:{ROOT}")
    for name in ("CI", "TF_BUILD", "JENKINS_URL"):  # where OpenVINO says nothing anyway
        environment.pop(name, None)
    with started(serve_command(model_dir, port), port, tmp_path, environment, ROOT) as server:
        answer = httpx.post(f"{server.url}/v1/classify", files=form(of_class("Eosinophil")), timeout=30)
        assert answer.json()["results"][0]["label"] == "Eosinophil"
    spoken_to = set(notes.read_text().splitlines()) if notes.exists() else set()
    assert not [where for where in spoken_to if "127.0.0.1" not in where and "localhost" not in where], spoken_to
    assert not (home / "intel").exists(), "where OpenVINO notes that it was used"
