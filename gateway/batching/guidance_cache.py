"""Guidance cached in memory for later tickets with the same key."""

from __future__ import annotations

import heapq

# An entry's approximate overhead beside its key and text.
_OVERHEAD_BYTES = 100
_MAX_EXPIRED_EVICTIONS = 20
_MAX_EVICTIONS = 1000


class GuidanceCache:
    """A cache bounded in bytes that evicts the entries that expire first. Times are microseconds."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[str, int]] = {}  # by key: guidance, expiry
        self._bytes = 0

    def __len__(self) -> int:
        """Return the number of entries, expired ones included."""
        return len(self._entries)

    def get(self, key: str, now: int) -> str | None:
        guidance, expires_at = self._entries.get(key, (None, 0))
        return guidance if expires_at > now else None

    def put(self, key: str, guidance: str, expires_at: int, max_bytes: int, now: int) -> None:
        """Store guidance if it fits within `max_bytes`, then evict entries until the cache fits.

        One call evicts few of the entries that have expired: a cache full of them must not block the process.
        """
        self._evict(key)
        size = _size(key, guidance)
        if size <= max_bytes:
            self._entries[key] = guidance, expires_at
            self._bytes += size
        limit = _MAX_EVICTIONS if self._bytes > max_bytes else _MAX_EXPIRED_EVICTIONS
        oldest = heapq.nsmallest(limit, ((end, other) for other, (_, end) in self._entries.items()))
        for evicted, (end, other) in enumerate(oldest):
            may_stay = end > now or evicted >= _MAX_EXPIRED_EVICTIONS
            if may_stay and self._bytes <= max_bytes:
                break
            self._evict(other)

    def _evict(self, key: str) -> None:
        guidance, _ = self._entries.pop(key, (None, 0))
        if guidance is not None:
            self._bytes -= _size(key, guidance)


def _size(key: str, guidance: str) -> int:
    return len(key) + len(guidance.encode()) + _OVERHEAD_BYTES
