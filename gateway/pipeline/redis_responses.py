"""Store, read and delete responses in Redis, by tenant.

Each response is one value, with the whole conversation up to it. A follow-up reads one value, and needs no earlier
response that expired or was deleted. All values of a conversation together have a size quadratic in its length. A
tenant's total size is limited.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, cast

import zstandard

from gateway.protocol.structure import MAX_VALUES, count_values
from gateway.redis.script import RedisScript
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from gateway.policy.stored_responses import StoredResponsesRule
    from gateway.redis.keys import RedisKeys, StoredResponseKeys

SaveResult = Literal["stored", "too_large", "full"]
"""`full`: Redis is short of memory, or the tenant's older responses could not be deleted fast enough."""

_OVERHEAD_BYTES = 512
"""Memory of a response besides its content, about: its names, its entry in `ends`, and Redis' structures."""
_MAX_DELETED = 1000  # responses that one script deletes; 1000 take Redis some milliseconds
_MAX_SCRIPTS = 5
_MIN_COMPRESSED_BYTES = 500
_INLINE_BYTES = 100_000  # compressed or decompressed in less than a millisecond
_LEVEL = 3
_PLAIN, _COMPRESSED = b"\x01", b"\x02"  # first byte of a stored value


class StoredResponse(Record, frozen=True):
    """A response and the input of its model: the items of the conversation up to the response. Both are JSON."""

    response: bytes
    items: bytes


class RedisResponses:
    """Responses in Redis. Every method raises RedisError and OSError."""

    def __init__(self, redis: Redis, keys: RedisKeys, *, max_deleted: int = _MAX_DELETED) -> None:
        self._redis, self._keys, self._max_deleted = redis, keys, max_deleted
        self._save = RedisScript(redis, __package__, "save_response.lua")
        self._delete = RedisScript(redis, __package__, "delete_response.lua")

    async def save(
        self, tenant: str, response_id: str, stored: StoredResponse, rule: StoredResponsesRule
    ) -> SaveResult:
        """Store a response under a new id, and delete the tenant's oldest responses beyond the limit."""
        raw = b"%b\n%b" % (stored.response, stored.items)  # encoded JSON has no line feeds
        if len(raw) > rule.max_response_bytes:
            return "too_large"
        packed = _pack(raw) if len(raw) <= _INLINE_BYTES else await asyncio.to_thread(_pack, raw)
        if packed is None:
            return "too_large"
        keys = self._keys.stored_response(tenant, response_id)
        size, ttl_ms = len(packed) + _OVERHEAD_BYTES, round(1000 * rule.ttl_s)
        arguments = (response_id, packed, ttl_ms, size, rule.max_total_bytes, _prefix(keys, response_id))
        for _ in range(_MAX_SCRIPTS):
            (reply,) = await self._save.run([(list(keys), (*arguments, self._max_deleted))])
            if reply != b"again":
                return cast("SaveResult", reply.decode())
        return "full"

    async def load(self, tenant: str, response_id: str) -> StoredResponse | None:
        """Return a tenant's response, or None if it has none with this id."""
        packed: Any = await self._redis.get(self._keys.stored_response(tenant, response_id).response)
        if packed is None:
            return None
        raw = _unpack(packed) if _size(packed) <= _INLINE_BYTES else await asyncio.to_thread(_unpack, packed)
        response, _, items = raw.partition(b"\n")
        return StoredResponse(response, items)

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Delete a tenant's response. Return False if it has none with this id."""
        keys = self._keys.stored_response(tenant, response_id)
        (deleted,) = await self._delete.run([(list(keys), (response_id, _OVERHEAD_BYTES))])
        return bool(deleted)


def _prefix(keys: StoredResponseKeys, response_id: str) -> str:
    return keys.response.removesuffix(response_id)


def _pack(raw: bytes) -> bytes | None:
    """Return the value for Redis; None if the content has more JSON values than a request may have."""
    if len(raw) < _MIN_COMPRESSED_BYTES:
        return _PLAIN + raw
    if len(raw) > MAX_VALUES and count_values(raw, MAX_VALUES)[1] > MAX_VALUES:
        return None
    return _COMPRESSED + zstandard.ZstdCompressor(_LEVEL).compress(raw)


def _size(packed: bytes) -> int:
    """Return the size of the content of a value."""
    return zstandard.frame_content_size(packed[1:]) if packed[:1] == _COMPRESSED else len(packed) - 1


def _unpack(packed: bytes) -> bytes:
    content = packed[1:]
    return zstandard.ZstdDecompressor().decompress(content) if packed[:1] == _COMPRESSED else content
