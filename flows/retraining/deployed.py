"""The flows that `wbc schedule` serves; Prefect's runner imports them from here in a process for each run.

What they are called at the server carries the workspace's name, which `wbc schedule` gives them.
"""

from pathlib import Path
from typing import Any

from prefect import flow, runtime

from flows.retraining import schedule
from flows.retraining.prefect_api import run_name


def _run_name() -> str:
    return run_name(Path(runtime.flow_run.parameters["workspace"]))


def _failed(flow: Any, flow_run: Any, state: Any) -> None:
    schedule.tell_failure(Path(flow_run.parameters["workspace"]), state.message or state.name)


@flow(name="retraining", flow_run_name=_run_name, on_failure=[_failed], on_crashed=[_failed])
def scheduled_flow(workspace: str, commit: bool = False) -> Any:
    """A retraining of the workspace, unless one is running."""
    return schedule.retraining(Path(workspace), commit)


@flow(name="label-watch", flow_run_name=_run_name, on_failure=[_failed], on_crashed=[_failed])
def label_watch_flow(workspace: str) -> int:
    """Ask for a retraining when enough new labels have come."""
    return schedule.label_watch(Path(workspace))
