"""Measured times of guidance, by tenant, teacher and length. Pure.

A tenant's time counts from the ticket's arrival in the queue to the last token of the guidance, as `guidance.deadline`
does. The fleet's time counts from the grant: a tenant's wait in its own queue says nothing about the teacher.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WINDOW = 100
"""The number of times that count for one class."""
ENOUGH = 5
"""Number of times that a class needs. With fewer, the fleet's times count as well, or those of the previous process."""
MAX_CLASSES = 2_000
"""Maximum number of classes; those with the oldest times are evicted."""
FLEET = ""
"""The tenant name that stands for all tenants."""
KEEP_S = 1800.0
"""Seconds for which a time counts, so that the deadline recovers after an incident."""
HEADROOM = 1.25
"""Factor between the 95th percentile and the recommended deadline."""
_PERCENTILE = 0.95

Class: TypeAlias = tuple[str, str, int]
"""A tenant, a teacher and the number of bits of the token count: 33 to 63 tokens are one class."""


class MeasuredTime(msgspec.Struct, frozen=True):
    """The 95th percentile of one class of the fleet.

    Attributes:
        tokens: the largest guidance of the class, in the teacher's tokens.
    """

    teacher: str
    tokens: int
    p95_s: float
    count: int


class GuidanceTimes:
    """The last times of each class.

    Args:
        clock: returns monotonic seconds.
        before: the times that the previous process measured.
    """

    def __init__(self, clock: Callable[[], float], before: tuple[MeasuredTime, ...] = ()) -> None:
        self._clock = clock
        self._before = {_class_of(FLEET, one.teacher, one.tokens): one for one in before}
        self._seen: OrderedDict[Class, deque[tuple[float, float]]] = OrderedDict()
        self._p95_s: dict[Class, float] = {}

    def add(self, teacher: str, tokens: int, seconds: float, tenant: str = FLEET) -> None:
        """Count one guidance.

        Args:
            tokens: the limit of the teacher's request.
            seconds: its time; for late guidance, an estimate that is no smaller than the wait.
        """
        key, now = _class_of(tenant, teacher, tokens), self._clock()
        seen = self._seen.setdefault(key, deque(maxlen=WINDOW))
        self._seen.move_to_end(key)
        seen.append((now, seconds))
        while seen[0][0] < now - KEEP_S:
            seen.popleft()
        self._p95_s.pop(key, None)
        if len(self._seen) > MAX_CLASSES:
            oldest, _ = self._seen.popitem(last=False)
            self._p95_s.pop(oldest, None)

    def p95_s(self, teacher: str, tokens: int, tenant: str = FLEET) -> float | None:
        """Return the 95th percentile of the class, or None if nothing was measured.

        For a tenant with fewer times than `ENOUGH` it is at least the fleet's.
        """
        key = _class_of(tenant, teacher, tokens)
        count = len(self._seen.get(key, ()))
        if tenant == FLEET:
            before = self._before.get(key)
            return before.p95_s if before is not None and count < ENOUGH else self._percentile_s(key)
        own_s = self._percentile_s(key)
        fleet_s = self.p95_s(teacher, tokens) if count < ENOUGH else None
        return max((found for found in (own_s, fleet_s) if found is not None), default=None)

    def measured(self) -> tuple[MeasuredTime, ...]:
        """Return all classes of the fleet with enough times, including those of the previous process."""
        classes: Mapping[Class, MeasuredTime] = self._before | {
            (tenant, teacher, bits): MeasuredTime(
                teacher, 2**bits - 1, self.p95_s(teacher, 2**bits - 1) or 0.0, len(seen)
            )
            for (tenant, teacher, bits), seen in self._seen.items()
            if tenant == FLEET and len(seen) >= ENOUGH
        }
        return tuple(sorted(classes.values(), key=lambda one: (one.teacher, one.tokens)))

    def _percentile_s(self, key: Class) -> float | None:
        seen = self._seen.get(key)
        if not seen:
            return None
        if key not in self._p95_s:
            ordered = sorted(seconds for _, seconds in seen)
            self._p95_s[key] = ordered[math.ceil(_PERCENTILE * len(ordered)) - 1]
        return self._p95_s[key]


def _class_of(tenant: str, teacher: str, tokens: int) -> Class:
    return tenant, teacher, tokens.bit_length()


def recommended_s(p95_s: float) -> float:
    """Return a deadline that 95 % of guidance meets with headroom, rounded up to two digits."""
    target_s = max(0.001, p95_s * HEADROOM)
    step = 10.0 ** (math.floor(math.log10(target_s)) - 1)
    return round(math.ceil(target_s / step - 1e-9) * step, 6)


def as_duration(seconds: float) -> str:
    """Write a duration as YAML does: `850ms`, `4.5s`."""
    return f"{seconds * 1000:g}ms" if seconds < 1 else f"{seconds:g}s"
