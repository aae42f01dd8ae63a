"""Exact token counts with vLLM as teacher and student: limits, usage and receipts."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at
from tests.vllm_engine import TEMPLATE_TOKENS, TOKENS, VllmEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count()
PROMPT_TOKENS = TEMPLATE_TOKENS + 4  # of each question
ANSWER = "".join(TOKENS)


@dataclass
class Answered:
    text: str
    finish: str
    usage: dict[str, Any]
    headers: httpx.Headers


@dataclass
class World:
    engine: VllmEngine
    gateway: GatewayProcess

    def ask(self, route: str, *, stream: bool, **body: Any) -> Answered:
        """Ask a new question, for which no guidance is cached."""
        question = {"role": "user", "content": f"Why blue, number {next(_numbers)}?"}
        sent: dict[str, Any] = {"model": route, "messages": [question], "temperature": 0}
        if stream:
            sent |= {"stream": True, "stream_options": {"include_usage": True}}
        url = f"{self.gateway.url}/v1/chat/completions"
        reply = httpx.post(url, headers={"Authorization": f"Bearer {KEY}"}, json=sent | body, timeout=20)
        assert reply.status_code == 200, reply.text
        if not stream:
            answer = reply.json()
            choice = answer["choices"][0]
            return Answered(choice["message"]["content"], choice["finish_reason"], answer["usage"], reply.headers)
        events = [orjson.loads(line[6:]) for line in reply.text.split("\n") if line.startswith("data: {")]
        choices = [choice for one in events for choice in one["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        return Answered(text, choices[-1]["finish_reason"], events[-1]["usage"], reply.headers)

    def receipt(self, answer: Answered) -> dict[str, Any]:
        return self.gateway.wait_for_log("request", id=answer.headers["x-request-id"])


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("exact-counts")
    engine = VllmEngine()
    with ExitStack() as stack:
        stack.enter_context(engine.running())
        names = {"model": "fake", "continuation": "vllm"}
        gateway = stack.enter_context(
            running_gateway(
                folder,
                redis_url=redis_url,
                redis={"prefix": folder.name},
                models=[
                    model("big", "openai", f"{engine.url}/v1", **names),
                    model("small", "openai", f"{engine.url}/v1", **names),
                ],
                routes=[guided("chat", tokens=8), guided("whole", tokens=40), STUDENT_ONLY],
            )
        )
        wait_until_looked_at(gateway.admin_url)
        yield World(engine, gateway)


@pytest.fixture
def world(running: World) -> World:
    running.engine.answer, running.engine.per_event = TOKENS, 1
    running.engine.requests.clear()
    running.engine.paths.clear()
    return running


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["chat", "whole"])
@pytest.mark.parametrize("lead", [" ", "\n\n"])
def test_the_whitespace_before_an_answer_is_shown(world: World, route: str, lead: str, *, stream: bool) -> None:
    """The teacher alone would show it. The student does not get it, since a chat template may write its own."""
    world.engine.answer = (lead, *TOKENS)
    answer = world.ask(route, stream=stream, max_tokens=60)
    assert answer.text == lead + ANSWER
    assert answer.finish == "stop"
    if route == "chat":
        assert world.engine.requests[-1]["messages"][-1]["content"] == "It is so, as a"


def kept_tokens(world: World) -> int:
    """Return the tokens of the guidance in the student's request, as vLLM counts them."""
    return len(world.engine.begun(world.engine.requests[-1]["messages"][-1]["content"]))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("per_event", [1, 3])
def test_the_student_gets_the_rest_of_the_limit_and_usage_is_exact(
    world: World, per_event: int, *, stream: bool
) -> None:
    """The answer is the same as that of the engine alone: 20 tokens in all."""
    world.engine.per_event = per_event
    answer = world.ask("chat", stream=stream, max_tokens=20)
    kept = kept_tokens(world)
    assert (answer.text, answer.finish) == ("".join(TOKENS[:20]), "length")
    assert world.engine.requests[-1]["max_tokens"] == 20 - kept
    assert (answer.usage["prompt_tokens"], answer.usage["completion_tokens"]) == (PROMPT_TOKENS, 20)
    facts = world.receipt(answer)["guidance"]
    assert facts["kept_tokens"] == kept
    assert "kept_estimated" not in facts


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_the_teacher_alone_has_its_usage(world: World, *, stream: bool) -> None:
    answer = world.ask("whole", stream=stream, max_tokens=60)
    assert (answer.usage["prompt_tokens"], answer.usage["completion_tokens"]) == (PROMPT_TOKENS, len(TOKENS) + 1)
    assert "kept_estimated" not in world.receipt(answer)["guidance"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("per_event", [1, 4])
def test_a_stop_string_across_the_seam_ends_an_answer_with_its_count(
    world: World, per_event: int, *, stream: bool
) -> None:
    """The engine alone would count the token that completes the stop string, and none after it."""
    world.engine.per_event = per_event
    answer = world.ask("chat", stream=stream, max_tokens=60, stop=["rule incontrovertibly be"])
    assert (answer.text, answer.finish) == ("It is so, as a ", "stop")
    sent = world.engine.requests[-1]
    assert sent["messages"][-1]["content"] == "It is so, as a rule"
    # An event of several tokens has the count at its end.
    assert answer.usage["completion_tokens"] == kept_tokens(world) + (2 if per_event == 1 else 4)
    assert answer.usage["prompt_tokens"] == PROMPT_TOKENS
    assert sent["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert "stop" not in sent


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_behind_the_seam_is_found_although_another_begins_before(world: World, *, stream: bool) -> None:
    answer = world.ask("chat", stream=stream, max_tokens=60, stop=["rule of", " because"])
    assert (answer.text, answer.finish) == ("It is so, as a rule incontrovertibly", "stop")
    assert answer.usage["completion_tokens"] == kept_tokens(world) + 3


def test_other_streams_have_no_running_counts(world: World) -> None:
    """A count in each event makes it differ from the event before."""
    world.ask("chat", stream=True, max_tokens=60)
    assert world.engine.requests[-1]["stream_options"] == {"include_usage": True}
    world.ask("chat-student", stream=True, max_tokens=60, stop=["rule"])
    assert world.engine.requests[-1]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("stream", [False, True])
def test_the_callers_template_arguments_count_in_its_prompt(world: World, *, stream: bool) -> None:
    """The teacher does not get them, so that its count is not that of the caller's prompt."""
    answer = world.ask("chat", stream=stream, max_tokens=20, chat_template_kwargs={"enable_thinking": False})
    assert answer.usage["prompt_tokens"] == PROMPT_TOKENS + TEMPLATE_TOKENS
    assert answer.usage["completion_tokens"] == 20
