"""The admin API's keys: create, list, rotate, revoke."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import structlog
from redis.exceptions import RedisError

from gateway.admin.bodies import NewKey, Rotation, actor_of, number_of, only_query, read_shape, suggestion
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
    """POST /keys: create a key. Only this reply contains it; Redis stores its hash."""
    actor, new = actor_of(request), await read_shape(request, NewKey)
    policy = request.app[POLICIES].policy_set.policy_of(new.tenant)
    if policy is None:
        known = [one.tenant for one in request.app[POLICIES].policy_set.policies]
        raise InvalidRequest(f"'tenant': no policy file defines tenant '{new.tenant}'.{suggestion(new.tenant, known)}",
                             param="tenant")  # fmt: skip
    if any(key.id == new.id for key in policy.keys):
        raise Conflict(f"The policy file of tenant '{new.tenant}' has a key '{new.id}': use another id.")
    _check_models(new, policy)
    token = new_token()
    terms = KeyTerms(hint_of(token), actor, new.models, policy_fields(new.limits), policy_fields(new.budget))
    key = await request.app[KEYS_IN_REDIS].create(digest_of(token), new.tenant, new.id, terms, new.expires, actor)
    await _done(request, "key.create", actor, key)
    return json_reply({"key": token, **view_of_held(key, request.app[KEYRING].now())}, status=201)


def _check_models(new: NewKey, policy: TenantPolicy) -> None:
    known = list(dict.fromkeys(route.model for route in policy.routes))
    for model in new.models or ():
        if model not in known:
            raise InvalidRequest(f"'models': tenant '{new.tenant}' has no route '{model}'.{suggestion(model, known)}",
                                 param="models")  # fmt: skip


@needs_redis
async def list_keys(request: web.Request) -> web.Response:
    """GET /keys: keys of Redis and of policy files, sorted by tenant and id, 500 at a time, after `after`."""
    only_query(request, "tenant", "after", "limit")
    limit = number_of(request, "limit", default=_PAGE, maximum=_PAGE)
    await request.app[KEY_FOLLOWER].catch_up()
    ring = request.app[KEYRING]
    page, following = await asyncio.to_thread(
        listed,
        list(ring.all()),
        request.app[POLICIES].policy_set.policies,
        tenant=request.query.get("tenant"),
        after=request.query.get("after", ""),
        limit=limit,
    )
    used = await request.app[KEYS_IN_REDIS].last_used([one.key.sha256 for one in page])
    now = ring.now()
    views = [{**view(one, now), "last_used": time_shown(used.get(one.key.sha256))} for one in page]
    return json_reply({"keys": views, "next": following})


@needs_redis
async def rotate_key(request: web.Request) -> web.Response:
    """POST /keys/{tenant}/{id}/rotate: a new key under the old id; the old one holds on for its grace time."""
    actor, rotation = actor_of(request), await read_shape(request, Rotation)
    old = await _existing(request)
    token = new_token()
    terms = msgspec.structs.replace(old.terms, hint=hint_of(token), created_by=actor)
    new, before = await request.app[KEYS_IN_REDIS].rotate(
        old, digest_of(token), terms, grace_s=rotation.grace_s, expiry=rotation.expires, actor=actor
    )
    await _done(request, "key.rotate", actor, new)
    now = request.app[KEYRING].now()
    return json_reply({"key": token, **view_of_held(new, now), "replaced": view_of_held(before, now)}, status=201)


@needs_redis
async def revoke_key(request: web.Request) -> web.Response:
    """DELETE /keys/{tenant}/{id}. The key is rejected at once by this process, and within two seconds by all others."""
    actor, key = actor_of(request), await _existing(request)
    revoked = await request.app[KEYS_IN_REDIS].revoke(key.tenant, key.id, actor)
    await _done(request, "key.revoke", actor, revoked)
    return json_reply(view_of_held(revoked, request.app[KEYRING].now()))


async def _done(request: web.Request, action: str, actor: str, key: HeldKey) -> None:
    """Log the change and apply it to this process. If Redis fails, the follower's next poll applies it."""
    log.info("admin", action=action, actor=actor, tenant=key.tenant, subject=key.id)
    with suppress(RedisError, OSError):
        await request.app[KEY_FOLLOWER].catch_up()


async def _existing(request: web.Request) -> HeldKey:
    """Return the key that the path names. Raises NotFound, or Conflict for a key of a policy file."""
    tenant, key_id = request.match_info["tenant"], request.match_info["id"]
    await request.app[KEY_FOLLOWER].catch_up()
    ring = request.app[KEYRING]
    found = ring.by_id(tenant, key_id)
    if found is not None:
        return found
    policy = request.app[POLICIES].policy_set.policy_of(tenant)
    if policy is not None and any(key.id == key_id for key in policy.keys):
        raise Conflict(f"Key '{key_id}' is defined in the policy file of tenant '{tenant}': change it there.")
    close = suggestion(key_id, [key.id for key in ring.all() if key.tenant == tenant])
    raise NotFound(f"Tenant '{tenant}' has no key '{key_id}'.{close} GET /keys lists them.", param="id")
