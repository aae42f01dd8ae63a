"""A place in this process: bounded, freed in any case, and refused while draining."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import pytest

from gateway.admission import Admission
from gateway.errors import Overloaded
from gateway.metrics import Metrics


class Open:
    """A ledger that takes every request."""

    async def admit(self, *_: object, **__: object) -> None:
        pass


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def admission(metrics: Metrics) -> Admission:
    return Admission(2, Open(), metrics)


def in_flight(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("gkt_in_flight")


def test_no_more_than_the_bound_are_held(admission: Admission, metrics: Metrics) -> None:
    """The third is refused with a time to come back; once one has left, the next one gets in."""
    with ExitStack() as held:
        held.enter_context(admission.place())
        with admission.place():
            with pytest.raises(Overloaded, match="2 requests, its limit") as refused, admission.place():
                pytest.fail("admitted")
            assert refused.value.retry_after_s is not None
            assert admission.in_flight == in_flight(metrics) == 2
        with admission.place():
            assert admission.in_flight == 2
    assert admission.in_flight == in_flight(metrics) == 0


def test_a_place_is_freed_when_its_request_fails(admission: Admission, metrics: Metrics) -> None:
    """Errors and cancellations alike, or a process would fill up with the dead."""
    for failure in (LookupError, asyncio.CancelledError, GeneratorExit):
        with pytest.raises(failure), admission.place():
            raise failure
    assert admission.in_flight == in_flight(metrics) == 0


async def test_draining_refuses_what_is_new_and_waits_for_what_is_here(admission: Admission) -> None:
    """It ends as soon as the last request has left."""
    inside, leave = asyncio.Event(), asyncio.Event()

    async def request() -> None:
        with admission.place():
            inside.set()
            await leave.wait()

    running = asyncio.ensure_future(request())  # noqa: TID251
    await inside.wait()
    draining = asyncio.ensure_future(admission.drain(30))  # noqa: TID251
    await asyncio.sleep(0.01)
    assert not draining.done()
    with pytest.raises(Overloaded, match="shutting down"), admission.place():
        pytest.fail("admitted")
    leave.set()
    assert await asyncio.wait_for(draining, 1) == 0
    await running


async def test_draining_gives_up_in_time_and_says_how_many_are_left(admission: Admission) -> None:
    """A stream that never ends must not keep the process."""
    with admission.place():
        began = time.monotonic()
        assert await admission.drain(0.05) == 1
        assert 0.04 <= time.monotonic() - began < 1


async def test_an_empty_process_drains_at_once(admission: Admission) -> None:
    """Also after it was full once."""
    with admission.place():
        pass
    assert await asyncio.wait_for(admission.drain(30), 1) == 0
