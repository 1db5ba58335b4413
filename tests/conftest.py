"""What all tests share: one thread a process, and a narrow network where its width does not matter."""

import os
import sys
from collections.abc import Iterator

import pytest

# The suite runs in more processes than there are cores, and spinning OpenMP threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that imports OpenVINO itself reports that to its maker as little as the product does (`silent_openvino`).
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

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
