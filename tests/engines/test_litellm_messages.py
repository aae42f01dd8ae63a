"""Fields and headers of /v1/messages reach Anthropic's models through LiteLLM, and no others."""

from __future__ import annotations

import re
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from gateway.engines.base import TeacherRequest
from gateway.errors import EngineUnsupported
from gateway.pipeline.stream import StreamRelay
from gateway.protocol.anthropic.events import MessagesWriter
from gateway.protocol.anthropic.request import parse_messages
from gateway.protocol.capabilities.anthropic import MessagesFields, answering, read_by
from gateway.protocol.capabilities.continuation import Continuation, Prefill
from gateway.protocol.reply import ReplyHead
from tests.engines.fake_server import replying
from tests.engines.litellm_servers import events, message
from tests.engines.test_litellm import (  # noqa: F401  the fixture applies here, too
    CLAUDE,
    MESSAGES_PATH,
    _an_environment_of_our_own,
    behind,
)

if TYPE_CHECKING:
    from gateway.engines.litellm import LiteLLMEngine
    from gateway.protocol.anthropic.request import MessagesRequest

CACHED = {"type": "ephemeral", "ttl": "1h"}
HEADERS = {"anthropic-version": "2023-01-01", "anthropic-beta": "interleaved-thinking-2025-05-14"}
THOUGHT = {"type": "thinking", "thinking": "Rayleigh", "signature": "c2ln"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}}
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {"a": {}}}}
EFFORT = {"effort": "low"}
BODY: dict[str, Any] = {
    "model": "m",
    "max_tokens": 4000,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": CACHED}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Why?", "cache_control": CACHED}]},
        {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "I add."}, CALL]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "2"}]},
    ],
    "tools": [{**TOOL, "cache_control": CACHED}, {"type": "bash_20250124", "name": "bash"}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "top_k": 5,
    "stop_sequences": [str(number) for number in range(9)],
    "metadata": {"user_id": "u-1"},
    "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
}


def fields_of(request: MessagesRequest) -> MessagesFields:
    return MessagesFields(HEADERS, request.passed, is_marked=request.is_marked, foreign_tool=request.foreign_tool)


async def answered(engine: LiteLLMEngine, body: dict[str, Any]) -> dict[str, Any]:
    request = parse_messages(orjson.dumps(body))
    with answering(fields_of(request)):
        return await engine.complete(request.chat.body)


async def test_claude_gets_all_that_the_caller_sent() -> None:
    reply = {**message("Two."), "content": [THOUGHT, {"type": "text", "text": "Two."}]}
    async with behind(CLAUDE, MESSAGES_PATH, replying(reply), continuation="none") as (engine, fake):
        plain = await answered(engine, BODY)
    (request,), (sent,) = fake.requests, fake.bodies
    assert sent["system"] == BODY["system"]
    assert sent["messages"] == BODY["messages"]
    assert [{"type": "custom", **tool} for tool in sent["tools"]] == [
        {"type": "custom", **tool} for tool in BODY["tools"]
    ]
    assert (sent["thinking"], sent["top_k"], sent["max_tokens"]) == (BODY["thinking"], 5, 4000)
    assert sent["stop_sequences"] == BODY["stop_sequences"]
    assert sent["metadata"] == {"user_id": "u-1"}
    assert sent["context_management"] == BODY["context_management"]
    assert request.headers["anthropic-version"] == "2023-06-01"  # LiteLLM's own
    assert HEADERS["anthropic-beta"] in re.split(", ?", request.headers["anthropic-beta"])
    writer = MessagesWriter("req_1", (), shows_thinking=True)
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    assert writer.reply({**plain, "model": "m", "usage": usage})["content"] == reply["content"]


async def test_claude_gets_the_computer_tool() -> None:
    tool = {"type": "computer_20250124", "name": "computer", "display_width_px": 1024, "display_height_px": 768,
            "cache_control": CACHED}  # fmt: skip
    async with behind(CLAUDE, MESSAGES_PATH, replying(message("Two.")), continuation="none") as (engine, fake):
        await answered(engine, {**BODY, "tools": [tool]})
    assert fake.bodies[0]["tools"] == [tool]


@pytest.mark.parametrize(
    "fields",
    [
        {"context_management": {"edits": "x"}},
        {"context_management": {"edits": ["x"]}},
        {"tools": [{"type": "bash_20250124"}]},
        {"tools": [{"type": "bash_20250124", "name": "bash", "allowed_callers": "x"}]},
    ],
)
async def test_a_request_that_cannot_be_translated_is_no_failure_of_the_engine(fields: dict[str, Any]) -> None:
    """It is not sent again, opens no circuit, and costs nothing."""
    async with behind(CLAUDE, MESSAGES_PATH, replying(message("Two.")), continuation="none") as (engine, fake):
        with pytest.raises(EngineUnsupported) as refused:
            await answered(engine, {**BODY, **fields})
    assert (refused.value.blames_request, refused.value.may_have_run, fake.bodies) == (True, False, [])


async def test_claude_continues_an_answer_without_thinking() -> None:
    """Claude Code requests adaptive thinking in each request. With a begun answer, Claude would reject it."""
    body = {**BODY, "thinking": {"type": "adaptive"}, "messages": BODY["messages"][:1]}
    async with behind(CLAUDE, MESSAGES_PATH, replying(message(" two.")), continuation="trailing") as (engine, fake):
        request = parse_messages(orjson.dumps(body))
        with answering(fields_of(request)):
            await engine.complete(request.chat.body, Prefill("One,", Continuation("trailing")))
    assert fake.bodies[0]["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "One,"}]}
    assert not {"thinking", "context_management"} & fake.bodies[0].keys()


async def test_a_tool_result_keeps_its_mark_for_the_cache() -> None:
    marked = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "2", "cache_control": CACHED}
    messages = [*BODY["messages"][:2], {"role": "user", "content": [marked]}]
    async with behind(CLAUDE, MESSAGES_PATH, replying(message("Two.")), continuation="none") as (engine, fake):
        await answered(engine, {**BODY, "messages": messages, "cache_control": CACHED, "output_config": EFFORT})
    assert fake.bodies[0]["messages"][2]["content"] == [marked]
    assert fake.bodies[0]["cache_control"] == CACHED
    assert fake.bodies[0]["output_config"] == EFFORT


async def test_thinking_of_claude_streams_with_its_signature() -> None:
    """The events of the caller have the blocks of the provider's events."""
    deltas = [{"type": "thinking_delta", "thinking": "Ray"}, {"type": "thinking_delta", "thinking": "leigh"},
              {"type": "signature_delta", "signature": "c2ln"}]  # fmt: skip
    block = {"type": "thinking", "thinking": "", "signature": ""}
    start = {**message(""), "content": [], "stop_reason": None}
    handler = events(
        ("message_start", {"type": "message_start", "message": start}),
        ("content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}),
        *(("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}) for delta in deltas),
        ("content_block_stop", {"type": "content_block_stop", "index": 0}),
        ("content_block_start",
         {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}),
        ("content_block_delta",
         {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Blue."}}),
        ("content_block_stop", {"type": "content_block_stop", "index": 1}),
        ("message_delta", {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                           "usage": {"output_tokens": 5}}),
        ("message_stop", {"type": "message_stop"}),
    )  # fmt: skip
    request = parse_messages(orjson.dumps(BODY))
    relay = StreamRelay(ReplyHead("c", 1, "m"), wants_usage=True)
    writer = MessagesWriter("req_1", (), shows_thinking=True)
    raw = b""
    async with behind(CLAUDE, MESSAGES_PATH, handler, continuation="none") as (engine, _):
        with answering(fields_of(request)):
            async with aclosing(engine.stream(request.chat.body)) as groups:
                async for group in groups:
                    raw += writer.events([one for chunk in group if (one := relay.feed(chunk)) is not None])
    shown = [orjson.loads(line[6:]) for line in raw.decode().split("\n") if line.startswith("data: ")]
    assert [event["delta"] for event in shown if "delta" in event] == [*deltas, {"type": "text_delta", "text": "Blue."}]


async def test_a_model_of_another_provider_gets_a_plain_chat() -> None:
    """Neither headers nor fields of Anthropic reach it. A tool that it cannot know is refused by its path."""
    body = {**BODY, "tools": BODY["tools"][:1], "thinking": {"type": "enabled"}}
    reply = {"id": "c", "object": "chat.completion", "created": 1, "model": "m",
             "choices": [{"index": 0, "message": {"role": "assistant", "content": "B"}, "finish_reason": "stop"}],
             "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}  # fmt: skip
    path = "/chat/completions"
    async with behind("openai/gpt-4o", path, replying(reply), continuation="none") as (engine, fake):
        await answered(engine, body)
        with pytest.raises(EngineUnsupported, match=r"'tools\[1\].type'") as refused:
            await answered(engine, BODY)
    (sent,) = fake.bodies
    assert (refused.value.param, refused.value.blames_request) == ("tools[1].type", True)
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
        {"role": "assistant", "content": "I add.",
         "tool_calls": [{"id": "toolu_1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "2"},
    ]  # fmt: skip
    assert "cache_control" not in sent["tools"][0]
    assert not {"thinking", "top_k", "context_management", "metadata"} & sent.keys()
    assert not any(name.lower().startswith("anthropic") for name in fake.requests[0].headers)


async def test_guidance_of_claude_has_marks_but_not_the_callers_fields() -> None:
    """A teacher's sampling is the policy's."""
    request = parse_messages(orjson.dumps(BODY))
    teacher_request = TeacherRequest(max_tokens=9, messages=request.chat.messages)
    async with behind(CLAUDE, MESSAGES_PATH, replying(message("Two.")), continuation="none") as (engine, fake):
        with answering(fields_of(request)):
            await engine.generate_guidance(teacher_request)
    (sent,) = fake.bodies
    assert sent["system"] == BODY["system"]
    assert not {"thinking", "top_k", "context_management", "metadata"} & sent.keys()
    assert HEADERS["anthropic-beta"] not in fake.requests[0].headers.get("anthropic-beta", "")


def test_models_of_anthropic_are_known_by_their_names() -> None:
    claude = ("anthropic/claude-sonnet-4-5", "bedrock/anthropic.claude-3-5-sonnet-v1:0", "vertex_ai/claude-opus-4")
    for name in claude:
        assert "cache_control" in read_by(name)
    for name in ("openai/claude-like", "bedrock/meta.llama3", "vertex_ai/gemini-2.5-pro"):
        assert read_by(name) == frozenset()
