"""The playground: one question, answered by a tenant's route as an operator wants to see it; and what its form offers.

It walks the same path as a caller's request, as that tenant: limits and budgets hold, and a receipt is settled.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

import orjson
import structlog

from gateway.accounting.draft import ReceiptBuilder
from gateway.accounting.receipt import RECEIPT_ID, Receipt
from gateway.admin.bodies import meant, only_query, read_shape
from gateway.admin.marked_relay import MarkedRelay
from gateway.admin.playground_bodies import PlaygroundRun
from gateway.admin.playground_views import engine_shown, options_shown
from gateway.admin.replies import json_reply
from gateway.api.error_body import error_body, internal_error
from gateway.api.events import DONE, begin, event, reads, send
from gateway.api.keys import (
    ADMISSION,
    CALLERS_LISTENER,
    COMPLETIONS,
    ENGINES,
    LEDGER,
    POLICIES,
    RECEIPTS,
    REQUEST_ID,
    STARTED,
)
from gateway.errors import GatewayError, ModelNotFound, NotFound, StoreUnavailable
from gateway.pipeline.completion import RequestContext
from gateway.policy.book import Caller
from gateway.policy.routing import NO_HEADERS
from gateway.policy.schema import PLAYGROUND, KeyEntry

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType

    from aiohttp import web

    from gateway.policy.schema import TenantPolicy
    from gateway.protocol.body import Json
    from gateway.runtime.timeouts import Watchdog

log = structlog.get_logger()

_KEY = KeyEntry.model_construct(id=PLAYGROUND, sha256="0" * 64)
"""In the place of a caller's key. Nobody shows it: it is in no book, and no key has this hash."""
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104  compared, not bound
_LOOKS_EVERY_S = 0.2
_RECEIPT_LOOKS = 15


async def show_options(request: web.Request) -> web.Response:
    """GET /playground/options: what the form offers."""
    only_query(request)
    app = request.app
    engines = [engine_shown(one) for one in app[ENGINES].values()]
    # In a thread: there may be thousands of routes, and a book never changes.
    shown = await asyncio.to_thread(options_shown, app[POLICIES].book, engines, _base_url(request))
    return json_reply(shown)


async def run_playground(request: web.Request) -> web.StreamResponse:
    """POST /playground/run: one answer, as events like OpenAI's, and at the end its receipt."""
    wish = await read_shape(request, PlaygroundRun)
    policy = _policy(request, wish)
    asked = wish.chat()
    visit = RequestContext(
        request[REQUEST_ID],
        Caller(policy, _KEY),
        int(time.time()),
        request[STARTED],
        NO_HEADERS,
        route_override=wish.wanted(request.app[POLICIES].book.projections),
    )
    parts = request.app[COMPLETIONS].stream(visit, asked, MarkedRelay)
    with reads(request) as reading, _Presence(request):
        return await _as_events(request, parts, reading)


async def show_run(request: web.Request) -> web.Response:
    """GET /playground/receipts/{tenant}/{id}: what came of a run that was stopped, or failed before its first word.

    Whoever has just hung up asks before the gateway has noticed: it waits for a moment.
    """
    only_query(request)
    found = await _found(request, request.match_info["tenant"], request.match_info["id"])
    one = Receipt.from_json(found) if found is not None else None
    if one is None or one.key != PLAYGROUND:
        raise NotFound("The playground has no such receipt. It is written when its answer has ended.", param="id")
    return json_reply(one.as_dict())


async def _found(request: web.Request, tenant: str, receipt_id: str) -> bytes | None:
    if not RECEIPT_ID.fullmatch(receipt_id):  # whatever else is none of Redis' business
        return None
    for looks_left in reversed(range(_RECEIPT_LOOKS)):
        try:
            if (found := await request.app[RECEIPTS].get(tenant, receipt_id)) is not None:
                return found
        except StoreUnavailable:
            if not looks_left:
                raise
        await asyncio.sleep(_LOOKS_EVERY_S)
    return None


def _policy(request: web.Request, wish: PlaygroundRun) -> TenantPolicy:
    book = request.app[POLICIES].book
    policy = book.policy_of(wish.tenant)
    if policy is None:
        names = [one.tenant for one in book.policies]
        raise NotFound(f"There is no tenant '{wish.tenant}'.{meant(wish.tenant, names)}", param="tenant")
    if wish.model not in policy.routes_of:
        raise ModelNotFound(
            f"Tenant '{wish.tenant}' has no route '{wish.model}'.{meant(wish.model, list(policy.routes_of))}",
            param="model",
        )
    return policy


async def _as_events(
    request: web.Request, parts: AsyncGenerator[ReceiptBuilder | list[Json], None], reading: Watchdog
) -> web.StreamResponse:
    """Send the parts, then the receipt. Without [DONE] where an error ended it, which stands before the receipt."""
    response: web.StreamResponse | None = None
    draft: ReceiptBuilder | None = None
    status, end = "ok", DONE
    async with aclosing(parts):
        try:
            async with request.app[ADMISSION].cancel_on_drain():
                async for part in parts:
                    if isinstance(part, ReceiptBuilder):
                        draft, response = part, await begin(request, part)
                    else:
                        assert response is not None, "the path yields the draft first"
                        await send(response, b"".join(map(event, part)), reading)
        except ConnectionError:
            raise
        except Exception as error:
            if response is None:
                raise
            if not isinstance(error, GatewayError):
                log.exception("stream_broke", id=request[REQUEST_ID])
                error = internal_error(request[REQUEST_ID])
            # What the receipt says, too: the path heard of a cut as of a caller who is gone.
            status = "shutdown" if request.app[ADMISSION].cancelling else error.label
            end = b""
            await send(response, event(error_body(error)), reading)
    assert response is not None
    assert draft is not None
    # Fixed by now, but where an engine's tokens are still to be estimated: whoever is first fixes it.
    settled = await request.app[LEDGER].close(draft, status)
    await send(response, b"event: receipt\ndata: " + orjson.dumps(settled.as_dict()) + b"\n\n" + end, reading)
    await response.write_eof()
    return response


class _Presence:
    """Ends the handler when whoever asked has hung up. By itself this listener ends none: most change something.

    A write would tell, but before an engine's first word there is none.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._handler = asyncio.current_task()
        self._look()

    def _look(self) -> None:
        transport = self._request.transport
        if transport is not None and not transport.is_closing():
            self._timer = self._loop.call_later(_LOOKS_EVERY_S, self._look)
        elif self._handler is not None:
            self._handler.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _base_url(request: web.Request) -> str:
    """Where callers call, as seen from where the operator is."""
    there = request.app[CALLERS_LISTENER]
    host = (request.url.host or "127.0.0.1") if there.host in _WILDCARDS else there.host
    return f"http://{f'[{host}]' if ':' in host else host}:{there.port}/v1"
