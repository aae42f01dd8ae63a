"""Each fault against each engine: the right answer or error, in time, and no effect on the next call."""

from __future__ import annotations

import asyncio
import tracemalloc
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from gateway.engines.base import TeacherRequest, TokenUsage
from gateway.engines.chat import read_usage
from gateway.engines.http import EngineDeadlines, EngineHttp
from gateway.engines.openai import OpenAIEngine
from gateway.engines.replies import message_text
from gateway.engines.tgi import TGIEngine
from gateway.errors import EngineError, EngineOverloaded, EngineRejected
from gateway.protocol.content_run import each_chunk
from tests.fault_engine import COUNTED, GUIDANCE_TOKENS, SECRET, TEXT, FaultEngine, refusing
from tests.faults import FAULTS, OK, PLAYS, Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from gateway.engines.base import Engine

NAME = "the-engine"
WAYS = ("complete", "stream", "guidance", "raw guidance")
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
PATIENT = {"connect_s": 20.0, "first_token_s": 40.0, "idle_s": 40.0, "total_s": 50.0}
HASTY_S = 1.0
LIMIT_S = 55
MOST_BYTES = {"whole": 70_000_000, "streamed": 16_000_000}
"""A whole reply may have 32 MB, and is held twice while it is put together; an event 1 MB, in lines of one byte."""


@pytest.fixture(scope="module")
def faulty() -> Iterator[FaultEngine]:
    with FaultEngine(PLAYS).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def nobody() -> Iterator[str]:
    with refusing() as url:
        yield url


@asynccontextmanager
async def calling(protocol: str, base: str, *, stalls: str = "") -> AsyncIterator[Engine]:
    """Yield an engine with a short timeout only where it ends the stall."""
    short = {f"{stalls}_s": HASTY_S} if stalls else {}
    http = EngineHttp(NAME, base, api_key=SECRET, deadlines=EngineDeadlines(**PATIENT | short))
    engine = TGIEngine(NAME, http) if protocol == "tgi" else OpenAIEngine(NAME, "org/model", http)
    try:
        yield engine
    finally:
        await engine.close()


@dataclass
class Outcome:
    """The outcome of one call."""

    text: str = ""
    usage: TokenUsage | None = None
    error: EngineError | None = None
    finishes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return OK if self.error is None else self.error.label


async def call(engine: Engine, way: str) -> Outcome:
    """Make a call of the given kind, with a time limit."""
    outcome = Outcome()
    try:
        async with asyncio.timeout(LIMIT_S):
            await _call(engine, way, outcome)
    except EngineError as error:
        outcome.error = error
    return outcome


async def _call(engine: Engine, way: str, outcome: Outcome) -> None:
    if way == "stream":
        body: dict[str, Any] = {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
        async with aclosing(engine.stream(body)) as groups:
            async for chunks in groups:
                for chunk in each_chunk(chunks):
                    outcome.usage = read_usage(chunk.get("usage")) or outcome.usage
                    for choice in chunk["choices"]:
                        outcome.text += choice["delta"].get("content") or ""
                        outcome.finishes += [choice["finish_reason"]] if choice["finish_reason"] else []
    elif way == "complete":
        reply = await engine.complete({"messages": MESSAGES})
        outcome.text, outcome.usage = message_text(reply) or "", read_usage(reply.get("usage"))
    else:
        prompt_fields: Any = {"prompt": "Why?"} if way == "raw guidance" else {"messages": MESSAGES}
        guidance = await engine.generate_guidance(TeacherRequest(max_tokens=GUIDANCE_TOKENS, **prompt_fields))
        outcome.text, outcome.usage = guidance.text, guidance.usage


def meant(fault: Fault, way: str) -> str | None:
    return fault.sse if way == "stream" else fault.json


CASES = [
    pytest.param(fault, protocol, way, id=f"{fault.name}-{protocol}-{way.replace(' ', '-')}")
    for fault in FAULTS
    for protocol in fault.protocols
    for way in WAYS
    # Guidance is read like a JSON reply and stalls as long.
    if meant(fault, way) is not None and not (fault.stalls and "guidance" in way)
]


@pytest.mark.parametrize(("fault", "protocol", "way"), CASES)
async def test_a_fault_ends_in_the_answer_or_in_its_error_and_leaves_no_trace(
    fault: Fault, protocol: str, way: str, faulty: FaultEngine, nobody: str
) -> None:
    """The whole answer if the engine sent it, otherwise the right error. The engine can be called again.

    An error contains neither the engine's address nor its key, although the engine's text may.
    """
    case_path = f"{protocol}/{fault.name}/{way.replace(' ', '-')}"
    base = nobody if fault.play is None else faulty.base(case_path)
    stalls = "total" if fault.stalls and way != "stream" else fault.stalls
    async with calling(protocol, base, stalls=stalls) as engine:
        outcome = await call(engine, way)
        assert outcome.label == meant(fault, way), outcome.error
        if outcome.error is None:
            assert outcome.text == TEXT
            counted = TokenUsage(COUNTED["prompt_tokens"], COUNTED["completion_tokens"])
            assert outcome.usage == (counted if fault.counts else None)
        else:
            _tells_no_secret(outcome.error, base)
            _is_complete(outcome.error, fault)
            assert TEXT.startswith(outcome.text)
            assert outcome.finishes == []
        if fault.play is not None:
            assert len(faulty.requests[case_path]) == 1
            faulty.repaired.add(case_path)
            again = await call(engine, way)
            assert (again.label, again.text) == (OK, TEXT)
    assert faulty.unexpected_paths == []


def _tells_no_secret(error: EngineError, base: str) -> None:
    assert NAME in error.message
    assert error.engine == NAME
    for hidden in (base, base.split("/")[2], "127.0.0.1", "10.0.0.7", SECRET):
        assert hidden not in error.message


def _is_complete(error: EngineError, fault: Fault) -> None:
    if isinstance(error, EngineOverloaded):
        assert error.retry_after_s == pytest.approx(fault.retry_after_s, abs=5 if fault.retry_after_s == 30 else 0)
    if isinstance(error, EngineRejected):
        assert error.status_sent == int(fault.name.rpartition("-")[2])
    assert error.may_have_run is (fault.play is not None and not isinstance(error, EngineOverloaded | EngineRejected))


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "protocol", "way"),
    [case for case in CASES if case.values[0].huge and case.values[2] in {"complete", "stream"}],  # type: ignore[union-attr]
)
async def test_memory_is_bounded_for_any_reply(fault: Fault, protocol: str, way: str, faulty: FaultEngine) -> None:
    """Too many bytes are discarded at once, and an endless line is not awaited."""
    case_path = f"{protocol}/{fault.name}/memory-{way}"
    async with calling(protocol, faulty.base(case_path)) as engine:
        tracemalloc.start()
        try:
            outcome = await call(engine, way)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert outcome.label == meant(fault, way)
    assert peak_bytes < MOST_BYTES["streamed" if way == "stream" else "whole"]


WELL_FRAMED = ("none", "split-character", "split-field", "all-at-once", "split-crlf", "comments", "gzip", "early-hints")


@pytest.mark.parametrize("name", WELL_FRAMED)
async def test_tgis_stream_is_read_in_any_split(name: str, faulty: FaultEngine) -> None:
    """/generate_stream has its own events and no [DONE]."""
    http = EngineHttp(NAME, faulty.base(f"tgi/{name}/own-stream"), api_key=SECRET, deadlines=EngineDeadlines(**PATIENT))
    try:
        async with asyncio.timeout(LIMIT_S), aclosing(http.events("/generate_stream", {"inputs": "Why?"})) as groups:
            tokens = [orjson.loads(event) async for events in groups for event in events]
    finally:
        await http.close()
    assert "".join(token["token"]["text"] for token in tokens) == tokens[-1]["generated_text"] == TEXT
