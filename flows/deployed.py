"""The flows that `wbc schedule` serves; Prefect's runner imports them from here in a process for each run."""

from typing import Any

from prefect import flow

from flows import schedule


@flow(name="retraining")
def scheduled_flow(workspace: str) -> dict[str, Any]:
    """A retraining of the workspace, unless one is running."""
    return schedule.retraining(workspace)


@flow(name="label-watch")
def label_watch_flow(workspace: str) -> int:
    """Ask for a retraining when enough new labels have come."""
    return schedule.label_watch(workspace)
