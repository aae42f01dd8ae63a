"""The admin API's keys, with the same fields for keys in Redis and in policy files: create, list, rotate, revoke."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from redis.exceptions import RedisError

from gateway.admin.bodies import NewKey, Rotation, actor_of, number_of, only_query, read_shape
from gateway.admin.replies import json_reply, needs_redis, time_shown
from gateway.api.keys import KEY_FOLLOWER, KEYRING, KEYS_IN_REDIS, POLICIES
from gateway.config.yaml_messages import suggestion
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.keys.held import HeldKey, KeyTerms, policy_fields
from gateway.keys.token import digest_of, hint_of, new_token
from gateway.policy.labels import undeclared

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp import web

    from gateway.policy.key_entry import KeyEntry
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
        close = suggestion(new.tenant, known)
        raise InvalidRequest(f"'tenant': no policy file defines tenant '{new.tenant}'.{close}", param="tenant")
    if any(key.id == new.id for key in policy.keys):
        raise Conflict(f"The policy file of tenant '{new.tenant}' has a key '{new.id}': use another id.")
    for model in new.models or ():
        if model not in policy.routes_by_name:
            close = suggestion(model, policy.routes_by_name)
            raise InvalidRequest(f"'models': tenant '{new.tenant}' has no route '{model}'.{close}", param="models")
    if (label := undeclared(new.labels, policy.labels)) is not None:
        close = suggestion(label, policy.labels)
        raise InvalidRequest(f"'labels': tenant '{new.tenant}' declares no label '{label}'.{close}", param="labels")
    if new.limits is not None and (limit := new.limits.first_below(policy.redis_slices)) is not None:
        raise InvalidRequest(
            f"'limits.{limit}': {getattr(new.limits, limit)} is below the number of slices of tenant '{new.tenant}'. "
            f"Set at least {policy.redis_slices} (`redis_slices` in its policy file).",
            param=f"limits.{limit}",
        )
    token, limits, budget = new_token(), policy_fields(new.limits), policy_fields(new.budget)
    terms = KeyTerms(hint_of(token), actor, new.models, limits, budget, new.labels)
    key = await request.app[KEYS_IN_REDIS].create(digest_of(token), new.tenant, new.id, terms, new.expires, actor)
    await _done(request, "key.create", actor, key)
    return json_reply({"key": token, **_view_of_held(key, request.app[KEYRING].now())}, status=201)


@needs_redis
async def list_keys(request: web.Request) -> web.Response:
    """GET /keys: keys of Redis and of policy files, sorted by tenant and id, 500 at a time, after `after`."""
    only_query(request, "tenant", "after", "limit")
    limit = number_of(request, "limit", default=_PAGE, maximum=_PAGE)
    await request.app[KEY_FOLLOWER].catch_up()
    ring = request.app[KEYRING]
    page, following = await asyncio.to_thread(
        _listed,
        list(ring.all()),
        request.app[POLICIES].policy_set.policies,
        tenant=request.query.get("tenant"),
        after=request.query.get("after", ""),
        limit=limit,
    )
    used = await request.app[KEYS_IN_REDIS].last_used([key.sha256 for _, key in page])
    now = ring.now()
    views = [_view(owner, key, now) | {"last_used": time_shown(used.get(key.sha256))} for owner, key in page]
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
    return json_reply({"key": token, **_view_of_held(new, now), "replaced": _view_of_held(before, now)}, status=201)


@needs_redis
async def revoke_key(request: web.Request) -> web.Response:
    """DELETE /keys/{tenant}/{id}. The key is rejected at once by this process, and within two seconds by all others."""
    actor, key = actor_of(request), await _existing(request)
    revoked = await request.app[KEYS_IN_REDIS].revoke(key.tenant, key.id, actor)
    await _done(request, "key.revoke", actor, revoked)
    return json_reply(_view_of_held(revoked, request.app[KEYRING].now()))


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


def _listed(
    held: Iterable[HeldKey], policies: Iterable[TenantPolicy], *, tenant: str | None, after: str, limit: int
) -> tuple[list[tuple[str, HeldKey | KeyEntry]], str | None]:
    """Return a page of the keys of one or of all tenants, and the name of its last key if more follow.

    The page begins after the key `after` (`tenant/id`). For many keys the call takes tens of ms: run it in a thread.
    """
    found: list[tuple[tuple[str, str], HeldKey | KeyEntry]] = [((key.tenant, key.id), key) for key in held]
    found += [((policy.tenant, key.id), key) for policy in policies for key in policy.keys]
    start = after.partition("/")[::2]
    rest = [(name, key) for name, key in found if tenant in {None, name[0]} and (not after or name > start)]
    rest.sort(key=itemgetter(0))
    following = "/".join(rest[limit - 1][0]) if len(rest) > limit else None
    return [(owner, key) for (owner, _), key in rest[:limit]], following


def _view(tenant: str, key: HeldKey | KeyEntry, now: float) -> dict[str, Any]:
    return _view_of_held(key, now) if isinstance(key, HeldKey) else _view_of_file(tenant, key, now)


def _view_of_held(key: HeldKey, now: float) -> dict[str, Any]:
    return {
        "tenant": key.tenant,
        "id": key.id,
        "source": "redis",
        "status": key.status(now),
        "hint": key.terms.hint,
        "created": time_shown(key.created_s),
        "created_by": key.terms.created_by,
        "expires": time_shown(key.expires_s),
        "revoked": time_shown(key.revoked_s),
        "replaces": key.replaces,
        "models": key.terms.models,
        "limits": key.terms.limits,
        "budget": key.terms.budget,
        "labels": key.terms.labels,
    }


def _view_of_file(tenant: str, key: KeyEntry, now: float) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "id": key.id,
        "source": "file",
        "status": "expired" if key.expires is not None and key.expires <= now else "active",
        "expires": time_shown(key.expires),
        "models": key.models,
        "limits": policy_fields(key.limits),
        "budget": policy_fields(key.budget),
        "labels": key.labels,
        **dict.fromkeys(("hint", "created", "created_by", "revoked", "replaces")),
    }
