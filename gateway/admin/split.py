"""GET /usage/split: requests, cost and outcomes of the variants of a route."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.admin.bodies import number_of, only_query
from gateway.admin.period import total_of
from gateway.admin.replies import day_shown, json_reply, needs_redis
from gateway.api.keys import POLICIES, REDIS, USAGE, USAGE_DATABASE
from gateway.errors import InvalidRequest, NotFound
from gateway.quality.book import DAY_S
from gateway.quality.outcome import compare_variants
from gateway.usage.span import RequestedRange, span
from gateway.usage.usage import usd_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from gateway.policy.book import PolicySet
    from gateway.usage.counters import VariantSum

_DAYS, _MAX_DAYS = 7, 365


@needs_redis
async def show_split(request: web.Request) -> web.Response:
    """GET /usage/split: the last `days` days in UTC, including today; 7 by default."""
    only_query(request, "tenant", "route", "days")
    tenant, route = (_required(request, name) for name in ("tenant", "route"))
    now = request.app[REDIS].now()
    today = int(now) // DAY_S
    since = today - number_of(request, "days", default=_DAYS, maximum=_MAX_DAYS) + 1
    reader, database = request.app[USAGE], request.app[USAGE_DATABASE]
    periods = span(RequestedRange(since * DAY_S, now), None, reader.retention, now)
    sums = (await total_of(reader, periods, {"tenant": tenant, "route": route})).variants
    outcomes = await database.outcomes(tenant, route, since, today)
    shares = _shares(request.app[POLICIES].policy_set, tenant, route)
    names = list(dict.fromkeys((*shares, *sums, *sorted({name for name, _ in outcomes}))))
    if not names:
        raise NotFound(f"Tenant '{tenant[:64]}' has no route '{route[:128]}' with a split.", param="route")
    compared = compare_variants(names, outcomes)
    return json_reply(
        {
            "object": "split",
            "tenant": tenant,
            "route": route,
            "since": day_shown(since * DAY_S),
            "until": day_shown(today * DAY_S),
            "variants": [
                {"name": name, "share": shares.get(name), **_figures(sums, name), "outcomes": compared[name]}
                for name in names
            ],
        }
    )


def _required(request: web.Request, name: str) -> str:
    if not (value := request.query.get(name)):
        raise InvalidRequest(f"'{name}' is missing: add it to the query.", param=name)
    return value


def _shares(policies: PolicySet, tenant: str, route: str) -> dict[str, float]:
    """Return the present shares of the route's variants, in the order of the policy file."""
    policy = policies.policy_of(tenant)
    routes = policy.routes_of.get(route, ()) if policy is not None else ()
    return {variant.name: variant.share for _, one in routes for variant in one.variants}


def _figures(sums: Mapping[str, VariantSum], name: str) -> dict[str, Any]:
    one = sums.get(name)
    if one is None:
        return {"requests": 0, "guided": 0, "errors": 0, "cost_usd": "0", "cost_per_request_usd": None}
    each = usd_text(round(one.cost_pico / one.requests)) if one.requests else None
    counts = {"requests": one.requests, "guided": one.guided, "errors": one.errors}
    return {**counts, "cost_usd": usd_text(one.cost_pico), "cost_per_request_usd": each}
