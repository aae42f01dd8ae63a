"""Reports of devices, tested without a gateway."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs
from redis.exceptions import RedisError

from gateway.errors import NotFound, Overloaded, StoreUnavailable
from gateway.pipeline.admission import Slots
from gateway.pipeline.edge_reports import EdgeReports
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import NO_ENGINES
from tests.accounting.test_edge import USAGE
from tests.batching.process import until

NOW = 1_700_000_000.0
CALLER: Any = SimpleNamespace(
    policy=SimpleNamespace(tenant="acme", weight=1.0, key_device=None), key=SimpleNamespace(id="ci", device=None)
)


class Store:
    """An empty store that records the requested ids."""

    def __init__(self) -> None:
        self.requested: list[str] = []

    async def get(self, _: str, receipt_id: str) -> None:
        self.requested.append(receipt_id)


@pytest.mark.parametrize(
    "receipt_id", ["", "\0", "req_of_nobody", "req_" + "0" * 25, "req_" + "0" * 24 + "-edge", "req_" + "0" * 24 + "\n"]
)
async def test_invalid_ids_are_not_read_from_the_store(receipt_id: str) -> None:
    """PostgreSQL, for example, fails at a NUL, which would be a 503."""
    store = Store()
    with pytest.raises(NotFound):
        await _reports(store).close(CALLER, receipt_id, structs.replace(USAGE, at=NOW), NO_ENGINES)
    assert store.requested == []


@pytest.mark.parametrize(
    ("at", "refused"),
    [
        (None, NotFound),
        (NOW - 121, NotFound),
        (NOW + 121, NotFound),
        (NOW - 119, StoreUnavailable),
        (NOW, StoreUnavailable),
    ],
)
async def test_recent_unknown_guidance_is_a_temporary_error(at: float | None, refused: type[Exception]) -> None:
    """Only the process that gave guidance while Redis was unavailable knows it, and another may get the report."""
    store, metrics = Store(), Metrics()
    with pytest.raises(refused):
        await _reports(store, metrics).close(CALLER, "req_" + "0" * 24, structs.replace(USAGE, at=at), NO_ENGINES)
    assert len(store.requested) == 3
    counted = 'gkt_edge_closings_total{outcome="unknown"} 1.0' in metrics.render().decode()
    assert counted == (refused is NotFound)


class Book:
    """A book whose writes wait for `may_write`."""

    def __init__(self) -> None:
        self.may_write = asyncio.Event()

    async def write(self, *_: object) -> None:
        await self.may_write.wait()
        raise RedisError


async def test_a_report_holds_its_read_slot_until_it_is_stored() -> None:
    """Devices that disconnect must not hold more connections than their tenant's share."""
    book, tasks, slots = Book(), BackgroundTasks(), Slots(1, "reads", Metrics())
    reports = _reports(Store(), reads=slots, book=book, tasks=tasks)
    receipt: Any = SimpleNamespace(id="edge_1")
    writing = tasks.spawn("report", reports._write(CALLER, receipt, None, "offline"))
    await until(lambda: slots.held == 1)
    writing.cancel()
    await asyncio.wait([writing])
    assert slots.held == 1
    for call in (
        reports.close(CALLER, "req_" + "0" * 24, USAGE, NO_ENGINES),
        reports._write(CALLER, receipt, None, "offline"),
    ):
        with pytest.raises(Overloaded, match="1 reads, its limit"):
            await call
    other = SimpleNamespace(tenant="globex", weight=1.0)
    with slots.hold(other.tenant, other.weight):
        assert slots.held == 2
    book.may_write.set()
    await tasks.drain(5)
    assert slots.held == 0


def _reports(
    store: Store,
    metrics: Metrics | None = None,
    *,
    reads: Slots | None = None,
    book: Book | None = None,
    tasks: BackgroundTasks | None = None,
) -> EdgeReports:
    metrics = metrics or Metrics()
    redis, admission = SimpleNamespace(up=True), SimpleNamespace(slot=nullcontext)
    parts: Any = (redis, book, store, None, admission, reads or Slots(100, "reads", metrics), metrics, tasks)
    return EdgeReports(*parts, within_s=60.0, clock=lambda: NOW)
