"""Which of what stands in Redis belongs to a backup. Pure.

What lives for a request or a lease alone does not: boards, limits by the minute, leases, receipts that callers can
still ask for (the archive has those).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from gateway.backup.records import Place
from gateway.redis_keys import KeyringKeys, RedisKeys

if TYPE_CHECKING:
    from gateway.backup.records import Part

_KEYRING = frozenset(part.name for part in fields(KeyringKeys))
_TENANT = re.compile(r"(?:tenant|key:.+):budget(?::\d+)?|intents:.+|owners|outbox")
_SUMS = frozenset({"tenants", "state", "cursors", "latest", "archived", "counted", "leaving"})
_DAYS = re.compile(r"(?:up|looked|quality|quality_spent|rates):.+")
_ROWS = re.compile(r"(?:g(\d+):)?(?:rows|total|seen):.+")


@dataclass(frozen=True, slots=True)
class Found:
    """A key of Redis of this deployment. `kept`: whether it belongs to a backup, and not only where one would go."""

    place: Place
    kept: bool


class Places:
    """Args:
    keys: the names as this version writes them. What another layout left behind is nobody's.
    """

    def __init__(self, keys: RedisKeys) -> None:
        self._keys = keys
        self._bases: dict[Part, str] = {"keys": keys.keyring_base, "sums": keys.ledger_base}
        before, _, after = keys.tenant_base("\0").partition("\0")
        self._tenant = re.compile(re.escape(before) + "(.+?)" + re.escape(after) + "(.+)", re.DOTALL)
        self._alive = keys.heartbeat("")

    @property
    def pattern(self) -> str:
        """For SCAN: finds all that `find` and `is_heartbeat` know, and more."""
        return f"*{self._escaped}:*"

    @property
    def receipts(self) -> str:
        """For SCAN: receipts that callers can still ask for."""
        return RedisKeys(self._escaped).receipt("*", "*")

    @property
    def _escaped(self) -> str:
        return re.sub(r"([\\*?\[\]^-])", r"\\\1", self._keys.prefix)

    def find(self, key: str, generation: int = 0) -> Found | None:
        """What a key of Redis is; None where it is of no part.

        Args:
            generation: of rows, the one that is read.
        """
        for part, base in self._bases.items():
            if key.startswith(base):
                name = key.removeprefix(base)
                return Found(Place(part, "", name), _is_kept(part, name, generation))
        if (found := self._tenant.fullmatch(key)) is not None:
            return Found(Place("tenants", found[1], found[2]), _TENANT.fullmatch(found[2]) is not None)
        return None

    def is_heartbeat(self, key: str) -> bool:
        """Whether it says that a gateway runs."""
        return key.startswith(self._alive)

    def key(self, place: Place) -> str:
        """The name in Redis."""
        base = self._keys.tenant_base(place.tenant) if place.part == "tenants" else self._bases[place.part]
        return base + place.name


def _is_kept(part: Part, name: str, generation: int) -> bool:
    if part == "keys":
        return name in _KEYRING
    if (rows := _ROWS.fullmatch(name)) is not None:
        return int(rows[1] or 0) == generation
    return name in _SUMS or _DAYS.fullmatch(name) is not None
