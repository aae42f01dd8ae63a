"""Decide which keys of Redis belong to a backup. Pure.

Keys that live for a request or a lease do not: boards, limits by the minute, leases, and receipts that callers can
still request (the usage database has those).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from gateway.backup.records import KeyLocation
from gateway.redis.keys import KeyringKeys, RedisKeys

if TYPE_CHECKING:
    from gateway.backup.records import Part

_KEYRING = frozenset(part.name for part in fields(KeyringKeys))
_TENANT = re.compile(r"(?:tenant|key:.+):budget(?::\d+)?|intents:.+|owners|outbox")
_SUMS = frozenset({"tenants", "leaving", "state", "cursors"})
_DAYS = re.compile(r"(?:up|looked|quality_spent|rates):.+")
# With `state` and `cursors`, until `gkt-gateway usage-db migrate` has taken them.
_PREVIOUS_SUMS = re.compile(r"(?:g\d+:)?(?:rows|total|seen):.+")


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A key of Redis of this deployment. `kept`: whether a backup holds it. A restore deletes the others too."""

    place: KeyLocation
    kept: bool


class KeyLocator:
    """Args:
    keys: the names as this version writes them. What another layout left behind is nobody's.
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
        """Return a pattern for SCAN that matches all keys of `find` and `is_heartbeat`, and more."""
        return f"*{self._escaped}:*"

    @property
    def receipts(self) -> str:
        """Return a pattern for SCAN: receipts that callers can still request."""
        return RedisKeys(self._escaped).receipt("*", "*")

    @property
    def _escaped(self) -> str:
        return re.sub(r"([\\*?\[\]^-])", r"\\\1", self._keys.prefix)

    def find(self, key: str) -> FoundKey | None:
        """Return the place of a key of Redis; None where it belongs to no part."""
        for part, base in self._bases.items():
            if key.startswith(base):
                name = key.removeprefix(base)
                return FoundKey(KeyLocation(part, "", name), _is_kept(part, name))
        if (found := self._tenant.fullmatch(key)) is not None:
            return FoundKey(KeyLocation("tenants", found[1], found[2]), _TENANT.fullmatch(found[2]) is not None)
        return None

    def is_heartbeat(self, key: str) -> bool:
        """Return whether a key says that a gateway or a usage worker runs."""
        return key.startswith((self._alive, self._worker))

    def key(self, place: KeyLocation) -> str:
        """Return the name in Redis."""
        base = self._keys.tenant_base(place.tenant) if place.part == "tenants" else self._bases[place.part]
        return base + place.name


def _is_kept(part: Part, name: str) -> bool:
    if part == "keys":
        return name in _KEYRING
    return name in _SUMS or any(pattern.fullmatch(name) is not None for pattern in (_DAYS, _PREVIOUS_SUMS))
