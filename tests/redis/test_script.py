"""Scripts are loaded where Redis lacks them, and each call gets its own reply."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from gateway.redis.client import RedisClient
from gateway.redis.script import RedisScript
from gateway.telemetry.metrics import Metrics


async def test_each_call_gets_its_own_reply_also_after_an_error(redis_url: str) -> None:
    """Redis lacks the script at first. After an error among several replies, no reply is left unread."""
    async with Redis.from_url(redis_url) as redis:
        await redis.script_flush()
        script = RedisScript(redis, "tests.redis", "echo.lua")
        calls = [([f"k{number}"], [b"%d" % number]) for number in range(3)]
        replies = [[b"k%d" % number, b"%d" % number] for number in range(3)]
        assert await script.run(calls) == replies
        with pytest.raises(ResponseError, match="bad"):
            await script.run([calls[0], (["k"], [b"bad"]), calls[1]])
        assert await script.run(calls[:1]) == replies[:1]


async def test_a_connection_that_redis_closed_is_replaced(redis_url: str) -> None:
    """Redis may have closed an idle pooled connection: that is no failure."""
    async with Redis.from_url(redis_url) as redis, Redis.from_url(redis_url) as admin:
        script = RedisScript(redis, "tests.redis", "echo.lua")
        assert await script.run([(["k"], [b"1"])]) == [[b"k", b"1"]]
        await admin.client_kill_filter(_type="normal", skipme=True)
        assert await script.run([(["k"], [b"2"])]) == [[b"k", b"2"]]


async def test_a_node_failure_takes_the_place_of_the_reply_also_of_a_single_call() -> None:
    """Otherwise the calls for other nodes, which follow in another batch, would not be sent."""
    client = RedisClient("redis+cluster://127.0.0.1:1", timeout_s=5.0, metrics=Metrics())
    script = RedisScript(client.commands, "tests.redis", "echo.lua")
    (reply,) = await script.run_each([(["k"], [b"1"])])
    assert isinstance(reply, RedisConnectionError)
    with pytest.raises(RedisConnectionError):
        await script.run([(["k"], [b"1"])])
    await client.close()
