"""Several gateway processes on one Redis, and many callers with different settings."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.fakes import recording_proxy
from tests.gateway_process import KEY, STUDENT_ONLY, guided, local_models, model, running_gateway
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.local.stack import LocalStack

pytestmark = pytest.mark.models

CALLERS = 12
_numbers = itertools.count()


async def _receipt(client: AsyncOpenAI, request_id: str) -> dict[str, Any]:
    for _ in range(200):
        try:
            return dict(await client.get(f"/receipts/{request_id}", cast_to=object))  # type: ignore[call-overload]
        except openai.NotFoundError:
            await asyncio.sleep(0.02)
    raise AssertionError(f"no receipt {request_id}")


async def _ask(client: AsyncOpenAI, **more: Any) -> dict[str, Any]:
    raw = await client.chat.completions.with_raw_response.create(
        **{
            "model": "chat",
            "messages": [{"role": "user", "content": f"Write a story about {next(_numbers)} ships."}],
            "max_tokens": 8,
        }
        | more
    )
    assert raw.parse().choices[0].message.content
    return await _receipt(client, raw.headers["x-request-id"])


@pytest.mark.long
async def test_two_processes_on_one_redis_fill_one_batch(engines: LocalStack, redis_url: str, tmp_path: Path) -> None:
    """12 callers on each of two processes: receipts of both have one batch id, and no batch exceeds its limit."""
    config: dict[str, Any] = {
        "models": local_models(engines, batch={"max_size": 24, "low_water": 0}),
        # A window long enough that both processes' callers are in it, however slow this machine is.
        "routes": [guided(max_wait="1s", tokens=4)],
        "redis": {"prefix": "two-processes"},
        "redis_url": redis_url,
    }
    with (
        running_gateway(tmp_path / "one", **config) as one,
        running_gateway(tmp_path / "two", **config) as two,
    ):
        for process in (one, two):
            wait_until_probed(process.admin_url)
        clients = [AsyncOpenAI(base_url=f"{process.url}/v1", api_key=KEY, max_retries=0) for process in (one, two)]
        calls = [_ask(client) for client in clients for _ in range(CALLERS)]
        receipts = await asyncio.gather(*calls)
        for client in clients:
            await client.close()
    first, second = receipts[:CALLERS], receipts[CALLERS:]
    assert all(receipt["mode"] == "guided" for receipt in receipts)
    shared = {receipt["batch"]["id"] for receipt in first} & {receipt["batch"]["id"] for receipt in second}
    assert shared, [receipt["batch"] for receipt in receipts]
    sizes: dict[str, int] = {}
    for receipt in receipts:
        sizes[receipt["batch"]["id"]] = sizes.get(receipt["batch"]["id"], 0) + 1
    for receipt in receipts:
        assert receipt["batch"]["size"] == sizes[receipt["batch"]["id"]] <= 24


SETTINGS = [
    {"temperature": temperature, "top_p": top_p, "seed": seed, "frequency_penalty": penalty}
    for seed, (temperature, top_p, penalty) in enumerate(
        itertools.product((0.1, 0.7, 1.3), (0.5, 0.9), (-0.5, 0.0, 0.5, 1.0))
    )
]


@pytest.mark.long
async def test_every_callers_sampling_reaches_the_student_untouched(
    engines: LocalStack, redis_url: str, tmp_path: Path
) -> None:
    """24 concurrent callers with 24 settings: each student body equals the caller's except for the plan's changes."""
    assert len(SETTINGS) == 24
    with recording_proxy(engines.student.url) as (proxy, bodies):
        config: dict[str, Any] = {
            "models": [
                local_models(engines)[0],
                model("small", "openai", proxy + "/v1", model="smollm2-135m-instruct", continuation="trailing"),
            ],
            "routes": [guided(tokens=4, allow_fields=["an_unknown_parameter"]), STUDENT_ONLY],
            "redis": {"prefix": "bodies"},
            "redis_url": redis_url,
        }
        with running_gateway(tmp_path, **config) as process:
            wait_until_probed(process.admin_url)
            bodies.clear()
            headers = {"Authorization": f"Bearer {KEY}"}
            async with httpx.AsyncClient(base_url=process.url, headers=headers, timeout=120) as client:
                sent = [
                    {
                        "model": "chat",
                        "messages": [{"role": "user", "content": f"Write a long story about {number + 2} ships."}],
                        "max_tokens": 10,
                        "stop": ["###"],
                        "user": f"caller-{number}",
                        "top_k": 40,
                        "an_unknown_parameter": {"deep": [1, 2.5, None, "é"]},
                        **setting,
                        **({"stream": True} if number % 2 else {}),
                    }
                    for number, setting in enumerate(SETTINGS)
                ]
                await asyncio.gather(*(_send(client, body) for body in sent))
    assert len(bodies) == 24
    received = {body["user"]: body for body in bodies}
    for body in sent:
        got = received[body["user"]]
        changed = {"messages", "max_tokens", "model", "stream_options"}
        assert {k: v for k, v in got.items() if k not in changed} == {k: v for k, v in body.items() if k not in changed}
        assert got["messages"][: len(body["messages"])] == body["messages"]
        assert [message["role"] for message in got["messages"]] == ["user", "assistant"]
        assert 0 < got["max_tokens"] < 10
        assert got["model"] == "smollm2-135m-instruct"
        assert got.get("stream_options") == ({"include_usage": True} if body.get("stream") else None)


async def _send(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    """Send a request with a plain client that changes nothing."""
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-gkt-mode"] == "guided"
