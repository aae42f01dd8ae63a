"""All keys of Redis, in the memory of one process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gateway.keys.held import HeldKey


class Keyring:
    """Found by the SHA-256 of the whole key, and by tenant and id. It awaits nobody.

    Args:
        monotonic: seconds on a clock that goes on evenly.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._by_hash: dict[str, HeldKey] = {}
        self._by_name: dict[tuple[str, str], HeldKey] = {}
        self._redis_s: float | None = None  # Redis' time when it was last read
        self._read_at = 0.0

    def __len__(self) -> int:
        return len(self._by_hash)

    def find(self, sha256: str) -> HeldKey | None:
        return self._by_hash.get(sha256)

    def by_id(self, tenant: str, key_id: str) -> HeldKey | None:
        return self._by_name.get((tenant, key_id))

    def all(self) -> Iterator[HeldKey]:
        """All of them, also those that ended."""
        return iter(self._by_hash.values())

    def now(self) -> float:
        """Redis' time, in Unix seconds. It goes on while Redis is away; this process's own until it was first read."""
        if self._redis_s is None:
            return time.time()
        return self._redis_s + self._monotonic() - self._read_at

    def age_s(self) -> float | None:
        """How long ago all was read that there is; None if it never was."""
        return None if self._redis_s is None else self._monotonic() - self._read_at

    def update(self, keys: Iterable[HeldKey]) -> None:
        """Take in keys that are new, or not as they were."""
        for key in keys:
            before = self._by_hash.get(key.sha256)
            if before is not None and self.by_id(before.tenant, before.id) is before:
                del self._by_name[before.tenant, before.id]
            self._by_hash[key.sha256] = key
            self._by_name[key.tenant, key.id] = key

    def replace_with(self, other: Keyring) -> None:
        """Hold the keys of another ring, which is given up, and no others. It takes no time, however many they are."""
        self._by_hash, self._by_name = other._by_hash, other._by_name

    def mark_read(self, redis_s: float) -> None:
        """All is known that Redis had at that time of its own."""
        self._redis_s, self._read_at = redis_s, self._monotonic()
