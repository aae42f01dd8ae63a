"""Any bytes from an engine end in a reply that can be sent to callers, or in an EngineError."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gateway.accounting.shares import EngineCall
from gateway.engines.base import TeacherReply, TeacherRequest
from gateway.engines.chat import read_usage
from gateway.engines.http import EngineDeadlines, EngineHttp
from gateway.engines.openai import OpenAIEngine
from gateway.engines.replies import message_text
from gateway.engines.tgi import TGIEngine
from gateway.errors import EngineError
from gateway.guidance.seam import SeamJoin
from gateway.guidance.trim import trim
from gateway.pipeline.generation import GenerationTracker
from gateway.pipeline.stream import StreamRelay, join_reply
from gateway.protocol.content_run import each_chunk
from gateway.protocol.reply import ReplyHead, engine_fields, usage_body
from tests.engines.defects import (
    BODIES,
    CHAT,
    CUTS,
    FRAME,
    GENERATED,
    HARM,
    PROTOCOL,
    RAW,
    STREAM,
    STREAMS,
    WRONG,
    broken,
    corrupted,
    framed,
    paths,
    replaced,
    split,
)
from tests.fault_engine import FaultEngine, Wire, chunked, head

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from gateway.engines.base import Engine, TokenUsage

    Json = dict[str, Any]

NAME = "the-engine"
HEAD = ReplyHead("chatcmpl-ours", 1_700_000_000, "route")
LIMIT_S = 5  # a call that hangs fails the test instead of timing out
DEADLINES = EngineDeadlines(connect_s=60, first_token_s=60, idle_s=60, total_s=60)


SOME = settings(deadline=None, max_examples=100)
MUCH = settings(deadline=None, max_examples=300)


class Content:
    """A body that arrives in the given packets."""

    def __init__(self, packets: list[bytes]) -> None:
        self._packets = [packet for packet in packets if packet]

    def is_eof(self) -> bool:
        return False  # so that the packets are read one by one

    def at_eof(self) -> bool:
        return not self._packets

    async def readany(self) -> bytes:
        return self._packets.pop(0) if self._packets else b""

    async def read(self, most: int) -> bytes:
        packet = await self.readany()
        if len(packet) > most:
            self._packets.insert(0, packet[most:])
        return packet[:most]


@dataclass
class Response:
    content: Content
    headers: dict[str, str] = field(default_factory=dict)

    def close(self) -> None: ...

    def release(self) -> None: ...


class Replayed(EngineHttp):
    """The HTTP client of an engine without a socket. It answers each call with the given packets."""

    response: Response

    async def _open(self, *_: Any, **__: Any) -> Any:
        return self.response


@dataclass
class Stage:
    """Both engines over packets, on a separate event loop."""

    runner: asyncio.Runner
    http: Replayed
    engines: dict[str, Engine]

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def within() -> Any:
            async with asyncio.timeout(LIMIT_S):
                return await coroutine

        return self.runner.run(within())

    def stream(self, protocol: str, packets: list[bytes], body: Json | None = None) -> Outcome:
        self.http.response = Response(Content(packets), {"Content-Type": "text/event-stream"})
        outcome: Outcome = self.run(streamed(self.engines[protocol], body or {}))
        return outcome

    def whole(self, raw: bytes, headers: dict[str, str], call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Return the result of the call, or the label of its error."""
        self.http.response = Response(Content([raw]), headers)
        try:
            return self.run(call())
        except EngineError as error:
            return error.label


@dataclass
class Outcome:
    """The received chunks, and the label of the error after them, if any."""

    chunks: list[Json]
    label: str | None = None


def body_for(name: str, protocol: str) -> Json:
    """Return the request to which a stream replies. The engine rejects several choices for TGI, which has one."""
    body = BODIES.get(name, {})
    assume(not body or protocol != "tgi")
    return body


async def streamed(engine: Engine, body: Json) -> Outcome:
    outcome = Outcome([])
    body_sent = {"messages": [], "stream": True, "stop": ["\nQ:"], **body}
    try:
        async with aclosing(engine.stream(body_sent)) as groups:
            async for chunks in groups:
                outcome.chunks += each_chunk(chunks)
    except EngineError as error:
        outcome.label = error.label
    return outcome


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with asyncio.Runner() as runner:

        async def build() -> Stage:
            http = Replayed(NAME, "http://engine", api_key=None, deadlines=DEADLINES)
            return Stage(runner, http, {"openai": OpenAIEngine(NAME, "org/model", http), "tgi": TGIEngine(NAME, http)})

        built = runner.run(build())
        yield built
        runner.run(built.http.close())


@settings(SOME)
@given(STREAM, PROTOCOL, st.fixed_dictionaries(FRAME), CUTS)
@example("openai", "openai", {"line_end": b"\r\n", "comment": b"", "last": b"[DONE]"}, list(range(2000)))
def test_packet_boundaries_do_not_change_the_answer(
    stage: Stage, name: str, protocol: str, frame: Json, cuts: list[int]
) -> None:
    """A stream in pieces, down to single bytes, is the same answer as in one packet."""
    raw = framed([orjson.dumps(one) for one in STREAMS[name]], **frame)
    at_once = stage.stream(protocol, [raw], body_for(name, protocol))
    assert at_once.label is None
    assert stage.stream(protocol, split(raw, cuts), body_for(name, protocol)) == at_once
    is_safe(at_once)


# The content of the last delta, which includes text that the stop filter held back.
HELD = 3 + 5 * list(paths(STREAMS["tgi"][3])).index(("choices", 0, "delta", "content"))


@settings(MUCH)
@given(STREAM, PROTOCOL, st.lists(WRONG, min_size=1, max_size=3), st.booleans())
@example("tgi", "tgi", [(HELD, b'[{"type":"text","text":"hi"}]')], True)
def test_any_value_in_the_place_of_any_field_of_a_chunk(
    stage: Stage, name: str, protocol: str, wrong: list[tuple[int, bytes]], done: bool
) -> None:
    """Fields have wrong types, giant numbers or a thousand levels."""
    chunks = [orjson.dumps(one) for one in STREAMS[name]]
    for place, raw in wrong:
        at = place % len(chunks)
        within = list(paths(STREAMS[name][at]))
        chunks[at] = replaced(STREAMS[name][at], within[place // len(chunks) % len(within)], raw)
    outcome = stage.stream(protocol, [framed(chunks, last=b"[DONE]" if done else b"")], body_for(name, protocol))
    is_safe(outcome)


@settings(MUCH)
@given(STREAM, PROTOCOL, st.lists(HARM, min_size=1, max_size=4), CUTS)
def test_any_harm_to_a_stream(
    stage: Stage, name: str, protocol: str, defects: list[tuple[str, int, Any]], cuts: list[int]
) -> None:
    """Bits are flipped, bytes are lost, repeated or inserted. The split into packets has no effect."""
    raw = corrupted(framed([orjson.dumps(one) for one in STREAMS[name]]), defects)
    outcome = stage.stream(protocol, split(raw, cuts), body_for(name, protocol))
    is_safe(outcome)
    at_once = stage.stream(protocol, [raw], body_for(name, protocol))
    assert (outcome.label, outcome.chunks) == (at_once.label, at_once.chunks)


@settings(SOME)
@given(PROTOCOL, st.binary(max_size=300), CUTS)
def test_arbitrary_bytes_end_in_a_reply_or_an_error(stage: Stage, protocol: str, raw: bytes, cuts: list[int]) -> None:
    """Arbitrary bytes."""
    is_safe(stage.stream(protocol, split(raw, cuts)))


def is_safe(outcome: Outcome) -> None:
    """Assert that the chunks can be counted, relayed and encoded, with guidance and a limit, and without."""
    joined = SeamJoin("The sky", pending_space=" ", strips_leading_space=True, stop=("xx",))
    for seam, limit in ((None, None), (joined, 3)):
        relay, call = StreamRelay(HEAD, wants_usage=True), EngineCall("small", [])
        generation = GenerationTracker(
            call, limit=limit, choices=1, generated_choices=1, stops_within_s=None, preface="The sky", now=0.0
        )
        shown = relay.join(seam)
        for one in deepcopy(outcome.chunks):  # choices are modified in place
            generation.read(one, 0.0)
            if (kept := relay.feed(one)) is not None:
                shown.append(kept)
        if outcome.label is None:
            shown += relay.end()
            assert isinstance(relay.finish_reason, str)
            generation.finish()
        shown.append(relay.usage_chunk(_usage_body(call.usage), {}))
        for one in shown:
            orjson.dumps(one)
            for choice in one["choices"]:
                assert 0 <= choice["index"] < 1024, "what is kept for each has a bound"
                assert isinstance(choice["delta"].get("content"), str | list | None)


def _usage_body(usage: TokenUsage | None) -> Json:
    """Assert that the usage can be summed over teacher and student."""
    if usage is None:
        return usage_body(0, 0)
    return usage_body(usage.input_tokens * 2, usage.output_tokens * 2, usage.cached_input_tokens)


# JSON replies.

HEADERS = st.dictionaries(
    st.sampled_from(["x-prompt-tokens", "x-generated-tokens"]),
    st.sampled_from(["7", "0", "-1", "", "1.5", "x", "9" * 30, "9" * 5000, "٣"]),
)
CHAT_GUIDANCE = TeacherRequest(max_tokens=3, messages=[], stop=("\nQ:",))
RAW_GUIDANCE = TeacherRequest(max_tokens=3, prompt="Why?", stop=("\nQ:",))


@settings(MUCH)
@given(PROTOCOL, WRONG)
def test_any_value_in_the_place_of_any_field_of_a_reply(stage: Stage, protocol: str, wrong: tuple[int, bytes]) -> None:
    """The reply to a JSON caller can be encoded."""
    engine = stage.engines[protocol]
    reply = stage.whole(broken(CHAT, [wrong]), {}, lambda: engine.complete({"messages": [], "stop": ["\nQ:"]}))
    if isinstance(reply, str):
        return
    usage = _usage_body(read_usage(reply.get("usage")))
    assert isinstance(reply["choices"][0].get("finish_reason"), str | None)
    message_text(reply)
    orjson.dumps(HEAD.completion(reply["choices"], usage) | engine_fields(reply))
    join_reply(reply, SeamJoin("The sky", pending_space=" ", strips_leading_space=True, stop=("xx",)))
    orjson.dumps(HEAD.completion(reply["choices"], usage) | engine_fields(reply))


@settings(MUCH)
@given(PROTOCOL, st.booleans(), WRONG, HEADERS)
def test_any_value_in_any_field_of_a_guidance_reply(
    stage: Stage, protocol: str, chat: bool, wrong: tuple[int, bytes], headers: dict[str, str]
) -> None:
    """The teacher's reply is a text, with or without counts."""
    engine = stage.engines[protocol]
    request = CHAT_GUIDANCE if chat else RAW_GUIDANCE
    sent = CHAT if chat else RAW if protocol == "openai" else GENERATED
    teacher_reply = stage.whole(broken(sent, [wrong]), headers, lambda: engine.generate_guidance(request))
    if isinstance(teacher_reply, TeacherReply):
        orjson.dumps(trim(teacher_reply.text, cut=teacher_reply.finish == "length", stop=("\nQ:",)).text)
        orjson.dumps(_usage_body(teacher_reply.usage))


@settings(MUCH)
@given(PROTOCOL, WRONG)
def test_any_value_in_any_field_of_a_probe_reply(stage: Stage, protocol: str, wrong: tuple[int, bytes]) -> None:
    """A probe ends, and its facts can be encoded and compared."""
    listed = {"id": "org/model", "owned_by": "vllm", "meta": {"size": 1, "n_params": 2}}
    looks: dict[str, Json] = {
        "openai": {"object": "list", "data": [listed]},
        "tgi": {"model_id": "m", "model_sha": "s", "max_concurrent_requests": 128, "max_stop_sequences": 4,
                "max_total_tokens": 4096, "version": "3"},
    }  # fmt: skip
    engine = stage.engines[protocol]
    stage.whole(broken(looks[protocol], [wrong]), {}, engine.probe)
    orjson.dumps([engine.state.facts, engine.state.warnings, engine.state.revision])
    sent = stage.whole(orjson.dumps(CHAT), {}, lambda: engine.generate_guidance(CHAT_GUIDANCE))
    assert isinstance(sent, TeacherReply), "and it can be called"


# Over a socket.


@pytest.fixture(scope="module")
def replying() -> Iterator[tuple[FaultEngine, list[bytes]]]:
    """Yield an engine on a socket that sends the bytes in the list and closes the connection."""
    packets: list[bytes] = []

    async def play(wire: Wire) -> None:
        wire.over = True
        await wire.send(*packets)

    with FaultEngine({"fuzz": play}).running() as engine:
        yield engine, packets


@settings(SOME)
@given(STREAM, PROTOCOL, st.lists(HARM, max_size=3), st.lists(st.integers(0, 6000), max_size=5), st.booleans())
@example("openai", "openai", [], [], True)
def test_corrupted_replies_end_in_a_reply_or_an_error(
    replying: tuple[FaultEngine, list[bytes]],
    name: str,
    protocol: str,
    defects: list[tuple[str, int, Any]],
    cuts: list[int],
    streamed_: bool,
) -> None:
    """HTTP's own bytes are corrupted, too: the status, the headers, the sizes of chunks."""
    faulty, packets = replying
    kind = "text/event-stream" if streamed_ else "application/json"
    events = framed([orjson.dumps(one) for one in STREAMS[name]]) if streamed_ else orjson.dumps(CHAT)
    body = b"".join(chunked(events[at : at + 100]) for at in range(0, len(events), 100))
    raw = head(content_type=kind, transfer_encoding="chunked") + body + b"0\r\n\r\n"
    packets[:] = split(corrupted(raw, defects), cuts)

    async def call() -> Any:
        http = EngineHttp(NAME, faulty.base(f"{protocol}/fuzz/x"), api_key=None, deadlines=DEADLINES)
        engine = TGIEngine(NAME, http) if protocol == "tgi" else OpenAIEngine(NAME, "org/model", http)
        try:
            async with asyncio.timeout(LIMIT_S):
                if streamed_:
                    return await streamed(engine, body_for(name, protocol))
                return await engine.complete({"messages": []})
        except EngineError as error:
            return error.label
        finally:
            await engine.close()

    outcome = asyncio.run(call())
    if isinstance(outcome, Outcome):
        is_safe(outcome)
    if not defects:
        assert isinstance(outcome, dict) or outcome.label is None
