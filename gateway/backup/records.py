"""The records of a backup."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

Part = Literal["keys", "tenants", "sums"]
"""keys: callers' keys and the audit trail. tenants: budgets, requests under way and outboxes. sums: keys over all
tenants; of an earlier version also its sums."""
Kind = Literal["string", "hash", "set", "zset", "stream"]


class KeyLocation(msgspec.Struct, frozen=True, array_like=True):
    """One key of Redis, whatever `redis.prefix` is. `tenant` is empty where the part is not a tenant's."""

    part: Part
    tenant: str
    name: str


class KeyContents(msgspec.Struct, frozen=True, array_like=True, tag="held"):
    """What one key holds, or a piece of it.

    Attributes:
        expires_ms: when Redis forgets it, in Unix milliseconds; 0: never.
        values: of a string its one value; of a hash fields and values in turn; of a set its members; of a sorted set
            members and scores in turn.
    """

    place: KeyLocation
    kind: Kind
    expires_ms: int
    values: list[bytes]


class StreamEntries(msgspec.Struct, frozen=True, array_like=True, tag="entries"):
    """Some entries of a stream: by id its fields and values in turn."""

    place: KeyLocation
    entries: list[tuple[bytes, list[bytes]]]


class StreamEnd(msgspec.Struct, frozen=True, array_like=True, tag="stream"):
    """After a stream's entries what it knows beyond them: the last id that it gave, how many entries it ever had."""

    place: KeyLocation
    expires_ms: int
    last: bytes
    ever: int
    deleted: bytes


class ReceiptRecords(msgspec.Struct, frozen=True, array_like=True, tag="receipts"):
    """Some receipts of the usage database as JSON, each with its tenant and the entry of its outbox.

    Both are empty for receipts that this version can read, as their JSON has the tenant.
    """

    receipts: list[tuple[str, str, bytes]]


class TableRows(msgspec.Struct, frozen=True, array_like=True, tag="rows"):
    """Some rows of a table of the usage database, in the order of its columns."""

    table: str
    rows: list[list[Any]]


class IncompleteSums(msgspec.Struct, frozen=True, array_like=True, tag="sums"):
    """All sums of one period of which not all receipts are there: their dimensions, and an encoded sum."""

    seconds: int
    start: int
    rows: list[tuple[tuple[str, str, str, str, str, str], bytes]]


class BackupCounts(msgspec.Struct, omit_defaults=True):
    """Counts of what a backup, or a deployment, holds.

    Attributes:
        keys: callers' keys.
        budgets: of tenants and of their keys.
        waiting: receipts in outboxes, which no usage worker has written yet.
        sums: keys of Redis that belong to no tenant.
        receipts: in the usage database; None: the backup was made without it.
        rows: other rows of the usage database: comparisons, uptime of engines, and sums that are older than receipts.
    """

    keys: int = 0
    budgets: int = 0
    waiting: int = 0
    sums: int = 0
    receipts: int | None = None
    rows: int = 0


class EndRecord(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """The last record."""

    counts: BackupCounts


Record: TypeAlias = KeyContents | StreamEntries | StreamEnd | ReceiptRecords | TableRows | IncompleteSums | EndRecord


def count(counts: BackupCounts, record: Record) -> None:
    """Add the contents of a record."""
    match record:
        case KeyContents(place, "hash", _, values) if place.part == "keys" and place.name == "terms":
            counts.keys += len(values) // 2
        case KeyContents(place, "hash") if place.part == "tenants" and place.name.endswith(":budget"):
            counts.budgets += 1
        case KeyContents(place) if place.part == "sums":
            counts.sums += 1
        case StreamEntries(place, entries) if place.part == "tenants":
            counts.waiting += len(entries)
        case ReceiptRecords(receipts):
            counts.receipts = (counts.receipts or 0) + len(receipts)
        case TableRows(_, rows) | IncompleteSums(_, _, rows):
            counts.rows += len(rows)
        case _:
            pass
