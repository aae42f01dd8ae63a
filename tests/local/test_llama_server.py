from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.models

CHAT = {"messages": [{"role": "user", "content": "Say OK."}], "max_tokens": 6, "temperature": 0}


async def test_a_chat_completes(student):
    async with student.post("/v1/chat/completions", json=CHAT) as reply:
        answer = await reply.json()
    assert answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["model"] == "smollm2-135m-instruct"


async def test_a_chat_streams(student):
    async with student.post("/v1/chat/completions", json={**CHAT, "stream": True}) as reply:
        lines = [line.removeprefix("data: ") for line in (await reply.text()).splitlines() if line]
    assert lines[-1] == "[DONE]"
    deltas = [choice["delta"] for line in lines[:-1] for choice in json.loads(line)["choices"]]
    assert sum(1 for delta in deltas if delta.get("content")) >= 2


async def test_a_trailing_assistant_message_is_continued_and_repeated(student):
    start = "The capital of France is"
    turns = [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": start}]
    async with student.post("/v1/chat/completions", json={**CHAT, "messages": turns}) as reply:
        text = (await reply.json())["choices"][0]["message"]["content"]
    # llama.cpp repeats the message, and the gateway must detect the echo.
    assert text.startswith(f"{start} Paris")


async def test_health(student):
    async with student.get("/health") as reply:
        assert await reply.json() == {"status": "ok"}
