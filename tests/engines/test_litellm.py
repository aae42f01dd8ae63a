from __future__ import annotations

import asyncio
import inspect
import os
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.engines.base import TeacherReply, TeacherRequest, TokenUsage
from gateway.engines.chat import read_usage
from gateway.engines.http import EngineDeadlines
from gateway.engines.litellm import LiteLLMEngine
from gateway.engines.litellm_library import load
from gateway.engines.replies import message_text
from gateway.errors import (
    EngineFailed,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    EngineUnsupported,
)
from gateway.protocol.capabilities.continuation import PROBE_PREFIX, Continuation, Prefill
from tests.engines.fake_server import KEY, NAME, FakeServer, failure, replying, reset, serving, talking
from tests.engines.litellm_servers import chat_chunks, converse_frames, generated, message, message_events, ollama_lines
from tests.gateway_process import guided, local_models, running_gateway
from tests.gateway_process import model as model_entry
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.local.stack import LocalStack
    from tests.engines.fake_server import Handler

CLAUDE = "anthropic/claude-sonnet-4-5"
CLAUDE_ON_BEDROCK = "anthropic.claude-3-5-sonnet-20240620-v1:0"
MESSAGES_PATH = "/v1/messages"
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
BEGUN = Prefill("Because the", Continuation("trailing", echo=False))


@pytest.fixture(autouse=True)
def _an_environment_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the environment variables from which LiteLLM reads keys and addresses."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "ANTHROPIC_", "GEMINI_", "GOOGLE_", "MISTRAL_", "OLLAMA_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@asynccontextmanager
async def engine_at(url: str, model: str = CLAUDE, **options: Any) -> AsyncIterator[LiteLLMEngine]:
    limits = {name: options.pop(name) for name in ("first_token_s", "idle_s", "total_s") if name in options}
    deadlines = EngineDeadlines(**{"connect_s": 5, "first_token_s": 10, "idle_s": 10, "total_s": 20, **limits})
    options = {"continuation": "trailing", "api_key": KEY, **options}
    engine = LiteLLMEngine(NAME, model, await load(), deadlines=deadlines, api_base=url, **options)
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def behind(
    model: str, path: str, handler: Handler, base: str = "", **options: Any
) -> AsyncIterator[tuple[LiteLLMEngine, FakeServer]]:
    async with serving({path: handler}) as fake, engine_at(fake.url + base, model, **options) as engine:
        yield engine, fake


async def chunks_of(engine: LiteLLMEngine, prefill: Prefill | None = None, **body: Any) -> list[dict[str, Any]]:
    async with aclosing(engine.stream({"messages": MESSAGES, **body}, prefill)) as groups:
        return [chunk async for chunks in groups for chunk in chunks]


def summary(chunks: list[dict[str, Any]]) -> tuple[str, list[str], TokenUsage | None]:
    """Return the text, the finish_reasons and the last usage of a stream."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return text, reasons, read_usage(next((chunk["usage"] for chunk in reversed(chunks) if "usage" in chunk), None))


# model, path, address below the server's, options; then a whole stream and one that breaks off after its first word.
PROVIDERS: dict[str, tuple[str, str, str, dict[str, Any], Handler, Handler]] = {
    "anthropic": (
        CLAUDE, MESSAGES_PATH, "", {},
        message_events(" sky", " is"), message_events(" sky", stop_reason=None),
    ),
    "openai": (
        "openai/m", "/v1/chat/completions", "/v1", {},
        chat_chunks(" sky", " is"), chat_chunks(" sky", finish_reason=None, done=False),
    ),
    "hosted_vllm": (
        "hosted_vllm/m", "/v1/chat/completions", "/v1", {},
        chat_chunks(" sky", " is"), chat_chunks(" sky", finish_reason=None, done=False),
    ),
    "azure": (
        "azure/m", "/openai/deployments/m/chat/completions", "", {"options": {"api_version": "2024-06-01"}},
        chat_chunks(" sky", " is"), chat_chunks(" sky", finish_reason=None, done=False),
    ),
    "gemini": (
        "gemini/gemini-2.0-flash", "/models/gemini-2.0-flash:streamGenerateContent", "", {},
        generated(" sky", " is"), generated(" sky", finish_reason=None),
    ),
    "bedrock": (
        f"bedrock/{CLAUDE_ON_BEDROCK}", f"/model/{CLAUDE_ON_BEDROCK}/converse-stream", "",
        {"options": {"aws_region_name": "eu-central-1"}, "api_key": None},
        converse_frames(" sky", " is"), converse_frames(" sky", stop_reason=None),
    ),
    "ollama_chat": (
        "ollama_chat/m", "/api/chat", "", {},
        ollama_lines(" sky", " is"), ollama_lines(" sky", done=False),
    ),
}  # fmt: skip


# Streams.


@pytest.mark.long
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_every_provider_streams_openais_chunks(provider: str) -> None:
    """The text, one finish_reason and the counts, without fields of LiteLLM."""
    model, path, base, options, whole, _ = PROVIDERS[provider]
    async with behind(model, path, whole, base, **options) as (engine, fake):
        chunks = await chunks_of(engine, BEGUN)
    cached = 0 if provider == "ollama_chat" else 4  # its API reports none
    assert summary(chunks) == (" sky is", ["stop"], TokenUsage(14, 5, cached))
    assert {key for chunk in chunks for key in chunk} <= {"choices", "usage", "system_fingerprint", "service_tier"}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert {key for choice in choices for key in choice} == {"index", "delta", "logprobs", "finish_reason"}
    assert {key for choice in choices for key in choice["delta"]} <= {"role", "content"}
    assert fake.paths == [path]


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_stream_that_just_ends_is_a_failure(provider: str) -> None:
    """LiteLLM reports `stop` for some cut streams (streaming_handler.py, finish_reason_handler, 1.110.2)."""
    model, path, base, options, _, cut = PROVIDERS[provider]
    async with behind(model, path, cut, base, **options) as (engine, fake):
        seen: list[dict[str, Any]] = []

        async def read() -> None:
            async with aclosing(engine.stream({"messages": MESSAGES}, BEGUN)) as groups:
                async for chunks in groups:
                    seen.extend(chunks)

        assert isinstance(await failure(read(), fake.url), EngineFailed)
    assert summary(seen)[:2] == (" sky", [])


async def test_an_answer_may_repeat_itself() -> None:
    """LiteLLM rejects a hundred equal chunks in a row (raise_on_model_repetition)."""
    async with behind(CLAUDE, MESSAGES_PATH, message_events(*["----"] * 150)) as (engine, _):
        assert summary(await chunks_of(engine))[:2] == ("----" * 150, ["stop"])


async def test_a_reset_in_the_middle_of_a_stream_is_an_error() -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        writer.write(
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            b'"delta":{"type":"text_delta","text":"x"}}\n\n'
        )
        await writer.drain()
        await asyncio.sleep(0.1)
        reset(writer)

    async with talking(talk) as url, engine_at(url) as engine:
        error = await failure(chunks_of(engine), url)
    assert isinstance(error, EngineUnreachable)
    assert error.may_have_run


async def test_an_error_event_is_passed_on_in_the_engines_words() -> None:
    overloaded = {"type": "overloaded_error", "message": f"Overloaded with {KEY}"}
    async with behind(CLAUDE, MESSAGES_PATH, message_events(" sky", stop_reason=None, failure=overloaded)) as (
        engine,
        fake,
    ):
        error = await failure(chunks_of(engine), fake.url)
    assert isinstance(error, EngineFailed)
    assert error.message == f"Engine '{NAME}' failed during its answer: Overloaded with (hidden)"


async def test_an_unsupported_field_fails_a_stream_at_its_first_chunk() -> None:
    """The guard counts the failure only if it occurs inside the stream."""
    async with engine_at("http://127.0.0.1:9") as engine:
        stream = engine.stream({"messages": MESSAGES, "tools": [{"type": "web_search"}]})
        with pytest.raises(EngineUnsupported) as failed:
            await anext(stream)
    assert failed.value.param == "tools[0].type"


async def test_a_stream_is_given_up_with_its_reader() -> None:
    """The connection closes, so the engine can stop."""
    closed = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        writer.write(b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}\n\n')
        await writer.drain()
        await reader.read()
        closed.set()

    async with talking(talk) as url, engine_at(url) as engine:
        async with aclosing(engine.stream({"messages": MESSAGES})) as groups:
            await anext(groups)
        await asyncio.wait_for(closed.wait(), 5)


# Replies.


async def test_a_reply_is_openais_and_holds_nothing_of_litellms() -> None:
    async with behind(CLAUDE, MESSAGES_PATH, replying(message(" sky is blue.", "max_tokens"))) as (engine, fake):
        reply = await engine.complete({"messages": MESSAGES, "max_tokens": 5, "stop": ["X"]}, BEGUN)
    assert reply == {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": " sky is blue.", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": 14,
            "completion_tokens": 5,
            "total_tokens": 19,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    }
    sent = fake.bodies[0]
    assert sent["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "Because the"}]}
    assert (sent["model"], sent["max_tokens"], sent["stop_sequences"]) == ("claude-sonnet-4-5", 5, ["X"])
    assert fake.requests[0].headers["x-api-key"] == KEY


STORED = {"input_tokens": 10, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 6, "output_tokens": 5}
AS_OPENAI = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
LIFETIMES = {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 4}


async def test_tokens_written_to_the_cache_come_through() -> None:
    """Anthropic and Bedrock count them in addition to the input, OpenAI as a part of it."""
    answer = {**message(" sky"), "usage": STORED}
    async with behind(CLAUDE, MESSAGES_PATH, replying(answer)) as (engine, _):
        reply = await engine.complete({"messages": MESSAGES})
    assert reply["usage"] == AS_OPENAI | {"prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 6}}
    async with behind(CLAUDE, MESSAGES_PATH, message_events(" sky", usage=STORED)) as (engine, _):
        streamed = await chunks_of(engine)
    bedrock, path, base, options, *_ = PROVIDERS["bedrock"]
    async with behind(bedrock, path, converse_frames(" sky", stored=6), base, **options) as (engine, _):
        framed = await chunks_of(engine)
    assert summary(streamed)[2] == summary(framed)[2] == TokenUsage(20, 5, 4, cache_write_input_tokens=6)
    reported = AS_OPENAI | {"prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 6}}
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    async with behind("openai/m", "/v1/chat/completions", replying({**whole, "usage": reported}), "/v1") as (engine, _):
        assert (await engine.complete({"messages": MESSAGES}))["usage"] == reported


async def test_lifetimes_of_cache_writes_come_through() -> None:
    usage = {**STORED, "cache_creation": LIFETIMES}
    async with behind(CLAUDE, MESSAGES_PATH, replying({**message(" sky"), "usage": usage})) as (engine, _):
        reply = await engine.complete({"messages": MESSAGES})
    details = {"cached_tokens": 4, "cache_write_tokens": 6, "cache_creation_token_details": LIFETIMES}
    assert reply["usage"] == AS_OPENAI | {"prompt_tokens_details": details}
    async with behind(CLAUDE, MESSAGES_PATH, message_events(" sky", usage=usage)) as (engine, _):
        streamed = await chunks_of(engine)
    counted = TokenUsage(20, 5, 4, cache_write_input_tokens=6, cache_write_1h_input_tokens=4)
    assert summary(streamed)[2] == read_usage(reply["usage"]) == counted


async def test_a_marked_prefix_is_not_repeated_by_litellm() -> None:
    """By default LiteLLM adds it to Anthropic's replies (`disable_add_prefix_to_prompt`)."""
    async with behind(CLAUDE, MESSAGES_PATH, replying(message(" sky"))) as (engine, _):
        reply = await engine.complete({"messages": MESSAGES}, Prefill("Because the", Continuation("prefix")))
    assert message_text(reply) == " sky"


async def test_tool_calls_come_through() -> None:
    """Anthropic's tool_use becomes OpenAI's tool_calls."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
    answer = {**message(""), "content": [use], "stop_reason": "tool_use"}
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    async with behind(CLAUDE, MESSAGES_PATH, replying(answer)) as (engine, _):
        reply = await engine.complete({"messages": MESSAGES, "tools": [tool]})
    [choice] = reply["choices"]
    [call] = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call == {
        "id": "toolu_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
    }


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}])
async def test_an_engine_that_did_not_count_has_not_counted(usage: Any) -> None:
    """By default LiteLLM counts with its own tokenizer and reports the result as the engine's."""
    answer = {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": usage,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
    }  # fmt: skip
    async with behind("openai/m", "/v1/chat/completions", replying(answer), "/v1") as (engine, _):
        assert "usage" not in await engine.complete({"messages": MESSAGES})


async def test_connections_are_used_again_and_closed_with_the_engine() -> None:
    async with serving({MESSAGES_PATH: replying(message("x"))}) as fake, engine_at(fake.url) as engine:
        for _ in range(3):
            await engine.complete({"messages": MESSAGES})
        assert fake.connections == 1
        await engine.close()
        await asyncio.sleep(0.05)
        assert all(request.transport is None for request in fake.requests)


# Guidance.


async def test_guidance_is_a_chat_with_the_policys_sampling() -> None:
    """Parameters that the provider does not support (`seed`) are omitted, since a policy applies to all teachers."""
    request = TeacherRequest(max_tokens=7, messages=MESSAGES, temperature=0.5, seed=3, stop=("\n\nQ",))
    async with behind(CLAUDE, MESSAGES_PATH, replying(message("Because", "max_tokens"))) as (engine, fake):
        assert await engine.generate_guidance(request) == TeacherReply("Because", "length", TokenUsage(14, 5, 4))
    sent = fake.bodies[0]
    assert (sent["max_tokens"], sent["temperature"], sent["stop_sequences"]) == (7, 0.5, ["\n\nQ"])
    assert "seed" not in sent


async def test_a_raw_prompt_uses_completions_if_the_provider_supports_them() -> None:
    answer = {
        "id": "c", "object": "text_completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "text": " because", "finish_reason": "length", "logprobs": None}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
    }  # fmt: skip
    async with behind("openai/m", "/v1/completions", replying(answer), "/v1") as (engine, fake):
        guidance = await engine.generate_guidance(TeacherRequest(max_tokens=4, prompt="Q: why?\nA:"))
    assert guidance == TeacherReply(" because", "length", TokenUsage(9, 4))
    assert (fake.paths, fake.bodies[0]["prompt"]) == (["/v1/completions"], "Q: why?\nA:")


async def test_a_raw_prompt_is_a_users_message_elsewhere() -> None:
    async with behind(CLAUDE, MESSAGES_PATH, replying(message("because"))) as (engine, fake):
        guidance = await engine.generate_guidance(TeacherRequest(max_tokens=4, prompt="Q: why?\nA:"))
    assert (guidance.text, guidance.finish) == ("because", "stop")
    assert fake.bodies[0]["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Q: why?\nA:"}]}]


# Failures.


def anthropic_error(kind: str, words: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": words}}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("status", "headers", "kind", "may_have_run"),
    [
        (429, {"Retry-After": "7"}, EngineOverloaded, False),
        (503, {}, EngineOverloaded, False),
        (529, {}, EngineFailed, True),
        (500, {}, EngineFailed, True),
        (400, {}, EngineRejected, False),
        (413, {}, EngineRejected, False),
        (401, {}, EngineRejected, False),
        (302, {"Location": "http://127.0.0.1:1/"}, EngineProtocolError, True),
    ],
)
async def test_a_status_maps_to_the_same_error_as_for_other_engines(
    status: int, headers: dict[str, str], kind: type[Exception], may_have_run: bool, streamed: bool
) -> None:
    """Independently of LiteLLM's exception. The engine's text is kept, without the key."""
    body = anthropic_error("some_error", f"no, {KEY}")
    async with behind(CLAUDE, MESSAGES_PATH, replying(body, status=status, headers=headers)) as (engine, fake):
        call = chunks_of(engine) if streamed else engine.complete({"messages": MESSAGES})
        error = await failure(call, fake.url)
        assert len(fake.requests) == 1  # no retry and no redirect
    assert type(error) is kind
    assert error.may_have_run is may_have_run
    if status not in {302, 401}:
        assert error.message.endswith(f"answered {status}: no, (hidden)")
        assert error.reason == "some_error"
    if isinstance(error, EngineOverloaded):
        assert error.retry_after_s == float(headers.get("Retry-After", 1))
    if isinstance(error, EngineRejected):
        assert error.status_sent == status


@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("model", ["openai/m", "azure/m", "gemini/gemini-2.0-flash", "ollama_chat/m"])
async def test_only_the_gateway_retries(model: str, status: int) -> None:
    """OpenAI's SDK, which LiteLLM uses for some providers, would retry twice."""
    options = {"options": {"api_version": "2024-06-01"}} if model == "azure/m" else {}
    models: list[str] = []

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        models.append(model)
        writer.write(b"HTTP/1.1 %d no\r\nContent-Length: 2\r\nRetry-After: 0\r\n\r\n{}" % status)
        await writer.drain()

    async with talking(talk) as url, engine_at(url, model, **options) as engine:
        error = await failure(engine.complete({"messages": MESSAGES}), url)
    assert isinstance(error, EngineOverloaded if status == 429 else EngineFailed)
    assert models == [model]


@pytest.mark.parametrize("code", ["content_filter", "context_length_exceeded"])
async def test_a_prompt_that_is_refused_is_the_callers_to_mend(code: str) -> None:
    """The errors of Azure and OpenAI (learn.microsoft.com, content filtering; platform.openai.com, error codes)."""
    body = {"error": {"code": code, "type": "invalid_request_error", "message": "too much of it"}}
    path = "/openai/deployments/m/chat/completions"
    options = {"options": {"api_version": "2024-06-01"}}
    async with behind("azure/m", path, replying(body, status=400), **options) as (engine, fake):
        error = await failure(engine.complete({"messages": MESSAGES}), fake.url)
    assert isinstance(error, EngineRejected)
    assert error.blames_request
    assert error.reason == code


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_unreachable_engine_has_not_received_the_request(streamed: bool) -> None:
    async with serving({}) as fake:
        url = fake.url
    async with engine_at(url) as engine:
        error = await failure(chunks_of(engine) if streamed else engine.complete({"messages": MESSAGES}), url)
    assert isinstance(error, EngineUnreachable)
    assert not error.may_have_run


@pytest.mark.parametrize("body", ["<html>", "", "[]", {"type": "message"}])
async def test_a_reply_of_another_kind_is_a_protocol_error(body: Any) -> None:
    async with behind(CLAUDE, MESSAGES_PATH, replying(body)) as (engine, fake):
        assert isinstance(await failure(engine.complete({"messages": MESSAGES}), fake.url), EngineProtocolError)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_silent_engine_meets_the_gateways_deadlines(streamed: bool) -> None:
    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    limits = {"first_token_s": 0.3} if streamed else {"total_s": 0.3}
    async with talking(talk) as url, engine_at(url, **limits) as engine:
        error = await failure(chunks_of(engine) if streamed else engine.complete({"messages": MESSAGES}), url)
    assert isinstance(error, EngineTimeout)
    assert "0.3 s" in error.message


async def test_silence_between_two_tokens_has_its_own_deadline() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        writer.write(b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}\n\n')
        await writer.drain()
        await reader.read()

    async with talking(talk) as url, engine_at(url, idle_s=0.3) as engine:
        assert isinstance(await failure(chunks_of(engine), url), EngineTimeout)


# Bodies of callers.


async def carried_by(engine: LiteLLMEngine, fake: FakeServer, **body: Any) -> tuple[list[str], dict[str, str]]:
    """Return the path, headers and fields of the call for `body`; empty if the body is rejected."""
    before = len(fake.requests)
    refused: EngineRejected | None = None
    try:
        await engine.complete({"messages": MESSAGES, **body})
    except EngineRejected as error:
        refused = error
    if refused is not None:
        assert refused.blames_request
        assert not refused.may_have_run
        assert next(iter(body)) in refused.message
        assert len(fake.requests) == before
        return [], {}
    changing = {"Host", "Content-Length"}
    headers = {name: text for name, text in fake.requests[-1].headers.items() if name not in changing}
    return fake.paths[before:], {**headers, "fields": " ".join(sorted(fake.bodies[-1]))}


DANGEROUS = """
api_base base_url api_key headers extra_headers extra_body extra_query mock_response mock_tool_calls
mock_timeout mock_delay custom_llm_provider metadata litellm_metadata callbacks success_callback
failure_callback num_retries max_retries fallbacks context_window_fallback_dict azure_ad_token
azure_ad_token_provider tenant_id client_id client_secret aws_access_key_id aws_secret_access_key
aws_session_token aws_region_name aws_profile_name aws_role_name aws_session_name aws_web_identity_token
aws_sts_endpoint aws_bedrock_runtime_endpoint vertex_project vertex_location vertex_credentials
vertex_ai_project timeout stream_timeout request_timeout client shared_session organization ssl_verify cache
caching no-log litellm_logging_obj logger_fn verbose litellm_call_id litellm_trace_id litellm_session_id
litellm_params litellm_credential_name proxy_server_request model_info model_alias_map prompt_id
prompt_variables prompt_label hf_model_name input_cost_per_token output_cost_per_token base_model
region_name use_in_pass_through allowed_openai_params drop_params additional_drop_params guardrails tags
mcp_servers container context_management thinking cache_control_injection_points user_config
preset_cache_key ttl roles initial_prompt_value bos_token eos_token merge_reasoning_content_in_choices
secret_fields enable_prompt_caching text_completion atext_completion acompletion id
"""


async def test_no_callers_field_changes_destination_or_credentials() -> None:
    """All parameters of LiteLLM's signature, and dozens of other names that it reads."""
    library = await load()
    named = set(inspect.signature(inspect.unwrap(library.chat)).parameters)
    openais = {
        "messages", "functions", "function_call", "temperature", "top_p", "n", "stop", "max_tokens",
        "max_completion_tokens", "modalities", "prediction", "audio", "presence_penalty", "frequency_penalty",
        "logit_bias", "user", "response_format", "seed", "tools", "tool_choice", "parallel_tool_calls", "logprobs",
        "top_logprobs", "reasoning_effort", "verbosity", "safety_identifier", "service_tier", "prompt_cache_key",
    }  # fmt: skip
    async with behind(CLAUDE, MESSAGES_PATH, replying(message("x"))) as (engine, fake):
        plain = await carried_by(engine, fake)
        assert plain[0] == [MESSAGES_PATH]
        await hold(engine, fake, plain, {*named, *DANGEROUS.split()} - openais)


async def hold(engine: LiteLLMEngine, fake: FakeServer, plain: Any, names: set[str]) -> None:
    for name in sorted(names):
        for value in ("http://127.0.0.1:1/", {"x-evil": "yes", "api_base": "http://127.0.0.1:1/"}, True, 5):
            assert await carried_by(engine, fake, **{name: value}) in (plain, ([], {})), name


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}},
        {"type": "image_url", "image_url": "HTTPS://127.0.0.1:1/a.png"},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        {"type": "file", "file": {"file_id": "gs://bucket/a.pdf"}},
        {"type": "file", "file": {"file_data": "s3://bucket/a.pdf"}},
        {"type": "document", "source": {"type": "url", "url": "//127.0.0.1/a"}},
        {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
    ],
)
async def test_nothing_in_a_message_is_fetched(part: dict[str, Any]) -> None:
    """Some of LiteLLM's providers fetch addresses, for answers and for guidance."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, part]}]
    async with behind(CLAUDE, MESSAGES_PATH, replying(message("x"))) as (engine, fake):
        for call in (
            engine.complete({"messages": messages}),
            engine.generate_guidance(TeacherRequest(max_tokens=4, messages=messages)),
        ):
            error = await failure(call, fake.url)
            assert isinstance(error, EngineRejected)
            assert "messages[0].content[1]" in error.message
        assert fake.requests == []


async def test_urls_in_extra_message_fields_are_not_fetched() -> None:
    """For Gemini an assistant's `images` are more parts (litellm 1.110, llms/vertex_ai/gemini/transformation.py)."""
    url = "https://127.0.0.1:1/a.png"
    message = {"role": "assistant", "content": "There:", "images": [{"image_url": {"url": url}}]}
    messages = [*MESSAGES, message, *MESSAGES]
    model, path, base, options, *_ = PROVIDERS["gemini"]
    async with behind(model, path.replace("streamG", "g"), replying({}), base, **options) as (engine, fake):
        error = await failure(engine.complete({"messages": messages}), fake.url)
        assert isinstance(error, EngineRejected)
        assert f"messages[{len(MESSAGES)}].images" in error.message
        assert fake.requests == []


async def test_urls_in_text_are_not_fetched() -> None:
    """Texts and tool arguments are not fetched."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"url": "http://127.0.0.1:1"}'}}
    messages = [
        {"role": "user", "content": "https://127.0.0.1:1/ ?", "name": "path"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "file:///etc/passwd"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    async with behind(CLAUDE, MESSAGES_PATH, replying(message("x"))) as (engine, fake):
        await engine.complete({"messages": messages, "tools": tools})
        assert len(fake.requests) == 1


async def test_an_image_may_come_with_the_message() -> None:
    url = "data:image/png;base64,iVBORw0KGgo="
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    async with behind(CLAUDE, MESSAGES_PATH, replying(message("x"))) as (engine, fake):
        await engine.complete({"messages": messages})
    assert fake.bodies[0]["messages"][0]["content"][0]["source"]["type"] == "base64"


@pytest.mark.parametrize("kind", ["mcp", "web_search_20250305", "code_interpreter", None])
async def test_only_functions_are_tools(kind: str | None) -> None:
    """LiteLLM or the provider would call the servers of other tools."""
    tools = [{"type": kind, "server_url": "http://127.0.0.1:1/", "server_label": "x", "name": "web_search"}]
    async with behind(CLAUDE, MESSAGES_PATH, replying(message("x"))) as (engine, fake):
        error = await failure(engine.complete({"messages": MESSAGES, "tools": tools}), fake.url)
        assert isinstance(error, EngineRejected)
        assert error.param == "tools[0].type"
        assert fake.requests == []


async def test_a_parameter_that_the_provider_lacks_is_refused_by_name_unless_nothing_is_lost() -> None:
    """Anthropic's API has no `logit_bias`, and no `seed`, which has no guaranteed effect at OpenAI."""
    async with behind(CLAUDE, MESSAGES_PATH, replying(message("x"))) as (engine, fake):
        error = await failure(engine.complete({"messages": MESSAGES, "logit_bias": {"5": 1}}), fake.url)
        assert isinstance(error, EngineRejected)
        assert error.param == "logit_bias"
        harmless = {"seed": 5, "n": 1, "presence_penalty": 0, "logit_bias": {}, "logprobs": False, "store": True}
        assert message_text(await engine.complete({"messages": MESSAGES, **harmless})) == "x"


# The probe.


@pytest.mark.parametrize(
    ("model", "answer", "known"),
    [
        (CLAUDE, " o p q", Continuation("trailing", echo=False)),
        (CLAUDE, "o p q", Continuation("trailing", echo=False, strips_leading_space=True)),
        (CLAUDE, f"{PROBE_PREFIX} o p", Continuation("trailing", echo=True)),
        (CLAUDE, "a b c d", None),
    ],
)
async def test_one_small_call_detects_the_continuation_mode(
    model: str, answer: str, known: Continuation | None
) -> None:
    """Calls cost money: one probe call, and a second one for `instruct` if the first mode fails."""
    handler = replying(message(answer))
    async with behind(model, MESSAGES_PATH, handler, continuation="auto") as (engine, fake):
        await engine.probe()
        await engine.probe()
        assert engine.state.continuation == known
        assert len(fake.requests) == (1 if known is not None else 2)
        assert fake.bodies[0]["max_tokens"] <= 16
    assert bool(engine.state.warnings) is (known is None)


async def test_a_rejected_prefix_means_no_continuation() -> None:
    """Claude since 4.6 (platform.claude.com, migration guide)."""
    words = "This model does not support assistant message prefill. The conversation must end with a user message."
    handler = replying(anthropic_error("invalid_request_error", words), status=400)
    async with behind(CLAUDE, MESSAGES_PATH, handler, continuation="auto") as (engine, _):
        await engine.probe()
        assert engine.state.continuation is None


async def test_the_prefix_for_mistral_is_marked() -> None:
    """docs.mistral.ai, chat completion: `prefix`."""
    answer = {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": PROBE_PREFIX + " o p"}, "finish_reason": "stop"}
        ],
    }  # fmt: skip
    path = "/v1/chat/completions"
    async with behind("mistral/mistral-small-latest", path, replying(answer), continuation="auto") as (engine, fake):
        await engine.probe()
    assert fake.bodies[0]["messages"][-1] == {"role": "assistant", "content": PROBE_PREFIX, "prefix": True}
    assert engine.state.continuation == Continuation("prefix", echo=True)


async def test_vllms_flags_reach_the_body() -> None:
    how = Prefill("Because the", Continuation("vllm"))
    async with behind("hosted_vllm/m", "/v1/chat/completions", chat_chunks("x"), "/v1") as (engine, fake):
        await chunks_of(engine, how)
    sent = fake.bodies[0]
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)


async def test_a_configured_continuation_needs_no_probe_and_the_last_call_sets_the_state() -> None:
    """There is no free probe: the engine is up until a call fails, and down until a call succeeds."""
    answers: list[Handler] = [replying(message("x")), replying({}, status=401), replying(message("x"))]

    async def handler(request: Any) -> Any:
        return await answers.pop(0)(request)

    async with behind(CLAUDE, MESSAGES_PATH, handler) as (engine, fake):
        await engine.probe()
        assert fake.requests == []
        assert engine.state.facts["seen"] == "no call yet"
        assert not engine.state.called
        await engine.complete({"messages": MESSAGES})
        assert engine.state.called
        await engine.probe()
        with pytest.raises(EngineRejected):
            await engine.complete({"messages": MESSAGES})
        with pytest.raises(EngineRejected):
            await engine.probe()
        await engine.complete({"messages": MESSAGES})
        await engine.probe()
        assert len(fake.requests) == 3


# Real models.


@pytest.mark.long
@pytest.mark.models
@pytest.mark.parametrize("model", ["openai/small", "hosted_vllm/small"])
async def test_a_real_student_continues_through_litellm(model: str, engines: LocalStack) -> None:
    """llama.cpp through LiteLLM's two providers for OpenAI-compatible servers."""
    async with engine_at(engines.student.url + "/v1", model, continuation="auto", total_s=60) as engine:
        await engine.probe()
        known = engine.state.continuation
        assert isinstance(known, Continuation)
        chunks = await chunks_of(engine, Prefill("The sky is", known), max_tokens=6, temperature=0)
        text, reasons, usage = summary(chunks)
        assert text.strip()
        assert reasons == ["length"]
        assert usage is not None
        assert usage.output_tokens >= 6


@pytest.mark.models
@pytest.mark.timeout(120)
async def test_guided_answers_with_litellm_on_either_side(engines: LocalStack, redis_url: str, tmp_path: Path) -> None:
    """A gateway in a separate process, with LiteLLM as the student and as the teacher."""
    free = {"input_per_1m": 0.1, "output_per_1m": 0.1}
    through = {"model": "openai/small", "api_key": "env:GKT_TEST_KEY", "price": free}
    base = engines.student.url + "/v1"
    models = [*local_models(engines), model_entry("lite", "litellm", base, **through)]
    routes = [guided("student", student="lite"), guided("teacher", teacher="lite")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GKT_TEST_KEY", KEY)
        with running_gateway(tmp_path, redis_url=redis_url, models=models, routes=routes) as process:
            wait_until_probed(process.admin_url)
            body = {"messages": MESSAGES, "max_tokens": 24, "temperature": 0}
            headers = {"Authorization": "Bearer gk-test-of-acme"}
            async with httpx.AsyncClient(base_url=process.url, timeout=60, headers=headers) as http:
                for route in ("student", "teacher"):
                    reply = await http.post("/v1/chat/completions", json={**body, "model": route})
                    assert reply.status_code == 200, reply.text
                    assert "x-gkt-unguided" not in reply.headers
                    assert reply.json()["choices"][0]["message"]["content"]
                    assert reply.json()["usage"]["completion_tokens"] > 0
                    streamed = await http.post("/v1/chat/completions", json={**body, "model": route, "stream": True})
                    assert "x-gkt-unguided" not in streamed.headers
                    assert streamed.text.endswith("data: [DONE]\n\n")
                    assert '"error"' not in streamed.text
            assert process.terminate() == 0
        assert "LiteLLM" not in process.raw_log
