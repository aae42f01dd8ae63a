"""Read what a backup holds from Redis and the usage database, while gateways run.

A tenant's budgets, requests under way and outbox are read in one transaction. The usage database is read afterwards: a
receipt that leaves an outbox meanwhile is in both, and a restore keeps it once.

A transaction must name its keys, and SCAN finds those of an earlier moment. A process' intents are there only while it
has any: so what was read of a tenant says which keys must be there as well, and it is read again with those.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.accounting.intent import Intent
from gateway.accounting.scopes import ROLLING
from gateway.backup.places import KeyLocator
from gateway.backup.records import KeyContents, KeyLocation, StreamEnd, StreamEntries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from redis.asyncio import Redis
    from redis.asyncio.client import Pipeline

    from gateway.backup.records import Kind, Record
    from gateway.redis.keys import RedisKeys

_KEYS_PER_SCAN = 1_000
_KEYS_PER_CALL = 200
_VALUES_PER_RECORD = 2_000
_ENTRIES_PER_CALL = 500
_OWNERS, _OUTBOX, _INTENTS = "owners", "outbox", "intents:"
_STREAMS = frozenset({_OUTBOX, "audit"})
_NEVER = (-1, -2)


@dataclass(slots=True)
class KeyInventory:
    """Keys of Redis by tenant, or by part where they belong to none."""

    tenants: dict[str, dict[KeyLocation, None]] = field(default_factory=lambda: defaultdict(dict))
    parts: dict[str, dict[KeyLocation, None]] = field(default_factory=lambda: defaultdict(dict))

    def __len__(self) -> int:
        return sum(map(len, [*self.tenants.values(), *self.parts.values()]))


class _Moment(NamedTuple):
    """Some keys as they were in one moment: what they held, and of streams what is known of them, with their expiry."""

    held: list[tuple[KeyLocation, Kind, Any, Any]]
    streams: list[tuple[KeyLocation, Any, Any]]


class BackupReader:
    """Every method raises RedisError and OSError."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._places = KeyLocator(keys)

    async def inventory(self) -> KeyInventory:
        """Return the keys to read."""
        found = KeyInventory()
        async for raw in self._redis.scan_iter(self._places.pattern, count=_KEYS_PER_SCAN):
            one = self._places.find(raw.decode(errors="replace"))
            if one is None or not one.kept:
                continue
            group = found.tenants[one.place.tenant] if one.place.part == "tenants" else found.parts[one.place.part]
            group[one.place] = None  # SCAN may return a key twice
        return found

    async def redis(self, inventory: KeyInventory, on_progress: Callable[[int], None]) -> AsyncIterator[Record]:
        """Yield all of Redis.

        Args:
            on_progress: gets the number of keys that are read.
        """
        done = 0
        for part in ("keys", "sums"):
            for some in _batched(list(inventory.parts[part]), _KEYS_PER_CALL):
                async for record in self._records(await self._moment(some)):
                    yield record
                done += len(some)
                on_progress(done)
        for tenant, places in inventory.tenants.items():
            async for record in self._records(await self._of_tenant(tenant, places)):
                yield record
            done += len(places)
            on_progress(done)

    async def _of_tenant(self, tenant: str, places: Iterable[KeyLocation]) -> _Moment:
        """Read the keys of a tenant that belong together."""
        asked = {*places, *(KeyLocation("tenants", tenant, name) for name in (_OWNERS, _OUTBOX))}
        while True:
            moment = await self._moment(asked)
            more = {KeyLocation("tenants", tenant, name) for name in _names_in(moment)} - asked
            if not more:
                return moment
            asked |= more

    async def _moment(self, places: Iterable[KeyLocation]) -> _Moment:
        plain: list[KeyLocation] = []
        streams: list[KeyLocation] = []
        for place in places:
            (streams if place.name in _STREAMS else plain).append(place)
        there = [(place, kind) for place, kind in zip(plain, await self._kinds(plain), strict=True) if kind is not None]
        async with self._redis.pipeline(transaction=True) as pipe:
            for place, kind in there:
                pipe.pexpiretime(self._places.key(place))
                _ask(pipe, self._places.key(place), kind)
            for place in streams:
                pipe.pexpiretime(self._places.key(place))
                pipe.xinfo_stream(self._places.key(place))
            told = iter(await pipe.execute(raise_on_error=False))
        held = [(place, kind, next(told), next(told)) for place, kind in there]
        known = [(place, next(told), next(told)) for place in streams]
        return _Moment(held, [one for one in known if not isinstance(one[2], Exception)])

    async def _kinds(self, places: Sequence[KeyLocation]) -> list[Kind | None]:
        """What they are. Those of tenants come and go at any time, and are known by their names."""
        by_name: dict[KeyLocation, Kind | None] = {
            place: "zset" if place.name == _OWNERS else "hash" for place in places if place.part == "tenants"
        }
        others = [place for place in places if place not in by_name]
        async with self._redis.pipeline(transaction=False) as pipe:
            for place in others:
                pipe.type(self._places.key(place))
            told = [_kind(raw) for raw in await pipe.execute()] if others else []
        kinds = {**by_name, **dict(zip(others, told, strict=True))}
        return [kinds[place] for place in places]

    async def _records(self, moment: _Moment) -> AsyncIterator[Record]:
        """What they held; of streams what they hold now of it, some at a time."""
        for place, kind, expires, value in moment.held:
            for held in _held(place, kind, expires, value):
                yield held
        for place, expires, facts in moment.streams:
            async for record in self._stream(place, expires, facts):
                yield record

    async def _stream(self, place: KeyLocation, expires: int, facts: dict[str, Any]) -> AsyncIterator[Record]:
        key, last, after = self._places.key(place), facts["last-generated-id"], b"-"
        while True:
            found: Any = await self._redis.xrange(key, after, last, count=_ENTRIES_PER_CALL)
            if not found:
                break
            yield StreamEntries(place, [(one, _flat(fields)) for one, fields in found])
            after = b"(" + found[-1][0]
        yield StreamEnd(place, _expiry(expires), last, facts["entries-added"], facts["max-deleted-entry-id"])


def _names_in(moment: _Moment) -> Iterator[str]:
    """Which keys a tenant must have: intents of its processes, and the budgets of which those reserved something."""
    for place, _, _, value in moment.held:
        if isinstance(value, Exception):
            continue
        if place.name == _OWNERS:
            yield from (_INTENTS + member.decode() for member, _ in value)
        elif place.name.startswith(_INTENTS):
            for raw in value.values():
                yield from _budgets_of(raw.partition(b"\n")[2])  # before the JSON stands when it was admitted


def _budgets_of(raw: bytes) -> Iterator[str]:
    try:
        charges = Intent.from_json(raw).charges
    except msgspec.MsgspecError:
        return  # of another version
    for charge in charges:
        if charge.budget:
            yield f"{charge.scope}:budget"
            if charge.unit == ROLLING:
                yield f"{charge.scope}:budget:{charge.count}"


def _kind(raw: bytes) -> Kind | None:
    kind: Any = raw.decode()
    return kind if kind in {"string", "hash", "set", "zset"} else None


def _ask(pipe: Pipeline, key: str, kind: Kind) -> None:
    if kind == "string":
        pipe.get(key)
    elif kind == "hash":
        pipe.hgetall(key)
    elif kind == "set":
        pipe.smembers(key)
    else:
        pipe.zrange(key, 0, -1, withscores=True)


def _held(place: KeyLocation, kind: Kind, expires: Any, value: Any) -> Iterator[KeyContents]:
    """What a key holds, in pieces; nothing of one that is gone, or became another's."""
    if not value or isinstance(value, Exception):
        return
    if kind == "string":
        flat = [value]
    elif kind == "hash":
        flat = _flat(value)
    elif kind == "set":
        flat = list(value)
    else:
        flat = [part for member, score in value for part in (member, repr(score).encode())]
    for some in _batched(flat, _VALUES_PER_RECORD):
        yield KeyContents(place, kind, _expiry(expires), list(some))


def _flat(fields: dict[bytes, bytes]) -> list[bytes]:
    return [part for pair in fields.items() for part in pair]


def _expiry(told: int) -> int:
    return 0 if told in _NEVER else told


def _batched(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]
