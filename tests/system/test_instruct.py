"""A student that is only instructed to begin with the opening: it repeats the opening, or answers by itself."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from tests.fakes import FakeEngine, begin_events, chunk, event, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

OPENING = "The answer to your question begins"
KEPT = "The answer to your question"
_numbers = itertools.count()


@dataclass
class World:
    teacher: FakeEngine
    student: FakeEngine
    gateway: GatewayProcess

    def ask(self, *, stream: bool, **more: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Return the text, the usage in the reply, and the receipt."""
        body = {"model": "chat", "messages": [{"role": "user", "content": f"What is {next(_numbers)}?"}]} | more
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = httpx.post(f"{self.gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=20)
        receipt = self.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
        if not stream:
            whole = answer.json()
            return whole["choices"][0]["message"]["content"], whole["usage"], receipt
        parts = [orjson.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        text = "".join(choice["delta"].get("content") or "" for part in parts for choice in part.get("choices", ()))
        return text, parts[-1].get("usage"), receipt


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says(OPENING, "length")).running())
        student = stack.enter_context(FakeEngine(says("x")).running())
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("instruct"),
                redis_url=redis_url,
                redis={"prefix": "instruct"},
                models=[
                    model("big", "tgi", teacher.url),
                    model("small", "openai", f"{student.url}/v1", continuation="instruct"),
                ],
                routes=[guided(tokens=6)],
            )
        )
        wait_until_looked_at(gateway.admin_url)
        yield World(teacher, student, gateway)


@pytest.mark.long
@pytest.mark.parametrize("stream", [False, True])
def test_a_student_that_obeys_gives_one_answer(world: World, stream: bool) -> None:
    """The student's tokens include the repeated opening; the repetition does not reduce the token limit."""
    world.student.behave = says(KEPT + " so and so.")
    text, usage, receipt = world.ask(stream=stream, max_tokens=50)
    assert text == KEPT + " so and so."
    sent = world.student.requests[-1]
    assert (sent["max_tokens"], sent["messages"][-1]["role"]) == (50, "user")
    assert KEPT in sent["messages"][-1]["content"]
    assert (receipt["mode"], receipt["unguided"]) == ("guided", None)
    assert usage["completion_tokens"] == receipt["student"]["output_tokens"] == 8


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("student_text", ["Something else.", "The answer", "The answer is four."])
def test_a_student_that_begins_otherwise_has_answered_alone(world: World, student_text: str, stream: bool) -> None:
    """The answer has one beginning. The receipt states that the guidance was unused, and its cost."""
    world.student.behave = says(student_text)
    text, usage, receipt = world.ask(stream=stream)
    assert text == student_text
    assert (receipt["mode"], receipt["unguided"]) == ("student", "student_started_anew")
    assert usage["completion_tokens"] == receipt["student"]["output_tokens"]
    assert receipt["teacher"]["output_tokens"] > 0


def test_a_student_that_began_otherwise_and_broke_off_was_not_guided(world: World) -> None:
    """The receipt agrees with the stream."""

    async def behave(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        await response.write(event(chunk({"content": "Something else."})))
        await response.write(event({"error": {"message": "out of memory"}}))
        return response

    world.student.behave = behave
    text, _, receipt = world.ask(stream=True)
    assert text == "Something else."
    assert (receipt["status"], receipt["mode"], receipt["unguided"]) == (
        "engine_failed", "student", "student_started_anew",
    )  # fmt: skip
