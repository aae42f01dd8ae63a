"""Step 4: admit a request: acquire a slot of this process, and reserve within the tenant's limits and budgets.

Each process bounds the number of requests that it handles at once. Before a request may spend anything, one Redis
script, which all processes share, checks its limits and budgets and stores its intent.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from msgspec import structs

from gateway.accounting.content import LoggedContent
from gateway.accounting.scopes import Scopes
from gateway.accounting.verdict import refusal_error
from gateway.engines.base import set_origin
from gateway.errors import GatewayError, Overloaded
from gateway.policy.plan_variants import AS_PLANNED, cheaper_plans
from gateway.policy.policies import NO_DEFAULTS
from gateway.runtime.fair_share import FairShare

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

    from gateway.accounting.ledger import Ledger
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.accounting.scopes import Scope
    from gateway.config.limits import OnRedisFailure
    from gateway.config.sections import Defaults
    from gateway.policy.book import Caller
    from gateway.policy.schema import TenantPolicy
    from gateway.protocol.requests import AnyRequest
    from gateway.telemetry.metrics import Metrics

_DISCONNECTS = (asyncio.CancelledError, GeneratorExit, ConnectionError)


class Admission:
    """Admit requests to the `max_in_flight` slots of this process, and count those in flight.

    `defaults` are limits and budgets of tenants and keys whose policy sets none. A tenant's policy may override
    `on_redis_failure`, which decides about requests while Redis is unavailable.
    """

    def __init__(
        self,
        max_in_flight: int,
        ledger: Ledger,
        metrics: Metrics,
        *,
        defaults: Defaults = NO_DEFAULTS,
        on_redis_failure: OnRedisFailure = "degrade",
    ) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._scopes = Scopes(defaults)
        self._on_redis_failure = on_redis_failure
        self._slots = Slots(max_in_flight, "requests", metrics)
        metrics.follow(metrics.in_flight, lambda: self._slots.held)
        self._empty = asyncio.Event()
        self._empty.set()
        self._cancellable: set[_CancelOnDrain] = set()
        self.draining = False
        self.retiring = False  # each connection closes with its next reply: other processes accept new ones
        self.cancelling = False

    def forget_policies(self) -> None:
        """Release former policies, whose limits are cached."""
        self._scopes.clear()

    @property
    def in_flight(self) -> int:
        """Return the number of requests that hold a slot."""
        return self._slots.held

    def slot(self, caller: Caller) -> AbstractContextManager[None]:
        """Hold a slot of the caller's tenant inside the block. Entering raises Overloaded."""
        return _SlotContext(self, caller.policy)

    def acquire(self, policy: TenantPolicy) -> None:
        """Acquire a slot for the tenant of `policy`. Raises Overloaded."""
        if self.draining:
            raise Overloaded("This process is shutting down. Retry: another process will answer.")
        self._slots.acquire(policy.tenant, policy.weight)
        self._empty.clear()

    def release(self, tenant: str) -> None:
        """Release a slot of the tenant."""
        self._slots.release(tenant)
        if not self._slots.held:
            self._empty.set()

    async def reserve(self, builder: ReceiptBuilder, request: AnyRequest, caller: Caller) -> None:
        """Reserve the limits and the cost of the request. The caller must settle the receipt afterwards.

        Where a budget requires it, a cheaper plan replaces the builder's.

        Raises:
            RateLimited, BudgetSpent: a limit or a budget has no room for the request.
            StoreUnavailable: Redis is unavailable, and this process may not or may no longer admit the request.
        """
        if caller.policy.log_content and builder.shadow_of is None:  # the request's own log line has its content
            builder.content = LoggedContent(request)
        scopes = self._scopes.of(caller, builder.labels)
        writes = builder.plan.max_tokens is None and bool(builder.plan.students)
        if writes and any(scope.budget is not None for scope in scopes):
            # Reserving the engine's maximum would exceed nearly every budget.
            builder.plan = structs.replace(builder.plan, max_tokens=self._ledger.budget_max_tokens(builder))
        plans = cheaper_plans(builder.plan) if any(map(_may_reduce_cost, scopes)) else {AS_PLANNED: builder.plan}
        on_failure = caller.policy.on_redis_failure or self._on_redis_failure
        slices = caller.policy.redis_slices
        admitted = await self._ledger.admit(builder, request, plans, scopes, on_failure=on_failure, slices=slices)
        builder.admitted = time.perf_counter()
        if admitted is None:
            if scopes:
                self._metrics.uncounted.labels(self._metrics.series.tenant(builder.tenant)).inc()
            return
        verdict, counted, now_us = admitted
        if verdict.left is not None:
            builder.allowance.requests = verdict.left.get("requests")
            builder.allowance.tokens = verdict.left.get("tokens")
        if verdict.refusal is not None:
            builder.refused = True
            self._metrics.limited.labels(self._metrics.series.tenant(builder.tenant), verdict.refusal.limit).inc()
            raise refusal_error(verdict.refusal, counted, now_us)
        builder.budget = "soft" if verdict.soft else None
        if verdict.variant in plans:
            builder.plan = plans[verdict.variant]

    def settled(self, builder: ReceiptBuilder) -> AbstractContextManager[None]:
        """Settle one receipt for the block, however the block ends.

        A request that is rejected before anything was reserved has no receipt: it costs nothing, and its caller may
        retry it without limit. Hold the slot around this block, so that a request without a slot has no receipt either.
        """
        return _SettleContext(self, self._ledger, builder)

    def cancel_on_drain(self) -> AbstractContextManager[None]:
        """Cancel the block when the timeout of a drain expires, while the caller can still get an error.

        Leaving the block then raises Overloaded.
        """
        return _CancelOnDrain(self._cancellable)

    async def drain(self, timeout_s: float) -> int:
        """Reject new requests and wait for those in flight. Cancel the rest after `timeout_s`; return their number."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        canceled = self._slots.held
        self.cancelling = True
        for block in self._cancellable:
            block.cancel()
        return canceled


def _may_reduce_cost(scope: Scope) -> bool:
    """Return whether a budget of the scope may select a cheaper plan or answer than the route's."""
    return scope.budget is not None and (scope.budget.on_soft != "warn" or scope.budget.on_hard != "reject")


# These are classes, not decorated generators, because each request enters all of them: that saves one percent of its
# time.


class _SlotContext:
    def __init__(self, admission: Admission, policy: TenantPolicy) -> None:
        self._admission = admission
        self._policy = policy

    def __enter__(self) -> None:
        self._admission.acquire(self._policy)

    def __exit__(self, *_: object) -> None:
        self._admission.release(self._policy.tenant)


class _SettleContext:
    def __init__(self, admission: Admission, ledger: Ledger, builder: ReceiptBuilder) -> None:
        self._admission = admission
        self._ledger = ledger
        self._builder = builder

    def __enter__(self) -> None:
        set_origin(self._builder.tenant, self._builder.id)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, GatewayError):
            error.recorded = not self._builder.refused
        if not self._builder.refused:
            self._ledger.settle(self._builder, self._status(error))

    def _status(self, error: BaseException | None) -> str:
        if not (error is None or isinstance(error, (GatewayError, *_DISCONNECTS))):
            return "internal"
        if self._builder.caller_left:
            return "client_gone"
        if error is None:
            return "ok"
        if isinstance(error, GatewayError):
            return error.label
        return "shutdown" if self._admission.cancelling else "client_gone"


class _CancelOnDrain:
    __slots__ = ("_cancellable", "_cancelling", "_is_canceled", "_task")

    _task: asyncio.Task[Any]
    _cancelling: int

    def __init__(self, cancellable: set[_CancelOnDrain]) -> None:
        self._cancellable = cancellable
        self._is_canceled = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "requests are answered in tasks"
        self._task, self._cancelling = task, task.cancelling()
        self._cancellable.add(self)

    def cancel(self) -> None:
        self._is_canceled = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cancellable.discard(self)
        if not self._is_canceled:
            return
        # As in asyncio.timeout: another cancellation of the task is passed on.
        is_alone = self._task.uncancel() <= self._cancelling
        if isinstance(error, TimeoutError) or (is_alone and isinstance(error, asyncio.CancelledError)):
            raise Overloaded("This process shut down before the answer was complete. Retry the request.") from None


class Slots:
    """Count the slots that tenants hold. At the bound of `capacity` slots, `FairShare.admits` decides.

    `kind` is a plural noun for the work, used in errors and as a label of gkt_limited_total.
    """

    def __init__(self, capacity: int, kind: str, metrics: Metrics) -> None:
        self._kind = kind
        self._metrics = metrics
        self._share = FairShare(capacity)

    @property
    def held(self) -> int:
        return self._share.total

    def acquire(self, tenant: str, weight: float) -> None:
        """Acquire a slot until `release`. Raises Overloaded."""
        share = self._share
        if not share.admits(tenant, weight):
            self._metrics.limited.labels(self._metrics.series.tenant(tenant), f"concurrent_{self._kind}").inc()
            raise Overloaded(
                f"This process holds {share.total} {self._kind}, its limit, and {share.held(tenant)} of them are this "
                "tenant's. Send fewer at once, or retry after Retry-After."
            )
        share.acquire(tenant, weight)

    def release(self, tenant: str) -> None:
        """Release a slot of the tenant."""
        self._share.release(tenant)

    @contextmanager
    def hold(self, tenant: str, weight: float) -> Iterator[None]:
        """Hold a slot inside the block. Raises Overloaded."""
        self.acquire(tenant, weight)
        try:
            yield
        finally:
            self.release(tenant)
