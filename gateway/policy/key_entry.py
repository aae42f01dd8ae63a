"""Schema of a key in a policy file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field, field_validator

from gateway.config.limits import BudgetRule, LimitsRule
from gateway.config.scalars import InvalidValue, Label, Moment, RouteName, Usd, text_pattern
from gateway.config.yaml_source import StrictModel
from gateway.policy.labels import KeyLabels

if TYPE_CHECKING:
    from decimal import Decimal

PLAYGROUND = "playground"
"""Key name of playground requests in receipts. No key and no rule may have this name."""

_HEX_64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HASH_OF_NOTHING = sha256(b"").hexdigest()


def not_reserved(value: str) -> str:
    """Return the id of a key or of a rule. Raises InvalidValue for the name of playground requests."""
    if value == PLAYGROUND:
        raise InvalidValue("is reserved for playground requests: choose another id")
    return value


class DeviceRule(StrictModel):
    """A key of an edge device. The device's reports count as savings, up to a bound, though nobody verifies them."""

    max_daily_savings: Usd
    """USD that the key's reports save at most in a day (UTC). A report beyond it is stored and saves nothing."""

    @field_validator("max_daily_savings")
    @classmethod
    def _above_zero(cls, value: Decimal) -> Decimal:
        if not value:
            raise InvalidValue("must be more than 0: if reports of the key should save nothing, remove the rule")
        return value


class KeyEntry(StrictModel):
    """A caller's key: its name for logs, the SHA-256 of the whole key, and its permissions."""

    id: Annotated[Label, AfterValidator(not_reserved)]
    """Name in logs and receipts, unique within the tenant."""
    sha256: Annotated[str, text_pattern("[0-9a-fA-F]{64}")] = Field(repr=False)
    """SHA-256 of the key, 64 hex digits."""
    expires: Moment | None = None
    """Expiry of the key: a date, valid until its end in UTC, or a time."""
    models: Annotated[tuple[RouteName, ...], Field(min_length=1)] | None = None
    """Models that the key may use, with their aliases; None: all models of the tenant."""
    limits: LimitsRule | None = None
    """Limits of this key, in addition to the tenant's; None: the tenant's `key_limits`."""
    budget: BudgetRule | None = None
    """Budget of this key, in addition to the tenant's; None: the tenant's `key_budget`."""
    device: DeviceRule | None = None
    """Marks the key as that of an edge device, whose reports count as savings; None: the tenant's `key_device`."""
    labels: KeyLabels = Field({})
    """Labels of all requests with this key, by name. Neither a header nor the body can replace them."""
    key_hints: ClassVar[Mapping[str, str]] = {
        "key_alias": "here it is called id",
        "duration": "here it is called expires, and is a date or a time",
    }

    @field_validator("sha256")
    @classmethod
    def _is_a_hash(cls, value: str) -> str:
        if not _HEX_64.fullmatch(value.lower()):
            raise InvalidValue(
                "must be the key's SHA-256, 64 hex digits, never the key itself: "
                'printf %s "$KEY" | sha256sum (and if a real key stood here, replace it)'
            )
        if value.lower() == _HASH_OF_NOTHING:
            raise InvalidValue(
                "is the SHA-256 of an empty text: $KEY was empty. Create a key with `gkt-gateway keys create`"
            )
        return value.lower()
