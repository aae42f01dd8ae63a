"""Read all keys and audit entries from Redis for an export, and add those of an export to Redis."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import StartupError
from gateway.keys.audit import MAX_ENTRIES
from gateway.keys.export_lines import AuditLine, KeyLine
from gateway.keys.held import HeldKey
from gateway.keys.redis_keyring import MAX_KEYS
from gateway.redis.script import RedisScript

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.redis.keys import RedisKeys

_PER_CALL = 500
_MERGED_FOR_S = 600
"""An interrupted import leaves a merged trail in Redis for this time."""
_ATTEMPTS = 10
_MICRO = 1_000_000
_AUDIT_FIELDS = AuditLine.__struct_fields__[1:]


class KeyExport:
    """The keys and the audit trail of a deployment. All methods raise RedisError and OSError."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis, self._names = redis, keys.keyring()
        self._merged = f"{keys.keyring_base}import:{secrets.token_hex(8)}"
        self._import = RedisScript(redis, "gateway.keys", "common.lua", "import.lua")
        self._import_audit = RedisScript(redis, "gateway.keys", "import_audit.lua")

    async def keys(self) -> list[KeyLine]:
        """Return all keys, by tenant and id. Raises StartupError if this version cannot read a key."""
        found: dict[str, KeyLine] = {}
        cursor = 0
        while True:
            page: Any = await self._redis.hscan(self._names.terms, cursor, count=_PER_CALL)
            cursor, terms = page
            found |= {line.sha256: line for line in await self._lines(terms)}
            if not cursor:
                return sorted(found.values(), key=lambda line: (line.tenant, line.id))

    async def _lines(self, terms: Mapping[bytes, bytes]) -> list[KeyLine]:
        if not terms:
            return []
        hashes = [sha256.decode() for sha256 in terms]
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(self._names.dates, hashes)
            pipe.zmscore(self._names.used, hashes)
            dates, used = await pipe.execute()
        rows = zip(terms.items(), dates, used, strict=True)
        # A key without dates was deleted after the scan.
        return [_line(sha, raw, date, last or 0) for (sha, raw), date, last in rows if date is not None]

    async def audit(self) -> list[AuditLine]:
        """Return all entries of the audit trail, the oldest first."""
        lines: list[AuditLine] = []
        after = "-"
        while True:
            entries: Any = await self._redis.xrange(self._names.audit, after, "+", count=_PER_CALL)
            for entry_id, fields in entries:
                values = {name.decode(): value.decode("utf-8", "replace") for name, value in fields.items()}
                lines.append(AuditLine(entry_id.decode(), *(values.get(name, "") for name in _AUDIT_FIELDS)))
            if len(entries) < _PER_CALL:
                return lines
            after = f"({lines[-1].id}"

    async def add_keys(self, lines: Sequence[KeyLine]) -> list[KeyLine]:
        """Store keys. Return those that Redis rejects, since it meanwhile has another key of this name or hash.

        Raises StartupError if Redis has the maximum of keys.
        """
        rejected: list[KeyLine] = []
        for start in range(0, len(lines), _PER_CALL):
            batch = lines[start : start + _PER_CALL]
            replies = await self._import.run([(list(self._names), _arguments(line)) for line in batch])
            if b"full" in replies:
                raise StartupError(f"The limit of {MAX_KEYS} keys is reached. Not all keys were imported.")
            rejected += [line for line, reply in zip(batch, replies, strict=True) if reply != b"ok"]
        return rejected

    async def add_audit(self, lines: Sequence[AuditLine]) -> int:
        """Add entries to the audit trail in the order of their ids. Return the number of added entries.

        Only the newest `MAX_ENTRIES` of the trail are kept. Raises StartupError if the trail does not stop changing.
        """
        for _ in range(_ATTEMPTS):
            present = await self.audit()
            newest = present[-1].id if present else ""
            by_id = {line.id: line for line in lines} | {line.id: line for line in present}
            merged = sorted(by_id.values(), key=lambda line: tuple(map(int, line.id.split("-"))))[-MAX_ENTRIES:]
            added = {line.id for line in merged} - {line.id for line in present}
            if not added:
                return 0
            await self._write_merged(merged)
            (is_replaced,) = await self._import_audit.run([([self._names.audit, self._merged], [newest])])
            if is_replaced:
                return len(added)
        raise StartupError("The audit trail is being changed all the time. Import again when fewer changes are made.")

    async def _write_merged(self, lines: Sequence[AuditLine]) -> None:
        await self._redis.unlink(self._merged)
        for start in range(0, len(lines), _PER_CALL):
            async with self._redis.pipeline(transaction=False) as pipe:
                for line in lines[start : start + _PER_CALL]:
                    fields: Any = {name: getattr(line, name) for name in _AUDIT_FIELDS}
                    pipe.xadd(self._merged, fields, line.id)
                pipe.expire(self._merged, _MERGED_FOR_S)
                await pipe.execute()


def _line(sha256: bytes, terms: bytes, dates: bytes, last_used_us: float) -> KeyLine:
    try:
        held = HeldKey.of(sha256, terms, dates)
    except (ValueError, TypeError, AttributeError, msgspec.MsgspecError):
        tenant, key_id, *_ = dates.decode(errors="replace").split("|")
        raise StartupError(
            f"Key '{key_id}' of tenant '{tenant}' cannot be read by this version of the gateway. Export the keys with "
            "the version that created it."
        ) from None
    return KeyLine(
        held.tenant,
        held.id,
        held.sha256,
        held.terms,
        created_us=_us(held.created_s),
        expires_us=_us(held.expires_s),
        revoked_us=_us(held.revoked_s),
        replaces=held.replaces or "",
        replaced=held.replaced,
        last_used_us=int(last_used_us),
    )


def _us(seconds: float | None) -> int:
    return round((seconds or 0) * _MICRO)


def _arguments(line: KeyLine) -> tuple[bytes | str | int, ...]:
    name = line.sha256, line.tenant, line.id
    dates = line.created_us, line.expires_us, line.revoked_us, line.replaces, int(line.replaced)
    return *name, line.terms.to_json(), *dates, line.last_used_us, secrets.token_hex(8), MAX_KEYS
