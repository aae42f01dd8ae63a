"""Redis stops and restarts under a running gateway."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.local.redis import EmbeddedRedis
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from pathlib import Path

_numbers = itertools.count()


async def _ask(client: httpx.AsyncClient) -> httpx.Response:
    """Send a new request each time: identical requests share a teacher call."""
    body = {"model": "chat", "messages": [{"role": "user", "content": f"Hello {next(_numbers)}"}]}
    return await client.post("/v1/chat/completions", json=body)


def _receipt_path(answer: httpx.Response) -> str:
    return f"/v1/receipts/{answer.headers['x-request-id']}"


def _refused(process: GatewayProcess) -> int:
    """Return how many requests were refused for Redis without a receipt."""
    lines = httpx.get(f"{process.admin_url}/metrics").text.splitlines()
    (line,) = [one for one in lines if one.startswith('gkt_refused_total{status="store_unavailable"} ')]
    return round(float(line.split()[1]))


async def _receipt(client: httpx.AsyncClient, answer: httpx.Response) -> dict[str, Any]:
    for _ in range(400):
        found = await client.get(_receipt_path(answer))
        if found.status_code == 200:
            return dict(found.json())
        await asyncio.sleep(0.02)
    raise AssertionError(found.text)


def _client(process: GatewayProcess) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=process.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)


@pytest.mark.timeout(240)  # includes the start of a gateway, of 15 s and more on a busy machine
@pytest.mark.parametrize("on_failure", ["degrade", "reject"])
async def test_without_redis_requests_are_answered_or_rejected_as_configured(tmp_path: Path, on_failure: str) -> None:
    """degrade: the process batches alone and writes its receipts when Redis is back. reject: 503."""
    with FakeEngine(says("The answer begins here", "length")).running() as engine:
        async with EmbeddedRedis() as redis:
            with running_gateway(
                tmp_path,
                redis_url=redis.url,
                redis={"on_failure": on_failure, "timeout": "2s"},
                models=[
                    model("big", "tgi", engine.url),
                    model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
                ],
                routes=[guided(deadline="20s")],
            ) as process:
                await asyncio.to_thread(wait_until_looked_at, process.admin_url)
                async with _client(process) as client:
                    before = await _ask(client)
                    assert (await _receipt(client, before))["batch"]["id"] == "b1"
                    await redis.stop()
                    alone = await asyncio.gather(*(_ask(client) for _ in range(5)))
                    if on_failure == "reject":
                        assert {answer.status_code for answer in alone} == {503}
                        assert alone[0].json()["error"]["code"] == "store_unavailable"
                        assert alone[0].headers["Retry-After"] == "1"
                        sent = [body for body in engine.requests if body["messages"][0]["content"].startswith("Hello")]
                        assert len(sent) == 2, "the teacher and the student, once, before Redis was away"
                    else:
                        assert {answer.headers["x-gkt-mode"] for answer in alone} == {"guided"}
                        assert all(answer.headers["x-gkt-batch"].startswith("local-") for answer in alone)
                        assert (await _receipt(client, alone[0]))["batch"]["id"].startswith("local-")
                    for _ in range(200):
                        if (await client.get("/readyz")).text == "degraded\n":
                            break
                        await asyncio.sleep(0.05)
                    assert (await client.get("/readyz")).status_code == 200
                    assert (await client.get("/readyz")).text == "degraded\n"
                    late = await _ask(client)  # when the process knows that Redis is away
                    process.log.clear()  # only a later line counts
                    await redis.start()
                    await asyncio.to_thread(process.wait_for_log, "fleet_rejoined", 30, teacher="big")
                    after = await _ask(client)
                    assert after.status_code == 200
                    assert after.headers["x-gkt-batch"].startswith("b"), process.raw_log
                    if on_failure == "reject":
                        # Where Redis was asked for the first ones, it may have reserved for them.
                        unreserved = _refused(process)
                        assert 1 <= unreserved <= len([*alone, late])
                        found = [await client.get(_receipt_path(answer)) for answer in (*alone, late)]
                        assert [one.status_code for one in found].count(404) == unreserved
                        assert found[-1].status_code == 404
                        assert (await _receipt(client, after))["id"] == after.headers["x-request-id"]
                    else:
                        for answer in (*alone, late, after):
                            assert (await _receipt(client, answer))["id"] == answer.headers["x-request-id"]
                assert process.terminate() == 0
                assert process.wait_for_log("stopped")["receipts_kept"] is True
