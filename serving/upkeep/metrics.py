"""The Prometheus metrics behind `/metrics`.

BentoML's own request metrics are switched off: they label each request with its raw path. Anybody who asks for many different
paths would fill the server's memory. The metrics here have the same names and a closed set of endpoints.
"""

import os
import re
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import SQLAlchemyError

from serving.contract.schemas import Classified, Result
from serving.reports.outbox import backlog
from serving.reports.store import Store
from serving.upkeep.telemetry import Headers, Telemetry
from serving.watch.gauges import Watching

if TYPE_CHECKING:
    from prometheus_client import Metric

ONE: Final = r"/signature|/withdrawal|/fhir|/report\.pdf|/comments|/opinions|/presence"  # what a report has one of
REPORT: Final = re.compile(rf"/v1/reports/[^/]+(?P<rest>(/cells/[^/]+(/image|/undo)?|/opinions/[^/]+(/answer)?|{ONE})?)")
OURS: Final = re.compile(
    rf"/v1/reports/[0-9a-f]{{32}}(/cells/[0-9]{{1,9}}(/image|/undo)?|/opinions/[0-9]{{1,9}}(/answer)?|{ONE})?"
)
LABELLING: Final = re.compile(
    r"/v1/labelling(?P<rest>|/(tasks|undo|sweep|references|disputes|agreement)|/(tasks|disputes)/[^/]+(/image)?|/references/[^/]+)"
)
OUR_NAMES: Final = re.compile(  # of tasks, disputes and references
    r"/v1/labelling/(tasks/[0-9a-f]{12}\.[0-9]{1,9}(/image)?|(disputes|references)/[0-9a-f]{12}\.[0-9a-f]{15}(/image)?)"
)
WATCH: Final = re.compile(r"/v1/watch/[^/]+/pictures/[^/]+")
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
ENDPOINTS: Final = (
    "/",
    "/v1/classify",
    "/v1/differential",
    "/v1/me",
    "/v1/model",
    "/v1/openapi.json",
    "/v1/preview",
    "/v1/reports",
    "/v1/site",
    "/v1/watch",
    "/v1/worklist",
    "/metrics",
)


def endpoint(path: str) -> str:
    """The call that a path belongs to, of which there are few; report ids and numbers of cells are left out."""
    if path in ENDPOINTS:
        return path
    if (found := LABELLING.fullmatch(path)) is not None:
        return "/v1/labelling" + re.sub(r"/(task|dispute|reference)s/[^/]+", r"/\1s/{\1}", found["rest"])
    if WATCH.fullmatch(path) is not None:
        return "/v1/watch/{site}/pictures/{name}"
    found = REPORT.fullmatch(path)
    if found is None:
        return "other"
    rest = re.sub(r"/cells/[^/]+", "/cells/{index}", found["rest"])
    return "/v1/reports/{id}" + re.sub(r"/opinions/[^/]+", "/opinions/{number}", rest)


def call_of(method: str, path: str) -> str:
    """A call as the audit log names it: what a caller invents is left out, since it may be anything, a specimen's id too."""
    ours = OURS.fullmatch(path) or OUR_NAMES.fullmatch(path)
    return f"{method if method in METHODS else 'other'} {path if ours else endpoint(path)}"


class InFlight:
    """Reads how many images wait or are worked on each time the metrics are asked for: by this a cluster makes more pods."""

    def __init__(self, images: Callable[[], int]) -> None:
        self._images = images

    def collect(self) -> Iterator["Metric"]:
        """One gauge."""
        from prometheus_client.core import GaugeMetricFamily

        yield GaugeMetricFamily("wbc_images_in_flight", "Images that wait or are worked on", self._images())


class Outbox:
    """Reads the outbox each time the metrics are asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator["Metric"]:
        """Gauges; none where the store cannot be read, as its figures are not known then."""
        from prometheus_client.core import GaugeMetricFamily

        try:
            now = backlog(self._store)
        except SQLAlchemyError:
            return
        yield GaugeMetricFamily("wbc_outbox_pending", "Messages that wait for the receiver", now.pending)
        yield GaugeMetricFamily("wbc_outbox_failed", "Messages that the receiver has refused", now.failed)
        yield GaugeMetricFamily("wbc_outbox_oldest_seconds", "How long the oldest waiting message has waited", now.oldest_seconds)


class Metrics:
    """Counters of one process; BentoML's processes are added up by `exposition`. With `telemetry` it is told the same."""

    def __init__(self) -> None:
        # prometheus_client decides on its multi-process mode when it is first imported, which must be in the worker process.
        from prometheus_client import Counter, Histogram

        self.telemetry: Telemetry | None = None
        labels = ["endpoint", "http_response_code", "service_name", "service_version"]
        self._requests = Counter("bentoml_service_request_total", "HTTP requests", labels)
        self._seconds = Histogram("bentoml_service_request_duration_seconds", "Duration of HTTP requests in seconds", labels)
        self._images = Counter("wbc_images_total", "Images by what became of them", ["status", "label"])
        self._reviews = Counter("wbc_images_to_review_total", "Classified images that a person must look at", ["reason"])

    def request(self, path: str, status: int, seconds: float, version: str) -> None:
        """Count one answered request."""
        labels = (endpoint(path), str(status), "wbc", version)
        self._requests.labels(*labels).inc()
        self._seconds.labels(*labels).observe(seconds)

    def call(self, method: str, path: str, headers: Headers) -> AbstractContextManager[dict[str, Any]]:
        """A span around a call where there is telemetry; what is put into the dict, under CODE too, becomes its attributes."""
        if self.telemetry is None:
            return nullcontext({})
        return self.telemetry.call(method if method in METHODS else "_OTHER", endpoint(path), headers)

    def reading(self, images: int) -> AbstractContextManager[None]:
        """A span around the decoding and classifying of images where there is telemetry."""
        return nullcontext() if self.telemetry is None else self.telemetry.step("read images", images)

    def results(self, results: Sequence[Result]) -> None:
        """Count the images of one request."""
        statuses = Tally((r.status, r.label if isinstance(r, Classified) else r.problem.reason) for r in results)
        for (status, label), count in statuses.items():
            self._images.labels(status, label).inc(count)
            if self.telemetry is not None:
                self.telemetry.images(count, status, label)
        for reason, count in Tally(reason for r in results if isinstance(r, Classified) for reason in r.review.reasons).items():
            self._reviews.labels(reason).inc(count)


@cache
def process_metrics() -> Metrics:
    """The one set of counters of this process."""
    return Metrics()


def exposition(images_in_flight: Callable[[], int], store: Store | None = None) -> tuple[bytes, str]:
    """All metrics in Prometheus' text format, those of the store's outbox too, and its media type."""
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = REGISTRY
    extra = CollectorRegistry()
    extra.register(InFlight(images_in_flight))
    if store is not None:
        extra.register(Outbox(store))
        extra.register(Watching(store))
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry) + generate_latest(extra), CONTENT_TYPE_LATEST
