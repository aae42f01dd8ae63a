"""GET /v1/usage: usage, cost and savings of the caller's tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from aiohttp import web
from redis.exceptions import RedisError

from gateway.api.auth import authenticate
from gateway.api.keys import USAGE
from gateway.api.usage_query import read_query
from gateway.errors import UsageUnavailable
from gateway.usage.sums import OTHER
from gateway.usage.threads import with_pauses

if TYPE_CHECKING:
    from gateway.policy.schema import TenantPolicy
    from gateway.usage.rollup import SumDimensions
    from gateway.usage.usage import UsageResult


async def show_usage(request: web.Request) -> web.Response:
    """GET /v1/usage. Rows sum all keys of the caller's tenant, unless `by` names the key."""
    policy = authenticate(request).policy
    reader = request.app[USAGE]
    query = read_query(request, reader.retention).for_tenant(policy.tenant)
    try:
        body = await reader.read(
            query, encoded, tenant=policy.tenant, shows_money=lambda where: shows_money(policy, where)
        )
    except (RedisError, OSError) as error:
        raise UsageUnavailable from error
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})


def encoded(usage: UsageResult) -> bytes:
    """Return the usage as JSON. Call it in a thread: there may be many rows.

    Each row is encoded by a call of its own, because a call holds the interpreter lock.
    """
    *rows, total = (orjson.dumps(one) for one in with_pauses(usage.rows_as_json()))
    return b'%b,"rows":[%b],"total":%b}\n' % (orjson.dumps(usage.header())[:-1], b",".join(rows), total)


def shows_money(policy: TenantPolicy, where: SumDimensions) -> bool:
    """Return whether a row shows costs: only if the receipts of its route do, or of all routes for a combined row."""
    routes_of = policy.routes_of
    routes = [route for _, route in routes_of.get(where.route, ())]
    if where.route == OTHER:
        routes = [route for same in routes_of.values() for _, route in same]
    return bool(routes) and all(route.show_cost for route in routes)
