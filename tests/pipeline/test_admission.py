"""Slots of a process: limited, released in every case, and refused during a drain."""

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
    """A ledger that admits every request."""

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


def test_slots_are_limited(admission: Admission, metrics: Metrics) -> None:
    """The third request is rejected with Retry-After. After a release, the next request gets the slot."""
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

    def admitted(tenant_caller: Caller, held: ExitStack) -> int:
        count = 0
        with suppress(Overloaded):
            while True:
                held.enter_context(admission.slot(tenant_caller))
                count += 1
        return count

    with ExitStack() as held, ExitStack() as flooding:
        assert admitted(flood, flooding) == 8  # no contention: all slots
        assert admitted(heavy, held) == 5  # two thirds of 8
        assert admitted(light, held) == 2  # one quarter of 8
        assert admitted(flood, flooding) == 0
        flooding.close()
        assert admitted(flood, held) == 2
    assert admission.in_flight == 0


def test_many_tenants_together_hold_at_most_twice_the_limit() -> None:
    """Each tenant is below its share."""
    admission = Admission(3, Open(), Metrics())  # type: ignore[arg-type]
    with ExitStack() as held:
        for number in range(6):
            held.enter_context(admission.slot(caller(f"tenant-{number}")))
        with pytest.raises(Overloaded), admission.slot(caller("one-more")):
            pytest.fail("admitted")


def test_a_slot_is_released_when_its_request_fails(admission: Admission, metrics: Metrics) -> None:
    """A cancellation releases the slot, too."""
    for failure in (LookupError, asyncio.CancelledError, GeneratorExit):
        with pytest.raises(failure), admission.slot(CALLER):
            raise failure
    assert admission.in_flight == in_flight(metrics) == 0


async def test_draining_rejects_new_requests_and_waits_for_running_ones(admission: Admission) -> None:
    """The drain ends with the last request."""
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


async def test_draining_times_out_and_returns_the_number_of_running_requests(admission: Admission) -> None:
    """A stream that never ends must not keep the process running."""
    with admission.slot(CALLER):
        started = time.monotonic()
        assert await admission.drain(0.05) == 1
        assert 0.04 <= time.monotonic() - started < 1


async def test_an_empty_process_drains_at_once(admission: Admission) -> None:
    """A process that held a request before drains at once, too."""
    with admission.slot(CALLER):
        pass
    assert await asyncio.wait_for(admission.drain(30), 1) == 0
