"""What a started service works with; the routes find it in `request.app.state.running`."""

import logging
from contextlib import ExitStack
from typing import Self

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request

from serving.contract.problems import Problem
from serving.contract.schemas import (
    ModelName,
)
from serving.contract.site import Site, read_site
from serving.http.limits import InFlight, Limits, RateLimit
from serving.inference.classify import Classifier
from serving.reports.kept_images import check_image_key
from serving.reports.listing import models_of_open_reports
from serving.reports.outbox import Sender
from serving.reports.signing import say_rendered
from serving.reports.store import Store
from serving.security.audit import AuditLog
from serving.security.hosts import Hosts
from serving.security.keys import ApiKeys
from serving.security.refusals import Refusals
from serving.upkeep.clock import Clock
from serving.upkeep.deeds import Cleaned
from serving.upkeep.metrics import process_metrics
from serving.upkeep.open_reports import OpenReports
from serving.upkeep.retention import Retention
from serving.watch.record import Recorder
from serving.worklist.presence import Looking

_LOG = logging.getLogger("bentoml.wbc")  # BentoML sets up the log of what is called `bentoml`
EARLIER_MODELS = 3  # in memory at most, beside the one that answers


class Kept:
    """What a service that keeps reports works with: the store, which it holds, the threads that send and that delete images.

    Raises StoreInUse while somebody has the store alone.
    """

    def __init__(self, store: Store, site: Site) -> None:
        self._held = ExitStack()
        self._held.enter_context(store.held())
        self.store = store
        self.clock = Clock(store)
        self.sender = Sender(store, site.hl7) if site.hl7 is not None else None
        self.retention = Retention(store, site.keep_images, self.clock)
        self.recorder = Recorder(store, site, self.clock.now)
        self.open_reports = OpenReports(store, site)

    @classmethod
    def from_environment(cls, site: Site) -> Self | None:
        """With the store that WBC_STORE_URL names; None where it names none. Raises WbcError as `check_image_key`."""
        store = Store.from_environment()
        if store is None:
            return None
        check_image_key(store, site)
        return cls(store, site)

    def close(self) -> None:
        """End the threads, which write what waits, and close the store."""
        self.open_reports.close()
        self.recorder.close()
        self.retention.close()
        if self.sender is not None:
            self.sender.close()
        self._held.close()
        self.store.close()


class Running:
    """What a started service works with; the routes find it in `request.app.state.running`."""

    def __init__(
        self,
        classifier: Classifier | None,
        keys: ApiKeys,
        limits: Limits,
        site: Site | None = None,
        audit: AuditLog | None = None,
        kept: Kept | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        self._classifier = classifier
        self._earlier: list[Classifier] = []
        self.site = site or read_site()
        self.audit = audit
        self.kept = kept
        self.keys = keys
        self.hosts = hosts or Hosts.from_environment()
        self.limits = limits
        self.rate = RateLimit(limits.requests_per_minute)
        self.in_flight = InFlight(limits.in_flight_bytes, limits.waiting_images)
        self.metrics = process_metrics()
        self.refusals = audit.refusals if audit is not None else Refusals(forget=True)
        self.keys_in_use: set[tuple[str, str]] = set()  # callers and their Idempotency-Keys that are under way
        self.cleaned = Cleaned()
        self.looking = Looking()

    @property
    def ready(self) -> bool:
        """Whether a model has been loaded and tried out."""
        return self._classifier is not None

    @property
    def classifier(self) -> Classifier:
        """The model in use. Ask once a request and hold on to it: another may take its place at any time.

        Raises Problem 503 while none is loaded.
        """
        if self._classifier is None:
            raise Problem(503, "not-ready", "Not ready", "No model is loaded yet; try again.", {"Retry-After": "2"})
        return self._classifier

    def install(self, classifier: Classifier) -> None:
        """Let a model answer from now on.

        Where images are not kept, the model before it stays in memory for the reports that it has begun. Older models stay as
        long as they have open reports.
        """
        if self.kept is not None and classifier.card.rendered:
            try:
                say_rendered(self.kept.store, classifier.model)
            except SQLAlchemyError as error:
                _LOG.error("the reports of drawn cells cannot be marked: %s", type(error).__name__)
        before, self._classifier = self._classifier, classifier
        if before is not None and self.kept is not None and not self.site.keep_images:
            held = [one for one in self._earlier if one.model != classifier.model]
            try:
                needed = models_of_open_reports(self.kept.store)
            except SQLAlchemyError as error:
                _LOG.error("which models have open reports cannot be looked up: %s", type(error).__name__)
                needed = [one.model for one in held]
            self._earlier = [before, *(one for one in held if one.model in needed)][:EARLIER_MODELS]

    def earlier(self, model: ModelName) -> Classifier | None:
        """A model that answered before and is in memory still."""
        return next((one for one in self._earlier if one.model == model), None)

    @property
    def version(self) -> str:
        """The version of the model in use, for the metrics."""
        return self._classifier.card.version if self._classifier else "none"


def running_of(request: Request) -> Running:
    """What the service that answers this request works with."""
    running: Running = request.app.state.running
    return running
