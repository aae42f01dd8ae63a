"""Run Lua scripts in Redis."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis


class RedisScript:
    """A script in files of a package, called by its hash. redis-py's own class needs a round trip more per pipeline."""

    def __init__(self, redis: Redis, package: str, *names: str) -> None:
        self._redis = redis
        self._text = "\n".join(files(package).joinpath(name).read_text("utf-8") for name in names)
        self._sha = redis.register_script(self._text).sha

    async def run(self, calls: Sequence[tuple[list[str], Sequence[bytes | str | int]]]) -> list[Any]:
        """Return the reply of each call. Where Redis lacks the script, load it and send all calls again."""
        try:
            return await self._run(calls)
        except NoScriptError:
            await self._redis.script_load(self._text)
            return await self._run(calls)

    async def _run(self, calls: Sequence[tuple[list[str], Sequence[bytes | str | int]]]) -> list[Any]:
        if len(calls) == 1:
            keys, values = calls[0]
            return [await self._redis.evalsha(self._sha, len(keys), *keys, *values)]
        async with self._redis.pipeline(transaction=False) as pipe:
            for keys, values in calls:
                pipe.evalsha(self._sha, len(keys), *keys, *values)
            return await pipe.execute()
