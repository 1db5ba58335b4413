"""What all tests share: bytecode that is kept, one thread per process, an environment of their own, a narrow network where its
width does not matter, and which files are run by one process."""

import functools
import gc
import os
import shutil
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# The suite starts hundreds of processes, and each would compile the product anew where the environment forbids to keep bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# The suite runs in more processes than there are cores, and spinning OpenMP threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that imports OpenVINO itself reports that to its maker as little as the product does (`silent_openvino`).
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# Each client of httpx reads the list of all authorities, for 20 ms. The suite makes some thousands.
ssl.create_default_context = functools.cache(ssl.create_default_context)


# What 3,000 tests and their libraries make while they are collected stays: the collector of garbage need not look at it again and
# again. At what the tests make it looks seldom.
gc.set_threshold(100_000, 50, 100)


def pytest_collection_finish() -> None:
    gc.freeze()


def pytest_sessionfinish() -> None:
    """pytest looks for garbage five times when all has ended; it finds what the first look leaves."""
    gc.collect()
    gc.freeze()


# The fast tests write some gigabytes, of which little is there at the same time. In memory that costs the least.
MEMORY, ROOM = Path("/dev/shm"), 4 * 2**30  # noqa: S108 - pytest makes folders of its own there


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "not slow" and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


# Files that use the same servers are run by one process, which starts them once. These groups are as long as they are, so they
# come first, and what is long by itself comes before them.
FIRST = ("code/test_flow", "code/test_champion")
PAGES = ("advisories", "api", "differential_call", "hosts", "page", "page_decisions", "page_report", "page_upload")
PAGES += ("page_people", "label_page", "label_agreement", "page_speed", "promotion", "repeats")
STORES = ("backup", "clock", "connections", "deeds", "further_kinds", "kept_images", "labelling_load", "labelling_over_queues")
STORES += ("labelling_store", "outbox", "reports", "signing", "stack", "store", "watch", "way_back", "worklist")
GROUP = {f"tests/{name}.py": "" for name in FIRST}
GROUP |= {f"tests/service/test_{name}.py": group for group, names in (("pages", PAGES), ("stores", STORES)) for name in names}


class Together(LoadFileScheduling):
    """Tests of one file, or of the files of one group, are run by one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return GROUP.get(file) or file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {file: place for place, file in enumerate(GROUP)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


@pytest.fixture(autouse=True)
def _environment_is_given_back() -> Iterator[None]:
    """A command that runs in the test's own process names its places in the environment, as `wbc serve` does for the service. The
    next test must not find them."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) | set(before):  # one by one: a thread of a server may be reading them
        if name == "PYTEST_CURRENT_TEST" or os.environ.get(name) == before.get(name):
            continue
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]


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
