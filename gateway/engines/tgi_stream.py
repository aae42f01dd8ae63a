"""/generate_stream: TGI's own event stream, for an opening that is heard as it is written, and for raw prompts.

It differs from OpenAI's: one event for each token, the last with the whole text and its counts, no [DONE]; and every
failure after the request was read is an event under status 200 (TGI 3.3.7, router/src/server.rs).
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gateway.engines.chat import read_usage
from gateway.engines.http import REST_WITHIN_S
from gateway.engines.refusal import reported
from gateway.engines.reply_json import Unreadable, decode, decoded_events
from gateway.errors import EngineError, EngineFailed, EngineProtocolError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from gateway.engines.base import TokenUsage
    from gateway.engines.http import EngineHttp
    from gateway.protocol.body import Json


@dataclass(frozen=True, slots=True)
class TgiStreamEnd:
    """What the last event says: the whole text, why it ended in TGI's word, and the counts if it tells them."""

    text: str
    finish: str | None
    usage: TokenUsage | None


async def token_events(http: EngineHttp, payload: Json) -> AsyncGenerator[list[Json], None]:
    """POST, and yield the events, each with a token, as many at a time as came together; the last has the whole text.

    Raises EngineErrors: a stream that just ends is one.
    """
    begun = False
    async with aclosing(http.events("/generate_stream", payload)) as groups:
        async for group in groups:
            events, failed = await decoded_events(group, partial(_read, http))
            last = next((at for at, one in enumerate(events) if isinstance(one.get("generated_text"), str)), None)
            if last is not None:
                yield events[: last + 1]
                # Its connection can serve the next call only when the end was seen.
                with suppress(TimeoutError, EngineError):
                    async with asyncio.timeout(REST_WITHIN_S):
                        async for _ in groups:
                            pass
                return
            if events:
                begun = True
                yield events
            if failed is not None:
                failed.heard = failed.heard or begun
                raise failed
    raise EngineFailed(f"Engine '{http.name}' broke off in the middle of its answer.", engine=http.name)


def token_text(event: Json) -> str:
    """What a token adds to the text: nothing where it is a special one."""
    token = event["token"]
    text = token.get("text")
    return text if isinstance(text, str) and not token.get("special") else ""


async def generate_stream(http: EngineHttp, payload: Json, tell: Callable[[str], None]) -> TgiStreamEnd:
    """POST, and let `tell` hear each token's text. Raises EngineErrors."""
    last: Json = {}
    async with aclosing(token_events(http, payload)) as groups:
        async for group in groups:
            for event in group:
                if text := token_text(event):
                    tell(text)
            last = group[-1]
    return _generated(last["generated_text"], last.get("details"))


def _read(http: EngineHttp, data: bytes) -> Json:
    try:
        event: Any = decode(data)
    except Unreadable as error:
        raise EngineProtocolError(f"Engine '{http.name}' {error}.", engine=http.name) from None
    if isinstance(event, dict) and event.get("error"):
        raise reported(http.name, http.said(event), "failed in the middle of its answer")
    if not isinstance(event, dict) or not isinstance(event.get("token"), dict):
        raise _garbled(http, "an event without a token")
    return event


def _generated(text: str, details: Any) -> TgiStreamEnd:
    told: Json = details if isinstance(details, dict) else {}
    finish = told.get("finish_reason")
    usage = read_usage({"prompt_tokens": told.get("input_length"), "completion_tokens": told.get("generated_tokens")})
    return TgiStreamEnd(text, finish if isinstance(finish, str) else None, usage)


def _garbled(http: EngineHttp, what: str) -> EngineProtocolError:
    return EngineProtocolError(f"Engine '{http.name}' sent {what}.", engine=http.name)
