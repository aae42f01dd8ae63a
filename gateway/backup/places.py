"""Decide which keys of Redis belong to a backup. Pure.

Short-lived keys do not: scheduler state, limits per minute, leases, and receipts that callers can still request (the
usage database has them, too).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.backup.records import KeyLocation
from gateway.redis.keys import KeyringKeys, RedisKeys

if TYPE_CHECKING:
    from gateway.backup.records import Part

_KEYRING = frozenset(KeyringKeys._fields)
_TENANT = re.compile(r"(?:tenant|key:.+):budget(?::\d+)?|intents:.+|owners|outbox")
_SUMS = frozenset({"tenants", "leaving", "state", "cursors"})
_DAYS = re.compile(r"(?:up|looked|quality_spent|rates):.+")
# Together with `state` and `cursors`, until `gkt-gateway usage-db migrate` has moved them.
_PREVIOUS_SUMS = re.compile(r"(?:g\d+:)?(?:rows|total|seen):.+")


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A key of this deployment in Redis.

    Attributes:
        kept: whether a backup contains the key. A restore also deletes the other keys.
    """

    location: KeyLocation
    kept: bool


class KeyLocator:
    """Map names of Redis keys to locations, and back.

    Args:
        keys: names of this version. Keys of other layouts are ignored.
    """

    def __init__(self, keys: RedisKeys) -> None:
        self._keys = keys
        self._bases: dict[Part, str] = {"keys": keys.keyring_base, "sums": keys.ledger_base}
        before, _, after = keys.tenant_base("\0").partition("\0")
        self._tenant = re.compile(re.escape(before) + "(.+?)" + re.escape(after) + "(.+)", re.DOTALL)
        self._alive = keys.heartbeat("")
        self._worker = keys.ledger_base + "worker:"

    @property
    def pattern(self) -> str:
        """Return a SCAN pattern that matches at least all keys of `find` and `is_heartbeat`."""
        return f"*{self._escaped}:*"

    @property
    def receipts(self) -> str:
        """Return a SCAN pattern for receipts that callers can still request."""
        return RedisKeys(self._escaped).receipt("*", "*")

    @property
    def _escaped(self) -> str:
        return re.sub(r"([\\*?\[\]^-])", r"\\\1", self._keys.prefix)

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
        return key.startswith((self._alive, self._worker))

    def key(self, location: KeyLocation) -> str:
        """Return the name of the key in Redis."""
        base = self._keys.tenant_base(location.tenant) if location.part == "tenants" else self._bases[location.part]
        return base + location.name


def _is_kept(part: Part, name: str) -> bool:
    if part == "keys":
        return name in _KEYRING
    return name in _SUMS or any(pattern.fullmatch(name) is not None for pattern in (_DAYS, _PREVIOUS_SUMS))
