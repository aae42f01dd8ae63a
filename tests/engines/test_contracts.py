"""The documented behavior of each engine against the gateway's client (`toy_servers.py`)."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from gateway.engines.openai import OpenAIEngine
from gateway.errors import EngineRejected
from gateway.guidance.seam import SeamJoin
from gateway.protocol.capabilities.continuation import Continuation, Prefill
from gateway.protocol.capabilities.kinds import KINDS
from gateway.protocol.content_run import each_chunk
from tests.engines.fake_server import NAME, engine_http, replying, serving
from tests.engines.toy_servers import (
    ANSWER,
    OPENING,
    QUESTION,
    DashScope,
    DeepSeek,
    Groq,
    LlamaCpp,
    Mistral,
    Ollama,
    OpenAI,
    SGLang,
    ToyServer,
    Vllm,
    spoken_to,
)

if TYPE_CHECKING:
    from gateway.engines.base import Engine

CHAT = {"model": "student", "messages": [{"role": "user", "content": QUESTION}]}


def seam_of(how: Continuation) -> SeamJoin:
    return SeamJoin(
        OPENING,
        pending_space=" ",
        echo=how.echo,
        strips_leading_space=how.strips_leading_space,
        written_again=how.writes_again,
    )


async def guided(engine: Engine, body: dict[str, Any]) -> str:
    """Return the caller's answer. Assert that the streamed answer is the same, with the same finish reason."""
    how = engine.state.continuation
    assert isinstance(how, Continuation)
    prefill = Prefill(OPENING, how)
    seam = seam_of(how)
    choice = (await engine.complete(body, prefill))["choices"][0]
    answer = seam.initial_text + seam.feed(choice["message"]["content"]) + seam.finish()
    seam = seam_of(how)
    streamed, finish, counted = seam.initial_text, None, None
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with aclosing(engine.stream(body, prefill)) as groups:
        for chunk in [chunk async for chunks in groups for chunk in each_chunk(chunks)]:
            counted = chunk.get("usage") or counted
            for part in chunk["choices"]:
                streamed += seam.feed(part["delta"].get("content") or "")
                finish = part["finish_reason"] or finish
    assert streamed + seam.finish() == answer
    assert finish == choice["finish_reason"]
    assert counted is not None
    assert not seam.restarted
    return answer


FOUND = [
    (Vllm(), Continuation("vllm", echo=False)),
    (Vllm(trims=True), Continuation("completions", echo=False)),
    (Vllm(trims=True, thinks=True), Continuation("instruct", echo=True)),
    (SGLang(), Continuation("sglang", echo=False)),
    (SGLang(flagged=False), Continuation("completions", echo=False)),
    (SGLang(flagged=False, thinks=True), Continuation("instruct", echo=True)),
    (LlamaCpp(), Continuation("trailing", echo=False)),
    (LlamaCpp(echoes=True), Continuation("trailing", echo=True)),
    (LlamaCpp(prefills=False), Continuation("completions", echo=False)),
    (Ollama(), Continuation("trailing", echo=False)),
    (Ollama(leaves_open=False), Continuation("instruct", echo=True)),
    (OpenAI(), Continuation("instruct", echo=True)),
    (Mistral(), Continuation("prefix", echo=True)),
    (DeepSeek(), Continuation("prefix", echo=False)),
    (Groq(), Continuation("trailing", echo=False)),
    (DashScope(), Continuation("partial", echo=False)),
]


@pytest.mark.parametrize(("server", "found"), FOUND, ids=repr)
async def test_an_engine_is_found_out_and_its_answers_join(server: ToyServer, found: Continuation) -> None:
    """The probe alone determines the mode. The caller's limit applies in either field, and so does the stop string."""
    async with spoken_to(server) as (engine, _):
        await engine.probe()
        assert engine.state.continuation == found
        assert engine.state.warnings == []
        assert await guided(engine, CHAT) == ANSWER
        for field in ("max_tokens", "max_completion_tokens"):
            joined = await guided(engine, {**CHAT, field: 7})
            assert ANSWER.startswith(joined)
            # Repeated text counts, too.
            assert len(joined.split()) == 7 + (0 if found.writes_again else len(OPENING.split()))


@pytest.mark.parametrize(("server", "found"), FOUND, ids=repr)
async def test_a_mode_is_found_with_few_calls(server: ToyServer, found: Continuation) -> None:
    """The probe costs tokens: one call if the kind is known and behaves as known, and no call twice."""
    async with spoken_to(server) as (engine, fake):
        await engine.probe()
        calls = fake.paths.count(server.chat_path) + fake.paths.count("/v1/completions")
        usual = engine._kind.modes[0] == found.mode
        assert calls == (2 if found.writes_again else 1) if usual else calls <= 8
        engine.state.up = True
        before = len(fake.paths)
        await engine.probe()
        version = ["/version"] if engine._kind.has_vllm_status else []
        assert fake.paths[before:] == ["/v1/models", *version]


@pytest.mark.parametrize(
    "server",
    [Ollama(leaves_open=False, obeys=False), OpenAI(obeys=False), Vllm(trims=True, thinks=True, obeys=False)],
    ids=repr,
)
async def test_an_engine_that_ignores_instructions_continues_nothing(server: ToyServer) -> None:
    """Guidance is sent in the prompt, and the state has a warning."""
    async with spoken_to(server) as (engine, _):
        await engine.probe()
        assert engine.state.continuation is None
        assert engine.state.warnings == [
            "the engine continues no assistant message: placement prefix sends guidance as context"
        ]


@pytest.mark.parametrize("server", [OpenAI(), Mistral(), Groq()], ids=repr)
async def test_a_strict_host_gets_no_unknown_fields(server: ToyServer) -> None:
    """Strict hosts reject a request with an unknown field. This covers probes, guidance and guided calls."""
    async with spoken_to(server) as (engine, fake):
        refused: list[str] = []
        original = engine._http._refusal

        async def noted(response: Any) -> Any:
            error = await original(response)
            refused.append(error.message)
            return error

        engine._http._refusal = noted  # type: ignore[method-assign]
        await engine.probe()
        await guided(engine, {**CHAT, "max_tokens": 7, "seed": 1})
        assert refused == []
        assert {body["model"] for body in fake.bodies if body} == {"org/model"}


@pytest.mark.parametrize(
    ("server", "mode"),
    [(Vllm(), "sglang"), (OpenAI(), "trailing"), (Mistral(), "trailing"), (Ollama(leaves_open=False), "trailing")],
    ids=repr,
)
async def test_a_configured_mode_that_the_engine_refuses_is_reported(server: ToyServer, mode: Any) -> None:
    """The configured mode still applies."""
    async with spoken_to(server, continuation=mode) as (engine, _):
        await engine.probe()
        assert engine.state.warnings == [f"the engine did not continue the probe with continuation '{mode}'"]
        assert engine.state.continuation == Continuation(mode)


@pytest.mark.parametrize("server", [Vllm(), SGLang(), LlamaCpp()], ids=repr)
@pytest.mark.parametrize("mode", ["completions", "instruct"])
async def test_a_fallback_may_be_configured(server: ToyServer, mode: Any) -> None:
    """The configured mode applies although the engine supports a native one."""
    async with spoken_to(server, continuation=mode) as (engine, _):
        await engine.probe()
        assert isinstance(engine.state.continuation, Continuation)
        assert engine.state.continuation.mode == mode
        assert engine.state.warnings == []
        assert await guided(engine, CHAT) == ANSWER


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_holds_whether_or_not_the_engine_continues(field: str) -> None:
    """A teacher, or an engine with `none`, gets the limit under the name that it reads."""
    async with spoken_to(Ollama(), continuation="none") as (engine, fake):
        await engine.probe()
        assert fake.paths == ["/v1/models"]
        reply = await engine.complete({**CHAT, field: 3})
    assert reply["choices"][0]["message"]["content"] == "The sky is"


@pytest.mark.parametrize("mode", ["auto", "completions"])
@pytest.mark.parametrize(
    "template", [replying({}, status=404), replying({}, status=405), replying({"prompt": None}), replying([])]
)
async def test_a_server_that_cannot_render_gets_an_instruction(template: Any, mode: Any) -> None:
    """The server is an older build, or behind a proxy with the chat route only. A configured mode is reported."""
    server = LlamaCpp(prefills=False)
    async with serving({**server.routes(), "/apply-template": template}) as fake, engine_http(fake.url + "/v1") as http:
        engine = OpenAIEngine(NAME, "org/model", http, continuation=mode)
        await engine.probe()
        if mode == "auto":
            assert engine.state.continuation == Continuation("instruct", echo=True)
        else:
            assert engine.state.warnings == ["the engine did not continue the probe with continuation 'completions'"]
            assert engine.state.continuation == Continuation("completions")


async def test_raw_prompts_need_a_server_that_renders_chats() -> None:
    """Without a renderer nothing is guided, and the state has a warning."""
    async with spoken_to(Ollama(), continuation="completions") as (engine, _):
        assert engine.state.continuation == "not_probed"
        await engine.probe()
        assert engine.state.continuation is None
        assert engine.state.warnings == [
            "continuation 'completions' requires a server that renders chats; this one is not known to"
        ]


async def test_an_engine_that_came_back_otherwise_is_found_out_again() -> None:
    """The engine returns with another build or another template."""
    server = LlamaCpp()
    async with spoken_to(server) as (engine, _):
        for prefills, mode in ((True, "trailing"), (False, "completions"), (True, "trailing")):
            server.prefills = prefills
            await engine.probe()
            assert isinstance(engine.state.continuation, Continuation)
            assert engine.state.continuation.mode == mode
            engine.state.up = False


async def test_llamacpp_refuses_two_assistants_at_the_end() -> None:
    """The gateway never sends two: a chat that ends in an assistant message is unguided (`caller_prefill`)."""
    async with spoken_to(LlamaCpp()) as (engine, _):
        chat = {"messages": [*CHAT["messages"], {"role": "assistant", "content": "Well,"}]}
        with pytest.raises(EngineRejected) as refused:
            await engine.complete(chat, Prefill(OPENING, Continuation("trailing")))
        assert refused.value.blames_request


@pytest.mark.parametrize(
    "lost", [{"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}}, {"logprobs": True}]
)
async def test_fields_unsupported_by_raw_prompts_are_rejected_before_the_call(lost: dict[str, Any]) -> None:
    """No field is dropped silently. The student call treats the error as a rejected prefix."""
    async with spoken_to(LlamaCpp(), continuation="completions") as (engine, fake):
        await engine.probe()
        before = len(fake.paths)
        prefill = Prefill(OPENING, Continuation("completions"))
        with pytest.raises(EngineRejected) as refused:
            await engine.complete({**CHAT, **lost}, prefill)
        assert refused.value.blames_request
        with pytest.raises(EngineRejected):
            async with aclosing(engine.stream({**CHAT, **lost}, prefill)) as groups:
                await anext(groups)
        assert fake.paths[before:] == []


async def test_the_sampling_of_a_chat_arrives_with_a_raw_prompt() -> None:
    """Parameters use the names of the route; fields of the template go to the template only."""
    sampling = {"temperature": 0.3, "top_p": 0.9, "seed": 4, "stop": ["\n"], "logit_bias": {"5": 1.0}, "top_k": 7}
    of_template = {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}
    of_chats = {"logprobs": False, "echo": False, "suffix": "x", "tools": [], "response_format": {"type": "text"}}
    body = {**CHAT, "max_completion_tokens": 5, "n": None, **sampling, **of_template, **of_chats}
    async with spoken_to(LlamaCpp(), continuation="completions") as (engine, fake):
        await engine.probe()
        await engine.complete(body, Prefill(OPENING, Continuation("completions")))
        template, sent = fake.bodies[-2:]
    assert template == {"messages": CHAT["messages"], **of_template}
    assert sent.pop("prompt").endswith("\x02" + OPENING)
    assert sent == {"model": "org/model", "max_tokens": 5, **sampling}


@pytest.mark.parametrize(("server", "limit"), [(Vllm(), None), (LlamaCpp(), None), (SGLang(), 4096)], ids=repr)
async def test_a_raw_prompt_without_a_limit_has_room_to_the_end(server: ToyServer, limit: int | None) -> None:
    """vLLM and SGLang use 16 tokens for a missing limit. SGLang requires a number that fits the context."""
    async with spoken_to(server, continuation="completions") as (engine, fake):
        await engine.probe()
        await engine.complete(CHAT, Prefill(OPENING, Continuation("completions")))
        sent = fake.bodies[-1]
    assert sent["max_tokens"] == (None if limit is None else limit - len(sent["prompt"]) - 1)


async def test_sglang_without_a_known_context_needs_the_callers_limit() -> None:
    """Without a limit, SGLang would cut the answer at 16 tokens."""
    async with spoken_to(SGLang(), continuation="completions") as (engine, _):
        await engine.probe()
        engine._renderer.context_tokens = None  # type: ignore[union-attr]
        prefill = Prefill(OPENING, Continuation("completions"))
        with pytest.raises(EngineRejected, match="Set max_tokens"):
            await engine.complete(CHAT, prefill)
        assert await engine.complete({**CHAT, "max_tokens": 2}, prefill)


async def test_the_end_of_a_prompt_is_detokenized_once() -> None:
    """A template always ends in the same tokens, and reading their text takes a call."""
    async with spoken_to(Vllm(), continuation="completions") as (engine, fake):
        await engine.probe()
        for _ in range(3):
            await engine.complete(CHAT, Prefill(OPENING, Continuation("completions")))
        assert fake.paths.count("/detokenize") == 2  # one for the probe, one for the caller's prompt


@pytest.mark.parametrize(("server", "found"), FOUND, ids=repr)
async def test_the_echo_column_of_the_documentation_is_right(server: ToyServer, found: Continuation) -> None:
    """`echo` is a column of docs/engines.md."""
    async with spoken_to(server) as (engine, _):
        await engine.probe()
        assert engine._kind in KINDS
        known = engine._kind.echo
        assert known is None or found.writes_again or known == found.echo
