"""OpenTelemetry traces: the spans of a request, and the trace headers for engines.

Imported only where `tracing.endpoint` is set. The request's trace and the library's context are context variables,
since engines are called in their own tasks.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.telemetry import semconv as names
from gateway.telemetry.trace_export import TraceExport

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Self

    from opentelemetry.trace import Span, SpanContext, Tracer
    from opentelemetry.util.types import AttributeValue

    from gateway.config.sections import TracingSettings
    from gateway.telemetry.metrics import Metrics

    Attributes = Mapping[str, AttributeValue]

_ERROR_STATUS = 500
# Failures that are no error of the gateway or of an engine.
_NOT_ERRORS = frozenset({"client_gone"})

_trace: ContextVar[RequestTrace | None] = ContextVar("trace", default=None)
_call: ContextVar[Context | None] = ContextVar("call", default=None)


def current() -> RequestTrace | None:
    """Return the trace of the current request; None for the gateway's own work, such as probes."""
    return _trace.get()


class RequestTrace:
    """The span of a request and its child spans.

    The span ends when both the reply and the receipt are complete. Its end time is the end of the reply. Times are
    time.perf_counter() seconds. They are converted with one fixed offset, so that clock steps do not distort a trace.
    `recorded` states whether the trace is exported. Its ids are sent to engines in any case.
    """

    __slots__ = ("_context", "_ended", "_epoch_ns", "_failed", "_receipt_due", "_root", "_span", "_status", "_tracer",
                 "recorded")  # fmt: skip

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        parent: Context,
        started: float,
        attributes: Attributes,
        *,
        kind: SpanKind = SpanKind.SERVER,
    ) -> None:
        self._epoch_ns = time.time_ns() - round(time.perf_counter() * 1e9)
        self._tracer = tracer
        self._span = tracer.start_span(name, parent, kind, attributes, start_time=self.at(started))
        self._context = set_span_in_context(self._span, parent)
        self._root = kind is SpanKind.SERVER
        self._receipt_due = False
        self._ended: float | None = None
        self._status: int | None = None
        self._failed: str | None = None
        self.recorded = self._span.is_recording()

    @property
    def id(self) -> str | None:
        """Return the trace id in hexadecimal; None where the library is disabled."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else None

    def at(self, perf_s: float) -> int:
        """Return a time.perf_counter() reading as Unix nanoseconds."""
        return self._epoch_ns + round(perf_s * 1e9)

    def child(
        self,
        name: str,
        started: float,
        ended: float,
        attributes: Attributes | None = None,
        *,
        failed: str | None = None,
        link: SpanContext | None = None,
    ) -> None:
        """Add a span for a stage that has ended."""
        links = () if link is None else (Link(link),)
        span = self._tracer.start_span(
            name, self._context, attributes=attributes, links=links, start_time=self.at(started)
        )
        _end(span, failed, self.at(ended))

    def call(self, name: str, attributes: Attributes) -> CallSpan:
        """`with trace.call(...) as call`: add a span for an engine call. The engine's request carries the span's id.

        Where the trace is not recorded, the request carries the id of the request's span.
        """
        if not self.recorded:
            return CallSpan(self._span, self._context, self)
        span = self._tracer.start_span(
            name, self._context, SpanKind.CLIENT, attributes, start_time=self.at(time.perf_counter())
        )
        return CallSpan(span, set_span_in_context(span, self._context), self)

    def shadow(self, tracer: Tracer) -> RequestTrace:
        """Return the trace of a shadow request. It may outlast this trace."""
        return RequestTrace(tracer, "shadow", self._context, time.perf_counter(), {}, kind=SpanKind.INTERNAL)

    def expect_receipt(self) -> None:
        """Keep the span open until `set_receipt`."""
        self._receipt_due = True

    def set_receipt(self, attributes: Attributes, failed: str | None) -> None:
        self._span.set_attributes(dict(attributes))
        self._failed = failed or self._failed
        self._receipt_due = False
        self._end_if_done()

    def replied(self, status: int | None, failed: str | None) -> None:
        """End the reply. `status` is None where no reply was sent."""
        self._ended = time.perf_counter()
        self._status = status
        self._failed = self._failed or failed
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._ended is None or self._receipt_due:
            return
        if self._status is not None:
            self._span.set_attribute(names.HTTP_STATUS, self._status)
        refused = self._status is not None and 400 <= self._status < _ERROR_STATUS
        # By the conventions, a rejected request (4xx) is no error of the server.
        is_error = self._failed is not None and self._failed not in _NOT_ERRORS and not (refused and self._root)
        _end(self._span, self._failed, self.at(self._ended), is_error=is_error)


class CallSpan:
    """A call to an engine. Inside the block, `Tracing.outgoing` returns its headers."""

    __slots__ = ("_before", "_context", "_started", "_trace", "recorded", "span")

    def __init__(self, span: Span, context: Context, trace: RequestTrace) -> None:
        self.span = span
        self.recorded = trace.recorded
        self._context = context
        self._trace = trace
        self._started: float | None = time.perf_counter()
        self._before: Context | None = None

    def __enter__(self) -> Self:
        self._before = _call.get()
        _call.set(self._context)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # Set instead of reset: a stream may be closed in another context than the one in which it began.
        _call.set(self._before)
        failed: str | None = None
        if isinstance(error, GeneratorExit):
            self.span.set_attribute(names.ENDED_EARLY, True)
        elif isinstance(error, asyncio.CancelledError):
            failed = "cancelled"
        elif error is not None:
            failed = getattr(error, "label", None) or type(error).__name__
            if (status := getattr(error, "status_sent", None)) is not None:
                self.span.set_attribute(names.HTTP_STATUS, status)
        if self.recorded:
            _end(self.span, failed, self._trace.at(time.perf_counter()))

    def mark_first_chunk(self) -> None:
        """Record the time of the first part of the answer. Later calls have no effect."""
        if self._started is not None:
            self.span.set_attribute(names.RESPONSE_FIRST_CHUNK_S, round(time.perf_counter() - self._started, 6))
            self._started = None


class Tracing:
    """The tracing of one process. `instance` is the unique name of the process in its spans."""

    def __init__(self, settings: TracingSettings, instance: str, metrics: Metrics) -> None:
        assert settings.endpoint is not None, "tracing needs an endpoint"
        export = TraceExport(settings, instance, metrics)
        self.close = export.close
        self._tracer = export.tracer
        self._continue_callers = settings.follow_callers
        self._send_to_engines = settings.propagate
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(
        self, name: str, headers: Mapping[str, str], started: float, attributes: Attributes
    ) -> Iterator[RequestTrace]:
        """Trace the request that is handled inside the block, as part of its caller's trace where it has one."""
        parent = self._propagator.extract(headers) if self._continue_callers else Context()
        trace = RequestTrace(self._tracer, name, parent, started, attributes)
        before = _trace.set(trace)
        try:
            yield trace
        finally:
            _trace.reset(before)

    @contextmanager
    def shadow(self) -> Iterator[None]:
        """Trace a shadow of the current request inside the block, in its own task."""
        parent = current()
        if parent is None:
            yield
            return
        trace = parent.shadow(self._tracer)
        before = _trace.set(trace)
        try:
            yield
        finally:
            _trace.reset(before)
            trace.replied(None, None)

    def outgoing(self) -> Mapping[str, str] | None:
        """Return the trace headers for an engine; None where there are none.

        They contain ids, and the caller's `tracestate` where its trace continues. `baggage` is not sent.
        """
        if (context := _call.get()) is None or not self._send_to_engines:
            return None
        headers: dict[str, str] = {}
        self._propagator.inject(headers, context)
        return headers


def _end(span: Span, failed: str | None, at_ns: int, *, is_error: bool = True) -> None:
    if failed is not None:
        span.set_attribute(names.ERROR_TYPE, failed)
        if is_error:
            span.set_status(StatusCode.ERROR)  # no description: an engine's message may quote the prompt
    span.end(at_ns)


def attributes_of(pairs: Iterable[tuple[str, AttributeValue | None]]) -> dict[str, AttributeValue]:
    """Return the attributes that have a value."""
    return {name: value for name, value in pairs if value is not None}
