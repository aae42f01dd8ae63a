"""Scopes are cached as long as their policy is current."""

from __future__ import annotations

import gc
import weakref

from gateway.accounting.scopes import Scopes, key_of, label_of
from gateway.config.sections import Defaults
from gateway.policy.book import Caller
from gateway.policy.schema import TenantPolicy


def policy(rpm: int) -> TenantPolicy:
    """Return a tenant with two keys, as an edit may produce it."""
    keys = [{"id": name, "sha256": name * 64} for name in "ab"]
    route = {"model": "chat", "mode": "student", "student": "small"}
    content = {"tenant": "acme", "keys": keys, "routes": [route], "key_limits": {"rpm_limit": rpm}}
    return TenantPolicy.model_validate(content)


def test_each_key_is_counted_by_its_current_policy() -> None:
    scopes = Scopes(Defaults())
    for rpm in (5, 6):
        held = policy(rpm)
        for key in held.keys:
            for _ in range(2):
                assert [(one.name, one.rpm) for one in scopes.of(Caller(held, key))] == [(f"key:{key.id}", rpm)]


def test_a_policy_that_an_edit_has_replaced_is_not_kept() -> None:
    """Policies may be edited every minute for months."""
    scopes = Scopes(Defaults())
    replaced = []
    for rpm in range(1, 50):
        held = policy(rpm)
        replaced.append(weakref.ref(held))
        for key in held.keys:
            scopes.of(Caller(held, key))
    gc.collect()
    assert [one() for one in replaced] == [None] * 48 + [held]


def test_the_claims_of_a_token_are_not_kept() -> None:
    class Claims(dict[str, object]):
        """A mapping that a weak reference may name."""

    scopes, held, claims = Scopes(Defaults()), policy(5), Claims(groups=["staff"])
    caller = Caller(held, held.keys[0], claims)
    assert scopes.of(caller) is scopes.of(caller)
    kept = weakref.ref(claims)
    del claims, caller
    gc.collect()
    assert kept() is None


def labeled(**rule: object) -> TenantPolicy:
    content = {
        "tenant": "acme",
        "keys": [{"id": "a", "sha256": "a" * 64}],
        "routes": [{"model": "chat", "mode": "student", "student": "small"}],
        "labels": {"team": rule, "app": {}},
    }
    return TenantPolicy.model_validate(content)


def test_a_limited_label_has_a_scope_for_each_value() -> None:
    scopes, held = Scopes(Defaults()), labeled(
        limits={"rpm_limit": 7}, budget={"max_budget": 50}, exceptions={"research": {"budget": {"max_budget": 500}}}
    )  # fmt: skip
    caller = Caller(held, held.keys[0])
    assert scopes.of(caller, {"app": "web"}) == ()
    (one,) = scopes.of(caller, {"team": "sales", "app": "web"})
    assert (one.name, one.rpm, str(one)) == ("label:team=sales", 7, "team 'sales'")
    assert one.budget is not None
    assert one.budget.max == "50000000000000"
    (other,) = scopes.of(caller, {"team": "research"})
    assert other.budget is not None
    assert other.budget.max == "500000000000000"
    assert scopes.of(caller, {"team": "sales"})[0] is one
    edited = labeled(limits={"rpm_limit": 8})
    assert [found.rpm for found in scopes.of(Caller(edited, edited.keys[0]), {"team": "sales"})] == [8]
    removed = labeled()
    assert scopes.of(Caller(removed, removed.keys[0]), {"team": "sales"}) == ()


def test_the_name_of_a_scope_has_the_whole_value() -> None:
    for value in ("a=b", "a:budget", "label:team=x", "}{", "(none)"):
        held = labeled(limits={"rpm_limit": 7})
        (scope,) = Scopes(Defaults()).of(Caller(held, held.keys[0]), {"team": value})
        assert label_of(scope.name) == ("team", value)
    assert [label_of(name) for name in ("tenant", "key:label:a")] == [None, None]
    assert [key_of(name) for name in ("tenant", "key:a", "label:team=key:a")] == [None, "a", None]
