"""GET /v1/limits: what a key and its tenant may use, and what they have used of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from aiohttp import web
from redis.exceptions import RedisError

from gateway.accounting.budgets import Account
from gateway.accounting.scopes import key_scope, tenant_scope
from gateway.accounting.speeds import RecentUsage
from gateway.api.auth import authenticate
from gateway.api.keys import BUDGETS, DEFAULTS, READS, REDIS, SPEEDS
from gateway.errors import StoreUnavailable
from gateway.policy.routing import models_of

if TYPE_CHECKING:
    from decimal import Decimal

    from gateway.accounting.budgets import Balance
    from gateway.accounting.scopes import Scope
    from gateway.policy.book import Caller
    from gateway.protocol.body import Json

_UNUSED = RecentUsage(0, 0, 0)


async def show_limits(request: web.Request) -> web.Response:
    """GET /v1/limits. It counts for no limit, and tells of nobody but the caller's own key and tenant."""
    caller = authenticate(request)
    defaults = request.app[DEFAULTS]
    tenant = tenant_scope(caller.policy, defaults)
    key = key_scope(caller.policy, caller.key, defaults)
    shows_money = _shows_money(caller)
    with request.app[READS].hold(caller.policy.tenant, caller.policy.weight):
        scopes = [one for one in (tenant, key) if one]
        speeds, balances = await _look(request, caller.policy.tenant, scopes, shows_money)
    body: Json = {"object": "limits"}
    for role, name, scope in (("tenant", caller.policy.tenant, tenant), ("key", caller.key_id, key)):
        told = body[role] = {"id": name, **_limits(scope, speeds)}
        if shows_money:
            told["budget"] = _budget(scope, balances)
    return web.Response(body=orjson.dumps(body), content_type="application/json", headers={"Cache-Control": "no-store"})


def _shows_money(caller: Caller) -> bool:
    """Whether receipts of any model that the key may name do: where none tells its cost, a sum would."""
    routes_of = caller.policy.routes_of
    return any(all(route.show_cost for _, route in routes_of[name]) for name in models_of(caller))


async def _look(
    request: web.Request, tenant: str, scopes: list[Scope], shows_money: bool
) -> tuple[dict[str, RecentUsage], dict[str, Balance]]:
    """By scope what is used, and how its budget stands. Raises StoreUnavailable."""
    app = request.app
    limited = [scope for scope in scopes if scope.rpm or scope.tpm or scope.parallel]
    accounts = [Account(tenant, scope) for scope in scopes if shows_money and scope.budget is not None]
    if not limited and not accounts:
        return {}, {}
    away = StoreUnavailable("What is used cannot be read while Redis is away. Try again.")
    if not app[REDIS].up:
        raise away
    try:
        speeds = await app[SPEEDS].read(tenant, limited)
        balances = await app[BUDGETS].read(accounts)
    except (RedisError, OSError) as error:
        # The client is not told of it: no request is to go without Redis because a look was slow.
        raise away from error
    return (
        {scope.name: speed for scope, speed in zip(limited, speeds, strict=True)},
        {account.scope.name: balance for account, balance in zip(accounts, balances, strict=True)},
    )


def _limits(scope: Scope | None, speeds: dict[str, RecentUsage]) -> Json:
    speed = speeds.get(scope.name, _UNUSED) if scope else _UNUSED
    return {
        "requests_per_minute": _use(scope.rpm if scope else 0, speed.requests),
        "tokens_per_minute": _use(scope.tpm if scope else 0, speed.tokens),
        "parallel_requests": _use(scope.parallel if scope else 0, speed.parallel),
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
        "max_usd": _text(balance.limit_usd),
        "spent_usd": _text(balance.spent_usd),
        "reserved_usd": _text(balance.reserved_usd),
        "left_usd": _text(balance.left_usd),
    }


def _text(usd: Decimal) -> str:
    """As in receipts: without an exponent, which every reader takes."""
    return f"{usd:f}"
