"""Create, rotate, revoke and read keys in Redis. Each change is one script."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.errors import Conflict, NotFound
from gateway.keys.held import HeldKey
from gateway.redis.script import RedisScript

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.keys.held import KeyTerms
    from gateway.redis.keys import RedisKeys

MAX_KEYS = 100_000
"""Limit of keys in Redis, including keys that ended within the last 30 days."""
_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class KeyExpiry:
    """The expiry of a key: at a time in Unix seconds, in some seconds from its creation, or never."""

    at_s: float | None = None
    in_s: float | None = None

    def arguments(self) -> tuple[int, int]:
        """Return the arguments of a script, in microseconds."""
        return _us(self.at_s), _us(self.in_s)


NEVER = KeyExpiry()


class HistoryHead(NamedTuple):
    """The last version of the history of keys. `nonce` distinguishes histories, because Redis may lose its data."""

    version: int = 0
    nonce: str = ""


class KeyringChanges(NamedTuple):
    """A page of changes."""

    known: bool  # whether the history contains the head of the request. If not, the page has no keys.
    head: HistoryHead
    total_keys: int  # in Redis
    redis_s: float  # time by Redis' clock, in Unix seconds
    read_version: int  # version up to which this page contains changes
    keys: Sequence[HeldKey]
    unreadable: int  # number of keys of this page that this version of the gateway cannot read

    @property
    def last(self) -> bool:
        """Return whether this is the last page."""
        return self.read_version >= self.head.version


class RedisKeyring:
    """Keys in Redis. Every method makes one call to Redis, and raises RedisError and OSError.

    A page is small enough to read within redis.timeout, which may be short.
    """

    def __init__(
        self,
        redis: Redis,
        keys: RedisKeys,
        *,
        page_size: int = 200,
        max_used: int = 2 * MAX_KEYS,
        max_keys: int = MAX_KEYS,
    ) -> None:
        names = keys.keyring()
        self._page_size, self._max_used, self._max_keys = page_size, max_used, max_keys
        self._redis, self._used, self._all = redis, names.used, list(names)
        self._read_keys = [names.terms, names.dates, names.changes, names.heads, names.state]
        self._create = RedisScript(redis, "gateway.keys", "common.lua", "create.lua")
        self._rotate = RedisScript(redis, "gateway.keys", "common.lua", "rotate.lua")
        self._revoke = RedisScript(redis, "gateway.keys", "common.lua", "revoke.lua")
        self._read = RedisScript(redis, "gateway.keys", "read.lua")
        self._record_use = RedisScript(redis, "gateway.keys", "saw.lua")

    async def create(
        self, sha256: str, tenant: str, key_id: str, terms: KeyTerms, expiry: KeyExpiry, actor: str
    ) -> HeldKey:
        """Store a new key. Also raises Conflict."""
        what = (sha256, tenant, key_id, terms.to_json(), *expiry.arguments())
        (reply,) = await self._create.run([(self._all, (*what, _nonce(), self._max_keys, actor))])
        return _held(reply, sha256.encode(), f"{tenant}/{key_id}")

    async def rotate(
        self, old: HeldKey, sha256: str, terms: KeyTerms, *, grace_s: float, expiry: KeyExpiry, actor: str
    ) -> tuple[HeldKey, HeldKey]:
        """Replace an old key by a new key. Return both: (new, old).

        Without an expiry, the new key has that of the old key. Also raises Conflict.
        """
        what = (sha256, old.tenant, old.id, terms.to_json(), old.sha256, _us(grace_s), *expiry.arguments())
        (reply,) = await self._rotate.run([(self._all, (*what, _nonce(), self._max_keys, actor))])
        new = _held(reply, sha256.encode(), f"{old.tenant}/{old.id}")
        return new, HeldKey.of(*reply[3:6])

    async def revoke(self, tenant: str, key_id: str, actor: str) -> HeldKey:
        """Revoke a key at once. Also raises NotFound."""
        (reply,) = await self._revoke.run([(self._all, [tenant, key_id, _nonce(), actor])])
        if reply[0] == b"unknown":
            raise NotFound(f"Tenant '{tenant}' has no key '{key_id}' in Redis.", param="id")
        return HeldKey.of(reply[3], reply[1], reply[2])

    async def read(self, seen: HistoryHead, after: int) -> KeyringChanges:
        """Return a page of changes after the version `after`, if the history contains the head `seen`."""
        arguments = (seen.version, seen.nonce, after, self._page_size)
        (reply,) = await self._read.run([(self._read_keys, arguments)])
        known, version, nonce, total, redis_us, *flat = reply
        head = HistoryHead(int(version), nonce.decode())
        keys, unreadable, read_version = [], 0, after
        for i in range(0, len(flat), 4):
            read_version = int(flat[i + 1])
            try:
                keys.append(HeldKey.of(flat[i], flat[i + 2], flat[i + 3]))
            except (ValueError, TypeError, AttributeError, msgspec.MsgspecError):
                unreadable += 1
        if len(flat) < 4 * self._page_size:
            read_version = head.version
        return KeyringChanges(bool(known), head, total, int(redis_us) / _MICRO, read_version, keys, unreadable)

    async def record_use(self, hashes: Iterable[str]) -> None:
        """Store the current time as the last use of these keys."""
        await self._record_use.run([([self._used], [self._max_used, *hashes])])

    async def last_used(self, hashes: Sequence[str]) -> Mapping[str, float]:
        """Return the time of the last use by key, in Unix seconds, without unused keys."""
        if not hashes:
            return {}
        scores: Any = await self._redis.zmscore(self._used, list(hashes))
        return {sha: float(us) / _MICRO for sha, us in zip(hashes, scores, strict=True) if us is not None}


def _nonce() -> str:
    return secrets.token_hex(8)


def _us(seconds: float | None) -> int:
    return round((seconds or 0) * _MICRO)


_CONFLICTS = {
    b"taken": "Key {name} already exists. Use another id, or rotate the key.",
    b"full": f"The limit of {MAX_KEYS} keys is reached. Keys that ended are deleted after 30 days.",
    b"past": "'expires' is in the past.",
    b"changed": "Key {name} was changed concurrently. Read it again, and retry.",
    b"revoked": "Key {name} is revoked, so it cannot be rotated. Create a new key.",
    b"expired": "Key {name} has expired, so it cannot be rotated. Create a new key.",
    b"replaced": "Key {name} was already rotated. Rotate the key that replaced it.",
}


def _held(reply: list[Any], sha256: bytes, name: str) -> HeldKey:
    if reply[0] != b"ok":
        raise Conflict(_CONFLICTS[reply[0]].format(name=f"'{name}'"))
    return HeldKey.of(sha256, reply[1], reply[2])
