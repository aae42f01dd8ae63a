"""A gateway that compares its guided answers, and engines that recognize requests for an opening."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
from aiohttp import web

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, GatewayProcess, model, running_gateway, sha256
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import Handler

CHATS = "/v1/chat/completions"
ADMIN_KEY = "admin-key-of-the-guard"
WORDS = "One two three four"  # what the teacher opens with, of which the last word is cut
GUIDED: dict[str, Any] = {
    "mode": "guided",
    "teacher": "big",
    "student": "small",
    "retries": {"num_retries": 0},
    "guidance": {"tokens": 6, "deadline": "20s", "cache_ttl": "0s"},
}
DIRECT = GUIDED["guidance"] | {"projection": "direct"}
ALL = {"sample": 1, "max_budget": 5, "max_in_flight": 8}
TENANTS = {
    "secrets": {"log_content": True, "keys": [{"id": "only", "sha256": sha256("secrets")}]},
    "limited": {"limits": {"rpm_limit": 2}, "keys": [{"id": "only", "sha256": sha256("limited")}]},
    "softly": {
        "budget": {"max_budget": 1, "soft_budget": 0.000001, "budget_duration": "1d"},
        "keys": [{"id": "only", "sha256": sha256("softly")}],
    },
}


def is_opening(body: dict[str, Any]) -> bool:
    return 6 in (body.get("max_tokens"), body.get("parameters", {}).get("max_new_tokens"))


def opens(alone: str, finish_reason: str = "stop") -> Handler:
    """Return a teacher: it replies with an opening if a request has the token limit of guidance, else with `alone`."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (says(WORDS, "length") if is_opening(body) else says(alone, finish_reason))(request, body)

    return behave


def goes_on(guided: str, alone: str) -> Handler:
    """Return a student: it replies `guided` if the request holds an opening, else `alone`."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        opened = "messages" in body and body["messages"][-1]["role"] == "assistant"
        opened = opened or str(body.get("prompt", "")).endswith("three")
        return await says(guided if opened else alone)(request, body)

    return behave


async def fails(_: web.Request, __: dict[str, Any]) -> web.Response:
    return web.json_response({"error": {"message": "no"}}, status=500)


class Guarded:
    """A gateway that samples the quality of guided answers, and the readers of its metrics, log and admin API."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway

    def ask(self, route: str = "chat", key: str = KEY, path: str = CHATS, **more: Any) -> httpx.Response:
        prompt = {"messages": [{"role": "user", "content": "my s3cret"}]} if path == CHATS else {"prompt": "my s3cret"}
        headers = {"Authorization": f"Bearer {key}"}
        body = {"model": route, "max_tokens": 50} | prompt | more
        return httpx.post(self.gateway.url + path, headers=headers, json=body, timeout=30)

    def run_of(self, answer: httpx.Response, name: str) -> dict[str, Any]:
        """Return the log line of the receipt of one sampled run of a request."""
        return self.gateway.wait_for_log("request", id=f"{answer.headers['x-request-id']}-shadow-{name}")

    def runs_beside(self, answer: httpx.Response) -> list[str]:
        request_id = answer.headers["x-request-id"]
        found = [
            line for line in self.gateway.log if line.get("shadow_of") == request_id and line["event"] == "request"
        ]
        return [line["id"].removeprefix(f"{request_id}-shadow-") for line in found]

    def counted(self) -> dict[str, float]:
        text = self.metrics()
        return {
            result: float(number)
            for result, number in re.findall(r'gkt_quality_samples_total\{result="(\w+)"\} (\S+)', text)
        }

    def wait_until_counted(self, result: str, number: float) -> None:
        give_up = time.monotonic() + 20
        while self.counted().get(result, 0) < number:
            assert time.monotonic() < give_up, self.counted()
            time.sleep(0.02)

    def compared(self, result: str, *arguments: Any, **more: Any) -> httpx.Response:
        """Make a request; return its answer when its comparison has ended with this result."""
        before = self.counted()[result]
        answer = self.ask(*arguments, **more)
        self.wait_until_counted(result, before + 1)
        return answer

    def quality(self, **query: Any) -> dict[str, Any]:
        """Return the reply of /quality. Retry while the gateway replies 503 because it imports its database library."""
        url, headers = f"{self.gateway.admin_url}/quality", {"Authorization": f"Bearer {ADMIN_KEY}"}
        give_up = time.monotonic() + 20
        while (reply := httpx.get(url, headers=headers, params=query, timeout=30)).status_code == 503:
            assert time.monotonic() < give_up, reply.text
            time.sleep(0.05)
        found: dict[str, Any] = reply.json()
        return found

    def metrics(self) -> str:
        """The metrics."""
        return httpx.get(f"{self.gateway.admin_url}/metrics", timeout=30).text

    def rows(self, route: str) -> dict[str, dict[str, Any]]:
        """Return the rows of a route by length, when a usage worker has written all comparisons that were made."""
        give_up = time.monotonic() + 20
        made = self.counted().get("made", 0)
        while True:
            found = self.quality()["rows"]
            if sum(row["samples"] for row in found if row["length"] == "all") >= made:
                break
            assert time.monotonic() < give_up, (made, found)
            time.sleep(0.05)
        return {row["length"]: row for row in found if row["route"] == route}


class World(Guarded):
    """A guarded gateway between a teacher, a student and a judge."""

    def __init__(self, engines: list[FakeEngine], gateway: GatewayProcess) -> None:
        super().__init__(gateway)
        self.teacher, self.student, self.judge = engines


class running_world:  # noqa: N801  used as the function that it is
    def __init__(self, folder: Path, redis_url: str, redis: dict[str, Any] | None = None, **server: Any) -> None:
        self._folder, self._redis_url, self._server = folder, redis_url, server
        self._redis = redis or {}
        self._stack = ExitStack()

    def __enter__(self) -> World:
        engines = [self._stack.enter_context(FakeEngine(says("0.75")).running()) for _ in range(3)]
        teacher, student, judge = engines
        teacher.behave, student.behave = opens("One two three four five"), goes_on(" four five", "One six")
        projections = self._folder / "policies" / "projections"
        projections.mkdir(parents=True, exist_ok=True)
        (projections / "direct.yaml").write_text("keep: {skip: english, skip_tokens: 20}\n")
        gateway = self._stack.enter_context(
            running_gateway(
                self._folder,
                redis_url=self._redis_url,
                usage={"run": "host"},
                redis={"prefix": self._folder.name.replace("-", "_")[:32], "timeout": "5s"} | self._redis,
                admin={"key": "env:GUARD_ADMIN_KEY"},
                environ={"GUARD_ADMIN_KEY": ADMIN_KEY},
                server=self._server,
                tenants=TENANTS,
                models=[
                    model("big", "tgi", teacher.url, breaker={"failures": 1000}),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False,
                          breaker={"failures": 1000}),
                    model("grader", "openai", f"{judge.url}/v1", continuation="none", breaker={"failures": 1000}),
                ],
                routes=[
                    GUIDED | {"model": "chat", "quality": ALL},
                    GUIDED | {"model": "chat-short", "shadow": "100%"},
                    GUIDED | {"model": "chat-none"},
                    GUIDED | {"model": "chat-rambling", "quality": ALL},
                    GUIDED | {"model": "chat-numeric", "quality": ALL | {"compare": "numeric"}},
                    GUIDED | {"model": "chat-judged", "quality": ALL | {"compare": "judge", "judge": "grader"}},
                    GUIDED | {"model": "chat-poor", "quality": ALL | {"max_budget": 0.00065}},
                    GUIDED | {"model": "chat-one", "quality": ALL | {"max_in_flight": 1}},
                    GUIDED | {"model": "chat-direct", "quality": ALL, "guidance": DIRECT},
                ],
            )
        )  # fmt: skip
        wait_until_looked_at(gateway.admin_url)
        return World(engines, gateway)

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Held:
    """An engine that delays all answers except openings until `free` is set."""

    def __init__(self, answer: Handler) -> None:
        self._answer = answer
        self.free = threading.Event()
        self.holds = threading.Event()

    async def __call__(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not is_opening(body):
            self.holds.set()
            while not self.free.is_set():
                await asyncio.sleep(0.01)
        return await self._answer(request, body)
