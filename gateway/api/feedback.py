"""POST /v1/receipts/{id}/feedback: the outcome of a request, as its caller saw it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import msgspec
import orjson
from aiohttp import web
from redis.exceptions import RedisError

from gateway.accounting.receipt import REQUEST_ID, Receipt
from gateway.api.auth import authenticate
from gateway.api.decoding import read_parsed
from gateway.api.keys import FEEDBACK_STORE, READS, RECEIPTS, REDIS
from gateway.errors import FeedbackGiven, InvalidRequest, NotFound, StoreUnavailable
from gateway.protocol.body import read_body
from gateway.quality.comparison import SCALE
from gateway.quality.outcome import FEEDBACK, Outcome

if TYPE_CHECKING:
    from gateway.policy.book import Caller
    from gateway.protocol.body import Json


_NEW_S = 600.0
_RETRY_S = 0.2
"""Ten times as long as receipts wait for others on their way to Redis (accounting/store.py)."""


class _Score(msgspec.Struct, frozen=True):
    score: Annotated[float, msgspec.Meta(ge=0, le=1)]


class FeedbackBody(_Score, frozen=True, forbid_unknown_fields=True):
    """The outcome of a request: a score from 0, the worst, to 1, the best."""


def parse_feedback(raw: bytes) -> float:
    """Return the score of a body. Raises InvalidRequest with the field."""
    body, known = read_body(raw, _Score, "'score'")
    if (unknown := next((name for name in body if name != "score"), None)) is not None:
        raise InvalidRequest(f"'{unknown[:64]}': unknown field. Send 'score' alone.", param=unknown[:64])
    return known.score


async def add_feedback(request: web.Request) -> web.Response:
    """POST /v1/receipts/{id}/feedback. The first score counts. A receipt of another tenant is a 404.

    The receipt must still be in Redis, so that a score is stored at most once.
    """
    caller = await authenticate(request)
    score = await read_parsed(request, caller, parse_feedback)
    tenant, receipt_id = caller.policy.tenant, request.match_info["id"]
    raw = await _recent_receipt(request, caller, receipt_id)
    with request.app[READS].hold(tenant, caller.policy.weight):
        if raw is None:
            raise NotFound(
                "There is no such receipt, or it is too old for feedback. Use the x-request-id of a reply, within "
                "receipts.ttl of config.yaml. A stream's receipt is written at its end.",
                param="id",
            )
        outcome = _outcome(Receipt.from_json(raw), score)
        try:
            held = await request.app[FEEDBACK_STORE].add(outcome)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(
                "Feedback cannot be stored while Redis is unavailable. Retry the request."
            ) from error
    if held != outcome.score / SCALE:
        raise FeedbackGiven(f"This request has the score {held:g} already. The first score counts.", param="score")
    reply: Json = {"object": "feedback", "receipt": receipt_id, "score": held}
    return web.Response(body=orjson.dumps(reply), content_type="application/json")


async def _recent_receipt(request: web.Request, caller: Caller, receipt_id: str) -> bytes | None:
    """Return a receipt that is in Redis. The one of a new request may arrive there from another process soon."""
    if not REQUEST_ID.fullmatch(receipt_id):
        return None

    async def recent() -> bytes | None:
        with request.app[READS].hold(caller.policy.tenant, caller.policy.weight):
            return await request.app[RECEIPTS].recent(caller.policy.tenant, receipt_id)

    raw = await recent()
    if raw is None and abs(request.app[REDIS].now() - int(receipt_id[4:12], 16)) < _NEW_S:
        await asyncio.sleep(_RETRY_S)  # without a slot of READS, which other readers need
        raw = await recent()
    return raw


def _outcome(receipt: Receipt, score: float) -> Outcome:
    split = receipt.split
    variant, unit = ("", "") if split is None else (split.variant, split.unit)
    of_request = receipt.id, receipt.created, receipt.tenant, receipt.route
    return Outcome(*of_request, variant, unit, source=FEEDBACK, score=round(score * SCALE))
