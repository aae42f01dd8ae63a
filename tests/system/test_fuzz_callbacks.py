"""No request body and no engine reply blocks the event loop: the test measures the CPU time of each callback."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import httpx
import orjson
import pytest
from aiohttp import web

from gateway.protocol.body import MAX_CHOICES
from load_tests.hostile_bodies import (
    ENCODINGS,
    LISTS_OF_IDS,
    MAX_BYTES,
    PLACES,
    TEXTS,
    UNITS,
    list_body,
    names_body,
    text_body,
)
from tests.fakes import FakeEngine, begin_events, says
from tests.gateway_process import COMMAND, KEY, GatewayProcess, beginning_with, guided, model, running_gateway
from tests.timed_gateway import AT_START

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

BOUND_MS = 20.0
CALL_BOUND_MS = 40.0
"""For a call of a C function in another thread, for which the event loop waits. orjson takes 22 ms for 99,000 names."""
TRIES = 4
"""A callback counts as slow where each of so many tries is: caches and frequencies of a shared machine vary."""
RANDOM_BODIES = 150

USER = b'[{"role":"user","content":"Why?"}]'
CHAT = {"model": b'"chat"', "messages": USER}
LEAST: dict[str, tuple[str, dict[str, bytes]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "stream": ("/v1/chat/completions", {**CHAT, "stream": b"true"}),
    "text": ("/v1/completions", {"model": b'"chat"', "prompt": b'"Q: Why?"'}),
    "embeddings": ("/v1/embeddings", {"model": b'"vectors"', "input": b'"Why?"'}),
    "guidance": ("/v1/guidance", CHAT),
    "report": ("/v1/guidance/usage", {"model": b'"chat"', "input_tokens": b"1", "output_tokens": b"1",
                                      "student": b'"phone"', "id": b'"6f1b3f0e-4c1c-4b5e-9d53-2f6d0c7c9a11"'}),
}  # fmt: skip

REPLY_BYTES = 8_000_000
VECTORS_BYTES = 40_000_000
TOP = b'{"token":" word","logprob":-1.2345678901,"bytes":[32,119,111,114]}'
TOKEN = TOP[:-1] + b',"top_logprobs":[' + b",".join([TOP] * 20) + b"]}"
USAGE = b'"usage":{"prompt_tokens":9,"completion_tokens":9}'
CHOICE = b'{"choices":[{"index":0,"finish_reason":"stop",%b:{"role":"assistant","content":"%b"},%b}],' + USAGE + b"}"
VECTOR = b'{"object":"embedding","index":0,"embedding":%b}'
VECTOR_LISTS = {
    "numbers": VECTOR % (b"[" + b"-0.012345678," * 1535 + b"0]"),
    "base64": VECTOR % (b'"' + b"QUJD" * 2048 + b'"'),
    "lists": VECTOR % (b"[[" + b"1,2],[" * 1000 + b"3]]"),
}


class LargeReplies:
    """An engine that sends `raw` instead of an answer, if it is set."""

    def __init__(self) -> None:
        self.raw: bytes | None = None
        self.sent = 0

    async def behave(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.raw is None:
            return await says("Hi there")(request, body)
        self.sent += 1
        if not body.get("stream"):
            return web.Response(body=self.raw, content_type="application/json")
        response = await begin_events(request)
        await response.write(self.raw + b"data: [DONE]\n\n")
        return response


@pytest.fixture(scope="module")
def replies() -> LargeReplies:
    return LargeReplies()


@pytest.fixture(scope="module")
def gate(redis_url: str, tmp_path_factory: pytest.TempPathFactory, replies: LargeReplies) -> Iterator[GatewayProcess]:
    yield from _timed(redis_url, tmp_path_factory.mktemp("timed"), replies)


def _timed(redis_url: str, folder: Path, replies: LargeReplies) -> Iterator[GatewayProcess]:
    matching = guided() | {"when": {"matches": "never there"}}
    with (
        FakeEngine(says("Hi there")).running() as engine,
        FakeEngine(replies.behave, replies.behave).running() as large,
        running_gateway(
            folder,
            redis_url=redis_url,
            models=[
                model("big", "tgi", engine.url),
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
                model("large", "openai", f"{large.url}/v1", breaker={"failures": 1000}),
                model("large-tgi", "tgi", large.url, breaker={"failures": 1000}),
            ],
            routes=[
                matching,
                guided() | {"quality": {"sample": 1, "compare": "words"}},
                {"model": "vectors", "mode": "embeddings", "student": "small"},
                {"model": "large", "mode": "student", "student": "large"},
                {"model": "large-tgi", "mode": "student", "student": "large-tgi"},
                {"model": "large-vectors", "mode": "embeddings", "student": "large"},
            ],
            tenants={"acme": {"log_content": True, "budget": {"max_budget": 1000000}}},
            entry=COMMAND,
            environ={
                "CALLBACK_BOUND_MS": str(BOUND_MS),
                "CALL_BOUND_MS": str(CALL_BOUND_MS),
                **beginning_with(AT_START, folder / "site"),
            },
        ) as process,
    ):
        yield process


class Meter:
    """Send bodies and collect those that block the event loop."""

    def __init__(self, gate: GatewayProcess, caller: httpx.Client) -> None:
        self._gate = gate
        self._caller = caller
        self.slow: dict[str, list[str]] = {}
        self.statuses: set[int] = set()

    def send(self, name: str, path: str, raw: bytes, encoding: str = "identity") -> None:
        sent = ENCODINGS[encoding](raw)
        for _ in range(TRIES):
            if not (found := self._callbacks(path, sent, encoding)):
                return
        self.slow[f"{name} ({len(raw)} bytes, {encoding})"] = found

    def _callbacks(self, path: str, sent: bytes, encoding: str) -> list[str]:
        seen = len(self._gate.log)
        answer = self._caller.post(path, content=sent, headers={"Content-Encoding": encoding})
        self.statuses.add(answer.status_code)
        # A line is written before the reply's last byte leaves; what follows the reply is found by the next request.
        self._caller.get("/v1/models")
        return [
            f"{line['cpu_ms']} ms: {line['callback']}"
            for line in self._gate.log[seen:]
            if line["event"] in {"slow_callback", "slow_call"}
        ]


@pytest.fixture
def meter(gate: GatewayProcess) -> Iterator[Meter]:
    with httpx.Client(base_url=gate.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as caller:
        yield Meter(gate, caller)
    assert not [line for line in gate.log if line["event"] in {"request_broke", "stream_broke"}]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", LEAST)
def test_no_list_or_text_blocks_the_event_loop(meter: Meter, kind: str) -> None:
    """Send each kind of entry and text, of the maximum size and with the maximum number of values."""
    path, least = LEAST[kind]
    place = {"text": "prompt", "embeddings": "input", "report": "x"}.get(kind, "messages")
    for name, unit in UNITS.items():
        for where in {place, "x", "content"} if place == "messages" else {place, "x"}:
            step = len(unit) + 1
            for size in (MAX_BYTES, 990_000 * step, 1_500_000, 99_000 * step, 33_000 * step, 250_000):
                body = list_body(least, where, unit, min(size, MAX_BYTES))
                meter.send(f"{kind}: {where} of {name}", path, body, "gzip")
    for name, text in TEXTS.items():
        for where in {place if place != "messages" else "content", "x"}:
            for size in (MAX_BYTES, 250_000):
                meter.send(f"{kind}: {where} of {name}", path, text_body(least, where, text, size))
    for name, ids in LISTS_OF_IDS.items():
        for size in (MAX_BYTES, 3_950_000):
            meter.send(f"{kind}: {place} of {name}", path, list_body(least, place, ids, size))
    if kind == "text":
        meter.send("text: most prompts", path, list_body(least, place, b'"abc"', 200 + MAX_CHOICES * len(b'"abc",')))
    for name_bytes in (6, 70, 1000):
        for where in ("x", "logit_bias"):
            body = names_body(least, where, name_bytes, min(MAX_BYTES, 99_000 * (name_bytes + 5)))
            meter.send(f"{kind}: names of {name_bytes} in {where}", path, body, "deflate")
    assert not meter.slow
    assert 200 in meter.statuses or kind == "report"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_no_random_body_blocks_the_event_loop(meter: Meter) -> None:
    """Send any unit in any field, of any size and encoding."""
    draw = random.Random(14)
    for _ in range(RANDOM_BODIES):
        kind, place = draw.choice(list(LEAST)), draw.choice(PLACES)
        path, least = LEAST[kind]
        size = int(MAX_BYTES ** draw.uniform(0.6, 1))
        if draw.random() < 0.7:
            name = draw.choice(list(UNITS))
            body = list_body(least, place, UNITS[name], size)
        else:
            name = draw.choice(list(TEXTS))
            body = text_body(least, place, TEXTS[name], size)
        meter.send(f"{kind}: {place} of {name}", path, body, draw.choice(list(ENCODINGS)))
    assert not meter.slow


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_no_reply_of_an_engine_blocks_the_event_loop(meter: Meter, replies: LargeReplies) -> None:
    """Reply with each kind of value and text, whole and in events, of the maximum size."""
    chat = ("/v1/chat/completions", {"messages": USER})
    try:
        for name, raw, text in _whole_replies():
            replies.raw = raw
            path, least = ("/v1/completions", {"prompt": b'"Q: Why?"'}) if text else chat
            meter.send(f"reply: {name} ({len(raw)} bytes)", path, _body({**least, "model": b'"large"'}))
        for name, raw in _streams():
            replies.raw = raw
            body = _body({**chat[1], "model": b'"large"', "stream": b"true"})
            meter.send(f"stream: {name} ({len(raw)} bytes)", chat[0], body)
        replies.raw = CHOICE % (b'"message"', b"word " * 1_500_000, b'"x":0')
        body = _body({**chat[1], "model": b'"large-tgi"', "stop": orjson.dumps(["Z" * 1000, "word" * 250])})
        meter.send("reply of TGI with stop texts", chat[0], body)
        for name, vector in VECTOR_LISTS.items():
            replies.raw = b'{"object":"list","data":[%b],"usage":{"prompt_tokens":5,"total_tokens":5}}' % b",".join(
                [vector] * (VECTORS_BYTES // len(vector))
            )
            meter.send(f"vectors: {name}", "/v1/embeddings", _body({"model": b'"large-vectors"', "input": b'"Why?"'}))
    finally:
        replies.raw = None
    assert not meter.slow
    assert 200 in meter.statuses
    assert replies.sent


def _body(fields: dict[str, bytes]) -> bytes:
    return b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), value) for name, value in fields.items())


def _filled(pattern: Callable[[bytes], bytes], unit: bytes, size: int) -> bytes:
    return pattern(b",".join([unit] * ((size - 200) // (len(unit) + 1))))


def _whole_replies() -> Iterator[tuple[str, bytes, bool]]:
    units = {**UNITS, "tokens": TOKEN, "choices": b'{"message":{"content":""}}'}
    for name, unit in units.items():
        for size in (REPLY_BYTES, 2_000_000, 250_000):
            for field in (b"logprobs", b"x"):
                raw = _filled(lambda many: CHOICE % (b'"message"', b"Hi", b'"%b":[%b]' % (field, many)), unit, size)  # noqa: B023
                yield f"{field.decode()} of {name}", raw, False
            raw = _filled(lambda many: b'{"choices":[%b]}' % many, unit, size)
            yield f"choices of {name}", raw, False
    legacy = b'{"choices":[{"index":0,"finish_reason":"stop","text":"Hi","logprobs":{"top_logprobs":[%b]}}]}'
    yield "text with logprobs", _filled(lambda many: legacy % many, b'{" a":-0.5," b":-1.5}', REPLY_BYTES), True
    for name, text in TEXTS.items():
        for size in (REPLY_BYTES, 250_000):
            yield f"text of {name}", CHOICE % (b'"message"', text * (size // len(text) - 30), b'"x":0'), False


def _streams() -> Iterator[tuple[str, bytes]]:
    for name, unit in {**UNITS, "tokens": TOKEN}.items():
        for size in (900_000, 100_000):
            for field in (b"logprobs", b"x"):
                event = _filled(lambda many: CHOICE % (b'"delta"', b"Hi", b'"%b":[%b]' % (field, many)), unit, size)  # noqa: B023
                yield f"{field.decode()} of {name}", b"data: %b\n\n" % event
    for name, text in TEXTS.items():
        event = CHOICE % (b'"delta"', text * (900_000 // len(text)), b'"x":0')
        yield f"text of {name}", b"data: %b\n\n" % event
    small = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    last = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    yield "small events", small * 20_000 + last
    yield "empty lines", b"\n" * 1_000_000 + last
    yield "comments", b":\n" * 500_000 + last
    yield "no choices", b'data: {"choices":[]}\n\n' * 40_000 + last
