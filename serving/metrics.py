"""The Prometheus metrics behind `/metrics`.

BentoML's own request metrics are switched off: they label each request with its raw path, so that anybody who asks for many
different paths fills the server's memory. The ones here have the same names and a closed set of endpoints.
"""

import os
from collections import Counter as Tally
from collections.abc import Sequence
from functools import cache
from typing import Final

from serving.schemas import Classified, Result

ENDPOINTS: Final = ("/v1/classify", "/v1/differential", "/v1/model", "/v1/openapi.json", "/metrics")


def endpoint(path: str) -> str:
    """The call that a path belongs to, of which there are few."""
    return path if path in ENDPOINTS else "other"


class Metrics:
    """Counters of one process; BentoML's processes are added up by `exposition`."""

    def __init__(self) -> None:
        # prometheus_client decides on its multi-process mode when it is first imported, which must be in the worker process.
        from prometheus_client import Counter, Histogram

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

    def results(self, results: Sequence[Result]) -> None:
        """Count the images of one request."""
        statuses = Tally((r.status, r.label if isinstance(r, Classified) else r.problem.reason) for r in results)
        for (status, label), count in statuses.items():
            self._images.labels(status, label).inc(count)
        for reason, count in Tally(reason for r in results if isinstance(r, Classified) for reason in r.review.reasons).items():
            self._reviews.labels(reason).inc(count)


@cache
def process_metrics() -> Metrics:
    """The one set of counters of this process."""
    return Metrics()


def exposition() -> tuple[bytes, str]:
    """All metrics in Prometheus' text format, and its media type."""
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
