"""The contract between the gateway and an engine that is teacher and student at once. `scripts/engines` runs it.

Each test belongs to a row of docs/reference/engine-tests.md, named by its mark `contract`.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.contracts.conftest import LENGTHS
from tests.contracts.stop_strings import PLACES, stop_strings
from tests.gateway_process import KEY
from tests.readiness import detail, wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contracts.running import RunningEngine
    from tests.gateway_process import GatewayProcess

    Json = dict[str, Any]

pytestmark = pytest.mark.timeout(600)

QUESTIONS = (
    "Explain to a child why the sky is blue.",
    "Write a Python function that reverses the words of a sentence.",
    "List five things to check before a long bicycle tour.",
    "Name three European capitals and one fact about each.",
)
SHORT_QUESTION = "What is the capital of France?"  # the answer ends before the guidance does
FORMS = pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
HEADERS = {"Authorization": f"Bearer {KEY}"}
ANSWER_TOKENS = 56
STORY = "Write a long story about a sailor, with ten chapters."  # for engines without ignore_eos
LONG = {"max_tokens": 1500, "ignore_eos": True}
CALL_LIMIT_S = 120
LEAVE_S = 2.5
STOP_LIMIT_S = 5.0
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Weather of a city.", "parameters": SCHEMA}}


def differs(expected: str, got: str) -> bool:
    """Return whether two answers differ within the length of the shorter one."""
    shared = min(len(expected), len(got))
    return expected[:shared] != got[:shared]


def chat(question: str, **more: Any) -> Json:
    return {"messages": [{"role": "user", "content": question}], **more}


class Reply:
    """A reply of the gateway. The facts of a stream come from the `gkt` object of its last chunk."""

    def __init__(self, status: int, headers: Json, chunks: list[Json], *, whole: bool) -> None:
        self.status = status
        self.chunks = chunks
        self.error: Json | None = next((chunk["error"] for chunk in chunks if "error" in chunk), None)
        choices = [chunk["choices"][0] for chunk in chunks if chunk.get("choices")]
        self.messages = [choice["message" if whole else "delta"] for choice in choices]
        self.text = "".join(message.get("content") or "" for message in self.messages)
        self.finish = next((choice["finish_reason"] for choice in reversed(choices) if choice["finish_reason"]), None)
        self.usage = next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), None)
        late = next((chunk["gkt"] for chunk in reversed(chunks) if "gkt" in chunk), {})
        self.facts = {
            **{name.removeprefix("x-gkt-"): value for name, value in headers.items() if name.startswith("x-gkt-")},
            **{name.replace("_", "-"): value for name, value in late.items()},
        }


def ask(gateway: GatewayProcess, route: str, question: str, *, stream: bool = False, **more: Any) -> Reply:
    """Return the gateway's reply to a question, greedy."""
    body = chat(question, model=route, temperature=0, **more)
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    with (
        httpx.Client(base_url=gateway.url, headers=HEADERS, timeout=CALL_LIMIT_S) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        streamed = stream and response.status_code == 200
        chunks = list(events(response)) if streamed else [json.loads(response.read())]
        return Reply(response.status_code, dict(response.headers), chunks, whole=not streamed)


def ask_guided(gateway: GatewayProcess, route: str, question: str, **more: Any) -> Reply:
    """Return the reply to a question. It must be guided, since unguided answers are the engine's own as well."""
    reply = ask(gateway, route, question, **more)
    assert reply.status == 200, reply.chunks
    assert reply.facts.get("mode") in {"guided", "teacher_complete"}, reply.facts  # or the guidance ends the answer
    assert "unguided" not in reply.facts, f"unguided: {reply.facts['unguided']}"
    return reply


def events(response: httpx.Response) -> Iterator[Json]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def own(engine: RunningEngine, question: str, **more: Any) -> tuple[str, str, Json]:
    """Return the engine's own answer: text, finish reason and usage."""
    reply = engine.direct(**chat(question, **more))
    choice = reply["choices"][0]
    return choice["message"]["content"].lstrip(), choice["finish_reason"], reply["usage"]


def wait_until(condition: Callable[[], bool], limit_s: float) -> bool:
    give_up = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.contract("continuation")
@FORMS
def test_the_student_continues_the_guidance(gateway: GatewayProcess, *, stream: bool) -> None:
    state = detail(gateway.admin_url)["engines"]["small"]
    assert not state.get("warnings"), state["warnings"]
    reply = ask_guided(gateway, "m10", QUESTIONS[0], stream=stream, max_tokens=ANSWER_TOKENS)
    assert "placement" not in reply.facts, f"placement {reply.facts['placement']} instead of prefix"
    assert 0 < int(reply.facts["guidance-tokens"]) <= 10
    assert reply.text


@pytest.mark.contract("seam equality")
@pytest.mark.parametrize("m", LENGTHS)
@FORMS
def test_a_guided_answer_is_the_engines_own(
    engine: RunningEngine, gateway: GatewayProcess, m: int, *, stream: bool
) -> None:
    different = []
    for question in QUESTIONS:
        expected, _, _ = own(engine, question, max_tokens=ANSWER_TOKENS)
        got = ask_guided(gateway, f"m{m}", question, stream=stream, max_tokens=ANSWER_TOKENS).text
        if differs(expected, got) or len(got) < 0.8 * len(expected):
            different.append((question, expected, got))
    form = "SSE" if stream else "JSON"
    assert not different, f"m={m}, {form}: {len(different)} of {len(QUESTIONS)} differ, such as {different[0]}"


def stop_cases(engine: RunningEngine) -> list[tuple[str, str, str]]:
    """Return question, place and stop string: for two questions, and for more until each place has a case."""
    cases: list[tuple[str, str, str]] = []
    for number, question in enumerate(QUESTIONS):
        if number >= 2 and {place for _, place, _ in cases} == PLACES.keys():
            break
        answer, _, _ = own(engine, question, max_tokens=ANSWER_TOKENS)
        seam = len(own(engine, question, max_tokens=10)[0])
        cases += [(question, place, stop) for place, stop in stop_strings(answer, seam).items()]
    if missing := PLACES.keys() - {place for _, place, _ in cases}:
        pytest.skip(f"not tested: no answer of the engine has a stop string {min(missing)}")
    return cases


@pytest.mark.contract("stop strings")
@FORMS
def test_stop_strings_end_the_answer_like_the_engine(
    engine: RunningEngine, gateway: GatewayProcess, *, stream: bool
) -> None:
    for question, place, stop in stop_cases(engine):
        text, finish, _ = own(engine, question, stop=[stop], max_tokens=ANSWER_TOKENS)
        reply = ask_guided(gateway, "m10", question, stream=stream, stop=[stop], max_tokens=ANSWER_TOKENS)
        assert (reply.text.rstrip(), reply.finish) == (text.rstrip(), finish), f"stop {stop!r} {place}"


@pytest.mark.contract("exact usage")
@FORMS
def test_usage_at_a_limit_is_the_engines_own(engine: RunningEngine, gateway: GatewayProcess, *, stream: bool) -> None:
    for question in QUESTIONS:
        for m, max_tokens in ((10, 17), (20, 31), (40, ANSWER_TOKENS)):
            _, finish, usage = own(engine, question, max_tokens=max_tokens)
            reply = ask_guided(gateway, f"m{m}", question, stream=stream, max_tokens=max_tokens)
            assert_counts(reply, usage, f"m={m}, max_tokens={max_tokens}")
            assert reply.finish == finish


@pytest.mark.contract("exact usage")
@FORMS
def test_usage_at_a_stop_string_is_the_engines_own(
    engine: RunningEngine, gateway: GatewayProcess, *, stream: bool
) -> None:
    for question, place, stop in stop_cases(engine):
        _, _, usage = own(engine, question, stop=[stop], max_tokens=ANSWER_TOKENS)
        reply = ask_guided(gateway, "m10", question, stream=stream, stop=[stop], max_tokens=ANSWER_TOKENS)
        if engine.engine.protocol == "tgi" and usage["completion_tokens"] == ANSWER_TOKENS and reply.usage is not None:
            # TGI overlooks a stop string that ends within a token. A call of the gateway may end earlier.
            usage = {**usage, "completion_tokens": min(reply.usage["completion_tokens"], ANSWER_TOKENS)}
        assert_counts(reply, usage, f"stop {stop!r} {place}")


def assert_counts(reply: Reply, usage: Json, case: str) -> None:
    assert reply.usage is not None, f"{case}: no usage"
    for name in ("prompt_tokens", "completion_tokens"):
        assert reply.usage[name] == usage[name], f"{case}: {name} {reply.usage[name]} instead of {usage[name]}"


@pytest.mark.contract("error mapping")
@pytest.mark.parametrize("route", ["chat-student", "m10"])
@FORMS
def test_a_prompt_that_is_too_long_is_the_callers_error(gateway: GatewayProcess, route: str, *, stream: bool) -> None:
    reply = ask(gateway, route, "word\n" * 3000, stream=stream, max_tokens=20)
    assert reply.status == 400, f"HTTP {reply.status}: {str(reply.chunks[0])[:100]}"
    assert reply.error is not None
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.contract("constraints")
@FORMS
def test_a_json_schema_holds(gateway: GatewayProcess, *, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    reply = ask(gateway, "m10", "Name a city.", stream=stream, response_format=form, max_tokens=200)
    assert reply.status == 200, reply.chunks
    assert isinstance(json.loads(reply.text)["city"], str)


def constrained(engine: RunningEngine) -> Iterator[tuple[str, Json]]:
    """Yield constraints that change an answer, or its end, before, at and behind the seam of 10 tokens."""
    usual = own(engine, SHORT_QUESTION, max_tokens=200)[2]["completion_tokens"]
    for more in (1, 12):
        yield SHORT_QUESTION, {"min_tokens": usual + more, "max_tokens": usual + 40}
    for question in QUESTIONS[:2]:
        limit = {"max_tokens": ANSWER_TOKENS}
        words = own(engine, question, **limit)[0].split()
        seam = len(own(engine, question, max_tokens=10)[0].split())
        for begin, end in ((2, 3), (seam - 1, seam), (seam + 3, seam + 4), (seam - 2, seam), (seam - 1, seam + 1)):
            yield question, {**limit, "bad_words": [" ".join(words[begin:end])]}
        yield question, {**limit, "ignore_eos": True}
        if engine.engine.load != "vllm metrics":
            continue
        ids = engine.direct(**chat(question, **limit, return_token_ids=True))["choices"][0]["token_ids"]
        for at in (2, 9, 20):
            yield question, {**limit, "logit_bias": {str(ids[at]): -100}}
            yield question, {**limit, "stop_token_ids": [ids[at]]}
            yield question, {**limit, "stop_token_ids": [ids[at]], "min_tokens": 15}
        yield question, {**limit, "allowed_token_ids": ids[:15]}


@pytest.mark.contract("constraints")
@FORMS
def test_constraints_hold_on_both_sides_of_the_seam(
    engine: RunningEngine, gateway: GatewayProcess, *, stream: bool
) -> None:
    """vLLM applies them to the guidance, too. Other engines get no guidance beside them."""
    for question, more in constrained(engine):
        text, finish, usage = own(engine, question, **more)
        reply = ask(gateway, "m10", question, stream=stream, **more)
        assert reply.status == 200, reply.chunks
        assert (reply.text.rstrip(), reply.finish) == (text.rstrip(), finish), more
        assert_counts(reply, usage, str(more))
        assert "placement" not in reply.facts, reply.facts
        reasons = (
            {None, "guidance_empty"} if engine.engine.load == "vllm metrics" else {"token_constraint", "stop_condition"}
        )
        assert reply.facts.get("unguided") in reasons, (more, reply.facts)


@pytest.mark.contract("constraints")
def test_requests_with_different_constraints_share_no_guidance(engine: RunningEngine, gateway: GatewayProcess) -> None:
    """They ask the same question at the same time."""
    words = own(engine, QUESTIONS[0], max_tokens=ANSWER_TOKENS)[0].split()
    cases: list[Json] = [{}, *({"bad_words": [word]} for word in words[2:5])]
    limit = {"max_tokens": ANSWER_TOKENS}
    with ThreadPoolExecutor(len(cases)) as pool:
        calls = [pool.submit(ask, gateway, "m10", QUESTIONS[0], **limit, **case) for case in cases]
        replies = [call.result() for call in calls]
    for case, reply in zip(cases, replies, strict=True):
        expected = own(engine, QUESTIONS[0], **limit, **case)[0]
        assert not differs(expected, reply.text), (case, expected, reply.text)


@pytest.mark.contract("tools")
@FORMS
def test_a_forced_tool_call_arrives(engine: RunningEngine, gateway: GatewayProcess, *, stream: bool) -> None:
    question = "What is the weather in Graz?"
    more = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 200}
    own_calls = engine.direct(**chat(question, **more))["choices"][0]["message"].get("tool_calls")
    if not own_calls:
        pytest.skip("not supported: the engine itself returns no tool call")
    reply = ask(gateway, "m10", question, stream=stream, **more)
    assert reply.status == 200, reply.chunks
    functions = [call["function"] for message in reply.messages for call in message.get("tool_calls") or ()]
    assert functions, f"no tool call, but {reply.text[:80]!r}"
    name = next(function["name"] for function in functions if function.get("name"))
    arguments = "".join(function.get("arguments") or "" for function in functions)
    expected = own_calls[0]["function"]
    assert (name, json.loads(arguments)) == (expected["name"], json.loads(expected["arguments"]))


@pytest.fixture(scope="session")
def long_call_s(engine: RunningEngine) -> float:
    """Estimated seconds of a call with `LONG` whose caller stays."""
    began = time.monotonic()
    usage = engine.direct(**chat(STORY, **LONG | {"max_tokens": 60}))["usage"]
    return (time.monotonic() - began) / usage["completion_tokens"] * LONG["max_tokens"]


@pytest.mark.contract("disconnect")
@FORMS
def test_an_engine_stops_when_the_caller_leaves(
    engine: RunningEngine, gateway: GatewayProcess, long_call_s: float, *, stream: bool
) -> None:
    if long_call_s < LEAVE_S + 2 * STOP_LIMIT_S:
        pytest.skip(f"not tested: the call ends by itself after {long_call_s:.0f} s")
    if (why := engine.unobservable()) is not None:
        pytest.skip(f"not tested: {why}")
    if generates_after_disconnect(engine, gateway.url, "m10", stream=stream):
        assert wait_until(lambda: not engine.is_generating(), CALL_LIMIT_S)
        form = "SSE" if stream else "JSON"
        if generates_after_disconnect(engine, engine.url, engine.model, stream=stream):
            assert wait_until(lambda: not engine.is_generating(), CALL_LIMIT_S)
            pytest.skip(f"not supported: without the gateway, too, the engine finishes {form} calls without a client")
        pytest.fail(f"{form}: the engine generates {STOP_LIMIT_S:g} s after the caller left")


def generates_after_disconnect(engine: RunningEngine, url: str, name: str, *, stream: bool) -> bool:
    """Leave a long call, and return whether the engine still generates after `STOP_LIMIT_S`."""
    body = chat(STORY, model=name, temperature=0, stream=stream, **LONG)
    with httpx.Client(base_url=url, headers=HEADERS, timeout=CALL_LIMIT_S) as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                texts = (chunk for chunk in events(response) if chunk["choices"][0]["delta"].get("content"))
                for _ in range(15):  # beyond the guidance
                    next(texts)
                assert engine.is_generating()
        else:
            with ThreadPoolExecutor(1) as pool:
                busy = pool.submit(wait_until, engine.is_generating, 2.0)
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/chat/completions", json=body, timeout=LEAVE_S)
            assert busy.result()
    return not wait_until(lambda: not engine.is_generating(), STOP_LIMIT_S)


@pytest.mark.contract("kill and restart")
def test_a_restarted_engine_guides_again(engine: RunningEngine, gateway: GatewayProcess) -> None:
    if engine.is_external:
        pytest.skip("not tested: the suite cannot restart a server that runs elsewhere")
    body = chat(STORY, model="m10", temperature=0, stream=True, **LONG)
    with (
        httpx.Client(base_url=gateway.url, headers=HEADERS, timeout=CALL_LIMIT_S) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        chunks = events(response)
        next(chunks)
        engine.kill()
        rest = list(chunks)
    assert "error" in rest[-1], f"the stream of a killed engine ends without an error: {rest[-1]}"
    reply = ask(gateway, "m10", QUESTIONS[0], max_tokens=20)
    assert reply.status in {502, 503}, reply.status
    engine.start()
    wait_until_probed(gateway.admin_url)
    reply = ask_guided(gateway, "m10", QUESTIONS[0], max_tokens=ANSWER_TOKENS)
    assert not differs(own(engine, QUESTIONS[0], max_tokens=ANSWER_TOKENS)[0], reply.text)
