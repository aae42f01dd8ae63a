"""Slots of this process for concurrent work of one kind, divided between tenants by weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import Overloaded
from gateway.fair_share import FairShare

if TYPE_CHECKING:
    from gateway.metrics import Metrics

HARD_BOUND = 2
"""Times the capacity: slots of tenants below their shares included."""


class Slots:
    """Count the slots that tenants hold.

    Args:
        capacity: the bound. While it is reached, a tenant above its fair share is refused. A tenant below its share is
            admitted until all tenants together hold twice the bound. So no tenant can take every slot.
        kind: plural of what holds a slot, for errors and for gkt_limited_total.
    """

    def __init__(self, capacity: int, kind: str, metrics: Metrics) -> None:
        self._capacity = capacity
        self._kind = kind
        self._metrics = metrics
        self._share = FairShare(capacity)

    @property
    def held(self) -> int:
        """How many slots all tenants hold."""
        return self._share.total

    def acquire(self, tenant: str, weight: float) -> None:
        """Acquire a slot until `release`. Raises Overloaded."""
        share = self._share
        if share.total >= self._capacity and (
            share.total >= HARD_BOUND * self._capacity or not share.is_below(tenant, weight)
        ):
            self._metrics.limited.labels(self._metrics.series.tenant(tenant), f"concurrent_{self._kind}").inc()
            raise Overloaded(
                f"This process holds {share.total} {self._kind}, its limit, and {share.held(tenant)} of them are this "
                "tenant's. Send fewer at once, or try again after Retry-After."
            )
        share.acquire(tenant, weight)

    def release(self, tenant: str) -> None:
        """Release a slot of the tenant."""
        self._share.release(tenant)
