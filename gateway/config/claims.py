"""Conditions on the claims of JSON Web Tokens, for rules in policies and config.yaml. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import BeforeValidator, Field, PlainValidator

from gateway.config.scalars import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Claims whose text is a list of words (RFC 6749, RFC 9068).
_WORDS = frozenset({"scope", "scp"})
_VERIFIED = (True, "true")
"""Values of `email_verified` for a verified address. Some issuers send text."""


def _values(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


def _value(value: object) -> str | bool | int:
    if isinstance(value, str | bool | int):
        return value
    raise InvalidValue("must be text, a whole number, true or false")


ClaimPath: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
"""Name of a claim. A dot leads into an object: `realm_access.roles`."""
ClaimValue: TypeAlias = Annotated[str | bool | int, PlainValidator(_value, json_schema_input_type=str | bool | int)]
ClaimValues: TypeAlias = Annotated[
    tuple[ClaimValue, ...],
    BeforeValidator(_values, json_schema_input_type=ClaimValue | Annotated[list[ClaimValue], Field(min_length=1)]),
    Field(min_length=1, max_length=100),
]
"""A value, or a list of alternatives."""
ClaimConditions: TypeAlias = dict[ClaimPath, ClaimValues]
"""Claims that a token must have, all of them. A claim that is a list must contain one of the values."""


def mismatch(conditions: Mapping[str, tuple[str | bool | int, ...]], claims: Mapping[str, object]) -> str | None:
    """Return why claims do not meet the conditions, with names of claims only; None: they do."""
    for path, values in conditions.items():
        found = claim_of(claims, path)
        if found is None:
            return f"there is no claim {path}"
        if not any(_equal(one, value) for one in _members(path, found) for value in values):
            return f"the claim {path} has another value"
    return None


def check_conditions(conditions: Mapping[str, tuple[str | bool | int, ...]]) -> None:
    """Raise InvalidValue for conditions that no token can meet."""
    for path in _WORDS & conditions.keys():
        if not any(isinstance(value, str) and len(value.split()) == 1 for value in conditions[path]):
            raise InvalidValue(f"matches no token: {path} is a list of words, so write each word as a value of its own")
    if "email" in conditions and not any(one in _VERIFIED for one in conditions.get("email_verified", _VERIFIED)):
        raise InvalidValue("matches no token: an email that is not verified counts as absent. Remove one of the two")


def without_unverified_email(claims: Mapping[str, object]) -> Mapping[str, object]:
    """Return the claims without an `email` that its issuer has not verified: persons may have chosen it themselves."""
    if "email" not in claims or claims.get("email_verified", True) in _VERIFIED:
        return claims
    return {name: value for name, value in claims.items() if name != "email"}


def claim_of(claims: Mapping[str, object], path: str) -> object:
    """Return the claim at a path, or None. A claim with dots in its name comes before a claim of an object."""
    if path in claims:
        return claims[path]
    for head, rest in _splits(path):
        nested = claims.get(head)
        if isinstance(nested, dict) and (found := claim_of(nested, rest)) is not None:
            return found
    return None


def typed(value: object) -> tuple[type, object]:
    """Return a value with its type, for comparisons: in Python, 1 equals True."""
    return type(value), value


def _splits(path: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a path before and after each of its dots."""
    return ((path[: dot.start()], path[dot.end() :]) for dot in re.finditer(r"\.", path))


def _members(path: str, found: object) -> list[object]:
    if isinstance(found, list):
        return found
    return [*found.split()] if path in _WORDS and isinstance(found, str) else [found]


def _equal(one: object, other: object) -> bool:
    return typed(one) == typed(other)
