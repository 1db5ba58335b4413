"""A small receiver of OTLP over HTTP, on loopback: what it was sent, read again."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Receiver:
    """`bodies` are all bytes that came; what they say is read by `spans` and `metrics`."""

    url: str
    bodies: list[tuple[str, bytes]] = field(default_factory=list)

    def spans(self) -> list[dict[str, Any]]:
        sent = [ExportTraceServiceRequest.FromString(body) for path, body in self.bodies if path == "/v1/traces"]
        resources = [resource for request in sent for resource in request.resource_spans]
        return [MessageToDict(span) for one in resources for scope in one.scope_spans for span in scope.spans]

    def metrics(self) -> list[dict[str, Any]]:
        sent = [ExportMetricsServiceRequest.FromString(body) for path, body in self.bodies if path == "/v1/metrics"]
        resources = [resource for request in sent for resource in request.resource_metrics]
        return [MessageToDict(metric) for one in resources for scope in one.scope_metrics for metric in scope.metrics]

    def services(self) -> set[str]:
        sent = [ExportTraceServiceRequest.FromString(body) for path, body in self.bodies if path == "/v1/traces"]
        attributes = [attribute for request in sent for one in request.resource_spans for attribute in one.resource.attributes]
        return {attribute.value.string_value for attribute in attributes if attribute.key == "service.name"}


@contextmanager
def receiving() -> Iterator[Receiver]:
    made = Receiver("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()


def attributes(span: dict[str, Any]) -> dict[str, str]:
    return {one["key"]: str(next(iter(one["value"].values()))) for one in span.get("attributes", [])}
