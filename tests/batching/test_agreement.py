"""The script and the pure board say the same, whatever they are told and however the clock moves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from redis.asyncio import Redis

from gateway.batching.ticket import SchedulerUpdate, TeacherLimits, Ticket
from gateway.batching.window import SECOND
from gateway.redis.keys import RedisKeys
from tests.batching.schedulers import MemoryScheduler, ScriptScheduler

if TYPE_CHECKING:
    from collections.abc import Callable

START = 1_795_000_000 * SECOND
PROCESS_IDS = ["ann", "ben", "cem"]
# Mostly small steps; a pause, an hour forward, an hour back.
HOUR = 3_600 * SECOND
PASSING_US = [0, 1, 700, 5_000, 20_000, 300_000, 900_000] * 3 + [2_500_000, 11_000_000, HOUR, -1, -HOUR]

limits = st.builds(
    TeacherLimits,
    max_in_flight=st.integers(1, 12),
    max_size=st.integers(1, 8),
    max_prompt_tokens=st.integers(1, 90),
    low_water=st.sampled_from([0, 0, 1, 4]),
    max_queue=st.sampled_from([1, 3, 12]),
    max_cache_bytes=st.sampled_from([0, 200, 400, 10_000]),
    lease_s=st.sampled_from([1.0, 3.0, 10.0]),
)
# A ticket without its id: that is a number of its own, or one that was given before.
tickets = st.builds(
    Ticket,
    id=st.just(""),
    tenant=st.sampled_from(["a", "aa", "b", "c", "d"]),
    prompt_tokens=st.integers(1, 40),
    max_wait_s=st.sampled_from([0.001, 0.01, 0.5]),
    deadline_s=st.sampled_from([-0.1, 0.0, 0.05, 2.0, 2.0, 9.0]),
    weight=st.sampled_from([0.3, 1.0, 2.0, 7.0]),
    dedupe_key=st.sampled_from(["", "w1", "w1", "w2", "w3"]),
    cache_ttl_s=st.sampled_from([0.0, 0.0, 1.0, 60.0]),
).map(lambda one: one if one.dedupe_key else replace(one, cache_ttl_s=0.0))


@dataclass(frozen=True)
class Step:
    """An update of one process after some time. A number selects a waiting ticket or one with a permit."""

    process_id: str
    passing_us: int
    arrived: list[Ticket]
    told_again: list[tuple[int, Ticket]]
    released: list[int]
    finished: list[tuple[int, str]]
    held: list[tuple[int, Ticket]]
    complete: bool
    fleet_size: int
    rejoining: bool
    leaving: bool


number = st.integers(0, 30)
steps = st.lists(
    st.builds(
        Step,
        process_id=st.sampled_from(PROCESS_IDS),
        passing_us=st.sampled_from(PASSING_US),
        arrived=st.lists(tickets, max_size=6),
        told_again=st.lists(st.tuples(number, tickets), max_size=1),
        released=st.lists(number, max_size=3),
        finished=st.lists(st.tuples(number, st.sampled_from(["text", 'a|b {"c"} é', ""])), max_size=2),
        held=st.lists(st.tuples(number, tickets), max_size=1),
        complete=st.booleans(),
        fleet_size=st.sampled_from([0, 1, 1, 2, 2, 3]),
        rejoining=st.sampled_from([False] * 9 + [True]),
        leaving=st.sampled_from([False] * 19 + [True]),
    ),
    min_size=2,
    max_size=25,
)


class Script:
    """Turns steps into news, with the ids of tickets that are there."""

    def __init__(self) -> None:
        self._given = 0
        self._live: list[str] = []

    def update(self, step: Step) -> SchedulerUpdate:
        again = {self._pick(pick): ticket for pick, ticket in step.told_again}
        held = {self._pick(pick): ticket for pick, ticket in step.held}
        released = [self._pick(pick) for pick in step.released]
        finished = [(self._pick(pick), text) for pick, text in step.finished]
        fresh = {}
        for ticket in step.arrived:
            self._given += 1
            fresh[f"t{self._given}"] = ticket
        self._live = [one for one in [*self._live, *fresh] if one not in released and one not in dict(finished)]
        return SchedulerUpdate(
            arrived=[replace(ticket, id=name) for name, ticket in {**again, **fresh}.items()],
            released=released,
            finished=finished,
            held=[replace(ticket, id=name) for name, ticket in held.items()],
            complete=step.complete,
            fleet_size=step.fleet_size,
            rejoining=step.rejoining,
            leaving=step.leaving,
        )

    def _pick(self, pick: int) -> str:
        return self._live[pick % len(self._live)] if self._live else "none"


@pytest.fixture
def in_loop() -> Callable[..., None]:
    """Run a coroutine on a loop of its own, many times."""
    with asyncio.Runner() as runner:
        yield runner.run


async def agree(redis_url: str, limits: TeacherLimits, steps: list[Step]) -> None:
    async with Redis.from_url(redis_url) as redis:
        script, model, story = ScriptScheduler(redis, RedisKeys("agree")), MemoryScheduler(), Script()
        await script.clear()
        now = START
        for step in steps:
            now += step.passing_us
            update = story.update(step)
            reply = await script.exchange(step.process_id, update, limits, now)
            assert reply == await model.exchange(step.process_id, update, limits, now)


@pytest.mark.long
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limits=limits, steps=steps)
def test_script_and_model_agree(
    redis_url: str, in_loop: Callable[..., None], limits: TeacherLimits, steps: list[Step]
) -> None:
    """Every decision and every wake-up is the same, over random news of three processes."""
    in_loop(agree(redis_url, limits, steps))


@pytest.mark.long
@pytest.mark.timeout(600)
@settings(max_examples=2500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limits=limits, steps=steps)
def test_script_and_model_agree_at_length(
    redis_url: str, in_loop: Callable[..., None], limits: TeacherLimits, steps: list[Step]
) -> None:
    """Check thousands of schedules."""
    in_loop(agree(redis_url, limits, steps))
