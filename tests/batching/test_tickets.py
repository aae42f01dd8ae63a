"""The script in a real Redis: the same rule as window.py, for the whole fleet."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from gateway.batching.tickets import RedisBoard, hear_wakeups
from gateway.batching.window import Grant, Limits, News, Ticket
from gateway.redis_keys import RedisKeys
from gateway.tasks import Tasks
from tests.batching.fleet_model import LONG_S, FleetModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest
    from redis.asyncio.client import PubSub

LIMITS = Limits(max_in_flight=8, max_size=4, max_prompt_tokens=1000)
OWNERS = ("ann", "ben", "cat")


def ticket(name: str, *, tokens: int = 10, wait_s: float = LONG_S, deadline_s: float = LONG_S) -> Ticket:
    return Ticket(name, tokens, wait_s, deadline_s)


def boards(redis: Redis, keys: RedisKeys) -> list[RedisBoard]:
    return [RedisBoard(redis, keys, owner, "big") for owner in OWNERS]


@asynccontextmanager
async def listening(redis: Redis, keys: RedisKeys) -> AsyncIterator[PubSub]:
    """Every owner's wake-ups, from now on."""
    async with redis.pubsub() as pubsub:
        await pubsub.psubscribe(keys.wakeups("*"))
        confirmed = await pubsub.get_message(timeout=5)
        assert confirmed is not None
        assert confirmed["type"] == "psubscribe"
        yield pubsub


async def wakeups(pubsub: PubSub, keys: RedisKeys, tickets: int) -> dict[str, dict[str, Grant]]:
    """What the next wake-ups say, by owner, until they have named `tickets` tickets."""
    heard: dict[str, dict[str, Grant]] = {}
    while sum(map(len, heard.values())) < tickets:
        message = await pubsub.get_message(timeout=2)
        assert message is not None, f"heard {heard}, waited for {tickets} tickets"
        owner = message["channel"].decode().removeprefix(keys.wakeups(""))
        _, *lines = message["data"].decode().split("\n")
        for line in lines:
            ticket_id, batch, size = line.split("|")
            heard.setdefault(owner, {})[ticket_id] = Grant(batch, int(size))
    return heard


async def left_in_redis(redis: Redis, keys: RedisKeys, teacher: str = "big") -> tuple[int, int, int]:
    """How many tickets queue, are described, and hold permits."""
    names = keys.teacher(teacher)
    return await redis.zcard(names.queue), await redis.hlen(names.tickets), await redis.zcard(names.permits)


async def test_a_ticket_without_a_window_is_granted_in_the_same_exchange(redis: Redis, keys: RedisKeys) -> None:
    """One round trip from ticket to permit, while the teacher has room."""
    decision = await boards(redis, keys)[0].exchange(News([ticket("a", wait_s=0)]), LIMITS)
    assert decision.grants == {"a": Grant("b1", 1)}
    assert decision.next_look_s is None
    assert await left_in_redis(redis, keys) == (0, 1, 1)


async def test_a_ticket_waits_its_window_and_the_owner_is_told_when_to_look(redis: Redis, keys: RedisKeys) -> None:
    """Before the window nothing opens; at the told time the batch does."""
    board = boards(redis, keys)[0]
    decision = await board.exchange(News([ticket("a", wait_s=0.05)]), LIMITS)
    assert decision.grants == {}
    assert decision.next_look_s is not None
    assert 0 < decision.next_look_s <= 0.05
    await asyncio.sleep(decision.next_look_s + 0.002)
    assert (await board.exchange(News(), LIMITS)).grants == {"a": Grant("b1", 1)}


async def test_one_owners_news_wakes_the_others(redis: Redis, keys: RedisKeys) -> None:
    """Three owners' tickets share a batch; who completes it gets its own grant, the others hear theirs."""
    ann, ben, cat = boards(redis, keys)
    async with listening(redis, keys) as pubsub:
        assert (await ann.exchange(News([ticket("a"), ticket("A")]), LIMITS)).grants == {}
        assert (await ben.exchange(News([ticket("b")]), LIMITS)).grants == {}
        assert (await cat.exchange(News([ticket("c")]), LIMITS)).grants == {"c": Grant("b1", 4)}
        assert await wakeups(pubsub, keys, 3) == {
            "ann": {"a": Grant("b1", 4), "A": Grant("b1", 4)},
            "ben": {"b": Grant("b1", 4)},
        }


async def test_tickets_of_one_exchange_keep_their_order(redis: Redis, keys: RedisKeys) -> None:
    """They arrive in the same microsecond, and their ids must not decide who is first."""
    names = ["m", "z", "a", "q", "b"]
    limits = Limits(1, 4, 1000)
    board = boards(redis, keys)[0]
    served = list((await board.exchange(News([ticket(name, wait_s=0) for name in names]), limits)).grants)
    while len(served) < len(names):
        served += (await board.exchange(News(gone=[served[-1]]), limits)).grants
    assert served == names


async def test_the_cap_is_the_fleets(redis: Redis, keys: RedisKeys) -> None:
    """Permits of all owners count; a returned one goes to the oldest ticket of any owner."""
    ann, ben, _ = boards(redis, keys)
    limits = Limits(2, 4, 1000)
    async with listening(redis, keys) as pubsub:
        assert len((await ann.exchange(News([ticket("a", wait_s=0), ticket("A", wait_s=0)]), limits)).grants) == 2
        assert (await ben.exchange(News([ticket("b", wait_s=0), ticket("B", wait_s=0)]), limits)).grants == {}
        assert (await ann.exchange(News([ticket("x", wait_s=0)], gone=["a"]), limits)).grants == {}
        assert await wakeups(pubsub, keys, 1) == {"ben": {"b": Grant("b2", 1)}}
    assert await redis.zcard(keys.teacher("big").permits) == 2


async def test_news_told_twice_does_nothing_twice(redis: Redis, keys: RedisKeys) -> None:
    """A reply was lost and the client sent the script again: the grant is told again and counted once.

    With a cap of one, a ticket that queued anew behind its own permit would wait for ever.
    """
    board = boards(redis, keys)[0]
    limits = Limits(1, 4, 1000)
    news = News([ticket("a", wait_s=0), ticket("b", wait_s=0)])
    first = await board.exchange(news, limits)
    assert first.grants == {"a": Grant("b1", 1)}
    assert (await board.exchange(news, limits)).grants == first.grants
    assert await left_in_redis(redis, keys) == (1, 2, 1)
    assert (await board.exchange(News(gone=["a"]), limits)).grants == {"b": Grant("b2", 1)}


async def test_a_ticket_told_again_keeps_its_place_and_its_window(redis: Redis, keys: RedisKeys) -> None:
    """Telling does not make younger: neither behind the others nor with a new window."""
    ann, ben, _ = boards(redis, keys)
    limits = Limits(1, 4, 1000)
    first = await ann.exchange(News([ticket("a", wait_s=1)]), limits)
    await ben.exchange(News([ticket("b", wait_s=LONG_S)]), limits)
    await asyncio.sleep(0.05)
    again = await ann.exchange(News([ticket("a", wait_s=1)]), limits)
    assert again.next_look_s is not None
    assert first.next_look_s is not None
    assert again.next_look_s <= first.next_look_s - 0.045
    assert await redis.zrange(keys.teacher("big").queue, 0, -1) == [b"a", b"b"]


async def test_a_permit_in_use_is_counted_whoever_granted_it(redis: Redis, keys: RedisKeys) -> None:
    """A process that was alone tells what it holds, and the fleet grants only the rest."""
    ann, ben, _ = boards(redis, keys)
    limits = Limits(2, 4, 1000)
    await ann.exchange(News([ticket("x")]), limits)
    await ann.exchange(News(held=[ticket("x"), ticket("y")]), limits)
    assert (await ben.exchange(News([ticket("b", wait_s=0)]), limits)).grants == {}
    assert await left_in_redis(redis, keys) == (1, 1, 2)
    await ann.exchange(News(gone=["x", "y"]), limits)
    assert await left_in_redis(redis, keys) == (0, 1, 1)


async def test_tickets_of_a_crashed_owner_lapse_at_their_deadline(redis: Redis, keys: RedisKeys) -> None:
    """They are dropped when they come to the head of the queue, and get no permit."""
    ann, ben, _ = boards(redis, keys)
    dead = [ticket(f"dead-{n}", deadline_s=0.03) for n in range(10)]
    await ann.exchange(News(dead), Limits(8, 100, 10_000))
    await asyncio.sleep(0.04)
    decision = await ben.exchange(News([ticket("b", wait_s=0)]), LIMITS)
    assert decision.grants == {"b": Grant("b1", 1)}
    assert await left_in_redis(redis, keys) == (0, 1, 1)


async def test_a_deadline_in_the_past_is_never_served(redis: Redis, keys: RedisKeys) -> None:
    """Nobody waits for it: it takes neither a permit nor a place."""
    for deadline_s in (0.0, -1.0, -5000.0):
        late = ticket("late", wait_s=0, deadline_s=deadline_s)
        assert (await boards(redis, keys)[0].exchange(News([late]), LIMITS)).grants == {}
        assert await left_in_redis(redis, keys) == (0, 0, 0)


async def test_permits_of_a_crashed_owner_lapse_a_second_after_their_deadline(redis: Redis, keys: RedisKeys) -> None:
    """Not before, since an owner returns its permit at the deadline; and not never, or the cap would stay smaller."""
    ann, ben, _ = boards(redis, keys)
    limits = Limits(1, 4, 1000)
    await ann.exchange(News(held=[ticket("dead", deadline_s=-0.5)]), limits)
    assert (await ben.exchange(News([ticket("b", wait_s=0)]), limits)).grants == {}
    await asyncio.sleep(0.51)
    assert (await ben.exchange(News(), limits)).grants == {"b": Grant("b1", 1)}
    assert await left_in_redis(redis, keys) == (0, 1, 1)


async def test_a_forgotten_script_is_loaded_again(redis: Redis, keys: RedisKeys) -> None:
    """Redis forgets scripts when it restarts."""
    board = boards(redis, keys)[0]
    await board.exchange(News(), LIMITS)
    await redis.script_flush()
    assert (await board.exchange(News([ticket("a", wait_s=0)]), LIMITS)).grants == {"a": Grant("b1", 1)}


async def test_the_largest_batch_the_configuration_allows(redis: Redis, keys: RedisKeys) -> None:
    """4096 tickets at once: Lua's unpack, the arguments of one call and one wake-up carry them."""
    ann, ben, _ = boards(redis, keys)
    limits = Limits(100_000, 4096, 100_000_000)
    async with listening(redis, keys) as pubsub:
        assert (await ann.exchange(News([ticket(f"a{n}") for n in range(4095)]), limits)).grants == {}
        assert (await ben.exchange(News([ticket("b")]), limits)).grants == {"b": Grant("b1", 4096)}
        assert len((await wakeups(pubsub, keys, 4095))["ann"]) == 4095
    await ann.exchange(News(gone=[f"a{n}" for n in range(4095)]), limits)
    assert await left_in_redis(redis, keys) == (0, 1, 1)


async def test_teachers_do_not_share_queues_or_caps(redis: Redis, keys: RedisKeys) -> None:
    """A full teacher says nothing about another one."""
    big, other = (RedisBoard(redis, keys, "ann", teacher) for teacher in ("big", "other"))
    limits = Limits(1, 4, 1000)
    assert len((await big.exchange(News([ticket("a", wait_s=0)]), limits)).grants) == 1
    assert len((await other.exchange(News([ticket("b", wait_s=0)]), limits)).grants) == 1


async def test_processes_that_exchanged_lately_are_counted(
    redis: Redis, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fleet shares out its cap over them; one that is long silent counts no more."""
    monkeypatch.setattr("gateway.batching.tickets._FLEET_WINDOW_S", 1)
    ann, ben, _ = boards(redis, keys)
    assert (await ann.exchange(News(), LIMITS)).fleet == 1
    assert (await ben.exchange(News(), LIMITS)).fleet == 2
    long_ago = (await redis.time())[0] * 1_000_000 - 1_500_000
    await redis.zadd(keys.teacher("big").owners, {"ann": long_ago})
    assert (await ben.exchange(News(), LIMITS)).fleet == 1


def test_all_keys_of_the_script_are_in_one_slot(keys: RedisKeys) -> None:
    """A Redis Cluster runs a script only on keys of one slot: one hash tag in all of them."""
    for teacher in ("big", "a:b", "with{braces}", "70b"):
        names = keys.teacher(teacher).as_list()
        tags = {name[name.index("{") + 1 : name.index("}")] for name in names}
        assert len(tags) == 1
        assert tags != {""}
        assert len(set(names)) == len(names)


async def test_a_message_that_is_none_of_ours_does_not_end_the_listening(redis: Redis, keys: RedisKeys) -> None:
    """Garbage on the channel costs a reconnection, after which wake-ups are heard again."""
    channel = keys.wakeups("ann")
    heard: asyncio.Queue[tuple[str, dict[str, Grant]]] = asyncio.Queue()
    subscribed: asyncio.Queue[None] = asyncio.Queue()
    tasks = Tasks()
    tasks.keep(
        "wakeups",
        hear_wakeups(
            redis,
            channel,
            lambda teacher, grants: heard.put_nowait((teacher, dict(grants))),
            lambda: subscribed.put_nowait(None),
        ),
    )
    try:
        async with asyncio.timeout(5):
            for garbage in (b"big\na|b", b"\xff\xfe", b"big\na|b1|many"):
                await subscribed.get()
                await redis.publish(channel, garbage)
            await subscribed.get()
            await redis.publish(channel, b"big\na|b1|3\nb|b1|3")
            assert await heard.get() == ("big", {"a": Grant("b1", 3), "b": Grant("b1", 3)})
    finally:
        await tasks.close()


@dataclass(frozen=True)
class Step:
    """One exchange of a schedule: whose, under which limits, with which news; `lost`: the reply never came."""

    owner: int
    limits: Limits
    arriving: list[tuple[int, float, float]]  # tokens, wait, deadline
    leaving: list[int]
    tell_all: bool
    lost: bool


steps = st.builds(
    Step,
    st.integers(0, len(OWNERS) - 1),
    st.builds(Limits, st.integers(1, 6), st.integers(1, 4), st.integers(1, 60)),
    st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([0.0, LONG_S, LONG_S]), st.sampled_from([LONG_S, LONG_S, 0.0])),
        max_size=4,
    ),
    st.lists(st.integers(0, 30), max_size=3),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=st.lists(steps, min_size=1, max_size=14))
async def test_the_script_and_the_pure_rule_decide_alike(redis_url: str, schedule: list[Step]) -> None:
    """Any schedule of three processes, with lost replies and news told twice: same grants, batches, looks and caps."""
    keys = RedisKeys(f"t{secrets.token_hex(6)}")
    async with Redis.from_url(redis_url) as redis, listening(redis, keys) as pubsub:
        fleet, model = boards(redis, keys), FleetModel()
        held: list[dict[str, tuple[Ticket, Grant | None]]] = [{} for _ in OWNERS]
        born = 0
        for step in schedule:
            mine, limits, owner = held[step.owner], step.limits, OWNERS[step.owner]
            gone = list({list(mine)[pick % len(mine)] for pick in step.leaving if mine})
            for ticket_id in gone:
                del mine[ticket_id]
            # Ids count down, so that an order by id is never the order of arrival.
            new = [ticket(f"{999 - born - n:03}", tokens=t, wait_s=w, deadline_s=d)
                   for n, (t, w, d) in enumerate(step.arriving)]  # fmt: skip
            born += len(new)
            waiting = [known for known, grant in mine.values() if grant is None]
            in_flight = [known for known, grant in mine.values() if grant is not None]
            mine.update({one.id: (one, None) for one in new})
            news = News([*waiting, *new], gone, in_flight) if step.tell_all or step.lost else News(new, gone)

            expected, look = model.exchange(owner, news, limits)
            decision = await fleet[step.owner].exchange(news, limits)
            own = expected.pop(owner, {})
            others = await wakeups(pubsub, keys, sum(map(len, expected.values())))
            assert others == expected
            if step.lost:
                again, look = model.exchange(owner, news, limits)
                decision = await fleet[step.owner].exchange(news, limits)
                assert {**own, **again.pop(owner, {})} == own
                assert again == {}
            assert decision.grants == own
            assert (decision.next_look_s is None) == (look is None)
            assert decision.next_look_s is None or LONG_S - 60 < decision.next_look_s <= LONG_S

            for name, grants in {**others, owner: own}.items():
                for ticket_id, grant in grants.items():
                    theirs = held[OWNERS.index(name)]
                    theirs[ticket_id] = (theirs[ticket_id][0], grant)
            queued, described, permits = await left_in_redis(redis, keys)
            assert permits == len(model.permits) == sum(grant is not None for one in held for _, grant in one.values())
            assert queued >= len(model.waiting)  # the script drops what expired when it comes to the head
            assert described <= queued + permits
        assert await pubsub.get_message(timeout=0) is None
        for board, mine in zip(fleet, held, strict=True):
            await board.exchange(News(gone=list(mine)), Limits(100, 100, 10_000))
        await fleet[0].exchange(News(), Limits(100, 100, 10_000))
        assert await left_in_redis(redis, keys) == (0, 0, 0)
