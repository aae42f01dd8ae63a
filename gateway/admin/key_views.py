"""Keys as the admin API lists them, with the same fields for keys in Redis and in policy files."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from gateway.keys.held import HeldKey, policy_fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.policy.schema import KeyEntry, TenantPolicy

View: TypeAlias = dict[str, Any]


class ListedKey(NamedTuple):
    """A key of Redis or of a policy file, with the fields that lists are sorted by."""

    tenant: str
    id: str
    key: HeldKey | KeyEntry

    @property
    def name(self) -> tuple[str, str]:
        return self.tenant, self.id


def listed(
    held: Iterable[HeldKey], policies: Iterable[TenantPolicy], *, tenant: str | None, after: str, limit: int
) -> tuple[list[ListedKey], str | None]:
    """Return a page of keys, and the name of its last key if more follow.

    The call takes tens of milliseconds for many keys: run it in a thread.

    Args:
        tenant: the only tenant of the list; None lists all tenants.
        after: `tenant/id` of the last key of the previous page.
    """
    found = [ListedKey(key.tenant, key.id, key) for key in held if tenant in {None, key.tenant}]
    for policy in policies:
        if tenant in {None, policy.tenant}:
            found += [ListedKey(policy.tenant, key.id, key) for key in policy.keys]
    start = after.partition("/")[::2]
    rest = sorted((one for one in found if not after or one.name > start), key=lambda one: one.name)
    page = rest[:limit]
    return page, "/".join(page[-1].name) if len(rest) > limit else None


def view(one: ListedKey, now: float) -> View:
    """Return a listed key as JSON fields."""
    return view_of_held(one.key, now) if isinstance(one.key, HeldKey) else _view_of_file(one.tenant, one.key, now)


def view_of_held(key: HeldKey, now: float) -> View:
    """Return a key of Redis as JSON fields."""
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
    }


def _view_of_file(tenant: str, key: KeyEntry, now: float) -> View:
    return {
        "tenant": tenant,
        "id": key.id,
        "source": "file",
        "status": "expired" if key.expires is not None and key.expires <= now else "active",
        "hint": None,
        "created": None,
        "created_by": None,
        "expires": time_shown(key.expires),
        "revoked": None,
        "replaces": None,
        "models": key.models,
        "limits": policy_fields(key.limits),
        "budget": policy_fields(key.budget),
    }


def time_shown(unix_s: float | None) -> str | None:
    """Return a time in RFC 3339, in UTC, to the second."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
