"""`wbc schedule`: the retraining as a Prefect deployment, by cron, and when enough new labels have come.

Each run is a process of its own that acts on the workspace it was scheduled for, and ends when `wbc schedule` does.
"""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from flows.guard import FLOW, flow_token, watch_flow
from flows.prefect_api import open_limit, prefect_api
from flows.state import Busy, hold_lock, is_locked, new_labels, read_state
from wbc_model.params import read_params

DEPLOYMENT = "retraining/by-schedule"


def retraining(workspace: str) -> dict[str, Any]:
    """The body of a scheduled run: one retraining, or nothing where one is running already."""
    from flows.retrain import retrain_flow

    watch_flow()
    try:
        with hold_lock(Path(workspace)):
            return retrain_flow(workspace).to_dict()
    except Busy as busy:
        return {"skipped": str(busy)}


def label_watch(workspace: str) -> int:
    """The body of the label trigger: asks for a retraining when enough labels have come; returns how many have."""
    from prefect.deployments import run_deployment

    watch_flow()
    root = Path(workspace)
    count = new_labels(root)
    if count >= read_params(root / "params.yaml").schedule.min_new_labels and not is_locked(root):
        state = read_state(root)
        # The same labels ask once only, however long it takes until the run begins.
        key = f"{root}:{state.key if state else 'first'}:{count}"
        run_deployment(DEPLOYMENT, timeout=0, as_subflow=False, idempotency_key=key)
    return count


def schedule(workspace: Path, every: float | None, watch: float) -> None:
    """Serve the deployments until stopped; `every` and `watch` are seconds. Raises WbcError."""
    params = read_params(workspace / "params.yaml")
    own_server = "PREFECT_API_URL" not in os.environ
    os.environ.setdefault("PREFECT_RUNNER_POLL_FREQUENCY", "3")
    os.environ[FLOW] = flow_token()  # the runs watch this process
    with prefect_api(workspace, scheduling=True) as url:
        from prefect import serve

        from flows.deployed import label_watch_flow, scheduled_flow

        if is_locked(workspace):
            open_limit(own_server=False)
        else:
            with hold_lock(workspace):
                open_limit(own_server)
        values = {"workspace": str(workspace)}
        when = {"interval": timedelta(seconds=every)} if every else {"cron": params.schedule.cron}
        _say(f"Prefect API at {url}; retraining {f'every {every:g} s' if every else f'by cron {params.schedule.cron}'}, and")
        _say(f"after {params.schedule.min_new_labels} new labels (looked for every {watch:g} s). Stop with Ctrl-C.")
        serve(
            _deployment(scheduled_flow, "by-schedule", values, **when),
            _deployment(label_watch_flow, "label-watch", values, interval=timedelta(seconds=watch)),
            print_starting_message=False,
            pause_on_shutdown=False,
            limit=2,  # the watch may look while a retraining runs
        )


def _deployment(flow: Any, name: str, values: dict[str, str], **when: Any) -> Any:
    from prefect.types.entrypoint import EntrypointType

    return flow.to_deployment(name=name, parameters=values, entrypoint_type=EntrypointType.MODULE_PATH, **when)


def _say(line: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(line, markup=False)
