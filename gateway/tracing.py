"""Spans of OpenTelemetry, where its environment variables ask for them: a request, its route, each expert asked.

Nothing that was said is in a span. Names and attributes are those of the semantic conventions of HTTP and of generative
AI, where these have one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .apis import COMPLETIONS, MESSAGES, Api

if TYPE_CHECKING:
    from .exchange import Exchange

_PROPAGATOR = TraceContextTextMapPropagator()
_SERVICE = "ir3de"


class Tracing:
    """Makes spans and sends them away in a thread of its own; where to, and which, is read from the environment.

    Raises:
        ValueError: a variable asks for an exporter or a protocol that there is not.
    """

    def __init__(self) -> None:
        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", _SERVICE)})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(_exporter()))
        self._tracer = self._provider.get_tracer(_SERVICE)

    def begin(self, api: Api, headers: Mapping[str, str]) -> Trace:
        """The trace of a request that has come.

        Args:
            api ([`Api`]): its shape.
            headers (`Mapping[str, str]`): of the client, which may have a trace of its own.
        """
        return Trace(self._tracer, api, headers)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


class Trace:
    """
    The spans of one request.

    Args:
        tracer (`Tracer`): that makes them.
        api ([`Api`]): the request's shape.
        headers (`Mapping[str, str]`): of the client.
    """

    def __init__(self, tracer: Tracer, api: Api, headers: Mapping[str, str]) -> None:
        self._tracer = tracer
        self._api = api
        path = f"/v1/{api.path}"
        self._span = tracer.start_span(
            f"POST {path}",
            _PROPAGATOR.extract(dict(headers)),
            SpanKind.SERVER,
            {"http.request.method": "POST", "http.route": path, "url.path": path},
        )
        self._attempt: Span | None = None

    @property
    def _inside(self) -> Context:
        return set_span_in_context(self._span)

    def routed(self, record: Mapping[str, Any], seconds: float) -> None:
        """An expert was chosen, which took so long."""
        now = time.time_ns()
        attributes = {"ir3de.expert": record["expert"] or "", "ir3de.score": record["score"]}
        began = now - int(1e9 * seconds)
        self._tracer.start_span("route", self._inside, SpanKind.INTERNAL, attributes, start_time=began).end(now)

    def asks(self, expert: Any) -> dict[str, str]:
        """An expert is asked.

        Args:
            expert ([`Expert`]): that is.

        Returns:
            `dict[str, str]`: headers for its server, so that its spans belong to the same trace.
        """
        model = getattr(expert, "model", expert.name)
        operation = "text_completion" if self._api is COMPLETIONS else "chat"
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "anthropic" if self._api is MESSAGES else "openai",
            "gen_ai.request.model": model,
            "ir3de.expert": expert.name,
        }
        place = urlsplit(expert.base)
        if place.hostname:
            attributes |= {"server.address": place.hostname, "server.port": place.port or 443}
        self._attempt = self._tracer.start_span(f"{operation} {model}", self._inside, SpanKind.CLIENT, attributes)
        headers: dict[str, str] = {}
        _PROPAGATOR.inject(headers, set_span_in_context(self._attempt))
        return headers

    def failed(self, why: str) -> None:
        """The expert that was asked did not answer, or broke off."""
        if self._attempt is not None:
            self._attempt.set_attribute("error.type", why)
            self._attempt.set_status(StatusCode.ERROR)
            self._attempt.end()
            self._attempt = None

    def end(self, exchange: Exchange) -> None:
        """The request is done with.

        Args:
            exchange ([`Exchange`]): what became of it.
        """
        if exchange.outcome == "broken":
            self.failed("broke off")
        if self._attempt is not None:
            if exchange.prompt_tokens or exchange.completion_tokens:
                self._attempt.set_attribute("gen_ai.usage.input_tokens", exchange.prompt_tokens)
                self._attempt.set_attribute("gen_ai.usage.output_tokens", exchange.completion_tokens)
            self._attempt.end()
        told = {"ir3de.request.id": exchange.id, "ir3de.outcome": exchange.outcome, "ir3de.expert": exchange.expert}
        if exchange.status:
            self._span.set_attribute("http.response.status_code", exchange.status)
        if exchange.score is not None:
            self._span.set_attribute("ir3de.score", exchange.score)
        self._span.set_attributes(told)
        if exchange.status >= 500 or exchange.outcome == "broken":
            self._span.set_attribute("error.type", exchange.outcome)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def _exporter() -> SpanExporter:
    name = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    if name == "console":
        return ConsoleSpanExporter()
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER may be 'otlp', 'console' or 'none', got {name!r}.")
    either = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", either)
    if protocol != "http/protobuf":
        raise ValueError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL must be 'http/protobuf', the only one there is; got {protocol!r}."
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
