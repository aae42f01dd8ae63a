"""One key out of Redis: what it may do, since when and how long."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from gateway.config.limits import BudgetDuration
from gateway.policy.schema import KeyEntry

if TYPE_CHECKING:
    from pydantic import BaseModel

Status: TypeAlias = Literal["active", "grace", "expired", "replaced", "revoked"]
_MICRO = 1_000_000


class KeyTerms(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a key may do, as Redis keeps it. It stays as it was made.

    `limits` and `budget` are in the words of policy files. A term of a later version is not passed over: it may be one
    that takes something away.
    """

    hint: str
    created_by: str
    models: tuple[str, ...] | None = None
    limits: dict[str, Any] | None = None
    budget: dict[str, Any] | None = None

    def to_json(self) -> bytes:
        return _ENCODER.encode(self)


_ENCODER = msgspec.json.Encoder(decimal_format="number")
_DECODER = msgspec.json.Decoder(KeyTerms, float_hook=Decimal)


def policy_fields(rule: BaseModel | None) -> dict[str, Any] | None:
    """Limits or a budget in the words of policy files; money stays Decimal. Only what was said: the rest may change."""
    if rule is None:
        return None
    # Fields of these rules have no aliases and hold no shapes.
    said = {name: getattr(rule, name) for name in type(rule).model_fields if name in rule.model_fields_set}
    return {
        name: str(value) if isinstance(value, BudgetDuration) else value
        for name, value in said.items()
        if value is not None
    }


@dataclass(frozen=True)
class HeldKey:
    """A key as a process holds it. Times are Unix seconds by Redis' clock.

    Attributes:
        replaces: the id of the key whose place it took.
        replaced: whether another key took its place; then `expires_s` ends its grace time.
    """

    sha256: str
    tenant: str
    id: str
    terms: KeyTerms
    created_s: float
    expires_s: float | None
    revoked_s: float | None
    replaces: str | None
    replaced: bool

    @classmethod
    def of(cls, sha256: bytes, terms: bytes, dates: bytes) -> HeldKey:
        """As the scripts tell it. Raises ValueError if that cannot be read."""
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
        """What it may do, as of a key in a policy file. Raises ValueError if this version does not understand it."""
        return KeyEntry.model_validate(
            {
                "id": self.id,
                "sha256": self.sha256,
                "expires": self.expires_s,
                "models": self.terms.models,
                "limits": self.terms.limits,
                "budget": self.terms.budget,
            }
        )

    def status(self, now: float) -> Status:
        """Whether it holds at `now`: it does when it is active or in its grace time."""
        if self.revoked_s is not None:
            return "revoked"
        over = self.expires_s is not None and self.expires_s <= now
        if self.replaced:
            return "replaced" if over else "grace"
        return "expired" if over else "active"
