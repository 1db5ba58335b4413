"""The Prefect server that flows talk to: the one of PREFECT_API_URL, or a private one of the workspace for as long as needed.

Prefect's own temporary server outlives a flow that is killed; ours watches its parent (flows.guard). Its database lies in
`.wbc/prefect`. Nothing is reported to Prefect's makers.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from flows.guard import FLOW, flow_token
from flows.identity import workspace_name
from flows.progress import Progress
from flows.workspace import bypass_proxies, environment, machine_name
from wbc_model.core.errors import WbcError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State, StateType

LEASE_SECONDS: Final = 60
KEPT_SECONDS: Final = 30 * 86400  # for which a server keeps a run that has ended
_START_SECONDS: Final = 180  # a loaded machine with 2 cores and a new database
_DATABASE: Final = "prefect.db"
_LOG: Final = "server.log"
_PATIENCE: Final = 300  # seconds for which a shared server may be away
_ANSWER_SECONDS: Final = 5  # in which a server says whether it is ready
_OWN: Final[set[str]] = set()  # the private server of this process, whose address is no other's
_CONSOLE: Final = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"


def settings(home: Path) -> dict[str, str]:
    """Prefect's settings for client and server, unless the user has set them."""
    wanted = {
        "PREFECT_HOME": str(home),
        "PREFECT_LOGGING_LEVEL": "INFO",
        _CONSOLE: "CRITICAL",  # its log lines go to its API; on the terminal the flow itself says what matters
        "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(_START_SECONDS),
        # Leases on disk: one whose holder and server were both killed still runs out, and its slot comes back.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # The watch alone is 1,440 runs a day. By default Prefect keeps them all.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(KEPT_SECONDS),
        "DO_NOT_TRACK": "1",
    }
    if "PREFECT_API_URL" in os.environ:  # a shared server may be started again, or lose its database for a while
        wanted |= {"PREFECT_CLIENT_MAX_RETRIES": "6", "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500"}  # for two minutes
        wanted |= {"PREFECT_API_REQUEST_TIMEOUT": "30"}  # and one that takes calls and never answers, for six
    return {name: value for name, value in wanted.items() if name not in os.environ}


@contextlib.contextmanager
def prefect_api(workspace: Path, scheduling: bool = False) -> Iterator[str]:
    """Have a Prefect API for the block; yields its URL, which is in the environment too. Import prefect inside only.

    `scheduling` starts the background services that create the runs of schedules. Raises WbcError when the API does not start, or
    stops answering within the block.
    """
    home = workspace / ".wbc/prefect"
    home.mkdir(parents=True, exist_ok=True)
    os.environ.update(settings(home))
    bypass_proxies()
    given = os.environ.get("PREFECT_API_URL")
    if given:
        with _answering(f"the Prefect server at {given}"):
            await_server(Progress().say)
            yield given
        return
    with _server(home, scheduling) as url:
        os.environ["PREFECT_API_URL"] = url
        _OWN.add(url)
        try:
            with _answering(f"the workspace's own Prefect server (see {home / _LOG})"):
                yield url
        finally:
            _flush_logs()
            _OWN.discard(url)
            del os.environ["PREFECT_API_URL"]


@contextlib.contextmanager
def _answering(server: str) -> Iterator[None]:
    """Say in one line that the server is gone; Prefect's client has repeated the request several times by then."""
    import httpx

    try:
        yield
    except (httpx.TransportError, httpx.HTTPStatusError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # a new client's "Failed to reach API"
        if not isinstance(cause, httpx.TransportError | httpx.HTTPStatusError):
            raise
        if isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code < 500:
            raise
        why = (str(cause) or type(cause).__name__).splitlines()[0]
        raise WbcError(f"{server} has stopped answering: {why}; finished work is kept, and the same command continues") from error


def await_server(say: Callable[[str], None]) -> None:
    """Wait while a shared Prefect server is away, and say so; raises WbcError where it stays away. A private one does not come
    back."""
    url = os.environ.get("PREFECT_API_URL", "")
    if not url or url in _OWN or _answers(url):
        return
    say(f"the Prefect server at {url} does not answer: it is waited for, {_PATIENCE // 60} minutes at most")
    deadline = time.monotonic() + _PATIENCE
    while not _answers(url):
        if time.monotonic() > deadline:
            raise WbcError(f"the Prefect server at {url} has not answered for {_PATIENCE // 60} minutes; finished work is kept, "
                           "and the same command continues")  # fmt: skip
        time.sleep(1)
    say("the Prefect server answers again")


def _answers(url: str) -> bool:
    """Whether anybody answers there; a server behind a proxy may be away though the proxy is not."""
    try:
        _open_directly(f"{url}/ready")  # with its database
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False
    return True


def _flush_logs() -> None:
    """Let the log lines that are under way reach the server before it stops."""
    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()


@contextlib.contextmanager
def _server(home: Path, scheduling: bool) -> Iterator[str]:
    database = home / _DATABASE
    fresh = not database.exists() and not _from_template(database)
    port = _free_port()
    log = home / _LOG
    command = [sys.executable, "-m", "flows.guard", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    values = environment() | {FLOW: flow_token()}
    values.pop(_CONSOLE, None)
    if not scheduling:
        values["PREFECT__SERVER_EPHEMERAL"] = "1"  # as Prefect's own temporary server: records task runs, starts no schedules
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--no-ui"],
            env=values,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C at a terminal ends the flow, which then has its server to tell it to
        )
    try:
        url = f"http://127.0.0.1:{port}/api"
        _await_health(url, process, log)
        if fresh:
            _keep_template(database)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_health(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if _healthy(url):
            return
        time.sleep(0.1)
    raise WbcError(f"the Prefect server did not start within {_START_SECONDS} s: see {log}")


def _healthy(url: str) -> bool:
    try:
        return _open_directly(f"{url}/health") == 200
    except OSError:
        return False


def _open_directly(url: str) -> int:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=_ANSWER_SECONDS) as answer:
        return int(answer.status)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# A new Prefect database takes 8 s of CPU to migrate. The first one made is kept as a template for other workspaces.


def _template() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "wbc" / f"prefect-{version('prefect')}.db"


def _from_template(database: Path) -> bool:
    if not _template().is_file():
        return False
    temporary = database.with_suffix(".new")
    shutil.copyfile(_template(), temporary)
    temporary.rename(database)
    return True


def _keep_template(database: Path) -> None:
    """Copy the database as it is before any flow has run; a cache that cannot be written is no reason to stop."""
    target = _template()
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    with contextlib.suppress(OSError, sqlite3.Error):
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(database)) as source, contextlib.closing(sqlite3.connect(temporary)) as copy:
            source.backup(copy)
        temporary.rename(target)


def open_limit(own_server: bool) -> None:
    """Make the global concurrency limit of this machine's GPU where it is missing: one at a time, strictly. All workspaces of the
    machine share it, and none of another.

    On a private server whoever held a slot before is dead (the caller holds the workspace's lock), so that it is freed at
    once; on a shared one a dead holder's lease runs out within LEASE_SECONDS.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(gpu_limit())
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=gpu_limit(), limit=1))
            return
        if own_server and limit.active_slots:
            client.update_global_concurrency_limit(gpu_limit(), GlobalConcurrencyLimitUpdate(active_slots=0))


@contextlib.contextmanager
def gpu_slot(say: Callable[[str], None]) -> Iterator[None]:
    """Have the one slot of this machine's GPU for the block (without a GPU: of its cores), and the server to give it back to.

    A server that was started again does not know who held a slot, and counts it as taken for ever. So the holder also has a lock
    on this machine: whoever has that lock frees what nobody holds.
    """
    from prefect.concurrency.sync import concurrency

    patient: dict[str, Any] = {"strict": True, "lease_duration": LEASE_SECONDS, "raise_on_lease_renewal_failure": False}
    with _lock_of_slot(say) as alone:
        await_server(say)
        if alone:
            open_limit(own_server=True)
        with concurrency(gpu_limit(), occupy=1, **patient):
            yield
            await_server(say)


@contextlib.contextmanager
def _lock_of_slot(say: Callable[[str], None]) -> Iterator[bool]:
    """Have this machine's lock for the slot at a shared server; yields False where there is none: the server is a private one, or
    another user has made a file that we may not read."""
    url = os.environ.get("PREFECT_API_URL", "")
    path = Path(tempfile.gettempdir()) / f"wbc-slot-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    if not url or url in _OWN or (descriptor := _opened(path)) is None:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another training is at work on this machine: it is waited for")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield True
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int | None:
    for more in (0, os.O_CREAT):  # the kernel may forbid the second for a file of somebody else's
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | more, 0o644)
    return None


# --- names and runs ----------------------------------------------------------------------------------------------------


def gpu_limit() -> str:
    """The limit's name: the machine's, as two workspaces on one machine share its GPU."""
    return f"gpu-{machine_name()}"


def retraining_flow(workspace: Path) -> str:
    """The name of the workspace's flow of retrainings, whoever starts them."""
    return f"retraining-{workspace_name(workspace)}"


def watch_flow_name(workspace: Path) -> str:
    """The name of the workspace's flow that looks for new labels."""
    return f"label-watch-{workspace_name(workspace)}"


def run_name(workspace: Path) -> str:
    """What a run is called: workspace and moment."""
    return f"{workspace.resolve().name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


def end_dead_runs(flows: Sequence[str], but: str = "", deployment: str = "") -> int:
    """Put the runs of these flows that still count as running, but were killed with their process, in the state Crashed.

    So it does with those of a `deployment` (its id). Returns how many. Only whoever has the workspace may call this. `but` is the
    id of the run that asks. One that has a process on this machine has just begun, and is about to find the workspace taken.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    found = _runs(flows, StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
    found += _runs_of(deployment, StateType.RUNNING, StateType.CANCELLING) if deployment else []
    alive = {but, *_with_a_process()}
    dead = list({run.id: run for run in found if str(run.id) not in alive}.values())
    for run in dead:
        _force(run.id, Crashed(message="its process was killed, and could not say so"))
    return len(dead)


def _with_a_process() -> set[str]:
    """The runs (ids) of deployments that a process of this machine works for, by the environment that Prefect gives it."""
    import psutil

    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it has ended, or is another user's
            found.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    return found


def drop_missed_runs(flows: Sequence[str]) -> int:
    """Of each flow's runs whose time has passed while nobody served them, keep the last; returns how many were dropped."""
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelled

    dropped = 0
    for flow in flows:
        runs = _runs([flow], StateType.SCHEDULED)
        missed = sorted((run for run in runs if run.expected_start_time and run.expected_start_time < datetime.now(UTC)),
                        key=lambda run: run.expected_start_time or datetime.now(UTC))  # fmt: skip
        for run in missed[:-1]:
            _force(run.id, Cancelled(name="Missed", message="nobody served it at its time; a later one is run in its place"))
        dropped += len(missed[:-1])
    return dropped


def drop_late_runs(deployment: str) -> int:
    """Of a deployment (its id) whose runs all do the same, end those whose time has passed and that nobody has begun; returns how
    many. On a busy machine a watch takes longer than its interval, and its runs would keep a retraining from beginning."""
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelled

    now, waiting = datetime.now(UTC), _runs_of(deployment, StateType.SCHEDULED)
    late = [run for run in waiting if run.expected_start_time and run.expected_start_time < now]
    for run in late:
        _force(run.id, Cancelled(name="Missed", message="a later run of the same watch has looked"))
    return len(late)


def _runs(flows: Sequence[str], *types: "StateType") -> "list[FlowRun]":
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )

    of_flows = FlowFilter(name=FlowFilterName(any_=list(flows)))
    in_states = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))
    found: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        while True:
            page = client.read_flow_runs(flow_filter=of_flows, flow_run_filter=in_states, limit=200, offset=len(found))
            found += page
            if len(page) < 200:
                return found


def suspended_runs(deployment: str) -> "list[FlowRun]":
    """The runs of a deployment (its id, or FLOW/NAME) that wait suspended, the oldest first; none where there is no such
    deployment."""
    from prefect.client.schemas.objects import StateType

    found = _runs_of(deployment, StateType.PAUSED)
    return sorted(found, key=lambda run: run.created or datetime.now(UTC))


def about_to_run(deployment: str) -> bool:
    """Whether a run of a deployment was resumed, or handed to a worker, and has not begun yet. A worker that is gone begins it
    when it is back."""
    from prefect.client.schemas.objects import StateType

    return any(
        run.state is not None and (run.state.name == "Resuming" or run.state.type == StateType.PENDING)
        for run in _runs_of(deployment, StateType.SCHEDULED, StateType.PENDING)
    )


def resume(run: "FlowRun") -> None:
    """Have a suspended run go on: it is scheduled for now. Nothing where somebody else has done so."""
    from prefect.exceptions import NotPausedError
    from prefect.flow_runs import resume_flow_run

    with contextlib.suppress(NotPausedError):
        resume_flow_run(run.id)


def drop_runs(runs: "Sequence[FlowRun]", why: str) -> None:
    """End suspended runs that nothing waits for any more."""
    from prefect.states import Cancelled

    for run in runs:
        _force(run.id, Cancelled(name="Superseded", message=why))


def _runs_of(deployment: str, *types: "StateType") -> "list[FlowRun]":
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.exceptions import ObjectNotFound

    in_states = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))
    with get_client(sync_client=True) as client:
        try:
            id_ = client.read_deployment_by_name(deployment).id if "/" in deployment else UUID(deployment)
        except ObjectNotFound:
            return []
        ours = DeploymentFilter(id=DeploymentFilterId(any_=[id_]))
        return client.read_flow_runs(deployment_filter=ours, flow_run_filter=in_states, limit=200)


def _force(run: "UUID", state: "State[Any]") -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, state, force=True)


BY_SCHEDULE: Final = "by-schedule"
