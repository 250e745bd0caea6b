"""Spans of OpenTelemetry: what a collector gets, and that nothing is imported where nobody asks for them."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from aiohttp import web

from ir3de.gateway.server import Service, tracing
from ir3de.scripts.bench.stand_in import Received

from .gateway_world import HASTY, world

proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="no opentelemetry")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="no exporter of opentelemetry")

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A collector, and the spans that it has got."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            for resource in proto.ExportTraceServiceRequest.FromString(data).resource_spans:
                service = {each.key: each.value.string_value for each in resource.resource.attributes}
                assert service["service.name"] == "ir3de"
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield spans
    server.shutdown()
    server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


async def fail(_: web.Request, __: Received) -> web.StreamResponse:
    return web.Response(status=500, text="secret")


def test_a_request_has_spans_of_its_route_and_of_each_expert_that_was_asked(collector: list[Any]) -> None:
    traced = tracing()
    assert traced is not None
    with world(settings=HASTY, responds={"law": fail}) as made:
        made.gateway.tracing = traced
        answered = made.ask(headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"})
        assert answered.expert in ("code", "math")
        sent = made.last(str(answered.expert)).headers
        refused = made.ask(model="gpt-4")
        assert refused.status == 404
    traced.close()
    of_request = [span for span in collector if span.trace_id.hex() == TRACE]
    [request] = [span for span in of_request if span.name == "POST /v1/chat/completions"]
    assert request.parent_span_id.hex() == PARENT
    about = attributes(request)
    assert about["http.response.status_code"] == 200
    assert (about["ir3de.expert"], about["ir3de.outcome"]) == (answered.expert, "answered")
    assert about["ir3de.request.id"] == answered.headers["x-request-id"]
    inside = [span for span in of_request if span.parent_span_id == request.span_id]
    assert sorted(span.name for span in inside) == sorted(
        ["route", "chat served-law", "chat served-law", f"chat served-{answered.expert}"]
    )
    route = next(span for span in inside if span.name == "route")
    assert attributes(route)["ir3de.expert"] == "law"
    assert 0 < route.end_time_unix_nano - route.start_time_unix_nano < 5e9
    failed = [span for span in inside if span.name == "chat served-law"]
    assert {attributes(span)["error.type"] for span in failed} == {"status 500"}
    [asked] = [span for span in inside if span.name == f"chat served-{answered.expert}"]
    assert attributes(asked)["gen_ai.usage.input_tokens"] == 11
    assert attributes(asked)["server.address"] == "127.0.0.1"
    assert sent["traceparent"] == f"00-{TRACE}-{asked.span_id.hex()}-01"
    assert sent["tracestate"] == "a=b"
    assert any(attributes(span).get("ir3de.outcome") == "model_not_found" for span in collector)
    assert "court" not in str(collector)


def test_a_stream_that_breaks_off_is_an_error(collector: list[Any]) -> None:
    async def half(request: web.Request, _: Received) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        await stream.write(b"data: {}\n\n")
        assert request.transport is not None
        request.transport.abort()
        return stream

    traced = tracing()
    assert traced is not None
    with world(settings=HASTY, responds={"law": half}) as made:
        made.gateway.tracing = traced
        made.ask(stream=True)
    traced.close()
    broken = {span.name for span in collector if attributes(span).get("error.type")}
    assert {"POST /v1/chat/completions", "chat served-law"} <= broken


def test_what_the_environment_asks_for_is_done_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    assert tracing() is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert tracing() is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(ValueError, match="zipkin"):
        tracing()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ValueError, match="grpc"):
        tracing()
    with pytest.raises(ValueError, match="grpc"):
        Service("a router").check()  # before that is loaded
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing() is None


def test_without_spans_their_packages_are_not_imported() -> None:
    code = "import sys, ir3de.gateway.server as server; assert server.tracing() is None; "
    code += "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)
