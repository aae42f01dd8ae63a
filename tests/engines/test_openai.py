from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiohttp import web
from msgspec import structs

from gateway.engines.base import TeacherReply, TeacherRequest, TokenUsage
from gateway.engines.chat import read_usage
from gateway.engines.openai import OpenAIEngine
from gateway.errors import (
    EngineFailed,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
)
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.content_run import each_chunk
from tests.engines.fake_server import (
    NAME,
    FakeServer,
    engine_http,
    failure,
    replying,
    reset,
    serving,
    streaming,
    talking,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable

    from tests.engines.fake_server import Handler

CHAT = "/v1/chat/completions"
RAW = "/v1/completions"
MODELS = "/v1/models"
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
COUNTED = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


@asynccontextmanager
async def openai(routes: dict[str, Handler], **options: Any) -> AsyncIterator[tuple[OpenAIEngine, FakeServer]]:
    async with serving(routes) as fake, engine_http(fake.url + "/v1") as http:
        yield OpenAIEngine(NAME, "org/model", http, **options), fake


def reply(content: Any, finish_reason: Any = "stop", **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}], **fields}


def chunk(content: str, finish_reason: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": content}, "finish_reason": finish_reason}], **fields}


async def chunks_of(engine: OpenAIEngine, body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    async with aclosing(engine.stream({"messages": MESSAGES, **(body or {})})) as groups:
        return [chunk async for chunks in groups for chunk in each_chunk(chunks)]


# Guidance.


@pytest.mark.parametrize(
    ("request_", "sent"),
    [
        (TeacherRequest(max_tokens=40, messages=MESSAGES), {"temperature": 0.0}),
        (
            TeacherRequest(max_tokens=40, messages=MESSAGES, temperature=0.7, top_p=1.0, seed=0, stop=("x", "y")),
            {"temperature": 0.7, "top_p": 1.0, "seed": 0, "stop": ["x", "y"]},
        ),
        (
            TeacherRequest(max_tokens=40, messages=MESSAGES, constraints={"min_tokens": 9, "bad_words": ["x"]}),
            {"temperature": 0.0, "min_tokens": 9, "bad_words": ["x"]},
        ),
    ],
)
async def test_the_guidance_request_of_a_chat_has_exactly_these_fields(
    request_: TeacherRequest, sent: dict[str, Any]
) -> None:
    """Only the policy's parameters and the server's name of the model are sent."""
    async with openai({CHAT: replying(reply("Because", "length", usage=COUNTED))}) as (engine, fake):
        guidance = await engine.generate_guidance(request_)
    assert fake.bodies == [{"model": "org/model", "messages": MESSAGES, "max_tokens": 40, **sent}]
    assert guidance == TeacherReply("Because", "length", TokenUsage(9, 4))


async def test_the_guidance_request_of_a_raw_prompt_has_exactly_these_fields() -> None:
    """Raw text is sent to /completions unchanged."""
    answer = {"choices": [{"index": 0, "text": " because", "finish_reason": "length"}], "usage": COUNTED}
    async with openai({RAW: replying(answer)}) as (engine, fake):
        guidance = await engine.generate_guidance(
            TeacherRequest(max_tokens=40, prompt="Q: why?\nA:", seed=3, stop=("\nQ:",))
        )
    sent = {"prompt": "Q: why?\nA:", "max_tokens": 40, "temperature": 0.0, "seed": 3, "stop": ["\nQ:"]}
    assert fake.bodies == [{"model": "org/model", **sent}]
    assert guidance == TeacherReply(" because", "length", TokenUsage(9, 4))


async def test_a_vllm_that_rejects_log_probabilities_gives_guidance_without_them() -> None:
    """Only servers that are known to accept the fields get them. A rejection is remembered until the next probe."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if "logprobs" in await request.json():
            return web.json_response({"error": {"message": "logprobs are not supported here"}}, status=400)
        return web.json_response(reply("Because", "length", usage=COUNTED))

    routes = {CHAT: answer, MODELS: replying({"data": [{"id": "org/model", "owned_by": "vllm"}]})}
    async with openai(routes, continuation="none") as (engine, fake):
        await engine.probe()
        for _ in range(2):
            guidance = await engine.generate_guidance(TeacherRequest(max_tokens=40, messages=MESSAGES))
            assert guidance == TeacherReply("Because", "length", TokenUsage(9, 4))
    assert [body.get("logprobs") for body in fake.bodies if body] == [True, None, None]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize(("counted", "ends"), [(3, (3, 7, 8)), (5, None)])
async def test_llama_cpp_reports_the_text_of_each_token(
    counted: int, ends: tuple[int, ...] | None, *, stream: bool
) -> None:
    """The guidance was counted by its characters. Streams of llama.cpp omit parts of characters, so all are counted."""
    tokens, usage = ("The", " sky", ":"), {"prompt_tokens": 9, "completion_tokens": counted}

    def logprobs(*texts: str) -> dict[str, Any]:
        # llama.cpp b11549, completion_token_output::probs_vector_to_json with post_sampling_probs
        return {"logprobs": {"content": [{"token": text, "prob": 1.0, "top_probs": []} for text in texts]}}

    choice = {"index": 0, "finish_reason": "length"}
    whole = {**choice, "message": {"role": "assistant", "content": "The sky:"}, **logprobs(*tokens)}
    parts = [{"index": 0, "delta": {"content": token}, "finish_reason": None, **logprobs(token)} for token in tokens]
    events = [{"choices": [part]} for part in (*parts, {**choice, "delta": {}})]
    chat = (
        streaming(*events, {"choices": [], "usage": usage})
        if stream
        else replying({"choices": [whole], "usage": usage})
    )
    routes = {CHAT: chat, MODELS: replying({"data": [{"id": "org/model", "owned_by": "llamacpp"}]})}
    async with openai(routes, continuation="none") as (engine, fake):
        await engine.probe()
        reply = await engine.generate_guidance(
            TeacherRequest(max_tokens=counted, messages=MESSAGES), on_text=(lambda _: None) if stream else None
        )
    assert reply == TeacherReply("The sky:", "length", TokenUsage(9, counted), token_ends=ends)
    asked = {name: fake.bodies[-1][name] for name in ("logprobs", "top_logprobs", "post_sampling_probs")}
    assert asked == {"logprobs": True, "top_logprobs": 1, "post_sampling_probs": True}


async def test_guidance_of_a_raw_prompt_is_streamed() -> None:
    """The engine sends text completions, with usage at the end."""
    parts = [{"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in (" because", " of")]
    last = [{"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}, {"choices": [], "usage": COUNTED}]
    pieces: list[str] = []
    async with openai({RAW: streaming(*parts, *last)}) as (engine, fake):
        guidance = await engine.generate_guidance(
            TeacherRequest(max_tokens=40, prompt="Q: why?\nA:"), on_text=pieces.append
        )
    sent = {"prompt": "Q: why?\nA:", "max_tokens": 40, "temperature": 0.0}
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    assert fake.bodies == [{"model": "org/model", **sent, **streamed}]
    assert pieces == [" because", " of"]
    assert guidance == TeacherReply(" because of", "length", TokenUsage(9, 4))


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("model_length", "length"),
        ("content_filter", "content_filter"),
        (None, "length"),
        ("", "length"),
    ],
)
async def test_an_unknown_finish_reason_of_guidance_is_a_cut(reason: str | None, finish: str) -> None:
    """An unknown finish reason counts as a cut, so the student continues."""
    async with openai({CHAT: replying(reply("Because", reason))}) as (engine, _):
        assert (await engine.generate_guidance(TeacherRequest(max_tokens=40, messages=MESSAGES))).finish == finish


NOT_OPENAIS = [
    None,
    [],
    "text",
    5,
    {},
    {"choices": None},
    {"choices": []},
    {"choices": {"0": {}}},
    {"choices": [None]},
    {"choices": [{}]},
    {"choices": [{"message": None, "text": None}]},
    {"choices": [{"message": "x", "text": 5}]},
    {"choices": [{"message": {"content": None}, "text": []}]},
    {"choices": [{"message": {"content": ["part"]}}]},
]


@pytest.mark.parametrize("body", NOT_OPENAIS)
@pytest.mark.parametrize("fields", [{"messages": MESSAGES}, {"prompt": "x"}])
async def test_guidance_without_text_is_a_protocol_error(body: Any, fields: dict[str, Any]) -> None:
    async with openai({CHAT: replying(body), RAW: replying(body)}) as (engine, fake):
        assert isinstance(
            await failure(engine.generate_guidance(TeacherRequest(max_tokens=4, **fields)), fake.url),
            EngineProtocolError,
        )


# JSON replies.


async def test_only_the_model_name_of_a_body_changes() -> None:
    """Except for the model's name. The caller's body is not modified."""
    body = {"model": "student", "messages": MESSAGES, "unknown": {"a": [1]}, "top_p": 1, "presence_penalty": 0}
    before = orjson.dumps(body)
    async with openai({CHAT: replying(reply("Hi", extra=1))}) as (engine, fake):
        assert await engine.complete(body) == reply("Hi", extra=1)
    assert fake.bodies == [{**body, "model": "org/model"}]
    assert orjson.dumps(body) == before


@pytest.mark.parametrize(
    "body",
    [
        *NOT_OPENAIS[:-2],
        {"choices": [{"message": {"content": "x"}}, 5]},
        {"choices": [{"message": {"content": "x"}}, {"message": None}]},
        {"choices": [{"message": {"content": "x"}, "finish_reason": ["stop"]}]},
        {"choices": [{"message": {"content": "x"}, "index": "0"}]},
    ],
)
async def test_a_reply_without_messages_is_a_protocol_error(body: Any) -> None:
    """Readers of the reply rely on a message in each choice."""
    async with openai({CHAT: replying(body)}) as (engine, fake):
        assert isinstance(await failure(engine.complete({"messages": MESSAGES}), fake.url), EngineProtocolError)


# Streams.


async def test_a_stream_is_passed_on_chunk_by_chunk() -> None:
    """Including the usage chunk without choices. [DONE] is no chunk."""
    sent = [chunk("Be"), chunk("cause"), chunk("", "stop"), {"choices": [], "usage": COUNTED}]
    async with openai({CHAT: streaming(*sent, b"[DONE]", chunk("never"))}) as (engine, fake):
        assert await chunks_of(engine, {"stream": True}) == sent
    assert fake.bodies == [{"model": "org/model", "messages": MESSAGES, "stream": True}]


@pytest.mark.parametrize("events", [[], [chunk("Be")], [chunk("Be", "")], [{"choices": [], "usage": COUNTED}]])
async def test_a_stream_that_just_ends_has_failed(events: list[Any]) -> None:
    """Without a finish_reason and without [DONE] the answer was cut."""
    async with openai({CHAT: streaming(*events)}) as (engine, fake):
        error = await failure(chunks_of(engine), fake.url)
    assert type(error) is EngineFailed
    assert error.message == "Engine 'the-engine' closed the stream before its end."


async def test_an_answer_that_the_engine_aborts_has_failed() -> None:
    """VLLM answers 200 when it is put to sleep. The text so far is passed on; another engine may continue it."""
    aborted = [{**chunk("Be"), "id": "c"}, chunk("cause", "abort")]
    async with openai({CHAT: streaming(*aborted, b"[DONE]")}) as (engine, _):
        received: list[Any] = []

        async def receive() -> None:
            async with aclosing(engine.stream({"messages": MESSAGES})) as groups:
                async for chunks in groups:
                    received.extend(each_chunk(chunks))

        with pytest.raises(EngineFailed) as caught:
            await receive()
        assert [one["choices"][0]["delta"]["content"] for one in received] == ["Be", "cause"]
        assert {one["choices"][0]["finish_reason"] for one in received} == {None}
        assert (caught.value.message, caught.value.retryable) == ("Engine 'the-engine' aborted the answer.", False)
    async with openai({CHAT: replying(reply("Because", "abort"))}) as (engine, fake):
        error = await failure(engine.complete({"messages": MESSAGES}), fake.url)
        assert (type(error), error.retryable) == (EngineFailed, False)


async def test_done_without_a_finish_reason_is_an_end() -> None:
    """Some servers send no finish_reason."""
    async with openai({CHAT: streaming(chunk("Be"), b"[DONE]")}) as (engine, _):
        assert await chunks_of(engine) == [chunk("Be")]


async def test_a_finish_reason_without_done_is_an_end() -> None:
    """Some servers send no [DONE]."""
    async with openai({CHAT: streaming(chunk("Be"), chunk("", "stop"))}) as (engine, _):
        assert len(await chunks_of(engine)) == 2


async def test_a_stream_of_two_choices_ends_with_the_second() -> None:
    events = [chunk("a"), chunk("b", index=1), chunk("", "stop")]
    async with openai({CHAT: streaming(*events)}) as (engine, fake):
        assert isinstance(await failure(chunks_of(engine, {"n": 2}), fake.url), EngineFailed)
    async with openai({CHAT: streaming(*events, chunk("", "stop", index=1))}) as (engine, _):
        assert len(await chunks_of(engine, {"n": 2})) == 4


@pytest.mark.parametrize("finished", [False, True])
async def test_a_reset_is_an_error_only_before_the_finish(*, finished: bool) -> None:
    """A complete answer is valid whatever happens to its connection."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        event = b"data: " + orjson.dumps(chunk("Be", "stop" if finished else None)) + b"\n\n"
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
        if finished:
            writer.close()
        else:
            reset(writer)

    async with talking(talk) as url, engine_http(url + "/v1") as http:
        engine = OpenAIEngine(NAME, "org/model", http)
        if finished:
            assert await chunks_of(engine) == [chunk("Be", "stop")]
        else:
            assert isinstance(await failure(chunks_of(engine), url), EngineUnreachable)


async def test_a_stream_that_falls_silent_times_out() -> None:
    """Before its finish_reason."""
    handler = streaming(chunk("Be"), chunk("", "stop"), pause_s=0.5)
    async with serving({CHAT: handler}) as fake, engine_http(fake.url + "/v1", idle_s=0.05) as http:
        assert isinstance(await failure(chunks_of(OpenAIEngine(NAME, "m", http)), fake.url), EngineTimeout)


@pytest.mark.parametrize(
    ("event", "tail", "reason"),
    [
        (
            {"error": {"message": "out of memory", "type": "server_error", "code": 500}},
            ": out of memory",
            "server_error",
        ),
        ({"error": "out of memory"}, ": out of memory", None),
        ({"error": {"code": "oom"}}, ".", "oom"),
        ({"error": {"message": "out of memory"}, "choices": []}, ": out of memory", None),
    ],
)
async def test_an_error_event_is_a_failure(event: Any, tail: str, reason: str | None) -> None:
    """In each of the formats that servers use, also after a finish_reason."""
    for before in (chunk("Be"), chunk("Be", "stop")):
        async with openai({CHAT: streaming(before, event, b"[DONE]")}) as (engine, fake):
            error = await failure(chunks_of(engine), fake.url)
        assert type(error) is EngineFailed
        assert error.message == "Engine 'the-engine' failed during its answer" + tail
        assert error.reason == reason


async def test_an_error_event_is_shown_without_the_engines_address() -> None:
    """Like an error reply."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return await streaming({"error": f"no connection to {request.host}"})(request)

    async with openai({CHAT: handler}) as (engine, fake):
        assert (await failure(chunks_of(engine), fake.url)).message.endswith("no connection to (hidden)")


@pytest.mark.parametrize(
    "event",
    [
        b"not json",
        b"{",
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        {"choices": None},
        {"choices": {}},
        {"choices": [None]},
        {"choices": [{"delta": "text"}]},
        {"choices": [{"delta": 5}]},
        {"choices": [{"delta": {}, "index": []}]},
        {"choices": [{"delta": {}, "index": -1}]},
        {"choices": [{"delta": {}, "index": 1024}]},
        {"choices": [{"delta": {"content": 5}}]},
        {"choices": [{"delta": {}, "finish_reason": {}}]},
    ],
)
async def test_an_event_that_is_no_chunk_is_a_protocol_error(event: Any) -> None:
    """Readers of a chunk rely on its shape."""
    async with openai({CHAT: streaming(chunk("Be"), event, b"[DONE]")}) as (engine, fake):
        assert isinstance(await failure(chunks_of(engine), fake.url), EngineProtocolError)


@pytest.mark.parametrize("choice", [{}, {"delta": None}, {"delta": {}}, {"delta": {"content": None}, "index": 3}])
async def test_an_empty_chunk_is_accepted(choice: dict[str, Any]) -> None:
    """A delta may be missing."""
    async with openai({CHAT: streaming({"choices": [choice]}, b"[DONE]")}) as (engine, _):
        assert await chunks_of(engine) == [{"choices": [choice]}]


# Usage.


def stored(tokens: int, cached: int = 0, hour: int | None = None) -> TokenUsage:
    return TokenUsage(9, 4, cached, cache_write_input_tokens=tokens, cache_write_1h_input_tokens=hour)


def none_read(tokens: int, hour: int | None = None) -> TokenUsage:
    return structs.replace(stored(tokens, hour=hour), no_cache_reads=True)


def split(**lifetimes: Any) -> dict[str, Any]:
    """Return a usage with 6 stored tokens and their lifetimes, as LiteLLM reports them."""
    named = {f"ephemeral_{lifetime[1:]}_input_tokens": tokens for lifetime, tokens in lifetimes.items()}
    details = {"cached_tokens": 0, "cache_write_tokens": 6, "cache_creation_token_details": named}
    return {**COUNTED, "prompt_tokens_details": details}


@pytest.mark.parametrize(
    ("sent", "usage"),
    [
        (COUNTED, TokenUsage(9, 4)),
        ({"prompt_tokens": 9, "completion_tokens": 0}, TokenUsage(9, 0)),
        ({**COUNTED, "prompt_tokens_details": {"cached_tokens": 5}}, TokenUsage(9, 4, 5)),
        ({**COUNTED, "prompt_tokens_details": {"cached_tokens": 50}}, TokenUsage(9, 4, 9)),
        ({**COUNTED, "prompt_tokens_details": {"cached_tokens": 0}}, TokenUsage(9, 4, no_cache_reads=True)),
        ({**COUNTED, "prompt_tokens_details": {"cached_tokens": -5}}, TokenUsage(9, 4)),
        ({**COUNTED, "prompt_tokens_details": {"cached_tokens": True}}, TokenUsage(9, 4)),
        ({**COUNTED, "prompt_tokens_details": {"cached_tokens": None}}, TokenUsage(9, 4)),
        ({**COUNTED, "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 3}}, stored(3, 5)),
        ({**COUNTED, "prompt_tokens_details": {"cache_creation_tokens": 3}}, stored(3)),  # LiteLLM's proxy, earlier
        ({**COUNTED, "prompt_tokens_details": {"cache_creation_input_tokens": 3}}, stored(3)),  # Model Studio
        ({**COUNTED, "cache_creation_input_tokens": 3}, stored(3)),  # LiteLLM's proxy
        ({**COUNTED, "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 8}}, stored(8, 1)),
        ({**COUNTED, "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 80}}, stored(9)),
        ({**COUNTED, "prompt_tokens_details": {"cache_write_tokens": -3}}, TokenUsage(9, 4)),
        (split(_5m=2, _1h=4), none_read(6, hour=4)),
        (split(_5m=6), none_read(6, hour=0)),
        (split(_5m=6, _1h=None), none_read(6, hour=0)),
        (split(_1h=6), none_read(6, hour=6)),
        (split(_1h=60), none_read(6, hour=6)),
        (split(_5m=2, _1h=1), none_read(6, hour=4)),  # three tokens without a lifetime
        (split(_5m=60, _1h=1), none_read(6, hour=1)),
        (split(_5m=-1, _1h="4"), none_read(6)),
        (split(), none_read(6)),
        (split(_12h=6), none_read(6)),
        (
            {**COUNTED, "cache_creation_input_tokens": 6, "cache_creation": {"ephemeral_1h_input_tokens": 6}},
            stored(6, hour=6),
        ),
        ({**split(_1h=6), "prompt_tokens_details": {"cache_creation_token_details": [5]}}, TokenUsage(9, 4)),
        ({**COUNTED, "prompt_tokens_details": {"cache_write_tokens": "3"}}, TokenUsage(9, 4)),
        ({**COUNTED, "prompt_tokens_details": None}, TokenUsage(9, 4)),
        ({**COUNTED, "prompt_tokens_details": [5]}, TokenUsage(9, 4)),
        ({**COUNTED, "total_tokens": 5013}, TokenUsage(9, 5004)),  # hidden reasoning counts in the total only
        ({**COUNTED, "total_tokens": 10}, TokenUsage(9, 4)),
        ({**COUNTED, "total_tokens": 2**64 - 1}, TokenUsage(9, 4)),
        (None, None),
        ({}, None),
        ([9, 4], None),
        ("9", None),
        ({"prompt_tokens": 9}, None),
        ({"completion_tokens": 4}, None),
        ({"prompt_tokens": None, "completion_tokens": 4}, None),
        ({"prompt_tokens": "9", "completion_tokens": "4"}, None),
        ({"prompt_tokens": 9.0, "completion_tokens": 4.0}, None),
        ({"prompt_tokens": -9, "completion_tokens": 4}, None),
        ({"prompt_tokens": 9, "completion_tokens": -4}, None),
        ({"prompt_tokens": True, "completion_tokens": True}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None),
        ({"prompt_tokens": 0, "completion_tokens": 4}, None),
        ({"prompt_tokens": 2**31 - 1, "completion_tokens": 4}, TokenUsage(2**31 - 1, 4)),
        ({"prompt_tokens": 2**64 - 1, "completion_tokens": 4}, None),
    ],
)
async def test_usage_is_the_engines_valid_counts_or_none(sent: Any, usage: TokenUsage | None) -> None:
    """0 prompt tokens means that the engine did not count. Negative counts, texts and booleans are no counts."""
    assert read_usage(sent) == usage
    async with openai({CHAT: replying(reply("Because", usage=sent))}) as (engine, _):
        assert (await engine.generate_guidance(TeacherRequest(max_tokens=4, messages=MESSAGES))).usage == usage


async def test_usage_may_be_missing() -> None:
    """The ledger estimates missing counts."""
    async with openai({CHAT: replying(reply("Because"))}) as (engine, _):
        assert (await engine.generate_guidance(TeacherRequest(max_tokens=4, messages=MESSAGES))).usage is None


# The probe. The servers differ in their treatment of a trailing assistant message.

ALPHABET = "a b c d e f g h i j k l m n o p q r s t u v w x y z"
BEGUN = "a b c d e f g h i j k l m n"
RESTART = ALPHABET[:23]  # twelve letters, as many as the probe has tokens


class Refused(Exception):
    """An answer of the server with this status."""

    def __init__(self, status: int) -> None:
        self.status = status


def server(answer: Callable[[dict[str, Any]], str], owner: Any = None) -> dict[str, Handler]:
    async def chat(request: web.Request) -> web.StreamResponse:
        try:
            return web.json_response(reply(answer(await request.json()), "length"))
        except Refused as refused:
            return web.json_response({"error": {"message": "no"}}, status=refused.status)

    return {CHAT: chat, MODELS: replying({"data": [{"id": "org/model", "owned_by": owner}]})}


def vllm(body: dict[str, Any]) -> str:
    goes_on = body.get("continue_final_message", False)
    if goes_on and body.get("add_generation_prompt", True):
        raise Refused(400)
    return " o p q r s t" if goes_on else RESTART


def sglang(body: dict[str, Any]) -> str:
    return " o p q r s t" if body.get("continue_final_message") else "You wrote a part of the alphabet."


def llamacpp(body: dict[str, Any]) -> str:
    return " o p q r s t"


def echoing_llamacpp(body: dict[str, Any]) -> str:
    return BEGUN + " o p q r s t"


def stripping_ollama(body: dict[str, Any]) -> str:
    return "o p q r s t"


def mistral(body: dict[str, Any]) -> str:
    if {"continue_final_message", "add_generation_prompt"} & body.keys():
        raise Refused(422)
    if not body["messages"][-1].get("prefix"):
        raise Refused(400)
    return BEGUN + " o p q r s t"


def dashscope(body: dict[str, Any]) -> str:
    return " o p q r s t" if body["messages"][-1].get("partial") else RESTART


def openai_itself(body: dict[str, Any]) -> str:
    if {"continue_final_message", "add_generation_prompt"} & body.keys():
        raise Refused(400)
    return RESTART


def failing_on_a_trailing_message(body: dict[str, Any]) -> str:
    if not {"continue_final_message", "add_generation_prompt"} & body.keys():
        raise Refused(500)
    return vllm(body)


@pytest.mark.parametrize(
    ("answer", "owner", "found"),
    [
        (vllm, "vllm", Continuation("vllm", echo=False)),
        (vllm, None, Continuation("vllm", echo=False)),
        (sglang, "sglang", Continuation("sglang", echo=False)),
        (sglang, "llamacpp", Continuation("vllm", echo=False)),
        (llamacpp, "llamacpp", Continuation("trailing", echo=False)),
        (echoing_llamacpp, "llamacpp", Continuation("trailing", echo=True)),
        (stripping_ollama, "library", Continuation("trailing", echo=False, strips_leading_space=True)),
        (mistral, "mistralai", Continuation("prefix", echo=True)),
        (dashscope, "dashscope", Continuation("partial", echo=False)),
        (openai_itself, "openai", None),
        (failing_on_a_trailing_message, None, Continuation("vllm", echo=False)),
    ],
)
async def test_the_probe_finds_how_a_server_continues(answer: Any, owner: Any, found: Continuation | None) -> None:
    """The probe tries the likeliest mode first."""
    async with openai(server(answer, owner)) as (engine, fake):
        assert engine.state.continuation == "not_probed"
        await engine.probe()
        assert engine.state.continuation == found
        assert engine.state.warnings == (
            [] if found else ["the engine continues no assistant message: placement prefix sends guidance as context"]
        )
        assert engine.state.facts == {"owned_by": owner, "models": ["org/model"]}
        assert {body["model"] for body in fake.bodies if body} == {"org/model"}


async def test_a_server_with_a_known_owner_is_probed_once() -> None:
    """The probe costs tokens."""
    async with openai(server(sglang, "sglang")) as (engine, fake):
        await engine.probe()
    assert fake.paths == [MODELS, CHAT]


@pytest.mark.parametrize("answer", [vllm, openai_itself])
async def test_the_continuation_is_probed_once_while_the_engine_is_up(answer: Any) -> None:
    """The probe costs tokens. Its warning lasts while the engine stays up."""
    async with openai(server(answer)) as (engine, fake):
        await engine.probe()
        engine.state.up = True
        found, warned, calls = engine.state.continuation, engine.state.warnings, fake.paths.count(CHAT)
        await engine.probe()
        await engine.probe()
        assert fake.paths.count(CHAT) == calls
        assert (engine.state.continuation, engine.state.warnings) == (found, warned)


async def test_an_embedding_engine_is_probed_for_continuation_only_after_an_edit_adds_chats() -> None:
    """A later policy change has the opposite effect."""
    role = {"embeds": True}
    async with openai(server(vllm), only_embeds=lambda: role["embeds"]) as (engine, fake):
        await engine.probe()
        assert (engine.state.continuation, fake.paths.count(CHAT)) == (None, 0)
        role["embeds"] = False
        await engine.probe()
        assert isinstance(engine.state.continuation, Continuation)
        calls = fake.paths.count(CHAT)
        role["embeds"] = True
        await engine.probe()
        assert (engine.state.continuation, fake.paths.count(CHAT)) == (None, calls)


async def test_capabilities_are_probed_again_after_an_outage() -> None:
    """Another server, with other capabilities, may have replaced it."""
    behaviour = [vllm]
    async with openai(server(lambda body: behaviour[-1](body))) as (engine, _):
        for answer, found in (
            (vllm, Continuation("vllm", echo=False)),
            (echoing_llamacpp, Continuation("trailing", echo=True)),
            (openai_itself, None),
            (vllm, Continuation("vllm", echo=False)),
        ):
            behaviour.append(answer)
            await engine.probe()
            assert engine.state.continuation == found
            assert bool(engine.state.warnings) == (found is None)
            engine.state.up = False


@pytest.mark.parametrize(
    ("mode", "answer", "found", "warned"),
    [
        ("vllm", vllm, Continuation("vllm", echo=False), False),
        ("trailing", echoing_llamacpp, Continuation("trailing", echo=True), False),
        ("trailing", stripping_ollama, Continuation("trailing", echo=False, strips_leading_space=True), False),
        ("trailing", openai_itself, Continuation("trailing", echo=None), True),
        ("prefix", openai_itself, Continuation("prefix", echo=None), True),
        ("sglang", openai_itself, Continuation("sglang", echo=None), True),
    ],
)
async def test_a_configured_mode_overrides_the_probe(mode: Any, answer: Any, found: Continuation, warned: bool) -> None:
    """From the first request on. The probe adds the echo, or a warning."""
    async with openai(server(answer), continuation=mode) as (engine, fake):
        assert engine.state.continuation == Continuation(mode, echo=None)
        await engine.probe()
        assert fake.paths == [MODELS, CHAT]
        assert engine.state.continuation == found
        doubt = f"the engine did not continue the probe with continuation '{mode}'"
        assert engine.state.warnings == ([doubt] if warned else [])


@pytest.mark.parametrize("echo", [True, False])
async def test_a_configured_echo_overrides_the_probe(*, echo: bool) -> None:
    """With and without a configured mode."""
    for answer in (llamacpp, echoing_llamacpp):
        for mode in ("auto", "trailing"):
            async with openai(server(answer), continuation=mode, echo=echo) as (engine, _):
                await engine.probe()
                assert engine.state.continuation == Continuation("trailing", echo=echo)


@pytest.mark.parametrize("mode", ["trailing", "vllm", "instruct", "completions"])
async def test_a_configured_continuation_and_echo_are_not_probed(mode: Any) -> None:
    """Neither at the start nor after an outage: a probe generates text."""
    async with openai(server(openai_itself, "vllm"), continuation=mode, echo=True) as (engine, fake):
        for _ in range(2):
            await engine.probe()
            engine.state.up = False
        assert not {CHAT, RAW}.intersection(fake.paths)
        assert fake.paths.count(MODELS) == 2
        assert engine.state.continuation == Continuation(mode, echo=True)
        assert engine.state.warnings == []


async def test_none_is_never_tried() -> None:
    """There is no warning either."""
    async with openai(server(vllm), continuation="none") as (engine, fake):
        await engine.probe()
        assert fake.paths == [MODELS]
        assert engine.state.continuation is None
        assert engine.state.warnings == []


@pytest.mark.parametrize(
    ("entry", "other"),
    [
        ({"root": "org/weights"}, {"root": "org/weights-2"}),
        ({"parent": None}, {"parent": "org/base"}),
        ({"owned_by": "vllm"}, {"owned_by": "sglang"}),
        ({"meta": {"n_params": 8, "size": 16}}, {"meta": {"n_params": 8, "size": 4}}),
        ({"meta": {"n_params": 8}}, {"meta": {"n_params": 9}}),
    ],
)
async def test_other_weights_under_the_same_name_are_another_revision(entry: Any, other: Any) -> None:
    """Weights are compared as far as /models reports them. Cached guidance belongs to one revision."""
    routes = server(vllm, "vllm")
    async with openai(routes) as (engine, _):
        assert engine.state.revision is None
        found = []
        for created, listed in ((1, entry), (2, entry), (3, other)):
            routes[MODELS] = replying({"data": [{"id": "org/model", "created": created, **listed}]})
            await engine.probe()
            found.append(engine.state.revision)
    assert found[0] is not None
    assert found[0] == found[1] != found[2]


# The state of a vLLM server.


def vllm_server(**more: Any) -> dict[str, Any]:
    """Return the routes of a vLLM with the entry of its model, and its version."""
    entry = {"id": "org/model", "owned_by": "vllm", "root": "/weights", "max_model_len": 2048, **more}
    return {
        **server(vllm, "vllm"),
        MODELS: replying({"data": [entry]}),
        "/version": replying({"version": "0.32.0"}),
    }


@pytest.mark.parametrize(
    ("path", "other"),
    [
        (MODELS, vllm_server(root="/other-weights")[MODELS]),
        (MODELS, vllm_server(parent="base")[MODELS]),
        (MODELS, vllm_server(max_model_len=4096)[MODELS]),
        ("/version", replying({"version": "0.33.0"})),
        ("/version", replying({"version": "0.32.0", "rust_frontend_version": "0.1.0"})),
    ],
)
async def test_capabilities_are_probed_again_when_a_vllm_serves_something_else(path: str, other: Any) -> None:
    """It may have restarted between two probes. A LoRA adapter may have another template."""
    routes = vllm_server()
    async with openai(routes) as (engine, fake):
        for expected in (1, 1, 2, 2):
            if expected == 2:
                routes[path] = other
            await engine.probe()
            engine.state.up = True
            assert fake.paths.count(CHAT) == expected
        assert engine.state.facts["version"] in {"0.32.0", "0.33.0"}


async def test_the_context_of_a_lora_adapter_is_that_of_its_base_model() -> None:
    """VLLM lists `max_model_len: null` for adapters."""
    base = {"id": "base", "owned_by": "vllm", "root": "/weights", "parent": None, "max_model_len": 2048}
    adapter = {**base, "id": "org/model", "root": "/adapter", "parent": "base", "max_model_len": None}
    async with openai({**vllm_server(), MODELS: replying({"data": [base, adapter]})}) as (engine, _):
        await engine.probe()
        assert (engine.state.context_tokens, engine.state.max_prompt_tokens) == (2048, 2048)


async def test_other_engines_may_cut_prompts() -> None:
    entry = {"id": "org/model", "owned_by": "sglang", "max_model_len": 2048}
    async with openai({**server(sglang, "sglang"), MODELS: replying({"data": [entry]})}) as (engine, fake):
        await engine.probe()
        assert (engine.state.context_tokens, engine.state.max_prompt_tokens) == (2048, None)
        assert fake.paths == [MODELS, CHAT]


async def test_a_vllm_that_falls_asleep_is_down_and_is_probed_again_when_it_wakes() -> None:
    """A probe of its capabilities would hang while it sleeps."""
    asleep = [False]

    async def is_sleeping(_: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": asleep[0]})

    async with openai({**vllm_server(), "/is_sleeping": is_sleeping}) as (engine, fake):
        for sleeps, probed in ((False, 1), (True, 1), (True, 1), (False, 2)):
            asleep[0] = sleeps
            if sleeps:
                error = await failure(engine.probe(), fake.url)
                assert error.message == "Engine 'the-engine' sleeps. Wake it with POST /wake_up."
            else:
                await engine.probe()
            engine.state.up = not sleeps
            assert engine.state.asleep is sleeps
            assert fake.paths.count(CHAT) == probed


async def test_a_vllm_without_development_mode_is_asked_once_whether_it_sleeps() -> None:
    """Its log would have a 404 for each probe."""
    async with openai(vllm_server()) as (engine, fake):
        for _ in range(3):
            await engine.probe()
            engine.state.up = True
        assert fake.paths.count("/is_sleeping") == 1


async def test_the_rust_front_end_counts_as_vllm() -> None:
    version = {"version": "0.32.0", "rust_frontend_version": "0.1.0"}
    routes = {**vllm_server(owned_by="vllm-frontend-rs"), "/version": replying(version)}
    async with openai(routes) as (engine, _):
        await engine.probe()
        assert engine.state.continuation == Continuation("vllm", echo=False)
        assert engine.state.facts["rust_frontend_version"] == "0.1.0"
        assert engine.state.sends_tokens


async def test_a_model_that_the_server_does_not_list_is_a_warning() -> None:
    """The warning shows a misspelled name before the first request."""
    routes = {**server(vllm, "vllm"), MODELS: replying({"data": [{"id": "other", "owned_by": "vllm"}]})}
    async with openai(routes) as (engine, _):
        await engine.probe()
        assert engine.state.warnings == ["the engine does not list a model 'org/model'"]
        assert engine.state.continuation == Continuation("vllm", echo=False)


@pytest.mark.parametrize(
    "listed", [None, [], 5, {}, {"data": None}, {"data": 5}, {"data": {"a": 1}}, {"data": [5, {}]}]
)
async def test_any_list_of_models_is_accepted(listed: Any) -> None:
    """Any reply shows that the server is available."""
    async with openai({**server(vllm), MODELS: replying(listed)}) as (engine, _):
        await engine.probe()
        assert engine.state.continuation == Continuation("vllm", echo=False)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, EngineRejected), (404, EngineRejected), (429, EngineOverloaded), (500, EngineFailed)]
)
@pytest.mark.parametrize("path", [MODELS, CHAT])
async def test_a_server_that_answers_nothing_useful_is_not_up(path: str, status: int, kind: type) -> None:
    """The probe raises, and the continuation stays unknown until the next probe."""
    broken = {**server(vllm, "vllm"), path: replying({"error": "no"}, status=status)}
    async with openai(broken) as (engine, fake):
        assert type(await failure(engine.probe(), fake.url)) is kind
        assert engine.state.continuation == "not_probed"
        assert fake.paths[-1] == path
        broken[path] = server(vllm, "vllm")[path]
        await engine.probe()
        assert engine.state.continuation == Continuation("vllm", echo=False)


async def test_a_probe_reply_without_words_is_no_continuation() -> None:
    """The engine replies with a tool call."""
    routes = {**server(vllm), CHAT: replying(reply(None))}
    async with openai(routes) as (engine, _):
        await engine.probe()
        assert engine.state.continuation is None


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize(("setting", "hint"), [("none", "set 'reasoning'"), ("switchable", "use another teacher")])
async def test_a_teacher_that_reasons_is_a_warning(field: str, setting: Any, hint: str) -> None:
    """Its guidance fails each time. The next probe of the engine shows the warning."""
    thought = {"choices": [{"message": {"role": "assistant", "content": None, field: "Hm"}, "finish_reason": "length"}]}
    async with openai({CHAT: replying(thought), MODELS: replying({"data": []})}, continuation="none") as (engine, fake):
        engine.state.reasoning = setting
        await engine.probe()
        engine.state.up = True
        assert engine.state.warnings == []
        error = await failure(engine.generate_guidance(TeacherRequest(5, messages=MESSAGES)), fake.url)
        assert isinstance(error, EngineProtocolError)
        assert "'reasoning'" in error.message
        await engine.probe()
        (warning,) = engine.state.warnings
        assert hint in warning


async def test_a_teacher_that_streams_reasoning_is_a_warning() -> None:
    thought = {"choices": [{"index": 0, "delta": {"reasoning": "Hm"}, "finish_reason": "length"}]}
    routes = {CHAT: streaming(thought, b"[DONE]"), MODELS: replying({"data": []})}
    async with openai(routes, continuation="none") as (engine, _):
        await engine.probe()
        engine.state.up = True
        request = TeacherRequest(5, messages=MESSAGES)
        assert (await engine.generate_guidance(request, on_text=lambda _: None)).text == ""
        await engine.probe()
        assert "set 'reasoning'" in engine.state.warnings[0]


@pytest.mark.parametrize(("content", "more"), [(None, {"reasoning": "Hm"}), ("<think>\nHm", {}), ("", {})])
async def test_the_probe_detects_a_model_that_reasons(content: str | None, more: dict[str, str]) -> None:
    message = {"role": "assistant", "content": content, **more}
    reasoned = {"choices": [{"index": 0, "message": message, "finish_reason": "length"}]}
    async with openai({CHAT: replying(reasoned), MODELS: replying({"data": []})}) as (engine, _):
        await engine.probe()
        warned = [warning for warning in engine.state.warnings if "reasons before it answers" in warning]
        assert len(warned) == (content != "")
        engine.state.up, engine.state.reasoning = False, "always"
        await engine.probe()
        assert not any("reasons" in warning for warning in engine.state.warnings)


async def test_reasoning_is_disabled_for_guidance_and_probes() -> None:
    """A model that reasons would begin with reasoning, and llama.cpp continues no message while reasoning is on."""
    async with openai({CHAT: replying(reply("Hi")), MODELS: replying({"data": []})}, continuation="trailing") as (
        engine,
        fake,
    ):
        engine.state.reasoning = "switchable"
        await engine.generate_guidance(TeacherRequest(5, messages=MESSAGES))
        await engine.probe()
        settings = [body["chat_template_kwargs"] for body in fake.bodies if body is not None]
        assert settings == [{"enable_thinking": False, "thinking": False}] * len(settings)
        assert len(settings) >= 2
