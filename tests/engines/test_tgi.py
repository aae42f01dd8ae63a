from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from dataclasses import fields
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiohttp import web
from huggingface_hub import (
    ChatCompletionInput,
    ChatCompletionOutput,
    ChatCompletionOutputComplete,
    ChatCompletionOutputUsage,
)
from huggingface_hub.errors import (
    GenerationError,
    IncompleteGenerationError,
    OverloadedError,
    UnknownError,
    ValidationError,
)

from gateway.engines.base import TeacherReply, TeacherRequest, TokenUsage
from gateway.engines.chat import read_usage
from gateway.engines.tgi import TGIEngine
from gateway.errors import EngineFailed, EngineOverloaded, EngineProtocolError, EngineRejected
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.content_run import each_chunk
from tests.engines.fake_server import NAME, FakeServer, engine_http, failure, replying, serving, streaming

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.errors import EngineError
    from tests.engines.fake_server import Handler

RECORDED = Path(__file__).parents[3] / "shared" / "reference" / "tgi-replies"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
COUNTS = {"x-prompt-tokens": "7", "x-generated-tokens": "3"}
GENERATED = {"generated_text": " because", "details": {"finish_reason": "length", "generated_tokens": 3}}
INFO = {
    "model_id": "org/model",
    "version": "3.3.7",
    "max_concurrent_requests": 128,
    "max_stop_sequences": 4,
    "max_input_tokens": 4095,
    "max_total_tokens": 4096,
    "validation_workers": 2,
}


@asynccontextmanager
async def tgi(routes: dict[str, Handler], **options: Any) -> AsyncIterator[tuple[TGIEngine, FakeServer]]:
    async with serving(routes) as fake, engine_http(fake.url) as http:
        yield TGIEngine(NAME, http, **options), fake


def chat_reply(content: Any = "Because", finish_reason: Any = "length", **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    return {"id": "", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], **fields}


def chunk(content: str | None, finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    delta = {"role": "assistant", "content": content, "tool_calls": None}
    return {"id": "", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **fields}


async def all_of(engine: TGIEngine, body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    async with aclosing(engine.stream(body or {"messages": MESSAGES})) as groups:
        return [chunk async for chunks in groups for chunk in each_chunk(chunks)]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def finishes(chunks: list[dict[str, Any]]) -> list[str]:
    return [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]


async def test_guidance_of_a_batch_is_requested_concurrently() -> None:
    """TGI batches them; no call waits for another."""
    together = asyncio.Barrier(5)

    async def when_all_are_there(_: web.Request) -> web.StreamResponse:
        async with asyncio.timeout(10):
            await together.wait()
        return web.json_response(chat_reply())

    async with tgi({CHAT: when_all_are_there}) as (engine, fake):
        request = TeacherRequest(max_tokens=40, messages=MESSAGES)
        replies = await asyncio.gather(*(engine.generate_guidance(request, batch="b1") for _ in range(5)))
    assert [reply.text for reply in replies] == ["Because"] * 5
    assert fake.paths == [CHAT] * 5


# Replies of real servers, recorded in TGI's own integration tests.


def recorded(name: str) -> Any:
    path = RECORDED / f"{name}.json"
    if not path.exists():
        pytest.skip("TGI's recorded replies are not beside this checkout (../shared/reference/tgi-replies): not read")
    return orjson.loads(path.read_bytes())


@pytest.mark.parametrize(
    ("name", "finish", "usage"),
    [
        ("test_chat_llama.test_flash_llama_simple", "length", TokenUsage(61, 100)),
        ("test_continue_final_message.test_llama_completion_single_prompt", "length", TokenUsage(49, 30)),
        ("test_continue_final_message.test_llama_completion_single_prompt_continue", "length", TokenUsage(73, 30)),
    ],
)
async def test_recorded_chats_open_an_answer(name: str, finish: str, usage: TokenUsage) -> None:
    """Text, finish reason and usage of replies recorded from real servers."""
    reply = recorded(name)
    async with tgi({CHAT: replying(reply)}) as (engine, _):
        guidance = await engine.generate_guidance(TeacherRequest(max_tokens=100, messages=MESSAGES))
    assert guidance == TeacherReply(reply["choices"][0]["message"]["content"], finish, usage)  # type: ignore[arg-type]


async def test_a_recorded_continuation_repeats_nothing() -> None:
    """TGI's reply starts after the assistant message, with its own space."""
    reply = recorded("test_continue_final_message.test_llama_completion_single_prompt_continue")
    async with tgi({CHAT: replying(reply)}) as (engine, _):
        answer = await engine.complete({"messages": MESSAGES})
        assert engine.state.continuation == Continuation("trailing", echo=False, strips_leading_space=False)
    assert answer["choices"][0]["message"]["content"].startswith(" the royal mouse?")


@pytest.mark.parametrize(
    ("name", "chunks", "text", "finish", "usage"),
    [
        ("test_completion_prompts.test_chat_openai_nousage", None, "OK!", "stop", None),
        ("test_completion_prompts.test_chat_openai_usage", None, "OK!", "stop", True),
        ("test_completion_prompts.test_flash_llama_completion_stream_usage", None, None, "length", True),
        ("test_flash_qwen2_5_vl.test_flash_qwen2_5_vl_simple_streaming", 1, "", "stop", None),
    ],
)
async def test_recorded_streams_are_read_whole(
    name: str, chunks: int | None, text: str | None, finish: str, usage: bool | None
) -> None:
    """All chunks, one finish reason, and usage if the request included it."""
    reply = recorded(name)
    events = reply if isinstance(reply, list) else [reply]
    async with tgi({CHAT: streaming(*events, b"[DONE]")}) as (engine, _):
        read = await all_of(engine)
    assert len(read) == (chunks or len(events))
    assert text_of(read) == (text_of(events) if text is None else text)
    assert finishes(read) == [finish]
    counted = [counts for one in read if (counts := read_usage(one["usage"])) is not None]
    assert len(counted) == (1 if usage else 0)


@pytest.mark.parametrize(
    ("name", "stop", "finish"),
    [
        ("test_flash_llama.test_flash_llama_simple", (), "length"),
        ("test_flash_qwen2.test_flash_qwen2", (), "length"),
        ("test_flash_llama.test_flash_llama_all_params", ("test",), "stop"),
    ],
)
async def test_recorded_generations_open_an_answer(name: str, stop: tuple[str, ...], finish: str) -> None:
    """Raw text keeps its leading space. The stop string at its end is removed."""
    reply = recorded(name)
    written = reply["generated_text"]
    kept = written.removesuffix(stop[0]) if stop else written
    assert (kept != written) == bool(stop)
    async with tgi({"/generate": replying(reply)}) as (engine, _):
        guidance = await engine.generate_guidance(TeacherRequest(max_tokens=10, prompt="Test request", stop=stop))
    assert (guidance.text, guidance.finish) == (kept, finish)


async def test_recorded_generations_of_a_load_are_alike() -> None:
    """Each of many concurrent replies has the same result."""
    replies = recorded("test_flash_llama.test_flash_llama_load")
    for reply in replies:
        async with tgi({"/generate": replying(reply, headers=COUNTS)}) as (engine, _):
            guidance = await engine.generate_guidance(TeacherRequest(max_tokens=10, prompt="Test request"))
        ends = tuple(accumulate(len(token["text"]) for token in reply["details"]["tokens"]))
        assert len(ends) == 10
        assert guidance == TeacherReply(" for /api/v1/projects/1", "length", TokenUsage(7, 3), token_ends=ends)


async def test_a_recorded_tool_call_comes_through_untouched() -> None:
    """A message without text is valid."""
    reply = recorded("test_tools_llama.test_flash_llama_grammar_tools_nostream")
    async with tgi({CHAT: replying(reply)}) as (engine, fake):
        assert await engine.complete({"messages": MESSAGES}) == reply
        refused = await failure(engine.generate_guidance(TeacherRequest(max_tokens=10, messages=MESSAGES)), fake.url)
    assert isinstance(refused, EngineProtocolError)


# Requests.


@pytest.mark.parametrize(
    ("request_", "sent"),
    [
        (
            TeacherRequest(max_tokens=40, prompt="Q: why?\nA:"),
            {"max_new_tokens": 40, "details": True, "do_sample": False},
        ),
        (
            TeacherRequest(max_tokens=40, prompt="Q: why?\nA:", temperature=0.0, top_p=0.9, seed=7, stop=("\nQ:",)),
            {"max_new_tokens": 40, "details": True, "do_sample": False, "seed": 7, "stop": ["\nQ:"]},
        ),
        (
            TeacherRequest(max_tokens=1, prompt="Q: why?\nA:", temperature=0.8, top_p=0.9, seed=0),
            {"max_new_tokens": 1, "details": True, "do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 0},
        ),
        (
            TeacherRequest(max_tokens=1, prompt="Q: why?\nA:", temperature=0.8, top_p=1.0),
            {"max_new_tokens": 1, "details": True, "do_sample": True, "temperature": 0.8},
        ),
        (
            TeacherRequest(max_tokens=1, prompt="Q: why?\nA:", stop=("", "1", "2", "3", "4", "5")),
            {"max_new_tokens": 1, "details": True, "do_sample": False, "stop": ["1", "2", "3", "4"]},
        ),
    ],
)
async def test_the_guidance_request_to_generate_has_exactly_these_fields(
    request_: TeacherRequest, sent: dict[str, Any]
) -> None:
    """`parameters` and max_new_tokens are always sent. Temperature 0 disables sampling; top_p 1 is omitted."""
    async with tgi({"/generate": replying(GENERATED, headers=COUNTS)}) as (engine, fake):
        guidance = await engine.generate_guidance(request_)
    assert fake.paths == ["/generate"]
    assert fake.bodies == [{"inputs": "Q: why?\nA:", "parameters": sent}]
    assert guidance == TeacherReply(" because", "length", TokenUsage(7, 3))


@pytest.mark.parametrize(
    ("request_", "sent"),
    [
        (TeacherRequest(max_tokens=40, messages=MESSAGES), {"temperature": 0.0}),
        (
            TeacherRequest(max_tokens=40, messages=MESSAGES, temperature=0.7, top_p=0.9, seed=7, stop=("x", "")),
            {"temperature": 0.7, "top_p": 0.9, "seed": 7, "stop": ["x"]},
        ),
        (TeacherRequest(max_tokens=40, messages=MESSAGES, temperature=0.0, top_p=0.9), {"temperature": 0.0}),
        (TeacherRequest(max_tokens=40, messages=MESSAGES, temperature=0.7, top_p=1.0), {"temperature": 0.7}),
        (TeacherRequest(max_tokens=40, messages=MESSAGES, top_p=0.0), {"temperature": 0.0}),
    ],
)
async def test_the_guidance_request_to_the_chat_route_has_exactly_these_fields(
    request_: TeacherRequest, sent: dict[str, Any]
) -> None:
    """The route applies TGI's template and decodes greedily for temperature 0."""
    reply = chat_reply(usage={"prompt_tokens": 9, "completion_tokens": 40, "total_tokens": 49})
    async with tgi({CHAT: replying(reply)}) as (engine, fake):
        guidance = await engine.generate_guidance(request_)
    assert fake.bodies == [{"model": "tgi", "messages": MESSAGES, "max_tokens": 40, "logprobs": True, **sent}]
    assert guidance == TeacherReply("Because", "length", TokenUsage(9, 40))


@pytest.mark.parametrize("stop", [(), (" of",)])
async def test_a_chat_reports_the_end_of_each_token(stop: tuple[str, ...]) -> None:
    """The router repeats the stop string, which is removed with its tokens."""
    tokens = ["The", " sky", " is", " of"]
    reply = chat_reply("".join(tokens), usage={"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13})
    content = [{"token": token, "logprob": -0.1, "top_logprobs": []} for token in tokens]
    reply["choices"][0]["logprobs"] = {"content": content}
    async with tgi({CHAT: replying(reply)}) as (engine, _):
        guidance = await engine.generate_guidance(TeacherRequest(max_tokens=4, messages=MESSAGES, stop=stop))
    assert guidance.token_ends == ((3, 7, 10) if stop else (3, 7, 10, 13))


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"model": "student", "unknown": {"a": 1}}, {"unknown": {"a": 1}}),
        ({"presence_penalty": 0, "frequency_penalty": 0}, {"frequency_penalty": 0}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop": ["x", "", "y"]}, {"stop": ["x", "y"]}),
        ({"stop": ""}, {}),
        ({"stop": [""]}, {}),
        ({"stop": None}, {}),
        ({"top_p": 1}, {}),
        ({"top_p": 1.0, "temperature": 0}, {"temperature": 0}),
        ({"top_p": 0}, {"temperature": 0}),
        ({"top_p": 0, "temperature": 0.9}, {"temperature": 0}),
        ({"top_p": 0.9, "temperature": 0}, {"temperature": 0}),
        ({"top_p": None, "temperature": 0.3}, {"temperature": 0.3}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": None}, {"max_tokens": 5}),
        ({"max_completion_tokens": None, "max_tokens": 6}, {"max_tokens": 6}),
        ({"stream_options": {"include_usage": True}}, {"stream_options": {"include_usage": True}}),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_openai_body_is_converted_for_tgi(
    fields: dict[str, Any], sent: dict[str, Any], *, streamed: bool
) -> None:
    """Fields that TGI misreads or rejects are removed or converted; other fields do not change."""
    body = {"messages": MESSAGES, **fields}
    before = orjson.dumps(body)
    handler = streaming(chunk("x", "length")) if streamed else replying(chat_reply())
    async with tgi({CHAT: handler}) as (engine, fake):
        await (all_of(engine, body) if streamed else engine.complete(body))
    assert fake.bodies == [{"messages": MESSAGES, "model": "tgi", **sent}]
    assert orjson.dumps(body) == before


async def test_another_model_name_is_an_adapter() -> None:
    """The configured name is sent, never the caller's."""
    async with tgi({CHAT: replying(chat_reply())}, model="my-lora") as (engine, fake):
        await engine.complete({"messages": MESSAGES, "model": "what-the-caller-said"})
    assert fake.bodies[0]["model"] == "my-lora"


# Replies.


@pytest.mark.parametrize(
    ("written", "finish", "stop", "text", "ended"),
    [
        (" yes\nQ:", "stop_sequence", ("\nQ:",), " yes", "stop"),
        (" yes", "eos_token", ("\nQ:",), " yes", "stop"),
        (" yes", "length", ("\nQ:",), " yes", "length"),
        (" yes\nQ:", "length", ("\nQ:",), " yes", "stop"),
        (" yes\nQ: more", "length", ("\nQ:",), " yes", "stop"),
        (" yes\n\n", "stop_sequence", ("\n", "\n\n"), " yes", "stop"),
        (" a, b", "length", ("x", "", ","), " a", "stop"),
        (" yes", None, (), " yes", "length"),
        (" yes", "unheard_of", (), " yes", "length"),
        ("", "eos_token", (), "", "stop"),
    ],
)
@pytest.mark.parametrize("raw", [True, False])
async def test_guidance_ends_before_its_stop_string(
    written: str, finish: str | None, stop: tuple[str, ...], text: str, ended: str, *, raw: bool
) -> None:
    """TGI returns the stop string, and reports `length` if the last token completes it. An unknown reason is a cut."""
    routes = {
        "/generate": replying({"generated_text": written, "details": finish and {"finish_reason": finish}}),
        CHAT: replying(chat_reply(written, finish)),
    }
    fields = {"prompt": "Q: why?\nA:"} if raw else {"messages": MESSAGES}
    async with tgi(routes) as (engine, _):
        guidance = await engine.generate_guidance(TeacherRequest(max_tokens=5, stop=stop, **fields))  # type: ignore[arg-type]
    assert (guidance.text, guidance.finish) == (text, ended)


@pytest.mark.parametrize(
    ("headers", "usage"),
    [
        (COUNTS, TokenUsage(7, 3)),
        ({}, None),
        ({"x-prompt-tokens": "7"}, None),
        ({"x-prompt-tokens": "7", "x-generated-tokens": "many"}, None),
        ({"x-prompt-tokens": "7", "x-generated-tokens": "-1"}, None),
        ({"x-prompt-tokens": "7", "x-generated-tokens": "0"}, TokenUsage(7, 0)),
    ],
)
async def test_usage_of_generate_is_in_headers(headers: dict[str, str], usage: TokenUsage | None) -> None:
    """Without both counts there is no usage, and the ledger estimates it."""
    async with tgi({"/generate": replying(GENERATED, headers=headers)}) as (engine, _):
        assert (await engine.generate_guidance(TeacherRequest(max_tokens=5, prompt="x"))).usage == usage


@pytest.mark.parametrize(
    ("sent", "received"), [("eos_token", "stop"), ("stop_sequence", "stop"), ("stop", "stop"), ("length", "length")]
)
async def test_finish_reasons_are_openais(sent: str, received: str) -> None:
    """TGI has three reasons for a stop, OpenAI has one."""
    async with tgi({CHAT: replying(chat_reply("x", sent))}) as (engine, _):
        assert (await engine.complete({"messages": MESSAGES}))["choices"][0]["finish_reason"] == received
    async with tgi({CHAT: streaming(chunk("x"), chunk("", sent))}) as (engine, _):
        assert finishes(await all_of(engine)) == [received]


@pytest.mark.parametrize(
    ("pieces", "finish", "stop", "text", "ended"),
    [
        (["One", " two", "\nQ", ":"], "stop_sequence", "\nQ:", "One two", "stop"),
        (["One", "\n", "Q", "uick"], "length", ["\nQ:"], "One\nQuick", "length"),
        (["One", "\n"], "eos_token", "\nQ:", "One\n", "stop"),
        (["One\nQ: and", " on"], "length", "\nQ:", "One", "stop"),
        (["One", " two"], "length", None, "One two", "length"),
    ],
)
async def test_an_answer_ends_before_the_callers_stop_string(
    pieces: list[str], finish: str, stop: Any, text: str, ended: str
) -> None:
    """Across tokens, in streams and in JSON replies. A partial match is shown at the end."""
    body = {"messages": MESSAGES, "stop": stop}
    async with tgi({CHAT: replying(chat_reply("".join(pieces), finish))}) as (engine, _):
        choice = (await engine.complete(body))["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, ended)
    events = [*map(chunk, pieces[:-1]), chunk(pieces[-1], finish)]
    async with tgi({CHAT: streaming(*events, b"[DONE]")}) as (engine, _):
        chunks = await all_of(engine, body)
    assert (text_of(chunks), finishes(chunks)) == (text, [ended])
    async with tgi({CHAT: streaming(*map(chunk, pieces), chunk(None, finish), b"[DONE]")}) as (engine, _):
        chunks = await all_of(engine, body)
    assert (text_of(chunks), finishes(chunks)) == (text, [ended])


# Errors.


@pytest.mark.parametrize(
    ("status", "error_type", "kind", "cause"),
    [
        (422, "validation", EngineRejected, ValidationError),
        (424, "generation", EngineFailed, GenerationError),
        (429, "overloaded", EngineOverloaded, OverloadedError),
        (500, "incomplete_generation", EngineFailed, IncompleteGenerationError),
        (422, "template_error", EngineRejected, UnknownError),
    ],
)
async def test_an_error_type_is_the_hubs_exception_as_cause(
    status: int, error_type: str, kind: type, cause: type
) -> None:
    """On each route."""
    handler = replying({"error": "what it says", "error_type": error_type}, status=status)
    async with tgi({"/generate": handler, CHAT: handler}) as (engine, fake):
        for call in (
            engine.generate_guidance(TeacherRequest(max_tokens=5, prompt="x")),
            engine.generate_guidance(TeacherRequest(max_tokens=5, messages=MESSAGES)),
            engine.complete({"messages": MESSAGES}),
            all_of(engine),
        ):
            error = await failure(call, fake.url)
            assert type(error) is kind
            assert error.reason == error_type
            assert type(error.__cause__) is cause
            assert error.message == f"Engine 'the-engine' answered {status}: what it says"


async def test_a_rejection_in_plain_text_has_no_cause_of_the_hubs() -> None:
    """TGI's web framework sends such errors."""
    handler = replying("Failed to deserialize the JSON body", status=422)
    async with tgi({CHAT: handler}) as (engine, fake):
        error = await failure(engine.complete({"messages": MESSAGES}), fake.url)
    assert error.message.endswith("422: Failed to deserialize the JSON body")
    assert error.__cause__ is None


async def test_a_bad_key_is_an_empty_401() -> None:
    async with tgi({CHAT: replying(b"", status=401)}) as (engine, fake):
        error = await failure(engine.complete({"messages": MESSAGES}), fake.url)
    assert isinstance(error, EngineRejected)
    assert "credentials" in error.message


TGI_ERRORS = [
    ("Input validation error: `inputs` must have less than 4095 tokens. Given: 5001", "validation", EngineRejected),
    ("Template error: undefined value", "template_error", EngineRejected),
    ("Missing template vatiable: bos", "missing_template_variable", EngineRejected),
    ("Tool error: Tool choice was required but no tools were provided", "tool_error", EngineRejected),
    ("Model is overloaded", "overloaded", EngineOverloaded),
    ("Request failed during generation: CUDA out of memory", "generation", EngineFailed),
    ("Incomplete generation", "incomplete_generation", EngineFailed),
    ("Incomplete generation stream", "incomplete_generation_stream", EngineFailed),
    ("Stream event serialization error", "stream_serialization_error", EngineFailed),
]


@pytest.mark.parametrize("route", ["/generate_stream", CHAT])
@pytest.mark.parametrize(("text", "error_type", "kind"), TGI_ERRORS)
async def test_an_error_event_is_of_the_kind_that_its_message_names(
    text: str, error_type: str, kind: type[EngineError], route: str
) -> None:
    """TGI answers 200 and reports 422 in each error event of a chat. A later [DONE] does not change this."""
    chat = route == CHAT
    event = {"error": {"message": text, "http_status_code": 422}} if chat else {"error": text, "error_type": error_type}
    async with tgi({route: streaming(event, b"[DONE]") if chat else streaming(event)}) as (engine, fake):
        body = None if chat else {"prompt": "x", "max_tokens": 5}
        error = await failure(all_of(engine, body), fake.url)
    assert type(error) is kind
    assert error.reason == error_type
    assert text in error.message
    if isinstance(error, EngineRejected):
        assert error.blames_request
        assert error.message == f"Engine 'the-engine' rejected the request: {text}"


@pytest.mark.parametrize(("text", "kind"), [(text, kind) for text, _, kind in TGI_ERRORS])
async def test_an_error_after_the_first_token_costs_what_was_generated(text: str, kind: type[EngineError]) -> None:
    """TGI may report any error after generation has started."""
    event = {"error": {"message": text, "http_status_code": 422}}
    async with tgi({CHAT: streaming(chunk("One"), event, b"[DONE]")}) as (engine, fake):
        error = await failure(all_of(engine), fake.url)
    assert type(error) is kind
    assert error.may_have_run


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        ({"error": "out of memory", "error_type": "generation"}, GenerationError),
        ({"error": {"message": "Request failed during generation: x", "http_status_code": 422}}, GenerationError),
        ({"error": {"message": "out of memory", "http_status_code": 500}}, type(None)),
    ],
)
async def test_an_error_event_is_the_hubs_exception_as_cause(event: Any, cause: type) -> None:
    """Like an error with a status."""
    async with tgi({CHAT: streaming(chunk("One"), event, b"[DONE]")}) as (engine, fake):
        error = await failure(all_of(engine), fake.url)
    assert type(error) is EngineFailed
    assert error.message.startswith("Engine 'the-engine' failed during its answer: ")
    assert type(error.__cause__) is cause


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        [GENERATED],
        "text",
        5,
        {},
        {"generated_text": None},
        {"generated_text": ["a"]},
        {"generated_text": "x", "details": "y"},
        {"generated_text": "x", "details": [1]},
        {"choices": None},
        {"choices": []},
        {"choices": [5]},
        {"choices": [{"message": "x"}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": [{"message": {"content": "x"}, "finish_reason": {}}]},
        {"choices": [{"message": {"content": "x"}}, 5]},
    ],
)
async def test_a_reply_that_is_not_tgis_is_a_protocol_error(body: Any) -> None:
    async with tgi({"/generate": replying(body), CHAT: replying(body)}) as (engine, fake):
        for fields in ({"prompt": "x"}, {"messages": MESSAGES}):
            error = await failure(engine.generate_guidance(TeacherRequest(max_tokens=5, **fields)), fake.url)  # type: ignore[arg-type]
            assert isinstance(error, EngineProtocolError)


# /info.


async def test_the_probe_keeps_the_servers_limits() -> None:
    """Unused facts are not stored."""
    async with tgi({"/info": replying(INFO)}, max_concurrency=96) as (engine, fake):
        await engine.probe()
    assert fake.paths == ["/info"]
    assert engine.state.max_concurrency == 128
    assert engine.state.facts == {key: value for key, value in INFO.items() if key != "validation_workers"}
    assert engine.state.warnings == []


async def test_a_configured_concurrency_above_the_servers_is_a_warning() -> None:
    """The server would answer 429, so its limit applies. Each probe has one warning."""
    async with tgi({"/info": replying({**INFO, "max_concurrent_requests": 64})}, max_concurrency=96) as (engine, _):
        await engine.probe()
        await engine.probe()
    assert engine.state.max_concurrency == 64
    assert engine.state.warnings == ["max_concurrency 96 exceeds the server's max_concurrent_requests 64; 64 is used"]


@pytest.mark.parametrize(("tokens", "warned"), [(8191, False), (8192, True)])
async def test_guidance_that_can_never_fit_is_a_warning(tokens: int, *, warned: bool) -> None:
    """The server would reject each call, and each answer would be unguided."""
    routes = {"/info": replying({**INFO, "max_total_tokens": 8192})}
    policy = {"tokens": 1}
    async with tgi(routes, max_guidance_tokens=lambda: policy["tokens"]) as (engine, _):
        await engine.probe()
        assert engine.state.warnings == []
        policy["tokens"] = tokens  # policies change while the engine runs
        await engine.probe()
    assert any("8192" in warning for warning in engine.state.warnings) is warned


def test_the_chat_routes_fields_are_the_hubs() -> None:
    """Sent and received fields have the names of TGI's own client."""
    sent = {"messages", "model", "max_tokens", "temperature", "seed", "stop", "top_p", "stream", "stream_options"}
    assert sent <= {field.name for field in fields(ChatCompletionInput)}
    assert {"choices", "usage"} <= {field.name for field in fields(ChatCompletionOutput)}
    assert {"message", "finish_reason"} <= {field.name for field in fields(ChatCompletionOutputComplete)}
    assert {"prompt_tokens", "completion_tokens"} <= {field.name for field in fields(ChatCompletionOutputUsage)}


async def test_the_servers_limit_of_stop_strings_applies_to_guidance() -> None:
    """The other stop strings are applied to the reply."""
    routes = {"/info": replying({**INFO, "max_stop_sequences": 1}), CHAT: replying(chat_reply("One, two. Three"))}
    async with tgi(routes) as (engine, fake):
        await engine.probe()
        guidance = await engine.generate_guidance(TeacherRequest(max_tokens=5, messages=MESSAGES, stop=("x", ".")))
    assert fake.bodies[1]["stop"] == ["x"]
    assert (guidance.text, guidance.finish) == ("One, two", "stop")


@pytest.mark.parametrize("info", [None, [], "x", {}, {"model": "x"}])
async def test_an_info_without_model_is_a_protocol_error(info: Any) -> None:
    """Another service listens at the address."""
    async with tgi({"/info": replying(info)}) as (engine, fake):
        assert isinstance(await failure(engine.probe(), fake.url), EngineProtocolError)


@pytest.mark.parametrize("limit", [None, "128", 0, -1, 1.5, []])
async def test_a_limit_that_is_none_is_not_taken_for_one(limit: Any) -> None:
    """Without limits in /info the configured ones apply."""
    info = {"model_id": "x", "max_concurrent_requests": limit, "max_stop_sequences": limit}
    async with tgi({"/info": replying(info)}, max_concurrency=96) as (engine, _):
        await engine.probe()
    assert engine.state.max_concurrency is None
    assert engine.state.warnings == []
