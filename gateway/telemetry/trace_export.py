"""The way of spans to a collector: a bounded queue, and a thread that sends what is in it by OTLP over HTTP.

A collector that is slow or away costs spans and nothing else: what finds the queue full is dropped, and counted.
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

_MOST_A_BATCH = 512
_SEND_EVERY_MS = 1000
_LAST_WORDS_S = 2.0


class TraceExport:
    """A tracer whose spans go to the collector that the settings name.

    The library reads its own variables beside: OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_CERTIFICATE and its like,
    OTEL_EXPORTER_OTLP_COMPRESSION, OTEL_SPAN_*_LIMIT, OTEL_SDK_DISABLED. Nothing of it is put into globals.
    """

    def __init__(self, settings: TracingSettings, instance: str, metrics: Metrics) -> None:
        # What it warns of is what callers send (a wrong tracestate, quoted), or has a count of ours. Errors are the
        # exporter's, about once a batch: why the collector does not take it.
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
                max_export_batch_size=min(_MOST_A_BATCH, settings.max_queue),
                schedule_delay_millis=_SEND_EVERY_MS,
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
        """Send what waits. Whatever is not sent within two seconds is lost: nobody waits longer for a collector."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def send() -> None:
            self._queue.shutdown()
            with suppress(RuntimeError):  # nobody waited for it
                loop.call_soon_threadsafe(done.set)

        # A thread that the process does not wait for: it may be in the middle of a call.
        threading.Thread(target=send, name="last-spans", daemon=True).start()
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await done.wait()
        except TimeoutError:
            self._exporter.give_up()
            log.warning("traces_unsent", spans=self._queue.waiting)


class _Counted(SpanExporter):
    """Counts what became of spans. Called by the sending thread alone."""

    def __init__(self, exporter: OTLPSpanExporter, metrics: Metrics) -> None:
        self._exporter = exporter
        self._sent, self._failed = metrics.spans.labels("sent"), metrics.spans.labels("failed")
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = self._exporter.export(spans)
        (self._sent if result is SpanExportResult.SUCCESS else self._failed).inc(len(spans))
        return result

    def give_up(self) -> None:
        """End the pauses between tries."""
        self._exporter.shutdown()

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _Bounded(SpanProcessor):
    """Drops spans for which there is no room, and counts them. The library drops them, too, but does not tell."""

    def __init__(self, then: BatchSpanProcessor, exporter: _Counted, most: int, metrics: Metrics) -> None:
        self._then = then
        self._exporter = exporter
        self._most = most
        self._dropped = metrics.spans.labels("dropped")
        self._handed = 0

    @property
    def waiting(self) -> int:
        """One number is written by the event loop alone, the other by the sending thread: no lock is needed."""
        return self._handed - self._exporter.taken

    def on_end(self, span: ReadableSpan) -> None:
        if self.waiting >= self._most:
            self._dropped.inc()
            return
        self._handed += 1
        self._then.on_end(span)

    def shutdown(self) -> None:
        self._then.shutdown()
