"""Schema of `identities`: rules that give callers with a verified token a tenant, a key id and permissions.

A token is a JSON Web Token of an issuer of config.yaml (keys/identity/). The rules compare its claims. Pure.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeAlias

from pydantic import AfterValidator, Field, PrivateAttr, field_validator

from gateway.config.claims import ClaimConditions, ClaimPath, check_conditions, claim_of, mismatch, typed
from gateway.config.limits import BudgetRule, LimitsRule
from gateway.config.scalars import InvalidValue, Label, RouteName, text_pattern
from gateway.config.yaml_source import StrictModel
from gateway.policy.key_entry import KeyEntry, not_reserved

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_KEY_CHARS = 64
_RULE_ID = re.compile(r"[A-Za-z0-9._-]{1,30}", re.ASCII)
_SAFE = re.compile(r"[A-Za-z0-9._@+-]+", re.ASCII)
_HASH_CHARS = 32
_HASHED = re.compile(r"~[0-9a-f]{32}", re.ASCII)
ALL_CALLERS = "*"
"""The part of a key id after the colon where a rule has no claim `key`: all its callers share one key id."""


def _rule_id(value: str) -> str:
    if not _RULE_ID.fullmatch(value):
        raise InvalidValue("must be 1 to 30 letters, digits or any of . _ -")
    return not_reserved(value)


RuleId: TypeAlias = Annotated[str, AfterValidator(_rule_id), text_pattern(_RULE_ID.pattern)]


class IdentityRule(StrictModel):
    """Callers with a token of an issuer. The first rule of the tenant that matches gives a token its permissions.

    A token that matches rules of several tenants is rejected.
    """

    id: RuleId
    """Name of the rule, unique within the tenant. The key ids of its callers begin with this name and a colon."""
    issuer: Label
    """Name of an issuer in `identity.issuers` of config.yaml."""
    when: Annotated[ClaimConditions, Field(max_length=16)] = Field({})
    """Claims that a token must have, each with one value or a list of alternatives. A dot leads into an object:
    `realm_access.roles`. A claim that is a list must contain a value. Default: all tokens of the issuer."""
    key: ClaimPath | None = None
    """Claim whose value identifies the caller in receipts, limits and budgets, such as `sub`. None: all callers of the
    rule have one id."""
    models: Annotated[tuple[RouteName, ...], Field(min_length=1)] | None = None
    """Models that these callers may use, with their aliases; None: all models of the tenant."""
    limits: LimitsRule | None = None
    """Limits of each key id, in addition to the tenant's; None: the tenant's `key_limits`."""
    budget: BudgetRule | None = None
    """Budget of each key id, in addition to the tenant's; None: the tenant's `key_budget`."""
    _place: str = PrivateAttr("")

    @field_validator("when", mode="before")
    @classmethod
    def _not_empty(cls, when: object) -> object:
        if when is None:
            raise InvalidValue("empty: add a claim, or remove the line: a rule without `when` matches every token")
        return when

    @field_validator("when")
    @classmethod
    def _matches_tokens(cls, when: ClaimConditions) -> ClaimConditions:
        check_conditions(when)
        return when

    @property
    def place(self) -> str:
        """Return the file and line of the rule, for messages; empty without a file."""
        return self._place

    def at(self, place: str) -> IdentityRule:
        """Return a copy with a file and line."""
        rule = self.model_copy()
        rule._place = place  # noqa: SLF001  same class
        return rule

    def mismatch(self, claims: Mapping[str, object]) -> str | None:
        """Return why a token does not match, with names of claims only; None: it matches."""
        return mismatch(self.when, claims)

    def key_id(self, claims: Mapping[str, object]) -> str | None:
        """Return the key id of a token that matches: the rule's id, a colon, and the value of the claim `key`.

        A value that is too long or has other characters is replaced by a hash. No API key has a colon in its id.
        Return None if the claim is missing, or is neither text nor a whole number.
        """
        if self.key is None:
            return f"{self.id}:{ALL_CALLERS}"
        value = claim_of(claims, self.key)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            return None
        text = str(value)
        if len(self.id) + 1 + len(text) <= MAX_KEY_CHARS and _SAFE.fullmatch(text):
            return f"{self.id}:{text}"
        return f"{self.id}:~{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:_HASH_CHARS]}"

    def has_key(self, key_id: str) -> bool:
        """Return whether `key_id` can return this key id."""
        rule_id, _, value = key_id.partition(":")
        if rule_id != self.id:
            return False
        if self.key is None:
            return value == ALL_CALLERS
        return bool((_SAFE.fullmatch(value) and len(key_id) <= MAX_KEY_CHARS) or _HASHED.fullmatch(value))

    def entry(self, key_id: str) -> KeyEntry:
        """Return the permissions of a key id of this rule."""
        return KeyEntry.model_construct(
            id=key_id, sha256="", expires=None, models=self.models, limits=self.limits, budget=self.budget
        )

    def includes(self, other: IdentityRule) -> bool:
        """Return whether every token that matches the other rule matches this one."""
        return self.issuer == other.issuer and all(
            path in other.when and {*map(typed, other.when[path])} <= {*map(typed, values)}
            for path, values in self.when.items()
        )


def is_token_key(key_id: str) -> bool:
    """Return whether a key id is that of a token. No API key has a colon in its id."""
    return ":" in key_id


class IdentityMatch(NamedTuple):
    """The first rule of a tenant that matches a token."""

    tenant: str
    rule: IdentityRule


class TenantIdentities(NamedTuple):
    """The rules of a tenant for one issuer, in order."""

    tenant: str
    rules: tuple[IdentityRule, ...]

    def match(self, claims: Mapping[str, object]) -> IdentityMatch | None:
        """Return the first rule that matches, or None."""
        rule = next((rule for rule in self.rules if rule.mismatch(claims) is None), None)
        return None if rule is None else IdentityMatch(self.tenant, rule)
