"""The ledger in Redis: intents that turn into receipts, each in one script over the keys of one tenant."""

from __future__ import annotations

from collections import defaultdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.ledger.intent import Intent
    from gateway.ledger.receipt import Receipt
    from gateway.redis_keys import RedisKeys

# One call of a script: its keys and its arguments.
_Call = tuple[list[str], list[str | bytes | int]]


class RedisLedger:
    """Args:
    owner: this process's id; no other process has it.
    ttl_s: how long a receipt can be asked for.
    """

    def __init__(self, redis: Redis, keys: RedisKeys, owner: str, ttl_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._owner = owner
        self._ttl_s = max(1, round(ttl_s))
        self._exchange = _Script(redis, "exchange.lua")
        self._abandon = _Script(redis, "abandon.lua")

    async def exchange(self, admitted: Sequence[Intent], settled: Sequence[Receipt]) -> list[str]:
        """Keep intents, and turn others into receipts, in one round trip. Raises RedisError and OSError.

        Returns the ids of receipts that took the place of an abandoned one.
        """
        news: dict[str, tuple[list[Intent], list[Receipt]]] = defaultdict(lambda: ([], []))
        for intent in admitted:
            news[intent.tenant][0].append(intent)
        for receipt in settled:
            news[receipt.tenant][1].append(receipt)
        calls = [self._news(tenant, intents, receipts) for tenant, (intents, receipts) in news.items()]
        return [one.decode() for replaced in await self._exchange.run(calls) for one in replaced]

    def _news(self, tenant: str, intents: Sequence[Intent], receipts: Sequence[Receipt]) -> _Call:
        keys = self._tenant_keys(tenant, self._owner)
        args: list[str | bytes | int] = [self._owner, self._ttl_s, len(intents)]
        told: list[Intent | Receipt] = [*intents, *receipts]
        for one in told:
            keys.append(self._keys.receipt(tenant, one.id))
            args += (one.id, one.to_json())
        return keys, args

    async def receipt(self, tenant: str, receipt_id: str) -> bytes | None:
        """A receipt as JSON. Raises RedisError and OSError."""
        found = await self._redis.get(self._keys.receipt(tenant, receipt_id))
        return found.encode() if isinstance(found, str) else found

    async def gone_owners(self, tenants: Iterable[str], lease_s: float) -> list[tuple[str, str]]:
        """(tenant, process) where the process admitted nothing for a lease and its heartbeat has lapsed.

        Raises RedisError and OSError.
        """
        tenants = list(tenants)
        seconds, microseconds = await self._redis.time()
        newest = seconds * 1_000_000 + microseconds - round(lease_s * 1_000_000)
        async with self._redis.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.zrangebyscore(self._keys.owners(tenant), "-inf", newest)
            found = await pipe.execute()
        quiet = [
            (tenant, owner)
            for tenant, owners in zip(tenants, found, strict=True)
            for raw in owners
            if (owner := raw.decode()) != self._owner
        ]
        asked = sorted({owner for _, owner in quiet})
        if not asked:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for owner in asked:
                pipe.exists(self._keys.heartbeat(owner))
            alive = dict(zip(asked, await pipe.execute(), strict=True))
        return [(tenant, owner) for tenant, owner in quiet if not alive[owner]]

    async def intents(self, tenant: str, owner: str, most: int) -> Mapping[str, bytes]:
        """Some of a process's intents as JSON, by request id. Raises RedisError and OSError."""
        flat: Any = await self._redis.hrandfield(self._keys.intents(tenant, owner), most, withvalues=True)
        return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}

    async def abandon(self, tenant: str, owner: str, receipts: Mapping[str, bytes]) -> set[str]:
        """Settle intents of a process that is gone: by id, the receipt as JSON. Raises RedisError and OSError.

        Returns the ids that this call settled, and no other process did.
        """
        keys = self._tenant_keys(tenant, owner)
        args: list[str | bytes | int] = [owner, self._ttl_s]
        for one, raw in receipts.items():
            keys.append(self._keys.receipt(tenant, one))
            args += (one, raw)
        (settled,) = await self._abandon.run([(keys, args)])
        return {one.decode() for one in settled}

    def _tenant_keys(self, tenant: str, owner: str) -> list[str]:
        return [self._keys.intents(tenant, owner), self._keys.owners(tenant)]


class _Script:
    """A script by its hash. (redis-py's own asks for the hash before each pipeline, which is a round trip more.)"""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis = redis
        self._text = files("gateway.ledger").joinpath(name).read_text("utf-8")
        self._sha = redis.register_script(self._text).sha

    async def run(self, calls: Sequence[_Call]) -> list[Any]:
        """What each call returned. A script that Redis does not know yet is told, and all calls are made again."""
        try:
            return await self._run(calls)
        except NoScriptError:
            await self._redis.script_load(self._text)
            return await self._run(calls)

    async def _run(self, calls: Sequence[_Call]) -> list[Any]:
        if len(calls) == 1:
            keys, args = calls[0]
            return [await self._redis.evalsha(self._sha, len(keys), *keys, *args)]
        async with self._redis.pipeline(transaction=False) as pipe:
            for keys, args in calls:
                pipe.evalsha(self._sha, len(keys), *keys, *args)
            return await pipe.execute()
