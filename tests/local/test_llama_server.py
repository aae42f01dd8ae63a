from __future__ import annotations

import json

import aiohttp
import pytest

from gateway.evaluation.tool_tasks.run import TEMPLATE
from gateway.evaluation.tool_tasks.tasks import KINDS
from gateway.local.stack import LocalStack
from tests.local.conftest import MODEL

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


async def test_a_chat_template_replaces_that_of_the_model():
    """The template renders tools, earlier calls and their results, all in the tags that the prompt names."""
    function = {"name": "read_file", "arguments": '{"path": "a.txt"}'}
    messages = [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": "Read a.txt."},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "Hello."},
    ]
    body = {"messages": messages, "tools": [tool.schema for tool in KINDS["files"].tools]}
    async with (
        LocalStack(student=MODEL, parallel=1, slot_tokens=256, chat_template=TEMPLATE) as stack,
        aiohttp.ClientSession(stack.student.url) as session,
        session.post("/apply-template", json=body) as reply,
    ):
        prompt = (await reply.json())["prompt"]
    assert prompt.startswith("<|im_start|>system\nBe exact.\n\n# Tools")
    assert all(f'"name": "{tool.name}"' in prompt for tool in KINDS["files"].tools)
    call = '<function_call>\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n</function_call><|im_end|>'
    assert f"<|im_start|>assistant\n{call}" in prompt
    assert "<|im_start|>user\n<tool_response>\nHello.\n</tool_response><|im_end|>" in prompt
    assert prompt.endswith("<|im_start|>assistant\n")
