"""Export spans to a collector: a bounded queue, and a thread that sends OTLP over HTTP.

A slow or unreachable collector costs only spans: spans that exceed the queue are dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Tracer

    from gateway.config.sections import TracingSettings
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

_MAX_BATCH = 512
_SEND_INTERVAL_MS = 1000
_SHUTDOWN_TIMEOUT_S = 2.0


class TraceExport:
    """A tracer that exports spans to the configured collector.

    The library also reads its own variables: OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_CERTIFICATE and similar,
    OTEL_EXPORTER_OTLP_COMPRESSION, OTEL_SPAN_*_LIMIT, OTEL_SDK_DISABLED. It does not change global state.
    """

    def __init__(self, settings: TracingSettings, instance: str, metrics: Metrics) -> None:
        # The library's warnings quote callers' headers (an invalid tracestate), or the gateway counts their cause. Its
        # errors state, about once per batch, why the collector rejected spans.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        resource = Resource.create(
            {"service.name": settings.service, "service.version": __version__, "service.instance.id": instance}
        )
        self._exporter = _Counted(
            OTLPSpanExporter(
                endpoint=f"{settings.endpoint}/v1/traces",
                headers={name: value.get_secret_value() for name, value in settings.headers.items()} or None,
                timeout=settings.timeout_s,
            ),
            metrics,
        )
        self._queue = _Bounded(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=settings.max_queue,
                max_export_batch_size=min(_MAX_BATCH, settings.max_queue),
                schedule_delay_millis=_SEND_INTERVAL_MS,
            ),
            self._exporter,
            settings.max_queue,
            metrics,
        )
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
            self._queue.shutdown()
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(done.set)

        # A daemon thread, since the process must not wait for its request.
        threading.Thread(target=send, name="last-spans", daemon=True).start()
        try:
            async with asyncio.timeout(_SHUTDOWN_TIMEOUT_S):
                await done.wait()
        except TimeoutError:
            self._exporter.give_up()
            log.warning("traces_unsent", spans=self._queue.waiting)


class _Counted(SpanExporter):
    """Count sent and failed spans. Only the sending thread calls it."""

    def __init__(self, exporter: OTLPSpanExporter, metrics: Metrics) -> None:
        self._exporter = exporter
        self._sent, self._failed = metrics.spans.labels("sent"), metrics.spans.labels("failed")
        self.processed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.processed += len(spans)
        result = self._exporter.export(spans)
        (self._sent if result is SpanExportResult.SUCCESS else self._failed).inc(len(spans))
        return result

    def give_up(self) -> None:
        """Stop waiting between retries."""
        self._exporter.shutdown()

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _Bounded(SpanProcessor):
    """Drop and count spans when the queue is full. The library drops them without a count."""

    def __init__(self, processor: BatchSpanProcessor, exporter: _Counted, limit: int, metrics: Metrics) -> None:
        self._processor = processor
        self._exporter = exporter
        self._limit = limit
        self._dropped = metrics.spans.labels("dropped")
        self._queued = 0

    @property
    def waiting(self) -> int:
        """Return the queue length. Each of the two numbers has one writing thread, so no lock is needed."""
        return self._queued - self._exporter.processed

    def on_end(self, span: ReadableSpan) -> None:
        if self.waiting >= self._limit:
            self._dropped.inc()
            return
        self._queued += 1
        self._processor.on_end(span)

    def shutdown(self) -> None:
        self._processor.shutdown()
