"""Keys while Redis is down, hangs, or has lost its data."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis.asyncio import Redis

from gateway.errors import StartupError
from gateway.keys.follower import KeyFollower
from gateway.keys.held import Keyring, KeyTerms
from gateway.keys.redis_keyring import NEVER, RedisKeyring
from gateway.keys.token import digest_of, hint_of, new_token
from gateway.local.redis import EmbeddedRedis
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.telemetry.metrics import Metrics
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway
from tests.redis_faults import paused

if TYPE_CHECKING:
    from pathlib import Path

ADMIN_KEY = "an-admin-key-for-tests"


class World:
    def __init__(self, process: GatewayProcess, client: httpx.AsyncClient) -> None:
        self._process = process
        self._client = client

    async def ask(self, token: str) -> int:
        body = {"model": "chat-student", "messages": [{"role": "user", "content": "Hello"}]}
        headers = {"Authorization": f"Bearer {token}"}
        return (
            await self._client.post(f"{self._process.url}/v1/chat/completions", json=body, headers=headers)
        ).status_code

    async def admin(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        return await self._client.request(method, self._process.admin_url + path, json=body, headers=headers)

    async def until(self, token: str, status: int) -> None:
        for _ in range(500):
            if await self.ask(token) == status:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(await self.ask(token))


@pytest.mark.long
async def test_known_keys_are_valid_during_an_outage_and_end_with_an_empty_redis(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text(ADMIN_KEY)
    with FakeEngine(says("Hello there.")).running() as engine:
        async with EmbeddedRedis() as redis, httpx.AsyncClient(timeout=20) as client:
            with running_gateway(
                tmp_path,
                redis_url=redis.url,
                redis={"timeout": "300ms"},
                admin={"key": "file:admin.key"},
                models=[model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False)],
                routes=[STUDENT_ONLY | {"baseline": "small"}],
            ) as process:
                world = World(process, client)
                made = (await world.admin("POST", "/keys", {"tenant": "acme", "id": "made"})).json()
                ended = (await world.admin("POST", "/keys", {"tenant": "acme", "id": "ended", "expires": "1h"})).json()
                await world.admin("DELETE", "/keys/acme/ended")

                async with paused(redis.url):
                    refused = await world.admin("POST", "/keys", {"tenant": "acme", "id": "more"})
                    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
                    assert "Check whether the change was applied" in refused.json()["error"]["message"]
                    listed = await world.admin("GET", "/keys")
                    assert listed.status_code == 503
                    assert listed.json()["error"]["message"] == (
                        "Redis is unavailable. Send the request again when Redis answers."
                    )
                    assert [await world.ask(one["key"]) for one in (made, ended)] == [200, 401]
                await redis.stop()
                process.wait_for_log("keys_not_read")
                keys = (await client.get(f"{process.admin_url}/readyz")).json()["keys"]
                assert keys["in_redis"] in {2, 3}
                assert keys["read_ago_s"] >= 0.1
                assert [await world.ask(one["key"]) for one in (made, ended)] == [200, 401]
                for method, path in (("GET", "/keys"), ("DELETE", "/keys/acme/made"), ("GET", "/audit")):
                    assert (await world.admin(method, path)).status_code == 503

                await redis.start()
                await world.until(made["key"], 401)
                lost = process.wait_for_log("keys_reloaded")
                assert (lost["before"], lost["now"]) in {(2, 0), (3, 0)}
                assert await world.ask(KEY) == 200, "keys of the policy files are in no Redis"
                for _ in range(500):
                    again = await world.admin("POST", "/keys", {"tenant": "acme", "id": "made"})
                    if again.status_code == 201:
                        break
                    await asyncio.sleep(0.02)
                assert await world.ask(again.json()["key"]) == 200
                quiet = [line for line in process.log if line["event"] == "keys_not_read"]
                assert len(quiet) <= 3, "it is said once each time that Redis goes"


async def test_a_gateway_reads_its_keys_before_it_listens(tmp_path: Path, redis_url: str) -> None:
    prefix, token = f"s{os.urandom(4).hex()}", new_token()
    async with Redis.from_url(redis_url) as redis:
        await RedisKeyring(redis, RedisKeys(prefix)).create(
            digest_of(token), "acme", "made", KeyTerms(hint_of(token), "admin"), NEVER, "admin"
        )
    with running_gateway(
        tmp_path,
        redis_url=redis_url,
        redis={"prefix": prefix},
        models=[model("small", "openai", "http://127.0.0.1:1/v1", continuation="trailing", echo=False)],
        routes=[STUDENT_ONLY | {"baseline": "small"}],
    ) as process:
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(headers=headers) as client:
            assert (await client.get(f"{process.url}/v1/models")).status_code == 200


async def test_a_gateway_does_not_start_without_its_keys() -> None:
    """Without its keys, the gateway would reject valid ones."""
    client = RedisClient("redis://127.0.0.1:1", timeout_s=0.1, metrics=Metrics())
    follower = KeyFollower(client, RedisKeyring(client.commands, RedisKeys("gkt")), Keyring())
    with pytest.raises(StartupError, match="keys cannot be read from Redis"):
        await follower.start()
    await client.close()
