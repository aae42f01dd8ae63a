"""The admin API's keys: make, list, rotate, revoke."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import structlog
from redis.exceptions import RedisError

from gateway.admin.bodies import NewKey, Rotation, actor_of, meant, number_of, only_query, read_shape
from gateway.admin.key_views import listed, time_shown, view, view_of_held
from gateway.admin.replies import json_reply, needs_redis
from gateway.api.keys import KEY_FOLLOWER, KEYRING, KEYS_IN_REDIS, POLICIES
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.keys.held import KeyTerms, policy_fields
from gateway.keys.token import digest_of, hint_of, new_token

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.keys.held import HeldKey
    from gateway.policy.schema import TenantPolicy

log = structlog.get_logger()

_PAGE = 500


@needs_redis
async def create_key(request: web.Request) -> web.Response:
    """POST /keys: a new key, which is in this reply and nowhere else."""
    actor, asked = actor_of(request), await read_shape(request, NewKey)
    policy = request.app[POLICIES].book.policy_of(asked.tenant)
    if policy is None:
        known = [one.tenant for one in request.app[POLICIES].book.policies]
        raise InvalidRequest(f"'tenant': no policy file is of tenant '{asked.tenant}'.{meant(asked.tenant, known)}",
                             param="tenant")  # fmt: skip
    if any(key.id == asked.id for key in policy.keys):
        raise Conflict(f"The policy file of tenant '{asked.tenant}' has a key '{asked.id}': take another id.")
    _check_models(asked, policy)
    token = new_token()
    terms = KeyTerms(hint_of(token), actor, asked.models, policy_fields(asked.limits), policy_fields(asked.budget))
    made = await request.app[KEYS_IN_REDIS].create(
        digest_of(token), asked.tenant, asked.id, terms, asked.expires, actor
    )
    await _done(request, "key.create", actor, made)
    return json_reply({"key": token, **view_of_held(made, request.app[KEYRING].now())}, status=201)


def _check_models(asked: NewKey, policy: TenantPolicy) -> None:
    known = list(dict.fromkeys(route.model for route in policy.routes))
    for model in asked.models or ():
        if model not in known:
            raise InvalidRequest(f"'models': tenant '{asked.tenant}' has no route '{model}'.{meant(model, known)}",
                                 param="models")  # fmt: skip


@needs_redis
async def list_keys(request: web.Request) -> web.Response:
    """GET /keys: those of Redis and of the policy files, by tenant and id; 500 at a time, from `after` on."""
    only_query(request, "tenant", "after", "limit")
    most = number_of(request, "limit", default=_PAGE, most=_PAGE)
    await request.app[KEY_FOLLOWER].catch_up()
    ring = request.app[KEYRING]
    page, following = await asyncio.to_thread(
        listed,
        list(ring.all()),
        request.app[POLICIES].book.policies,
        tenant=request.query.get("tenant"),
        after=request.query.get("after", ""),
        most=most,
    )
    used = await request.app[KEYS_IN_REDIS].last_used([one.key.sha256 for one in page])
    now = ring.now()
    views = [{**view(one, now), "last_used": time_shown(used.get(one.key.sha256))} for one in page]
    return json_reply({"keys": views, "next": following})


@needs_redis
async def rotate_key(request: web.Request) -> web.Response:
    """POST /keys/{tenant}/{id}/rotate: a new key under the old id; the old one holds on for its grace time."""
    actor, asked = actor_of(request), await read_shape(request, Rotation)
    old = await _existing(request)
    token = new_token()
    terms = msgspec.structs.replace(old.terms, hint=hint_of(token), created_by=actor)
    new, before = await request.app[KEYS_IN_REDIS].rotate(
        old, digest_of(token), terms, grace_s=asked.grace_s, expiry=asked.expires, actor=actor
    )
    await _done(request, "key.rotate", actor, new)
    now = request.app[KEYRING].now()
    return json_reply({"key": token, **view_of_held(new, now), "replaced": view_of_held(before, now)}, status=201)


@needs_redis
async def revoke_key(request: web.Request) -> web.Response:
    """DELETE /keys/{tenant}/{id}: it ends at once here, and within two seconds in every process."""
    actor, key = actor_of(request), await _existing(request)
    revoked = await request.app[KEYS_IN_REDIS].revoke(key.tenant, key.id, actor)
    await _done(request, "key.revoke", actor, revoked)
    return json_reply(view_of_held(revoked, request.app[KEYRING].now()))


async def _done(request: web.Request, action: str, actor: str, key: HeldKey) -> None:
    """Log what was done, and let this process go by it; if that fails, the follower's next look will do."""
    log.info("admin", action=action, actor=actor, tenant=key.tenant, subject=key.id)
    with suppress(RedisError, OSError):
        await request.app[KEY_FOLLOWER].catch_up()


async def _existing(request: web.Request) -> HeldKey:
    """The key that the path names. Raises NotFound and Conflict."""
    tenant, key_id = request.match_info["tenant"], request.match_info["id"]
    await request.app[KEY_FOLLOWER].catch_up()
    ring = request.app[KEYRING]
    found = ring.by_id(tenant, key_id)
    if found is not None:
        return found
    policy = request.app[POLICIES].book.policy_of(tenant)
    if policy is not None and any(key.id == key_id for key in policy.keys):
        raise Conflict(f"Key '{key_id}' stands in the policy file of tenant '{tenant}': change it there.")
    close = meant(key_id, [key.id for key in ring.all() if key.tenant == tenant])
    raise NotFound(f"Tenant '{tenant}' has no key '{key_id}'.{close} GET /keys lists them.", param="id")
