"""Stored responses: those that a request refers to, the storage of its own, and the routes to read and delete them."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

import orjson
from aiohttp import web
from msgspec import structs

from gateway.api.auth import authenticate
from gateway.api.connection import connection_of
from gateway.api.decoding import BODY_DECODER
from gateway.api.keys import STORED_RESPONSES
from gateway.engines.reply_json import converted, encoded
from gateway.errors import InvalidRequest
from gateway.pipeline.redis_responses import StoredResponse
from gateway.protocol.responses.items import unknown_item
from gateway.protocol.responses.stored_items import (
    MAX_PAGE,
    StoredInput,
    item_list,
    read_page,
    response_of_item,
    too_many_responses,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.api.completions import CompletionPipeline
    from gateway.errors import GatewayError
    from gateway.pipeline.completion import Answer, RequestContext
    from gateway.pipeline.stored_responses import StoredResponses
    from gateway.policy.book import Caller
    from gateway.policy.schema import TenantPolicy
    from gateway.protocol.body import Json
    from gateway.protocol.chat import ChatRequest
    from gateway.protocol.content_run import ChunkGroup
    from gateway.protocol.responses.events import ResponseWriter
    from gateway.protocol.responses.request import ResponsesRequest

_T = TypeVar("_T")

_MAX_READS = 20  # stored responses for one request

INPUT_ITEMS_QUERY: dict[str, tuple[str, Json]] = {
    "limit": ("Number of items. The default is 20.", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}),
    "order": ("asc: oldest first. The default is desc.", {"enum": ["asc", "desc"]}),
    "after": ("Id of the item after which the page begins.", {"type": "string"}),
}
"""Parameters of the list of input items, for the OpenAPI document."""


async def with_stored_input(request: web.Request, caller: Caller, parsed: ResponsesRequest) -> ResponsesRequest:
    """Return a request with the stored items that its input refers to. Raises GatewayErrors."""
    store, policy, stored_input = request.app[STORED_RESPONSES], caller.policy, StoredInput(parsed)
    stored = None
    if parsed.previous_response_id is not None:
        stored = await store.previous(policy, parsed.previous_response_id)
    for _ in range(_MAX_READS):
        if stored is None and (stored := await store.find(policy, response_of_item(stored_input.missing))) is None:
            raise unknown_item(stored_input.missing)
        parts = [stored.response, b"\n", stored.items]
        completed = await _decoded(request, policy, parts, stored_input.add)
        if completed is not None:
            return completed
        stored = None
    raise too_many_responses()


class StoringReply:
    """A pipeline and writer that store the response before the caller has all of it.

    The caller's next request then finds it. If it cannot be stored, its `store` becomes false.
    """

    def __init__(
        self,
        pipeline: CompletionPipeline[ChatRequest],
        writer: ResponseWriter,
        store: StoredResponses,
        policy: TenantPolicy,
        items: list[Json],
    ) -> None:
        self._pipeline, self._writer = pipeline, writer
        self._store, self._policy, self._items = store, policy, items

    async def answer(self, context: RequestContext, request: ChatRequest) -> Answer:
        answer = await self._pipeline.answer(context, request)
        await converted(self._writer.reply, answer.body)
        await self._save()
        return structs.replace(answer, body=self._writer.response)

    async def stream(
        self, context: RequestContext, request: ChatRequest
    ) -> AsyncGenerator[ReceiptBuilder | ChunkGroup, None]:
        async with aclosing(self._pipeline.stream(context, request)) as parts:
            async for part in parts:
                yield part
        await self._save()  # all parts are written, and `end` is not called yet

    async def _save(self) -> None:
        response = self._writer.response
        stored = StoredResponse(await encoded(response), await encoded(self._items))
        if not await self._store.save(self._policy, response["id"], stored):
            self._writer.mark_unstored()

    def reply(self, completion: Json) -> Json:
        """Return the response that `answer` returned."""
        return completion

    def events(self, group: ChunkGroup) -> bytes:
        return self._writer.events(group)

    def end(self) -> bytes:
        return self._writer.end()

    def failed(self, error: GatewayError) -> bytes:
        return self._writer.failed(error)


async def show_response(request: web.Request) -> web.Response:
    """GET /v1/responses/{id}"""
    policy = (await authenticate(request)).policy
    if request.query.get("stream") == "true":
        raise InvalidRequest(
            "'stream' is not supported: stored responses are complete. Read it without 'stream'.", param="stream"
        )
    stored = await request.app[STORED_RESPONSES].get(policy, request.match_info["id"])
    return _json(stored.response)


async def delete_response(request: web.Request) -> web.Response:
    """DELETE /v1/responses/{id}"""
    policy, response_id = (await authenticate(request)).policy, request.match_info["id"]
    await request.app[STORED_RESPONSES].delete(policy, response_id)
    return _json(orjson.dumps({"id": response_id, "object": "response", "deleted": True}))


async def list_input_items(request: web.Request) -> web.Response:
    """GET /v1/responses/{id}/input_items: the conversation up to the response, without its output."""
    policy, response_id = (await authenticate(request)).policy, request.match_info["id"]
    page = read_page(request.query)
    stored = await request.app[STORED_RESPONSES].get(policy, response_id)
    return _json(await _decoded(request, policy, [stored.items], lambda items: item_list(items, response_id, page)))


async def _decoded(request: web.Request, policy: TenantPolicy, parts: list[bytes], parse: Callable[[bytes], _T]) -> _T:
    """Decode stored JSON as a body of the tenant's: a large one in its turn. Raises what `parse` raises, Overloaded."""
    connection = connection_of(request)
    try:
        return await request.app[BODY_DECODER].decode(policy.tenant, parts, parse, connection)
    finally:
        connection.body_ended()


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})
