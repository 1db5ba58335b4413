"""A Dask cluster for work on shards (`retrain.runner: dask`): found by its address, or started on this machine.

Dask hands work over by pickle, so whoever reaches its scheduler can have anything run there. One that is started here listens on
loopback, by TLS with certificates of its own. One of several machines belongs into a network of its own (docs/retraining.md).
"""

import contextlib
import functools
import importlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from wbc_model.code_version import package_version
from wbc_model.core.errors import WbcError, counted
from wbc_model.params import RetrainParams
from wbc_model.spread import spread_by

Client = Any  # Dask's: `distributed` has no types, and takes a second to load
ADDRESS: Final = "WBC_DASK_ADDRESS"  # of the cluster that a flow has started, for the stages that DVC starts
CONNECT_SECONDS: Final = 10
LOOK_SECONDS: Final = 60  # that a part takes before its scheduler is asked whether it is still there
SILENT_SECONDS: Final = 300  # that a scheduler may take for an answer: it may be busy
_TLS: Final = "DASK_DISTRIBUTED__COMM__TLS__"  # Dask's own settings, which the stages that DVC starts find in the environment
_CERTIFICATES: Final = {
    f"{_TLS}CA_FILE": "tls_ca_file",
    f"{_TLS}CLIENT__CERT": "tls_client_cert",
    f"{_TLS}CLIENT__KEY": "tls_client_key",
}
# Pages that Dask would show to whoever asks are not shown.
_PAGES: Final = {f"distributed.{who}.http.routes": ["distributed.http.health"] for who in ("scheduler", "worker")}
# Dask has its workers give memory back at once. A network then gets each of its tensors from the kernel anew, page by page. So
# glibc keeps what is freed, up to the largest pieces that it can keep.
_PROCESSES: Final = {
    "distributed.nanny.pre-spawn-environ": {
        "MALLOC_TRIM_THRESHOLD_": 2**28,
        "MALLOC_MMAP_THRESHOLD_": 2**25,
        **{f"{library}_NUM_THREADS": 1 for library in ("OMP", "MKL", "OPENBLAS")},
    }
}
AHEAD: Final = 2  # parts for each thread of the cluster that are under way


@contextlib.contextmanager
def spread(params: RetrainParams, workers: int | None = None) -> Iterator[None]:
    """Have work on shards done as `retrain.runner` says: in this process, or on a cluster. That is the one of the flow that
    started this, or of the scheduler that it names. Else it is there for the while, with so many `workers` (default: one for each
    core). Raises WbcError."""
    if params.runner == "local":
        yield
        return
    with contextlib.ExitStack() as stack:

        @functools.cache
        def client() -> Client:  # of work that has several parts only: starting a cluster takes seconds
            client = stack.enter_context(connected(stack.enter_context(cluster(params, workers))))
            if params.scheduler:
                _check_code(client, params.scheduler)
            return client

        with spread_by(lambda work, parts: on_cluster(client(), work, parts)):
            yield


@contextlib.contextmanager
def cluster(params: RetrainParams, workers: int | None = None) -> Iterator[str]:
    """The address of the cluster, which is started where there is none."""
    given = os.environ.get(ADDRESS) or params.scheduler
    if given:
        yield given
        return
    dask, distributed = importlib.import_module("dask"), _distributed()
    before = dict(os.environ)
    security = distributed.Security.temporary()  # nobody else on this machine can reach the scheduler
    os.environ |= {name: str(getattr(security, field)) for name, field in _CERTIFICATES.items()}
    dask.config.refresh()
    try:
        with (
            dask.config.set(_PAGES | _PROCESSES),
            distributed.LocalCluster(
                n_workers=workers or os.cpu_count() or 1,
                threads_per_worker=1,
                host="127.0.0.1",
                protocol="tls",
                security=security,
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
                silence_logs=logging.CRITICAL,
            ) as started,
        ):
            yield str(started.scheduler_address)
    finally:
        for name in _CERTIFICATES:
            os.environ.pop(name) if name not in before else os.environ.update({name: before[name]})
        dask.config.refresh()


@contextlib.contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the scheduler at `address`. Raises WbcError where none answers, or it stops answering."""
    try:
        client = _distributed().Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise WbcError(
            f"no Dask scheduler answers at {address} ({_said(error)}): start it, or set retrain.runner to local"
        ) from None
    try:
        yield client
    finally:
        with contextlib.suppress(OSError, TimeoutError):
            client.close()


def check_runner(params: RetrainParams) -> None:
    """Raises WbcError where no scheduler answers at the address in `retrain.runner`, or its workers have another code: nothing
    starts then."""
    if params.scheduler:
        with connected(params.scheduler) as client:
            await_workers(client, params.scheduler)
            _check_code(client, params.scheduler)


def _check_code(client: Client, address: str) -> None:
    """Raises WbcError where a worker has another code than this process, or none: under the same names of files it would write
    what another release makes."""
    mine = package_version("wbc_model")
    theirs = client.run(package_version, "wbc_model", on_error="return")  # an older release raises: it is another one
    others = sorted(worker for worker, its in theirs.items() if its != mine)
    if others:
        raise WbcError(
            f"{counted(len(others), 'worker')} of the Dask cluster at {address} ({others[0]} first) must have this release of "
            "wbc: install it there and start these workers again, or set retrain.runner to local"
        )


def await_workers(client: Client, address: str) -> int:
    """How many threads the cluster has, once it has any; raises WbcError where it has none in CONNECT_SECONDS."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while not (threads := sum(worker["nthreads"] for worker in _workers(client, address, CONNECT_SECONDS))):
        if time.monotonic() > deadline:
            raise WbcError(f"the Dask scheduler at {address} has no worker: start one with `dask worker {address}`")
        time.sleep(0.1)
    return int(threads)


def _workers(client: Client, address: str, seconds: float) -> list[dict[str, Any]]:
    """What the scheduler says of its workers. Raises WbcError where it says nothing for so many seconds: its machine may stand
    still, and its connections stay open."""
    try:
        return list(client.sync(client.scheduler.identity, callback_timeout=seconds)["workers"].values())
    except (OSError, TimeoutError) as error:
        raise _gone(address, error) from None


def _gone(address: str, error: Exception) -> WbcError:
    return WbcError(
        f"the Dask scheduler at {address} has stopped answering ({_said(error)}); finished parts are kept, and the same "
        "command continues"
    )


def on_cluster(client: Client, work: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
    """The results of `work` on the parts in their order. Dask gives a part whose worker was killed to another."""
    address = client.scheduler.address
    ahead = AHEAD * await_workers(client, address)

    yield from in_order(lambda part: client.submit(work, part, pure=False), parts, ahead, address)


def in_order(submit: Callable[[Any], Any], parts: Sequence[Any], ahead: int, address: str) -> Iterator[Any]:
    """The results of the parts in their order, a few of them under way at a time. Raises WbcError where the cluster is gone, or a
    part kills every worker that it is given to."""
    distributed = _distributed()
    waiting: deque[Any] = deque()
    following = iter(parts)
    try:
        for part in following:
            waiting.append(submit(part))
            if len(waiting) >= ahead:
                yield _result(waiting.popleft(), address)
        while waiting:
            yield _result(waiting.popleft(), address)
    except distributed.KilledWorker as error:
        raise WbcError(f"a part of the work killed {error.allowed_failures + 1} workers of the Dask cluster at {address}: "
                       "have they enough memory? Finished parts are kept") from None  # fmt: skip
    except (distributed.client.FutureCancelledError, distributed.comm.CommClosedError) as error:
        raise _gone(address, error) from None
    finally:
        for future in waiting:
            _of_dask(future).cancel()


def _result(future: Any, address: str) -> Any:
    """What came of a part, however long it takes. Raises WbcError where its scheduler no longer answers."""
    part, done = _of_dask(future), threading.Event()
    part.add_done_callback(lambda _: done.set())
    while not done.wait(LOOK_SECONDS):
        _workers(part.client, address, SILENT_SECONDS)
    try:
        return future.result(timeout=SILENT_SECONDS)
    except TimeoutError as error:
        if part.status == "error":  # of the work itself
            raise
        raise _gone(address, error) from None


def _of_dask(future: Any) -> Any:
    """Of Prefect's future the one of Dask."""
    return getattr(future, "wrapped_future", future)


def _distributed() -> Any:
    return importlib.import_module("distributed")


def _said(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
