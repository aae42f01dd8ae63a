"""Names and reasons of an engine, which receipts, logs and metrics contain, have a bounded size."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiohttp import web

from gateway.engines.openai import OpenAIEngine
from gateway.engines.replies import MAX_NAME_CHARS
from gateway.engines.tgi import TGIEngine
from gateway.errors import EngineRejected
from gateway.protocol.content_run import each_chunk
from tests.engines.fake_server import NAME, engine_http, failure, replying, serving, streaming

if TYPE_CHECKING:
    from tests.engines.fake_server import Handler

CHAT, RAW = "/v1/chat/completions", "/v1/completions"
LONG = "x" * 900_000
LONG_NAME = "x" * 10_000
MESSAGES = [{"role": "user", "content": "Why?"}]
BODIES = {CHAT: {"messages": MESSAGES}, RAW: {"prompt": "Why?"}}


def choice(path: str, finish: str, *, streamed: bool) -> dict[str, Any]:
    text = {"text": "so"} if path == RAW else {"delta" if streamed else "message": {"content": "so"}}
    return {"index": 0, "finish_reason": finish, **text}


async def finishes(engine: OpenAIEngine | TGIEngine, body: dict[str, Any], *, streamed: bool) -> list[str]:
    if not streamed:
        return [one["finish_reason"] for one in (await engine.complete(body))["choices"]]
    async with aclosing(engine.stream(body)) as groups:
        chunks = [chunk async for group in groups for chunk in each_chunk(group)]
    return [one["finish_reason"] for chunk in chunks for one in chunk["choices"] if one["finish_reason"]]


REASONS = [
    ("stop", "stop"),
    ("tool_calls", "tool_calls"),
    ("content_filter", "content_filter"),
    ("eos", "stop"),
    ("eos_token", "stop"),
    ("model_length", "length"),
    pytest.param(LONG, "length", id="long"),
]


@pytest.mark.parametrize(("sent", "received"), REASONS)
@pytest.mark.parametrize("path", [CHAT, RAW])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_finish_reason_has_a_name_of_openai(sent: str, received: str, path: str, *, streamed: bool) -> None:
    """A reason that OpenAI does not have counts as a cut."""
    answer = {"choices": [choice(path, sent, streamed=streamed)]}
    routes = {path: streaming(answer) if streamed else replying(answer)}
    async with serving(routes) as fake, engine_http(f"{fake.url}/v1") as http:
        engine = OpenAIEngine(NAME, "org/model", http)
        assert await finishes(engine, BODIES[path], streamed=streamed) == [received]


@pytest.mark.parametrize(("sent", "received"), REASONS)
@pytest.mark.parametrize("path", [CHAT, "/generate"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_finish_reason_of_tgi_has_a_name_of_openai(
    sent: str, received: str, path: str, *, streamed: bool
) -> None:
    """A reason that TGI does not have counts as a cut."""
    answer: dict[str, Any] = {"choices": [choice(path, sent, streamed=streamed)]}
    if path == "/generate":
        answer = {"token": {"text": "so"}, "generated_text": "so", "details": {"finish_reason": sent}}
    routes = {
        path: replying(answer),
        "/generate_stream": streaming(answer),
        CHAT: streaming(answer) if streamed else replying(answer),
    }
    body = BODIES[CHAT if path == CHAT else RAW]
    async with serving(routes) as fake, engine_http(fake.url) as http:
        assert await finishes(TGIEngine(NAME, http), body, streamed=streamed) == [received]


def listed(ending: str) -> dict[str, Handler]:
    names = (LONG_NAME + ending, "org/other")
    return {
        "/models": replying({"data": [{"id": name, "owned_by": "vllm", "root": LONG_NAME} for name in names]}),
        "/version": replying({"version": LONG_NAME}),
        "/info": replying({"model_id": LONG_NAME + ending, "version": LONG_NAME, "model_sha": LONG_NAME}),
    }


@pytest.mark.parametrize("kind", ["openai", "tgi"])
async def test_what_a_probe_keeps_of_an_engine_is_bounded(kind: str) -> None:
    """Different names stay different: cached guidance belongs to one revision."""
    revisions = []
    for ending in ("", "y"):
        async with serving(listed(ending)) as fake, engine_http(fake.url) as http:
            engine: OpenAIEngine | TGIEngine = TGIEngine(NAME, http, continuation="none")
            if kind == "openai":
                engine = OpenAIEngine(NAME, LONG_NAME, http, continuation="none")
            await engine.probe()
        names = [engine.state.facts["version"], *engine.state.facts.get("models", [])]
        assert max(map(len, [*names, engine.state.revision or ""])) == MAX_NAME_CHARS
        revisions.append(engine.state.revision)
    assert revisions[0] != revisions[1]


async def test_the_owner_of_a_model_is_bounded() -> None:
    """Servers may report any text as `owned_by`."""
    routes = {"/models": replying({"data": [{"id": "org/model", "owned_by": LONG_NAME}]})}
    async with serving(routes) as fake, engine_http(fake.url) as http:
        engine = OpenAIEngine(NAME, "org/model", http, continuation="none")
        await engine.probe()
    assert len(engine.state.facts["owned_by"]) == MAX_NAME_CHARS


async def test_errors_contain_only_a_part_of_an_engines_text() -> None:
    """The content type of a reply that is no stream, and the texts and names of an error."""

    async def plain(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"", headers={"Content-Type": f"text/{LONG_NAME[:4000]}"})

    texts = {"message": LONG_NAME, "type": LONG_NAME, "code": LONG_NAME, "param": LONG_NAME}
    rejecting = replying(orjson.dumps({"error": texts}), status=400)
    async with serving({CHAT: plain, RAW: rejecting}) as fake, engine_http(f"{fake.url}/v1") as http:
        engine = OpenAIEngine(NAME, "org/model", http)
        unstreamed = await failure(finishes(engine, BODIES[CHAT], streamed=True), fake.url)
        rejected = await failure(engine.complete(BODIES[RAW]), fake.url)
    assert len(unstreamed.message) < 400
    assert isinstance(rejected, EngineRejected)
    assert len(rejected.message) < 600
    assert len(rejected.reason or "") == MAX_NAME_CHARS
    assert (rejected.engine_code, rejected.engine_param) == (None, None)
