"""Count the tokens of a chat's prompt for a caller, without a call to an engine."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
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
from gateway.runtime.fair_share import FairSemaphore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.accounting.engine_set import CurrentEngines
    from gateway.policy.schema import Route
    from gateway.protocol.body import Json
    from gateway.protocol.chat import ChatRequest

_BYTES_PER_TOKEN = 4


class TokenCounter:
    """Counts prompts in one thread, which tenants take turns to use.

    In the event loop's own threads, the counts of one tenant would delay the requests of all tenants.
    """

    def __init__(self, engines: CurrentEngines) -> None:
        self._engines = engines
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="count-tokens")
        self._turns = FairSemaphore(1)

    async def count(self, tenant: str, chat: ChatRequest, route: Route) -> int:
        """Return an upper bound on the tokens of a prompt. The tenant's turn ends with the thread's work.

        The bound is close to the count if config.yaml names the tokenizer of the route's model.
        """
        students = route.all_students
        model = students[0].model if students else route.teacher
        encoding = self._engines.engine_set.encodings.get(model or "", Encoding(FALLBACK))
        async with self._turns.hold(tenant):
            counting = asyncio.get_running_loop().run_in_executor(self._thread, prompt_bound, chat, encoding)
            try:
                await asyncio.wait([counting])
            finally:
                if not counting.done():  # the caller disconnected
                    await asyncio.wait([counting])
            return counting.result()


def prompt_bound(chat: ChatRequest, encoding: Encoding) -> int:
    """Return an upper bound on the tokens of a chat's prompt. The count takes milliseconds, so use a thread."""
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
