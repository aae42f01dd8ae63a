"""Count the tokens of a chat's prompt for a caller, without a call to an engine."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import orjson

from gateway.accounting.estimate import (
    FALLBACK,
    MAX_COUNTED_CHARS,
    Encoding,
    TextSize,
    count_text,
    recount_error,
    template_error,
    texts_of,
    token_error,
    utf8_length,
)
from gateway.accounting.worst_case import TOKENS_PER_PART
from gateway.protocol.messages import generated_text
from gateway.runtime.fair_share import FairSemaphore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.accounting.engine_set import EngineSet
    from gateway.policy.schema import Route
    from gateway.protocol.body import Json
    from gateway.protocol.chat import ChatRequest

# The tokens of a longer text are estimated from parts of it: a count of 64,000 characters takes about 13 ms.
_PARTS = 16
_PART_CHARS = 4_000
_SAMPLED_RATIO = 0.1  # the part that an estimate adds, since the rest of the text may have shorter tokens
_REST = 3  # times the CPU time of a count, so that counts use at most a quarter of a core


class TokenCounter:
    """Counts prompts in one thread, which tenants take turns to use. The thread rests after each count.

    In the event loop's own threads, the counts of one tenant would delay the requests of all tenants. `rest` pauses the
    thread for a number of seconds.
    """

    def __init__(self, engines: EngineSet, rest: Callable[[float], object] = time.sleep) -> None:
        self._engines = engines
        self._rest = rest
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="count-tokens")
        self._turns = FairSemaphore(1)

    async def count(self, tenant: str, chat: ChatRequest, route: Route) -> int:
        """Return an upper bound on the tokens of a prompt.

        The tokens of a long prompt are estimated. The bound is close to the count if config.yaml names the tokenizer of
        the route's model.
        """
        students = route.all_students
        model = students[0].model if students else route.teacher
        encoding = self._engines.encodings.get(model or "", Encoding(FALLBACK))
        return await self.run(tenant, partial(prompt_bound, chat, encoding))

    async def run(self, tenant: str, count: Callable[[], int]) -> int:
        """Return the result of a count, whose time must be bounded. The tenant's turn ends with the thread's work."""
        async with self._turns.hold(tenant):
            counting = asyncio.get_running_loop().run_in_executor(self._thread, self._count, count)
            try:
                await asyncio.wait([counting])
            finally:
                if not counting.done():  # the caller disconnected
                    await asyncio.wait([counting])
            return counting.result()

    def _count(self, count: Callable[[], int]) -> int:
        """Count in the thread. The next count waits until the thread has rested."""
        started = time.thread_time()
        tokens = count()
        self._thread.submit(self._rest, _REST * (time.thread_time() - started))
        return tokens


def prompt_bound(chat: ChatRequest, encoding: Encoding) -> int:
    """Return an upper bound on the tokens of a chat's prompt; an estimate if the prompt is long.

    The count takes milliseconds, so use a thread.
    """
    text = "\n".join(_texts(chat))
    counted = count_or_estimate(encoding.name, text)
    error = recount_error(counted) if encoding.own else token_error(counted, TextSize.of([text]))
    return counted + error + template_error(len(chat.messages)) + TOKENS_PER_PART * chat.non_text_parts


def count_or_estimate(encoding: str, text: str) -> int:
    """Return the tokens of a text. Those of a long text are estimated from equal parts at equal distances."""
    if len(text) <= _PARTS * _PART_CHARS:
        starts = range(0, len(text), MAX_COUNTED_CHARS)
        return sum(count_text(encoding, text[start : start + MAX_COUNTED_CHARS]) for start in starts)
    last = len(text) - _PART_CHARS
    parts = [text[start : start + _PART_CHARS] for start in (last * part // (_PARTS - 1) for part in range(_PARTS))]
    counted = sum(count_text(encoding, part) for part in parts)
    return ceil(counted * (1 + _SAMPLED_RATIO) * utf8_length(text) / sum(map(utf8_length, parts)))


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
