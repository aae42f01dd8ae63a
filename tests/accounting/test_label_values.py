"""The bound on distinct values of labels, in a real Redis."""

from __future__ import annotations

import asyncio
import calendar
import secrets
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from redis.exceptions import ResponseError

from gateway.accounting.label_values import KEPT_S, MIN_WAITING, LabelValues, ValueSet
from gateway.accounting.labels import HASH_DIGITS, Labeler
from gateway.policy.book import Caller
from gateway.policy.key_entry import KeyEntry
from gateway.policy.labels import NONE, OTHER
from gateway.policy.schema import TenantPolicy
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

TEAM = ValueSet("acme", "team", trusted=False)
NOVEMBER = calendar.timegm((2026, 11, 30, 12, 0, 0))


class Fleet:
    """Processes with one Redis and one clock."""

    def __init__(self, redis: RedisClient) -> None:
        self.redis = redis
        self.keys = RedisKeys(f"t{secrets.token_hex(6)}")
        self.now = float(NOVEMBER)

    def process(self) -> LabelValues:
        return LabelValues(self.redis, self.keys, lambda: self.now)

    def key(self, values: ValueSet = TEAM, month: str = "2026-11") -> str:
        return self.keys.label_values(*values, month)

    async def count(self, values: ValueSet = TEAM, month: str = "2026-11") -> int:
        return int(await self.redis.commands.zcard(self.key(values, month)))


@pytest_asyncio.fixture
async def fleet(redis_url: str) -> AsyncIterator[Fleet]:
    redis = RedisClient(redis_url, timeout_s=5.0, metrics=Metrics())
    yield Fleet(redis)
    await redis.close()


async def test_values_beyond_the_bound_are_other_in_every_process(fleet: Fleet) -> None:
    ann, bob = fleet.process(), fleet.process()
    assert [ann.bounded(TEAM, value, 3) for value in "abcd"] == ["a", "b", "c", OTHER]
    await ann.register()
    assert bob.bounded(TEAM, "d", 3) == "d"  # until it has read Redis
    await bob.register()
    assert [bob.bounded(TEAM, value, 3) for value in "abcd"] == ["a", "b", "c", OTHER]
    assert await fleet.count() == 3


async def test_10000_invented_values_do_not_fill_redis(fleet: Fleet) -> None:
    """Three processes get values of their own, in bursts between registrations."""
    processes = [fleet.process() for _ in range(3)]
    used: set[str] = set()
    for burst in range(20):
        for number, process in enumerate(processes):
            used |= {process.bounded(TEAM, f"v{number}-{burst}-{one}", 500) for one in range(167)}
        await asyncio.gather(*(process.register() for process in processes))
    assert await fleet.count() == 500
    # Each process may use the values that it holds until it has read that the bound is reached.
    assert 500 < len(used - {OTHER}) <= 500 + 3 * MIN_WAITING
    assert await fleet.redis.commands.memory_usage(fleet.key()) < 100_000
    assert 0 < await fleet.redis.commands.ttl(fleet.key()) <= KEPT_S


async def test_a_burst_of_new_values_is_bounded_without_redis(fleet: Fleet) -> None:
    process = fleet.process()
    found = [process.bounded(TEAM, str(one), 100_000) for one in range(20_000)]
    assert sum(one != OTHER for one in found) == 10_000
    assert sum(process.bounded(ValueSet("b", "team", trusted=False), str(one), 50) != OTHER for one in range(200)) == 50
    assert await fleet.count() == 0


async def test_values_that_callers_choose_do_not_displace_those_of_claims(fleet: Fleet) -> None:
    process, claims = fleet.process(), ValueSet("acme", "team", trusted=True)
    for one in range(10):
        process.bounded(TEAM, f"invented-{one}", 5)
    await process.register()
    assert process.bounded(TEAM, "research", 5) == OTHER
    assert process.bounded(claims, "research", 5) == "research"
    await process.register()
    assert (await fleet.count(), await fleet.count(claims)) == (5, 1)
    assert await process.listed("acme", "team", 3) == ["research", "invented-0", "invented-1"]


async def test_tenants_and_labels_have_separate_bounds(fleet: Fleet) -> None:
    process = fleet.process()
    assert process.bounded(TEAM, "a", 1) == "a"
    assert process.bounded(TEAM, "b", 1) == OTHER
    assert process.bounded(TEAM._replace(tenant="globex"), "b", 1) == "b"
    assert process.bounded(TEAM._replace(label="app"), "b", 1) == "b"


async def test_a_month_begins_with_no_values(fleet: Fleet) -> None:
    process = fleet.process()
    process.bounded(TEAM, "a", 1)
    await process.register()
    fleet.now += 86_400
    assert process.bounded(TEAM, "b", 1) == "b"
    await process.register()
    assert await process.listed("acme", "team", 9) == ["b"]
    assert await fleet.count(month="2026-12") == 1


async def test_a_raised_bound_applies_at_once(fleet: Fleet) -> None:
    process = fleet.process()
    process.bounded(TEAM, "a", 1)
    await process.register()
    assert [process.bounded(TEAM, "b", most) for most in (1, 2)] == [OTHER, "b"]
    await process.register()
    assert await fleet.count() == 2


async def test_values_are_registered_again_after_redis_lost_them(fleet: Fleet) -> None:
    process = fleet.process()
    for one in "abc":
        process.bounded(TEAM, one, 9)
    await process.register()
    await fleet.redis.commands.delete(fleet.key())
    other = fleet.process()
    other.bounded(TEAM, "x", 9)
    await other.register()
    process.bounded(TEAM, "d", 9)
    await process.register()
    assert [process.bounded(TEAM, one, 5) for one in "abcdx"] == [*"abcdx"]


async def test_the_task_registers_values_in_the_background(fleet: Fleet) -> None:
    process = fleet.process()
    tasks = BackgroundTasks()
    tasks.keep("label_values", process.run())
    process.bounded(TEAM, "a", 9)
    while not await fleet.count():
        await asyncio.sleep(0.01)
    await tasks.close()


def caller(labels: dict[str, Any], tenant: str = "acme", key: dict[str, str] | None = None) -> Caller:
    policy = TenantPolicy.model_validate(
        {
            "tenant": tenant,
            "labels": labels,
            "keys": [{"id": "web", "sha256": "a" * 64, "labels": key or {}}],
            "routes": [{"model": "chat", "mode": "student", "student": "small"}],
        }
    )
    return Caller(policy, policy.keys[0])


async def test_a_hashed_label_never_has_its_value(fleet: Fleet) -> None:
    rule = {"user_id": {"metadata": "user_id", "hash": True}}
    values = fleet.process()
    secret, plain = Labeler(values, "a secret"), Labeler(values)

    def labels(labeler: Labeler, who: Caller, user: object) -> dict[str, str]:
        return labeler.of_report(who, {}, {"user_id": user})

    one = labels(secret, caller(rule), "alice")
    assert len(one["user_id"]) == HASH_DIGITS
    assert one == labels(secret, caller(rule), "alice")
    others = [labels(secret, caller(rule), "bob"), labels(secret, caller(rule, "globex"), "alice")]
    others += [labels(plain, caller(rule), "alice"), labels(Labeler(values, "another"), caller(rule), "alice")]
    assert len({found["user_id"] for found in (one, *others)}) == 5
    assert labels(secret, caller(rule), None) == {"user_id": NONE}
    await values.register()
    held = b"".join(await fleet.redis.commands.zrange(fleet.key(ValueSet("acme", "user_id", trusted=False)), 0, -1))
    assert b"alice" not in held
    assert one["user_id"].encode() in held


async def test_values_of_the_policy_and_of_keys_are_never_beyond_the_bound(fleet: Fleet) -> None:
    rule = {"header": "x-team", "max_values": 1, "exceptions": {"research": {"limits": {"rpm_limit": 5}}}}
    labeler = Labeler(fleet.process())
    who = caller({"team": rule})
    assert labeler.of_report(who, {"x-team": "a"}, None) == {"team": "a"}
    assert labeler.of_report(who, {"x-team": "b"}, None) == {"team": OTHER}
    assert labeler.of_report(who, {"x-team": "research"}, None) == {"team": "research"}
    assert labeler.of_report(caller({"team": rule}, key={"team": "c"}), {"x-team": "b"}, None) == {"team": "c"}
    assert labeler.of_report(caller({}), {"x-team": "a"}, None) == {}


async def test_a_value_that_arrives_during_a_registration_is_registered_next(fleet: Fleet) -> None:
    process = fleet.process()
    process.bounded(TEAM, "a", 9)

    async def arrive() -> None:
        process.bounded(TEAM, "b", 9)

    await asyncio.gather(process.register(), arrive())  # the call is sent before
    assert await fleet.count() == 1
    await process.register()
    assert await fleet.count() == 2


async def test_a_failed_node_of_a_cluster_does_not_stop_the_values_of_other_tenants(fleet: Fleet) -> None:
    fleet.redis.is_cluster = True
    process, other = fleet.process(), TEAM._replace(tenant="beta")
    await fleet.redis.commands.set(fleet.key(), "the script fails")
    process.bounded(TEAM, "a", 9)
    process.bounded(other, "b", 9)
    with pytest.raises(ResponseError):
        await process.register()
    assert await fleet.count(other) == 1
    await fleet.redis.commands.unlink(fleet.key())
    await process.register()
    assert await fleet.count() == 1


async def test_labels_of_headers_leave_out_those_of_a_body_and_use_up_no_value(fleet: Fleet) -> None:
    policy = TenantPolicy.model_validate(
        {
            "tenant": "acme",
            "labels": {
                "team": {"header": "x-team", "max_values": 1},
                "user": {"metadata": "user", "header": "x-user"},
                "app": {},
                "cost_center": {"hash": True, "header": "x-cost-center"},
            },
            "routes": [{"model": "chat", "mode": "student", "student": "small"}],
        }
    )
    process = fleet.process()
    labeler, caller = Labeler(process, "secret"), Caller(policy, KeyEntry(id="one", sha256="0" * 64))
    sent = {"x-team": "a", "x-cost-center": "number-4711"}
    found = labeler.of_headers(caller, sent)
    assert found == {"team": "a", "app": NONE, "cost_center": labeler.hashed("acme", "cost_center", "number-4711")}
    assert labeler.of_headers(caller, {"x-user": "ann"})["user"] == "ann"
    assert process.bounded(TEAM, "b", 1) == "b"
    assert labeler.of_headers(caller, sent)["team"] == OTHER
    assert labeler.of_headers(caller, {"x-team": "b"})["team"] == "b"
