"""Alarms of the watch. Each is written in the transaction of the verdict that it follows from, and told afterwards: whoever is
killed in between leaves it to the next watch.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, UUID, uuid5

from flows.identity import workspace_name
from flows.notify import tell

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from serving.reports.store import Store

DRIFT, RECALL = "wbc.drift.alarm", "wbc.recall.alarm"  # the events by which Prefect's automations begin


@dataclass(frozen=True)
class Alarm:
    """What a site's cells, or the model's answers about them, have come to; `day` is the first of it."""

    event: str
    site: str
    model: str
    day: str
    what: tuple[str, ...]

    @property
    def line(self) -> str:
        """In words."""
        if self.event == RECALL:
            return f"site {self.site}: the recall of {' and '.join(self.what)} is under its floor in use (model {self.model})"
        return (
            f"site {self.site}: {', '.join(self.what)} of its cells differ from the usual since {self.day} (model {self.model})"
        )


def note(session: "Session", alarm: Alarm) -> None:
    """Note that an alarm is to be told, in the transaction that keeps what it follows from."""
    from serving.reports.tables import WatchAlarm

    row = {"event": alarm.event, "site": alarm.site, "model_version": alarm.model, "day": alarm.day, "what": list(alarm.what)}
    session.add(WatchAlarm(**row))


def tell_what_is_new(workspace: Path, store: "Store") -> list[Alarm]:
    """Tell of each alarm that was not told yet, and emit its event; returns them, the earliest first.

    A kill in here may tell people twice, but never not at all. The event is emitted once.
    """
    from serving.reports.tables import WatchAlarm

    told = []
    for number, alarm in _untold(store):
        tell(workspace, alarm.line)
        _emit(workspace, number, alarm)
        with store.writing() as session:
            session.get_one(WatchAlarm, number).told_at = datetime.now(UTC)
        told.append(alarm)
    return told


def _untold(store: "Store") -> Iterator[tuple[int, Alarm]]:
    from sqlalchemy import select

    from serving.reports.tables import WatchAlarm

    with store.reading() as session:
        rows = session.scalars(select(WatchAlarm).where(WatchAlarm.told_at.is_(None)).order_by(WatchAlarm.id)).all()
    for row in rows:
        yield row.id, Alarm(row.event, row.site, row.model_version, row.day, tuple(row.what))


def _emit(workspace: Path, number: int, alarm: Alarm) -> None:
    """Emit the event of an alarm, where there is a Prefect server that does not have it; its automations begin what is to be
    done."""
    if "PREFECT_API_URL" not in os.environ:
        return
    from prefect.events import emit_event
    from prefect.events.worker import EventsWorker

    name = workspace_name(workspace)
    id_ = uuid5(NAMESPACE_URL, f"{resource_of(name)} {number} {alarm}")
    if _is_there(id_):
        return
    resource = {"prefect.resource.id": resource_of(name), "prefect.resource.name": name, "wbc.site": alarm.site}
    emit_event(event=alarm.event, resource=resource, payload={**asdict(alarm), "line": alarm.line}, id=id_)
    EventsWorker.instance().drain()


def _is_there(event: UUID) -> bool:
    """Whether the server has an event already: of a watch that was killed before it could note so."""
    from prefect.client.orchestration import get_client
    from prefect.events.filters import EventFilter, EventIDFilter

    with get_client(sync_client=True) as client:
        return bool(client.read_events(EventFilter(id=EventIDFilter(id=[event])), limit=1).events)


def resource_of(workspace: str) -> str:
    """What the events of a workspace are about, as Prefect names it."""
    return f"wbc.workspace.{workspace}"
