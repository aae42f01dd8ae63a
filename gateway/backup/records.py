"""What a backup holds, record by record."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Part = Literal["keys", "tenants", "sums"]
"""keys: the callers', and the trail of who did what. tenants: what each has spent, has under way and in its outbox.
sums: what receipts add up to."""
Kind = Literal["string", "hash", "set", "zset", "stream"]


class Place(msgspec.Struct, frozen=True, array_like=True):
    """One key of Redis, whatever `redis.prefix` is. `tenant` is empty where the part is not a tenant's."""

    part: Part
    tenant: str
    name: str


class Held(msgspec.Struct, frozen=True, array_like=True, tag="held"):
    """What one key holds, or a piece of it.

    Attributes:
        expires_ms: when Redis forgets it, in Unix milliseconds; 0: never.
        values: of a string its one value; of a hash fields and values in turn; of a set its members; of a sorted set
            members and scores in turn.
    """

    place: Place
    kind: Kind
    expires_ms: int
    values: list[bytes]


class Entries(msgspec.Struct, frozen=True, array_like=True, tag="entries"):
    """Some entries of a stream: by id its fields and values in turn."""

    place: Place
    entries: list[tuple[bytes, list[bytes]]]


class StreamEnd(msgspec.Struct, frozen=True, array_like=True, tag="stream"):
    """After a stream's entries what it knows beyond them: the last id that it gave, how many entries it ever had."""

    place: Place
    expires_ms: int
    last: bytes
    ever: int
    deleted: bytes


class Receipts(msgspec.Struct, frozen=True, array_like=True, tag="receipts"):
    """Some receipts out of the archive: tenant, entry of its outbox, and the receipt as JSON."""

    receipts: list[tuple[str, str, bytes]]


class Counts(msgspec.Struct, omit_defaults=True):
    """How much a backup holds, or Redis does.

    Attributes:
        keys: callers' keys.
        budgets: of tenants and of their keys.
        waiting: receipts in outboxes, which are not yet added up or archived.
        sums: keys of Redis with sums.
        receipts: of the archive; None: the backup was made without it.
    """

    keys: int = 0
    budgets: int = 0
    waiting: int = 0
    sums: int = 0
    receipts: int | None = None


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """The last record."""

    counts: Counts


Record: TypeAlias = Held | Entries | StreamEnd | Receipts | End


def count(counts: Counts, record: Record) -> None:
    """Add what a record brings."""
    match record:
        case Held(place, "hash", _, values) if place.part == "keys" and place.name == "terms":
            counts.keys += len(values) // 2
        case Held(place, "hash") if place.part == "tenants" and place.name.endswith(":budget"):
            counts.budgets += 1
        case Held(place) if place.part == "sums":
            counts.sums += 1
        case Entries(place, entries) if place.part == "tenants":
            counts.waiting += len(entries)
        case Receipts(receipts):
            counts.receipts = (counts.receipts or 0) + len(receipts)
        case _:
            pass
