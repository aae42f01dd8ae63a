"""Count the tokens of a chat's prompt for a caller, without a call to an engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from gateway.accounting.estimate import (
    FALLBACK,
    MAX_BOUNDED_BYTES,
    MAX_COUNTED_CHARS,
    Encoding,
    TextSize,
    count_text,
    recount_error,
    template_error,
    texts_of,
    token_error,
)
from gateway.accounting.worst_case import TOKENS_PER_PART
from gateway.protocol.messages import generated_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.policy.schema import Route
    from gateway.protocol.body import Json
    from gateway.protocol.chat import ChatRequest

_BYTES_PER_TOKEN = 4


def count_prompt(chat: ChatRequest, route: Route, encodings: Mapping[str, Encoding]) -> asyncio.Future[int]:
    """Start to count the tokens of a prompt in a thread. The result is an upper bound.

    It is close to the count if config.yaml names the tokenizer of the route's model.
    """
    students = route.all_students
    model = students[0].model if students else route.teacher
    encoding = encodings.get(model or "", Encoding(FALLBACK))
    return asyncio.get_running_loop().run_in_executor(None, _bound, chat, encoding)


def _bound(chat: ChatRequest, encoding: Encoding) -> int:
    text = "\n".join(_texts(chat))
    counted = sum(
        count_text(encoding.name, text[start : start + MAX_COUNTED_CHARS])
        for start in range(0, min(len(text), MAX_BOUNDED_BYTES), MAX_COUNTED_CHARS)
    )
    counted += len(text[MAX_BOUNDED_BYTES:].encode("utf-8", "replace")) // _BYTES_PER_TOKEN
    error = recount_error(counted) if encoding.own else token_error(counted, TextSize.of([text]))
    return counted + error + template_error(len(chat.messages)) + TOKENS_PER_PART * chat.non_text_parts


def _texts(chat: ChatRequest) -> Iterator[str]:
    """Yield all texts that a template renders."""
    for message in chat.messages:
        yield from texts_of(message)
        if message["role"] == "assistant":
            yield generated_text(_besides_content(message))
    if tools := chat.body.get("tools"):
        yield orjson.dumps(tools).decode()


def _besides_content(message: Json) -> Json:
    return {name: value for name, value in message.items() if name != "content"}
