"""The state of one teacher's queue for operators: of the whole fleet, or of one process while Redis is unavailable."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from gateway.batching.scheduler import stride
from gateway.batching.window import SECOND, EventRate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis.asyncio import Redis

    from gateway.batching.permit_waiter import PermitWaiter
    from gateway.batching.ticket import TeacherLimits
    from gateway.redis.keys import RedisKeys

SCRIPT = files("gateway.batching").joinpath("view.lua").read_text()

# Redis serves no other command during the scan, so the scan is bounded.
MAX_TENANTS_SCANNED = 100
MAX_TENANTS = 50
MAX_PERMITS = 256
MAX_PROCESSES = 100
_MAX_LINE_BYTES = 512
_STATE = ("batches", "cache_bytes", "a_start", "a_before", "a_current", "g_start", "g_before", "g_current")
# `scheduler.lua` stores a ticket as: letter, process, tenant, stride, five more numbers, key, payload.
_LINE = re.compile(r"([WFGS])\|([^|]*)\|([^|]*)\|(\d{1,18})\|(?:\d+\|){5}[^|]*\|.*", re.DOTALL | re.ASCII)


@dataclass(frozen=True, slots=True)
class TenantView:
    """A tenant's use of the teacher."""

    tenant: str
    waiting: int = 0
    oldest_wait_s: float | None = None
    in_flight: int | None = 0  # None if too many calls are in flight to assign them to tenants
    weight: float | None = None  # the weight of its first ticket; None if that cannot be decoded
    share: float | None = None  # its part of the permits while the same tenants wait; None if unknown


@dataclass(frozen=True, slots=True)
class ProcessView:
    """A gateway process. `in_flight` as in `TenantView`."""

    process: str
    heard_ago_s: float
    in_flight: int | None = 0


@dataclass(frozen=True, slots=True)
class CacheView:
    """Guidance kept for later requests."""

    entries: int
    bytes: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class QueueView:
    """The queue of one teacher. Figures that only the fleet's scheduler has are None while `alone`.

    Tenants with waiting tickets come first, those with most tickets first; then tenants with calls in flight only.
    """

    alone: bool  # Redis is unavailable, and the figures are those of one process; `why` has the reason
    why: str | None
    waiting: int
    oldest_wait_s: float | None  # age of the oldest ticket in the queue; None if no ticket waits
    in_flight: int
    cap: int  # the limit of permits over the fleet; while `alone`, this process's share
    followers: int | None = None  # tickets that wait for the guidance of another ticket and need no permit
    tenants: list[TenantView] = field(default_factory=list)
    more_tenants: int = 0  # tenants with waiting tickets that are not listed; `more_waiting` counts their tickets
    more_waiting: int = 0
    complete: bool = True  # False: `more_tenants` is an upper bound, and `oldest_wait_s` a lower bound
    processes: list[ProcessView] = field(default_factory=list)  # most recently active first, until the lease expires
    more_processes: int = 0  # processes that are not listed
    batches: int | None = None  # batches opened so far
    arrivals_per_s: float | None = None  # tickets queued in the last second
    grants_per_s: float | None = None  # permits granted in the last second
    cache: CacheView | None = None
    unreadable: int = 0  # entries that could not be decoded
    redis_time: float | None = None  # seconds since 1970


@dataclass(frozen=True, slots=True)
class QueuesReply:
    """The body of GET /queue."""

    worker: int  # the number of the worker that answered
    redis_up: bool  # whether that worker reaches Redis
    teachers: dict[str, QueueView]  # the teachers named by a policy, by their names in config.yaml


class SchedulerView:
    """Read the state of one teacher's scheduler in Redis, without changes."""

    def __init__(self, redis: Redis, keys: RedisKeys, teacher: str) -> None:
        self._keys = list(keys.teacher(teacher))
        self._script = redis.register_script(SCRIPT)

    async def read(self, limits: TeacherLimits) -> QueueView:
        """Return the state over the fleet, in one round trip. Raises RedisError."""
        bounds = (MAX_TENANTS_SCANNED, MAX_TENANTS, MAX_PERMITS, MAX_PROCESSES, _MAX_LINE_BYTES)
        sums, state, processes, permits, scan, tenants = await self._script(
            keys=self._keys, args=[*map(str, bounds), *_STATE]
        )
        now, waiting, in_flight, followers, cached, fleet_size, known_tenants = map(int, sums)
        scanned, complete, oldest, unreadable = map(int, scan)
        reader = _Reader(now, unreadable)
        numbers = dict(zip(_STATE, map(reader.integer, state), strict=True))
        held = [line for line in map(reader.line, permits) if line is not None]
        counted = in_flight <= MAX_PERMITS
        all_listed = bool(complete) and scanned == len(tenants)
        listed = reader.tenants(tenants, held if counted else None, all_listed=all_listed)
        more_waiting = max(0, waiting - sum(tenant.waiting for tenant in listed))
        more_tenants = (scanned if complete else known_tenants) - len(tenants)
        return QueueView(
            alone=False,
            why=None,
            waiting=waiting,
            oldest_wait_s=reader.age_s(oldest),
            in_flight=in_flight,
            cap=limits.max_in_flight,
            followers=followers,
            tenants=listed,
            more_tenants=max(0, more_tenants),
            more_waiting=more_waiting,
            complete=bool(complete),
            processes=reader.processes(processes, held if counted else None),
            more_processes=max(0, fleet_size - MAX_PROCESSES),
            batches=numbers["batches"],
            arrivals_per_s=_per_s(numbers, "a", now),
            grants_per_s=_per_s(numbers, "g", now),
            cache=CacheView(cached, numbers["cache_bytes"], limits.max_cache_bytes),
            unreadable=reader.unreadable,
            redis_time=now / SECOND,
        )


class _Line(NamedTuple):
    process: str
    tenant: str
    weight: float


class _Reader:
    """Decode the scheduler's entries, and count those that cannot be decoded."""

    def __init__(self, now: int, unreadable: int) -> None:
        self._now = now
        self.unreadable = unreadable

    def age_s(self, since: int) -> float | None:
        """Return the age; None for 0, which means never."""
        return max(0.0, (self._now - since) / SECOND) if since else None

    def integer(self, value: bytes | None) -> int:
        if value is None:
            return 0
        try:
            return int(value)
        except ValueError:
            self.unreadable += 1
            return 0

    def line(self, raw: bytes) -> _Line | None:
        match = _LINE.fullmatch(raw.decode(errors="replace"))
        if match is None or not (match[2] + match[3]).isprintable() or not int(match[4]):
            self.unreadable += 1
            return None
        return _Line(match[2], match[3], stride(1.0) / int(match[4]))

    def tenants(
        self, raw: Sequence[tuple[bytes, int, bytes, bytes]], held: Iterable[_Line] | None, *, all_listed: bool
    ) -> list[TenantView]:
        """Return waiting tenants, then tenants that only hold permits. `held` is None if the holders are unknown."""
        permits = None if held is None else list(held)
        in_flight = Counter(line.tenant for line in permits or ())
        heads = [(_printable(tenant), count, int(since), self.line(line)) for tenant, count, since, line in raw]
        total_weight = sum(head.weight for _, _, _, head in heads if head)
        has_shares = all_listed and all(head for _, _, _, head in heads)
        waiting = [
            TenantView(
                name,
                count,
                self.age_s(since),
                in_flight=None if permits is None else in_flight.pop(name, 0),
                weight=head.weight if head else None,
                share=head.weight / total_weight if head and has_shares else None,
            )
            for name, count, since, head in heads
        ]
        weights = {line.tenant: line.weight for line in permits or ()}
        holding = [TenantView(name, in_flight=count, weight=weights[name]) for name, count in in_flight.most_common()]
        return [*waiting, *holding[: MAX_TENANTS - len(waiting)]]

    def processes(self, raw: Sequence[bytes], held: Iterable[_Line] | None) -> list[ProcessView]:
        in_flight = None if held is None else Counter(line.process for line in held)
        return [
            ProcessView(
                _printable(name),
                max(0.0, (self._now - float(last)) / SECOND),
                None if in_flight is None else in_flight[name.decode(errors="replace")],
            )
            for name, last in zip(raw[::2], raw[1::2], strict=True)
        ]


def _printable(name: bytes) -> str:
    """Return the name with control characters escaped, for a terminal."""
    text = name.decode(errors="replace")
    return text if text.isprintable() else ascii(text)[1:-1]


def _per_s(numbers: dict[str, int], rate: str, now: int) -> float:
    event_rate = EventRate(*(numbers[f"{rate}_{part}"] for part in ("start", "before", "current")))
    event_rate.count(0, now)
    million = event_rate.time_for(1_000_000, now)
    return round(1_000_000 * SECOND / million, 1) if million else 0.0


def local_view(waiters: Iterable[PermitWaiter], process_id: str, cap: int, now: float, why: str) -> QueueView:
    """Return the state of one process's own requests; `now` is on the loop's clock."""
    waiting: defaultdict[str, list[float]] = defaultdict(list)
    in_flight: Counter[str] = Counter()
    weights: dict[str, float] = {}
    for waiter in waiters:
        weights[waiter.ticket.tenant] = waiter.ticket.weight
        if waiter.holds_permit:
            in_flight[waiter.ticket.tenant] += 1
        elif not waiter.future.done():
            waiting[waiter.ticket.tenant].append(now - waiter.enqueued_at)
    total_weight = sum(weights[name] for name in waiting)
    tenants = [
        TenantView(
            name,
            len(waiting.get(name, ())),
            max(waiting.get(name, ()), default=None),
            in_flight[name],
            weights[name],
            weights[name] / total_weight if name in waiting else None,
        )
        for name in {*waiting, *in_flight}
    ]
    tenants.sort(key=lambda tenant: (-tenant.waiting, -(tenant.in_flight or 0), tenant.tenant))
    return QueueView(
        alone=True,
        why=why,
        waiting=sum(map(len, waiting.values())),
        oldest_wait_s=max((max(ages) for ages in waiting.values()), default=None),
        in_flight=in_flight.total(),
        cap=cap,
        tenants=tenants[:MAX_TENANTS],
        more_tenants=sum(tenant.waiting > 0 for tenant in tenants[MAX_TENANTS:]),
        more_waiting=sum(tenant.waiting for tenant in tenants[MAX_TENANTS:]),
        processes=[ProcessView(process_id, 0.0, in_flight.total())],
    )
