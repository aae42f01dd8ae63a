"""The scheduler's rules, each tested in memory and as the script in a real Redis, with the test's clock.

test_agreement.py compares the two implementations."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from gateway.batching.ticket import (
    Grant,
    SchedulerUpdate,
    SharedGuidance,
    TeacherLimits,
    Ticket,
    TicketBroken,
    TicketRefused,
)
from gateway.batching.window import SECOND
from tests.batching.schedulers import MemoryScheduler, ScriptScheduler

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis

    from gateway.batching.ticket import Outcome, SchedulerDecision
    from gateway.redis.keys import RedisKeys
    from tests.batching.schedulers import AnyScheduler

START = 1_795_000_000 * SECOND
HOUR_S = 3600.0
LIMITS = TeacherLimits(max_in_flight=4, max_size=4, max_prompt_tokens=100_000)
ONE = TeacherLimits(max_in_flight=1, max_size=1, max_prompt_tokens=100_000)


class Fleet:
    """Processes with one scheduler and one clock. `outcomes_by_id` has the tickets' outcomes in order of delivery."""

    def __init__(self, scheduler: AnyScheduler) -> None:
        self._scheduler = scheduler
        self._numbers = count()
        self.limits = LIMITS
        self.now = START
        self.outcomes_by_id: dict[str, Outcome] = {}
        self.queried: list[str] = []  # processes that the last exchange asked for a complete update

    def ticket(self, tenant: str = "acme", name: str = "", **more: Any) -> Ticket:
        """Return a ticket with a window of 10 ms by default."""
        name = name or f"{tenant}-{next(self._numbers)}"
        return Ticket(name, tenant, **({"prompt_tokens": 10, "max_wait_s": 0.01, "deadline_s": 60.0} | more))

    def tickets(self, many: int, tenant: str = "acme", **more: Any) -> list[Ticket]:
        return [self.ticket(tenant, **more) for _ in range(many)]

    async def tell(self, process_id: str = "ann", *arrived: Ticket, **update: Any) -> SchedulerDecision:
        decision, woken = await self._scheduler.exchange(
            process_id, SchedulerUpdate(arrived, **update), self.limits, self.now
        )
        self.queried = sorted(name for name, outcomes in woken.items() if not outcomes)
        for outcomes in (decision.outcomes, *woken.values()):
            self.outcomes_by_id |= outcomes
        return decision

    async def after(
        self, seconds: float, process_id: str = "ann", *arrived: Ticket, **update: Any
    ) -> SchedulerDecision:
        self.now += round(seconds * SECOND)
        return await self.tell(process_id, *arrived, **update)

    async def keeps(self) -> int:
        """Return the number of cached texts, expired ones included."""
        return await self._scheduler.keeps()

    def granted(self) -> list[str]:
        return [name for name, outcome in self.outcomes_by_id.items() if isinstance(outcome, Grant)]

    async def serve(self, many: int) -> list[str]:
        """Return each permit once granted until `many` tickets had one. Return their tenants in that order."""
        served: list[str] = []
        while len(served) < many:
            fresh = [name for name in self.granted() if name not in served]
            assert fresh, f"only {len(served)} of {many} were served"
            served += fresh
            await self.after(0.02, released=fresh)
            await self.after(0.02)
        return [name.partition("-")[0] for name in served[:many]]


@pytest.fixture(params=["memory", "script"])
def scheduler(request: pytest.FixtureRequest, redis: Redis, keys: RedisKeys) -> AnyScheduler:
    return MemoryScheduler() if request.param == "memory" else ScriptScheduler(redis, keys)


@pytest.fixture
async def fleet(scheduler: AnyScheduler) -> Fleet:
    return Fleet(scheduler)


def names(tickets: Iterable[Ticket]) -> list[str]:
    return [ticket.id for ticket in tickets]


# Fair shares


async def test_contended_permits_are_shared_by_weight(fleet: Fleet) -> None:
    """Tenants with weights 1 and 3 that always wait get a quarter and three quarters of the permits."""
    fleet.limits = ONE
    await fleet.tell("ann", *fleet.tickets(40, "a", weight=1.0), *fleet.tickets(40, "b", weight=3.0))
    served = await fleet.serve(40)
    assert (served.count("a"), served.count("b")) == (10, 30)
    assert max(len(run) for run in "".join(served).split("a")) <= 4, "and not in long runs"


async def test_tickets_of_a_tenant_are_served_in_order_of_arrival(fleet: Fleet) -> None:
    """The order of arrival decides, over all processes, also within one microsecond; ids do not."""
    fleet.limits = ONE
    await fleet.tell("ann", *(fleet.ticket(name=name) for name in ("m", "z", "a")))
    await fleet.tell("ben", *(fleet.ticket(name=name) for name in ("q", "b")))
    assert await fleet.serve(5) == ["m", "z", "a", "q", "b"]


async def test_a_flood_delays_another_tenants_only_ticket_by_one_batch_at_most(fleet: Fleet) -> None:
    """The ticket gets one of the next permits, although 10,000 tickets wait before it."""
    fleet.limits = replace(LIMITS, max_queue=10_000)
    await fleet.tell("ann", *fleet.tickets(10_000, "flood"))
    first = fleet.granted()
    assert len(first) == 4
    await fleet.after(0.02, "ben", fleet.ticket("small", "the-one"))
    await fleet.after(0.02, released=first)
    assert "the-one" in fleet.granted()
    assert len(fleet.granted()) == 8


async def test_an_idle_tenant_accumulates_no_credit(fleet: Fleet) -> None:
    """After twenty permits of the other tenant without own tickets, both tenants alternate."""
    fleet.limits = ONE
    await fleet.tell("ann", *fleet.tickets(1, "b"), *fleet.tickets(40, "a"))
    assert (await fleet.serve(21)).count("b") == 1
    await fleet.tell("ann", *fleet.tickets(20, "b"))
    assert (await fleet.serve(41))[21:].count("b") in {9, 10}


async def test_leaving_and_coming_back_gains_no_turn(fleet: Fleet) -> None:
    """A tenant that withdraws its tickets and sends new ones after each permit keeps its pass."""
    fleet.limits = ONE
    await fleet.tell("ann", *fleet.tickets(40, "a"))
    served = fleet.granted()
    for _ in range(20):
        waits = fleet.tickets(3, "b")
        await fleet.tell("ben", *waits)
        await fleet.after(0.02, released=[served[-1]])
        served.append(fleet.granted()[-1])
        await fleet.tell("ben", released=[ticket.id for ticket in waits if ticket.id != served[-1]])
    assert len(set(served)) == 21
    assert 9 <= sum(name.startswith("b") for name in served) <= 11


# The queue's bound


async def test_the_queue_of_a_tenant_is_bounded_and_only_its_own(fleet: Fleet) -> None:
    """Without recent grants no rate is known, and the retry time is ten seconds."""
    fleet.limits = replace(ONE, max_queue=3)
    await fleet.tell("ann", held=[fleet.ticket("x")])
    arrived = fleet.tickets(5, "a")
    decision = await fleet.tell("ann", *arrived, *fleet.tickets(1, "b"))
    assert decision.outcomes == dict.fromkeys(names(arrived[3:]), TicketRefused(10.0))
    assert decision.waiting == 4
    again = await fleet.tell("ann", arrived[3])
    assert isinstance(again.outcomes[arrived[3].id], TicketRefused), "one that asks again has no place kept"
    assert arrived[0].id not in (await fleet.tell("ann", arrived[0])).outcomes, "one that waits is not asked to leave"


async def test_a_rejection_states_when_the_queue_will_be_empty(fleet: Fleet) -> None:
    """Ten permits in the last second and five waiting tickets give half a second."""
    fleet.limits = replace(ONE, max_queue=5)
    for _ in range(10):
        await fleet.after(0.02, "ann", one := fleet.ticket(max_wait_s=0.0))
        await fleet.after(0.02, released=[one.id])
    assert len(fleet.granted()) == 10
    await fleet.tell("ann", held=[fleet.ticket("x")])
    *_, last = arrived = fleet.tickets(6)
    assert (await fleet.tell("ann", *arrived)).outcomes == {last.id: TicketRefused(0.5)}


# When batches open


async def test_below_low_water_nothing_waits(fleet: Fleet) -> None:
    """Two tickets are granted at once; the third waits its window."""
    fleet.limits = replace(LIMITS, low_water=2)
    for _ in range(2):
        assert (await fleet.tell("ann", fleet.ticket(max_wait_s=1.0))).opened == [1]
    assert (await fleet.tell("ann", fleet.ticket(max_wait_s=1.0))).opened == []
    assert (await fleet.after(1.0)).opened == [1]


async def test_the_window_follows_the_rate_of_arrivals(fleet: Fleet) -> None:
    """At 100 tickets per second four arrive in 40 ms, so no ticket waits the second that its policy allows."""
    fleet.limits = replace(LIMITS, max_in_flight=200, max_size=4)
    for _ in range(25):
        await fleet.after(0.04, "ann", *fleet.tickets(4, max_wait_s=1.0))
    assert len(fleet.granted()) == 100
    decision = await fleet.tell("ann", late := fleet.ticket(max_wait_s=1.0))
    assert decision.window_s is not None
    assert 0.03 < decision.window_s < 0.05
    assert decision.next_exchange_s == decision.window_s
    assert late.id in (await fleet.after(decision.window_s)).outcomes


WIDE = TeacherLimits(max_in_flight=12, max_size=4, max_prompt_tokens=1000)


async def test_permits_that_return_one_by_one_make_one_batch(fleet: Fleet) -> None:
    """The calls of a batch end a few milliseconds apart; the next four tickets go together."""
    fleet.limits = WIDE
    first = fleet.tickets(12)
    assert (await fleet.tell("ann", *first, *fleet.tickets(4))).opened == [4, 4, 4]
    await fleet.after(0.5)
    opened = [size for ticket in first[:4] for size in (await fleet.after(0.02, released=[ticket.id])).opened]
    assert opened == [4]


async def test_permits_that_return_too_slowly_are_not_waited_for(fleet: Fleet) -> None:
    """At twelve grants per second four take a third of a second; after three times that, free permits are granted."""
    fleet.limits = WIDE
    first = fleet.tickets(12)
    await fleet.tell("ann", *first, *fleet.tickets(4))
    decision = await fleet.after(0.5, released=[first[0].id])
    assert decision.opened == []
    assert decision.next_exchange_s == pytest.approx(1.0, abs=0.01)
    assert (await fleet.after(0.2, released=[first[1].id])).opened == []
    assert (await fleet.after(2.0)).opened == [2]


# Shared calls and the cache


async def test_a_follower_gets_the_guidance_of_its_leader(fleet: Fleet) -> None:
    """Both tickets use one permit. Without a cache, a later ticket leads again."""
    lead, follow = (fleet.ticket(dedupe_key="w", max_wait_s=0.0) for _ in range(2))
    await fleet.tell("ann", lead)
    decision = await fleet.tell("ben", follow)
    assert (decision.outcomes, decision.in_flight, decision.waiting) == ({}, 1, 0)
    await fleet.tell("ann", finished=[(lead.id, "the text")])
    assert fleet.outcomes_by_id[follow.id] == SharedGuidance("the text", cached=False)
    assert (await fleet.tell("ben", follow)).outcomes == {follow.id: SharedGuidance("the text", cached=False)}, (
        "told again"
    )
    assert (await fleet.tell("ben", fleet.ticket(dedupe_key="w", max_wait_s=0.0))).opened == [1]


@pytest.mark.parametrize("end", ["withdrawn", "lapsed", "left its call"])
async def test_when_a_leader_leaves_without_guidance_the_oldest_follower_leads(fleet: Fleet, end: str) -> None:
    """The follower is queued by its own arrival, and later followers follow it."""
    fleet.limits = ONE
    if end != "left its call":
        await fleet.tell("zoe", held=[fleet.ticket(name="busy")])
    await fleet.tell("ann", fleet.ticket(name="lead", dedupe_key="w", max_wait_s=0.0, deadline_s=0.5))
    await fleet.after(0.1, "ben", fleet.ticket(name="older", dedupe_key="w"))
    await fleet.after(0.1, "cem", fleet.ticket(name="other"))
    await fleet.after(0.1, "cem", fleet.ticket(name="younger", dedupe_key="w"))
    if end == "lapsed":
        await fleet.after(0.2, "ben")
    else:
        await fleet.tell("ann", released=["lead"])
    await fleet.after(0.02, "zoe", released=["busy"])
    await fleet.after(0.02, "zoe")
    assert fleet.granted()[-1] == "older"
    await fleet.tell("ben", finished=[("older", "the text")])
    assert fleet.outcomes_by_id["younger"] == SharedGuidance("the text", cached=False)
    await fleet.after(0.02, "cem")
    assert fleet.granted()[-1] == "other"


async def test_followers_take_no_place_in_the_queue(fleet: Fleet) -> None:
    """Followers need no call, so the limit does not count them."""
    fleet.limits = replace(ONE, max_queue=1)
    await fleet.tell("ann", held=[fleet.ticket(name="busy")])
    decision = await fleet.tell("ann", *fleet.tickets(50, dedupe_key="w"))
    assert (decision.outcomes, decision.waiting) == ({}, 1)


async def test_kept_guidance_answers_until_its_time_is_over(fleet: Fleet) -> None:
    """A cache hit needs no permit and opens no batch; a ticket without caching gets a permit."""
    fleet.limits = replace(LIMITS, max_cache_bytes=10_000)
    asks: dict[str, Any] = {"dedupe_key": "w", "max_wait_s": 0.0}
    await fleet.tell("ann", lead := fleet.ticket(cache_ttl_s=5.0, **asks))
    await fleet.tell("ann", finished=[(lead.id, "the text")])
    hit = fleet.ticket(cache_ttl_s=5.0, **asks)
    decision = await fleet.after(1.9, "ben", hit)
    assert (decision.outcomes, decision.in_flight) == ({hit.id: SharedGuidance("the text", cached=True)}, 0)
    uncached = fleet.ticket(**asks)
    assert (await fleet.tell("ben", uncached)).opened == [1]
    await fleet.tell("ben", released=[uncached.id])
    await fleet.after(1.9)
    assert (await fleet.after(1.19, "ben", fleet.ticket(cache_ttl_s=5.0, **asks))).opened == []
    assert (await fleet.after(0.01, "ben", fleet.ticket(cache_ttl_s=5.0, **asks))).opened == [1], "five seconds later"


async def test_the_cache_stays_within_its_bytes_and_evicts_the_next_to_expire(fleet: Fleet) -> None:
    """Each text takes 1 + 300 + 100 bytes, and two fit: the text that expires first is evicted."""
    fleet.limits = replace(LIMITS, max_cache_bytes=900)
    for key, ttl_s in (("a", 50.0), ("b", 20.0), ("c", 40.0)):
        await fleet.tell("ann", one := fleet.ticket(dedupe_key=key, max_wait_s=0.0, cache_ttl_s=ttl_s))
        await fleet.tell("ann", finished=[(one.id, key * 300)])

    async def cached_keys(key: str) -> bool:
        one = fleet.ticket(dedupe_key=key, max_wait_s=0.0, cache_ttl_s=10.0)
        outcome = (await fleet.tell("ann", one)).outcomes[one.id]
        await fleet.tell("ann", released=[one.id])
        return outcome == SharedGuidance(key * 300, cached=True)

    assert [await cached_keys(key) for key in "abc"] == [True, False, True]
    await fleet.tell("ann", huge := fleet.ticket(dedupe_key="h", max_wait_s=0.0, cache_ttl_s=30.0))
    await fleet.tell("ann", finished=[(huge.id, "h" * 1000)])
    assert [await cached_keys(key) for key in "ach"] == [True, True, False], "one that can never fit pushes nothing out"


async def fetch(fleet: Fleet, key: str, text: str, ttl_s: float = HOUR_S) -> None:
    """Fetch guidance for this key in one process."""
    await fleet.after(0.001, "ann", one := fleet.ticket(dedupe_key=key, max_wait_s=0.0, cache_ttl_s=ttl_s))
    await fleet.tell("ann", finished=[(one.id, text)])


async def cached_keys(fleet: Fleet, *dedupe_keys: str) -> list[str]:
    """Return those of these keys that are cached."""
    tickets_by_key = {key: fleet.ticket(dedupe_key=key, max_wait_s=0.0, cache_ttl_s=HOUR_S) for key in dedupe_keys}
    fleet.limits = replace(fleet.limits, max_in_flight=100)
    outcomes = (await fleet.tell("ann", *tickets_by_key.values())).outcomes
    await fleet.tell("ann", released=names(tickets_by_key.values()))
    return [key for key, one in tickets_by_key.items() if isinstance(outcomes[one.id], SharedGuidance)]


async def test_few_large_texts_drive_out_many_small_ones(fleet: Fleet) -> None:
    """Sixty small texts fill the cache; one of half its size evicts thirty of them at once."""
    fleet.limits = replace(LIMITS, max_cache_bytes=60 * (3 + 297 + 100))
    dedupe_keys = [f"s{n:02}" for n in range(60)]
    for key in dedupe_keys:
        await fetch(fleet, key, "x" * 297)
    assert await cached_keys(fleet, *dedupe_keys) == dedupe_keys
    await fetch(fleet, "big", "x" * 11_897)
    assert await cached_keys(fleet, *dedupe_keys, "big") == [*dedupe_keys[30:], "big"]


async def test_a_text_larger_than_the_cache_is_not_kept(fleet: Fleet) -> None:
    """The text is not cached although it would expire last, and nothing is evicted."""
    fleet.limits = replace(LIMITS, max_cache_bytes=1000)
    await fetch(fleet, "small", "x" * 100)
    await fetch(fleet, "huge", "x" * 897, ttl_s=2 * HOUR_S)
    assert await cached_keys(fleet, "small", "huge") == ["small"]


async def test_a_cache_that_is_switched_off_is_emptied(fleet: Fleet) -> None:
    """The next text with a cache time empties it."""
    fleet.limits = replace(LIMITS, max_cache_bytes=100_000)
    for n in range(30):
        await fetch(fleet, f"e{n:02}", "x")
    fleet.limits = LIMITS
    await fetch(fleet, "last", "x")
    assert await fleet.keeps() == 0


async def test_expired_cache_entries_are_evicted_in_small_numbers(fleet: Fleet) -> None:
    """After fifty texts expired together, each later text evicts twenty of them, although all would fit."""
    fleet.limits = replace(LIMITS, max_cache_bytes=100_000)
    for n in range(50):
        await fetch(fleet, f"e{n:02}", "x", ttl_s=1.0)
    left = []
    for key in "abc":
        await fleet.after(1.5)
        await fetch(fleet, key, "x")
        left.append(await fleet.keeps())
    assert left == [31, 12, 3]


# Dead processes and clock changes


async def test_only_a_dead_owner_loses_its_tickets_and_permits(fleet: Fleet) -> None:
    """Ann sends nothing for a lease and loses her permits; ben exchanges each second and keeps his."""
    fleet.limits = replace(LIMITS, max_in_flight=2, lease_s=3.0)
    await fleet.tell("ann", fleet.ticket(name="anns", max_wait_s=0.0))
    await fleet.tell("ben", mine := fleet.ticket(name="bens", max_wait_s=0.0))
    await fleet.tell("ann", fleet.ticket(name="ann-waits", max_wait_s=9.0))
    await fleet.tell("ben", fleet.ticket(name="ben-waits"))
    for _ in range(2):
        assert (await fleet.after(1.0, "ben", held=[mine])).reclaimed == 0
    assert fleet.granted() == ["anns", "bens"]
    decision = await fleet.after(1.0, "ben", held=[mine])
    assert (decision.reclaimed, decision.fleet_size) == (2, 1)
    await fleet.after(0.01, "ben")
    assert fleet.granted() == ["anns", "bens", "ben-waits"]


async def test_permits_of_a_leaving_process_are_free_at_once(fleet: Fleet) -> None:
    """The permits of a process that leaves are free at once."""
    fleet.limits = ONE
    await fleet.tell("ann", *fleet.tickets(2, max_wait_s=0.0))
    await fleet.tell("ben", waits := fleet.ticket(max_wait_s=0.0))
    assert (await fleet.tell("ben")).fleet_size == 2
    assert (await fleet.tell("ann", leaving=True)).reclaimed == 0
    assert waits.id in fleet.granted()
    decision = await fleet.tell("ben")
    assert (decision.fleet_size, decision.in_flight, decision.waiting) == (1, 1, 0)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S, 30.0], ids=["forward", "back", "stood still"])
async def test_no_permit_lapses_early_because_the_clock_was_set(fleet: Fleet, jump_s: float) -> None:
    """After a clock change of an hour, or a pause of half a minute, calls keep their permits and waiting tickets are
    served. No process loses its lease."""
    fleet.limits = replace(LIMITS, max_in_flight=1)
    await fleet.tell("ann", call := fleet.ticket(max_wait_s=0.0, deadline_s=5.0))
    await fleet.tell("ben", waits := fleet.ticket(deadline_s=5.0))
    decision = await fleet.after(jump_s, "cem")
    assert (decision.reclaimed, decision.fleet_size, decision.in_flight, decision.waiting) == (0, 3, 1, 1)
    assert (await fleet.after(1.5, "ann")).reclaimed == 0
    await fleet.after(0.5, "ann", released=[call.id])
    await fleet.after(0.01, "ben")
    assert waits.id in fleet.granted()


async def test_an_unreturned_permit_expires_after_its_deadline(fleet: Fleet) -> None:
    """The limit does not stay reduced. The permit is not free before its process would return it."""
    fleet.limits = replace(ONE, lease_s=60.0)
    await fleet.tell("ann", fleet.ticket(max_wait_s=0.0, deadline_s=1.0))
    assert (await fleet.after(1.5, "ben", fleet.ticket())).in_flight == 1
    decision = await fleet.after(1.5, "ben")
    assert (decision.reclaimed, decision.opened) == (1, [1])


@pytest.mark.parametrize("last", ["cem", None])
async def test_after_an_outage_grants_wait_for_the_permits_of_all_processes(fleet: Fleet, last: str | None) -> None:
    """In a fleet of three, the first process to rejoin waits for the others, at most two seconds."""
    fleet.limits = replace(LIMITS, max_in_flight=9, max_size=1)
    returns: dict[str, Any] = {"rejoining": True, "complete": True, "fleet_size": 3}
    assert (await fleet.tell("ann", *fleet.tickets(20), **returns)).in_flight == 0
    assert (await fleet.after(0.1, "ben", held=fleet.tickets(3), **returns)).in_flight == 3
    assert (await fleet.after(0.1, "ann", complete=True, fleet_size=3)).in_flight == 3
    if last is None:
        assert (await fleet.after(1.7, "ann", complete=True, fleet_size=3)).in_flight == 3
        assert (await fleet.after(0.2, "ann")).in_flight == 9
    else:
        assert (await fleet.after(0.1, last, held=fleet.tickets(4), **returns)).in_flight == 9


async def test_a_rejoining_process_triggers_one_query_of_the_others(fleet: Fleet) -> None:
    """All other processes are queried once, so that grants stop for a round trip only."""
    for process_id in ("ann", "ben", "cem"):
        await fleet.tell(process_id, complete=True, fleet_size=3)
    await fleet.after(3.0)
    returns: dict[str, Any] = {"rejoining": True, "complete": True, "fleet_size": 3}
    await fleet.tell("ben", **returns)
    assert fleet.queried == ["ann", "cem"]
    await fleet.tell("cem", **returns)
    assert fleet.queried == []
    assert (await fleet.tell("ann", fleet.ticket(max_wait_s=0.0), complete=True, fleet_size=3)).opened == [1]


async def test_a_process_that_rejoins_alone_queries_no_other(fleet: Fleet) -> None:
    """No other process can hold a permit, so grants need not wait."""
    await fleet.after(0.0, "ann", complete=True, fleet_size=1)
    await fleet.tell("ben")
    decision = await fleet.tell("ann", fleet.ticket(max_wait_s=0.0), rejoining=True, complete=True, fleet_size=1)
    assert (fleet.queried, decision.opened) == ([], [1])


# Repeated updates


async def test_a_repeated_update_has_no_further_effect(fleet: Fleet) -> None:
    """After a lost reply the update is sent again; the grant is returned again and counted once."""
    fleet.limits = ONE
    arrived = fleet.tickets(2, max_wait_s=0.0)
    first = await fleet.tell("ann", *arrived)
    again = await fleet.tell("ann", *arrived)
    assert first.outcomes == again.outcomes == {arrived[0].id: Grant("b1", 1)}
    assert (again.in_flight, again.waiting, again.opened) == (1, 1, [])


async def test_a_ticket_sent_again_keeps_its_position_and_window(fleet: Fleet) -> None:
    """A ticket sent again keeps its arrival: its position and its window."""
    fleet.limits = replace(LIMITS, max_in_flight=100, max_size=100)
    await fleet.tell("ann", mine := fleet.ticket(max_wait_s=0.5))
    await fleet.tell("ben", fleet.ticket(max_wait_s=0.9))
    again = await fleet.after(0.2, "ann", mine)
    assert again.next_exchange_s == pytest.approx(0.3)
    await fleet.after(0.3, "ann")
    assert fleet.granted()[0] == mine.id


async def test_a_ticket_that_is_wanted_for_longer_ends_later(fleet: Fleet) -> None:
    """A ticket sent again with a later deadline keeps waiting; another one expires."""
    fleet.limits = ONE
    await fleet.tell("ann", held=[fleet.ticket(name="busy")])
    short = fleet.tickets(2, deadline_s=0.5)
    assert (await fleet.tell("ann", *short)).waiting == 2
    await fleet.after(0.4, "ann", structs.replace(short[0], deadline_s=0.5))
    assert (await fleet.after(0.2, "ann")).waiting == 1
    assert (await fleet.after(0.3, "ann")).waiting == 0


async def test_a_deadline_in_the_past_is_never_served(fleet: Fleet) -> None:
    """The ticket gets no permit and is not queued."""
    for deadline_s in (0.0, -1.0, -5000.0):
        decision = await fleet.tell("ann", fleet.ticket(max_wait_s=0.0, deadline_s=deadline_s))
        assert (decision.outcomes, decision.in_flight, decision.waiting) == ({}, 0, 0)


async def test_permits_of_a_rejoining_process_are_counted(fleet: Fleet) -> None:
    """A rejoining process sends its permits, one of them still queued here; the fleet grants the rest."""
    fleet.limits = replace(LIMITS, max_in_flight=2)
    await fleet.tell("ann", x := fleet.ticket(max_wait_s=9.0))
    await fleet.tell("ann", held=[x, y := fleet.ticket()])
    decision = await fleet.tell("ben", fleet.ticket(max_wait_s=0.0))
    assert (decision.outcomes, decision.in_flight, decision.waiting) == ({}, 2, 1)
    decision = await fleet.tell("ann", released=[x.id, y.id])
    assert (decision.in_flight, decision.waiting) == (1, 0)


async def test_a_permit_that_is_sent_back_waits_with_its_own_ticket(fleet: Fleet) -> None:
    """A process sends a permit as held, then as waiting: the ticket has its own window and prompt again."""
    fleet.limits = replace(LIMITS, low_water=0)
    one = fleet.ticket(max_wait_s=0.5)
    await fleet.tell("ann", one, held=[one], rejoining=True, complete=True, fleet_size=2)
    decision = await fleet.tell("ben", complete=True, fleet_size=2)
    assert (decision.waiting, decision.window_s, decision.opened) == (1, 0.5, [])


# Corrupt data in Redis


@pytest.fixture
async def script(redis: Redis, keys: RedisKeys) -> Fleet:
    """A fleet with the script, whose keys the test may corrupt."""
    return Fleet(ScriptScheduler(redis, keys))


GARBAGE = [b"", b"garbage", b"\xff\xfe|||", b"W|ann|acme|x|x|x|x|x|x||", b"Z|ann|acme|1|1|1|1|1|1||"]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_an_unreadable_ticket_is_counted_once_and_reported_to_its_process(
    script: Fleet, redis: Redis, keys: RedisKeys, garbage: bytes
) -> None:
    """The rest of the queue is served, and the ticket is removed."""
    names = keys.teacher("big")
    await script.tell("ann", bad := script.ticket(max_wait_s=0.05), *script.tickets(2, max_wait_s=0.05))
    await redis.hset(names.tickets, bad.id, garbage)
    assert (await script.after(0.05, "ben")).opened == [2]
    decision = await script.after(0.5, "ann", bad)
    assert (decision.outcomes, decision.unreadable, decision.opened) == ({bad.id: TicketBroken()}, 1, [])
    assert [(await script.after(1.0)).unreadable for _ in range(3)] == [0, 0, 0]
    assert not await redis.hexists(names.tickets, bad.id)
    assert await redis.zscore(names.ends, bad.id) is None


async def test_unreadable_tickets_expire_by_themselves(script: Fleet, redis: Redis, keys: RedisKeys) -> None:
    """Five of them at the head of the queue block no other ticket, and are counted when they expire."""
    script.limits = replace(LIMITS, max_in_flight=2, max_size=2)
    await script.tell("zoe", held=script.tickets(2))
    await script.tell("ann", *(bad := script.tickets(5)), *script.tickets(2))
    await redis.hset(keys.teacher("big").tickets, mapping=dict.fromkeys((ticket.id for ticket in bad), "garbage"))
    await script.tell("zoe", leaving=True)
    decision = await script.after(0.05, "ben")
    assert len(script.granted()) == 2
    assert decision.waiting == 0
    assert sum([(await script.after(1.0, "ben")).unreadable for _ in range(3)]) == 5
    assert await redis.hlen(keys.teacher("big").tickets) == 2


@pytest.mark.parametrize("state", ["waits", "is called"])
async def test_an_unreadable_leader_frees_its_followers(
    script: Fleet, redis: Redis, keys: RedisKeys, state: str
) -> None:
    """Followers, and later tickets with the key, would wait for a leader that is gone."""
    script.limits = ONE
    if state == "waits":
        await script.tell("zoe", held=[script.ticket(name="busy")])
    await script.tell("ann", lead := script.ticket(dedupe_key="w", max_wait_s=0.0))
    await script.tell("ben", *(two := script.tickets(2, dedupe_key="w", max_wait_s=0.0)))
    await redis.hset(keys.teacher("big").tickets, lead.id, "garbage")
    if state == "waits":
        assert (await script.tell("ann", lead)).outcomes == {lead.id: TicketBroken()}
        await script.tell("zoe", released=["busy"])
    else:
        assert (await script.tell("ann", finished=[(lead.id, "lost")])).unreadable == 1
    await script.after(0.02, "ben")
    assert script.granted()[-1] == two[0].id
    await script.tell("ben", finished=[(two[0].id, "the text")])
    assert script.outcomes_by_id[two[1].id] == SharedGuidance("the text", cached=False)
    assert await redis.hlen(keys.teacher("big").flights) == 0


async def test_a_lost_ticket_is_no_leader(script: Fleet, redis: Redis, keys: RedisKeys) -> None:
    """After Redis lost all tickets and the leader left, the next ticket leads, and so does a held permit."""
    script.limits = ONE
    await script.tell("zoe", held=[script.ticket(name="busy")])
    await script.tell("ann", *(script.ticket(name=f"lead-{key}", dedupe_key=key) for key in "vw"))
    await redis.delete(keys.teacher("big").tickets)
    await script.tell("ann", released=["lead-v", "lead-w"])
    await script.tell("zoe", released=["busy"], held=[script.ticket(name="call", dedupe_key="w")])
    await script.tell("ben", script.ticket(name="follows", dedupe_key="w"))
    await script.tell("zoe", finished=[("call", "the text")])
    assert script.outcomes_by_id["follows"] == SharedGuidance("the text", cached=False)
    await script.tell("ben", script.ticket(name="leads", dedupe_key="v", max_wait_s=0.0))
    assert script.granted() == ["leads"]


async def test_any_number_of_lost_tickets_in_the_queue_is_passed_over(
    script: Fleet, redis: Redis, keys: RedisKeys
) -> None:
    """After Redis lost one tenant's tickets but not its queue, another tenant is served and the queue is cleaned."""
    script.limits = replace(LIMITS, max_queue=100_000)
    places = {f"acme|{place:016d}|lost-{place}": 0 for place in range(25_000)}
    await redis.zadd(keys.teacher("big").queue, places)
    await redis.zadd(keys.teacher("big").passes, {"acme": 0})
    decision = await script.tell("ben", script.ticket("small", max_wait_s=0.0))
    assert (decision.opened, decision.next_exchange_s) == ([1], 0.01), "a part of them now, and soon the next"
    for _ in range(12):
        decision = await script.after(0.01, "ben")
    assert decision.next_exchange_s is None
    assert await redis.zcard(keys.teacher("big").queue) == 0
    assert await redis.zcard(keys.teacher("big").passes) == 0


@pytest.mark.parametrize("why", ["its lease lapsed", "their time was over"])
async def test_tickets_of_a_dead_process_are_removed_in_parts(
    script: Fleet, redis: Redis, keys: RedisKeys, why: str
) -> None:
    """Removing ten thousand tickets at once would block Redis. The process counts until all are removed."""
    script.limits = replace(ONE, max_queue=10_000, lease_s=1.0)
    await script.tell("ben", mine := script.ticket(name="bens", deadline_s=600.0))
    deadline_s = 600.0 if why == "its lease lapsed" else 1.0
    for _ in range(10):
        await script.tell("ann", *script.tickets(1000, "dead", deadline_s=deadline_s))
    await script.after(0.5, "ben", mine)
    decision = await script.after(0.5, "ben", mine)
    taken = []
    while decision.next_exchange_s == 0.01:
        taken.append(await redis.hlen(keys.teacher("big").tickets))
        assert decision.fleet_size == 2
        decision = await script.after(0.01, "ben")
    assert 4 <= len(taken) <= 12
    assert all(before - after <= 3000 for before, after in zip([10_001, *taken], [*taken, 1], strict=True))
    assert (decision.fleet_size, await redis.hlen(keys.teacher("big").tickets)) == (1, 1)
    assert await redis.zcard(keys.teacher("big").ends) == 1
    assert decision.in_flight + decision.waiting == 1


async def test_expired_tickets_get_no_permit(script: Fleet) -> None:
    """Too many tickets expire at once to remove them in one step. Later tickets are served afterwards."""
    script.limits = replace(ONE, max_queue=10_000)
    await script.tell("ben", script.ticket(name="busy", max_wait_s=0.0))
    await script.tell("ann", *script.tickets(2500, deadline_s=1.0))
    assert (await script.after(1.0, "ben", script.ticket(name="waits", max_wait_s=0.0), released=["busy"])).opened == []
    await script.after(0.01, "ben")
    assert script.granted() == ["busy", "waits"]


async def test_a_process_that_returns_during_its_removal_stays(script: Fleet, redis: Redis, keys: RedisKeys) -> None:
    """A process that returns during the sweep keeps its remaining tickets, and the sweep ends."""
    script.limits = replace(ONE, max_queue=10_000, lease_s=1.0)
    await script.tell("ben", script.ticket(name="bens", deadline_s=600.0))
    for _ in range(6):
        await script.tell("ann", *script.tickets(1000, "dead", deadline_s=600.0))
    await script.after(0.5, "ben")
    assert (await script.after(0.5, "ben")).next_exchange_s == 0.01
    left = await redis.hlen(keys.teacher("big").tickets)
    assert 2000 < left < 5000
    assert (await script.tell("ann")).fleet_size == 2
    decision = await script.after(0.01, "ben")
    assert (decision.fleet_size, decision.next_exchange_s) == (2, None)
    assert await redis.hlen(keys.teacher("big").tickets) == left


async def test_an_unreadable_follower_blocks_no_other(script: Fleet, redis: Redis, keys: RedisKeys) -> None:
    """After the leader failed, the next readable follower leads; the other's process gets an outcome."""
    await script.tell("ann", lead := script.ticket(dedupe_key="w", max_wait_s=0.0))
    await script.tell(
        "ben", bad := script.ticket(dedupe_key="w"), good := script.ticket(dedupe_key="w", max_wait_s=0.0)
    )
    await redis.hset(keys.teacher("big").tickets, bad.id, "garbage")
    await script.tell("ann", released=[lead.id])
    assert script.granted() == [lead.id, good.id]
    assert (await script.tell("ben", bad)).outcomes == {bad.id: TicketBroken()}
    assert await redis.zcard(keys.teacher("big").followers) == 0


async def test_an_evicted_cache_entry_is_fetched_again(script: Fleet, redis: Redis, keys: RedisKeys) -> None:
    """A Redis with eviction drops whole keys, one without the other."""
    script.limits = replace(LIMITS, max_cache_bytes=10_000)
    await script.tell("ann", lead := script.ticket(dedupe_key="w", max_wait_s=0.0, cache_ttl_s=60.0))
    await script.tell("ann", finished=[(lead.id, "the text")])
    await redis.delete(keys.teacher("big").cache)
    assert (await script.tell("ann", script.ticket(dedupe_key="w", max_wait_s=0.0, cache_ttl_s=60.0))).opened == [1]


@pytest.mark.parametrize("lost", ["cache", "cache_ends", "state"])
async def test_a_cache_with_a_missing_key_is_reset(script: Fleet, redis: Redis, keys: RedisKeys, lost: str) -> None:
    """The cache counts its current bytes and has its full size."""
    script.limits = replace(LIMITS, max_cache_bytes=20 * (3 + 297 + 100))
    for n in range(20):
        await fetch(script, f"a{n:02}", "x" * 297)
    await redis.delete(getattr(keys.teacher("big"), lost))
    await script.after(2.5, "ann", complete=True, fleet_size=1)
    dedupe_keys = [f"b{n:02}" for n in range(20)]
    for key in dedupe_keys:
        await fetch(script, key, "x" * 297)
    assert await cached_keys(script, *dedupe_keys) == dedupe_keys
    assert await script.keeps() == 20
    assert int(await redis.hget(keys.teacher("big").state, "cache_bytes")) == 20 * 400
