"""An engine that records its calls as spans of the current request. Used only if tracing is on."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from gateway.engines.chat import read_usage
from gateway.engines.raw_prompts import is_text
from gateway.protocol.content_run import ContentRun
from gateway.telemetry import semconv as names
from gateway.telemetry.tracing import attributes_of, current

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable

    from opentelemetry.util.types import AttributeValue

    from gateway.engines.base import Engine, EngineEmbeddings, TeacherReply, TeacherRequest, TokenUsage
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Prefill
    from gateway.protocol.content_run import ChunkGroup
    from gateway.telemetry.tracing import CallSpan, RequestTrace

# Numeric parameters. Stop strings and logit biases are omitted, since they may contain text of the caller.
_REQUEST_ATTRIBUTES = {
    "max_tokens": names.REQUEST_MAX_TOKENS,
    "max_completion_tokens": names.REQUEST_MAX_TOKENS,
    "temperature": names.REQUEST_TEMPERATURE,
    "top_p": names.REQUEST_TOP_P,
    "top_k": names.REQUEST_TOP_K,
    "seed": names.REQUEST_SEED,
    "frequency_penalty": names.REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": names.REQUEST_PRESENCE_PENALTY,
    "n": names.REQUEST_CHOICES,
}


class TracedEngine:
    """Passes calls to `engine` and records those of requests as spans. Probes have no span.

    `provider` is its name in OpenTelemetry's semantic conventions.
    """

    def __init__(self, engine: Engine, model: str, provider: str, address: tuple[str, int] | None) -> None:
        self.name, self.state = engine.name, engine.state
        self._engine = engine
        self._model = model
        host, port = address or (None, None)
        identity = [(names.PROVIDER, provider), (names.REQUEST_MODEL, model), (names.ENGINE, engine.name)]
        self._always = attributes_of([*identity, (names.SERVER_ADDRESS, host), (names.SERVER_PORT, port)])

    async def generate_guidance(
        self, request: TeacherRequest, *, batch: str | None = None, on_text: Callable[[str], None] | None = None
    ) -> TeacherReply:
        trace = current()
        if trace is None:
            return await self._engine.generate_guidance(request, batch=batch, on_text=on_text)
        attributes = [
            (names.REQUEST_MAX_TOKENS, request.max_tokens),
            (names.REQUEST_TEMPERATURE, request.temperature),
            (names.REQUEST_TOP_P, request.top_p),
            (names.REQUEST_SEED, request.seed),
            (names.REQUEST_STREAM, on_text is not None),
            (names.BATCH_ID, batch),
        ]
        operation = names.CHAT if request.messages is not None else names.TEXT
        with self._call(trace, "opening", operation, attributes) as call:
            traced_on_text = on_text if on_text is None else _traced(call, on_text)
            reply = await self._engine.generate_guidance(request, batch=batch, on_text=traced_on_text)
            self._answered(call, [reply.finish], reply.usage)
            # Requests that share the guidance link to this span.
            return replace(reply, span=call.span.get_span_context())

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        trace = current()
        if trace is None:
            return await self._engine.complete(body, prefill)
        with self._call(trace, "answer", _operation(body), _request_attributes(body, stream=False)) as call:
            reply = await self._engine.complete(body, prefill)
            self._answered(call, _finishes([reply]), read_usage(reply.get("usage")))
            return reply

    async def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[ChunkGroup, None]:
        trace = current()
        async with aclosing(self._engine.stream(body, prefill)) as groups:
            if trace is None:
                async for chunks in groups:
                    yield chunks
                return
            finishes: list[str] = []
            usage: TokenUsage | None = None
            with self._call(trace, "answer", _operation(body), _request_attributes(body, stream=True)) as call:
                try:
                    async for chunks in groups:
                        call.mark_first_chunk()
                        if call.recorded:
                            decoded = [chunk for chunk in chunks if not isinstance(chunk, ContentRun)]
                            finishes += _finishes(decoded)
                            for chunk in decoded:
                                usage = read_usage(chunk.get("usage")) or usage
                        yield chunks
                finally:
                    self._answered(call, finishes, usage)

    async def embed(self, body: Json) -> EngineEmbeddings:
        trace = current()
        if trace is None:
            return await self._engine.embed(body)
        with self._call(trace, "embeddings", names.EMBEDDINGS, ()) as call:
            reply = await self._engine.embed(body)
            if reply.usage is not None:
                call.span.set_attribute(names.USAGE_INPUT, reply.usage.input_tokens)
            return reply

    async def probe(self) -> None:
        await self._engine.probe()

    async def close(self) -> None:
        await self._engine.close()

    def _call(
        self, trace: RequestTrace, call: str, operation: str, requested: Iterable[tuple[str, AttributeValue | None]]
    ) -> CallSpan:
        attributes = {}
        if trace.recorded:
            attributes = {**self._always, names.OPERATION: operation, names.CALL: call, **attributes_of(requested)}
        return trace.call(f"{operation} {self._model}", attributes)

    @staticmethod
    def _answered(call: CallSpan, finishes: list[str], usage: TokenUsage | None) -> None:
        if not call.recorded:
            return
        if finishes:
            call.span.set_attribute(names.RESPONSE_FINISH_REASONS, finishes)
        if usage is not None:
            call.span.set_attribute(names.USAGE_INPUT, usage.input_tokens)
            call.span.set_attribute(names.USAGE_OUTPUT, usage.output_tokens)
            if usage.cached_input_tokens:
                call.span.set_attribute(names.USAGE_CACHED, usage.cached_input_tokens)
            if usage.cache_write_input_tokens:
                call.span.set_attribute(names.USAGE_CACHE_WRITE, usage.cache_write_input_tokens)


def _traced(call: CallSpan, on_text: Callable[[str], None]) -> Callable[[str], None]:
    def record(piece: str) -> None:
        call.mark_first_chunk()
        on_text(piece)

    return record


def _operation(body: Json) -> str:
    return names.TEXT if is_text(body) else names.CHAT


def _request_attributes(body: Json, *, stream: bool) -> Iterable[tuple[str, AttributeValue | None]]:
    yield names.REQUEST_STREAM, stream
    for field, name in _REQUEST_ATTRIBUTES.items():
        value: Any = body.get(field)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def _finishes(parts: Iterable[Json]) -> list[str]:
    return names.finishes(choice.get("finish_reason") for part in parts for choice in part["choices"])
