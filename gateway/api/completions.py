"""Steps 1 and 7 of the request path: parse a request and send its reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from aiohttp import web

from gateway.accounting.verdict import Allowance
from gateway.api.auth import authenticate
from gateway.api.connection import SERVER, connection_of
from gateway.api.decoding import read_parsed
from gateway.api.direct_reply import DirectReply
from gateway.api.events import COMPLETION_WRITER, PART_BYTES, as_events, reads, require_caller, send
from gateway.api.headers import fact_headers, name_reply
from gateway.api.keys import ADMISSION, COMPLETIONS, EMBEDDINGS, ENGINES, INFO, LABELER, REDIS
from gateway.engines.reply_json import converted, encoded
from gateway.pipeline.completion import RequestContext, RequestState
from gateway.protocol.chat import ChatRequest, parse_chat
from gateway.protocol.embeddings import parse_embeddings
from gateway.protocol.text import TextRequest, parse_text_completion

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.pipeline.completion import Answer
    from gateway.policy.book import Caller
    from gateway.protocol.content_run import ChunkGroup
    from gateway.protocol.reply import ReplyWriter

_Request = TypeVar("_Request", bound=ChatRequest | TextRequest)
_Request_contra = TypeVar("_Request_contra", bound=ChatRequest | TextRequest, contravariant=True)


class CompletionPipeline(Protocol[_Request_contra]):
    """Answers a validated request, as a whole or as a stream."""

    async def answer(self, context: RequestContext, request: _Request_contra, /) -> Answer: ...

    def stream(
        self, context: RequestContext, request: _Request_contra, /
    ) -> AsyncGenerator[ReceiptBuilder | ChunkGroup, None]: ...


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    caller, completions = await authenticate(request), request.app[COMPLETIONS]
    return await answered(request, completions, caller, await read_parsed(request, caller, parse_chat))


async def text_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions"""
    caller, completions = await authenticate(request), request.app[COMPLETIONS]
    return await answered(request, completions, caller, await read_parsed(request, caller, parse_text_completion))


def new_context(request: web.Request, caller: Caller) -> RequestContext:
    """Return the context of a request that starts now. The request keeps its allowance and state."""
    info, engine_set, now = request[INFO], request.app[ENGINES], int(request.app[REDIS].now())
    info.allowance, info.state = allowance, state = Allowance(), RequestState()
    return RequestContext(
        info.id,
        caller,
        now,
        info.started,
        request.headers,
        engine_set,
        allowance=allowance,
        state=state,
        labeler=request.app[LABELER],
        steps=connection_of(request),
    )


async def answered(
    request: web.Request,
    pipeline: CompletionPipeline[_Request],
    caller: Caller,
    parsed: _Request,
    writer: ReplyWriter = COMPLETION_WRITER,
    before_events: Callable[[], Awaitable[None]] | None = None,
) -> web.StreamResponse:
    """Answer a validated request, as JSON or as server-sent events in the writer's format. Raises GatewayError.

    `before_events` is awaited before the first event of a stream, after the request's admission.
    """
    context = new_context(request, caller)
    if parsed.stream:
        with reads(request) as reading:
            return await as_events(request, pipeline.stream(context, parsed), reading, writer, before_events)
    with request.app[ADMISSION].cancel_on_drain():
        answer = await pipeline.answer(context, parsed)
    require_caller(request[INFO])
    body = await encoded(await converted(writer.reply, answer.body))
    return DirectReply(body, fact_headers(answer.receipt.facts(show_cost=answer.show_cost)))


async def embeddings(request: web.Request) -> web.StreamResponse:
    """POST /v1/embeddings"""
    caller = await authenticate(request)
    parsed = await read_parsed(request, caller, parse_embeddings)
    context = new_context(request, caller)
    with request.app[ADMISSION].cancel_on_drain():
        vectors = await request.app[EMBEDDINGS].answer(context, parsed)
    require_caller(request[INFO])
    headers = fact_headers(vectors.receipt.facts(show_cost=vectors.show_cost))
    if len(vectors.body) <= PART_BYTES:
        return DirectReply(vectors.body, headers)
    return await _in_parts(request, vectors.body, headers)


async def _in_parts(request: web.Request, body: bytes, headers: dict[str, str]) -> web.StreamResponse:
    """Send a large reply in parts, as the caller reads them. One large write would block the event loop."""
    response = web.StreamResponse(headers={**headers, "Content-Type": "application/json", "Server": SERVER})
    response.content_length = len(body)
    name_reply(request, request[INFO], response)
    await response.prepare(request)
    with reads(request) as reading:
        for start in range(0, len(body), PART_BYTES):
            await send(response, body[start : start + PART_BYTES], reading)
    await response.write_eof()
    return response
