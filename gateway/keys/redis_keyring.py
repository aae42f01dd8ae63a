"""The keys in Redis: what changes them, each in one script, and what a process reads of them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import Conflict, NotFound
from gateway.keys.held import HeldKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis.asyncio import Redis
    from redis.commands.core import AsyncScript

    from gateway.keys.held import KeyTerms
    from gateway.redis.keys import RedisKeys

MAX_KEYS = 100_000
"""In Redis, those included that ended within the last 30 days."""
_MOST_USED = 2 * MAX_KEYS
# Read within redis.timeout, which may be short.
_PAGE = 200
_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class KeyExpiry:
    """When a key ends: at a moment in Unix seconds, or after some seconds from when it is made; neither: never."""

    at_s: float | None = None
    in_s: float | None = None

    def arguments(self) -> tuple[int, int]:
        return _us(self.at_s), _us(self.in_s)


NEVER = KeyExpiry()


@dataclass(frozen=True, slots=True)
class HistoryHead:
    """The end of the history of keys. Its word tells it from other histories: Redis may have begun anew."""

    version: int = 0
    word: str = ""


@dataclass(frozen=True, slots=True)
class KeyringChanges:
    """Some of what changed.

    Attributes:
        known: whether the history has the head that was asked with. Else nothing more is told.
        read_version: the version up to which this page tells.
        total_keys: how many there are in Redis.
        unreadable: how many of the page this version of the gateway cannot read.
    """

    known: bool
    head: HistoryHead
    total_keys: int
    redis_s: float
    read_version: int
    keys: Sequence[HeldKey]
    unreadable: int

    @property
    def last(self) -> bool:
        return self.read_version >= self.head.version


class RedisKeyring:
    """Every method awaits Redis once, and raises RedisError and OSError when that cannot be."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        names = keys.keyring()
        self._redis = redis
        self._used = names.used
        self._all = names.as_list()
        self._read_keys = [names.terms, names.dates, names.changes, names.heads, names.state]
        self._create = _script(redis, "common.lua", "create.lua")
        self._rotate = _script(redis, "common.lua", "rotate.lua")
        self._revoke = _script(redis, "common.lua", "revoke.lua")
        self._read = _script(redis, "read.lua")
        self._saw = _script(redis, "saw.lua")

    async def create(
        self, sha256: str, tenant: str, key_id: str, terms: KeyTerms, expiry: KeyExpiry, actor: str
    ) -> HeldKey:
        """Keep a new key. Raises Conflict as well."""
        said = await self._create(
            keys=self._all,
            args=[sha256, tenant, key_id, terms.to_json(), *expiry.arguments(), _word(), MAX_KEYS, actor],
        )
        return _held(said, sha256.encode(), f"{tenant}/{key_id}")

    async def rotate(
        self, old: HeldKey, sha256: str, terms: KeyTerms, *, grace_s: float, expiry: KeyExpiry, actor: str
    ) -> tuple[HeldKey, HeldKey]:
        """Put a new key in the place of an old one: (new, old). Without an expiry the new one has that of the old one.

        Raises Conflict as well.
        """
        said = await self._rotate(
            keys=self._all,
            args=[
                *(sha256, old.tenant, old.id, terms.to_json(), old.sha256),
                *(_us(grace_s), *expiry.arguments(), _word(), MAX_KEYS, actor),
            ],
        )
        new = _held(said, sha256.encode(), f"{old.tenant}/{old.id}")
        return new, HeldKey.of(*said[3:6])

    async def revoke(self, tenant: str, key_id: str, actor: str) -> HeldKey:
        """End a key at once. Raises NotFound as well."""
        said = await self._revoke(keys=self._all, args=[tenant, key_id, _word(), actor])
        if said[0] == b"unknown":
            raise NotFound(f"Tenant '{tenant}' has no key '{key_id}' in Redis.", param="id")
        return HeldKey.of(said[3], said[1], said[2])

    async def read(self, seen: HistoryHead, after: int) -> KeyringChanges:
        """What changed after a version, if the history is still the one that had the head `seen`."""
        known, version, word, in_all, redis_us, *flat = await self._read(
            keys=self._read_keys, args=[seen.version, seen.word, after, _PAGE]
        )
        head = HistoryHead(int(version), word.decode())
        keys, unreadable, read_version = [], 0, after
        for i in range(0, len(flat), 4):
            read_version = int(flat[i + 1])
            try:
                keys.append(HeldKey.of(flat[i], flat[i + 2], flat[i + 3]))
            except (ValueError, TypeError, AttributeError, msgspec.MsgspecError):
                unreadable += 1
        if len(flat) < 4 * _PAGE:
            read_version = head.version
        return KeyringChanges(bool(known), head, in_all, int(redis_us) / _MICRO, read_version, keys, unreadable)

    async def record_use(self, hashes: Iterable[str]) -> None:
        """These keys were in use."""
        await self._saw(keys=[self._used], args=[_MOST_USED, *hashes])

    async def last_used(self, hashes: Sequence[str]) -> Mapping[str, float]:
        """When each was last seen in use, in Unix seconds; those that were not are missing."""
        if not hashes:
            return {}
        found: Any = await self._redis.zmscore(self._used, list(hashes))
        return {one: float(us) / _MICRO for one, us in zip(hashes, found, strict=True) if us is not None}


def _script(redis: Redis, *names: str) -> AsyncScript:
    folder = files("gateway.keys")
    return redis.register_script("\n".join(folder.joinpath(name).read_text("utf-8") for name in names))


def _word() -> str:
    return secrets.token_hex(8)


def _us(seconds: float | None) -> int:
    return round((seconds or 0) * _MICRO)


_WRONG = {
    b"taken": "There is a key {name} already. Take another id, or put a new key in its place: rotate it.",
    b"full": f"There are {MAX_KEYS} keys already: more are not taken. Those that ended are forgotten after 30 days.",
    b"past": "'expires' lies in the past.",
    b"changed": "Key {name} was changed by somebody else at the same time. Look at it again.",
    b"revoked": "Key {name} is revoked, so it cannot be rotated. Create another.",
    b"expired": "Key {name} has expired, so it cannot be rotated. Create another.",
    b"replaced": "Key {name} was rotated already. Rotate the key that took its place.",
}


def _held(said: list[Any], sha256: bytes, name: str) -> HeldKey:
    if said[0] != b"ok":
        raise Conflict(_WRONG[said[0]].format(name=f"'{name}'"))
    return HeldKey.of(sha256, said[1], said[2])
