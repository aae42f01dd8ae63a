"""Authenticate callers by their API keys, or by tokens of issuers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from gateway.errors import NotAuthenticated
from gateway.keys.token import digest_of
from gateway.policy.book import Caller

if TYPE_CHECKING:
    from gateway.keys.follower import KeyFollower
    from gateway.keys.held import HeldKey, Keyring
    from gateway.keys.token_callers import TokenCallers
    from gateway.policy.key_entry import KeyEntry
    from gateway.policy.policies import Policies

log = structlog.get_logger()

_NEW_KEY = "Ask the operator of this gateway for a new key."


class Callers:
    """Keys of policy files and of Redis, and tokens. If a key is in both, the policy file applies."""

    def __init__(self, policies: Policies, ring: Keyring, follower: KeyFollower, tokens: TokenCallers) -> None:
        self._policies = policies
        self._ring = ring
        self._follower = follower
        self._tokens = tokens

    def known(self, token: str) -> Caller | None:
        """Return the caller with this key, or with this token if it was verified before; None: verify the token.

        Raises NotAuthenticated with the reason, never with the key. A key is no token, whatever its form.

        A dict lookup is safe against timing attacks. It compares SHA-256 digests, so its time reveals at most a common
        prefix of two digests. Finding a key with a given digest prefix costs as much as guessing keys.
        """
        digest = digest_of(token)
        caller = self._policies.policy_set.caller_of(digest) or self._from_redis(digest)
        if caller is None:
            if (found := self._tokens.known(digest)) is not None or self._tokens.takes(token):
                return found
            raise NotAuthenticated("Unknown API key. Check the key, or ask the operator of this gateway for one.")
        expires_s = caller.key.expires
        if expires_s is not None and expires_s <= self._ring.now():
            raise NotAuthenticated(f"This API key expired on {utc_text(expires_s)}. {_NEW_KEY}")
        self._follower.record_use(digest)
        return caller

    async def authenticate(self, token: str) -> Caller:
        """Return the caller with this key or token. Raises NotAuthenticated with the reason.

        A token is verified with the keys of its issuer. An unknown key of the issuer may take some seconds to read.
        """
        return self.known(token) or await self._tokens.verify(token, digest_of(token))

    def _from_redis(self, digest: str) -> Caller | None:
        held = self._ring.find(digest)
        if held is None:
            return None
        match held.status(self._ring.now()):
            case "revoked":
                raise NotAuthenticated(f"This API key was revoked. {_NEW_KEY}")
            case "replaced":
                raise NotAuthenticated("This API key was rotated, and its grace period is over. Use the new key.")
        policy = self._policies.policy_set.policy_of(held.tenant)
        if policy is None:
            raise NotAuthenticated("The tenant of this API key is no longer served by this gateway.")
        return Caller(policy, _entry(held))


def _entry(held: HeldKey) -> KeyEntry:
    try:
        return held.entry
    except ValueError:
        # A newer version of the gateway created the key. Rejecting it is safer than ignoring one of its limits.
        log.error("key_unreadable", tenant=held.tenant, key=held.id)
        raise NotAuthenticated(
            "This version of the gateway cannot read the permissions of this API key. Ask the operator of this gateway."
        ) from None


def utc_text(unix_s: float) -> str:
    """Return a time in UTC for messages."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
