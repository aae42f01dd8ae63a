"""What operators did: who, when, what, and how it was before and after. The newest 10,000, in Redis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

MAX_ENTRIES = 10_000
"""About so many: Redis drops old ones in blocks. `keyring/common.lua` has the same number."""
_FIELDS = ("actor", "action", "tenant", "subject", "before", "after")


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One action. `before` and `after` are JSON without secrets, or empty; `at` is Redis' time, in Unix seconds."""

    id: str
    at: float
    actor: str
    action: str
    tenant: str
    subject: str
    before: str
    after: str


class AuditTrail:
    """Args:
    key: the stream's name in Redis.
    """

    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key

    async def write(
        self, *, actor: str, action: str, tenant: str, subject: str, before: str = "", after: str = ""
    ) -> None:
        """Keep an action, before it is done: one that cannot be kept is not done. Raises RedisError and OSError.

        Args:
            actor: who says that he does it.
            action: what is done, as noun and verb: `budget.raise`.
            subject: of what in the tenant: a key's id, or empty.
            before: how it was, as JSON without secrets.
            after: how it is now, likewise.
        """
        values: dict[Any, Any] = dict(zip(_FIELDS, (actor, action, tenant, subject, before, after), strict=True))
        await self._redis.xadd(self._key, values, maxlen=MAX_ENTRIES, approximate=True)

    async def read(self, most: int, *, before_id: str | None = None) -> Sequence[AuditEntry]:
        """The newest first, older than `before_id` if that is given. Raises RedisError and OSError."""
        newest = "+" if before_id is None else f"({before_id}"
        found: Any = await self._redis.xrevrange(self._key, max=newest, count=most)
        return [_entry(raw_id.decode(), values) for raw_id, values in found]


def _entry(entry_id: str, values: dict[bytes, bytes]) -> AuditEntry:
    said = (values.get(name.encode(), b"").decode("utf-8", "replace") for name in _FIELDS)
    return AuditEntry(entry_id, int(entry_id.partition("-")[0]) / 1000, *said)
