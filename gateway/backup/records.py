"""The records of a backup, and the keys of Redis that belong to it.

Short-lived keys do not: scheduler state, limits per minute, leases, and receipts that callers can still request (the
usage database has them, too).
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from gateway.redis.keys import KeyringKeys, RedisKeys

Part = Literal["keys", "tenants", "sums"]
"""keys: API keys, switched-off guidance and the audit trail. tenants: budgets, requests in flight and outboxes.
sums: keys that belong to no tenant."""
Kind = Literal["string", "hash", "set", "zset", "stream"]


class KeyLocation(msgspec.Struct, frozen=True, array_like=True):
    """A key of Redis, independent of `redis.prefix`. `tenant` is empty except in the part `tenants`."""

    part: Part
    tenant: str
    name: str


class KeyContents(msgspec.Struct, frozen=True, array_like=True, tag="held"):
    """The contents of one key, or a part of them. `values`: one value of a string, alternating fields and values of a
    hash, members of a set, alternating members and scores of a sorted set."""

    location: KeyLocation
    kind: Kind
    expires_ms: int  # time of expiry in Unix milliseconds; 0: never
    values: list[bytes]


class StreamEntries(msgspec.Struct, frozen=True, array_like=True, tag="entries"):
    """A part of the entries of a stream. Each has an id, and alternating fields and values."""

    location: KeyLocation
    entries: list[tuple[bytes, list[bytes]]]


class StreamEnd(msgspec.Struct, frozen=True, array_like=True, tag="stream"):
    """State of a stream after its entries."""

    location: KeyLocation
    expires_ms: int
    last: bytes
    added: int  # number of entries that were ever added
    deleted: bytes  # largest deleted id


class ReceiptRecords(msgspec.Struct, frozen=True, array_like=True, tag="receipts"):
    """A part of the receipts of the usage database: tenant, entry id and JSON. Tenant and entry id are empty except for
    unreadable entries, because the JSON of a receipt contains its tenant."""

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
    """Counts of the contents of a backup or a deployment."""

    keys: int = 0
    budgets: int = 0  # budgets of tenants and of keys
    waiting: int = 0  # receipts in outboxes that no usage worker has written yet
    sums: int = 0  # keys of Redis that belong to no tenant
    receipts: int | None = None  # receipts in the usage database; None: the backup omits the usage database
    rows: int = 0  # other rows of the usage database: comparisons, uptime of engines, and sums older than all receipts


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


_KEYRING = frozenset({*KeyringKeys._fields, "guidance_off"})
_TENANT = re.compile(r"(?:tenant|(?:key|label):.+):budget(?::\d+)?|intents:.+|owners|outbox|token_budgets")
_SUMS = frozenset({"tenants", "leaving"})
_DAYS = re.compile(r"(?:up|looked|quality_spent|rates):.+")


class FoundKey(NamedTuple):
    """A key of this deployment in Redis."""

    location: KeyLocation
    kept: bool  # whether a backup contains the key. A restore also deletes the other keys.


class KeyLocator:
    """Map names of Redis keys of this version to locations, and back.

    The SCAN pattern `pattern` matches at least all keys of `find` and `is_heartbeat`, and `receipts` the receipts that
    callers can still request.
    """

    def __init__(self, keys: RedisKeys) -> None:
        self._keys = keys
        self._bases: dict[Part, str] = {"keys": keys.keyring_base, "sums": keys.ledger_base}
        before, _, after = keys.tenant_base("\0").partition("\0")
        self._tenant = re.compile(re.escape(before) + "(.+?)" + re.escape(after) + "(.+)", re.DOTALL)
        self._heartbeats = keys.heartbeat(""), keys.ledger_base + "worker:"
        escaped = re.sub(r"([\\*?\[\]^-])", r"\\\1", keys.prefix)
        self.pattern, self.receipts = f"*{escaped}:*", RedisKeys(escaped).receipt("*", "*")

    def find(self, key: str) -> FoundKey | None:
        """Return the location of a Redis key, or None if it belongs to no part."""
        for part, base in self._bases.items():
            if key.startswith(base):
                name = key.removeprefix(base)
                return FoundKey(KeyLocation(part, "", name), _is_kept(part, name))
        if (match := self._tenant.fullmatch(key)) is not None:
            return FoundKey(KeyLocation("tenants", match[1], match[2]), _TENANT.fullmatch(match[2]) is not None)
        return None

    def is_heartbeat(self, key: str) -> bool:
        """Return whether a key is the heartbeat of a gateway or usage worker."""
        return key.startswith(self._heartbeats)

    def key(self, location: KeyLocation) -> str:
        """Return the name of the key in Redis."""
        base = self._keys.tenant_base(location.tenant) if location.part == "tenants" else self._bases[location.part]
        return base + location.name


def _is_kept(part: Part, name: str) -> bool:
    if part == "keys":
        return name in _KEYRING
    return name in _SUMS or _DAYS.fullmatch(name) is not None
