"""The audit trail returns entries newest first, and limits their number."""

from __future__ import annotations

import os
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest_asyncio
from redis.asyncio import Redis

from gateway.keys import audit
from gateway.keys.audit import AuditTrail

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


async def test_the_newest_action_comes_first_and_older_ones_follow(redis: Redis) -> None:
    trail = AuditTrail(redis, f"audit-{os.urandom(4).hex()}")
    assert await trail.read(10) == []
    for number in range(3):
        await trail.write(actor="alice", action="budget.raise", tenant="acme", subject="", after=f'{{"usd":{number}}}')
    entries = await trail.read(2)
    assert [one.after for one in entries] == ['{"usd":2}', '{"usd":1}']
    assert (entries[0].actor, entries[0].action, entries[0].tenant, entries[0].before) == (
        "alice", "budget.raise", "acme", ""
    )  # fmt: skip
    seconds, _ = await redis.time()
    assert abs(entries[0].at - int(seconds)) <= 30
    (oldest,) = await trail.read(2, before_id=entries[-1].id)
    assert oldest.after == '{"usd":0}'


async def test_actions_of_a_tenant_are_found_among_many_others(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actions without a tenant concern each tenant."""
    monkeypatch.setattr(audit, "_READ_AT_ONCE", 10)
    trail = AuditTrail(redis, f"audit-{os.urandom(4).hex()}")
    for number in range(60):
        tenant = {3: "acme", 7: "", 41: "acme", 59: "acme"}.get(number, "globex")
        await trail.write(actor="a", action="x", tenant=tenant, subject=str(number))
    found = await trail.read(3, tenant="acme")
    assert [one.subject for one in found] == ["59", "41", "7"]
    assert [one.subject for one in await trail.read(3, tenant="acme", before_id=found[-1].id)] == ["3"]
    assert [one.subject for one in await trail.read(100, tenant="acme")] == ["59", "41", "7", "3"]
    assert [one.subject for one in await trail.read(2, tenant="initech")] == ["7"]


async def test_old_actions_make_room_for_new_ones(redis: Redis) -> None:
    """Redis trims streams in blocks of a hundred entries."""
    key = f"audit-{os.urandom(4).hex()}"
    trail = AuditTrail(redis, key, max_entries=150)
    for number in range(400):
        await trail.write(actor="a", action="x", tenant="t", subject=str(number))
    assert 150 <= await redis.xlen(key) <= 250
    assert (await trail.read(1))[0].subject == "399"


async def test_foreign_entries_are_readable(redis: Redis) -> None:
    key = f"audit-{os.urandom(4).hex()}"
    await redis.xadd(key, {b"actor": b"\xff", b"other": b"x"})
    (entry,) = await AuditTrail(redis, key).read(5)
    assert (entry.actor, entry.action) == ("�", "")


def test_the_scripts_keep_as_many() -> None:
    script = files("gateway.keys").joinpath("common.lua").read_text("utf-8")
    assert f"30 * 86400 * 1000000, 100, {audit.MAX_ENTRIES}\n" in script
