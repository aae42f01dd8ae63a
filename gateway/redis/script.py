"""Running a script in Redis."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from hiredis import pack_command
from redis.exceptions import NoScriptError, ResponseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection


class Script:
    """A script by its hash. (redis-py's own asks for the hash before each pipeline, which is a round trip more.)"""

    def __init__(self, redis: Redis, package: str, name: str) -> None:
        self._redis = redis
        self._text = files(package).joinpath(name).read_text("utf-8")
        self._sha = redis.register_script(self._text).sha

    async def run(self, calls: Sequence[tuple[list[str], Sequence[bytes]]]) -> list[Any]:
        """What each call returned. A script that Redis does not know yet is told, and all calls are made again."""
        try:
            return await self._run(calls)
        except NoScriptError:
            await self._redis.script_load(self._text)
            return await self._run(calls)

    async def _run(self, calls: Sequence[tuple[list[str], Sequence[bytes]]]) -> list[Any]:
        """Send the calls as `Redis.execute_command` does, without its metrics, packed in C: a fifth less CPU time."""
        commands: list[Any] = [("EVALSHA", self._sha, len(keys), *keys, *values) for keys, values in calls]
        packed = [pack_command(command) for command in commands]
        pool: Any = self._redis.connection_pool
        connection = pool.get_available_connection()
        try:
            await pool.ensure_connection(connection)
            replies: list[Any] = await connection.retry.call_with_retry(
                lambda: _exchange(connection, packed), lambda _: connection.disconnect()
            )
            return replies
        finally:
            await pool.release(connection)


async def _exchange(connection: AbstractConnection, packed: list[bytes]) -> list[Any]:
    await connection.send_packed_command(packed)
    replies = []
    for _ in packed:
        try:
            replies.append(await connection.read_response())
        except ResponseError as error:
            replies.append(error)
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise reply
    return replies
