"""Read all keys and audit entries from Redis for an export, and add those of an export to Redis."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import StartupError
from gateway.keys.audit import MAX_ENTRIES, AuditTrail
from gateway.keys.export_lines import AuditLine, KeyLine
from gateway.keys.held import HeldKey
from gateway.keys.redis_keyring import MAX_KEYS
from gateway.redis.script import RedisScript

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.redis.keys import RedisKeys

_PER_CALL = 500
_ATTEMPTS = 10
_MICRO = 1_000_000
_AUDIT_FIELDS = AuditLine.__struct_fields__[1:]


class KeyExport:
    """The keys and the audit trail of a deployment. All methods raise RedisError, OSError and StartupError."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis, self._names = redis, keys.keyring()
        self._trail = AuditTrail(redis, self._names.audit)
        self._merged = f"{self._names.audit}:merged"
        self._import = RedisScript(redis, "gateway.keys", "common.lua", "import.lua")
        self._import_audit = RedisScript(redis, "gateway.keys", "import_audit.lua")

    async def keys(self) -> list[KeyLine]:
        """Return all keys, by tenant and id."""
        found: dict[bytes, KeyLine] = {}  # SCAN may return a key twice
        cursor = -1
        while cursor:
            page: Any = await self._redis.hscan(self._names.terms, max(0, cursor), count=_PER_CALL)
            cursor, terms = page
            found |= await self._lines(terms)
        return sorted(found.values(), key=lambda line: (line.key.tenant, line.key.id))

    async def _lines(self, terms: Mapping[bytes, bytes]) -> dict[bytes, KeyLine]:
        if not terms:
            return {}
        hashes = [sha256.decode() for sha256 in terms]
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(self._names.dates, hashes)
            pipe.zmscore(self._names.used, hashes)
            dates, used = await pipe.execute()
        rows = zip(terms.items(), dates, used, strict=True)
        # A key without dates was deleted after the scan.
        return {sha: _line(sha, raw, date, used_us) for (sha, raw), date, used_us in rows if date is not None}

    async def audit(self) -> list[AuditLine]:
        """Return all entries of the audit trail, the oldest first."""
        entries = await self._trail.read(2 * MAX_ENTRIES)
        return [AuditLine(entry.id, *(getattr(entry, name) for name in _AUDIT_FIELDS)) for entry in reversed(entries)]

    async def add_keys(self, lines: Sequence[KeyLine]) -> None:
        """Store keys that Redis lacks."""
        for start in range(0, len(lines), _PER_CALL):
            batch = lines[start : start + _PER_CALL]
            replies = await self._import.run([(list(self._names), _arguments(line)) for line in batch])
            for line, reply in zip(batch, replies, strict=True):
                if reply == b"full":
                    raise StartupError(f"Redis has the maximum of {MAX_KEYS} keys. Not all keys were imported.")
                if reply != b"ok":
                    raise StartupError(f"{line.name} was created during the import. Import the file again.")

    async def add_audit(self, lines: Sequence[AuditLine]) -> None:
        """Add entries to the audit trail in the order of their ids. The next action trims the trail to its maximum."""
        for _ in range(_ATTEMPTS):
            present = await self.audit()
            merged = {line.id: line for line in lines} | {line.id: line for line in present}
            newest = present[-1].id if present else ""
            entries = [_entry(merged[entry_id]) for entry_id in sorted(merged, key=_order)]
            arguments = newest, msgspec.msgpack.encode(entries)
            (is_replaced,) = await self._import_audit.run([([self._names.audit, self._merged], arguments)])
            if is_replaced:
                return
        raise StartupError("The audit trail is being changed all the time. Import again when fewer changes are made.")


def _line(sha256: bytes, terms: bytes, dates: bytes, last_used_us: float | None) -> KeyLine:
    try:
        held = HeldKey.of(sha256, terms, dates)
    except (ValueError, TypeError, AttributeError, msgspec.MsgspecError):
        tenant, key_id, *_ = dates.decode(errors="replace").split("|")
        raise StartupError(
            f"Key '{key_id}' of tenant '{tenant}' is damaged in Redis. Revoke it, and create a new one."
        ) from None
    return KeyLine(held, None if last_used_us is None else last_used_us / _MICRO)


def _arguments(line: KeyLine) -> tuple[bytes | str | int, ...]:
    key = line.key
    name, replaced = (key.sha256, key.tenant, key.id), (key.replaces or "", int(key.replaced))
    created, expires, revoked, used = (
        round((seconds or 0) * _MICRO) for seconds in (key.created_s, key.expires_s, key.revoked_s, line.last_used_s)
    )
    dates = created, expires, revoked, *replaced, used
    return *name, key.terms.to_json(), *dates, secrets.token_hex(8), MAX_KEYS


def _entry(line: AuditLine) -> list[str]:
    return [line.id, *(part for name in _AUDIT_FIELDS for part in (name, getattr(line, name)))]


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)
