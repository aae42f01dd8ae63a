"""Switch guidance off and on in Redis, and keep the switches of a process equal to those in Redis."""

from __future__ import annotations

import asyncio
import math
import secrets
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog
from redis.exceptions import RedisError

from gateway.policy.guidance_off import GuidanceOff, GuidanceScope
from gateway.redis.script import RedisScript

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from gateway.policy.guidance_off import GuidanceSwitches
    from gateway.policy.route_rules import QualityRule
    from gateway.redis.keys import RedisKeys
    from gateway.telemetry.gauges import GuidanceOffGauge

log = structlog.get_logger()

MIN_SAMPLES = 20
"""Fewer comparisons switch no route off."""
ENOUGH_EVIDENCE = math.log(10_000)
"""A route whose mean agreement is exactly the bound is switched off once in at least 10,000 comparisons on average."""
_KEPT_S = 35 * 86_400
"""A window without comparisons for this time expires, and so does the time of a restoration."""
_MAX_AUDIT = 10_000
_MICRO = 1_000_000
_READ_EVERY_S = 0.5
_EVERYTHING = "*"


class QualityFall(NamedTuple):
    """The comparisons that switched a route's guidance off."""

    samples: int
    agreement: float


class GuidanceSwitchStore:
    """The switches in Redis. All methods raise RedisError and OSError."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._keys = keys.guidance_off()
        self._names = list(self._keys[:4])
        self._switch = RedisScript(redis, "gateway.quality", "switch.lua")
        self._bound = RedisScript(redis, "gateway.quality", "bound.lua")

    async def switch(self, scope: GuidanceScope, off: GuidanceOff | None, actor: str) -> bool:
        """Switch guidance off, or on if `off` is None. Return whether it was off before."""
        stored = b"" if off is None else _encode(off)
        action = "guidance.on" if off is None else "guidance.off"
        what = (_field(scope), stored, secrets.token_hex(8), actor, action, scope.tenant or "", scope.route or "")
        (before,) = await self._switch.run([(self._names, (*what, _KEPT_S, _MAX_AUDIT))])
        return bool(before)

    async def count(
        self, tenant: str, route: str, window: str, rule: QualityRule, *, arrived_s: int, agreement: float
    ) -> QualityFall | None:
        """Count a comparison, and switch the route off if the agreements are below the bound of its rule.

        Return the reason if this call switched it off. Comparisons count separately by `window`. Those of requests
        from before a restoration, and those of a scope that is off, do not count.
        """
        keys = [*self._names, self._keys.window(tenant, route, window)]
        what = (tenant, route, arrived_s * _MICRO, repr(agreement), repr(float(rule.min_agreement or 0)))
        decides = (MIN_SAMPLES, repr(ENOUGH_EVIDENCE), rule.fallback, secrets.token_hex(8), _KEPT_S, _MAX_AUDIT)
        (reply,) = await self._bound.run([(keys, (*what, *decides))])
        return QualityFall(int(reply[1]), float(reply[2])) if reply[0] else None

    async def restore(self, scope: GuidanceScope, off: GuidanceOff) -> None:
        """Switch guidance off as in an export, with its time, unless it is off."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hsetnx(self._keys.off, _field(scope), b"%d|%b" % (round(off.since_s * _MICRO), _encode(off)))
            pipe.set(self._keys.version, secrets.token_hex(8))
            await pipe.execute()

    async def version(self) -> bytes | None:
        """Return a word that differs after each change; None where no change is known."""
        found: Any = await self._redis.get(self._keys.version)
        return bytes(found) if found is not None else None

    async def read(self) -> Mapping[GuidanceScope, GuidanceOff]:
        """Return the switches that are off."""
        stored: Any = self._redis.hgetall(self._keys.off)
        found: dict[bytes, bytes] = await stored
        return {_scope(field.decode()): _decode(value) for field, value in found.items()}


class SwitchFollower:
    """Read changes of switches twice a second. While Redis is unavailable, the last known switches apply."""

    def __init__(self, store: GuidanceSwitchStore, switches: GuidanceSwitches, gauge: GuidanceOffGauge) -> None:
        self.store = store
        self.switches = switches
        self._gauge = gauge
        self._read_version: bytes | None = b"unread"
        self._catching_up = asyncio.Lock()
        self._failed = False

    async def start(self) -> None:
        """Read the switches. If Redis fails, the policies apply until `follow` has read them."""
        await self.try_to_catch_up()

    async def follow(self) -> None:
        """Read changes until canceled."""
        while True:
            await asyncio.sleep(_READ_EVERY_S)
            await self.try_to_catch_up()

    async def catch_up(self) -> None:
        """Read all switches if any of them changed. Raises RedisError and OSError."""
        async with self._catching_up:
            version = await self.store.version()
            if version == self._read_version:
                return
            off, before = await self.store.read(), self.switches.off
            # The version is older than the switches, so a change that came between is read again.
            self._read_version = version
            if version is None and before and not off:
                log.warning("guidance_switches_lost", before=len(before))
            self.switches.replace(off)
            self._gauge.set((*scope, switch.by) for scope, switch in off.items())

    async def try_to_catch_up(self) -> None:
        """Read changes, as `catch_up` does. If Redis fails, the switches that were read last apply."""
        try:
            await self.catch_up()
        except Exception as error:
            # Do not mark Redis as failed: requests do not wait for this.
            unexpected = not isinstance(error, RedisError | OSError)
            if unexpected or not self._failed:
                log.warning("guidance_switches_not_read", error=type(error).__name__, exc_info=unexpected)
            self._failed = True
        else:
            self._failed = False


class _Stored(msgspec.Struct, omit_defaults=True):
    """A switch as JSON. A later version may add fields."""

    by: str = "operator"
    actor: str = ""
    reason: str | None = None
    answer_by: str = "student"


def _encode(off: GuidanceOff) -> bytes:
    return msgspec.json.encode(_Stored(off.by, off.actor, off.reason, off.answer_by))


def _decode(value: bytes) -> GuidanceOff:
    """Return a switch. One that this version cannot read is off, too."""
    since, _, stored = value.partition(b"|")
    since_s = int(since) / _MICRO if since.isdigit() else 0.0
    try:
        found = msgspec.json.decode(stored, type=_Stored)
    except msgspec.MsgspecError:
        log.error("guidance_switch_unreadable")
        return GuidanceOff(since_s)
    return GuidanceOff(
        since_s,
        "quality" if found.by == "quality" else "operator",
        found.actor,
        found.reason,
        "teacher" if found.answer_by == "teacher" else "student",
    )


def _field(scope: GuidanceScope) -> str:
    if scope.tenant is None:
        return _EVERYTHING
    return scope.tenant if scope.route is None else f"{scope.tenant}/{scope.route}"


def _scope(field: str) -> GuidanceScope:
    if field == _EVERYTHING:
        return GuidanceScope()
    tenant, slash, route = field.partition("/")  # a tenant name contains no slash
    return GuidanceScope(tenant, route if slash else None)
