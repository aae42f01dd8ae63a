"""Slots of one process for concurrent work of one kind, divided between tenants by weight."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.errors import Overloaded
from gateway.runtime.fair_share import FairShare

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.telemetry.metrics import Metrics


class Slots:
    """Count the slots that tenants hold.

    Args:
        capacity: number of slots to divide. At the bound, `FairShare.admits` decides.
        kind: plural noun for the work, used in errors and as a label of gkt_limited_total.
    """

    def __init__(self, capacity: int, kind: str, metrics: Metrics) -> None:
        self._kind = kind
        self._metrics = metrics
        self._share = FairShare(capacity)

    @property
    def held(self) -> int:
        """The number of slots that all tenants hold."""
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
