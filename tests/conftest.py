"""What all tests share: bytecode that is kept, one thread per process, an environment of their own, and a narrow network where
its width does not matter."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest

# The suite starts hundreds of processes, and each would compile the product anew where the environment forbids to keep bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# The suite runs in more processes than there are cores, and spinning OpenMP threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that imports OpenVINO itself reports that to its maker as little as the product does (`silent_openvino`).
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def pytest_collection_finish() -> None:
    """What 3,000 tests and their libraries have made stays: the collector of garbage need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _environment_is_given_back() -> Iterator[None]:
    """A command that runs in the test's own process names its places in the environment, as `wbc serve` does for the service. The
    next test must not find them."""
    before = dict(os.environ)
    yield
    now = os.environ.get("PYTEST_CURRENT_TEST", "")
    os.environ.clear()
    os.environ.update(before | {"PYTEST_CURRENT_TEST": now})


NARROW = (32, 32, 64, 64)  # channels that group normalisation and attention can divide


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """The network with a fiftieth of its weights, in this process: what a test says of a training or of a registry holds for
    both. A module asks for it by `pytestmark = pytest.mark.usefixtures("narrow")`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wbc_model.network.resnet.STAGE_CHANNELS", NARROW)
        if (pretrain := sys.modules.get("wbc_model.training.pretrain")) is not None:
            patch.setattr(pretrain, "WIDTH", NARROW[-1])
        yield
