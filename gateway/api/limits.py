"""GET /v1/limits: limits and budgets of the caller's key, tenant and labels, and their current use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from aiohttp import web
from redis.exceptions import RedisError

from gateway.accounting.budgets import Account, RecentUsage
from gateway.accounting.scopes import key_scope, label_scope, tenant_scope
from gateway.api.auth import authenticate
from gateway.api.keys import BUDGETS, LABELER, POLICIES, READS, REDIS, SPEEDS
from gateway.errors import StoreUnavailable
from gateway.policy.routing import routes_for

if TYPE_CHECKING:
    from gateway.accounting.budgets import Balance
    from gateway.accounting.scopes import Scope
    from gateway.policy.book import Caller
    from gateway.policy.schema import TenantPolicy
    from gateway.protocol.body import Json

_UNUSED = RecentUsage(0, 0, 0)


async def show_limits(request: web.Request) -> web.Response:
    """GET /v1/limits. The request counts against no limit."""
    caller = await authenticate(request)
    defaults = request.app[POLICIES].defaults
    tenant = tenant_scope(caller.policy, defaults)
    key = key_scope(caller.policy, caller.key, defaults)
    labels = [(name, value, label_scope(caller.policy, name, value)) for name, value in _labels(request, caller)]
    shows_money = _shows_money(caller)
    with request.app[READS].hold(caller.policy.tenant, caller.policy.weight):
        scopes = [one for one in (tenant, key, *(scope for _, _, scope in labels)) if one]
        usages, balances = await _read(request, caller.policy, scopes, shows_money)

    def view(names: Json, scope: Scope | None) -> Json:
        found = names | _limits(scope, usages)
        return found | {"budget": _budget(scope, balances)} if shows_money else found

    body: Json = {
        "object": "limits",
        "tenant": view({"id": caller.policy.tenant}, tenant),
        "key": view({"id": caller.key.id}, key),
    }
    if caller.policy.limited_labels:
        body["labels"] = [view({"label": name, "value": value}, scope) for name, value, scope in labels]
    return web.Response(body=orjson.dumps(body), content_type="application/json", headers={"Cache-Control": "no-store"})


def _labels(request: web.Request, caller: Caller) -> list[tuple[str, str]]:
    """Return the limited labels with the values of requests that have these headers."""
    found = request.app[LABELER].of_headers(caller, request.headers)
    return [(name, found[name]) for name in caller.policy.limited_labels if name in found]


def _shows_money(caller: Caller) -> bool:
    """Return whether receipts of any of the key's models show costs. Otherwise a budget would reveal them."""
    routes = [routes_for(caller, name) for name in caller.policy.routes_by_name]
    return any(same and all(route.show_cost for _, route in same) for same in routes)


async def _read(
    request: web.Request, policy: TenantPolicy, scopes: list[Scope], shows_money: bool
) -> tuple[dict[str, RecentUsage], dict[str, Balance]]:
    app, tenant, slices = request.app, policy.tenant, policy.redis_slices
    limited = [scope for scope in scopes if scope.rpm or scope.tpm or scope.parallel]
    accounts = [Account(tenant, scope, slices) for scope in scopes if shows_money and scope.budget is not None]
    if not limited and not accounts:
        return {}, {}
    unavailable = StoreUnavailable("Usage of limits cannot be read while Redis is unavailable. Try again.")
    if not app[REDIS].up:
        raise unavailable
    try:
        usages = await app[SPEEDS].read(tenant, limited, slices)
        balances = await app[BUDGETS].read(accounts)
    except (RedisError, OSError) as error:
        # The circuit breaker of Redis ignores this error: a slow read must not affect completions.
        raise unavailable from error
    return (
        {scope.name: usage for scope, usage in zip(limited, usages, strict=True)},
        {account.scope.name: balance for account, balance in zip(accounts, balances, strict=True)},
    )


def _limits(scope: Scope | None, usages: dict[str, RecentUsage]) -> Json:
    usage = usages.get(scope.name, _UNUSED) if scope else _UNUSED
    return {
        "requests_per_minute": _use(scope.rpm if scope else 0, usage.requests),
        "tokens_per_minute": _use(scope.tpm if scope else 0, usage.tokens),
        "parallel_requests": _use(scope.parallel if scope else 0, usage.parallel),
    }


def _use(limit: int, used: int) -> Json | None:
    return {"limit": limit, "used": used, "left": max(0, limit - used)} if limit else None


def _budget(scope: Scope | None, balances: dict[str, Balance]) -> Json | None:
    if scope is None or scope.budget is None:
        return None
    terms, balance = scope.budget, balances[scope.name]
    return {
        "duration": f"{terms.count}{terms.unit}",
        "ends": balance.ends_s,
        # As in receipts, without an exponent.
        "max_usd": f"{balance.limit_usd:f}",
        "spent_usd": f"{balance.spent_usd:f}",
        "reserved_usd": f"{balance.reserved_usd:f}",
        "left_usd": f"{balance.left_usd:f}",
    }
