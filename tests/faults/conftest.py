"""A workspace that was lived in, with narrow networks: each fault's test has a copy of it."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Prefect must not touch the user's home, and the service's tests have helpers that lie in their folder.
os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="wbc-test-prefect-"))
sys.path.append(str(Path(__file__).parents[1] / "service"))

# What every process of a test loads first: the learner with a fiftieth of its weights.
NARROW = """
import importlib.abc, importlib.util, sys

class Narrow(importlib.abc.MetaPathFinder):
    changed = {"wbc_model.network.resnet": ("STAGE_CHANNELS", (32, 32, 64, 64)), "wbc_model.training.pretrain": ("WIDTH", 64)}

    def find_spec(self, name, path, target=None):
        if name not in self.changed:
            return None
        attribute, value = self.changed.pop(name)
        spec = importlib.util.find_spec(name)
        whole = spec.loader.exec_module

        def narrow(module):
            whole(module)
            setattr(module, attribute, value)

        spec.loader.exec_module = narrow
        return spec

sys.meta_path.insert(0, Narrow())
"""


@pytest.fixture(scope="session")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with a champion, labels of the oracle and of a person, and a signed report beside an open one."""
    from tests.faults.life import live

    folder = tmp_path_factory.mktemp("lived")
    (folder / "narrow").mkdir()
    (folder / "narrow/sitecustomize.py").write_text(NARROW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder / "narrow"), os.environ.get("PYTHONPATH")])))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name in [name for name in os.environ if name.startswith(("WBC_", "MLFLOW_"))]:
            patch.delenv(name)
        patch.delenv("PREFECT_API_URL", raising=False)
        yield live(folder / "site")


@pytest.fixture
def workspace(lived: Path, tmp_path: Path) -> Path:
    """A copy to put a fault to."""
    return Path(shutil.copytree(lived, tmp_path / "site", symlinks=True))


@pytest.fixture(scope="session")
def quiet_ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which nothing was trained: cells of noise, a model by hand, labels, and two reports."""
    from tests.faults.life import settle

    return settle(tmp_path_factory.mktemp("ward") / "site")


@pytest.fixture
def ward(quiet_ward: Path, tmp_path: Path) -> Path:
    """A copy of it to put a fault to."""
    return Path(shutil.copytree(quiet_ward, tmp_path / "site", symlinks=True))
