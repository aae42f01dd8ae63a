"""The admin API's switch of guidance: off and on for a route, a tenant or everything."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web
from pydantic import Field, ValidationInfo, field_validator
from redis.exceptions import RedisError

from gateway.admin.bodies import ReasonText, actor_of, only_query, read_shape
from gateway.admin.replies import json_reply, needs_redis, time_shown
from gateway.api.keys import POLICIES
from gateway.config.scalars import Flag, InvalidValue, Label, RouteName
from gateway.config.yaml_messages import suggestion
from gateway.config.yaml_source import StrictModel
from gateway.errors import InvalidRequest, NotFound
from gateway.policy.guidance_off import AnswerBy, GuidanceOff, GuidanceScope
from gateway.quality.switches import SwitchFollower

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger()


GUIDANCE = web.AppKey("guidance", SwitchFollower)


class SwitchOn(StrictModel):
    """POST /guidance/on: the scope, which is `all`, a tenant, or a tenant's route."""

    all: Flag = False
    """Everything: all tenants and routes."""
    tenant: Label | None = Field(None, validate_default=True)
    route: RouteName | None = None
    """The `model` of requests."""

    @field_validator("tenant")
    @classmethod
    def _one_scope(cls, tenant: str | None, info: ValidationInfo) -> str | None:
        everything = info.data.get("all")
        if everything and tenant is not None:
            raise InvalidValue("conflicts with all: send one of the two")
        if everything is False and tenant is None:
            raise InvalidValue('missing: send a tenant, or "all": true for everything')
        return tenant

    @field_validator("route")
    @classmethod
    def _of_a_tenant(cls, route: str | None, info: ValidationInfo) -> str | None:
        if route is not None and info.data.get("all"):
            raise InvalidValue("conflicts with all: send one of the two")
        return route

    @property
    def scope(self) -> GuidanceScope:
        return GuidanceScope(self.tenant, self.route)


class SwitchOff(SwitchOn):
    """POST /guidance/off: the scope, and the engine that answers meanwhile."""

    answer_by: AnswerBy = "student"
    reason: ReasonText | None = None


@needs_redis
async def list_guidance(request: web.Request) -> web.Response:
    """GET /guidance: the scopes whose guidance is switched off."""
    only_query(request)
    follower = request.app[GUIDANCE]
    await follower.catch_up()
    return json_reply({"object": "guidance", "off": shown_switches(follower.switches.off)})


@needs_redis
async def switch_guidance_off(request: web.Request) -> web.Response:
    """POST /guidance/off. It applies at once in this process, and within two seconds in all others."""
    actor, body = actor_of(request), await read_shape(request, SwitchOff)
    _check_exists(request, body.scope)
    off = GuidanceOff(0.0, "operator", actor, body.reason, body.answer_by)
    return await _switch(request, body.scope, off, actor)


@needs_redis
async def switch_guidance_on(request: web.Request) -> web.Response:
    """POST /guidance/on. A wider switch that is off still applies; the reply lists it."""
    actor, body = actor_of(request), await read_shape(request, SwitchOn)
    follower = request.app[GUIDANCE]
    await follower.catch_up()
    if body.scope not in follower.switches.off:  # a deleted tenant or route may still be off
        _check_exists(request, body.scope)
    return await _switch(request, body.scope, None, actor)


async def _switch(request: web.Request, scope: GuidanceScope, off: GuidanceOff | None, actor: str) -> web.Response:
    follower = request.app[GUIDANCE]
    was_off = await follower.store.switch(scope, off, actor)
    if off is not None or was_off:
        action = "guidance.on" if off is None else "guidance.off"
        log.info("admin", action=action, actor=actor, tenant=scope.tenant or "", subject=scope.route or "")
    with suppress(RedisError, OSError):  # the follower's next poll applies it
        await follower.catch_up()
    body = {
        "object": "guidance",
        "tenant": scope.tenant,
        "route": scope.route,
        "guidance": "on" if off is None else "off",
        "before": "off" if was_off else "on",
        "off": shown_switches({one: held for one, held in follower.switches.off.items() if _overlap(one, scope)}),
    }
    return json_reply(body)


def _overlap(one: GuidanceScope, other: GuidanceScope) -> bool:
    """Return whether some request belongs to both scopes."""
    same_tenant = one.tenant is None or other.tenant is None or one.tenant == other.tenant
    return same_tenant and (one.route is None or other.route is None or one.route == other.route)


def _check_exists(request: web.Request, scope: GuidanceScope) -> None:
    """Raise NotFound for an unknown tenant or route, and InvalidRequest for a route that gives no guidance."""
    if scope.tenant is None:
        return
    book = request.app[POLICIES].policy_set
    policy = book.policy_of(scope.tenant)
    if policy is None:
        close = suggestion(scope.tenant, [one.tenant for one in book.policies])
        raise NotFound(f"No policy file defines tenant '{scope.tenant}'.{close}", param="tenant")
    if scope.route is None:
        return
    named = policy.routes_of.get(scope.route)
    if named is None:
        close = suggestion(scope.route, policy.routes_of)
        if scope.route in policy.routes_by_name:
            close = f" It is an alias of route '{policy.routes_by_name[scope.route][0][1].model}': send that name."
        raise NotFound(f"Tenant '{scope.tenant}' has no route '{scope.route}'.{close}", param="route")
    served = [one for _, route in named for one in (route, *(variant.route for variant in route.variants))]
    if not any(map(policy.max_guidance_tokens, served)):
        raise InvalidRequest(
            f"Route '{scope.route}' of tenant '{scope.tenant}' gives no guidance: its mode is {named[0][1].mode}.",
            param="route",
        )


def shown_switches(off: Mapping[GuidanceScope, GuidanceOff]) -> list[dict[str, Any]]:
    """Return the switches as JSON: everything first, then by tenant and route."""
    return [
        {
            "tenant": scope.tenant,
            "route": scope.route,
            "since": time_shown(switch.since_s),
            "by": switch.by,
            "actor": switch.actor,
            "answer_by": switch.answer_by,
            "reason": switch.reason,
        }
        for scope, switch in sorted(off.items(), key=lambda one: (one[0].tenant or "", one[0].route or ""))
    ]
