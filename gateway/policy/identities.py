"""Schema of `identities`: rules that give callers with a verified token a tenant, a key id and permissions.

A token is a JSON Web Token of an issuer of config.yaml (identity/). The rules compare its claims. Pure.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, PrivateAttr, field_validator

from gateway.config.limits import BudgetRule, LimitsRule
from gateway.config.scalars import InvalidValue, Label, RouteName, text_pattern
from gateway.config.yaml_source import StrictModel
from gateway.policy.key_entry import not_reserved

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_KEY_CHARS = 64
_RULE_ID = re.compile(r"[A-Za-z0-9._-]{1,30}", re.ASCII)
_SAFE = re.compile(r"[A-Za-z0-9._@+-]+", re.ASCII)
_HASH_CHARS = 32
# Claims whose text is a list of words (RFC 6749, RFC 9068).
_WORDS = frozenset({"scope", "scp"})


def _rule_id(value: str) -> str:
    if not _RULE_ID.fullmatch(value):
        raise InvalidValue("must be 1 to 30 letters, digits or any of . _ -")
    return not_reserved(value)


def _values(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


def _value(value: object) -> str | bool | int:
    if isinstance(value, str | bool | int):
        return value
    raise InvalidValue("must be text, a whole number, true or false")


RuleId: TypeAlias = Annotated[str, AfterValidator(_rule_id), text_pattern(_RULE_ID.pattern)]
ClaimPath: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
_Value: TypeAlias = Annotated[str | bool | int, PlainValidator(_value, json_schema_input_type=str | bool | int)]
_Values: TypeAlias = Annotated[
    tuple[_Value, ...],
    BeforeValidator(_values, json_schema_input_type=_Value | Annotated[list[_Value], Field(min_length=1)]),
    Field(min_length=1, max_length=100),
]


class IdentityRule(StrictModel):
    """Callers with a token of an issuer. The first rule of the tenant that matches gives a token its permissions.

    A token that matches rules of several tenants is rejected.
    """

    id: RuleId
    """Name of the rule, unique within the tenant. The key ids of its callers begin with this name and a colon."""
    issuer: Label
    """Name of an issuer in `identity.issuers` of config.yaml."""
    when: Annotated[dict[ClaimPath, _Values], Field(max_length=16)] = Field({})
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
        for path, values in self.when.items():
            found = claim_of(claims, path)
            if found is None:
                return f"there is no claim {path}"
            if not any(_equal(one, value) for one in _members(path, found) for value in values):
                return f"the claim {path} has another value"
        return None

    def key_id(self, claims: Mapping[str, object]) -> str | None:
        """Return the key id of a token that matches: the rule's id, a colon, and the value of the claim `key`.

        A value that is too long or has other characters is replaced by a hash. No API key has a colon in its id.
        Return None if the claim is missing, or is neither text nor a whole number.
        """
        if self.key is None:
            return f"{self.id}:*"
        value = claim_of(claims, self.key)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            return None
        text = str(value)
        if len(self.id) + 1 + len(text) <= MAX_KEY_CHARS and _SAFE.fullmatch(text):
            return f"{self.id}:{text}"
        return f"{self.id}:~{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:_HASH_CHARS]}"

    def includes(self, other: IdentityRule) -> bool:
        """Return whether every token that matches the other rule matches this one."""
        return self.issuer == other.issuer and all(
            path in other.when and {*map(typed, other.when[path])} <= {*map(typed, values)}
            for path, values in self.when.items()
        )


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


def claim_of(claims: Mapping[str, object], path: str) -> object:
    """Return the claim at a path, or None. A claim with dots in its name comes before a claim of an object."""
    if path in claims:
        return claims[path]
    for head, rest in _splits(path):
        nested = claims.get(head)
        if isinstance(nested, dict) and (found := claim_of(nested, rest)) is not None:
            return found
    return None


def _splits(path: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a path before and after each of its dots."""
    return ((path[: dot.start()], path[dot.end() :]) for dot in re.finditer(r"\.", path))


def _members(path: str, found: object) -> list[object]:
    if isinstance(found, list):
        return found
    return [*found.split()] if path in _WORDS and isinstance(found, str) else [found]


def _equal(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


def typed(value: object) -> tuple[type, object]:
    """Return a value with its type, for comparisons: in Python, 1 equals True."""
    return type(value), value
