"""The admin API's collected requests: counts, contents and deletion. Reading and deleting them is audited."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from aiohttp import web

from gateway.admin.bodies import actor_of, number_of, only_query
from gateway.admin.replies import ENCODER, json_reply, needs_redis, time_shown
from gateway.api.keys import AUDIT, POLICIES
from gateway.config.yaml_messages import suggestion
from gateway.errors import InvalidRequest, NotFound
from gateway.quality.request_sample import RedisSamples

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.quality.request_sample import SampleState

log = structlog.get_logger()

SAMPLES = web.AppKey("samples", RedisSamples)
_PAGE, _MAX_PAGE = 500, 1000
_CURSOR = re.compile(r"[0-9.e+-]{1,32}", re.ASCII)


@needs_redis
async def show_samples(request: web.Request) -> web.Response:
    """GET /collected/{tenant}: the samples of a tenant's routes, without contents."""
    only_query(request)
    return json_reply({"tenant": request.match_info["tenant"], "routes": [_view(one) for one in await _found(request)]})


@needs_redis
async def read_requests(request: web.Request) -> web.Response:
    """GET /collected/{tenant}/requests: the requests of a route, in random order, after `after`."""
    only_query(request, "route", "limit", "after")
    actor, limit = actor_of(request), number_of(request, "limit", default=_PAGE, maximum=_MAX_PAGE)
    after = request.query.get("after")
    if after is not None and not _CURSOR.fullmatch(after):
        raise InvalidRequest("'after': expected the value of `next` of the previous reply.", param="after")
    if "route" not in request.query:
        raise InvalidRequest("'route': missing: name a route of GET /collected/{tenant}.", param="route")
    (sample,) = await _found(request)
    tenant = request.match_info["tenant"]
    await _audit(request, "collected.read", actor, sample.route, {"limit": limit} | ({"after": after} if after else {}))
    page = await request.app[SAMPLES].read(tenant, sample.route, limit, after=after)
    data = [msgspec.Raw(one) for one in page.requests]
    return json_reply({"tenant": tenant, "route": sample.route, "requests": data, "next": page.following})


@needs_redis
async def delete_samples(request: web.Request) -> web.Response:
    """DELETE /collected/{tenant}: delete the samples of all routes, or of one."""
    only_query(request, "route")
    actor, deleted = actor_of(request), []
    for sample in await _found(request):
        await _audit(request, "collected.delete", actor, sample.route, None)
        number = await request.app[SAMPLES].delete(request.match_info["tenant"], sample.route)
        deleted.append({"route": sample.route, "requests": number})
    return json_reply({"tenant": request.match_info["tenant"], "deleted": deleted})


async def _found(request: web.Request) -> list[SampleState]:
    """Return the samples of the tenant, or of the route that the query names. Raises NotFound.

    A sample may be of a tenant or route that the policies no longer have.
    """
    tenant, route = request.match_info["tenant"], request.query.get("route")
    samples = await request.app[SAMPLES].routes(tenant)
    policies = request.app[POLICIES].policy_set
    policy = policies.policy_of(tenant)
    if not samples and policy is None:
        raise NotFound(
            f"No policy file defines tenant '{tenant}'.{suggestion(tenant, [one.tenant for one in policies.policies])}",
            param="tenant",
        )
    if route is None:
        return samples
    found = [one for one in samples if one.route == route]
    if not found:
        raise NotFound(
            f"Tenant '{tenant}' has no collected requests of route '{route}'."
            f"{suggestion(route, [one.route for one in samples])} {_advice(samples)}",
            param="route",
        )
    return found


def _advice(samples: Iterable[SampleState]) -> str:
    if routes := [one.route for one in samples]:
        return f"Routes with requests: {', '.join(routes)}."
    return "Its policy collects requests of routes with `collect`."


async def _audit(request: web.Request, action: str, actor: str, route: str, after: Any) -> None:
    tenant = request.match_info["tenant"]
    after_text = "" if after is None else ENCODER.encode(after).decode()
    await request.app[AUDIT].write(actor=actor, action=action, tenant=tenant, subject=route, after=after_text)
    log.info("admin", action=action, actor=actor, tenant=tenant, subject=route)


def _view(sample: SampleState) -> dict[str, Any]:
    return {
        "route": sample.route,
        "since": time_shown(sample.since_s),
        "deleted_at": time_shown(sample.ends_s),
        "seen": sample.seen,
        "requests": sample.kept,
        "bytes": sample.size_bytes,
        "skipped": sample.skipped,
    }
