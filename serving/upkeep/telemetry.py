"""OpenTelemetry: a span of each call with what it asked the database below it, and metrics, sent by OTLP over HTTP.

The environment variables are OpenTelemetry's own. Without the address of a receiver nothing is sent, and the SDK is not loaded.
What leaves is a list of known attributes: paths, queries and the database's words may hold a specimen's number.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from wbc_model.core.errors import WbcError

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import TracerProvider

    from serving.reports.store import Store

DISABLED: Final = "OTEL_SDK_DISABLED"
TRACES, METRICS = "TRACES", "METRICS"
PROTOCOL: Final = "http/protobuf"
SERVICE: Final = "wbc"
METHOD, ROUTE, CODE = "http.request.method", "http.route", "http.response.status_code"
CALL: Final = (METHOD, ROUTE, CODE)
# Of a statement: the kind of database and the text, in which values are placeholders. Under both generations of names.
STATEMENT: Final = ("db.system", "db.statement", "db.system.name", "db.query.text")
IMAGES: Final = "wbc.images"
TOLD: Final = frozenset((*CALL, *STATEMENT, IMAGES))
Headers = Sequence[tuple[bytes, bytes]]


def has_receiver(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the address of a receiver is given, of whatever signal."""
    return any(environment.get(name, "").strip() for signal in (TRACES, METRICS) for name in _endpoints(signal))


def _endpoints(signal: str) -> tuple[str, str]:
    return "OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"


def check_settings() -> None:
    """Raises WbcError as `wanted`."""
    wanted(TRACES), wanted(METRICS)


def wanted(signal: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `TRACES` or `METRICS` are sent. Raises WbcError for an exporter or a protocol that is not here."""
    values = {name: value.strip() for name, value in environment.items() if name.startswith("OTEL_")}
    exporter = values.get(f"OTEL_{signal}_EXPORTER") or "otlp"
    if values.get(DISABLED, "").lower() == "true" or exporter == "none" or not any(map(values.get, _endpoints(signal))):
        return False
    if exporter != "otlp":
        raise WbcError(f"OTEL_{signal}_EXPORTER={exporter}: give otlp or none")
    name = f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"
    name = name if values.get(name) else "OTEL_EXPORTER_OTLP_PROTOCOL"
    if values.get(name, PROTOCOL) not in ("", PROTOCOL):
        raise WbcError(f"{name}={values[name]}: OTLP is sent by {PROTOCOL} here, to the receiver's port 4318")
    return True


class Telemetry:
    """What sends spans and metrics. Where one of them is not wanted its provider is the API's own, which does nothing."""

    def __init__(self, traces: "TracerProvider", metrics: "MeterProvider", images_in_flight: Callable[[], int]) -> None:
        from opentelemetry.metrics import Observation

        def now(_: "CallbackOptions") -> "Iterator[Observation]":
            yield Observation(images_in_flight())

        self._traces, self._metrics = traces, metrics
        self._tracer = traces.get_tracer(SERVICE)
        meter = metrics.get_meter(SERVICE)
        self._seconds = meter.create_histogram("http.server.request.duration", "s", "Duration of HTTP requests")
        self._images = meter.create_counter("wbc.images", "{image}", "Images by what became of them")
        meter.create_observable_gauge("wbc.images.in_flight", [now], "{image}", "Images that wait or are worked on")

    @classmethod
    def from_environment(cls, images_in_flight: Callable[[], int]) -> "Telemetry | None":
        """None where the environment names no receiver. `images_in_flight` is asked at each export."""
        traces, metrics = wanted(TRACES), wanted(METRICS)
        if not traces and not metrics:
            return None
        return cls(_traces(traces), _metrics(metrics), images_in_flight)

    def look_at(self, store: "Store") -> None:
        """Have a span for each statement of a store's."""
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

        SQLAlchemyInstrumentor().instrument(engine=store.engine, tracer_provider=self._traces)

    @contextmanager
    def call(self, method: str, route: str, headers: Headers) -> "Iterator[dict[str, Any]]":
        """A span around a call, below the caller's where the request names one (W3C Trace Context). What is put into the dict
        yielded becomes its attributes; CODE is expected there, and decides whether the call failed."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode

        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name.startswith(b"trace")}
        about: dict[str, Any] = {METHOD: method, ROUTE: route, CODE: 500}
        started = time.perf_counter()
        with self._tracer.start_as_current_span(
            f"{method} {route}",
            extract(carrier),
            SpanKind.SERVER,
            record_exception=False,  # its words may hold what a caller has sent
            set_status_on_exception=False,
        ) as span:
            try:
                yield about
            finally:
                span.set_attributes(about)
                if about[CODE] >= 500:
                    span.set_status(Status(StatusCode.ERROR))
                self._seconds.record(time.perf_counter() - started, {name: about[name] for name in CALL})

    @contextmanager
    def step(self, name: str, images: int) -> Iterator[None]:
        """A span around a part of a call that works on so many images."""
        with self._tracer.start_as_current_span(
            name, attributes={IMAGES: images}, record_exception=False, set_status_on_exception=False
        ):
            yield

    def images(self, count: int, status: str, label: str) -> None:
        """Count images of one request by what became of them."""
        self._images.add(count, {"status": status, "label": label})

    def close(self) -> None:
        """Send what is left."""
        for provider in (self._traces, self._metrics):
            if (shutdown := getattr(provider, "shutdown", None)) is not None:  # those that do nothing have none
                shutdown()


def _resource() -> "Resource":
    """What the variables say of this process; its name is `wbc` where they name none."""
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource

    given = OTELResourceDetector().detect().attributes
    return Resource.create({SERVICE_NAME: given.get(SERVICE_NAME, SERVICE)})


def _traces(on: bool) -> "TracerProvider":
    if not on:
        from opentelemetry.trace import NoOpTracerProvider

        return NoOpTracerProvider()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=_resource())
    provider.add_span_processor(BatchSpanProcessor(discreet(OTLPSpanExporter())))
    return provider


def _metrics(on: bool) -> "MeterProvider":
    if not on:
        from opentelemetry.metrics import NoOpMeterProvider

        return NoOpMeterProvider()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    return MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], _resource())


def discreet(exporter: "SpanExporter") -> "SpanExporter":
    """An exporter of spans in which nothing is but what is TOLD.

    Errors of a database quote the row that they are about, and the name of a statement's span has the database's: a path, of
    SQLite. A statement without a call above it is left out: the threads that send messages and delete images ask all the time.
    """
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import SpanKind

    class Discreet(SpanExporter):
        def export(self, spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
            told = [_told(span) for span in spans if span.parent is not None or span.kind is SpanKind.SERVER]
            return exporter.export(told) if told else SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            exporter.shutdown()

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return exporter.force_flush(timeout_millis)

    return Discreet()


def _told(span: "ReadableSpan") -> "ReadableSpan":
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Status

    attributes = {name: value for name, value in (span.attributes or {}).items() if name in TOLD}
    of_a_statement = any(name in attributes for name in STATEMENT)
    return ReadableSpan(
        span.name.partition(" ")[0] if of_a_statement else span.name,
        span.context,
        span.parent,
        span.resource,
        attributes,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
