"""An OpenTelemetry collector for tests. It receives spans by OTLP over HTTP and returns them."""

from __future__ import annotations

import gzip
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.fakes import served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = {1: "internal", 2: "server", 3: "client"}
_LIMIT_S = 20.0


@dataclass(frozen=True)
class Span:
    """A received span. Ids are hexadecimal; `parent` is empty for a root span."""

    trace: str
    id: str
    parent: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: dict[str, Any]
    links: tuple[str, ...]
    says: str
    resource: dict[str, Any] = field(repr=False)


class Trace:
    """The spans of one request: its root span and all spans below it."""

    def __init__(self, root: Span, spans: list[Span]) -> None:
        self.root = root
        self._spans = sorted((one for one in spans if one.trace == root.trace), key=lambda one: (one.start_ns, one.id))

    def below(self, span: Span) -> list[Span]:
        """Return the child spans, ordered by start time."""
        return [one for one in self._spans if one.parent == span.id]

    def tree(self, span: Span | None = None) -> Any:
        """Return {name: tree of the children}, or a list of pairs if names repeat."""
        return [(one.name, self.tree(one)) for one in self.below(span or self.root)]

    def named(self, name: str) -> Span:
        found = [one for one in self._spans if one.name == name]
        assert len(found) == 1, (name, [one.name for one in self._spans])
        return found[0]


class Collector:
    """Keep the received spans, their request headers and their request bodies."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.headers: list[dict[str, str]] = []
        self.raw: list[bytes] = []
        self.refuses: int | None = None  # a status to answer with
        self.url = ""

    async def _take(self, request: web.Request) -> web.Response:
        raw = await request.read()
        if request.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.refuses is not None:
            return web.Response(status=self.refuses)
        self.raw.append(raw)
        self.spans += _read(ExportTraceServiceRequest.FromString(raw))
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )

    @contextmanager
    def running(self) -> Iterator[Collector]:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        with served(app) as self.url:
            yield self

    def wait_for(self, matches: Callable[[Span], bool]) -> Span:
        """Return the first span that matches, as soon as it has arrived."""
        give_up = time.monotonic() + _LIMIT_S
        while True:
            for span in list(self.spans):
                if matches(span):
                    return span
            assert time.monotonic() < give_up, f"no such span among {[one.name for one in self.spans]}"
            time.sleep(0.02)

    def trace_of(self, request_id: str) -> Trace:
        """Return the trace of a request.

        The request's own span ends last, so all other spans have arrived before it.
        """
        root = self.wait_for(lambda one: one.attributes.get("gkt.request.id") == request_id)
        return Trace(root, list(self.spans))


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _read(export: ExportTraceServiceRequest) -> Iterator[Span]:
    for of_resource in export.resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for one in of_scope.spans:
                yield Span(
                    one.trace_id.hex(),
                    one.span_id.hex(),
                    one.parent_span_id.hex(),
                    one.name,
                    KINDS[one.kind],
                    one.start_time_unix_nano,
                    one.end_time_unix_nano,
                    one.status.code == 2,
                    _attributes(one.attributes),
                    tuple(link.span_id.hex() for link in one.links),
                    one.status.message + "".join(event.name for event in one.events),
                    resource,
                )
