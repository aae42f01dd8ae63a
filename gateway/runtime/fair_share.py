"""Fair shares of a bounded resource.

A single tenant may hold everything. While several tenants hold some, the capacity is divided in proportion to their
weights.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from contextlib import asynccontextmanager
from operator import truediv
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ANONYMOUS = "(anonymous)"
"""The tenant of unauthenticated requests and connections. No tenant's name contains parentheses."""
ANONYMOUS_WEIGHT = 1.0

HARD_BOUND = 2  # the largest total of all holdings, as a multiple of the capacity

_Held = TypeVar("_Held")


class FairShare:
    """Count what each tenant holds of one resource, and `total`, which all tenants hold together.

    The shares divide `capacity`. Exceeding it is not refused here: the caller decides.
    """

    __slots__ = ("_capacity", "_held", "_weight", "total")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: dict[str, tuple[int, float]] = {}  # tenant -> amount and weight
        self._weight = 0.0  # the sum of the weights in `_held`
        self.total = 0

    def held(self, tenant: str) -> int:
        """Return the amount that the tenant holds."""
        return self._held[tenant][0] if tenant in self._held else 0

    def acquire(self, tenant: str, weight: float, amount: int = 1) -> None:
        """Add an amount to the tenant's holding. The weight of the first acquisition applies until it holds nothing."""
        own = self._held.get(tenant)
        if own is None:
            self._held[tenant] = (amount, weight)
            self._weight += weight
        else:
            self._held[tenant] = (own[0] + amount, own[1])
        self.total += amount

    def release(self, tenant: str, amount: int = 1) -> None:
        """Subtract an amount from the tenant's holding."""
        count, weight = self._held[tenant]
        if count > amount:
            self._held[tenant] = (count - amount, weight)
        else:
            del self._held[tenant]
            self._weight = self._weight - weight if self._held else 0.0  # avoid accumulating rounding errors
        self.total -= amount

    def is_below(self, tenant: str, weight: float) -> bool:
        """Return whether the tenant would stay within its share with one more."""
        own = self._held.get(tenant)
        if own is None:
            count, total_weight = 0, self._weight + weight
        else:
            (count, weight), total_weight = own, self._weight
        return (count + 1) * total_weight <= self._capacity * weight or count == 0

    def admits(self, tenant: str, weight: float) -> bool:
        """Return whether the tenant may acquire one more.

        At capacity, only tenants below their shares may, until the total is twice the capacity. So no tenant can hold
        everything.
        """
        if self.total < self._capacity:
            return True
        return self.total < HARD_BOUND * self._capacity and self.is_below(tenant, weight)

    def heaviest(self, limit: int = 1) -> list[str]:
        """Return at most `limit` tenants with the largest amounts in proportion to their weights, largest first."""
        return heapq.nlargest(limit, self._held, key=lambda tenant: truediv(*self._held[tenant]))


class Holdings(Generic[_Held]):
    """The holdings of each tenant of one resource, oldest first. For `capacity` see `FairShare`."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.share = FairShare(capacity)
        self._by_tenant: dict[str, dict[_Held, int]] = {}

    def __len__(self) -> int:
        return self.share.total

    def add(self, tenant: str, weight: float, holding: _Held, amount: int = 1) -> None:
        """Add the tenant's newest holding, or increase an existing one."""
        own = self._by_tenant.setdefault(tenant, {})
        own[holding] = own.get(holding, 0) + amount
        self.share.acquire(tenant, weight, amount)

    def remove(self, tenant: str, holding: _Held) -> bool:
        """Remove a holding. Return whether it existed."""
        own = self._by_tenant.get(tenant)
        if own is None or holding not in own:
            return False
        amount = own.pop(holding)
        if not own:
            del self._by_tenant[tenant]
        self.share.release(tenant, amount)
        return True

    def amount(self, tenant: str, holding: _Held) -> int:
        """Return the amount of one holding."""
        return self._by_tenant[tenant][holding]

    def move_to_end(self, tenant: str, holding: _Held) -> None:
        """Make a holding the tenant's newest."""
        own = self._by_tenant[tenant]
        own[holding] = own.pop(holding)

    def of(self, tenant: str) -> Iterator[_Held]:
        """Return the tenant's holdings, oldest first."""
        return iter(self._by_tenant[tenant])


class BoundedHoldings:
    """Holdings with a total of at most `capacity`. Beyond it, the tenant farthest above its share loses its oldest one.

    A single holding may exceed the capacity.
    """

    def __init__(self, capacity: int) -> None:
        self._holdings: Holdings[Callable[[], object]] = Holdings(capacity)

    def __len__(self) -> int:
        return len(self._holdings)

    def hold(self, tenant: str, weight: float, drop: Callable[[], object], amount: int = 1) -> None:
        """Hold an amount, or increase it, until `release(tenant, drop)`. Calling `drop()` evicts the holding."""
        holdings = self._holdings
        holdings.add(tenant, weight, drop, amount)
        while len(holdings) > holdings.capacity:
            (heaviest,) = holdings.share.heaviest()
            oldest = next(holdings.of(heaviest))
            if len(holdings) == holdings.amount(heaviest, oldest):
                break
            holdings.remove(heaviest, oldest)
            oldest()

    def release(self, tenant: str, drop: Callable[[], object]) -> None:
        """End a holding. An evicted holding is ignored."""
        self._holdings.remove(tenant, drop)


class FairSemaphore:
    """A semaphore that serves tenants in turn, so that no tenant waits for another tenant's queue.

    Each tenant's waiters are served in order of arrival. The caller limits their number and waiting time.
    """

    def __init__(self, permits: int) -> None:
        self._free = permits
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by tenant, the next tenant first

    @asynccontextmanager
    async def hold(self, tenant: str) -> AsyncIterator[None]:
        """Hold a permit inside the block."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(tenant)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, tenant: str) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # the waiter had received the permit
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Pass the permit to the oldest waiter of the next tenant."""
        while self._waiting:
            tenant = next(iter(self._waiting))
            queue = self._waiting.pop(tenant)
            waiter = queue.popleft()
            if queue:
                self._waiting[tenant] = queue
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1
