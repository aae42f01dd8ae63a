"""Bound the distinct values of labels, so that callers who invent values fill neither Redis nor the sums.

A value that a process sees first waits to be registered in Redis, and is used meanwhile. Registration runs in the
background: no request waits for it. Once Redis has `max_values` of a label and month, further values are `(other)`.
Each process also bounds the values that wait. So a tenant's requests have at most `max_values` values, and the waiting
values of each process, until it has read that the bound is reached.

Values of claims have their own set, so that values that callers choose do not use it up.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.policy.labels import OTHER
from gateway.redis.background import run_on_work
from gateway.redis.script import RedisScript

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys

KEPT_S = 40 * 86_400
"""Seconds for which Redis keeps the values of a month."""
MIN_WAITING, WAITING_PART = 100, 10
"""Most values of a label that wait in a process: this number, or the share 1/10 of `max_values` if that is more."""
_MAX_VALUES = 500_000
_READ_AT_ONCE = 5_000
_LINGER_S, _RETRY_S = 0.05, 1.0


class ValueSet(NamedTuple):
    """A set of values: of a tenant's label, from claims (`trusted`) or from callers."""

    tenant: str
    label: str
    trusted: bool


@dataclass(slots=True)
class _Known:
    """The values of a set that this process knows. `number` is the last one that was read from Redis."""

    maximum: int
    values: set[str] = field(default_factory=set)
    waiting: dict[str, None] = field(default_factory=dict)
    number: int = 0


class LabelValues:
    """Register values of labels. `clock` returns Unix seconds."""

    def __init__(self, redis: RedisClient, keys: RedisKeys, clock: Callable[[], float] = time.time) -> None:
        self._redis, self._keys, self._clock = redis, keys, clock
        self._script = RedisScript(redis.commands, "gateway.accounting", "label_values.lua")
        self._known: OrderedDict[ValueSet, _Known] = OrderedDict()
        self._month, self._month_ends = "", 0.0
        self._size = 0
        self._unsent: dict[ValueSet, None] = {}
        self._work = asyncio.Event()

    def bounded(self, values: ValueSet, value: str, maximum: int, *, register: bool = True) -> str:
        """Return the value, or `(other)` if it is beyond the bound. Does not wait.

        Without `register`, a new value is not counted.
        """
        if self._clock() >= self._month_ends:
            self._begin_month()
        known = self._known.get(values)
        if known is None:
            if not register:
                return value
            known = self._known[values] = _Known(maximum)
        elif value in known.values:
            return value
        known.maximum = maximum
        if value in known.waiting:
            return value
        waiting = len(known.waiting)
        if len(known.values) + waiting >= maximum or waiting >= max(MIN_WAITING, maximum // WAITING_PART):
            return OTHER
        if not register:
            return value
        known.waiting[value] = None
        self._unsent[values] = None
        self._work.set()
        return value

    async def run(self) -> None:
        """Register waiting values until canceled."""
        await run_on_work(
            self._redis,
            self._work,
            self.register,
            linger_s=_LINGER_S,
            retry_s=_RETRY_S,
            failure="label_values_not_registered",
        )

    async def register(self) -> None:
        """Register the waiting values, and read those of other processes. Raises RedisError and OSError."""
        unsent, self._unsent = list(self._unsent), {}
        failure: Exception | None = None
        for values in unsent:
            known = self._known.get(values)
            if known is None:
                continue
            if failure is None or self._redis.is_cluster:  # the nodes of a cluster fail separately
                try:
                    await self._register(values, known)
                    continue
                except Exception as error:  # noqa: BLE001  raised below
                    failure = error
            self._unsent[values] = None
        if failure is not None:
            raise failure

    async def _register(self, values: ValueSet, known: _Known) -> None:
        sent, month = list(known.waiting), self._month
        key, new = self._keys.label_values(*values, month), sent
        while True:
            arguments: list[Any] = [known.maximum, KEPT_S, known.number, _READ_AT_ONCE, *new]
            ((count, found),) = await self._script.run([([key], arguments)])
            if known is not self._known.get(values):
                return  # another month has begun
            if count < known.number:  # Redis lost its data
                known.number = 0
                continue
            self._size -= len(known.values)
            known.values.update(raw.decode() for raw in found)
            self._size += len(known.values)
            known.number, new = known.number + len(found), []
            if len(found) < _READ_AT_ONCE:
                break
        for value in sent:  # those that Redis did not accept are now beyond the bound
            known.waiting.pop(value, None)
        if known.waiting:
            self._unsent[values] = None
            self._work.set()
        self._known.move_to_end(values)
        while self._size > _MAX_VALUES and len(self._known) > 1:
            _, oldest = self._known.popitem(last=False)
            self._size -= len(oldest.values)

    async def listed(self, tenant: str, label: str, limit: int) -> list[str]:
        """Return values of this month, from claims first. Raises RedisError and OSError."""
        self._begin_month()
        found: dict[str, None] = {}
        for trusted in (True, False):
            key = self._keys.label_values(tenant, label, trusted, self._month)
            raw: Any = await self._redis.commands.zrange(key, 0, limit - 1)
            found.update(dict.fromkeys(one.decode() for one in raw))
        return list(found)[:limit]

    def _begin_month(self) -> None:
        now = time.gmtime(self._clock())
        month = f"{now.tm_year:04}-{now.tm_mon:02}"
        if month != self._month:
            self._month, self._size = month, 0
            self._known.clear()
            self._unsent.clear()
        day_s = 86_400
        self._month_ends = (self._clock() // day_s + 1) * day_s  # the next check is at the end of the day
