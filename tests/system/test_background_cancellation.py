"""A shutdown cancels comparisons and shadow runs: it settles them and records no engine failure."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from msgspec import structs

from gateway.pipeline.admission import Admission
from gateway.pipeline.quality_sampler import AnswerBuffer, QualitySampler
from gateway.pipeline.shadow import ShadowRequests
from gateway.policy.book import Caller
from gateway.policy.plan import QualityPlan
from gateway.policy.route_rules import QualityRule
from gateway.policy.schema import KeyEntry, TenantPolicy
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import chat, guided, plan
from tests.fakes import reply

if TYPE_CHECKING:
    from gateway.accounting.receipt_builder import ReceiptBuilder

KEY = KeyEntry(id="only", sha256="f" * 64)
POLICY = {"tenant": "acme", "keys": [KEY], "routes": [{"model": "chat", "mode": "student", "student": "small"}]}
CALLER = Caller(TenantPolicy.model_validate(POLICY), KEY)


class NoEnd:
    """A student or teacher call whose engine never answers."""

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def complete(self, *_: object) -> None:
        self.called.set()
        await asyncio.Event().wait()

    open = complete

    def check_available(self, *_: object) -> None: ...


class OpenLedger:
    """A ledger that admits everything and records settled receipts."""

    def __init__(self) -> None:
        self.settled: list[tuple[str, str]] = []

    def max_usd(self, *_: object) -> Decimal:
        return Decimal(1)

    async def admit(self, *_: object, **__: object) -> None: ...

    def settle(self, one: ReceiptBuilder, status: str) -> None:
        self.settled.append((one.id.partition("-shadow-")[2], status))


class OpenBook:
    """A daily budget that admits everything and records settled costs."""

    def __init__(self) -> None:
        self.spent: list[Decimal] = []

    async def take(self, *_: object) -> str:
        return "taken"

    async def settle(self, _: str, spent: Decimal) -> None:
        self.spent.append(spent)


class SamplerInCall:
    """A quality sampler whose comparison has called the teacher and waits."""

    def __init__(self) -> None:
        self.metrics, self.tasks = Metrics(), BackgroundTasks()
        self.ledger, self.book, student = OpenLedger(), OpenBook(), NoEnd()
        self.called = student.called
        ledger: Any = self.ledger
        others: Any = (student, self.book, SimpleNamespace(up=True), None)
        self.admission = Admission(4, ledger, self.metrics)
        self._guard = QualitySampler(
            others[0],
            self.admission,
            ledger,
            others[1],
            others[2],
            self.metrics,
            self.tasks,
            1,
            others[3],
            lambda _: None,
        )

    def start(self) -> None:
        quality = QualityPlan(QualityRule(sample=1), plan("teacher"), None)
        buffer = AnswerBuffer()
        buffer.add([reply("One two")])
        self._guard.start(guided(plan=structs.replace(plan(), quality=quality)), chat(), CALLER, buffer)

    async def begin(self) -> None:
        self.start()
        await self.called.wait()

    def counted(self) -> dict[str, float]:
        """Return the nonzero counters."""
        samples = next(one for one in self.metrics.quality_samples.collect()).samples
        return {one.labels["result"]: one.value for one in samples if one.name.endswith("_total") and one.value}


async def test_background_runs_longer_than_a_drain_are_dropped_without_an_engine_failure() -> None:
    """The started run is settled, and the day's budget counts its possible cost."""
    sampling = SamplerInCall()
    await sampling.begin()
    assert await sampling.admission.drain(0) == 1
    assert await sampling.tasks.drain(10) == 0
    assert sampling.counted() == {"dropped": 1}
    assert sampling.ledger.settled == [("teacher", "shutdown")]
    assert sampling.book.spent == [1]
    assert sampling.admission.in_flight == 0


async def test_canceled_background_runs_are_dropped_without_an_engine_failure() -> None:
    sampling = SamplerInCall()
    await sampling.begin()
    await sampling.tasks.close()
    assert sampling.counted() == {"dropped": 1}
    assert [name for name, _ in sampling.ledger.settled] == ["teacher"]


async def test_background_runs_are_rejected_during_a_drain() -> None:
    sampling = SamplerInCall()
    await sampling.admission.drain(0)
    sampling.start()
    assert await sampling.tasks.drain(10) == 0
    assert sampling.counted() == {"refused": 1}
    assert sampling.ledger.settled == []


async def test_a_shadow_that_outlasts_a_drain_is_refused_and_no_engines_failure() -> None:
    metrics, tasks = Metrics(), BackgroundTasks()
    student, opener, ledger = NoEnd(), NoEnd(), OpenLedger()
    parts: Any = (opener, student, ledger)
    admission = Admission(4, parts[2], metrics)
    shadows = ShadowRequests(parts[0], parts[1], admission, metrics, tasks, max_in_flight=1)
    shadows.start(guided(), chat(), CALLER)
    await opener.called.wait()
    assert await admission.drain(0) == 1
    assert await tasks.drain(10) == 0
    samples = next(one for one in metrics.shadows.collect()).samples
    assert {one.labels["result"]: one.value for one in samples if one.name.endswith("_total") and one.value} == {
        "refused": 1
    }
    assert [status for _, status in ledger.settled] == ["shutdown"]
