"""What an operator sees of one teacher's queue: of the whole fleet, or, while Redis is away, of one process."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from gateway.batching.board import stride
from gateway.batching.window import SECOND, EventRate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis.asyncio import Redis

    from gateway.batching.ticket import TeacherLimits
    from gateway.batching.turn import PermitWaiter
    from gateway.redis.keys import RedisKeys

SCRIPT = files("gateway.batching").joinpath("view.lua").read_text()

# Redis serves nobody else while it looks, so it looks at no more than this.
MOST_TENANTS_FOUND = 100
MOST_TENANTS = 50
MOST_PERMITS = 256
MOST_PROCESSES = 100
_MOST_LINE_BYTES = 512
_STATE = ("batches", "cache_bytes", "a_start", "a_before", "a_current", "g_start", "g_before", "g_current")
# `board.lua` says how a ticket is kept: layout, letter, process, tenant, stride, five more numbers, work, the rest.
_LINE = re.compile(r"\d{1,9}\|([WFGS])\|([^|]*)\|([^|]*)\|(\d{1,18})\|(?:\d+\|){5}[^|]*\|.*", re.DOTALL | re.ASCII)


@dataclass(frozen=True, slots=True)
class TenantView:
    """What one tenant has of the teacher.

    Attributes:
        in_flight: None where too many calls are in flight to tell whose they are.
        weight: as its first ticket says; None when that cannot be read.
        share: its part of the permits while all that wait now go on waiting; None when that is not known.
    """

    tenant: str
    waiting: int = 0
    oldest_wait_s: float | None = None
    in_flight: int | None = 0
    weight: float | None = None
    share: float | None = None


@dataclass(frozen=True, slots=True)
class ProcessView:
    """One gateway process. `in_flight` as in `TenantView`."""

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
    """One teacher. What only the fleet's board knows is None while `alone`.

    Attributes:
        alone: Redis is away, and this is what one process knows of itself; `why` says what is the matter.
        oldest_wait_s: of the tickets in the queue; None when none waits.
        cap: permits, over the fleet; while alone, this process's share.
        followers: tickets that wait for another one's guidance, and take no permit.
        tenants: those with most waiting first, then those that only have calls in flight.
        more_tenants: tenants that wait and are not in the list; their tickets are `more_waiting`.
        complete: every tenant that waits was looked at. If not, `more_tenants` is at most as many, and an older ticket
            may wait than `oldest_wait_s` says.
        processes: the last heard of first; one that is gone stands here until another one sees its lease lapsed.
            `more_processes` are not in the list.
        batches: opened so far.
        arrivals_per_s: tickets that came into the queue; `grants_per_s`, permits given; both of the last second.
        unreadable: what was seen on the board and is no ticket.
        redis_time: seconds since 1970.
    """

    alone: bool
    why: str | None
    waiting: int
    oldest_wait_s: float | None
    in_flight: int
    cap: int
    followers: int | None = None
    tenants: list[TenantView] = field(default_factory=list)
    more_tenants: int = 0
    more_waiting: int = 0
    complete: bool = True
    processes: list[ProcessView] = field(default_factory=list)
    more_processes: int = 0
    batches: int | None = None
    arrivals_per_s: float | None = None
    grants_per_s: float | None = None
    cache: CacheView | None = None
    unreadable: int = 0
    redis_time: float | None = None


@dataclass(frozen=True, slots=True)
class QueuesReply:
    """The body of GET /queue, which `gkt-gateway queue` decodes.

    Attributes:
        worker: the number of the worker that answered.
        redis_up: whether that worker reaches Redis.
        teachers: the teachers that a policy asks for guidance, by the names of config.yaml.
    """

    worker: int
    redis_up: bool
    teachers: dict[str, QueueView]


class SchedulerView:
    """Looks at one teacher's board, and leaves it as it is."""

    def __init__(self, redis: Redis, keys: RedisKeys, teacher: str) -> None:
        self._keys = keys.teacher(teacher).as_list()
        self._script = redis.register_script(SCRIPT)

    async def look(self, limits: TeacherLimits) -> QueueView:
        """The teacher as it stands over the fleet, in one round trip. Raises RedisError."""
        bounds = (MOST_TENANTS_FOUND, MOST_TENANTS, MOST_PERMITS, MOST_PROCESSES, _MOST_LINE_BYTES)
        sums, state, processes, permits, found, tenants = await self._script(
            keys=self._keys, args=[*map(str, bounds), *_STATE]
        )
        now, waiting, in_flight, followers, kept, fleet, known = map(int, sums)
        many_found, complete, oldest, unreadable = map(int, found)
        reader = _Reader(now, unreadable)
        numbers = dict(zip(_STATE, map(reader.whole, state), strict=True))
        held = [line for line in map(reader.line, permits) if line is not None]
        counted = in_flight <= MOST_PERMITS
        all_told = bool(complete) and many_found == len(tenants)
        listed = reader.tenants(tenants, held if counted else None, all_told=all_told)
        more_waiting = max(0, waiting - sum(tenant.waiting for tenant in listed))
        more_tenants = (many_found if complete else known) - len(tenants)
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
            more_processes=max(0, fleet - MOST_PROCESSES),
            batches=numbers["batches"],
            arrivals_per_s=_per_s(numbers, "a", now),
            grants_per_s=_per_s(numbers, "g", now),
            cache=CacheView(kept, numbers["cache_bytes"], limits.max_cache_bytes),
            unreadable=reader.unreadable,
            redis_time=now / SECOND,
        )


class _Line(NamedTuple):
    process: str
    tenant: str
    weight: float


class _Reader:
    """Makes sense of what the board holds, and counts what makes none."""

    def __init__(self, now: int, unreadable: int) -> None:
        self._now = now
        self.unreadable = unreadable

    def age_s(self, since: int) -> float | None:
        """None for 0, which stands for never."""
        return max(0.0, (self._now - since) / SECOND) if since else None

    def whole(self, value: bytes | None) -> int:
        if value is None:
            return 0
        try:
            return int(value)
        except ValueError:
            self.unreadable += 1
            return 0

    def line(self, raw: bytes) -> _Line | None:
        found = _LINE.fullmatch(raw.decode(errors="replace"))
        if found is None or not (found[2] + found[3]).isprintable() or not int(found[4]):
            self.unreadable += 1
            return None
        return _Line(found[2], found[3], stride(1.0) / int(found[4]))

    def tenants(
        self, raw: Sequence[tuple[bytes, int, bytes, bytes]], held: Iterable[_Line] | None, *, all_told: bool
    ) -> list[TenantView]:
        """Those that wait, and those that only hold permits. `held` is None where it is not known who holds them."""
        holds = None if held is None else list(held)
        in_flight = Counter(line.tenant for line in holds or ())
        heads = [(_shown(tenant), many, int(came), self.line(line)) for tenant, many, came, line in raw]
        together = sum(head.weight for _, _, _, head in heads if head)
        shared = all_told and all(head for _, _, _, head in heads)
        waiting = [
            TenantView(
                name,
                many,
                self.age_s(came),
                None if holds is None else in_flight.pop(name, 0),
                head.weight if head else None,
                head.weight / together if head and shared else None,
            )
            for name, many, came, head in heads
        ]
        weights = {line.tenant: line.weight for line in holds or ()}
        holding = [TenantView(name, in_flight=many, weight=weights[name]) for name, many in in_flight.most_common()]
        return [*waiting, *holding[: MOST_TENANTS - len(waiting)]]

    def processes(self, raw: Sequence[bytes], held: Iterable[_Line] | None) -> list[ProcessView]:
        in_flight = None if held is None else Counter(line.process for line in held)
        return [
            ProcessView(
                _shown(name),
                max(0.0, (self._now - float(heard)) / SECOND),
                None if in_flight is None else in_flight[name.decode(errors="replace")],
            )
            for name, heard in zip(raw[::2], raw[1::2], strict=True)
        ]


def _shown(name: bytes) -> str:
    """A name for the screen: what steers a terminal is not passed on."""
    text = name.decode(errors="replace")
    return text if text.isprintable() else ascii(text)[1:-1]


def _per_s(numbers: dict[str, int], rate: str, now: int) -> float:
    counted = EventRate(*(numbers[f"{rate}_{part}"] for part in ("start", "before", "current")))
    counted.count(0, now)
    million = counted.time_for(1_000_000, now)
    return round(1_000_000 * SECOND / million, 1) if million else 0.0


def own_view(turns: Iterable[PermitWaiter], process: str, cap: int, now: float, why: str) -> QueueView:
    """What one process knows by itself of its requests, `now` on the loop's clock."""
    waiting: defaultdict[str, list[float]] = defaultdict(list)
    in_flight: Counter[str] = Counter()
    weights: dict[str, float] = {}
    for turn in turns:
        weights[turn.ticket.tenant] = turn.ticket.weight
        if turn.holds_permit:
            in_flight[turn.ticket.tenant] += 1
        elif not turn.waiting.done():
            waiting[turn.ticket.tenant].append(now - turn.entered)
    together = sum(weights[name] for name in waiting)
    tenants = [
        TenantView(
            name,
            len(waiting.get(name, ())),
            max(waiting.get(name, ()), default=None),
            in_flight[name],
            weights[name],
            weights[name] / together if name in waiting else None,
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
        tenants=tenants[:MOST_TENANTS],
        more_tenants=sum(tenant.waiting > 0 for tenant in tenants[MOST_TENANTS:]),
        more_waiting=sum(tenant.waiting for tenant in tenants[MOST_TENANTS:]),
        processes=[ProcessView(process, 0.0, in_flight.total())],
    )
