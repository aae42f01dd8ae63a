"""Hash slots of keys and commands in a Redis Cluster, and groups of keys that one command may have."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ClusterDownError, RedisError, ResponseError, TryAgainError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis.asyncio import Redis

SLOTS = REDIS_CLUSTER_HASH_SLOTS
_KEYLESS = {"ASKING", "CLUSTER", "CONFIG", "INFO", "PING", "PUBLISH", "PUBSUB", "SCAN", "SCRIPT", "TIME"}
_SCRIPTS = {"EVAL", "EVALSHA"}
_STREAM_READS = {"XREAD", "XREADGROUP"}
_WITH_SUBCOMMAND = {"XGROUP", "XINFO"}
_Item = TypeVar("_Item")


@lru_cache(maxsize=20_000)
def slot_of(key: str | bytes) -> int:
    """Return the hash slot of a key."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def slot_of_command(args: Sequence[Any]) -> int | None:
    """Return the hash slot of the first key of a command; None for a command without keys."""
    words = str(args[0]).upper().split(" ")
    name = words[0]
    if name in _KEYLESS:
        return None
    position = 1
    if name in _SCRIPTS:
        if not int(args[2]):
            return None
        position = 3
    elif name in _STREAM_READS:
        position = next(at for at, arg in enumerate(args) if arg in {b"STREAMS", "STREAMS"}) + 1
    elif name in _WITH_SUBCOMMAND and len(words) == 1:
        position = 2
    return slot_of(args[position])


def is_cluster(redis: Redis) -> bool:
    """Return whether a client is of a cluster, whose nodes fail separately."""
    return bool(getattr(redis, "is_cluster", False))


def is_node_failure(redis: Redis, reply: object) -> bool:
    """Return whether a reply of a cluster is the failure of a node, while the replies of other nodes count."""
    if not is_cluster(redis) or not isinstance(reply, RedisError | OSError):
        return False
    return isinstance(reply, ClusterDownError | TryAgainError) or not isinstance(reply, ResponseError)


def by_slot(redis: Redis, items: Sequence[_Item], key: Callable[[_Item], str]) -> Iterable[Sequence[_Item]]:
    """Divide items into groups whose keys may be in one command: one group for a server, one per slot for a cluster."""
    if not is_cluster(redis):
        return [items] if items else []
    groups: dict[int, list[_Item]] = {}
    for item in items:
        groups.setdefault(slot_of(key(item)), []).append(item)
    return list(groups.values())
