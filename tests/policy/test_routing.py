"""Which route takes a request: one of the tenant's own, and one that the key may use."""

from __future__ import annotations

import pytest

from gateway.errors import ModelNotFound
from gateway.policy.book import Caller
from gateway.policy.routing import models_of, require_route, route_of
from gateway.policy.schema import KeyEntry, TenantPolicy


def caller(*names: str, models: tuple[str, ...] | None = None) -> Caller:
    routes = [{"model": name, "mode": "student", "student": name} for name in names]
    policy = TenantPolicy.model_validate({"tenant": "a", "routes": routes})
    return Caller(policy, KeyEntry(id="k", sha256="f" * 64, models=models))


def test_a_route_is_found_by_the_name_that_was_sent() -> None:
    found = require_route(caller("x", "y"), "y")
    assert (found.model, found.student) == ("y", "y")
    assert models_of(caller("x", "y")) == ["x", "y"]
    assert route_of(caller("x"), "z") is None


def test_a_key_names_only_the_models_that_it_may_use() -> None:
    only_x = caller("x", "y", models=("x", "gone"))
    assert models_of(only_x) == ["x"]
    assert route_of(only_x, "y") is None
    with pytest.raises(ModelNotFound, match=r"no model 'y' for this key. It may use: 'x'\."):
        require_route(only_x, "y")
