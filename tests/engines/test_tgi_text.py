from __future__ import annotations

import re
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from gateway.engines.base import TeacherRequest, TokenUsage
from gateway.engines.tgi import TGIEngine
from gateway.engines.tgi_text import generate_body, header_counts
from gateway.errors import EngineFailed, EngineOverloaded, EngineProtocolError, EngineRejected
from gateway.protocol.capabilities.continuation import Continuation, Prefill
from tests.engines.fake_server import NAME, FakeServer, engine_http, failure, replying, serving, streaming
from tests.engines.test_contracts import CHAT, guided
from tests.engines.toy_servers import ANSWER, BOS, END, OPENING, ToyServer, rendered, streamed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.engines.fake_server import Handler

INFO = {"model_id": "org/model", "max_concurrent_requests": 128, "max_stop_sequences": 4}
RAW = Prefill(OPENING, Continuation("completions", echo=False))


@dataclass
class Tgi(ToyServer):
    """TGI 3.3.7: router/src/infer/chat_template.rs leaves a trailing assistant open when it finds its text in what the
    template made; router/src/server.rs: /chat_tokenize renders, /generate puts special tokens before every prompt.

    finds: whether the template keeps the assistant's text as it is. renders_bos: whether the template begins with the
    token that /generate adds. tokenises_bos: whether /chat_tokenize counts that too (it depends on the version).
    """

    finds: bool = True
    renders_bos: bool = True
    tokenises_bos: bool = False
    thinks: bool = False

    def routes(self) -> dict[str, Handler]:
        return {
            **super().routes(),
            "/info": replying(INFO),
            "/tokenize": self._tokenize,
            "/chat_tokenize": self._chat_tokenize,
            "/generate": self._generate,
            "/generate_stream": self._generate_stream,
        }

    def prompt(self, body: dict[str, Any]) -> str:
        return rendered(body["messages"], open_end=body["messages"][-1]["role"] == "assistant" and self.finds)

    async def _tokenize(self, request: web.Request) -> web.Response:
        text = (await request.json())["inputs"]
        return web.json_response([{"id": 4, "text": "", "start": 0, "stop": 0}, *tokens_of(text)])

    async def _chat_tokenize(self, request: web.Request) -> web.Response:
        text = BOS * self.renders_bos + rendered((await request.json())["messages"]) + "<think>" * self.thinks
        added = [{"id": 4, "text": "", "start": 0, "stop": 0}] * self.tokenises_bos
        return web.json_response({"tokenize_response": [*added, *tokens_of(text)], "templated_text": text})

    def _written(self, body: dict[str, Any]) -> tuple[str, str]:
        assert BOS not in body["inputs"], "the server adds it by itself"
        text, finish = self.write(body["inputs"], body["parameters"].get("max_new_tokens"))
        for stop in body["parameters"].get("stop", ()):
            if stop in text:  # TGI's text ends with it
                return text[: text.index(stop) + len(stop)], "stop_sequence"
        return text, {"stop": "eos_token"}.get(finish, finish)

    async def _generate(self, request: web.Request) -> web.Response:
        text, finish = self._written(await request.json())
        details = {"finish_reason": finish, "generated_tokens": len(text.split())}
        headers = {"x-prompt-tokens": "9", "x-generated-tokens": str(len(text.split()))}
        return web.json_response({"generated_text": text, "details": details}, headers=headers)

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        text, finish = self._written(await request.json())
        words = [*re.findall(r"\s*\S+", text)] + ([END] if finish == "eos_token" else [])
        events = [
            {
                "index": index,
                "token": {"id": 1, "text": word, "logprob": 0.0, "special": word == END},
                "generated_text": None,
                "details": None,
            }
            for index, word in enumerate(words, start=1)
        ]
        details = {"finish_reason": finish, "generated_tokens": len(words), "seed": None, "input_length": 9}
        events[-1] |= {"generated_text": text, "details": details}
        return await streamed(request, events)


def tokens_of(text: str) -> list[dict[str, Any]]:
    return [{"id": ord(one), "text": one, "start": at, "stop": at + 1} for at, one in enumerate(text)]


@asynccontextmanager
async def tgi(server: Tgi, **options: Any) -> AsyncIterator[tuple[TGIEngine, FakeServer]]:
    async with serving(server.routes()) as fake, engine_http(fake.url) as http:
        yield TGIEngine(NAME, http, **options), fake


@pytest.mark.parametrize(
    ("server", "mode"),
    [
        (Tgi(), "trailing"),
        (Tgi(finds=False), "completions"),
        (Tgi(finds=False, tokenises_bos=True), "completions"),
        (Tgi(finds=False, renders_bos=False), "completions"),
        (Tgi(finds=False, renders_bos=False, tokenises_bos=True), "completions"),
        (Tgi(finds=False, thinks=True), "instruct"),
        (Tgi(finds=False, thinks=True, obeys=False), None),
    ],
    ids=repr,
)
async def test_auto_finds_how_a_tgi_continues(server: Tgi, mode: str | None) -> None:
    """The chat route if the template keeps the text unchanged, otherwise a raw prompt, with its special token once."""
    async with tgi(server, continuation="auto") as (engine, fake):
        assert engine.state.continuation == "not_probed"
        await engine.probe()
        found = engine.state.continuation
        assert (found.mode if isinstance(found, Continuation) else found) == mode
        assert bool(engine.state.warnings) == (mode is None)
        if mode is not None:
            assert await guided(engine, CHAT) == ANSWER
            assert ANSWER.startswith(await guided(engine, {**CHAT, "max_tokens": 8}))
        engine.state.up = True
        before = len(fake.paths)
        await engine.probe()
        assert fake.paths[before:] == ["/info"]


async def test_the_native_mode_is_not_probed() -> None:
    """TGI supports `trailing`."""
    async with tgi(Tgi(finds=False)) as (engine, fake):
        await engine.probe()
        assert fake.paths == ["/info"]
        assert engine.state.continuation == Continuation("trailing", echo=False)
        assert engine.state.warnings == []


async def test_a_configured_mode_that_fails_the_probe_is_reported() -> None:
    """The configured mode still applies."""
    async with tgi(Tgi(thinks=True), continuation="completions") as (engine, _):
        await engine.probe()
        assert engine.state.warnings == ["the engine did not continue the probe with continuation 'completions'"]
        assert engine.state.continuation == Continuation("completions", echo=False)


async def test_a_configured_continuation_and_echo_are_not_probed() -> None:
    async with tgi(Tgi(thinks=True), continuation="completions", echo=False) as (engine, fake):
        await engine.probe()
        await engine.probe()
        assert fake.paths == ["/info"] * 2
        assert engine.state.continuation == Continuation("completions", echo=False)
        assert engine.state.warnings == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_a_raw_answer_and_is_not_shown(*, stream: bool) -> None:
    """TGI returns the stop string."""
    body = {**CHAT, "stop": "scatter"}
    async with tgi(Tgi()) as (engine, _):
        if stream:
            async with aclosing(engine.stream(body, RAW)) as groups:
                chunks = [chunk async for group in groups for chunk in group]
            text = "".join(part["delta"].get("content") or "" for chunk in chunks for part in chunk["choices"])
            finish = [part["finish_reason"] for chunk in chunks for part in chunk["choices"]][-1]
        else:
            choice = (await engine.complete(body, RAW))["choices"][0]
            text, finish = choice["message"]["content"], choice["finish_reason"]
    assert (text.rstrip(), finish) == (" small molecules", "stop")


@pytest.mark.parametrize(
    ("chat", "parameters"),
    [
        ({}, {"do_sample": True}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0.5, "top_p": 0.9}, {"do_sample": True, "temperature": 0.5, "top_p": 0.9}),
        (
            {"max_tokens": 5, "seed": 0, "stop": ["x"], "frequency_penalty": 0.1, "model": "lora"},
            {
                "do_sample": True,
                "max_new_tokens": 5,
                "seed": 0,
                "stop": ["x"],
                "frequency_penalty": 0.1,
                "adapter_id": "lora",
            },
        ),
        ({"model": "tgi"}, {"do_sample": True}),
    ],
)
def test_a_raw_call_samples_as_a_chat_would(chat: dict[str, Any], parameters: dict[str, Any]) -> None:
    """With the names of /generate. The route rejects temperature 0, and is greedy without `do_sample`."""
    assert generate_body(chat, "p") == {"inputs": "p", "parameters": {"details": True, **parameters}}


@pytest.mark.parametrize("lost", [{"tools": [{}]}, {"n": 2}, {"logprobs": True}])
async def test_fields_unsupported_by_raw_prompts_are_rejected(lost: dict[str, Any]) -> None:
    """Including several choices: /generate returns one."""
    async with tgi(Tgi()) as (engine, fake):
        error = await failure(engine.complete({**CHAT, **lost}, RAW), fake.url)
        assert isinstance(error, EngineRejected)
        assert fake.paths == []


async def test_a_callers_prompt_is_sent_to_generate() -> None:
    """JSON and streamed, in the shape of a chat reply, without added text."""
    body = {"prompt": f"{rendered(CHAT['messages'])}{OPENING}", "max_tokens": 2, "temperature": 0, "top_p": 1}
    async with tgi(Tgi()) as (engine, fake):
        reply = await engine.complete(body)
        async with aclosing(engine.stream({**body, "stream": True})) as groups:
            chunks = [chunk async for group in groups for chunk in group]
        parameters = {"details": True, "do_sample": False, "max_new_tokens": 2}
        assert fake.bodies == [{"inputs": body["prompt"], "parameters": parameters}] * 2
    assert reply["choices"][0]["message"]["content"] == " small molecules"
    assert reply["choices"][0]["finish_reason"] == "length"
    assert "".join(one["delta"]["content"] for chunk in chunks for one in chunk["choices"]) == " small molecules"


@pytest.mark.parametrize(
    "lost",
    [
        {"prompt": ["a", "b"]},
        {"prompt": [1, 2]},
        {"prompt": [[1, 2]]},
        {"n": 2},
        {"best_of": 2},
        {"suffix": "x"},
        {"echo": True},
        {"logprobs": 1},
        {"logprobs": 0},
        {"logit_bias": {"1": 5}},
    ],
)
async def test_a_callers_own_prompt_that_generate_cannot_take_is_refused(lost: dict[str, Any]) -> None:
    """The error names the field and costs nothing. No field is dropped silently."""
    async with tgi(Tgi()) as (engine, fake):
        error = await failure(engine.complete({"prompt": "a", **lost}), fake.url)
        assert isinstance(error, EngineRejected)
        assert (error.blames_request, error.may_have_run, error.param) == (True, False, next(iter(lost)))
        assert fake.paths == []


@pytest.mark.parametrize(
    "defaults",
    [
        {"prompt": ["a"]},
        {"n": 1, "best_of": 1, "suffix": "", "echo": False, "logprobs": None, "logit_bias": {}},
        {"n": None, "best_of": None, "suffix": None, "echo": None, "logit_bias": None},
    ],
)
async def test_default_values_are_not_rejected(defaults: dict[str, Any]) -> None:
    """A list of one prompt and default values are accepted."""
    async with tgi(Tgi()) as (engine, fake):
        await engine.complete({"prompt": "a", "max_tokens": 2, "temperature": 0, **defaults})
        parameters = {"details": True, "do_sample": False, "max_new_tokens": 2}
        assert fake.bodies == [{"inputs": "a", "parameters": parameters}]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_chat_that_was_not_rendered_cost_nothing(streamed: bool) -> None:
    """The model is called only after rendering."""
    async with serving({"/tokenize": replying(b"", status=500)}) as fake, engine_http(fake.url) as http:
        engine = TGIEngine(NAME, http)
        call = anext(engine.stream(CHAT, RAW)) if streamed else engine.complete(CHAT, RAW)
        assert not (await failure(call, fake.url)).may_have_run


async def test_a_streams_connection_serves_the_next_call() -> None:
    """TGI's stream ends in a packet after that of the last token."""
    details = {"finish_reason": "length", "input_length": 3, "generated_tokens": 1}
    last = {**TOKEN, "generated_text": " small", "details": details}
    routes = {**Tgi().routes(), "/generate_stream": streaming(last, pause_s=0.005)}
    async with serving(routes) as fake, engine_http(fake.url) as http:
        engine = TGIEngine(NAME, http)
        for _ in range(3):
            pieces: list[str] = []
            reply = await engine.generate_guidance(TeacherRequest(1, prompt="a"), on_text=pieces.append)
            assert ([reply.text], reply.usage) == (pieces, TokenUsage(3, 1))
        async with aclosing(engine.stream({"prompt": "a", "max_tokens": 1})) as groups:
            assert [group async for group in groups]
        assert fake.connections == 1


TOKEN = {"index": 1, "token": {"id": 1, "text": " small", "special": False}, "generated_text": None, "details": None}


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([TOKEN], EngineFailed),
        ([], EngineFailed),
        ([TOKEN, {"error": "out of memory", "error_type": "generation"}], EngineFailed),
        ([{"error": "too long", "error_type": "validation"}], EngineRejected),
        ([{"error": "busy", "error_type": "overloaded"}], EngineOverloaded),
        ([{"error": "?"}], EngineFailed),
        ([TOKEN, b"{"], EngineProtocolError),
        ([{"token": None}], EngineProtocolError),
        ([5], EngineProtocolError),
    ],
)
async def test_a_raw_stream_that_fails_is_an_error(events: list[Any], kind: type) -> None:
    """Although its status is 200. Chunks before the error are delivered."""
    routes = {**Tgi().routes(), "/generate_stream": streaming(*events)}
    async with serving(routes) as fake, engine_http(fake.url) as http:
        engine = TGIEngine(NAME, http)
        seen: list[Any] = []

        async def read() -> None:
            async with aclosing(engine.stream(CHAT, RAW)) as groups:
                async for group in groups:
                    seen.extend(group)

        assert type(await failure(read(), fake.url)) is kind
        assert len(seen) == (TOKEN in events)


@pytest.mark.parametrize("body", [None, [], {}, {"generated_text": None}])
async def test_a_raw_reply_without_text_is_a_protocol_error(body: Any) -> None:
    routes = {**Tgi().routes(), "/generate": replying(body)}
    async with serving(routes) as fake, engine_http(fake.url) as http:
        error = await failure(TGIEngine(NAME, http).complete(CHAT, RAW), fake.url)
        assert isinstance(error, EngineProtocolError)


def test_counts_come_from_the_headers_where_they_are_numbers() -> None:
    assert header_counts({"x-prompt-tokens": "7", "x-generated-tokens": "3"}) == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
    }
    assert header_counts({"x-prompt-tokens": "7"}) is None
    assert header_counts({"x-prompt-tokens": "7", "x-generated-tokens": "many"}) is None
