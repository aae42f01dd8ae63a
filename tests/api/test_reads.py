"""Reads of receipts and limits on a real gateway, while one tenant sends more of them than allowed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest

from gateway.local.redis import EmbeddedRedis
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway
from tests.redis_faults import paused

if TYPE_CHECKING:
    from pathlib import Path

READS = ["/v1/receipts/req_" + "0" * 24, "/v1/limits"]
CROWD, CAPACITY = 140, 100


@pytest.mark.long
async def test_a_crowd_of_one_tenant_leaves_another_one_its_reads(tmp_path: Path) -> None:
    """Redis is paused, so that every read stays. The crowd gets the free slots, and the other tenant its share."""
    async with EmbeddedRedis() as redis:
        with running_gateway(
            tmp_path,
            redis_url=redis.url,
            redis={"timeout": "10s"},
            models=[model(name, "openai", "http://127.0.0.1:9/v1", continuation="none") for name in ("big", "small")],
            routes=[STUDENT_ONLY],
            tenants={name: {"limits": {"rpm_limit": 1000}} for name in ("acme", "globex")},
        ) as process:
            async with _client(process, KEY) as crowd, _client(process, OTHER_KEY) as other:
                async with paused(redis.url):
                    held = {_get(crowd, READS[number % 2]) for number in range(CROWD)}
                    refused: set[asyncio.Task[httpx.Response]] = set()
                    while len(refused) < CROWD - CAPACITY:
                        done, held = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
                        refused |= done
                    theirs = [_get(other, path) for path in READS]
                    await asyncio.wait(theirs, timeout=1.0)
                    assert [one.result().text for one in theirs if one.done()] == []
                assert [(await one).status_code for one in theirs] == [404, 200]
                assert {(await one).status_code for one in held} == {404, 200}
                for one in refused:
                    reply = one.result()
                    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "overloaded")
                    assert reply.headers["Retry-After"] == "1"
                    assert "100 reads, its limit, and 100 of them are this tenant's" in reply.json()["error"]["message"]
                metrics = (await other.get(f"{process.admin_url}/metrics")).text
                assert f'gkt_limited_total{{limit="concurrent_reads",tenant="acme"}} {len(refused)}.0' in metrics


def _get(client: httpx.AsyncClient, path: str) -> asyncio.Task[httpx.Response]:
    return asyncio.ensure_future(client.get(path))  # noqa: TID251


def _client(process: GatewayProcess, key: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(
        base_url=process.url, headers={"Authorization": f"Bearer {key}"}, timeout=30, limits=limits
    )
