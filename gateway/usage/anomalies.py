"""Anomalies in Redis: usage workers write them, and gateways report each one once.

An anomaly is unusual spend of a tenant or of a label's value, or an engine that stopped to report the tokens of its
calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import structlog

from gateway.pricing import dollars
from gateway.usage.span import rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis

    from gateway.accounting.budget_watch import BudgetAlerts
    from gateway.redis.client import RedisClient
    from gateway.redis.keys import LedgerKeys
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

_READ_EVERY_S = 5.0
_KEEP_MS = 2 * 86_400_000  # without a usage worker
_REPORTED_S = 30 * 86_400

Kind = Literal["spend", "usage"]
TENANT, ENGINE, LABEL = "tenant", "engine", "label"
"""Dimensions of series. A further one needs a name here, and its rows in `hours.read_sums`."""


class LabelValue(NamedTuple):
    """A value of a label of a tenant."""

    tenant: str
    label: str
    value: str

    @property
    def name(self) -> str:
        """The name of the value's series. Only the value may contain an equals sign."""
        return f"{self.tenant}/{self.label}={self.value}"

    @classmethod
    def of(cls, name: str) -> LabelValue:
        """Return the value of a series."""
        label, _, value = name.partition("=")
        tenant, _, label = label.rpartition("/")
        return cls(tenant, label, value)


class Anomaly(msgspec.Struct, frozen=True, omit_defaults=True):
    """An unusual hour of a series, and the hours after it until it ends.

    Attributes:
        kind: `spend`: more than usual. `usage`: an engine reports no tokens for more calls than usual.
        dimension: the dimension of the series: `tenant`, `label`, or `engine` for the kind `usage`.
        since: start of the first unusual hour, in Unix seconds.
        hour: start of the last unusual hour, to which the figures belong.
        calm: calm hours since then, without gaps.
        checked: start of the last whole hour that was checked.
    """

    kind: Kind
    dimension: str
    name: str
    since: int
    hour: int
    spent_pico: int = 0
    expected_pico: int = 0
    limit_pico: int = 0
    requests: int = 0
    share: float = 0.0
    usual_share: float = 0.0
    calm: int = 0
    checked: int = 0

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.dimension}:{self.name}:{self.since}"

    @property
    def label(self) -> LabelValue | None:
        """The value of a label; None for other dimensions."""
        return LabelValue.of(self.name) if self.dimension == LABEL else None

    @property
    def tenant(self) -> str | None:
        """The tenant that the anomaly concerns; None: all tenants of an engine."""
        label = self.label
        return label.tenant if label is not None else self.name if self.dimension == TENANT else None

    def figures(self) -> dict[str, Any]:
        """Return the name of the series and the figures of the last unusual hour, for events and the dashboard."""
        series = {"dimension": self.dimension, "name": self.name}
        if (label := self.label) is not None:
            series |= label._asdict()
        hours = {"since": rfc3339(self.since), "hour": rfc3339(self.hour)}
        if self.kind == "spend":
            usd = {"spent": self.spent_pico, "expected": self.expected_pico, "limit": self.limit_pico}
            return series | hours | {f"{name}_usd": f"{dollars(pico):f}" for name, pico in usd.items()}
        shares = {"share": self.share, "usual_share": self.usual_share}
        return series | hours | {"requests": self.requests} | {name: round(share, 6) for name, share in shares.items()}


class AnomalyStore:
    """The anomalies in Redis. All methods raise RedisError and OSError."""

    def __init__(self, redis: Redis, keys: LedgerKeys) -> None:
        self._redis, self._keys = redis, keys

    async def begin_check(self, process_id: str, every_s: float) -> bool:
        """Return whether this process may check now: one process does at a time."""
        held_ms = round(every_s * 1000)
        return bool(await self._redis.set(self._keys.anomaly_check, process_id, nx=True, px=held_ms))

    async def read(self) -> list[Anomaly]:
        """Return the current anomalies, without those of a version that this one cannot read."""
        found = []
        for raw in (await self._redis.hgetall(self._keys.anomalies)).values():
            try:
                found.append(msgspec.json.decode(raw, type=Anomaly))
            except msgspec.MsgspecError:
                log.warning("anomaly_unreadable")
        return found

    async def write(self, current: Iterable[Anomaly], ended: Iterable[Anomaly]) -> None:
        """Write current anomalies, delete those that ended, and keep all for two days."""
        async with self._redis.pipeline(transaction=True) as pipe:
            for one in current:
                pipe.hset(self._keys.anomalies, one.id, msgspec.json.encode(one))
            for one in ended:
                pipe.hdel(self._keys.anomalies, one.id)
            pipe.pexpire(self._keys.anomalies, _KEEP_MS)
            await pipe.execute()

    async def claim_report(self, anomaly: Anomaly, process_id: str) -> bool:
        """Return whether this process is the one that reports an anomaly.

        Call it again after an error: the claim may have succeeded although its reply was lost.
        """
        key = self._keys.reported(anomaly.id)
        holder: Any = await self._redis.set(key, process_id, nx=True, get=True, ex=_REPORTED_S)
        return holder is None or holder.decode() == process_id


class AnomalyReporter:
    """Follow the anomalies for metrics and the dashboard, and report each one once in the fleet.

    Attributes:
        current: the anomalies that were read last.
    """

    def __init__(self, store: AnomalyStore, process_id: str, metrics: Metrics, alerts: BudgetAlerts) -> None:
        self._store, self._process_id, self._metrics, self._alerts = store, process_id, metrics, alerts
        self.current: tuple[Anomaly, ...] = ()
        self._reported: dict[str, int] = {}  # start of the anomaly by id; a later claim would succeed again

    async def follow(self, client: RedisClient) -> None:
        """Read the anomalies every five seconds, until canceled."""
        await client.keep_reading(self.read, _READ_EVERY_S, "anomalies_not_read")

    async def read(self) -> None:
        """Read the anomalies once, and report new ones. Raises RedisError and OSError."""
        self.current = tuple(sorted(await self._store.read(), key=lambda one: one.id))
        self._metrics.anomalies.set(
            [(one.kind, self._label(one)) for one in self.current if one.label is None],
            [(self._metrics.series.tenant(label.tenant), label.label) for one in self.current if (label := one.label)],
        )
        ids = {one.id for one in self.current}
        oldest = max((one.since for one in self.current), default=0) - _REPORTED_S
        self._reported = {id_: since for id_, since in self._reported.items() if id_ in ids or since > oldest}
        for one in self.current:
            if one.id not in self._reported:
                if await self._store.claim_report(one, self._process_id):
                    self._report(one)
                self._reported[one.id] = one.since

    def _report(self, one: Anomaly) -> None:
        facts = one.figures() | ({} if one.tenant is None else {"tenant": one.tenant})
        log.warning("anomaly", kind=one.kind, **facts)
        self._metrics.anomaly_events.labels(one.kind).inc()
        event = "spend_unusual" if one.kind == "spend" else "usage_not_reported"
        self._alerts.post({"event": event, **facts})

    def _label(self, one: Anomaly) -> str:
        return self._metrics.series.tenant(one.name) if one.dimension == TENANT else one.name
