"""The flows that `wbc schedule` and a work pool serve; each run is a process of its own, which imports them from here.

What `wbc schedule` calls them at the server carries the workspace's name. A retraining that waits for people suspends: its run
holds no process, slot or worker, and the watch resumes it when enough cells are agreed, or the time is up.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from prefect import flow, get_run_logger, runtime, suspend_flow_run
from prefect.context import FlowRunContext

from flows.guard import watch_flow
from flows.labels import take_waiting
from flows.notify import WATCH_FAILED, tell, tell_failure
from flows.retraining import people
from flows.retraining.prefect_api import (
    BY_SCHEDULE,
    about_to_run,
    drop_late_runs,
    drop_runs,
    resume,
    retraining_flow,
    run_name,
    suspended_runs,
)
from flows.retraining.run import check_before
from flows.state import RETRAINING, Busy, State, at_work, hold_lock, is_locked, new_labels, read_state, taken_back
from wbc_model.cells.pools import Pools
from wbc_model.core.errors import WbcError
from wbc_model.core.files import write_atomic
from wbc_model.params import read_params

if TYPE_CHECKING:
    from flows.retraining.flow import Outcome

_WATCH_TOLD: Final = ".wbc/watch-told"  # why the watch for labels failed, as it was told
_A_DAY: Final = 86_400  # seconds
_PATIENCE: Final = 6 * 3600  # seconds for which an ingest or a stage is waited for


def retraining(workspace: Path, commit: bool) -> Any:
    """The body of a scheduled run: one retraining, or nothing where one is running already; returns the run's state. An ingest or
    a stage is waited for. Where it waits for people the run suspends."""
    from prefect.states import Cancelled

    from flows.retraining import flow as retrain

    watch_flow()
    _wait_for_others(workspace)
    try:
        with hold_lock(workspace):
            check_before(workspace, commit=commit)
            outcome = retrain.retraining(workspace, commit=commit, scheduled=not _resumed())
    except Busy as busy:
        return Cancelled(name="Skipped", message=str(busy))
    return _suspended(outcome) if outcome.status == "waiting" else retrain.run_state(outcome)


def _wait_for_others(workspace: Path) -> None:
    """Wait while something other than a retraining has the workspace: a run that is skipped for an ingest comes a night later."""
    deadline, said = time.monotonic() + _PATIENCE, ""
    while (busy := at_work(workspace)) and not busy.startswith(RETRAINING) and time.monotonic() < deadline:
        if busy != said:
            get_run_logger().info(f"waiting for {busy}")
        said = busy
        time.sleep(2)


def _resumed() -> bool:
    """Whether this run was suspended before and somebody resumed it, the watch or a person: it goes on with the answers that
    there are."""
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.empirical_policy.pause_keys)


def _suspended(outcome: "Outcome") -> Any:
    """Suspend the run, once for each wait: another one that waits already is enough."""
    from prefect.states import Cancelled

    from flows.retraining.flow import run_state

    if runtime.deployment.id is None:
        return run_state(outcome)
    mine = str(runtime.flow_run.id)
    if others := [run for run in suspended_runs(str(runtime.deployment.id)) if str(run.id) != mine]:
        return Cancelled(name="Waiting", message=f"the run {others[0].name} waits for people already: {outcome.next_step}")
    get_run_logger().info(f"waiting for people: {outcome.next_step}")
    return suspend_flow_run(key=uuid4().hex)  # a key that was used before suspends nothing


def label_watch(workspace: Path, deployment: str = "") -> int:
    """The body of the label trigger. It takes in what people agreed on, and has a retraining go on or begin when that is enough.
    Returns how many labels are new or were taken back. `deployment` is the retraining's; by default that of `wbc schedule`."""
    watch_flow()
    deployment = deployment or f"{retraining_flow(workspace)}/{BY_SCHEDULE}"
    take_waiting(workspace)
    waits = _look(workspace)
    count, state = new_labels(workspace) + taken_back(workspace), read_state(workspace)
    if is_locked(workspace):
        return count
    suspended = suspended_runs(deployment)
    if state is None or state.status != "waiting":
        drop_runs(suspended, "the retraining that it waited with went on in another run")
        killed = state is not None and state.status == "running" and state.scheduled  # what a person began goes on by a person
        if killed or count >= read_params(workspace / "params.yaml").schedule.min_new_labels:
            _ask_for_a_run(workspace, deployment, state)
    elif waits:
        if suspended:
            resume(suspended[0])
            drop_runs(suspended[1:], "another run goes on")
        elif not about_to_run(deployment):  # the run that waited was killed, or the server is another one
            _ask_for_a_run(workspace, deployment, state)
    return count


def _look(workspace: Path) -> str:
    """Take what people agreed on, and let the page say what happens next; returns why a retraining that waits may go on. A store
    that cannot be reached now is looked at again at the next watch."""
    try:
        people.take(workspace)
        standing = people.stand(workspace, show=True)
    except WbcError as error:
        get_run_logger().warning(f"the people's answers were not looked at: {error}")
        return ""
    wait, state = standing.wait, read_state(workspace)
    if wait is None or state is None:
        return ""
    if not state.scheduled:  # a person asked; from now on the watch has it go on
        people.goes_on_by_itself(workspace)
    if wait.overdue(datetime.now(UTC)) and people.note_overdue(workspace, state):
        tell(workspace, f"{workspace.name}: the time for labelling is up, and no cell is agreed; {standing.line}")
    return wait.ready(datetime.now(UTC))


def _ask_for_a_run(workspace: Path, deployment: str, state: State | None) -> None:
    """Ask for a run of the retraining. The same labels ask once only, however long it takes until the run begins."""
    from prefect.deployments import run_deployment

    version = Pools.read(workspace / "data/pools").version()
    key = f"{deployment.partition('/')[0]}:{state.key if state else 'first'}:{version}"
    run_deployment(deployment, timeout=0, as_subflow=False, idempotency_key=key)


def _run_name() -> str:
    return run_name(Path(runtime.flow_run.parameters["workspace"]))


def _failed(flow: Any, flow_run: Any, state: Any) -> None:
    tell_failure(Path(flow_run.parameters["workspace"]), state.message or state.name)


def _watch_failed(flow: Any, flow_run: Any, state: Any) -> None:
    """Tell of a failed watch, but not again each minute: the same failure is told once a day until a watch goes well."""
    workspace, why = Path(flow_run.parameters["workspace"]), state.message or state.name
    told = workspace / _WATCH_TOLD
    # `abs`: a clock that was put back since makes it a time to come.
    if told.exists() and abs(time.time() - told.stat().st_mtime) < _A_DAY and told.read_text(encoding="utf-8") == why:
        return
    tell_failure(workspace, why, WATCH_FAILED)
    write_atomic(told, why)  # last: a full disk may be the very thing that is told


def _watch_went_well(flow: Any, flow_run: Any, state: Any) -> None:
    (Path(flow_run.parameters["workspace"]) / _WATCH_TOLD).unlink(missing_ok=True)


@flow(name="retraining", flow_run_name=_run_name, on_failure=[_failed], on_crashed=[_failed])
def scheduled_flow(workspace: str, commit: bool = False) -> Any:
    """A retraining of the workspace, unless one is running."""
    return retraining(Path(workspace), commit)


@flow(
    name="label-watch",
    flow_run_name=_run_name,
    on_failure=[_watch_failed],
    on_crashed=[_watch_failed],
    on_completion=[_watch_went_well],
)
def label_watch_flow(workspace: str, retraining: str = "") -> int:
    """Take in what people agreed on; have a retraining go on, or begin, when that is enough. `retraining` names its deployment
    (FLOW/NAME) where `wbc schedule` does not serve it."""
    if runtime.deployment.id is not None:
        drop_late_runs(str(runtime.deployment.id))
    return label_watch(Path(workspace), retraining)
