"""Measured times of guidance, by teacher and length. Pure.

A time counts from the ticket's arrival in the queue to the last token of the guidance, as `guidance.deadline` does.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WINDOW = 100
"""The number of times that count for one teacher and length class."""
ENOUGH = 5
"""With fewer times than this, the times of the process before this one count as well."""
KEEP_S = 1800.0
"""A time counts for this long, so that the deadline recovers after an incident."""
HEADROOM = 1.25
"""The deadline that is recommended is this multiple of the 95th percentile."""
_PERCENTILE = 0.95

Class: TypeAlias = tuple[str, int]
"""A teacher and the number of bits of the token count: 33 to 63 tokens are one class."""


class Measured(msgspec.Struct, frozen=True):
    """The 95th percentile of one class.

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
        clock: seconds that only grow.
        before: what the process before this one measured.
    """

    def __init__(self, clock: Callable[[], float], before: tuple[Measured, ...] = ()) -> None:
        self._clock = clock
        self._before = {_class_of(one.teacher, one.tokens): one for one in before}
        self._seen: dict[Class, deque[tuple[float, float]]] = {}
        self._p95_s: dict[Class, float] = {}

    def add(self, teacher: str, tokens: int, seconds: float) -> None:
        """Count one guidance.

        Args:
            tokens: the limit that the teacher was given.
            seconds: its time; for one that did not arrive in time, an estimate that is no smaller than the wait.
        """
        one, now = _class_of(teacher, tokens), self._clock()
        seen = self._seen.setdefault(one, deque(maxlen=WINDOW))
        seen.append((now, seconds))
        while seen[0][0] < now - KEEP_S:
            seen.popleft()
        self._p95_s.pop(one, None)

    def p95_s(self, teacher: str, tokens: int) -> float | None:
        """Return the 95th percentile of the class, or None if nothing was measured."""
        one = _class_of(teacher, tokens)
        seen = self._seen.get(one, ())
        if len(seen) < ENOUGH and (before := self._before.get(one)) is not None:
            return before.p95_s
        if not seen:
            return None
        if one not in self._p95_s:
            ordered = sorted(seconds for _, seconds in seen)
            self._p95_s[one] = ordered[math.ceil(_PERCENTILE * len(ordered)) - 1]
        return self._p95_s[one]

    def measured(self) -> tuple[Measured, ...]:
        """Return all classes with enough times, those of the process before this one included."""
        found: Mapping[Class, Measured] = self._before | {
            (teacher, bits): Measured(teacher, 2**bits - 1, self.p95_s(teacher, 2**bits - 1) or 0.0, len(seen))
            for (teacher, bits), seen in self._seen.items()
            if len(seen) >= ENOUGH
        }
        return tuple(sorted(found.values(), key=lambda one: (one.teacher, one.tokens)))


def _class_of(teacher: str, tokens: int) -> Class:
    return teacher, tokens.bit_length()


def recommended_s(p95_s: float) -> float:
    """Return a deadline that 95 % of guidance meets with headroom, rounded up to two digits."""
    wanted_s = max(0.001, p95_s * HEADROOM)
    step = 10.0 ** (math.floor(math.log10(wanted_s)) - 1)
    return round(math.ceil(wanted_s / step - 1e-9) * step, 6)


def as_duration(seconds: float) -> str:
    """Write a duration as YAML does: `850ms`, `4.5s`."""
    return f"{seconds * 1000:g}ms" if seconds < 1 else f"{seconds:g}s"
