"""A student that does with the opening what it was not asked to."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

SHOWN = "The answer to your question"
REST = " is here and ends there."
_numbers = itertools.count()


@dataclass
class World:
    """A gateway between a teacher that opens answers and a student that does as it is told."""

    student: FakeEngine
    gateway: GatewayProcess

    def ask(self, route: str = "chat", **more: Any) -> httpx.Response:
        question = f"What is number {next(_numbers)}?"  # one that nobody asked before: guidance for those is kept
        return httpx.post(
            f"{self.gateway.url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {KEY}"},
            json={"model": route, "messages": [{"role": "user", "content": question}]} | more,
            timeout=10,
        )

    def receipt(self, answer: httpx.Response) -> dict[str, Any]:
        return self.gateway.wait_for_log("request", id=answer.headers["x-request-id"])


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says(SHOWN + " begins", "length")).running())
        student = stack.enter_context(FakeEngine(says(REST)).running())
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("finishing"),
                redis_url=redis_url,
                redis={"prefix": "finishing"},
                models=[
                    model("big", "tgi", teacher.url),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
                ],
                routes=[guided(tokens=6), guided("chat-context", tokens=6, placement="context")],
            )
        )
        yield World(student, gateway)


@pytest.fixture
def world(running: World) -> World:
    running.student.behave = says(REST)
    running.student.asked.clear()
    return running


def events(answer: httpx.Response) -> list[Any]:
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [orjson.loads(line) for line in data if line != "[DONE]"]


def text_of(answer: httpx.Response) -> str:
    if answer.headers["Content-Type"].startswith("application/json"):
        return str(answer.json()["choices"][0]["message"]["content"])
    choices = [choice for each in events(answer) for choice in each["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def repeats_when_asked(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """As vLLM and llama.cpp take `echo`."""
    last = body["messages"][-1]
    repeated = last["content"] if body.get("echo") is True and last["role"] == "assistant" else ""
    return await says(repeated + REST)(request, body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [True, False, None, "yes"])
def test_an_echo_that_the_caller_asks_for_does_not_show_the_opening_twice(
    world: World, stream: bool, echo: object
) -> None:
    """Its message is the gateway's, not the caller's; `echo: false` in config.yaml is what it does unasked."""
    world.student.behave = repeats_when_asked
    answer = world.ask(stream=stream, echo=echo)
    assert text_of(answer) == SHOWN + REST
    assert world.student.asked[0]["echo"] == echo
