"""What operators see of keys: the same words for one of Redis and one of a policy file."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from gateway.keys.held import HeldKey, policy_fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.policy.schema import KeyEntry, TenantPolicy

View: TypeAlias = dict[str, Any]


class ListedKey(NamedTuple):
    """A key, wherever it is kept, by what lists are sorted by."""

    tenant: str
    id: str
    key: HeldKey | KeyEntry

    @property
    def name(self) -> tuple[str, str]:
        return self.tenant, self.id


def listed(
    held: Iterable[HeldKey], policies: Iterable[TenantPolicy], *, tenant: str | None, after: str, most: int
) -> tuple[list[ListedKey], str | None]:
    """A page of all keys, or of those of a tenant, that come after `tenant/id`; and its last one if more follow.

    It takes tens of milliseconds where there are many: call it in a thread.
    """
    found = [ListedKey(key.tenant, key.id, key) for key in held if tenant in {None, key.tenant}]
    for policy in policies:
        if tenant in {None, policy.tenant}:
            found += [ListedKey(policy.tenant, key.id, key) for key in policy.keys]
    start = after.partition("/")[::2]
    rest = sorted((one for one in found if not after or one.name > start), key=lambda one: one.name)
    page = rest[:most]
    return page, "/".join(page[-1].name) if len(rest) > most else None


def view(one: ListedKey, now: float) -> View:
    """A key of a list."""
    return view_of_held(one.key, now) if isinstance(one.key, HeldKey) else _view_of_file(one.tenant, one.key, now)


def view_of_held(key: HeldKey, now: float) -> View:
    """A key of Redis."""
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
    """A time as JSON says it: RFC 3339, in UTC, to the second."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
