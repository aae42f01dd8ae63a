"""Mode shadow: a request is answered with guidance in the background. The shadow has a receipt, and nobody sees it."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from contextlib import ExitStack
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web

from gateway.accounting.answer_length import MIN_ANSWERS
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, OTHER_KEY, GatewayProcess, model, running_gateway, sha256
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fakes import Handler

OPENING = "The answer to your question begins"
SHADOW = {"model": "chat", "mode": "shadow", "teacher": "big", "student": "small", "retries": {"num_retries": 0}}
RULE = {"tokens": 6, "deadline": "20s", "cache_ttl": "0s"}
# Tenants and keys are named after their restriction; the content of one is logged.
TIGHT = {
    "secrets": {"log_content": True, "keys": [{"id": "only", "sha256": sha256("secrets")}]},
    "limited": {"limits": {"rpm_limit": 3}, "keys": [{"id": "only", "sha256": sha256("limited")}]},
    "budgeted": {
        "budget": {"max_budget": 1, "soft_budget": 0.000001, "budget_duration": "1d", "on_soft": "student_only"},
        "keys": [{"id": "only", "sha256": sha256("budgeted")}],
    },
}


class World:
    """A gateway before a teacher and a student."""

    def __init__(self, teacher: FakeEngine, student: FakeEngine, gateway: GatewayProcess) -> None:
        self.teacher, self.student, self.gateway = teacher, student, gateway

    def ask(self, route: str = "chat", key: str = KEY, **more: Any) -> httpx.Response:
        body = {"model": route, "messages": [{"role": "user", "content": "my s3cret"}]} | more
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{self.gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=30)

    def shadow_of(self, answer: httpx.Response) -> dict[str, Any]:
        """Return the log line of the shadow's settled receipt."""
        return self.gateway.wait_for_log("request", id=answer.headers["x-request-id"] + "-shadow")

    def counted(self) -> dict[str, float]:
        text = httpx.get(f"{self.gateway.admin_url}/metrics").text
        found = re.findall(r'gkt_shadows_total\{result="(\w+)"\} (\S+)', text)
        return {result: float(number) for result, number in found}

    def wait_until_counted(self, result: str, number: float) -> None:
        give_up = time.monotonic() + 10
        while self.counted().get(result, 0) < number:
            assert time.monotonic() < give_up, self.counted()
            time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("shadows"), redis_url) as world:
        yield world


@pytest.fixture
def world(running: World) -> World:
    """Reset the engines: both answer."""
    running.teacher.behave, running.student.behave = says(OPENING, "length"), says(" and ends.")
    running.teacher.requests.clear()
    running.student.requests.clear()
    return running


class running_world:  # noqa: N801  used as the function that it is
    def __init__(self, folder: Path, redis_url: str, **server: Any) -> None:
        self._folder, self._redis_url, self._server = folder, redis_url, server
        self._stack = ExitStack()

    def __enter__(self) -> World:
        teacher, student = (self._stack.enter_context(FakeEngine(says(OPENING, "length")).running()) for _ in "12")
        gateway = self._stack.enter_context(
            running_gateway(
                self._folder,
                redis_url=self._redis_url,
                redis={"prefix": self._folder.name.replace("-", "_")[:32], "timeout": "5s"},
                server=self._server,
                tenants=TIGHT,
                models=[
                    model("big", "tgi", teacher.url, breaker={"failures": 1000}),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
                ],
                routes=[
                    SHADOW | {"guidance": RULE},
                    SHADOW | {"model": "chat-s", "shadow": {"serves": "student"}, "guidance": RULE},
                    SHADOW | {"model": "chat-measured", "guidance": RULE},
                    SHADOW | {"model": "chat-none", "shadow": {"sample": 0}, "guidance": RULE},
                ],
            )
        )
        wait_until_looked_at(gateway.admin_url)
        return World(teacher, student, gateway)

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("route", "mode"), [("chat", "teacher"), ("chat-s", "student")])
def test_the_caller_is_answered_by_one_engine_and_the_guided_answer_has_its_own_receipt(
    world: World, route: str, mode: str, *, stream: bool
) -> None:
    answer = world.ask(route, stream=stream, **({"stream_options": {"include_usage": True}} if stream else {}))
    served = world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
    shadow = world.shadow_of(answer)
    assert answer.headers["x-gkt-mode"] == served["mode"] == mode
    assert (served["shadow_of"], served["guidance"]) == (None, None)
    assert ("ends" in answer.text) == (mode == "student"), "of the shadow's words the caller sees none"

    assert (shadow["mode"], shadow["status"], shadow["shadow_of"]) == ("shadow", "ok", served["id"])
    assert (shadow["tenant"], shadow["key"], shadow["route"]) == ("acme", "only", route)
    assert (shadow["stream"], shadow["finish_reason"], shadow["unguided"]) == (False, "stop", None)
    assert shadow["guidance"]["kept_tokens"] > 0
    assert (shadow["teacher"]["model"], shadow["student"]["model"]) == ("big", "small")
    assert Decimal(shadow["cost_usd"]) > 0
    # The shadow's student continued the guidance, without a stream.
    sent = world.student.requests[-1]
    assert sent["messages"][-1] == {"role": "assistant", "content": "The answer to your question"}
    assert "stream" not in sent
    assert "stream_options" not in sent


def test_shadows_measure_the_lengths_of_guided_answers(world: World) -> None:
    for _ in range(MIN_ANSWERS):
        assert "length_rule" not in world.shadow_of(world.ask("chat-measured"))
    give_up = time.monotonic() + 40
    while "length_rule" not in (shadow := world.shadow_of(world.ask("chat-measured"))):
        assert time.monotonic() < give_up
        time.sleep(0.2)
    assert shadow["length_rule"] == "measured"


def test_a_shadow_is_found_under_its_own_id_by_its_tenant_alone(world: World) -> None:
    answer = world.ask()
    shadow = world.shadow_of(answer)
    url = f"{world.gateway.url}/v1/receipts/{shadow['id']}"
    give_up = time.monotonic() + 10
    while (found := httpx.get(url, headers={"Authorization": f"Bearer {KEY}"})).status_code == 404:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    assert found.json()["shadow_of"] == answer.headers["x-request-id"]
    assert httpx.get(url, headers={"Authorization": f"Bearer {OTHER_KEY}"}).status_code == 404


def test_a_shadow_costs_and_has_no_baseline(world: World) -> None:
    """A shadow's cost is a loss. Its baseline was not saved, because the request was answered as well."""
    samples = {}
    for when in ("before", "after"):
        text = httpx.get(f"{world.gateway.admin_url}/metrics").text
        labels = r'\{route="chat",(?:savings_class="measuring",)?tenant="acme"\} (\S+)'
        samples[when] = [
            Decimal(float(re.findall(name + labels, text)[0])) if re.findall(name + labels, text) else Decimal(0)
            for name in ("gkt_cost_usd_total", "gkt_losses_usd_total")
        ]
        if when == "before":
            answer = world.ask()
            shadow = world.shadow_of(answer)
            served = world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
    cost, lost = (after - before for before, after in zip(samples["before"], samples["after"], strict=True))
    assert cost == pytest.approx(Decimal(served["cost_usd"]) + Decimal(shadow["cost_usd"]))
    assert Decimal(shadow["savings_usd"]) == -Decimal(shadow["cost_usd"])
    assert lost == pytest.approx(Decimal(shadow["cost_usd"]))
    assert 'gkt_requests_total{mode="shadow"' in text


def test_a_request_outside_the_sample_has_no_shadow(world: World) -> None:
    world.ask("chat-none")
    world.shadow_of(world.ask("chat"))
    assert not any(body.get("messages") for body in world.student.requests[:-1])
    assert not any(line.get("route") == "chat-none" and line.get("shadow_of") for line in world.gateway.log)


def test_a_request_that_cannot_be_guided_has_no_shadow_and_is_counted(world: World) -> None:
    before = world.counted().get("unguidable", 0)
    assert world.ask("chat-s", n=2).status_code == 200
    world.wait_until_counted("unguidable", before + 1)
    assert len(world.student.requests) == 1


@pytest.mark.parametrize("code", [400, 500])
def test_a_failed_shadow_does_not_affect_the_caller(world: World, code: int) -> None:
    """The shadow's receipt has the failure, once."""

    async def fails(_: web.Request, __: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": "no"}}, status=code)

    world.student.behave = fails
    before = world.counted().get("failed", 0)
    answer = world.ask()
    assert (answer.status_code, answer.headers["x-gkt-mode"]) == (200, "teacher")
    assert world.shadow_of(answer)["status"] == ("engine_failed" if code == 500 else "invalid_request")
    world.wait_until_counted("failed", before + 1)
    assert sum(line.get("id") == answer.headers["x-request-id"] + "-shadow" for line in world.gateway.log
               if line["event"] == "request") == 1  # fmt: skip


def test_a_failed_request_starts_no_shadow(world: World) -> None:
    async def fails(_: web.Request, __: dict[str, Any]) -> web.Response:
        return web.json_response({"error": "broken", "error_type": "generation"}, status=500)

    world.teacher.behave = fails
    assert world.ask().status_code == 502
    world.teacher.behave = says(OPENING, "length")
    world.shadow_of(world.ask())
    assert len(world.student.requests) == 1


def test_a_shadows_text_is_never_logged(world: World) -> None:
    """The log line of its request has the question and the caller's answer."""
    answer = world.ask(key="secrets")
    served = world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
    assert "s3cret" in str(served["content"])
    assert "content" not in world.shadow_of(answer)


def test_a_full_limit_rejects_the_shadow_and_not_the_caller(world: World) -> None:
    """A shadow counts as a request. The caller still gets its answer, and the rejected shadow has no receipt."""
    before = world.counted().get("refused", 0)
    world.shadow_of(world.ask(key="limited"))
    second = world.ask(key="limited")
    assert (second.status_code, second.headers["x-gkt-mode"]) == (200, "teacher")
    world.wait_until_counted("refused", before + 1)
    assert not any(line.get("shadow_of") == second.headers["x-request-id"] for line in world.gateway.log)
    assert world.ask(key="limited").status_code == 429


def test_a_budget_that_selects_the_student_alone_rejects_shadows(world: World) -> None:
    """No engine is called for the shadow, and it costs nothing."""
    world.shadow_of(world.ask("chat-s", "budgeted"))
    before = world.counted().get("refused", 0)
    shadow = world.shadow_of(world.ask("chat-s", "budgeted"))
    assert (shadow["status"], shadow["unguided"], Decimal(shadow["cost_usd"])) == ("ok", "budget", 0)
    world.wait_until_counted("refused", before + 1)


class Held:
    """An engine that answers when `free` is set."""

    def __init__(self, answer: Handler) -> None:
        self._answer = answer
        self.free = threading.Event()
        self.held = 0

    async def __call__(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        self.held += 1
        while not self.free.is_set():
            await asyncio.sleep(0.01)
        return await self._answer(request, body)


def test_callers_never_wait_for_shadows_and_shadows_above_the_limit_are_dropped(folder: Path, redis_url: str) -> None:
    """The student hangs, and callers are answered by the teacher. One of four slots may be a shadow's. A stopped
    process finishes the running shadow first.
    """
    with running_world(folder / "bounded", redis_url, max_in_flight=4) as world:
        world.student.behave = held = Held(says(" and ends."))
        answers = [world.ask() for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        world.wait_until_counted("dropped", 2)
        assert world.counted() == {"dropped": 2.0}

        stopping = threading.Thread(target=world.gateway.terminate)
        stopping.start()
        world.gateway.wait_for_log("draining", in_flight=1)
        held.free.set()
        stopping.join(20)
        assert world.shadow_of(answers[0])["status"] == "ok"
        assert world.gateway.process.returncode == 0


def test_a_shadow_that_outlasts_the_drain_is_canceled_and_settled_once(folder: Path, redis_url: str) -> None:
    with running_world(folder / "cut", redis_url, drain_timeout="100ms") as world:
        world.student.behave = Held(says(" and ends."))
        answer = world.ask()
        give_up = time.monotonic() + 10
        while not world.student.requests:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        assert world.gateway.terminate() == 0
        lines = [line for line in world.gateway.log if line.get("id") == answer.headers["x-request-id"] + "-shadow"]
        assert [line["status"] for line in lines if line["event"] == "request"] == ["shutdown"]
    assert "s3cret" not in world.gateway.raw_log
