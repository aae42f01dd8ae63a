"""The records of a backup."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

Part = Literal["keys", "tenants", "sums"]
"""keys: API keys and the audit trail. tenants: budgets, requests in flight and outboxes. sums: keys that belong to no
tenant, including the sums of an earlier version."""
Kind = Literal["string", "hash", "set", "zset", "stream"]


class KeyLocation(msgspec.Struct, frozen=True, array_like=True):
    """A key of Redis, independent of `redis.prefix`. `tenant` is empty except in the part `tenants`."""

    part: Part
    tenant: str
    name: str


class KeyContents(msgspec.Struct, frozen=True, array_like=True, tag="held"):
    """The contents of one key, or a part of them.

    Attributes:
        expires_ms: time of expiry in Unix milliseconds; 0: never.
        values: string: one value; hash: alternating fields and values; set: members; sorted set: alternating members
            and scores.
    """

    location: KeyLocation
    kind: Kind
    expires_ms: int
    values: list[bytes]


class StreamEntries(msgspec.Struct, frozen=True, array_like=True, tag="entries"):
    """A part of the entries of a stream. Each has an id, and alternating fields and values."""

    location: KeyLocation
    entries: list[tuple[bytes, list[bytes]]]


class StreamEnd(msgspec.Struct, frozen=True, array_like=True, tag="stream"):
    """State of a stream after its entries.

    Attributes:
        last: last generated id.
        added: number of entries that were ever added.
        deleted: largest deleted id.
    """

    location: KeyLocation
    expires_ms: int
    last: bytes
    added: int
    deleted: bytes


class ReceiptRecords(msgspec.Struct, frozen=True, array_like=True, tag="receipts"):
    """A part of the receipts of the usage database: tenant, entry id and JSON.

    Tenant and entry id are empty except for unreadable entries, because the JSON of a receipt contains its tenant.
    """

    receipts: list[tuple[str, str, bytes]]


class TableRows(msgspec.Struct, frozen=True, array_like=True, tag="rows"):
    """A part of the rows of a table of the usage database. Values are in the order of the columns."""

    table: str
    rows: list[list[Any]]


class IncompleteSums(msgspec.Struct, frozen=True, array_like=True, tag="sums"):
    """All sums of one period with missing receipts: dimensions and encoded sum."""

    seconds: int
    start: int
    rows: list[tuple[tuple[str, str, str, str, str, str], bytes]]


class BackupCounts(msgspec.Struct, omit_defaults=True):
    """Counts of the contents of a backup or a deployment.

    Attributes:
        keys: API keys.
        budgets: budgets of tenants and of keys.
        waiting: receipts in outboxes that no usage worker has written yet.
        sums: keys of Redis that belong to no tenant.
        receipts: receipts in the usage database; None: the backup omits the usage database.
        rows: other rows of the usage database: comparisons, uptime of engines, and sums older than all receipts.
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
    """Add the contents of a record to `counts`."""
    match record:
        case KeyContents(location, "hash", _, values) if location.part == "keys" and location.name == "terms":
            counts.keys += len(values) // 2
        case KeyContents(location, "hash") if location.part == "tenants" and location.name.endswith(":budget"):
            counts.budgets += 1
        case KeyContents(location) if location.part == "sums":
            counts.sums += 1
        case StreamEntries(location, entries) if location.part == "tenants":
            counts.waiting += len(entries)
        case ReceiptRecords(receipts):
            counts.receipts = (counts.receipts or 0) + len(receipts)
        case TableRows(_, rows) | IncompleteSums(_, _, rows):
            counts.rows += len(rows)
        case _:
            pass
