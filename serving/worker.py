"""What the worker process of the service makes: the routes, the layer around them, and all that they work with.

The process that starts the worker does not import this. It would load twice what only the worker needs.
"""

from pathlib import Path

from serving.contract.schemas import ModelName
from serving.contract.site import site_from_environment
from serving.http import connections
from serving.http.app import create_app
from serving.http.layer import Around
from serving.http.limits import Limits
from serving.http.running import Kept, Running
from serving.inference.champion import ChampionWatch
from serving.reports.signing import say_rendered
from serving.security.audit import AuditLog
from serving.security.keys import ApiKeys
from serving.upkeep.deeds import complete
from serving.upkeep.telemetry import Telemetry
from wbc_model.core.model_card import ModelCard


class Worker:
    """The service at work. `around` answers; `running` is what it works with. Its settings are those of the environment."""

    def __init__(self, directory: Path, card: ModelCard | None) -> None:
        """`card` is that of the model in `directory`; None while it is awaited. Raises WbcError for a bad setting."""
        app = create_app()
        self.around = Around(app)
        self.running = app.state.running = _running(card)
        # The server listens while the model loads: /livez says yes, /readyz not yet.
        self._watch = ChampionWatch(directory, self.running.install)
        self._watch.start()

    def close(self) -> None:
        """End the watch and the sender, and write what the audit log still waits for."""
        self._watch.stop()
        if self.running.kept is not None:
            self.running.kept.close()
        if self.running.audit is not None:
            self.running.audit.close()
        if self.running.metrics.telemetry is not None:
            self.running.metrics.telemetry.close()


def _running(card: ModelCard | None) -> Running:
    limits, audit = Limits.from_environment(), AuditLog.from_environment()
    connections.use(limits)
    site = site_from_environment()
    kept = Kept.from_environment(site)
    complete(audit, None if kept is None else kept.store)
    if kept is not None and card is not None and card.rendered:  # before a report can be signed, which needs no model in memory
        say_rendered(kept.store, ModelName(name=card.name, version=card.version))
    running = Running(None, ApiKeys.from_environment(), limits, site, audit, kept)
    running.metrics.telemetry = Telemetry.from_environment(lambda: running.in_flight.images)
    if running.metrics.telemetry is not None and kept is not None:
        running.metrics.telemetry.look_at(kept.store)
    return running
