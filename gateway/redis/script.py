"""Run Lua scripts in Redis."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway.redis.slots import by_slot, is_cluster, is_node_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio import Redis

_Item = TypeVar("_Item")


class RedisScript:
    """A script in files of a package, called by its hash. redis-py's own class needs a round trip more per pipeline."""

    def __init__(self, redis: Redis, package: str, *names: str) -> None:
        self._redis = redis
        self._text = "\n".join(files(package).joinpath(name).read_text("utf-8") for name in names)
        self._sha = redis.register_script(self._text).sha

    async def run(self, calls: Sequence[tuple[list[str], Sequence[bytes | str | int]]]) -> list[Any]:
        """Return the reply of each call. Raises RedisError and OSError: any of the calls failed."""
        replies = await self.run_each(calls)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def run_each(self, calls: Sequence[tuple[list[str], Sequence[bytes | str | int]]]) -> list[Any]:
        """Return the reply or the error of each call. Where Redis lacks the script, load it and send the call again.

        The nodes of a cluster fail separately. Raises RedisError and OSError if a server without nodes fails.
        """
        replies = await self._run(calls)
        missing = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:
            await self._redis.script_load(self._text)
            for index, reply in zip(missing, await self._run([calls[index] for index in missing]), strict=True):
                replies[index] = reply
        return replies

    async def _run(self, calls: Sequence[tuple[list[str], Sequence[bytes | str | int]]]) -> list[Any]:
        if len(calls) == 1:
            keys, values = calls[0]
            try:
                return [await self._redis.evalsha(self._sha, len(keys), *keys, *values)]
            except (RedisError, OSError) as error:
                if isinstance(error, ResponseError) or is_cluster(self._redis):
                    return [error]
                raise
        async with self._redis.pipeline(transaction=False) as pipe:
            for keys, values in calls:
                pipe.evalsha(self._sha, len(keys), *keys, *values)
            return await pipe.execute(raise_on_error=False)


async def each_group(
    redis: Redis, script: RedisScript, items: Sequence[_Item], key: Callable[[_Item], str]
) -> list[tuple[Sequence[_Item], Any]]:
    """Run a script on the keys of items, one call per slot in a cluster. Return groups of items with replies.

    Groups whose node failed are left out.
    """
    groups = by_slot(redis, items, key)
    calls: list[tuple[list[str], Sequence[str]]] = [([key(one) for one in group], ()) for group in groups]
    found = list(zip(groups, await script.run_each(calls), strict=True))
    for _, reply in found:
        if isinstance(reply, Exception) and not is_node_failure(redis, reply):
            raise reply
    return [(group, reply) for group, reply in found if not isinstance(reply, Exception)]
