"""The fake engine, called by the gateway's clients and by a plain one. Its times are long enough for a slow machine."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import orjson
import pytest

from gateway.config.models import ModelSettings
from gateway.engines.base import TeacherRequest, TokenUsage
from gateway.engines.build import build
from gateway.engines.sse import SseDecoder
from gateway.errors import EngineOverloaded, EngineUnreachable
from gateway.policy.book import PolicySet
from gateway.policy.policies import Policies
from gateway.protocol.content_run import each_chunk
from gateway.telemetry.metrics import Metrics
from load_tests.engine_process import fake_engine
from load_tests.fake.engine import FakeEngine
from load_tests.fake.profile import TIMINGS, Profile, read_profile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from gateway.engines.base import Engine

STEP_S = 0.02
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]  # 20 characters: 5 tokens, and 4 around them
CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"


@asynccontextmanager
async def modelled(**profile: Any) -> AsyncIterator[str]:
    """Run an engine without prompt times, and with steps of 20 ms for every batch size."""
    settings = {"model": "fake", "dialect": "openai", "prefill": {}, "decode": {"fixed": "20ms"}, **profile}
    async with FakeEngine(Profile.model_validate(settings)).serving() as url:
        yield url


def instant(**profile: Any) -> AbstractAsyncContextManager[str]:
    return modelled(**{"prefill": None, "decode": None, **profile})


@asynccontextmanager
async def engine(protocol: str, url: str, **more: Any) -> AsyncIterator[Engine]:
    """Return an engine client, built like in the gateway."""
    base = url if protocol == "tgi" else url + "/v1"
    settings = {"name": "it", "protocol": protocol, "api_base": base, "price": {"input_per_1m": 1, "output_per_1m": 1}}
    built = await build([ModelSettings.model_validate(settings | more)], Policies(PolicySet.of(())), Metrics())
    made = built["it"]
    try:
        yield made
    finally:
        await made.close()


async def post(session: aiohttp.ClientSession, path: str, **body: Any) -> dict[str, Any]:
    async with session.post(path, json=body) as reply:
        reply.raise_for_status()
        return cast("dict[str, Any]", orjson.loads(await reply.read()))


async def events(session: aiohttp.ClientSession, path: str, **body: Any) -> list[bytes]:
    async with session.post(path, json={**body, "stream": True}) as reply:
        assert reply.content_type == "text/event-stream"
        return SseDecoder().feed(await reply.read())


async def drained(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


async def stats(session: aiohttp.ClientSession) -> dict[str, Any]:
    async with session.get("/stats") as reply:
        return cast("dict[str, Any]", orjson.loads(await reply.read()))


async def until(session: aiohttp.ClientSession, **expected: int) -> dict[str, Any]:
    """Wait until the statistics have these values. Return them."""
    async with asyncio.timeout(5):
        while True:
            seen = await stats(session)
            if all(seen[name] == value for name, value in expected.items()):
                return seen
            await asyncio.sleep(0.005)


async def test_a_batch_shares_its_steps() -> None:
    """Eight answers need the steps of one, and the histogram has their batch size."""
    async with modelled() as url, aiohttp.ClientSession(url) as session:
        began = time.monotonic()
        await asyncio.gather(*(post(session, CHAT, messages=MESSAGES, max_tokens=20) for _ in range(8)))
        took_s = time.monotonic() - began
        seen = await stats(session)
    assert 19 * STEP_S * 0.9 <= took_s < 8 * 19 * STEP_S / 2
    assert seen["tokens_written"] == 8 * 20
    assert 19 <= seen["decode_steps"] < 2 * 19
    assert seen["batch_size_histogram"]["8"] > 10
    assert seen["completed"] == seen["busiest_in_flight"] == 8
    assert seen["busy_s"] == pytest.approx(seen["modelled_s"], abs=0.2)


async def test_above_the_batch_size_calls_are_served_in_order() -> None:
    """A free slot goes to the call with the longest wait."""
    ended: list[int] = []

    async def ask(session: aiohttp.ClientSession, number: int) -> None:
        await post(session, CHAT, messages=MESSAGES, max_tokens=3)
        ended.append(number)

    async with modelled(max_batch_size=1) as url, aiohttp.ClientSession(url) as session:
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(ask(session, number))
                await until(session, requests=number + 1)
        seen = await stats(session)
    assert ended == [0, 1, 2, 3, 4]
    assert seen["batch_size_histogram"] == {"1": 10}


async def test_a_step_takes_as_long_as_its_batch_is_large() -> None:
    """Values between entries of the table are interpolated."""
    decode = {"table": {1: "10ms", 5: "50ms"}}
    async with modelled(decode=decode) as url, aiohttp.ClientSession(url) as session:
        await post(session, COMPLETIONS, prompt=["a", "b", "c"], max_tokens=11)
        seen = await stats(session)
    assert seen["batch_size_histogram"] == {"3": 10}
    assert seen["modelled_s"] == pytest.approx(10 * 0.030)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_prompt_pass_delays_decoding_unless_it_is_chunked(chunked: bool) -> None:
    """A pass over 1000 tokens takes 400 ms. In chunks of 100 tokens, the other answer continues."""
    prefill = {"per_token": "0.4ms", "max_tokens": 100, "chunked": chunked}
    gaps: list[float] = []
    async with modelled(prefill=prefill, decode={"fixed": "1ms"}) as url, aiohttp.ClientSession(url) as session:
        async with session.post(CHAT, json={"messages": MESSAGES, "max_tokens": 40, "stream": True}) as streamed:
            await streamed.content.readany()
            other = asyncio.gather(post(session, COMPLETIONS, prompt="x" * 4000, max_tokens=1))
            seen = time.monotonic()
            while await streamed.content.readany():
                gaps.append(time.monotonic() - seen)
                seen += gaps[-1]
        await other
        passes = (await stats(session))["prefill_passes"]
    assert (max(gaps) > 0.3) != chunked
    assert passes == (11 if chunked else 2)


async def test_tgi_rejects_calls_over_its_limit() -> None:
    """The reply is a 429 of TGI without Retry-After, which the gateway treats as overload. Other calls succeed."""
    async with (
        modelled(dialect="tgi", max_concurrent_requests=2) as url,
        aiohttp.ClientSession(url) as session,
        engine("tgi", url) as tgi,
    ):
        let_in = asyncio.gather(*(post(session, CHAT, messages=MESSAGES, max_tokens=30) for _ in range(2)))
        await until(session, in_flight=2)
        async with session.post(CHAT, json={"messages": MESSAGES, "max_tokens": 30}) as refused:
            assert refused.status == 429
            assert "Retry-After" not in refused.headers
            assert await refused.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
        with pytest.raises(EngineOverloaded):
            await tgi.generate_guidance(TeacherRequest(max_tokens=4, messages=MESSAGES))
        for path, prompt in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "Q:"})):
            *_, rejected, done = await events(session, path, **prompt, max_tokens=30)
            assert orjson.loads(rejected) == {"error": {"message": "Model is overloaded", "http_status_code": 422}}
            assert done == b"[DONE]"
        with pytest.raises(EngineOverloaded):
            await drained(tgi.stream({"messages": MESSAGES, "max_tokens": 4, "stream": True}))
        assert len(await let_in) == 2
        seen = await stats(session)
    assert (seen["refused"], seen["completed"], seen["busiest_in_flight"]) == (5, 2, 2)


@pytest.mark.parametrize("dialect", ["tgi", "openai"])
@pytest.mark.parametrize("kind", [modelled, instant])
async def test_a_stream_has_an_event_for_each_token(kind: Any, dialect: str) -> None:
    """TGI's last token brings the finish_reason; OpenAI's first and last event hold no token. Usage, then [DONE]."""
    async with kind(dialect=dialect) as url, aiohttp.ClientSession(url) as session:
        fields = {"messages": MESSAGES, "max_tokens": 5}
        *token_events, counted, done = await events(session, CHAT, **fields, stream_options={"include_usage": True})
        without = await events(session, CHAT, **fields)
        whole = await post(session, CHAT, **fields)
    choices = [orjson.loads(data)["choices"][0] for data in token_events]
    contents = [choice["delta"].get("content") for choice in choices]
    finishes = [choice["finish_reason"] for choice in choices]
    tokens = ["So", " we", " take", " the", " first"]
    assert contents == (tokens if dialect == "tgi" else ["", *tokens, None])
    assert finishes == [None] * (len(choices) - 1) + ["length"]
    assert done == b"[DONE]"
    assert without == [*token_events, done]
    last = orjson.loads(counted)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14} == whole["usage"]
    assert whole["choices"][0]["message"]["content"] == "".join(tokens)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_disconnect_frees_its_slot(stream: bool) -> None:
    """The slot in the batch and the one of the limit are free."""
    one = {"max_batch_size": 1, "max_concurrent_requests": 1}
    async with modelled(**one) as url, aiohttp.ClientSession(url) as session:
        leaving = asyncio.gather(post(session, CHAT, messages=MESSAGES, max_tokens=3000, stream=stream))
        await until(session, in_flight=1)
        leaving.cancel()
        await until(session, in_flight=0)
        async with asyncio.timeout(5):
            await post(session, CHAT, messages=MESSAGES, max_tokens=3)
        seen = await stats(session)
    assert (seen["cancelled"], seen["completed"]) == (1, 1)


async def test_lengths_and_faults_are_the_same_in_every_run() -> None:
    """Lengths and faults are drawn with the file's seed. An answer that ends by itself has finish reason `stop`."""

    async def run() -> list[tuple[int, str]]:
        faults = {"fail_424": 0.2, "fail_500": 0.2}
        seen: list[tuple[int, str]] = []
        async with (
            instant(dialect="tgi", answer_tokens=[2, 60], seed=5, faults=faults) as url,
            aiohttp.ClientSession(url) as session,
        ):
            for _ in range(40):
                async with session.post(CHAT, json={"messages": MESSAGES, "max_tokens": 40}) as reply:
                    body = await reply.json()
                if reply.ok:
                    seen.append((body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]))
                else:
                    seen.append((reply.status, body["error_type"]))
        return seen

    first = await run()
    assert first == await run()
    assert {(424, "generation"), (500, "incomplete_generation"), (40, "length")} < set(first)
    assert len({length for length, finish in first if finish == "stop"}) > 5


@pytest.mark.parametrize("kind", [modelled, instant])
async def test_a_configured_break_is_a_broken_answer(kind: Any) -> None:
    """The gateway's engines report a broken answer, for streams and whole replies."""
    fields = {"messages": MESSAGES, "max_tokens": 8}
    async with kind(faults={"break_off": 1}) as url, engine("openai", url, continuation="none") as openai:
        with pytest.raises(EngineUnreachable):
            await openai.complete(fields)
        with pytest.raises(EngineUnreachable):
            await drained(openai.stream({**fields, "stream": True}))


async def test_a_configured_hang_lasts_until_the_client_leaves() -> None:
    async with instant(faults={"hang": 1}) as url, aiohttp.ClientSession(url) as session:
        leaving = asyncio.gather(post(session, CHAT, messages=MESSAGES, max_tokens=3))
        await until(session, in_flight=1)
        leaving.cancel()
        seen = await until(session, in_flight=0)
    assert (seen["failed"], seen["cancelled"], seen["completed"]) == (1, 0, 0)


async def test_the_gateways_tgi_engine_can_call_the_fake_engine() -> None:
    """Both routes work, with counts from usage and from headers."""
    async with modelled(dialect="tgi", max_concurrent_requests=7) as url, engine("tgi", url) as tgi:
        await tgi.probe()
        chat = await tgi.generate_guidance(TeacherRequest(max_tokens=3, messages=MESSAGES, stop=("\nQ:",)))
        raw = await tgi.generate_guidance(TeacherRequest(max_tokens=3, prompt="Q: Why is the sky blue?\nA:"))
        chunks = [
            chunk
            async for group in tgi.stream({"messages": MESSAGES, "max_tokens": 3, "stream": True})
            for chunk in group
        ]
    assert tgi.state.max_concurrency == 7
    assert (chat.text, chat.finish, chat.usage) == ("So we take", "length", TokenUsage(9, 3))
    assert (raw.text, raw.finish, raw.usage) == (" we take the", "length", TokenUsage(7, 3))
    assert len(chunks) == 3


async def test_the_gateways_openai_engine_can_call_the_fake_engine() -> None:
    """Chats, streams, guidance of a raw prompt, and several choices work."""
    fields = {"messages": MESSAGES, "max_tokens": 3, "n": 2}
    async with instant() as url, engine("openai", url, model="fake") as openai:
        await openai.probe()
        whole = await openai.complete(fields)
        raw = await openai.generate_guidance(TeacherRequest(max_tokens=3, prompt="Q: Why is the sky blue?\nA:"))
        chunks = [chunk async for group in openai.stream({**fields, "stream": True}) for chunk in each_chunk(group)]
    assert openai.state.warnings == []
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["So we take"] * 2
    assert (raw.text, raw.usage) == (" we take the", TokenUsage(7, 3))
    assert len(chunks) == 2 * 5


@pytest.mark.parametrize("mode", ["trailing", "vllm", "sglang", "prefix", "partial", "none"])
async def test_the_probe_detects_the_continuation_mode(mode: str) -> None:
    """The probe of the gateway finds the continuation mode of the file."""
    async with instant(continuation=mode) as url, engine("openai", url) as openai:
        await openai.probe()
    found = openai.state.continuation
    # vLLM's request says all that SGLang's does, and is tried first.
    assert (found and found.mode) == {"sglang": "vllm", "none": None}.get(mode, mode)


async def test_statistics_can_be_reset() -> None:
    async with instant() as url, aiohttp.ClientSession(url) as session:
        await post(session, GENERATE, inputs="Q:", parameters={"max_new_tokens": 3})
        assert (await stats(session))["requests"] == 1
        await post(session, "/stats/reset")
        assert (await stats(session))["requests"] == 0


async def test_invalid_requests_are_rejected() -> None:
    async with instant() as url, aiohttp.ClientSession(url) as session:
        for path, body in ((CHAT, b"{"), (CHAT, b'{"messages": []}'), (COMPLETIONS, b"{}"), (GENERATE, b"[]")):
            async with session.post(path, data=body) as reply:
                assert reply.status == 400
        async with session.get("/nowhere") as reply:
            assert reply.status == 404


@pytest.mark.parametrize("kind", [modelled, instant])
async def test_the_last_chunk_of_a_completion_of_tgi_has_the_usage(kind: Any) -> None:
    """The end token is text. No chunk without choices follows."""
    async with kind(dialect="tgi", answer_tokens=[3, 3]) as url, aiohttp.ClientSession(url) as session:
        *chunks, done = await events(session, COMPLETIONS, prompt="x" * 40, stream_options={"include_usage": True})
        async with session.post(COMPLETIONS, json={"prompt": "x" * 40}) as reply:
            assert "x-compute-time" not in reply.headers
            assert "x-total-time" in reply.headers
    decoded = [orjson.loads(chunk) for chunk in chunks]
    assert ["usage" in chunk for chunk in decoded] == [False, False, True]
    assert decoded[-1]["usage"] == {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    assert (decoded[-1]["choices"][0]["text"], decoded[-1]["choices"][0]["finish_reason"]) == (
        "<|im_end|>",
        "eos_token",
    )
    assert done == b"[DONE]"


@pytest.mark.parametrize("name", ["teacher", "student", "instant"])
def test_the_shipped_timing_files_are_valid(name: str) -> None:
    """Files for hardware have step times for every batch size, in increasing order."""
    profile = read_profile(TIMINGS / f"{name}.yaml")
    if profile.decode is None:
        assert name == "instant"
        return
    steps = [profile.decode.step_s(size) for size in range(1, profile.max_batch_size + 1)]
    assert 0 < steps[0] < steps[-1]
    assert steps == sorted(steps)


async def test_the_fake_engine_runs_in_its_own_process() -> None:
    """The process and its port are free after the block."""
    with fake_engine("instant", dialect="tgi", for_s=30) as url:
        async with aiohttp.ClientSession(url) as session, session.get("/info") as reply:
            assert (await reply.json())["model_id"] == "fake-instant"
    async with aiohttp.ClientSession(url) as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get("/info")


def test_an_invalid_file_is_reported_with_its_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mistaken.yaml"
    file.write_text("model: fake\ndialect: openai\nmax_batch: 3\n")
    with pytest.raises(RuntimeError, match="did not start"), fake_engine(file):
        pass
    assert "mistaken.yaml:3: max_batch: unknown key" in capfd.readouterr().err
