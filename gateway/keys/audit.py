"""The audit trail of operators' actions: the newest 10,000 entries, in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

MAX_ENTRIES = 10_000
"""Approximate limit, because Redis trims old entries in blocks. `common.lua` has the same number."""


_READ_AT_ONCE = 1_000


class AuditEntry(NamedTuple):
    """An action in the audit trail."""

    id: str
    at: float  # Unix seconds by Redis' clock
    actor: str
    action: str
    tenant: str
    subject: str
    before: str  # the states as JSON without secrets, or empty
    after: str


# The fields of an entry in Redis. The scripts of keys write the same names (common.lua).
_FIELDS = ("actor", "action", "tenant", "subject", "before", "after")


class AuditTrail:
    """Write and read the audit trail, a stream in Redis. `max_entries` bounds it; the scripts of keys have their own
    bound of the same size."""

    def __init__(self, redis: Redis, key: str, *, max_entries: int = MAX_ENTRIES) -> None:
        self._redis, self._key, self._max_entries = redis, key, max_entries

    async def write(
        self, *, actor: str, action: str, tenant: str, subject: str, before: str = "", after: str = ""
    ) -> None:
        """Write an action before it is carried out. If this raises, do not carry it out. Raises RedisError and OSError.

        `actor` is the name that the operator gives. `action` is noun and verb: `budget.raise`. `subject` is the object
        within the tenant: the id of a key, or empty. The states are JSON without secrets.
        """
        values: dict[Any, Any] = dict(zip(_FIELDS, (actor, action, tenant, subject, before, after), strict=True))
        await self._redis.xadd(self._key, values, maxlen=self._max_entries, approximate=True)

    async def read(
        self, limit: int, *, before_id: str | None = None, tenant: str | None = None
    ) -> Sequence[AuditEntry]:
        """Return entries, newest first, that are older than `before_id`, and those of `tenant`, if given.

        Entries without a tenant concern all tenants, and are among those of each. Raises RedisError and OSError.
        """
        found: list[AuditEntry] = []
        count = limit if tenant is None else max(limit, _READ_AT_ONCE)
        while len(found) < limit:
            newest = "+" if before_id is None else f"({before_id}"
            raw_entries: Any = await self._redis.xrevrange(self._key, max=newest, count=count)
            entries = [_entry(raw_id.decode(), values) for raw_id, values in raw_entries]
            found += [one for one in entries if tenant is None or one.tenant in {tenant, ""}]
            if len(entries) < count:
                break
            before_id = entries[-1].id
        return found[:limit]


def _entry(entry_id: str, values: dict[bytes, bytes]) -> AuditEntry:
    texts = (values.get(name.encode(), b"").decode("utf-8", "replace") for name in _FIELDS)
    return AuditEntry(entry_id, int(entry_id.partition("-")[0]) / 1000, *texts)
