"""Keys in Redis: each change is one script, and every process reads it."""

from __future__ import annotations

import asyncio
import os
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway.config.limits import BudgetRule, LimitsRule
from gateway.errors import Conflict, NotFound
from gateway.keys.follower import KeyFollower
from gateway.keys.held import HeldKey, Keyring, KeyTerms, policy_fields
from gateway.keys.redis_keyring import NEVER, HistoryHead, KeyExpiry, RedisKeyring
from gateway.keys.token import digest_of, hint_of, new_token
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

TERMS = KeyTerms("gk-abc", "admin")


class World:
    """A Redis with keys, and any number of processes."""

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self.names = RedisKeys(f"k{os.urandom(4).hex()}")
        self.keys = RedisKeyring(client.commands, self.names)

    def process(self) -> tuple[Keyring, KeyFollower]:
        ring = Keyring()
        return ring, KeyFollower(self.client, self.keys, ring)

    async def create(
        self, key_id: str, *, tenant: str = "acme", expiry: KeyExpiry = NEVER, terms: KeyTerms = TERMS
    ) -> HeldKey:
        return await self.keys.create(digest_of(new_token()), tenant, key_id, terms, expiry, "admin")


@pytest_asyncio.fixture
async def world(redis_url: str) -> AsyncIterator[World]:
    client = RedisClient(redis_url, timeout_s=5, metrics=Metrics())
    yield World(client)
    await client.close()


def statuses(ring: Keyring) -> dict[str, str]:
    return {key.id: key.status(ring.now()) for key in ring.all()}


def test_a_key_has_256_bits_and_a_hint_of_six_characters() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert {len(token) for token in tokens} == {46}
    assert {token[:3] for token in tokens} == {"gk-"}
    one = tokens.pop()
    assert one.isascii()
    assert hint_of(one) == one[:6]


async def test_permissions_of_a_key_are_read_back_unchanged(world: World) -> None:
    limits = LimitsRule(rpm_limit=600, max_parallel_requests=3)
    budget = BudgetRule.model_validate(
        {"max_budget": Decimal("0.10"), "budget_duration": "2w", "on_hard": "student_only"}
    )
    created = await world.create(
        "prod",
        expiry=KeyExpiry(at_s=4_000_000_000.0),
        terms=KeyTerms("gk-abc", "alice", ("chat", "chat-b"), policy_fields(limits), policy_fields(budget)),
    )
    ring, follower = world.process()
    await follower.catch_up()
    held = ring.find(created.sha256)
    assert held is not None
    assert (held.tenant, held.id, held.terms.created_by, held.expires_s) == ("acme", "prod", "alice", 4_000_000_000.0)
    assert held.entry.limits == limits
    assert held.entry.budget == budget
    assert held.entry.budget is not None
    assert str(held.entry.budget.max_budget) == "0.10"
    assert held.entry.models == ("chat", "chat-b")
    assert ring.by_id("acme", "prod") is held
    assert abs(held.created_s - ring.now()) < 30


async def test_an_id_is_taken_within_its_tenant_only_and_also_by_a_revoked_key(world: World) -> None:
    await world.create("prod")
    await world.create("prod", tenant="globex")
    with pytest.raises(Conflict, match="Key 'acme/prod' already exists"):
        await world.create("prod")
    await world.keys.revoke("acme", "prod", "admin")
    with pytest.raises(Conflict):
        await world.create("prod")
    with pytest.raises(NotFound, match="has no key 'nope'"):
        await world.keys.revoke("acme", "nope", "admin")


async def test_a_repeated_change_is_applied_once(world: World) -> None:
    """After a lost reply, redis-py sends the command again."""
    digest = digest_of(new_token())
    twice = [await world.keys.create(digest, "acme", "prod", TERMS, NEVER, "admin") for _ in range(2)]
    assert twice[0] == twice[1]
    new = digest_of(new_token())
    rotated = [await world.keys.rotate(twice[0], new, TERMS, grace_s=60, expiry=NEVER, actor="admin") for _ in range(2)]
    assert rotated[0] == rotated[1]
    revoked = [await world.keys.revoke("acme", "prod", "admin") for _ in range(2)]
    assert revoked[0] == revoked[1]
    assert (await world.keys.read(HistoryHead(), 0)).head.version == 4, "created, renamed, its heir, revoked"
    trail = await world.client.commands.xrange(world.names.keyring().audit)
    assert [fields[b"action"] for _, fields in trail] == [b"key.create", b"key.rotate", b"key.revoke"]


async def test_one_of_many_concurrent_creations_gets_the_id(world: World) -> None:
    tries = await asyncio.gather(*(world.create("prod") for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(one, HeldKey) for one in tries) == 1
    assert sum(isinstance(one, Conflict) for one in tries) == 49


async def test_rotation_keeps_the_id_for_the_new_key_and_the_old_one_holds_for_its_grace_time(world: World) -> None:
    old = await world.create("prod", expiry=KeyExpiry(in_s=1000))
    ring, follower = world.process()
    await follower.catch_up()
    new, before = await world.keys.rotate(old, digest_of(new_token()), TERMS, grace_s=60, expiry=NEVER, actor="admin")
    await follower.catch_up()
    assert (new.id, new.replaces, before.id) == ("prod", "prod.1", "prod.1")
    assert new.expires_s == old.expires_s, "the new one holds as long as the old one was to"
    assert before.expires_s is not None
    assert 50 < before.expires_s - ring.now() <= 60
    assert statuses(ring) == {"prod": "active", "prod.1": "grace"}
    assert before.status(before.expires_s) == "replaced"
    assert before.sha256 == old.sha256
    assert ring.by_id("acme", "prod") == new

    again, second = await world.keys.rotate(
        new, digest_of(new_token()), TERMS, grace_s=0, expiry=KeyExpiry(in_s=5000), actor="admin"
    )
    assert (again.id, second.id) == ("prod", "prod.2")
    await follower.catch_up()
    assert statuses(ring) == {"prod": "active", "prod.1": "grace", "prod.2": "replaced"}


async def test_grace_never_makes_a_key_hold_longer(world: World) -> None:
    old = await world.create("prod", expiry=KeyExpiry(in_s=10))
    _, before = await world.keys.rotate(old, digest_of(new_token()), TERMS, grace_s=3600, expiry=NEVER, actor="a")
    assert before.expires_s == old.expires_s


async def test_ended_keys_cannot_be_rotated_and_one_of_two_rotations_wins(world: World) -> None:
    async def rotate(key: HeldKey) -> tuple[HeldKey, HeldKey]:
        return await world.keys.rotate(key, digest_of(new_token()), TERMS, grace_s=60, expiry=NEVER, actor="a")

    old = await world.create("prod")
    tries = await asyncio.gather(*(rotate(old) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(one, tuple) for one in tries) == 1
    assert {str(one) for one in tries if isinstance(one, Conflict)} == {
        "Key 'acme/prod' was changed concurrently. Read it again, and retry."
    }
    ring, follower = world.process()
    await follower.catch_up()
    replaced = ring.by_id("acme", "prod.1")
    assert replaced is not None
    with pytest.raises(Conflict, match="was already rotated"):
        await rotate(replaced)
    with pytest.raises(Conflict, match="is revoked"):
        await rotate(await _revoked(world, "gone"))
    short = await world.create("short", expiry=KeyExpiry(in_s=0.001))
    await asyncio.sleep(0.01)
    with pytest.raises(Conflict, match="has expired"):
        await rotate(short)


async def _revoked(world: World, key_id: str) -> HeldKey:
    await world.create(key_id)
    return await world.keys.revoke("acme", key_id, "admin")


async def test_an_end_that_is_past_by_redis_time_is_refused(world: World) -> None:
    with pytest.raises(Conflict, match="'expires' is in the past"):
        await world.create("prod", expiry=KeyExpiry(at_s=1_000_000_000))
    old = await world.create("prod")
    with pytest.raises(Conflict, match="'expires' is in the past"):
        await world.keys.rotate(
            old, digest_of(new_token()), TERMS, grace_s=0, expiry=KeyExpiry(at_s=1_000_000_000), actor="a"
        )


async def test_there_is_a_most_of_keys(world: World) -> None:
    world.keys = RedisKeyring(world.client.commands, world.names, max_keys=2)
    first = await world.create("a")
    await world.create("b")
    with pytest.raises(Conflict, match="keys is reached"):
        await world.create("c")
    with pytest.raises(Conflict, match="keys is reached"):
        await world.keys.rotate(first, digest_of(new_token()), TERMS, grace_s=0, expiry=NEVER, actor="a")


async def test_keys_that_ended_30_days_ago_are_forgotten_by_redis_and_by_the_processes(world: World) -> None:
    names = world.names.keyring()
    ring, follower = world.process()
    for number in range(1200):
        await world.create(f"k{number}", expiry=KeyExpiry(in_s=0.001))
    lives = await world.create("lives")
    await world.create("later", expiry=KeyExpiry(in_s=1000))
    await follower.catch_up()
    assert len(ring) == 1202
    redis = world.client.commands
    old = [sha for sha, _ in await redis.zrange(names.ends, 0, 1199, withscores=True)]
    await redis.zadd(names.ends, dict.fromkeys(old, 1000000))
    for number in range(12):
        await world.create(f"new{number}")
    assert await redis.hlen(names.terms) == await redis.hlen(names.dates) == await redis.zcard(names.changes) == 14
    assert await redis.hlen(names.names) == 14
    assert await redis.zcard(names.ends) == 1
    await follower.catch_up()
    await follower.catch_up()
    assert len(ring) == 14
    assert ring.find(lives.sha256) == lives


async def test_a_process_reads_only_changed_keys(world: World) -> None:
    ring, follower = world.process()
    for number in range(3):
        await world.create(f"k{number}")
    await follower.catch_up()
    seen = (await world.keys.read(HistoryHead(), 0)).head
    assert (await world.keys.read(seen, seen.version)).keys == []
    await world.keys.revoke("acme", "k1", "admin")
    page = await world.keys.read(seen, seen.version)
    assert [key.id for key in page.keys] == ["k1"]
    await follower.catch_up()
    assert statuses(ring) == {"k0": "active", "k1": "revoked", "k2": "active"}


async def test_more_than_a_page_is_read_whole_while_more_comes(world: World) -> None:
    world.keys = RedisKeyring(world.client.commands, world.names, page_size=7)
    for number in range(40):
        await world.create(f"k{number}")
    ring, follower = world.process()
    await asyncio.gather(follower.catch_up(), *(world.create(f"m{number}") for number in range(20)))
    await follower.catch_up()
    assert len(ring) == 60


async def _flushed(world: World) -> None:
    names = list(world.names.keyring())
    await world.client.commands.delete(*names)


async def _begun_anew(world: World) -> None:
    """Replace the history by another one of equal length with other keys."""
    await _flushed(world)
    for number in range(3):
        await world.create(f"other{number}")


async def _failed_over(world: World) -> None:
    """Fail over to a replica without the last change, which then gets another change."""
    names = world.names.keyring()
    redis = world.client.commands
    ((sha, _),) = await redis.zrange(names.changes, -1, -1, withscores=True)
    for name in (names.terms, names.dates):
        await redis.hdel(name, sha)
    await redis.zrem(names.changes, sha)
    await redis.hdel(names.heads, "3")
    await redis.hset(names.state, mapping={"version": 2, "word": await redis.hget(names.heads, "2")})
    await redis.hdel(names.names, "acme/k2")
    await world.create("other")


@pytest.mark.parametrize(
    ("lose", "left"),
    [
        (_flushed, set()),
        (_begun_anew, {"other0", "other1", "other2"}),
        (_failed_over, {"k0", "k1", "other"}),
    ],
)
async def test_a_redis_with_another_history_is_read_completely(
    world: World, lose: Callable[[World], Awaitable[None]], left: set[str]
) -> None:
    """A history of equal length is read completely, too."""
    for number in range(3):
        await world.create(f"k{number}")
    ring, follower = world.process()
    await follower.catch_up()
    await lose(world)
    await follower.catch_up()
    assert {key.id for key in ring.all()} == left
    assert {key.id for key in (ring.by_id("acme", key_id) for key_id in left) if key} == left
    assert ring.by_id("acme", "k2") is None


async def test_a_key_that_cannot_be_read_hides_no_other(world: World) -> None:
    names = world.names.keyring()
    broken = [await world.create(f"broken{number}") for number in range(2)]
    await world.client.commands.hset(names.terms, broken[0].sha256, "{")
    await world.client.commands.hset(names.dates, broken[1].sha256, "a|b")
    fine = await world.create("fine")
    ring, follower = world.process()
    await follower.catch_up()
    assert [key.sha256 for key in ring.all()] == [fine.sha256]


async def test_uses_are_sent_in_one_command_and_the_oldest_dropped(world: World) -> None:
    world.keys = RedisKeyring(world.client.commands, world.names, max_used=3)
    ring, follower = world.process()
    for sha in ("a", "b", "a"):
        follower.record_use(sha)
    await follower.report_uses()
    used = await world.keys.last_used(["a", "b", "c"])
    assert set(used) == {"a", "b"}
    await follower.catch_up()
    assert all(abs(at - ring.now()) < 30 for at in used.values())
    for sha in ("c", "d"):
        follower.record_use(sha)
        await follower.report_uses()
    assert len(await world.keys.last_used(["a", "b", "c", "d"])) == 3
    assert await world.keys.last_used([]) == {}


async def test_unsent_uses_are_sent_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, follower = world.process()
    follower.record_use("a")
    broken = RedisClient("redis://127.0.0.1:1", timeout_s=0.1, metrics=Metrics())
    with monkeypatch.context() as outage:
        outage.setattr(world.keys, "record_use", RedisKeyring(broken.commands, world.names).record_use)
        with pytest.raises(RedisConnectionError):
            await follower.report_uses()
    await follower.report_uses()
    assert set(await world.keys.last_used(["a"])) == {"a"}
    await broken.close()


def test_keys_expire_during_an_outage() -> None:
    clock = [100.0]
    ring = Keyring(lambda: clock[0])
    assert ring.age_s() is None
    ring.mark_read(1_000_000.0)
    clock[0] += 7
    assert ring.now() == 1_000_007.0
    assert ring.age_s() == 7


async def test_no_more_of_a_key_than_its_hint_is_in_redis(world: World, redis_url: str) -> None:
    token = new_token()
    held = await world.keys.create(digest_of(token), "acme", "prod", KeyTerms(hint_of(token), "a"), NEVER, "a")
    await world.keys.rotate(
        held, digest_of(new_token()), KeyTerms(hint_of(token), "a"), grace_s=9, expiry=NEVER, actor="a"
    )
    async with Redis.from_url(redis_url) as redis:
        dumps = [await redis.dump(key) or b"" async for key in redis.scan_iter(f"*{world.names.prefix}*")]
    assert len(dumps) >= 8
    assert not [dump for dump in dumps if token[6:18].encode() in dump]
