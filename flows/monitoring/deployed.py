"""The flows of watching that `wbc schedule` serves beside the retraining: each night `wbc watch` and `wbc audit`, and what alarms
begin. An automation of Prefect's starts that: it waits for the events of flows/monitoring/watch.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from prefect import flow, get_run_logger, runtime
from prefect.states import Failed

from flows.guard import watch_flow
from flows.identity import workspace_name
from flows.labelling.store import has_store
from flows.monitoring.alarms import DRIFT, RECALL, resource_of
from flows.monitoring.ask import ask_for_labels
from flows.monitoring.audit import audit
from flows.monitoring.watch import watch
from flows.notify import tell
from flows.retraining.prefect_api import BY_SCHEDULE, retraining_flow, run_name
from flows.retraining.schedule import timezone
from wbc_model.core.errors import WbcError
from wbc_model.params import read_params

OnAlarm = Literal["nothing", "retrain", "ask"]
NIGHTLY, ASK = "nightly", "ask-for-labels"
CRON: Final = "17 2 * * *"  # when nobody works; the day of UTC is over in most time zones


def _run_name() -> str:
    return run_name(Path(runtime.flow_run.parameters["workspace"]))


def _failed(flow: Any, flow_run: Any, state: Any) -> None:
    what = "what an alarm asked for failed" if "site" in flow_run.parameters else "at night"
    tell(Path(flow_run.parameters["workspace"]), f"{what}: {state.message or state.name}")


@flow(name="nightly", flow_run_name=_run_name, on_failure=[_failed], on_crashed=[_failed])
def nightly_flow(workspace: str) -> Any:
    """Watch and audit a workspace; a finding of the audit fails the run, so that it is told and seen."""
    watch_flow()
    root, log = Path(workspace), get_run_logger()
    findings = []
    try:
        for line in watch(root).lines if has_store(root) else []:
            log.info(line)
    except WbcError as error:  # the audit may say why
        findings.append(str(error))
    found = audit(root)
    log.info(found.text)
    findings += found.findings
    return Failed(message="; ".join(findings)) if findings else None


@flow(name="ask-for-labels", flow_run_name=_run_name, on_failure=[_failed], on_crashed=[_failed])
def ask_flow(workspace: str, site: str, day: str) -> None:
    """Onboard a site's cells since a day: the champion asks for the few labels that help most."""
    watch_flow()
    get_run_logger().info(ask_for_labels(Path(workspace), site, day))


@dataclass(frozen=True)
class Nightly:
    """What `wbc schedule` serves beside the retraining, and what an alarm begins: a retraining, labels that are asked for, or
    nothing."""

    on_alarm: OnAlarm

    def flow_names(self, workspace: Path) -> tuple[str, str]:
        """The flows at the server."""
        name = workspace_name(workspace)
        return f"{NIGHTLY}-{name}", f"{ASK}-{name}"

    def deployments(self, workspace: Path) -> list[Any]:
        """The deployments, for `serve`."""
        from prefect.schedules import Cron
        from prefect.types.entrypoint import EntrypointType

        common: dict[str, Any] = {"entrypoint_type": EntrypointType.MODULE_PATH, "tags": ["wbc", workspace_name(workspace)]}
        when = Cron(CRON, timezone=timezone(read_params(workspace / "params.yaml").schedule))
        nightly, asking = self.flow_names(workspace)
        given = {"workspace": str(workspace)}
        night = nightly_flow.with_options(name=nightly).to_deployment(name=NIGHTLY, parameters=given, schedule=when, **common)
        ask = ask_flow.with_options(name=asking).to_deployment(name=ASK, parameters={**given, "site": "", "day": ""}, **common)
        return [night, ask]

    def automate(self, workspace: Path) -> None:
        """Make, change or take away the automation; the deployment that it begins is at the server already."""
        asking = f"{self.flow_names(workspace)[1]}/{ASK}"
        deployment = asking if self.on_alarm == "ask" else f"{retraining_flow(workspace)}/{BY_SCHEDULE}"
        automate(workspace_name(workspace), self.on_alarm, deployment)


def automate(workspace: str, on_alarm: OnAlarm, deployment: str) -> None:
    """Have the workspace's alarms begin a run of a deployment (FLOW/NAME), or nothing."""
    from prefect.automations import Automation
    from prefect.client.orchestration import get_client
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import EventTrigger, Posture

    name = f"wbc alarm {workspace}"
    with get_client(sync_client=True) as client:
        for known in client.read_automations_by_name(name):
            client.delete_automation(known.id)
        if on_alarm == "nothing":
            return
        target = client.read_deployment_by_name(deployment).id
    trigger = EventTrigger(
        expect={DRIFT, RECALL},
        match={"prefect.resource.id": resource_of(workspace)},
        posture=Posture.Reactive,
        threshold=1,
    )
    action = RunDeployment(source="selected", deployment_id=target, parameters=_parameters(on_alarm), job_variables=None)
    Automation(name=name, description="What a watch's alarm begins.", trigger=trigger, actions=[action]).create()


def _parameters(on_alarm: OnAlarm) -> dict[str, Any] | None:
    """Of the run: the site and the day of the event where it asks for labels."""
    if on_alarm == "retrain":
        return None
    templates = {"site": "{{ event.payload.site }}", "day": "{{ event.payload.day }}"}
    return {name: {"__prefect_kind": "jinja", "template": template} for name, template in templates.items()}
