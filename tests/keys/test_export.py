"""Imports of audit entries while operators act."""

from __future__ import annotations

import asyncio
import os

from redis.asyncio import Redis

from gateway.keys.audit import AuditTrail
from gateway.keys.export import KeyExport
from gateway.keys.export_lines import AuditLine
from gateway.redis.keys import RedisKeys


async def test_actions_during_an_import_are_kept_in_order(redis_url: str) -> None:
    keys = RedisKeys(f"e{os.urandom(4).hex()}")
    lines = [AuditLine(f"{1_700_000_000_000 + number}-0", "a", "x", "acme", "old", "", "") for number in range(1_200)]
    async with Redis.from_url(redis_url) as redis:
        trail, exported = AuditTrail(redis, keys.keyring().audit), KeyExport(redis, keys)

        async def act() -> None:
            for number in range(5):
                await trail.write(actor="b", action="y", tenant="acme", subject=str(number))

        await asyncio.gather(exported.add_audit(lines), act())
        await exported.add_audit(lines)
        await trail.write(actor="b", action="y", tenant="acme", subject="last")
        assert [line.subject for line in await exported.audit()] == ["old"] * 1_200 + [*"01234", "last"]
        assert [key async for key in redis.scan_iter(f"*{keys.prefix}:*")] == [keys.keyring().audit.encode()]
