"""Scopes are cached as long as their policy is current."""

from __future__ import annotations

import gc
import weakref

from gateway.accounting.scopes import Scopes
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
