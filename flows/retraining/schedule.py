"""`wbc schedule`: the retraining as a Prefect deployment, by cron, and when enough new labels have come.

Each run is a process of its own that acts on the workspace it was scheduled for, and ends when `wbc schedule` does.
"""

import asyncio
import os
import warnings
import zoneinfo
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flows.guard import FLOW, flow_token
from flows.identity import workspace_name
from flows.pipeline.precision import slow_precision
from flows.retraining.prefect_api import (
    BY_SCHEDULE,
    drop_missed_runs,
    end_dead_runs,
    open_limit,
    prefect_api,
    retraining_flow,
    watch_flow_name,
)
from flows.retraining.run import check_before
from flows.state import hold_lock, is_locked
from wbc_model.core.errors import WbcError, counted
from wbc_model.params import ScheduleParams, read_params

if TYPE_CHECKING:
    from prefect.schedules import Schedule


def timezone(params: ScheduleParams) -> str:
    """The time zone of `cron`: the one of params.yaml, else this machine's; raises WbcError where it has none by name."""
    from tzlocal import get_localzone_name

    if params.timezone:
        return params.timezone
    try:
        name = get_localzone_name()
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, LookupError) as error:
        raise WbcError(f"this machine's time zone is not known ({error}): name one as schedule.timezone in params.yaml") from None
    return name


def when(params: ScheduleParams, every: float | None) -> tuple["Schedule", str]:
    """The schedule, and what it is in words: by an interval in seconds, or by cron."""
    from prefect.schedules import Cron, Interval

    if every:
        return Interval(timedelta(seconds=every)), f"every {every:g} s"
    zone = timezone(params)
    following = next_run(params.cron, zone, datetime.now(UTC))
    return Cron(params.cron, timezone=zone), f"by cron {params.cron} ({zone}; next {following:%a %Y-%m-%d %H:%M %Z})"


def next_run(cron: str, zone: str, after: datetime) -> datetime:
    """When a cron line's next run begins, in its time zone, by Prefect's own reckoning. Others differ in the night in which the
    clock is put forward, and where a day of the month and a weekday are both named."""
    from prefect.server.schemas.schedules import CronSchedule

    dates = asyncio.run(CronSchedule(cron=cron, timezone=zone).get_dates(2, start=after))
    following = next(date for date in dates if date > after)  # in the night of the change it names one that is over, too
    return following.astimezone(zoneinfo.ZoneInfo(zone))


class Beside(Protocol):
    """Flows that are served beside the retraining (flows/monitoring/deployed.py)."""

    def flow_names(self, workspace: Path) -> tuple[str, ...]:
        """Their names at the server."""
        ...

    def deployments(self, workspace: Path) -> list[Any]:
        """Their deployments."""
        ...

    def automate(self, workspace: Path) -> None:
        """What is to be done when all deployments are at the server."""
        ...


def schedule(
    workspace: Path, every: float | None, watch: float, commit: bool = False, served_beside: Callable[[], Beside] | None = None
) -> None:
    """Serve the deployments until stopped; `every` and `watch` are seconds. What `served_beside` names is asked for once
    Prefect's settings are in the environment, as it may import Prefect. Raises WbcError."""
    check_before(workspace, commit=commit)
    whole = read_params(workspace / "params.yaml")
    if line := slow_precision(whole):
        _say(line)
    params = whole.schedule
    own_server = "PREFECT_API_URL" not in os.environ
    os.environ.setdefault("PREFECT_RUNNER_POLL_FREQUENCY", "3")
    os.environ[FLOW] = flow_token()  # the runs watch this process
    with prefect_api(workspace, scheduling=True) as url:
        from prefect import serve
        from prefect.schedules import Interval

        from flows.retraining.deployed import label_watch_flow, scheduled_flow

        beside = served_beside() if served_beside else None
        names = retraining_flow(workspace), watch_flow_name(workspace)
        _clear(workspace, (*names, *(beside.flow_names(workspace) if beside else ())), own_server)
        timing, words = when(params, every)
        _say(f"retraining {words}")
        _say(f"and after {counted(params.min_new_labels, 'new label')}, looked for every {watch:g} s")
        _say(f"Prefect API at {url}; stop with Ctrl-C")
        looking = Interval(timedelta(seconds=watch))
        served = [
            _deployment(scheduled_flow, names[0], BY_SCHEDULE, timing, workspace=str(workspace), commit=commit),
            _deployment(label_watch_flow, names[1], "label-watch", looking, workspace=str(workspace)),
        ]
        if beside:
            served += beside.deployments(workspace)
            for one in served:
                one.apply()  # an automation names a deployment by its id
            beside.automate(workspace)
        # Prefect's runner forgets to wait for its own end when it is told to stop, and ends all the same.
        warnings.filterwarnings("ignore", r"coroutine 'Runner\.astop' was never awaited", RuntimeWarning)
        # The label watch may look, and the night may come, while a retraining runs.
        serve(*served, print_starting_message=False, pause_on_shutdown=False, limit=3)


def _clear(workspace: Path, names: tuple[str, ...], own_server: bool) -> None:
    """Put right at the server what a kill or a downtime left: slots, runs that count as running, runs that were missed."""
    if is_locked(workspace):  # a retraining that somebody typed
        open_limit(own_server=False)
    else:
        with hold_lock(workspace):
            open_limit(own_server)
            dead = end_dead_runs(names)
            if dead:
                _say(f"{counted(dead, 'run')} of a process that was killed: no longer counted as running")
    missed = drop_missed_runs(names)
    if missed:
        _say(f"missed while nobody served them: {counted(missed, 'run')}; the last one is made up for")


def _deployment(flow: Any, name: str, deployment: str, timing: "Schedule", **parameters: Any) -> Any:
    from prefect.types.entrypoint import EntrypointType

    named = flow.with_options(name=name)
    return named.to_deployment(
        name=deployment,
        parameters=parameters,
        entrypoint_type=EntrypointType.MODULE_PATH,
        schedule=timing,
        tags=["wbc", workspace_name(Path(parameters["workspace"]))],
    )


def _say(line: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(line, markup=False)
