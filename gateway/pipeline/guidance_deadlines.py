"""The deadline of each guidance, from measured times by tenant, teacher and length; and a warning about late guidance.

A new process starts from the times in a file, and `gkt-gateway check` compares policies to them. The file is a hint:
the last process that writes it wins, and a file that cannot be read or written loses only the hint.

A tenant's time counts from the ticket's arrival in the queue to the last token of the guidance, as `guidance.deadline`
does. The fleet's time counts from the grant: a tenant's wait in its own queue says nothing about the teacher.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from gateway.policy.plan import GuidancePlan

log = structlog.get_logger()

WINDOW = 100
"""The number of times that count for one class."""
MIN_TIMES = 5
"""Number of times that a class needs. With fewer, the fleet's times count as well, or those of the previous process."""
MAX_CLASSES = 2_000
"""Maximum number of classes; those with the oldest times are evicted."""
FLEET = ""
"""The tenant name of the times of all tenants."""
KEEP_S = 1800.0
"""Seconds for which a time counts, so that the deadline recovers after an incident."""
HEADROOM = 1.25
"""Factor between the 95th percentile and the recommended deadline."""
_PERCENTILE = 0.95

FILE_NAME = "guidance-times.json"
_WRITE_EVERY_S = 60.0
_MAX_BYTES = 1_000_000

RECENT_ANSWERS = 20
"""The number of a route's last answers that decide whether its guidance is often late."""
OFTEN_LATE_SHARE = 0.2
"""Share of late guidance from which a route is reported as often late."""
_LEAST_LATE = 3
_FORGET_S = 900.0
_MAX_ROUTES = 1_000
_UNKNOWN_FACTOR = 2.0

Class: TypeAlias = tuple[str, str, int]
"""A tenant, a teacher and the number of bits of the token count: 33 to 63 tokens are one class."""


class MeasuredTime(msgspec.Struct, frozen=True):
    """The 95th percentile of the fleet's times for one teacher and class of lengths, from `count` times.

    `tokens` is the largest guidance of the class.
    """

    teacher: str
    tokens: int
    p95_s: float
    count: int


class _File(msgspec.Struct, frozen=True):
    measured: tuple[MeasuredTime, ...]


class GuidanceTimes:
    """The last times of each class, in seconds. `before` contains the previous process's times.

    They apply to a class until it has `MIN_TIMES` times of its own.
    """

    def __init__(self, clock: Callable[[], float], before: tuple[MeasuredTime, ...] = ()) -> None:
        self._clock = clock
        self._before = {_class_of(FLEET, one.teacher, one.tokens): one for one in before}
        self._seen: OrderedDict[Class, deque[tuple[float, float]]] = OrderedDict()
        self._p95_s: dict[Class, float] = {}

    def add(self, teacher: str, tokens: int, seconds: float, tenant: str = FLEET) -> None:
        """Count one guidance of at most `tokens`. For late guidance, the time is an estimate of at least the wait."""
        key, now = _class_of(tenant, teacher, tokens), self._clock()
        if (seen := self._seen.get(key)) is None:
            seen = self._seen[key] = deque(maxlen=WINDOW)
        else:
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

        For a tenant with fewer times than `MIN_TIMES` it is at least the fleet's.
        """
        key = _class_of(tenant, teacher, tokens)
        count = len(self._seen.get(key, ()))
        if tenant == FLEET:
            before = self._before.get(key)
            return before.p95_s if before is not None and count < MIN_TIMES else self._percentile_s(key)
        own_s = self._percentile_s(key)
        fleet_s = self.p95_s(teacher, tokens) if count < MIN_TIMES else None
        return max((found for found in (own_s, fleet_s) if found is not None), default=None)

    def measured(self) -> tuple[MeasuredTime, ...]:
        """Return all classes of the fleet with enough times, including those of the previous process."""
        classes: Mapping[Class, MeasuredTime] = self._before | {
            (tenant, teacher, bits): MeasuredTime(
                teacher, 2**bits - 1, self.p95_s(teacher, 2**bits - 1) or 0.0, len(seen)
            )
            for (tenant, teacher, bits), seen in self._seen.items()
            if tenant == FLEET and len(seen) >= MIN_TIMES
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


def read_times(folder: Path) -> tuple[MeasuredTime, ...]:
    """Return the times that were written last; an empty tuple if the file is missing or cannot be read."""
    try:
        with (folder / FILE_NAME).open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=_File).measured
    except (OSError, msgspec.MsgspecError):
        return ()


def write_times(folder: Path, measured: tuple[MeasuredTime, ...]) -> None:
    """Replace the file. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{FILE_NAME}.new"
    unfinished.write_bytes(msgspec.json.encode(_File(measured)))
    unfinished.replace(folder / FILE_NAME)


async def keep_written(folder: Path, times: GuidanceTimes) -> None:
    """Write the file once a minute while the times change. Never returns."""
    written = times.measured()
    while True:
        await asyncio.sleep(_WRITE_EVERY_S)
        measured = times.measured()
        if measured == written:
            continue
        try:
            await asyncio.to_thread(write_times, folder, measured)
        except OSError as error:
            log.warning("guidance_times_not_written", folder=str(folder), error=type(error).__name__)
        written = measured


@dataclass(slots=True)
class _RouteRecord:
    """The last answers of one route; True: its guidance was late."""

    recent: deque[bool]
    seen: float
    guidance: GuidancePlan
    held_s: float = 0.0  # the deadline of the last late guidance
    warned: bool = False

    @property
    def late(self) -> int:
        return sum(self.recent)

    @property
    def often_late(self) -> bool:
        return self.late >= max(_LEAST_LATE, OFTEN_LATE_SHARE * len(self.recent))


class GuidanceDeadlines:
    """Decides how long a request waits for guidance, and records how long guidance took."""

    def __init__(self, times: GuidanceTimes | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.times = GuidanceTimes(clock) if times is None else times
        self._clock = clock
        self._routes: OrderedDict[tuple[str, str], _RouteRecord] = OrderedDict()

    def deadline_s(self, guidance: GuidancePlan) -> float:
        """Return how long this guidance may take.

        `auto` follows the tenant's measured 95th percentile with headroom, within its bounds. While nothing is measured
        the upper bound holds, so that the first requests measure the teacher instead of missing it.
        """
        bounds = guidance.auto_deadline
        if bounds is None:
            return guidance.deadline_s
        p95_s = self.times.p95_s(guidance.teacher, guidance.requested_tokens, guidance.tenant)
        if p95_s is None:
            return bounds.max_s
        return min(bounds.max_s, max(bounds.min_s, recommended_s(p95_s)))

    def arrived(
        self, route: str, guidance: GuidancePlan, waited_s: float, called_s: float, *, stopped: bool = False
    ) -> None:
        """Record guidance that a teacher wrote for this request in time.

        `waited_s` counts from the ticket's arrival in the queue to the last token, `called_s` from the grant. If a stop
        text of the caller may have ended the guidance (`stopped`), its time does not count.
        """
        if not stopped:
            self._add(guidance, waited_s, called_s)
        self._record(route, guidance, late=False)

    def missed(
        self, route: str, guidance: GuidancePlan, held_s: float, waited_s: float, tokens: int, *, called_s: float | None
    ) -> str | None:
        """Record guidance that missed the deadline `held_s`.

        Return the setting to change and its value, if the route is often late.

        Args:
            waited_s: from the ticket's arrival in the queue.
            tokens: how many tokens had arrived; 0 for a teacher that does not stream.
            called_s: from the grant; None: the teacher was not called, and all the time was spent in the queue.
        """
        if called_s is None:
            self._add(guidance, waited_s, None)
        else:
            factor = max(1.0, guidance.requested_tokens / tokens) if tokens > 0 else _UNKNOWN_FACTOR
            self._add(guidance, waited_s + called_s * (factor - 1), called_s * factor)
        record = self._record(route, guidance, late=True)
        record.held_s = held_s
        if not record.often_late:
            return None
        setting = self._setting(guidance, held_s)
        if not record.warned:
            record.warned = True
            log.warning(
                "guidance_often_late",
                tenant=guidance.tenant,
                route=route,
                teacher=guidance.teacher,
                late=record.late,
                of=len(record.recent),
                set=setting,
            )
        return setting

    def warnings(self, teacher: str) -> list[str]:
        """Return one sentence for each route of this teacher whose guidance is often late now."""
        since = self._clock() - _FORGET_S
        return [
            f"route {route} of tenant {tenant}: {record.late} of its last {len(record.recent)} answers went without "
            f"guidance because the teacher was late: set {self._setting(record.guidance, record.held_s)}"
            for (tenant, route), record in self._routes.items()
            if record.guidance.teacher == teacher and record.often_late and record.seen >= since
        ]

    def _add(self, guidance: GuidancePlan, waited_s: float, called_s: float | None) -> None:
        self.times.add(guidance.teacher, guidance.requested_tokens, waited_s, guidance.tenant)
        if called_s is not None:
            self.times.add(guidance.teacher, guidance.requested_tokens, called_s)

    def _record(self, route: str, guidance: GuidancePlan, *, late: bool) -> _RouteRecord:
        name = (guidance.tenant, route)
        record = self._routes.get(name)
        if record is None:
            record = self._routes[name] = _RouteRecord(deque(maxlen=RECENT_ANSWERS), 0.0, guidance)
            if len(self._routes) > _MAX_ROUTES:
                self._routes.popitem(last=False)
        self._routes.move_to_end(name)
        record.recent.append(late)
        record.seen, record.guidance = self._clock(), guidance
        if record.warned and not record.often_late:
            record.warned = False
            log.info("guidance_in_time_again", tenant=guidance.tenant, route=route, teacher=guidance.teacher)
        return record

    def _setting(self, guidance: GuidancePlan, held_s: float) -> str:
        """Return the setting that ends the lateness, as `name=value`. The value is larger than the missed deadline."""
        p95_s = self.times.p95_s(guidance.teacher, guidance.requested_tokens, guidance.tenant) or held_s
        target_s, bounds = recommended_s(max(p95_s, held_s)), guidance.auto_deadline
        if bounds is None:
            return f"guidance.deadline={as_duration(target_s)}"
        if held_s >= bounds.max_s or recommended_s(p95_s) > bounds.max_s:
            return f"guidance.auto_deadline.max={as_duration(target_s)}"
        return f"guidance.auto_deadline.min={as_duration(min(target_s, bounds.max_s))}"
