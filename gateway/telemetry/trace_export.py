"""Export spans to a collector: a bounded queue, and a thread that sends OTLP over HTTP.

A slow or unreachable collector costs only spans: spans that exceed the queue are dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Tracer

    from gateway.config.sections import TracingSettings
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

MAX_QUEUE = 8192
"""Most spans of one process that wait for export."""
MAX_BATCH = 512
"""Most spans of one export."""
_SEND_INTERVAL_MS = 1000
_SHUTDOWN_TIMEOUT_S = 2.0


class TraceExport:
    """A tracer that exports spans to the configured collector.

    The library also reads its own variables: OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_CERTIFICATE and similar,
    OTEL_EXPORTER_OTLP_COMPRESSION, OTEL_EXPORTER_OTLP_TIMEOUT, OTEL_SPAN_*_LIMIT, OTEL_SDK_DISABLED. It does not
    change global state.
    """

    def __init__(self, settings: TracingSettings, instance: str, metrics: Metrics) -> None:
        # The library's warnings quote callers' headers (an invalid tracestate), or the gateway counts their cause. Its
        # errors state, about once per batch, why the collector rejected spans.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        resource = Resource.create(
            {"service.name": settings.service, "service.version": __version__, "service.instance.id": instance}
        )
        self._exporter = _Counted(
            metrics,
            endpoint=f"{settings.endpoint}/v1/traces",
            headers={name: value.get_secret_value() for name, value in settings.headers.items()} or None,
        )
        self._queue = _Bounded(self._exporter, metrics)
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample)), resource=resource, shutdown_on_exit=False
        )
        provider.add_span_processor(self._queue)
        self.tracer: Tracer = provider.get_tracer("gateway", __version__)

    async def close(self) -> None:
        """Send the queued spans for at most two seconds. Drop the rest: shutdown must not wait longer."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def send() -> None:
            self._queue.shutdown()  # type: ignore[no-untyped-call]
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(done.set)

        # A daemon thread, since the process must not wait for its request.
        threading.Thread(target=send, name="last-spans", daemon=True).start()
        try:
            async with asyncio.timeout(_SHUTDOWN_TIMEOUT_S):
                await done.wait()
        except TimeoutError:
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # stop waiting between retries
            log.warning("traces_unsent", spans=self._queue.waiting)


class _Counted(OTLPSpanExporter):
    """Count sent and failed spans. Only the sending thread calls it."""

    def __init__(self, metrics: Metrics, **options: Any) -> None:
        super().__init__(**options)
        self.sent, self.failed = metrics.spans.labels("sent"), metrics.spans.labels("failed")
        self.processed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.processed += len(spans)
        result = super().export(spans)
        (self.sent if result is SpanExportResult.SUCCESS else self.failed).inc(len(spans))
        return result


class _Bounded(BatchSpanProcessor):
    """Drop and count spans when the queue is full. The library drops them without a count."""

    def __init__(self, exporter: _Counted, metrics: Metrics) -> None:
        super().__init__(exporter, MAX_QUEUE, schedule_delay_millis=_SEND_INTERVAL_MS, max_export_batch_size=MAX_BATCH)
        self.exporter, self.queued = exporter, 0
        self.dropped = metrics.spans.labels("dropped")

    @property
    def waiting(self) -> int:
        """Return the queue length. Each of the two numbers has one writing thread, so no lock is needed."""
        return self.queued - self.exporter.processed

    def on_end(self, span: ReadableSpan) -> None:
        if self.waiting >= MAX_QUEUE:
            self.dropped.inc()
            return
        self.queued += 1
        super().on_end(span)
