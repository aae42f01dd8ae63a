"""Whose a key is, wherever it is kept."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from gateway.errors import NotAuthenticated
from gateway.keys.token import digest_of
from gateway.policy.book import Caller

if TYPE_CHECKING:
    from gateway.keys.follower import KeyFollower
    from gateway.keys.held import HeldKey
    from gateway.keys.ring import Keyring
    from gateway.policy.policies import Policies
    from gateway.policy.schema import KeyEntry

log = structlog.get_logger()

_ASK = "Ask whoever runs this gateway for a new one."


class Callers:
    """The keys of the policy files and those of Redis as one. A key that stands in both is the file's."""

    def __init__(self, policies: Policies, ring: Keyring, follower: KeyFollower) -> None:
        self._policies = policies
        self._ring = ring
        self._follower = follower

    def authenticate(self, token: str) -> Caller:
        """Who shows this key. Raises NotAuthenticated, which says why and never holds the key.

        A plain dict is safe here. It compares the SHA-256 of what was sent, and the time it takes can tell at most
        how much of *that hash* is shared with a stored one. To use this, a stranger would have to find keys whose
        hash begins as wanted, which costs as much as guessing, and would learn a hash, not a key.
        """
        digest = digest_of(token)
        caller = self._policies.book.caller_of(digest) or self._made(digest)
        if caller is None:
            raise NotAuthenticated("The API key is not known here. Check it, or ask whoever runs this gateway for one.")
        expires_s = caller.key.expires
        if expires_s is not None and expires_s <= self._ring.now():
            raise NotAuthenticated(f"This API key expired on {utc_text(expires_s)}. {_ASK}")
        self._follower.record_use(digest)
        return caller

    def _made(self, digest: str) -> Caller | None:
        """The caller of a key that is in Redis."""
        held = self._ring.find(digest)
        if held is None:
            return None
        match held.status(self._ring.now()):
            case "revoked":
                raise NotAuthenticated(f"This API key was revoked. {_ASK}")
            case "replaced":
                raise NotAuthenticated("This API key was replaced by a new one, and its grace time is over. Use that.")
        policy = self._policies.book.policy_of(held.tenant)
        if policy is None:
            raise NotAuthenticated("This API key is of a tenant that this gateway serves no more.")
        return Caller(policy, _entry(held))


def _entry(held: HeldKey) -> KeyEntry:
    try:
        return held.entry
    except ValueError:
        # A newer version of the gateway made it. To leave out a limit that it has would be worse.
        log.error("key_unreadable", tenant=held.tenant, key=held.id)
        raise NotAuthenticated(
            "What this API key may do cannot be read by this version of the gateway. Ask whoever runs it."
        ) from None


def utc_text(unix_s: float) -> str:
    """A time for people, in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
