"""Two versions with different Redis layouts of the scheduler share one Redis.

Neither version reads the other's tickets. Together they never exceed the teacher's limit of calls.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gateway.batching.membership import Membership
from gateway.batching.ticket import Grant, SchedulerUpdate, TeacherLimits, Ticket, TicketBroken
from gateway.batching.window import SECOND
from gateway.redis.keys import BOARD
from tests.batching.schedulers import ScriptScheduler

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from gateway.batching.ticket import SchedulerDecision
    from gateway.redis.keys import RedisKeys

LIMITS = TeacherLimits(max_in_flight=8, max_size=8, max_prompt_tokens=1000, lease_s=10.0)
START = 1_795_000_000 * SECOND


class Version:
    """A process of one version that requests as many calls as possible. Both versions share a clock."""

    def __init__(self, redis: Redis, keys: RedisKeys, layout: int, process_id: str) -> None:
        self._keys = keys._replace(board=layout)
        self._scheduler = ScriptScheduler(redis, self._keys)
        self._process_id = process_id
        self._requested = 0
        self.held: list[str] = []
        self.decision: SchedulerDecision

    async def run_exchange(
        self, at_s: float, *, wants: int = 0, returns: int = 0, limits: TeacherLimits = LIMITS
    ) -> int:
        """Ask for so many calls, tell that so many ended: how many are in flight then."""
        released, self.held = self.held[:returns], self.held[returns:]
        names = [f"{self._process_id}{number}" for number in range(self._requested, self._requested + wants)]
        self._requested += wants
        await self.tell(
            at_s, SchedulerUpdate([Ticket(name, "acme", 10, 0.0, 1000.0) for name in names], released=released), limits
        )
        return len(self.held)

    async def tell(self, at_s: float, update: SchedulerUpdate, limits: TeacherLimits = LIMITS) -> None:
        self.decision, _ = await self._scheduler.exchange(
            self._process_id, update, limits, START + round(at_s * SECOND)
        )
        self.held += [name for name, outcome in self.decision.outcomes.items() if isinstance(outcome, Grant)]


@pytest.fixture
def older(redis: Redis, keys: RedisKeys) -> Version:
    return Version(redis, keys, BOARD, "old")


@pytest.fixture
def newer(redis: Redis, keys: RedisKeys) -> Version:
    return Version(redis, keys, BOARD + 1, "new")


async def test_a_newer_version_gets_its_share_as_the_older_ones_calls_come_back(older: Version, newer: Version) -> None:
    assert await older.run_exchange(0.0, wants=20) == 8
    assert await newer.run_exchange(0.1, wants=20) == 0, "all are out"
    assert newer.decision.next_exchange_s is not None, "nobody will tell it of the other board's calls"
    assert newer.decision.other_layout_processes == 1
    assert await older.run_exchange(0.2, returns=3) == 5, "it has more than its half"
    assert older.decision.other_layout_processes == 1
    assert await newer.run_exchange(0.3) == 3
    assert await older.run_exchange(0.4, returns=5) == 4
    assert await newer.run_exchange(0.5) == 4
    assert await older.run_exchange(0.6, returns=1) == 4, "the half stays the half"


async def test_shares_go_by_processes(redis: Redis, keys: RedisKeys, newer: Version) -> None:
    three = [Version(redis, keys, BOARD, f"old{name}-") for name in "abc"]
    for one in three:
        await one.run_exchange(0.0)
    assert await newer.run_exchange(0.1, wants=20) == 2
    assert sum([await one.run_exchange(0.2, wants=20) for one in three]) == 6


async def test_a_single_version_gets_the_whole_teacher(older: Version, newer: Version) -> None:
    await older.run_exchange(0.0, wants=1)
    await newer.run_exchange(0.1, wants=20)
    assert len(newer.held) == 4
    await older.tell(0.2, SchedulerUpdate(released=older.held, leaving=True))
    assert await newer.run_exchange(0.3) == 8
    assert newer.decision.other_layout_processes == 0


async def test_the_share_of_a_killed_version_is_free_after_its_lease(older: Version, newer: Version) -> None:
    assert await older.run_exchange(0.0, wants=8) == 8
    assert await newer.run_exchange(0.1, wants=20) == 0
    for second in range(1, 10):
        assert await newer.run_exchange(float(second)) == 0
    assert await newer.run_exchange(10.5) == 8


async def test_a_blocked_redis_declares_no_version_dead(older: Version, newer: Version) -> None:
    """A clock that was set in Redis declares no version dead, either."""
    assert await older.run_exchange(0.0, wants=8) == 8
    assert await newer.run_exchange(0.1, wants=20) == 0
    assert await newer.run_exchange(3600.0) == 0
    assert await newer.run_exchange(3601.0) == 0
    assert newer.decision.other_layout_processes == 1
    assert await older.run_exchange(3601.5, returns=4) == 4
    assert await newer.run_exchange(100.0) == 4
    assert await newer.run_exchange(101.0) == 4
    assert newer.decision.other_layout_processes == 1


async def test_a_teacher_that_takes_one_call_at_a_time_is_each_versions_in_turn(older: Version, newer: Version) -> None:
    """By the second, however many wait on the other board."""
    one = replace(LIMITS, max_in_flight=1)
    had = {"old": 0, "new": 0}
    await older.run_exchange(0.0, limits=one)
    await newer.run_exchange(0.0, limits=one)
    await older.run_exchange(0.0, wants=40, limits=one)
    await newer.run_exchange(0.0, wants=40, limits=one)
    for tick in range(1, 80):
        for name, version in (("old", older), ("new", newer)):
            await version.run_exchange(tick / 10, returns=1, limits=one)
            had[name] += len(version.held)
            assert len(older.held) + len(newer.held) <= 1
    assert min(had.values()) >= 25


async def test_versions_do_not_read_each_others_tickets_or_wake_ups(
    redis: Redis, keys: RedisKeys, older: Version, newer: Version
) -> None:
    await older.run_exchange(0.0, wants=20)
    await newer.run_exchange(0.1, wants=20)
    other = keys._replace(board=BOARD + 1)
    ours, theirs = keys.teacher("big"), other.teacher("big")
    assert set(ours) & set(theirs) == {ours.boards}
    assert keys.wakeups("ann") != other.wakeups("ann")
    assert {raw.split(b"|")[0] for raw in await redis.hvals(ours.tickets)} == {str(BOARD).encode()}
    assert {raw.split(b"|")[0] for raw in await redis.hvals(theirs.tickets)} == {str(BOARD + 1).encode()}


@pytest.mark.parametrize("layout", [BOARD - 1, BOARD + 1, "", "x"])
async def test_a_ticket_of_another_layout_is_rejected(
    redis: Redis, keys: RedisKeys, older: Version, layout: int | str
) -> None:
    """The ticket is never granted, its process gets an outcome, and no other ticket waits for it."""
    await older.run_exchange(0.0, wants=9)
    names = keys.teacher("big")
    (waiting,) = [name for name in (f"old{number}" for number in range(9)) if name not in older.held]
    line = (await redis.hget(names.tickets, waiting)).decode()
    await redis.hset(names.tickets, waiting, f"{layout}|{line.partition('|')[2]}")
    assert await older.run_exchange(0.1, returns=1) == 7
    await older.tell(0.2, SchedulerUpdate([Ticket(waiting, "acme", 10, 0.0, 1000.0)]))
    assert older.decision.outcomes == {waiting: TicketBroken()}
    assert await older.run_exchange(0.3, wants=1) == 8


async def test_unknown_fields_and_unreadable_announcements_are_ignored(
    redis: Redis, keys: RedisKeys, older: Version, newer: Version
) -> None:
    """A later version may append fields to its announcement. An unreadable announcement counts for no version."""
    await older.run_exchange(0.0, wants=2)
    names = keys.teacher("big")
    announcement = await redis.hget(names.boards, str(BOARD))
    await redis.hset(names.boards, mapping={str(BOARD): announcement + b"|more|1", "99": "nothing to read"})
    assert await newer.run_exchange(0.1, wants=20) == 4
    assert newer.decision.other_layout_processes == 1
    assert set(await redis.hkeys(names.boards)) == {str(BOARD).encode(), str(BOARD + 1).encode()}


def test_alone_a_process_counts_those_of_the_other_version_among_its_fleet() -> None:
    one = Membership()
    one.record_fleet(2, 10.0, 0.0, other_layout_processes=2)
    one.record_deadline(3.0, 10.0, 0.5)
    one.record_outage(8, 1.0)
    assert one.share(8, 10.0, 5.0) == 2
    one.record_fleet(2, 10.0, 20.0, other_layout_processes=2)
    one.record_fleet(2, 10.0, 31.0)
    one.record_outage(8, 32.0)
    assert one.share(8, 10.0, 36.0) == 4
