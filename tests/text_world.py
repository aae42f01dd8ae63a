"""A gateway between fake engines, for tests of raw prompts."""

from __future__ import annotations

import itertools
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import orjson

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, TEACHER_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADERS = {"Authorization": f"Bearer {KEY}"}
TEACHERS = " Paris is the capital of Fran"
KEPT = " Paris is the capital of"
KEPT_TOKENS = 5
REST = " France."
_numbers = itertools.count()


def few_shot() -> str:
    """Return a new prompt as in the paper, section 4.1: examples, then the question.

    No cached guidance exists for it.
    """
    return f"Q: What is the capital of Spain?\nA: Madrid.\n\nQ: What is the capital of land {next(_numbers)}?\nA:"


@dataclass
class Streamed:
    """An event stream, parsed."""

    headers: httpx.Headers
    parts: list[dict[str, Any]]
    done: bool

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [choice for part in self.parts for choice in part.get("choices", ())]

    @property
    def pieces(self) -> list[str]:
        return [choice["text"] for choice in self.choices if choice["text"]]

    @property
    def finishes(self) -> list[str]:
        return [choice["finish_reason"] for choice in self.choices if choice["finish_reason"]]

    def text(self, index: int = 0) -> str:
        return "".join(choice["text"] for choice in self.choices if choice["index"] == index)


@dataclass
class World:
    teacher: FakeEngine
    student: FakeEngine
    spare: FakeEngine
    gateway: GatewayProcess

    def ask(self, route: str = "few", **body: Any) -> httpx.Response:
        body = {"model": route, "prompt": few_shot()} | body
        return httpx.post(f"{self.gateway.url}/v1/completions", headers=HEADERS, json=body, timeout=20)

    def answer(self, route: str = "few", **body: Any) -> dict[str, Any]:
        reply = self.ask(route, **body)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def stream(self, route: str = "few", **body: Any) -> Streamed:
        reply = self.ask(route, stream=True, **body)
        assert reply.status_code == 200, reply.text
        events = [line.removeprefix("data: ") for line in reply.text.split("\n") if line]
        done = events[-1] == "[DONE]"
        return Streamed(reply.headers, [orjson.loads(event) for event in (events[:-1] if done else events)], done)

    def receipt(self, reply: httpx.Response | Streamed) -> dict[str, Any]:
        return self.gateway.wait_for_log("request", id=reply.headers["x-request-id"])

    def reset(self) -> None:
        """Restore each engine's behavior and clear its received requests."""
        self.teacher.behave, self.student.behave = says(TEACHERS, "length"), says(REST)
        self.spare.behave = says(REST)
        for engine in (self.teacher, self.student, self.spare):
            engine.requests.clear()
            engine.paths.clear()


@contextmanager
def running_world(folder: Path, redis_url: str) -> Iterator[World]:
    with ExitStack() as stack:
        teacher, student, spare = (stack.enter_context(FakeEngine(says("")).running()) for _ in range(3))
        calm = {"breaker": {"failures": 1000}}
        gateway = stack.enter_context(
            running_gateway(
                folder,
                redis_url=redis_url,
                redis={"prefix": folder.name},
                models=[
                    model("big", "tgi", teacher.url, **calm),
                    model("big-openai", "openai", f"{teacher.url}/v1", model="x", continuation="none", **calm),
                    # Engines without continuation of assistant messages continue raw prompts.
                    model("small", "openai", f"{student.url}/v1", model="x", continuation="none", **calm),
                    model("spare", "openai", f"{spare.url}/v1", model="x", continuation="none", **calm),
                    model("small-tgi", "tgi", spare.url, **calm),
                    model("lite", "litellm", f"{spare.url}/v1", model="openai/x", api_key="env:HOME",
                          continuation="none", **calm),
                ],
                routes=[
                    guided("few", tokens=6),
                    guided("whole", tokens=6, stream=False),
                    guided("openai", teacher="big-openai", tokens=6),
                    guided("concise", tokens=6, projection="concise"),
                    guided("hint", tokens=6, projection="hint"),
                    guided("context", tokens=6, placement="context"),
                    guided("must", tokens=6, on_failure="reject"),
                    guided("tgi", student="small-tgi", tokens=6),
                    guided("lite", student="lite", tokens=6),
                    _with_students("two", "small", "spare"),
                    _with_students("mixed", "lite", "small"),
                    STUDENT_ONLY,
                    TEACHER_ONLY,
                    {"model": "vectors", "mode": "embeddings", "student": "small"},
                ],
            )
        )  # fmt: skip
        wait_until_looked_at(gateway.admin_url)
        yield World(teacher, student, spare, gateway)


def _with_students(name: str, *students: str) -> dict[str, Any]:
    route = guided(name, tokens=6)
    del route["student"]
    return route | {"students": list(students)}
