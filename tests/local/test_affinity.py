"""Affinity to the prefix caches of two real engines."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest

from gateway.local.stack import LocalStack
from tests.gateway_process import KEY, GatewayProcess, model, running_gateway
from tests.local.conftest import MODEL
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.models, pytest.mark.long, pytest.mark.timeout(300)]

CONVERSATIONS = 7
TURNS = 3
RULES = "You are a helpful assistant of a travel agency. Answer briefly. " * 8


def cached_tokens(gateway: GatewayProcess, route: str) -> int:
    """Hold conversations, one after the other. Return the prompt tokens that the engines read from their caches."""
    cached = 0
    for number in range(CONVERSATIONS):
        messages = [{"role": "system", "content": f"Agency {route} {number}. {RULES}"}]
        for turn in range(TURNS):
            messages.append({"role": "user", "content": f"Where do I go on day {turn}?"})
            answer = httpx.post(
                f"{gateway.url}/v1/chat/completions",
                headers={"Authorization": f"Bearer {KEY}"},
                json={"model": route, "messages": messages, "max_tokens": 4, "temperature": 0},
                timeout=120,
            )
            assert answer.status_code == 200, answer.text
            reply = answer.json()
            messages.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"]})
            if turn:  # the system message of another agency begins alike
                cached += reply["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return cached


async def test_conversations_hit_the_cache_more_often_with_affinity(tmp_path: Path, redis_url: str) -> None:
    async with (
        LocalStack(student=MODEL, slot_tokens=1024, threads=1, log_folder=tmp_path / "a") as one,
        LocalStack(student=MODEL, slot_tokens=1024, threads=1, log_folder=tmp_path / "b") as two,
    ):
        urls = {"a": one.student.url, "b": two.student.url}
        students = [{"model": name, "weight": 1} for name in urls]
        route = {"model": "chat", "mode": "student", "students": students}
        with running_gateway(
            tmp_path,
            redis_url=redis_url,
            redis={"prefix": "local-affinity"},
            models=[model(name, "openai", f"{url}/v1", model=MODEL) for name, url in urls.items()],
            routes=[route, route | {"model": "drawn", "affinity": "none"}],
        ) as gateway:
            wait_until_probed(gateway.admin_url)
            with_affinity, without = [
                await asyncio.to_thread(cached_tokens, gateway, name) for name in ("chat", "drawn")
            ]
    print(f"cached tokens: {with_affinity} with affinity, {without} without")
    # All drawn requests hit as much with a probability of 2 ** -14.
    assert with_affinity > without
    # The rules alone have more than 100 tokens.
    assert with_affinity > CONVERSATIONS * (TURNS - 1) * 100
