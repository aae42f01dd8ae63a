"""Requests that the fake engine rejects as TGI does."""

from __future__ import annotations

from typing import Any

import aiohttp
import orjson
import pytest

from tests.load_tests.test_fake_engine import CHAT, COMPLETIONS, GENERATE, MESSAGES, events, instant


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 3, "max_completion_tokens": 3},
        {"logit_bias": {"50": 1}},
        {"messages": [{"role": "assistant", "content": None}]},
        {"response_format": {"type": "text"}},
        {"stop": "\n"},
        {"stream_options": None},
        {"seed": -1},
        {"stream": None},
    ],
)
async def test_tgi_rejects_what_its_types_exclude(fields: dict[str, Any], stream: bool) -> None:
    """The JSON parser answers in plain text, before a stream begins."""
    async with instant(dialect="tgi") as url, aiohttp.ClientSession(url) as session:
        async with session.post(CHAT, json={"messages": MESSAGES, "stream": stream} | fields) as reply:
            assert (reply.status, reply.content_type) == (422, "text/plain")
            assert (await reply.text()).startswith("Failed to deserialize the JSON body into the target type: ")
        async with session.post(CHAT, data=b"{") as reply:
            assert (reply.status, reply.content_type) == (400, "text/plain")
        for method, path, status in (("GET", "/nowhere", 404), ("GET", GENERATE, 405)):
            async with session.request(method, path) as reply:
                assert (reply.status, await reply.read()) == (status, b"")


async def test_tgi_rejects_streams_in_an_event() -> None:
    """The number of prompts is checked before the stream begins, and all else after it."""
    async with instant(dialect="tgi", max_total_tokens=20) as url, aiohttp.ClientSession(url) as session:
        rejected, done = await events(session, CHAT, messages=MESSAGES, max_tokens=30)
        message = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 20"
        assert orjson.loads(rejected) == {"error": {"message": message, "http_status_code": 422}}
        assert done == b"[DONE]"
        async with session.post(CHAT, json={"messages": MESSAGES, "max_tokens": 30}) as reply:
            assert (reply.status, await reply.json()) == (422, {"error": message, "error_type": "validation"})
        async with session.post(COMPLETIONS, json={"prompt": ["a"] * 5, "stream": True}) as reply:
            assert (reply.status, (await reply.json())["error_type"]) == (422, "batch size exceeded")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("fail_424", "Request failed during generation: a configured fault"),
        ("fail_500", "Incomplete generation"),
    ],
)
async def test_tgi_fails_streams_in_an_event(fault: str, message: str) -> None:
    async with instant(dialect="tgi", faults={fault: 1}) as url, aiohttp.ClientSession(url) as session:
        failed, _ = await events(session, CHAT, messages=MESSAGES, max_tokens=3)
    assert orjson.loads(failed)["error"]["message"] == message
