"""Samples of requests in Redis, one for each route of a tenant: add, read and delete.

A sample is drawn uniformly from the requests since its first one, and is deleted as a whole. Redis deletes it even if
no gateway runs. Each route has limits of its own, so no tenant and no route displaces requests of another.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from gateway.redis.script import RedisScript

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from redis.asyncio import Redis

    from gateway.policy.route_rules import CollectRule
    from gateway.redis.keys import RedisKeys

AddResult = Literal["stored", "not_drawn", "skipped", "full"]

_OVERHEAD_BYTES = 250
"""Memory of a request besides its content, about: its id, its priority, and Redis' structures."""
_MAX_EVICTED = 1000  # requests that one script evicts after a limit became smaller
_BATCH = 40  # requests that one command reads
_SKIPPED = "skipped:"


class SampleState(NamedTuple):
    """A sample of a route.

    Attributes:
        since_s, ends_s: the time of its first request, and that of its deletion, in Unix seconds.
        seen: number of requests from which it was drawn, with those in `skipped`.
        kept: number of its requests; they take `size_bytes`.
        skipped: number of requests that could not be collected, by reason.
    """

    route: str
    since_s: float
    ends_s: float
    seen: int
    kept: int
    size_bytes: int
    skipped: Mapping[str, int]


class SamplePage(NamedTuple):
    """Requests as JSON, in random order. `following` continues after them; None: there are no more."""

    requests: list[bytes]
    following: str | None


class RedisSamples:
    """Samples in Redis. Every method raises RedisError and OSError."""

    def __init__(self, redis: Redis, keys: RedisKeys, *, priority: Callable[[], float] = random.random) -> None:
        self._redis, self._keys, self._priority = redis, keys, priority
        self._add = RedisScript(redis, __package__, "add_request.lua")

    async def add(
        self,
        tenant: str,
        route: str,
        rule: CollectRule,
        request_id: str,
        content: bytes,
        *,
        reason: str = "",
        dropped: int = 0,
    ) -> AddResult:
        """Draw a request into the sample. Without content, count it under `reason`, and `dropped` earlier ones."""
        arguments = (
            *(request_id, content, repr(self._priority()), reason, dropped),
            *(round(1000 * rule.ttl_s), rule.max_requests, rule.max_total_bytes),
            *(_OVERHEAD_BYTES, route, _MAX_EVICTED),
        )
        (reply,) = await self._add.run([(list(self._keys.collected(tenant, route)), arguments)])
        return cast("AddResult", reply.decode())

    async def routes(self, tenant: str) -> list[SampleState]:
        """Return the samples of a tenant, sorted by route."""
        names: Any = await self._redis.zrange(self._keys.collected(tenant, "").routes, 0, -1)
        found = []
        async with self._redis.pipeline(transaction=False) as pipe:
            routes = sorted(name.decode() for name in names)
            for route in routes:
                keys = self._keys.collected(tenant, route)
                pipe.hgetall(keys.state)
                pipe.zcard(keys.order)
            replies = await pipe.execute()
        for route, raw, kept in zip(routes, replies[::2], replies[1::2], strict=True):
            if raw:  # else the sample has expired
                found.append(_state(route, raw, kept))
        return found

    async def read(
        self, tenant: str, route: str, limit: int, *, after: str | None = None, max_bytes: int = 4_000_000
    ) -> SamplePage:
        """Return up to `limit` requests of about `max_bytes`, at least one, from the start or after a `following`."""
        keys = self._keys.collected(tenant, route)
        start = "-inf" if after is None else f"({after}"
        entries: Any = await self._redis.zrange(
            keys.order, start, "+inf", byscore=True, offset=0, num=limit + 1, withscores=True, score_cast_func=_text
        )
        requests: list[bytes] = []
        size, last = 0, None
        for begin in range(0, len(entries[:limit]), _BATCH):
            batch = entries[begin : min(limit, begin + _BATCH)]
            contents: Any = await self._redis.hmget(keys.requests, [request_id for request_id, _ in batch])
            for (_, score), content in zip(batch, contents, strict=True):
                last = score
                if content is not None:  # else evicted since
                    requests.append(content)
                    size += len(content)
            if size > max_bytes:
                break
        return SamplePage(requests, last if entries and last != entries[-1][1] else None)

    async def delete(self, tenant: str, route: str) -> int:
        """Delete the sample of a route. Return the number of its requests."""
        keys = self._keys.collected(tenant, route)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zcard(keys.order)
            pipe.unlink(keys.state, keys.order, keys.requests)
            pipe.zrem(keys.routes, route)
            kept, *_ = await pipe.execute()
        return int(kept)


def _text(score: bytes) -> str:
    """Keep a score as Redis writes it: a float could lose digits of the cursor."""
    return score.decode()


def _state(route: str, raw: Mapping[bytes, bytes], kept: int) -> SampleState:
    fields = {name.decode(): value.decode() for name, value in raw.items()}
    skipped = {name.removeprefix(_SKIPPED): int(fields[name]) for name in sorted(fields) if name.startswith(_SKIPPED)}
    return SampleState(
        route=route,
        since_s=int(fields["since"]) / 1000,
        ends_s=int(fields["ends"]) / 1000,
        seen=int(fields["seen"]),
        kept=kept,
        size_bytes=int(fields.get("bytes", 0)),
        skipped=skipped,
    )
