"""TLS to Redis Sentinel and Redis Cluster, with a private authority. Servers require a client's certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from redis.exceptions import RedisError

from gateway.errors import StartupError
from gateway.local.redis import find_server
from gateway.redis.script import RedisScript
from gateway.redis.slots import slot_of
from tests.certificates import Authority
from tests.redis_clients import client_on
from tests.redis_groups import TlsFiles, cluster_group, sentinel_group, until

if TYPE_CHECKING:
    from pathlib import Path

_HAS_TLS = b"SSL_CTX_new" in find_server().read_bytes()
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not _HAS_TLS, reason=f"{find_server()} is built without TLS"),
]

KEYS = [f"{{tenant-{number}}}:key" for number in range(60)]


async def refusal(url: str) -> str:
    """Return the error of the startup check."""
    async with client_on(url) as client:
        with pytest.raises(StartupError) as refused:
            await client.require()
    return refused.value.message


def issued(folder: Path) -> TlsFiles:
    authority = Authority(folder)
    return TlsFiles(authority.ca, authority.issue("node"))


def with_files(url: str, own: TlsFiles, other: TlsFiles) -> str:
    return url.replace(*(quote(str(one.ca.parent), safe="") for one in (own, other)))


def without_certificate(url: str) -> str:
    head, _, query = url.partition("?")
    return f"{head}?{'&'.join(option for option in query.split('&') if not option.startswith(('ssl_cert', 'ssl_key')))}"


async def test_a_cluster_with_tls(tmp_path: Path) -> None:
    """Commands, a script, a subscription and a failover work."""
    tls, other = issued(tmp_path / "own"), issued(tmp_path / "other")
    async with cluster_group(tls=tls) as group:
        assert group.url.startswith("rediss+cluster://")
        async with client_on(group.url) as client:
            await client.require()
            script = RedisScript(client.commands, "tests.redis", "echo.lua")
            calls = [([key], [b"%d" % number]) for number, key in enumerate(KEYS)]
            assert await script.run(calls) == [[key.encode(), b"%d" % number] for number, key in enumerate(KEYS)]
            async with client.listening.pubsub() as pubsub:
                await pubsub.subscribe("channel")
                messages = pubsub.listen()
                assert (await anext(messages))["type"] == "subscribe"
                await client.commands.publish("channel", "text")
                assert (await anext(messages))["data"] == b"text"
            victim = await group.owner(slot_of(KEYS[0]))
            await client.commands.set(KEYS[0], 1)
            await victim.kill()

            async def is_served() -> bool:
                try:
                    return client.is_whole and await client.commands.get(KEYS[0]) == b"1"
                except (RedisError, OSError) as error:
                    client.failed(error)
                    return False

            await until(is_served)
            await victim.start()
            await until(group.is_ready)
        assert "certificate" in await refusal(with_files(group.url, tls, other))
        assert "do not answer" in await refusal(without_certificate(group.url))


async def test_a_sentinel_deployment_with_tls(tmp_path: Path) -> None:
    """Sentinels and servers have TLS, and the master fails over."""
    tls, other = issued(tmp_path / "own"), issued(tmp_path / "other")
    async with sentinel_group(tls=tls) as group:
        assert group.url.startswith("rediss+sentinel://")
        async with client_on(group.url) as client:
            await client.require()
            await client.commands.set("key", 1)
            before = await group.master()
            await before.kill()
            await until(lambda: group.has_moved(before))

            async def is_served() -> bool:
                try:
                    return client.up and bool(await client.commands.set("key", 2))
                except (RedisError, OSError) as error:
                    client.failed(error)
                    return False

            await until(is_served)
        assert "certificate" in await refusal(with_files(group.url, tls, other))
        assert "do not answer" in await refusal(without_certificate(group.url))
