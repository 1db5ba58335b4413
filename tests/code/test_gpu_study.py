"""The study of a GPU, which is to succeed at its first run: here on the CPU, with little installed, and with measurements that
fail, crash or hang."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

STUDY = Path(__file__).parents[2] / "studies/gpu.py"
NO_GPU = ("bare_graph", "update_graph", "bare_compiled")  # what a CPU cannot do


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_study", STUDY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_summary_has_ratios_of_what_was_measured_and_nothing_else(gpu: ModuleType) -> None:
    found = {
        "card": {"images_per_second_at_limit": 10_000.0},
        "bare_bf16": {"images_per_second": 4000.0},
        "update": {"images_per_second": 3000.0, "milliseconds": 40.0},
        "bare_graph": {"not_measured": "a GPU only"},
        "scoring": {"images_per_second": 5000.0},
    }
    said = gpu.summary(found)
    assert (said["update_of_bare"], said["update_of_limit"], said["graph_of_bare"]) == (0.75, 0.3, None)
    # 4,000 updates of 40 ms, 81 looks at 1,000 cells, 10,000 cells scored.
    assert said["seconds_of_a_cycle"] == {"updates": 160.0, "validation": 16.2, "scoring": 2.0, "whole": 178.2}
    assert set(gpu.summary({}).values()) == {None}


def test_after_a_measurement_that_its_process_did_not_survive_the_others_go_on(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the second process: it dies at one measurement, and answers for the rest."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, os, sys\n"
        "for name in sys.argv[sys.argv.index('--names') + 1].split(','):\n"
        "    if name == 'scoring': os._exit(7)\n"
        "    print(json.dumps([name, {'fine': True}]), flush=True)\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(worker))
    found = dict(gpu.results("cpu", time.time() + 60))
    assert found.pop("scoring")["not_measured"].startswith("its process ended with 7")
    assert set(found) >= {"card", "update", "bare_compiled", "smoke/card"}
    assert all(result == {"fine": True} for result in found.values())


def test_a_fault_becomes_the_rows_result(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(setting: object) -> dict[str, object]:
        raise RuntimeError("CUDA error: out of memory\nand more")

    monkeypatch.setitem(gpu.MEASURES, "card", fail)
    setting = gpu.Setting(gpu.torch.device("cpu"), gpu.SMALL, 0.1)
    assert gpu.one("card", setting) == {"not_measured": "CUDA error: out of memory", "fault": "RuntimeError"}


@pytest.mark.slow
def test_it_runs_here_to_its_end(tmp_path: Path) -> None:
    command = [sys.executable, str(STUDY), "--device", "cpu", "--minutes", "9", "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "gpu.json").read_text())
    for part in ("smoke", "measured"):
        for name, result in document[part].items():
            if name in NO_GPU:
                assert result["not_measured"] == "a GPU only"
            elif name == "card":
                assert result["gflop_per_image_forward"] > 0
                assert result["missing_for_training"] == []
            else:
                assert result["images_per_second"] > 0, (name, result)
    assert document["measured"]["update"]["of"] == "Training.step"
    assert 0 < document["summary"]["update_of_bare"] < 2
    assert document["summary"]["seconds_of_a_cycle"]["whole"] > 0


@pytest.mark.slow
def test_with_little_installed_the_update_is_of_the_learners_parts_and_what_is_missing_is_said(tmp_path: Path) -> None:
    """As on a machine that has PyTorch, torchvision, NumPy, Pillow, pandas and pyarrow alone; not installed, not in the path."""
    absent = ("pydantic", "yaml", "cronsim", "lightning_fabric", "safetensors", "tqdm", "scipy", "sklearn")
    hook = (
        "import importlib.abc, sys\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {absent}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, package=None: None if name in {absent} else real(name, package)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hook)
    names = "smoke/card,smoke/update,smoke/scoring"
    command = [sys.executable, str(STUDY), "--device", "cpu", "--names", names, "--end", str(time.time() + 600)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    found = dict(map(json.loads, done.stdout.splitlines()))
    assert set(found["smoke/card"]["missing_for_training"]) == set(absent), done.stderr
    assert found["smoke/update"]["images_per_second"] > 0
    assert found["smoke/update"]["of"].startswith("parts of the learner, without cronsim, lightning_fabric")
    assert found["smoke/scoring"]["images_per_second"] > 0
