"""Keys from Redis in the memory of one process: their permissions and dates."""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec

from gateway.config.limits import BudgetDuration
from gateway.policy.key_entry import KeyEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydantic import BaseModel

Status: TypeAlias = Literal["active", "grace", "expired", "replaced", "revoked"]
_MICRO = 1_000_000
_Sha256: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_EndS: TypeAlias = Annotated[float, msgspec.Meta(ge=1)]  # Redis has 0 for a key without an end


class KeyTerms(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Permissions of a key as stored in Redis. They never change.

    `limits` and `budget` have the fields of policy files. Unknown fields of a later version are an error, because
    ignoring them might grant too much.
    """

    hint: str
    created_by: str
    models: tuple[str, ...] | None = None
    limits: dict[str, Any] | None = None
    budget: dict[str, Any] | None = None
    labels: dict[str, str] = {}

    def to_json(self) -> bytes:
        return _ENCODER.encode(self)


_ENCODER = msgspec.json.Encoder(decimal_format="number")
_DECODER = msgspec.json.Decoder(KeyTerms, float_hook=Decimal)


def policy_fields(rule: BaseModel | None) -> dict[str, Any] | None:
    """Return limits or a budget with the fields of policy files. Money stays Decimal.

    Defaults are omitted, because they may change. Fields of these rules have no aliases and no nested models.
    """
    if rule is None:
        return None
    explicit = {name: getattr(rule, name) for name in type(rule).model_fields if name in rule.model_fields_set}
    return {
        name: str(value) if isinstance(value, BudgetDuration) else value
        for name, value in explicit.items()
        if value is not None
    }


@dataclass(frozen=True)
class HeldKey:
    """A key in memory. Times are Unix seconds by Redis' clock."""

    sha256: _Sha256
    tenant: str
    id: str
    terms: KeyTerms
    created_s: float
    expires_s: _EndS | None
    revoked_s: _EndS | None
    replaces: str | None  # id of the key that this key replaced by rotation
    replaced: bool  # by another key; then `expires_s` is the end of the grace period

    @classmethod
    def of(cls, sha256: bytes, terms: bytes, dates: bytes) -> HeldKey:
        """Decode a key from the reply of a script. Raises ValueError."""
        tenant, key_id, created, expires, revoked, replaces, replaced = dates.decode().split("|")
        return cls(
            sha256.decode(),
            tenant,
            key_id,
            _DECODER.decode(terms),
            int(created) / _MICRO,
            int(expires) / _MICRO or None,
            int(revoked) / _MICRO or None,
            replaces or None,
            replaced == "1",
        )

    @cached_property
    def entry(self) -> KeyEntry:
        """Return the key as an entry of a policy file. Raises ValueError if this version cannot read its terms."""
        return KeyEntry.model_validate(
            {
                "id": self.id,
                "sha256": self.sha256,
                "expires": self.expires_s,
                "models": self.terms.models,
                "limits": self.terms.limits,
                "budget": self.terms.budget,
                "labels": self.terms.labels,
            }
        )

    def status(self, now: float) -> Status:
        """Return the status at `now` (Unix seconds). The key is valid while `active` or in `grace`."""
        if self.revoked_s is not None:
            return "revoked"
        over = self.expires_s is not None and self.expires_s <= now
        if self.replaced:
            return "replaced" if over else "grace"
        return "expired" if over else "active"


class Keyring:
    """Keys by SHA-256 digest, and by tenant and id. No method awaits."""

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
        """Return the time by Redis' clock in Unix seconds, extrapolated from the last read; else the local time."""
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
