"""A place in this process: bounded, freed in any case, and refused while draining."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, suppress

import pytest

from gateway.errors import Overloaded
from gateway.pipeline.admission import Admission
from gateway.policy.book import Caller
from gateway.policy.schema import KeyEntry, TenantPolicy
from gateway.telemetry.metrics import Metrics


def caller(tenant: str, weight: float = 1) -> Caller:
    route = {"model": "chat", "mode": "student", "student": "small", "baseline": "small"}
    key = KeyEntry(id="ci", sha256="a" * 64)
    return Caller(TenantPolicy.model_validate({"tenant": tenant, "weight": weight, "routes": [route]}), key)


CALLER = caller("acme")


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
        held.enter_context(admission.slot(CALLER))
        with admission.slot(CALLER):
            with pytest.raises(Overloaded, match="2 requests, its limit") as refused, admission.slot(CALLER):
                pytest.fail("admitted")
            assert refused.value.retry_after_s is not None
            assert admission.in_flight == in_flight(metrics) == 2
        with admission.slot(CALLER):
            assert admission.in_flight == 2
    assert admission.in_flight == in_flight(metrics) == 0


def test_a_tenant_below_its_share_gets_a_slot_while_another_one_holds_all() -> None:
    """Shares follow the weights. The tenant above its share gets no slot until it is within its share again."""
    admission = Admission(8, Open(), Metrics())  # type: ignore[arg-type]
    flood, light, heavy = caller("flood"), caller("light"), caller("heavy", weight=2)

    def admitted(who: Caller, held: ExitStack) -> int:
        count = 0
        with suppress(Overloaded):
            while True:
                held.enter_context(admission.slot(who))
                count += 1
        return count

    with ExitStack() as held, ExitStack() as flooding:
        assert admitted(flood, flooding) == 8  # alone: all of them
        assert admitted(heavy, held) == 5  # of 8, two of three parts
        assert admitted(light, held) == 2  # of 8, one of four parts
        assert admitted(flood, flooding) == 0
        flooding.close()
        assert admitted(flood, held) == 2
    assert admission.in_flight == 0


def test_no_crowd_of_tenants_passes_twice_the_bound() -> None:
    """Each of them is below its share."""
    admission = Admission(3, Open(), Metrics())  # type: ignore[arg-type]
    with ExitStack() as held:
        for number in range(6):
            held.enter_context(admission.slot(caller(f"tenant-{number}")))
        with pytest.raises(Overloaded), admission.slot(caller("one-more")):
            pytest.fail("admitted")


def test_a_place_is_freed_when_its_request_fails(admission: Admission, metrics: Metrics) -> None:
    """Errors and cancellations alike, or a process would fill up with the dead."""
    for failure in (LookupError, asyncio.CancelledError, GeneratorExit):
        with pytest.raises(failure), admission.slot(CALLER):
            raise failure
    assert admission.in_flight == in_flight(metrics) == 0


async def test_draining_refuses_what_is_new_and_waits_for_what_is_here(admission: Admission) -> None:
    """It ends as soon as the last request has left."""
    inside, leave = asyncio.Event(), asyncio.Event()

    async def request() -> None:
        with admission.slot(CALLER):
            inside.set()
            await leave.wait()

    running = asyncio.ensure_future(request())  # noqa: TID251
    await inside.wait()
    draining = asyncio.ensure_future(admission.drain(30))  # noqa: TID251
    await asyncio.sleep(0.01)
    assert not draining.done()
    with pytest.raises(Overloaded, match="shutting down"), admission.slot(CALLER):
        pytest.fail("admitted")
    leave.set()
    assert await asyncio.wait_for(draining, 1) == 0
    await running


async def test_draining_gives_up_in_time_and_says_how_many_are_left(admission: Admission) -> None:
    """A stream that never ends must not keep the process."""
    with admission.slot(CALLER):
        began = time.monotonic()
        assert await admission.drain(0.05) == 1
        assert 0.04 <= time.monotonic() - began < 1


async def test_an_empty_process_drains_at_once(admission: Admission) -> None:
    """Also after it was full once."""
    with admission.slot(CALLER):
        pass
    assert await asyncio.wait_for(admission.drain(30), 1) == 0
