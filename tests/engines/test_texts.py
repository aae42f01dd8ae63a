from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest

from gateway.engines.chat import TextWire
from gateway.engines.openai import OpenAIEngine
from gateway.engines.raw_prompts import chat_chunk, chat_reply, requested_limit, text_body
from gateway.errors import EngineFailed, EngineProtocolError
from tests.engines.fake_server import NAME, engine_http, failure, replying, serving, streaming

RAW = "/v1/completions"
CHOICE = {"index": 0, "text": " because", "logprobs": {"tokens": [" because"]}, "finish_reason": "length", "x": 1}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4}


def test_a_text_completion_reads_as_a_chat_completion() -> None:
    """The text becomes the message; other fields do not change."""
    reply = {"id": "cmpl-1", "object": "text_completion", "choices": [CHOICE], "usage": USAGE, "timings": {}}
    assert chat_reply(reply) == {
        "id": "cmpl-1",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": " because"},
                "logprobs": {"tokens": [" because"]},
                "finish_reason": "length",
                "x": 1,
            }
        ],
        "usage": USAGE,
        "timings": {},
    }
    assert CHOICE["text"] == " because"


@pytest.mark.parametrize(
    ("choice", "delta", "finish"),
    [
        ({"index": 0, "text": " be", "finish_reason": None}, " be", None),
        ({"index": 0, "text": " be", "finish_reason": ""}, " be", None),
        ({"index": 1, "text": None, "finish_reason": "stop"}, "", "stop"),
        ({"index": 0, "finish_reason": "stop"}, "", "stop"),
    ],
)
def test_a_chunk_of_text_reads_as_one_of_a_chat(choice: dict[str, Any], delta: str, finish: str | None) -> None:
    """Including a usage chunk without choices."""
    chunk = chat_chunk({"object": "text_completion", "choices": [choice]})
    assert chunk["object"] == "chat.completion.chunk"
    assert chunk["choices"] == [{"index": choice["index"], "delta": {"content": delta}, "finish_reason": finish}]
    assert chat_chunk({"choices": [], "usage": USAGE}) == {
        "object": "chat.completion.chunk",
        "choices": [],
        "usage": USAGE,
    }


@pytest.mark.parametrize("prompt", ["Q: why?", [1, 2, 3]])
def test_a_body_keeps_the_common_fields_of_prompts_and_chats(prompt: Any) -> None:
    """Including unknown sampling parameters. Fields with another meaning and nulls are removed."""
    chat = {
        "model": "m",
        "messages": [],
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": None,
        "min_p": 0.1,
        "user": "u",
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": False,
        "top_logprobs": 0,
        "suffix": "x",
        "prompt": "not this",
        "echo": True,
    }
    before = dict(chat)
    assert text_body(chat, prompt, 7) == {
        "model": "m",
        "prompt": prompt,
        "max_tokens": 7,
        "temperature": 0.5,
        "min_p": 0.1,
        "user": "u",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert text_body({}, prompt, None) == {"prompt": prompt, "max_tokens": None}
    assert chat == before


@pytest.mark.parametrize(
    ("chat", "limit"),
    [({}, None), ({"max_tokens": 3}, 3), ({"max_completion_tokens": 3}, 3), ({"max_tokens": None}, None)],
)
def test_a_limit_is_found_in_either_field(chat: dict[str, Any], limit: int | None) -> None:
    assert requested_limit(chat) == limit


@pytest.mark.parametrize(
    "body", [None, {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"text": None}]}, {"choices": [{"text": 5}]}]
)
async def test_a_reply_without_text_is_a_protocol_error(body: Any) -> None:
    """Readers of the reply rely on the text."""
    async with serving({RAW: replying(body)}) as fake, engine_http(fake.url + "/v1") as http:
        assert isinstance(await failure(TextWire(http, "/completions").complete({}), fake.url), EngineProtocolError)


async def test_a_stream_of_text_that_breaks_off_is_an_error() -> None:
    """Like a chat stream. Chunks before the end are delivered."""
    part = {"choices": [{"index": 0, "text": " be", "finish_reason": None}]}
    async with serving({RAW: streaming(part)}) as fake, engine_http(fake.url + "/v1") as http:
        seen: list[Any] = []

        async def read() -> None:
            async with aclosing(TextWire(http, "/completions").stream({"prompt": "p"})) as groups:
                async for group in groups:
                    seen.extend(group)

        assert isinstance(await failure(read(), fake.url), EngineFailed)
        assert seen == [part]


PART = {"index": 0, "text": " be", "finish_reason": None}


@pytest.mark.parametrize("prompt", ["one", ["one"], [1, 2], ["one", "two"]])
@pytest.mark.parametrize("before", [[], [{"choices": [PART]}]])
async def test_null_is_skipped_only_as_the_first_event_of_several_prompts(prompt: Any, before: list[Any]) -> None:
    events = *before, b"null", {"choices": [{**PART, "finish_reason": "stop"}]}, b"[DONE]"
    async with serving({RAW: streaming(*events)}) as fake, engine_http(fake.url + "/v1") as http:

        async def read() -> int:
            async with aclosing(TextWire(http, "/completions").stream({"prompt": prompt})) as groups:
                return sum([len(group) async for group in groups])

        if len(prompt) == 2 and isinstance(prompt[0], str) and not before:
            assert await read() == 1
        else:
            assert isinstance(await failure(read(), fake.url), EngineProtocolError)


@pytest.mark.parametrize("prompt", ["Q: why?\nA:", ["one", "two"], [1, 2, 3]])
async def test_a_callers_prompt_is_sent_unchanged(prompt: Any) -> None:
    """To /completions, with the server's name of the model and no other change."""
    body = {"model": "student", "prompt": prompt, "max_tokens": 5, "echo": True, "logprobs": 2, "suffix": None}
    whole = {"choices": [CHOICE], "usage": USAGE}
    async with serving({RAW: replying(whole)}) as fake, engine_http(fake.url + "/v1") as http:
        http.host = "api.openai.com"
        reply = await OpenAIEngine(NAME, "org/model", http, continuation="none").complete(body)
        assert fake.bodies == [{**body, "model": "org/model"}]
    assert reply == chat_reply(whole)
    assert reply["choices"][0]["logprobs"] == CHOICE["logprobs"]


async def test_a_callers_own_prompt_streams() -> None:
    """The engine's events become chat chunks, which the relay reads."""
    ended = {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}
    routes = {RAW: streaming({"choices": [PART]}, ended, b"[DONE]")}
    async with serving(routes) as fake, engine_http(fake.url + "/v1") as http:
        engine = OpenAIEngine(NAME, "org/model", http, continuation="none")
        async with aclosing(engine.stream({"prompt": "Q", "stream": True})) as groups:
            chunks = [chunk async for group in groups for chunk in group]
    assert chunks == [chat_chunk({"choices": [PART]}), chat_chunk(ended)]
