"""A disk that fills up at a chosen step of the product, in whichever process comes to it."""

import os
from pathlib import Path
from typing import Final

from tests.faults.conftest import NARROW

# What every process loads first, after the narrow learner: the step `MODULE:NAME` of WBC_TEST_FILLS fills the disk.
_FILLING: Final = """
import os

class Filling(importlib.abc.MetaPathFinder):
    module, _, step = os.environ.get("WBC_TEST_FILLS", "").partition(":")

    def find_spec(self, name, path, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        whole = spec.loader.exec_module

        def filling(module):
            whole(module)
            *parts, last = self.step.split(".")
            holder = module
            for part in parts:
                holder = getattr(holder, part)
            body = getattr(holder, last)

            def filled(*given, **named):
                with open(os.environ["WBC_TEST_FILLER"], "ab", buffering=0) as file:
                    for size in (1 << 20, 4096, 1):
                        try:
                            while True:
                                file.write(bytes(size))
                        except OSError:
                            pass
                return body(*given, **named)

            setattr(holder, last, filled)

        spec.loader.exec_module = filling
        return spec

sys.meta_path.insert(0, Filling())
"""


class Filler:
    """What fills the disk that a workspace lies on."""

    def __init__(self, disk: Path, folder: Path) -> None:
        self.file, self.hook = disk / "filler", folder / "filling"
        self.hook.mkdir()
        (self.hook / "sitecustomize.py").write_text(NARROW + _FILLING)

    def at(self, step: str) -> dict[str, str]:
        """The environment of a process, and of all that it starts, that fills the disk at a step, `MODULE:NAME`."""
        found = os.pathsep.join([str(self.hook), os.environ.get("PYTHONPATH", "")])
        return {"PYTHONPATH": found, "WBC_TEST_FILLS": step, "WBC_TEST_FILLER": str(self.file)}

    def make_room(self) -> None:
        """Empty the disk again; it had been filled."""
        assert self.file.stat().st_size, "the step was not come to"
        self.file.unlink()
