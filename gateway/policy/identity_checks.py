"""Check the identities of all policies against each other and against the issuers of config.yaml."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from gateway.config.claims import typed
from gateway.config.yaml_messages import nearest
from gateway.policy.identities import TenantIdentities

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gateway.config.yaml_messages import Loc
    from gateway.config.yaml_source import YamlSource
    from gateway.errors import ConfigIssue
    from gateway.policy.identities import IdentityRule
    from gateway.policy.schema import TenantPolicy

_Key: TypeAlias = tuple[str, str | None, tuple[type, object]]  # an issuer, a claim, and one of its values


class _Placed(NamedTuple):
    """A rule with its place: the number of its file, and its position there."""

    file: int
    position: int
    rule: IdentityRule
    source: YamlSource

    @property
    def loc(self) -> Loc:
        return ("identities", self.position)


def identities_by_issuer(policies: Iterable[TenantPolicy]) -> Mapping[str, tuple[TenantIdentities, ...]]:
    """Return the rules of each issuer's tokens, by tenant, in the order of the files."""
    found: dict[str, dict[str, list[IdentityRule]]] = {}
    for policy in policies:
        for rule in policy.identities:
            found.setdefault(rule.issuer, {}).setdefault(policy.tenant, []).append(rule)
    return {
        issuer: tuple(TenantIdentities(tenant, tuple(rules)) for tenant, rules in tenants.items())
        for issuer, tenants in found.items()
    }


def with_places(policy: TenantPolicy, places: Sequence[str]) -> TenantPolicy:
    """Return a copy whose identities know their files and lines."""
    placed = [rule.at(place) for rule, place in zip(policy.identities, places, strict=True)]
    return policy.model_copy(update={"identities": tuple(placed)})


def check_identities(
    policies: Iterable[tuple[TenantPolicy, YamlSource]], issuers: Mapping[str, str] | None
) -> Iterator[ConfigIssue]:
    """Yield the issues of the identities of valid policy files.

    Args:
        policies: each policy with its file.
        issuers: URLs of the issuers of config.yaml by name; None: unknown, so they are not checked.
    """
    placed = [
        _Placed(file, position, rule, source)
        for file, (policy, source) in enumerate(policies)
        for position, rule in enumerate(policy.identities)
    ]
    ids: dict[tuple[int, str], int] = {}
    for one in placed:
        name = one.rule.issuer
        if issuers is not None and name not in issuers:
            hint = nearest(name, issuers)
            known = "" if hint else f"; known: {', '.join(issuers) or 'none, add it under identity.issuers'}"
            yield one.source.issue((*one.loc, "issuer"), f"no issuer in config.yaml is called '{name}'{known}", hint)
        elif issuers is not None and issuers[name] not in one.rule.when.get("iss", (issuers[name],)):
            message = f"matches no token: tokens of issuer '{name}' have the claim iss {issuers[name]}. Remove iss"
            yield one.source.issue((*one.loc, "when", "iss"), message)
        if (first := ids.setdefault((one.file, one.rule.id), one.position)) != one.position:
            message = f"identities[{first}] has id {one.rule.id} too: ids must be unique"
            yield one.source.issue((*one.loc, "id"), message)
    for one, other in _included(placed):
        yield _overlap(one, other)


def _overlap(one: _Placed, other: _Placed) -> ConfigIssue:
    """Return the issue of a rule of whose tokens the other rule matches all."""
    field = "when" if one.rule.when else "issuer"
    if one.file == other.file:
        message = f"never used: identities[{other.position}] matches each of these tokens already"
    else:
        where = f"identities[{other.position}] of {other.source.file}"
        message = f"never used: {where} matches each of these tokens too, and a token of two tenants is rejected"
        message += ": add a claim to that rule" if other.rule.when else ": that rule needs `when`"
    return one.source.issue((*one.loc, field), message)


def _included(placed: list[_Placed]) -> Iterator[tuple[_Placed, _Placed]]:
    """Yield each rule that has no token of its own, with the first rule that matches all its tokens.

    In one file, only an earlier rule counts. Of two rules of different files for the same tokens, the later one is
    yielded. Each rule is indexed by the values of its rarest claim, so thousands of rules need few comparisons.
    """
    uses = Counter(key for one in placed for path in one.rule.when for key in _keys(one.rule, path))
    by_value: dict[_Key, list[_Placed]] = defaultdict(list)
    for one in placed:
        rule = one.rule
        rarest = min(rule.when, key=lambda path: sum(uses[key] for key in _keys(rule, path)), default=None)
        for key in _keys(rule, rarest):
            by_value[key].append(one)
    for one in placed:
        keys = [_keys(one.rule, path)[0] for path in (None, *one.rule.when)]
        others = (other for key in keys for other in by_value.get(key, ()))
        found = next((other for other in others if _hides(other, one)), None)
        if found is not None:
            yield one, found


def _keys(rule: IdentityRule, path: str | None) -> list[_Key]:
    """Return a key for each value of a claim; for None the key of rules without claims."""
    return [(rule.issuer, path, typed(value)) for value in ((None,) if path is None else rule.when[path])]


def _hides(other: _Placed, one: _Placed) -> bool:
    if other is one or not other.rule.includes(one.rule):
        return False
    is_earlier = (other.file, other.position) < (one.file, one.position)
    return is_earlier or (other.file != one.file and not one.rule.includes(other.rule))
