"""The flows that `wbc schedule` serves; Prefect's runner imports them from here in a process for each run.

What they are called at the server carries the workspace's name, which `wbc schedule` gives them.
"""

from pathlib import Path
from typing import Any

from prefect import flow, runtime

from flows.guard import watch_flow
from flows.labels import take_waiting
from flows.notify import tell_failure
from flows.retraining.prefect_api import (
    BY_SCHEDULE,
    retraining_flow,
    run_name,
)
from flows.retraining.run import check_before
from flows.state import Busy, hold_lock, is_locked, new_labels, read_state
from wbc_model.cells.pools import Pools
from wbc_model.params import read_params


def retraining(workspace: Path, commit: bool) -> Any:
    """The body of a scheduled run: one retraining, or nothing where one is running already; returns the run's state."""
    from prefect.states import Cancelled

    from flows.retraining import flow as retrain

    watch_flow()
    try:
        with hold_lock(workspace):
            check_before(workspace, commit=commit)
            return retrain.run_state(retrain.retraining(workspace, commit=commit))
    except Busy as busy:
        return Cancelled(name="Skipped", message=str(busy))


def label_watch(workspace: Path) -> int:
    """The body of the label trigger: asks for a retraining when enough labels have come; returns how many have."""
    from prefect.deployments import run_deployment

    watch_flow()
    take_waiting(workspace)
    count = new_labels(workspace)
    if count >= read_params(workspace / "params.yaml").schedule.min_new_labels and not is_locked(workspace):
        state = read_state(workspace)
        # The same labels ask once only, however long it takes until the run begins.
        version = Pools.read(workspace / "data/pools").version()
        key = f"{retraining_flow(workspace)}:{state.key if state else 'first'}:{version}"
        run_deployment(f"{retraining_flow(workspace)}/{BY_SCHEDULE}", timeout=0, as_subflow=False, idempotency_key=key)
    return count


def _run_name() -> str:
    return run_name(Path(runtime.flow_run.parameters["workspace"]))


def _failed(flow: Any, flow_run: Any, state: Any) -> None:
    tell_failure(Path(flow_run.parameters["workspace"]), state.message or state.name)


@flow(name="retraining", flow_run_name=_run_name, on_failure=[_failed], on_crashed=[_failed])
def scheduled_flow(workspace: str, commit: bool = False) -> Any:
    """A retraining of the workspace, unless one is running."""
    return retraining(Path(workspace), commit)


@flow(name="label-watch", flow_run_name=_run_name, on_failure=[_failed], on_crashed=[_failed])
def label_watch_flow(workspace: str) -> int:
    """Ask for a retraining when enough new labels have come."""
    return label_watch(Path(workspace))
