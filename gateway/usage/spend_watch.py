"""Report tenants that spend unusually much, in the log, the metrics and at the webhook.

Every gateway process runs the check, and one of them checks each hour. Redis has the checked hours and the reported
tenants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from gateway.errors import UsageUnavailable
from gateway.pricing import dollars
from gateway.usage.span import rfc3339
from gateway.usage.unusual_spend import DAY_S, HOUR_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.accounting.budget_watch import BudgetAlerts
    from gateway.config.sections import AlertSettings
    from gateway.redis.client import RedisClient
    from gateway.redis.keys import LedgerKeys
    from gateway.telemetry.metrics import Metrics
    from gateway.usage.database_reader import DatabaseReader
    from gateway.usage.state import WorkerStateReader
    from gateway.usage.unusual_spend import UnusualSpend

log = structlog.get_logger()

_EVERY_S = 60.0
_SETTLED_S = 300
"""Time after the end of an hour in which its long requests may still end."""
_CHECKING_S, _CHECKED_S = 120, 2 * HOUR_S
_REPORTED_S = DAY_S


class SpendWatch:
    """Check each complete hour once in the fleet, and report each tenant at most once a day.

    Args:
        database: reads the sums.
        workers: the state of the usage workers, which write the sums.
        settings: `alerts` of config.yaml. The attribute may be replaced.
        clock: returns Unix seconds.
    """

    def __init__(
        self,
        client: RedisClient,
        keys: LedgerKeys,
        database: DatabaseReader,
        workers: WorkerStateReader,
        settings: AlertSettings,
        metrics: Metrics,
        alerts: BudgetAlerts,
        clock: Callable[[], float],
    ) -> None:
        self._client, self._keys, self._database, self._workers = client, keys, database, workers
        self.settings = settings
        self._metrics, self._alerts, self._clock = metrics, alerts, clock

    async def run(self) -> None:
        """Check once a minute until canceled."""
        await self._client.keep_reading(self.check, _EVERY_S, "spend_not_checked")

    async def check(self) -> None:
        """Check the last complete hour, unless a process has checked it or is checking it.

        An hour is complete when the usage workers have written its receipts. If the database is unavailable, a later
        call checks the hour. Raises RedisError and OSError.
        """
        workers = self._workers.state
        if not workers.up:
            return
        settled = self._clock() - workers.lag_s - _SETTLED_S
        hour = int(settled // HOUR_S - 1) * HOUR_S
        key, redis = self._keys.spend_check(hour), self._client.commands
        if not await redis.set(key, 1, nx=True, ex=_CHECKING_S):
            return
        try:
            found = await self._database.unusual_spend(hour, self.settings.spend_factor, self.settings.spend_min_usd)
        except UsageUnavailable:
            return
        for unusual in found:
            if await redis.set(self._keys.spend_reported(unusual.tenant), 1, nx=True, ex=_REPORTED_S):
                self._report(unusual, hour)
        await redis.set(key, 1, ex=_CHECKED_S)

    def _report(self, unusual: UnusualSpend, hour: int) -> None:
        facts = {
            "tenant": unusual.tenant,
            "hour": rfc3339(hour),
            "spent_usd": f"{dollars(unusual.spent_pico):f}",
            "usual_usd": f"{dollars(unusual.usual_pico):f}",
        }
        log.warning("spend_unusual", **facts)
        self._metrics.spend_unusual.inc()
        self._alerts.post({"event": "spend_unusual", **facts})
