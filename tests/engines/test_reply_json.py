"""Large replies of engines are decoded and encoded in a thread, within bounds; small ones on the event loop."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiohttp import web

from gateway.engines import chat, embeddings, reply_json
from gateway.engines import http as http_client
from gateway.engines.chat import ChatWire
from gateway.engines.embeddings import read_embeddings, write_embeddings
from gateway.engines.reply_json import MAX_REPLY_VALUES, Unreadable, decode, encoded
from gateway.engines.tgi_text import token_events
from gateway.errors import EngineProtocolError
from gateway.protocol.body import MAX_CHOICES
from gateway.protocol.structure import MAX_VALUES, is_large
from tests.engines.fake_server import NAME, engine_http, failure, replying, serving
from tests.fakes import embedded

if TYPE_CHECKING:
    from types import ModuleType

TOKEN = {"token": " wörd", "logprob": -0.5, "bytes": [32, 119], "top_logprobs": [{"token": "a", "logprob": -1}] * 20}


def completion(tokens: int) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    return {"choices": [{**choice, "logprobs": {"content": [TOKEN] * tokens}}], "usage": {"prompt_tokens": 9}}


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that decode, in their order."""
    names: list[str] = []

    def record(module: ModuleType, name: str) -> None:
        work = getattr(module, name)

        def recorded(*args: Any) -> Any:
            names.append(threading.current_thread().name)
            return work(*args)

        monkeypatch.setattr(module, name, recorded)

    for module, name in ((reply_json, "decode"), (chat, "decode"), (http_client, "decode"), (embeddings, "_read")):
        record(module, name)
    return names


@pytest.mark.parametrize(("tokens", "thread"), [(1, "MainThread"), (200, "reply-json_0")])
async def test_a_large_reply_is_decoded_in_a_thread(threads: list[str], tokens: int, thread: str) -> None:
    reply = completion(tokens)
    async with serving({"/x": replying(reply)}) as fake, engine_http(fake.url) as http:
        assert orjson.loads(orjson.dumps((await http.post("/x", {})).body)) == reply
    assert threads == [thread]


@pytest.mark.parametrize(("text", "thread"), [("Hi", "MainThread"), ("Hi" * 20_000, "reply-json_0")])
async def test_a_large_event_is_decoded_in_a_thread(threads: list[str], text: str, thread: str) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}
    event = {"token": {"text": text}, "generated_text": text}

    def says(value: Any) -> Any:
        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"data: " + orjson.dumps(value) + b"\n\n")
            return response

        return handler

    routes = {"/x": says(chunk), "/generate_stream": says(event)}
    async with serving(routes) as fake, engine_http(fake.url) as http:
        async with aclosing(ChatWire(http, "/x").stream({})) as groups:
            assert [group async for group in groups] == [[chunk]]
        async with aclosing(token_events(http, {})) as groups:
            assert [group async for group in groups] == [[event]]
    assert threads == [thread, thread]


@pytest.mark.parametrize("encoding", [None, "base64"])
@pytest.mark.parametrize(("vectors", "thread"), [(1, "MainThread"), (5_000, "reply-json_0")])
async def test_large_embeddings_are_read_in_a_thread(
    threads: list[str], vectors: int, thread: str, encoding: str | None
) -> None:
    """Every vector keeps its bytes and its place."""
    raw = embedded(vectors, encoding)
    reply = await read_embeddings(raw, NAME)
    assert threads == [thread]
    written = await write_embeddings(reply, "shown")
    assert orjson.loads(written) == {**orjson.loads(raw), "model": "shown"}
    assert (b"[1e-05, 0.50]" in written) is (encoding is None)


async def test_vectors_that_are_no_flat_lists_are_passed_on_as_well() -> None:
    raw = b'{"data": [{"embedding": [[1, 2], [3]]}, {"embedding" :\n"AA=="}, {"x": "embedding"}], "model": "m"}'
    assert orjson.loads(await write_embeddings(await read_embeddings(raw, NAME), "m")) == orjson.loads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"data": [{"embedding": [1, 2, }]}',
        b'{"data": [{"embedding": "\xff"}]}',
        b'{"data": [{"embedding": [1]}], "data": [{"embedding": [1]}]}',
        b'{"data": [{"embedding": [' + b"[" * 5_000 + b"]" * 5_000 + b"}]}",
        b'{"data": [' + b"{}," * MAX_VALUES + b"{}]}",
    ],
)
async def test_vectors_that_are_wrong_are_protocol_errors(raw: bytes) -> None:
    with pytest.raises(EngineProtocolError):
        await read_embeddings(raw, NAME)


async def test_log_probabilities_of_a_large_reply_are_not_decoded() -> None:
    """Log probabilities are most values of a reply. Small ones are decoded: the confidence probe reads them."""
    large = decode(orjson.dumps(completion(500)))
    assert type(large["choices"][0]["logprobs"]) is orjson.Fragment
    assert is_large(large)
    sent = completion(500)
    sent["choices"][0]["logprobs"]["refusal"] = None
    assert orjson.loads(await encoded(large)) == sent
    assert decode(orjson.dumps(completion(1))) == completion(1)


@pytest.mark.parametrize("refusal", [None, [TOKEN]])
async def test_undecoded_log_probabilities_of_a_chat_have_openais_fields(refusal: Any) -> None:
    """A token may be the name of the field. Text completions have other fields."""
    sent = completion(500)
    logprobs = sent["choices"][0]["logprobs"]
    logprobs["content"].append({**TOKEN, "token": "refusal"})
    raw = orjson.dumps(sent | {"choices": [sent["choices"][0] | {"logprobs": {**logprobs, "refusal": refusal}}]})
    expected = {**logprobs, "refusal": refusal}
    for one in (raw, orjson.dumps(sent)) if refusal is None else (raw,):
        encoded_logprobs = orjson.dumps(decode(one)["choices"][0]["logprobs"])
        assert encoded_logprobs.count(b'"refusal":') == 1
        assert orjson.loads(encoded_logprobs) == expected
    del sent["choices"][0]["message"]
    text = decode(orjson.dumps({"choices": [{**sent["choices"][0], "text": "Hi"}]}))
    assert orjson.loads(orjson.dumps(text["choices"][0]["logprobs"])) == logprobs


@pytest.mark.parametrize("many", [b"[]", b'{"a":1}', b'"a"'])
def test_values_of_a_reply_are_bounded(many: bytes) -> None:
    for where, most in ((b"logprobs", MAX_REPLY_VALUES), (b"x", MAX_VALUES)):
        raw = b'{"choices":[{"%b":[' % where + (many + b",") * most + b"0]}]}"
        with pytest.raises(Unreadable, match=f"more than {most} JSON values"):
            decode(raw)


def test_many_token_ids_are_no_more_than_a_long_prompt_has() -> None:
    tokens = {"count": 300_000, "tokens": list(range(300_000))}
    assert decode(orjson.dumps(tokens))["tokens"] == tokens["tokens"]


@pytest.mark.parametrize(
    "logprobs",
    [
        pytest.param(b'"\xff"', id="bytes"),
        pytest.param(b"[1,}", id="brackets"),
        pytest.param(
            b"[" * 5_000 + b"]" * 5_000,
            id="depth",
            marks=pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python 3.14 reads more nested levels"),
        ),
    ],
)
def test_log_probabilities_that_are_wrong_are_found(logprobs: bytes) -> None:
    raw = b'{"choices":[{"logprobs":%b,"x":[%b]}]}' % (logprobs, b"1," * 40_000 + b"1")
    with pytest.raises(Unreadable, match=r"^invalid JSON$"):
        decode(raw)


def test_more_choices_than_a_request_may_have_are_not_decoded() -> None:
    """Decoding 200,000 objects would hold the interpreter lock for 0.1 s."""
    text = b'"x":[%b]' % (b"1," * 40_000 + b"1")
    most = b'{"choices":[%b{%b}]}' % (b"{}," * (MAX_CHOICES - 1), text)
    assert len(decode(most)["choices"]) == MAX_CHOICES
    for raw in (most.replace(b"{},", b"{},{},", 1), b'{"choices":{%b}}' % text, b'{"choices":[null,{%b}]}' % text):
        with pytest.raises(Unreadable, match=f"a list of at most {MAX_CHOICES} choices"):
            decode(raw)


async def test_too_many_choices_are_protocol_errors() -> None:
    reply = {"choices": [{"message": {"content": ""}}] * 5_000}
    async with serving({"/x": replying(reply)}) as fake, engine_http(fake.url) as http:
        assert isinstance(await failure(ChatWire(http, "/x").complete({}), fake.url), EngineProtocolError)


async def test_events_that_wait_together_are_read_in_parts() -> None:
    """Other callbacks run in between."""
    event = b"data: " + b"x" * 90 + b"\n\n"

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event * 1_000)
        return response

    sizes: list[int] = []
    turns = [0]

    async def others() -> None:
        while True:
            turns.append(len(sizes))
            await asyncio.sleep(0)

    async with (
        serving({"/x": handler}) as fake,
        engine_http(fake.url) as http,
        aclosing(http.events("/x", {})) as groups,
        asyncio.TaskGroup() as tasks,
    ):
        async for events in groups:
            if not sizes:
                await asyncio.sleep(0.1)  # the rest arrives
                other = tasks.create_task(others())
            sizes.append(len(events))
        other.cancel()
    assert sum(sizes) == 1_000
    assert max(sizes) <= 16_384 // len(event) + 1
    assert len(set(turns)) >= len(sizes) - 2
