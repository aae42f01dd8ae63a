"""Fair shares of a bounded resource: what each tenant holds, whose holding is dropped first, and who is served next.

A tenant that is alone may hold everything. While several tenants hold some, the share of each is the part of the
capacity that its weight is of all their weights.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ANONYMOUS = "(anonymous)"
"""Tenant of all requests and connections that have not authenticated. No policy can have a name with brackets."""
ANONYMOUS_WEIGHT = 1.0

HARD_BOUND = 2
"""Times the capacity: what all tenants may hold together, those below their shares included."""

_Held = TypeVar("_Held")


class FairShare:
    """Count what each tenant holds of one resource.

    Args:
        capacity: what the shares divide. Reaching it does not refuse anything: the caller decides.

    Attributes:
        total: what all tenants hold together.
    """

    __slots__ = ("_capacity", "_held", "_weight", "total")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: dict[str, tuple[int, float]] = {}  # by tenant: how many, and its weight
        self._weight = 0.0  # of all tenants that hold some
        self.total = 0

    def held(self, tenant: str) -> int:
        """Return how many the tenant holds."""
        return self._held[tenant][0] if tenant in self._held else 0

    def acquire(self, tenant: str, weight: float, amount: int = 1) -> None:
        """Count so many more for the tenant. A tenant keeps the weight of its first holding until it holds nothing."""
        own = self._held.get(tenant)
        if own is None:
            self._held[tenant] = (amount, weight)
            self._weight += weight
        else:
            self._held[tenant] = (own[0] + amount, own[1])
        self.total += amount

    def release(self, tenant: str, amount: int = 1) -> None:
        """Count so many less for the tenant."""
        count, weight = self._held[tenant]
        if count > amount:
            self._held[tenant] = (count - amount, weight)
        else:
            del self._held[tenant]
            self._weight = self._weight - weight if self._held else 0.0  # rounding errors must not add up
        self.total -= amount

    def is_below(self, tenant: str, weight: float) -> bool:
        """Return whether the tenant would stay within its share with one more."""
        own = self._held.get(tenant)
        if own is None:
            count, together = 0, self._weight + weight
        else:
            (count, weight), together = own, self._weight
        return (count + 1) * together <= self._capacity * weight or count == 0

    def admits(self, tenant: str, weight: float) -> bool:
        """Return whether the tenant may acquire one more.

        While the capacity is reached, only tenants below their shares may, until all hold twice the capacity. So no
        tenant can take everything.
        """
        if self.total < self._capacity:
            return True
        return self.total < HARD_BOUND * self._capacity and self.is_below(tenant, weight)

    def heaviest(self, most: int = 1) -> list[str]:
        """Return the tenants that hold most in proportion to their weights, heaviest first: at most `most`."""
        return heapq.nlargest(most, self._held, key=self._load)

    def _load(self, tenant: str) -> float:
        count, weight = self._held[tenant]
        return count / weight


class Holdings(Generic[_Held]):
    """The holdings of each tenant of one resource, oldest first.

    Args:
        capacity: as of a FairShare.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.share = FairShare(capacity)
        self._by_tenant: dict[str, dict[_Held, int]] = {}

    def __len__(self) -> int:
        return self.share.total

    def add(self, tenant: str, weight: float, one: _Held, amount: int = 1) -> None:
        """Add the tenant's newest holding, or an amount to one that is there."""
        own = self._by_tenant.setdefault(tenant, {})
        own[one] = own.get(one, 0) + amount
        self.share.acquire(tenant, weight, amount)

    def remove(self, tenant: str, one: _Held) -> bool:
        """Remove a holding; return whether it was there."""
        own = self._by_tenant.get(tenant)
        if own is None or one not in own:
            return False
        amount = own.pop(one)
        if not own:
            del self._by_tenant[tenant]
        self.share.release(tenant, amount)
        return True

    def amount(self, tenant: str, one: _Held) -> int:
        """Return how much one holding holds."""
        return self._by_tenant[tenant][one]

    def move_to_end(self, tenant: str, one: _Held) -> None:
        """Make a holding the tenant's newest."""
        own = self._by_tenant[tenant]
        own[one] = own.pop(one)

    def of(self, tenant: str) -> Iterator[_Held]:
        """Return the tenant's holdings, oldest first."""
        return iter(self._by_tenant[tenant])


class BoundedHoldings:
    """Holdings of at most `capacity` together. Beyond it, the tenant that is farthest above its share loses its oldest.

    A single holding may exceed the capacity.
    """

    def __init__(self, capacity: int) -> None:
        self._holdings: Holdings[Callable[[], object]] = Holdings(capacity)

    def __len__(self) -> int:
        return len(self._holdings)

    def hold(self, tenant: str, weight: float, drop: Callable[[], object], amount: int = 1) -> None:
        """Hold an amount, or more of it, until `release(tenant, drop)`. A call of `drop()` ends the holding early."""
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
        """End a holding. Nothing happens when it was dropped before."""
        self._holdings.remove(tenant, drop)


class FairSemaphore:
    """A semaphore that tenants acquire in turn, so that no tenant waits for the queue of another one.

    Within a tenant the oldest waiter goes first. The caller bounds how many wait, and for how long.
    """

    def __init__(self, permits: int) -> None:
        self._free = permits
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by tenant, the next one first

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
            if not waiter.cancelled():  # it had the permit already
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Give the permit to the next tenant's oldest waiter."""
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
