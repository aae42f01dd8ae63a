"""Callers that disconnect at a chosen point of a reply of the `CountingEngine`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from tests.counting_engine import choices_of

if TYPE_CHECKING:
    import aiohttp

    from tests.counting_engine import Books


async def leave(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], at: str, books: Books, *, after_s: float = 0.0
) -> int | None:
    """Send a request, and disconnect.

    Args:
        at: "json" and "before the first token": as soon as the engine has the call. "anywhere": after `after_s`.
            Otherwise a point in the stream.
        books: the engine's account of this request.

    Returns:
        The status; None where the caller left before it arrived.
    """
    if at in {"json", "before the first token", "anywhere"}:
        calling = asyncio.ensure_future(_read(session, url, body))  # noqa: TID251
        until = time.monotonic() + after_s
        while not calling.done() and (time.monotonic() < until if at == "anywhere" else not books.read):
            await asyncio.sleep(0.003)
        calling.cancel()
        await asyncio.wait([calling])
        return None if calling.cancelled() else calling.result()
    words, ends, choices = 0, 0, choices_of(body)
    async with session.post(url, json=body) as answer:
        if answer.status != 200:
            return answer.status
        async for line in answer.content:
            words += b'" word"' in line
            ends += b'"length"' in line
            if (
                (at == "in the middle" and words == 3 * choices)
                or (at == "at finish_reason" and ends == 1)
                or (at == "at the last finish_reason" and ends == choices)
                or (at == "after the usage" and b'"completion_tokens"' in line)
            ):
                answer.close()
                return answer.status
    raise AssertionError("the answer ended")


async def _read(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> int:
    async with session.post(url, json=body) as answer:
        await answer.read()
        return answer.status
