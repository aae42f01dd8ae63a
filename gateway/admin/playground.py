"""The playground: an operator runs one question through a tenant's route with chosen settings.

A run takes the path of a request of that tenant: its limits and budgets apply, and the run has a receipt.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, get_args

import orjson
import structlog

from gateway.accounting.receipt import RECEIPT_ID, Receipt
from gateway.accounting.receipt_builder import ReceiptBuilder
from gateway.admin.bodies import PlaygroundRun, only_query, read_shape
from gateway.admin.engine_states import engine_states
from gateway.admin.replies import json_reply
from gateway.api import keys
from gateway.api.error_body import error_body, internal_error
from gateway.api.events import DONE, begin, event, reads, send, send_last
from gateway.config.yaml_messages import suggestion
from gateway.errors import GatewayError, ModelNotFound, NotFound, StoreUnavailable
from gateway.pipeline.completion import RequestContext
from gateway.pipeline.stream import StreamRelay
from gateway.policy.book import Caller
from gateway.policy.guidance_rule import MAX_GUIDANCE_TOKENS
from gateway.policy.key_entry import PLAYGROUND, KeyEntry
from gateway.policy.projections import Placement
from gateway.policy.routing import NO_HEADERS, modes_of
from gateway.policy.schema import OverrideMode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from aiohttp import web

    from gateway.admin.engine_states import SharedEngineState
    from gateway.engines.guard import GuardedEngine
    from gateway.guidance.seam import SeamJoin
    from gateway.policy.book import PolicySet
    from gateway.policy.schema import Route, TenantPolicy
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.reasoning import ReasoningFilter
    from gateway.protocol.content_run import ChunkGroup, ChunkTemplate
    from gateway.protocol.reply import ReplyHead
    from gateway.runtime.timeouts import Watchdog

log = structlog.get_logger()

MARK = "x_gkt"
_KEY = KeyEntry.model_construct(id=PLAYGROUND, sha256="0" * 64)
"""The key of playground runs. No caller can present it: no policy contains it, and no key has this hash."""
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104  compared, not bound
_MODES: tuple[OverrideMode, ...] = get_args(OverrideMode)
_POLL_S = 0.2
_RECEIPT_POLLS = 15


async def show_options(request: web.Request) -> web.Response:
    """GET /playground/options: the choices of the form."""
    only_query(request)
    app = request.app
    states = await engine_states(app)
    engines = [_engine(app[keys.ENGINES].by_name[name], state) for name, state in states.items()]
    # In a thread: there may be thousands of routes. A policy set is immutable.
    shown = await asyncio.to_thread(_options, app[keys.POLICIES].policy_set, engines, _base_url(request))
    return json_reply(shown)


async def run_playground(request: web.Request) -> web.StreamResponse:
    """POST /playground/run: stream one answer as OpenAI's events, followed by its receipt."""
    run = await read_shape(request, PlaygroundRun)
    policy = _policy(request, run)
    chat = run.chat()
    context = RequestContext(
        request[keys.INFO].id,
        Caller(policy, _KEY),
        int(request.app[keys.REDIS].now()),
        request[keys.INFO].started,
        NO_HEADERS,
        request.app[keys.ENGINES],
        labeler=request.app[keys.LABELER],
        route_override=run.route_override(request.app[keys.POLICIES].policy_set.projections),
    )
    parts = request.app[keys.COMPLETIONS].stream(context, chat, MarkedRelay)
    with reads(request) as reading, _canceled_on_disconnect(request):
        return await _as_events(request, parts, reading)


async def show_run(request: web.Request) -> web.Response:
    """GET /playground/receipts/{tenant}/{id}: the receipt of a run that was stopped or failed before its first token.

    A browser that just disconnected may send this request before the gateway has settled the run, so the handler polls.
    """
    only_query(request)
    found = await _found(request, request.match_info["tenant"], request.match_info["id"])
    receipt = Receipt.from_json(found) if found is not None else None
    if receipt is None or receipt.key != PLAYGROUND:
        raise NotFound("The playground has no such receipt. A receipt is written when its answer ends.", param="id")
    return json_reply(receipt.as_dict())


async def _found(request: web.Request, tenant: str, receipt_id: str) -> bytes | None:
    if not RECEIPT_ID.fullmatch(receipt_id):
        return None
    for polls_left in reversed(range(_RECEIPT_POLLS)):
        try:
            if (found := await request.app[keys.RECEIPTS].get(tenant, receipt_id)) is not None:
                return found
        except StoreUnavailable:
            if not polls_left:
                raise
        await asyncio.sleep(_POLL_S)
    return None


def _policy(request: web.Request, run: PlaygroundRun) -> TenantPolicy:
    book = request.app[keys.POLICIES].policy_set
    policy = book.policy_of(run.tenant)
    if policy is None:
        names = [one.tenant for one in book.policies]
        raise NotFound(f"There is no tenant '{run.tenant}'.{suggestion(run.tenant, names)}", param="tenant")
    if run.model not in policy.routes_of:
        raise ModelNotFound(
            f"Tenant '{run.tenant}' has no route '{run.model}'.{suggestion(run.model, policy.routes_of)}",
            param="model",
        )
    return policy


async def _as_events(
    request: web.Request, parts: AsyncGenerator[ReceiptBuilder | ChunkGroup, None], reading: Watchdog
) -> web.StreamResponse:
    """Send the parts, then the receipt. After an error, the error precedes the receipt and [DONE] is omitted."""
    response: web.StreamResponse | None = None
    builder: ReceiptBuilder | None = None
    status, end = "ok", DONE
    async with aclosing(parts):
        try:
            with request.app[keys.ADMISSION].cancel_on_drain():
                async for part in parts:
                    if isinstance(part, ReceiptBuilder):
                        builder, response = part, await begin(request, part)
                        if text := _hidden_guidance(part):
                            data = orjson.dumps({"text": text})
                            await send(response, b"event: guidance\ndata: %b\n\n" % data, reading)
                    else:
                        assert response is not None, "the path yields the receipt builder first"
                        await send(response, b"".join(map(event, part)), reading)
        except ConnectionError:
            raise
        except Exception as error:
            if response is None:
                raise
            if not isinstance(error, GatewayError):
                log.exception("stream_broke", id=request[keys.INFO].id)
                error = internal_error(request[keys.INFO].id)
            # The receipt has the same status: the path cannot tell a drain from a caller that disconnected.
            status = "shutdown" if request.app[keys.ADMISSION].cancelling else error.label
            end = b""
            await send(response, event(error_body(error)), reading)
    assert response is not None
    assert builder is not None
    # `close` is idempotent: it settles the receipt unless the path already did.
    settled = await request.app[keys.LEDGER].close(builder, status)
    last = b"event: receipt\ndata: " + orjson.dumps(settled.as_dict()) + b"\n\n" + end
    return await send_last(response, last, reading)


def _hidden_guidance(builder: ReceiptBuilder) -> str:
    """Return the guidance that is in no chunk, because the answer does not begin with it."""
    guidance = builder.plan.guidance
    return builder.guidance_text if guidance is not None and guidance.placement != "prefix" else ""


@contextmanager
def _canceled_on_disconnect(request: web.Request) -> Iterator[None]:
    """Cancel this handler when the browser disconnects. By default, handlers of this listener run to their end.

    A failed write would show the disconnect too, but the handler writes nothing before the engine's first token.
    """
    handler = asyncio.current_task()
    timer: asyncio.TimerHandle | None = None

    def check() -> None:
        nonlocal timer
        if request.transport is not None and not request.transport.is_closing():
            timer = asyncio.get_running_loop().call_later(_POLL_S, check)
        elif handler is not None:
            handler.cancel()

    check()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


def _base_url(request: web.Request) -> str:
    """Return the base URL of the callers' listener, as the operator's browser reaches it."""
    listener = request.app[keys.CALLERS_LISTENER]
    host = (request.url.host or "127.0.0.1") if listener.host in _WILDCARDS else listener.host
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.port}/v1"


def _options(book: PolicySet, engines: list[dict[str, Any]], base_url: str) -> dict[str, Any]:
    """Return the choices of the form. They contain no keys, limits or budgets."""
    return {
        "object": "playground.options",
        "base_url": base_url,
        "modes": list(_MODES),
        "projections": [{"name": one.name, "placement": one.default_placement} for one in book.projections.values()],
        "placements": list(get_args(Placement)),
        "max_guidance_tokens": MAX_GUIDANCE_TOKENS,
        "engines": engines,
        "tenants": [_tenant(policy) for policy in book.policies],
    }


def _tenant(policy: TenantPolicy) -> dict[str, Any]:
    """Return a tenant's chat routes, the first of each name. `conditional` marks names with several routes."""
    routes = []
    for named in policy.routes_of.values():
        answering = [route for _, route in named if any(map(route.has_engines_of, _MODES))]
        if answering:
            routes.append(_route(policy, answering[0], conditional=len(named) > 1 or named[0][1].when is not None))
    return {"tenant": policy.tenant, "routes": routes}


def _route(policy: TenantPolicy, route: Route, *, conditional: bool) -> dict[str, Any]:
    rule, overrides = route.guidance, policy.overrides_of(route)
    return {
        "model": route.model,
        "mode": route.mode,
        "modes": [mode for mode in _MODES if route.has_engines_of(mode)],
        "conditional": conditional,
        "teacher": route.teacher,
        "students": [one.model for one in route.all_students],
        "weights": [one.weight for one in route.all_students],
        "baseline": route.baseline,
        "default_max_tokens": route.default_max_tokens,
        "guidance": {"tokens": rule.tokens, "projection": rule.projection, "placement": rule.placement},
        "callers_may": {"modes": list(modes_of(policy, route)), "guidance_tokens": overrides.guidance_tokens},
    }


def _engine(engine: GuardedEngine, state: SharedEngineState) -> dict[str, Any]:
    """Return an engine's state over all workers.

    `continues`: whether it continues a given prefix of an answer; null if this worker has not probed it.
    """
    known = engine.state.continuation
    continues = None if known == "not_probed" else known is not None
    return {
        "name": engine.name,
        "up": engine.state.up and not state.is_down,
        "rests": state.is_open,
        "continues": continues,
    }


class MarkedRelay(StreamRelay):
    """Relays chunks as StreamRelay does, and copies the guidance in a chunk's content to `x_gkt.opening`.

    Guidance precedes the student's text in a chunk. The seam may hold back the end of the guidance and release it with
    the student's text. The relay therefore counts the characters that it sent.
    """

    def __init__(self, head: ReplyHead, *, wants_usage: bool) -> None:
        super().__init__(head, wants_usage=wants_usage)
        self._joined: SeamJoin | None = None
        self._sent = 0  # characters of the answer

    def join(self, seam: SeamJoin | None, thoughts: ReasoningFilter | None = None) -> list[Json]:
        self._joined = seam
        return super().join(seam, thoughts)

    def show(self, piece: str) -> list[Json]:
        chunks = super().show(piece)
        for chunk in chunks:
            chunk[MARK] = {"opening": piece}
        self._sent += len(piece)
        return chunks

    def feed(self, chunk: Json) -> Json | None:
        relayed = super().feed(chunk)
        if relayed is not None:
            self._mark(relayed)
        return relayed

    def template(self, _: ChunkTemplate) -> None:
        """Return None: each chunk has its own mark."""

    def end(self, finish_reason: str | None = None) -> list[Json]:
        chunks = super().end(finish_reason)
        for chunk in chunks:
            self._mark(chunk)
        return chunks

    def _mark(self, chunk: Json) -> None:
        """Mark the rest of the guidance in a chunk of the student: its end, or all of it if the student repeated it.

        If the student restarted the answer with another text, no part of its answer is guidance.
        """
        content = "".join(one["delta"].get("content") or "" for one in chunk["choices"] if one["index"] == 0)
        seam = self._joined
        if content and seam is not None and not seam.restarted and self._sent < len(seam.guidance):
            chunk[MARK] = {"opening": content[: len(seam.guidance) - self._sent]}
        self._sent += len(content)
