"""OpenTelemetry traces: the spans of one request, and what of them goes on to engines.

Imported only where `tracing.endpoint` is set: a gateway without it does not know this module, nor the library. The
request's own trace travels in a context variable, as the library's do: engines are called in tasks of their own.
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

from gateway.errors import StopStream
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
# What is no fault of the gateway's or of an engine's.
_NO_FAULT = frozenset({"client_gone"})

_trace: ContextVar[RequestTrace | None] = ContextVar("trace", default=None)
_call: ContextVar[Context | None] = ContextVar("call", default=None)


def current() -> RequestTrace | None:
    """The trace of the request on whose behalf this runs; None for what the gateway does by itself, such as probes."""
    return _trace.get()


class RequestTrace:
    """One request's span, and those below it.

    It ends when both the reply and the receipt are done, at the moment at which the reply was: a receipt may come
    later. Times are time.perf_counter() seconds, set against the clock once, so that no step of it bends a trace.

    Attributes:
        recorded: whether anything of it will be told. The ids go on to engines in any case.
    """

    __slots__ = ("_account_due", "_context", "_ended", "_epoch_ns", "_failed", "_root", "_span", "_status", "_tracer",
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
        self._account_due = False
        self._ended: float | None = None
        self._status: int | None = None
        self._failed: str | None = None
        self.recorded = self._span.is_recording()

    @property
    def id(self) -> str | None:
        """The trace's id, in hexadecimal digits; None where the library was told to do nothing."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else None

    def at(self, perf_s: float) -> int:
        """A time.perf_counter() reading as Unix nanoseconds."""
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
        """Tell of a stage that is over."""
        links = () if link is None else (Link(link),)
        span = self._tracer.start_span(
            name, self._context, attributes=attributes, links=links, start_time=self.at(started)
        )
        _end(span, failed, self.at(ended))

    def call(self, name: str, attributes: Attributes) -> CallSpan:
        """`with trace.call(...) as call`: a call to an engine, whose requests carry this span's id.

        Where nothing of the trace is told they carry the request's own: a span that nobody sees needs none.
        """
        if not self.recorded:
            return CallSpan(self._span, self._context, self)
        span = self._tracer.start_span(
            name, self._context, SpanKind.CLIENT, attributes, start_time=self.at(time.perf_counter())
        )
        return CallSpan(span, set_span_in_context(span, self._context), self)

    def shadow(self, tracer: Tracer) -> RequestTrace:
        """What is done beside the request, for nobody to see; it may outlast it."""
        return RequestTrace(tracer, "shadow", self._context, time.perf_counter(), {}, kind=SpanKind.INTERNAL)

    def account_is_due(self) -> None:
        """A receipt will be told to `accounted`."""
        self._account_due = True

    def accounted(self, attributes: Attributes, failed: str | None) -> None:
        self._span.set_attributes(dict(attributes))
        self._failed = failed or self._failed
        self._account_due = False
        self._end_if_done()

    def replied(self, status: int | None, failed: str | None) -> None:
        """The reply is over. `status` is None where there was none, or nobody to send it to."""
        self._ended = time.perf_counter()
        self._status = status
        self._failed = self._failed or failed
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._ended is None or self._account_due:
            return
        if self._status is not None:
            self._span.set_attribute(names.HTTP_STATUS, self._status)
        refused = self._status is not None and 400 <= self._status < _ERROR_STATUS
        # Refusing a wrong request is the server's job well done, say the conventions.
        fault = self._failed is not None and self._failed not in _NO_FAULT and not (refused and self._root)
        _end(self._span, self._failed, self.at(self._ended), fault=fault)


class CallSpan:
    """A call to an engine, from its start to its end. Inside the block it is what `Tracing.outgoing` tells of."""

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
        # Set anew, and not reset: a stream may be closed in another context than the one in which it began.
        _call.set(self._before)
        failed: str | None = None
        if isinstance(error, GeneratorExit | StopStream):
            self.span.set_attribute(names.ENDED_EARLY, True)
        elif isinstance(error, asyncio.CancelledError):
            failed = "cancelled"
        elif error is not None:
            failed = getattr(error, "label", None) or type(error).__name__
            if (status := getattr(error, "status_sent", None)) is not None:
                self.span.set_attribute(names.HTTP_STATUS, status)
        if self.recorded:
            _end(self.span, failed, self._trace.at(time.perf_counter()))

    def heard(self) -> None:
        """Something of the answer has come. The first time counts."""
        if self._started is not None:
            self.span.set_attribute(names.RESPONSE_FIRST_CHUNK_S, round(time.perf_counter() - self._started, 6))
            self._started = None


class Tracing:
    """All of it, for one process.

    Args:
        instance: tells this process from others, to whoever looks at its spans.
    """

    def __init__(self, settings: TracingSettings, instance: str, metrics: Metrics) -> None:
        assert settings.endpoint is not None, "without one there are no traces"
        self._export = TraceExport(settings, instance, metrics)
        self._tracer = self._export.tracer
        self._follows = settings.follow_callers
        self._tells = settings.tell_engines
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(
        self, name: str, headers: Mapping[str, str], started: float, attributes: Attributes
    ) -> Iterator[RequestTrace]:
        """The trace of the request that is handled inside the block: a part of its caller's, if that has one."""
        parent = self._propagator.extract(headers) if self._follows else Context()
        trace = RequestTrace(self._tracer, name, parent, started, attributes)
        before = _trace.set(trace)
        try:
            yield trace
        finally:
            _trace.reset(before)

    @contextmanager
    def shadow(self) -> Iterator[None]:
        """Inside the block a shadow of the present request is made, in a task of its own."""
        beside = current()
        if beside is None:
            yield
            return
        trace = beside.shadow(self._tracer)
        before = _trace.set(trace)
        try:
            yield
        finally:
            _trace.reset(before)
            trace.replied(None, None)

    def outgoing(self) -> Mapping[str, str] | None:
        """The headers that tell an engine on whose behalf it is called; None where there is nothing to tell.

        They hold ids, and the caller's `tracestate` where its trace goes on. Its `baggage` does not.
        """
        context = _call.get()
        if context is None or not self._tells:
            return None
        headers: dict[str, str] = {}
        self._propagator.inject(headers, context)
        return headers

    async def close(self) -> None:
        """Send what waits, for a bounded time."""
        await self._export.close()


def _end(span: Span, failed: str | None, at_ns: int, *, fault: bool = True) -> None:
    if failed is not None:
        span.set_attribute(names.ERROR_TYPE, failed)
        if fault:
            span.set_status(StatusCode.ERROR)  # without words: an engine's may quote the prompt
    span.end(at_ns)


def attributes_of(pairs: Iterable[tuple[str, AttributeValue | None]]) -> dict[str, AttributeValue]:
    """Those that have a value."""
    return {name: value for name, value in pairs if value is not None}
