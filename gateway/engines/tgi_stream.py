"""The client of TGI's /generate_stream, for streamed guidance and for raw prompts.

Unlike OpenAI's, the stream has one event for each token and no [DONE]. The last event has the whole text and the token
counts. Each failure after the request was read is an event under status 200 (TGI 3.3.7,
router/src/server.rs).
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gateway.engines.chat import read_usage
from gateway.engines.http import END_TIMEOUT_S
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
    """The last event of a stream: the whole text, TGI's finish reason, and the token counts if reported."""

    text: str
    finish: str | None
    usage: TokenUsage | None


async def token_events(http: EngineHttp, payload: Json) -> AsyncGenerator[list[Json], None]:
    """POST a body and yield the token events, grouped as they arrived. The last event has the whole text.

    Raises EngineErrors, also if the stream ends without its last event.
    """
    started = False
    async with aclosing(http.events("/generate_stream", payload)) as groups:
        async for group in groups:
            events, failed = await decoded_events(group, partial(_read, http))
            last = next((at for at, one in enumerate(events) if isinstance(one.get("generated_text"), str)), None)
            if last is not None:
                yield events[: last + 1]
                # The connection can be reused only after the end of the body was read.
                with suppress(TimeoutError, EngineError):
                    async with asyncio.timeout(END_TIMEOUT_S):
                        async for _ in groups:
                            pass
                return
            if events:
                started = True
                yield events
            if failed is not None:
                failed.may_have_run = failed.may_have_run or started
                raise failed
    raise EngineFailed(f"Engine '{http.name}' closed the stream before its end.", engine=http.name)


def token_text(event: Json) -> str:
    """Return the text that a token adds; empty for a special token."""
    token = event["token"]
    text = token.get("text")
    return text if isinstance(text, str) and not token.get("special") else ""


async def generate_stream(http: EngineHttp, payload: Json, on_text: Callable[[str], None]) -> TgiStreamEnd:
    """POST a body and call `on_text` with the text of each token. Raises EngineErrors."""
    last: Json = {}
    async with aclosing(token_events(http, payload)) as groups:
        async for group in groups:
            for event in group:
                if text := token_text(event):
                    on_text(text)
            last = group[-1]
    return _generated(last["generated_text"], last.get("details"))


def _read(http: EngineHttp, data: bytes) -> Json:
    try:
        event: Any = decode(data)
    except Unreadable as error:
        raise EngineProtocolError(f"Engine '{http.name}' {error}.", engine=http.name) from None
    if isinstance(event, dict) and event.get("error"):
        raise reported(http.name, http.read_error(event), "failed during its answer")
    if not isinstance(event, dict) or not isinstance(event.get("token"), dict):
        raise _protocol_error(http, "an event without a token")
    return event


def _generated(text: str, details: Any) -> TgiStreamEnd:
    fields: Json = details if isinstance(details, dict) else {}
    finish = fields.get("finish_reason")
    usage = read_usage(
        {"prompt_tokens": fields.get("input_length"), "completion_tokens": fields.get("generated_tokens")}
    )
    return TgiStreamEnd(text, finish if isinstance(finish, str) else None, usage)


def _protocol_error(http: EngineHttp, what: str) -> EngineProtocolError:
    return EngineProtocolError(f"Engine '{http.name}' sent {what}.", engine=http.name)
