"""All keys of Redis in the memory of one process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gateway.keys.held import HeldKey


class Keyring:
    """Keys by SHA-256 digest, and by tenant and id. No method awaits.

    Args:
        monotonic: returns monotonic seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._by_hash: dict[str, HeldKey] = {}
        self._by_id: dict[tuple[str, str], HeldKey] = {}
        self._redis_s: float | None = None  # Redis' time at the last read
        self._read_at = 0.0

    def __len__(self) -> int:
        return len(self._by_hash)

    def find(self, sha256: str) -> HeldKey | None:
        """Return the key with this digest in hex, or None."""
        return self._by_hash.get(sha256)

    def by_id(self, tenant: str, key_id: str) -> HeldKey | None:
        """Return the key of a tenant with this id, or None."""
        return self._by_id.get((tenant, key_id))

    def all(self) -> Iterator[HeldKey]:
        """Return all keys, including ended keys."""
        return iter(self._by_hash.values())

    def now(self) -> float:
        """Return the time by Redis' clock in Unix seconds, extrapolated from the last read.

        Before the first read, return the local time.
        """
        if self._redis_s is None:
            return time.time()
        return self._redis_s + self._monotonic() - self._read_at

    def age_s(self) -> float | None:
        """Return the seconds since all changes were read; None before the first read."""
        return None if self._redis_s is None else self._monotonic() - self._read_at

    def update(self, keys: Iterable[HeldKey]) -> None:
        """Store new and changed keys."""
        for key in keys:
            old = self._by_hash.get(key.sha256)
            if old is not None and self.by_id(old.tenant, old.id) is old:
                del self._by_id[old.tenant, old.id]
            self._by_hash[key.sha256] = key
            self._by_id[key.tenant, key.id] = key

    def replace_with(self, other: Keyring) -> None:
        """Replace all keys by those of another ring, in constant time. Do not use the other ring afterwards."""
        self._by_hash, self._by_id = other._by_hash, other._by_id

    def mark_read(self, redis_s: float) -> None:
        """Record that all changes up to `redis_s` (Unix seconds by Redis' clock) were read."""
        self._redis_s, self._read_at = redis_s, self._monotonic()
